//! One client whose protocol is bytes on a socket.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::task::Poll as Progress;
use std::time::Duration;

use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::crowd::Shared;
use super::{Dialect, Ear, Fault, Manner, Target};

/// Bytes read at a time, by all clients of a thread into one buffer.
const READ_BYTES: usize = 64 << 10;
/// Clients from one source address; the kernel has about 28,000 ports for each.
const PER_SOURCE: usize = 20_000;
/// Room for what a stalled reader's system takes on its own.
const STALLED_BYTES: u32 = 4096;
/// How long one connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// Connects client `number` from a source address that has ports left.
///
/// # Errors
/// Nobody listens there, or ports or files have run out.
pub async fn connect(number: usize, address: SocketAddr) -> Result<TcpStream, Fault> {
    open(number, address, None).await
}

async fn open(number: usize, address: SocketAddr, receive_bytes: Option<u32>) -> Result<TcpStream, Fault> {
    let work = async {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if address.ip() == Ipv4Addr::LOCALHOST && number >= PER_SOURCE {
            let host = u8::try_from(1 + number / PER_SOURCE).unwrap_or(u8::MAX);
            socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into())?;
        }
        socket.set_nodelay(true)?;
        if let Some(bytes) = receive_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.connect(address).await
    };
    let refused = |why: String| Fault::new(format!("cannot connect to {address}: {why}"));
    match timeout(CONNECT_TIMEOUT, work).await {
        Ok(connected) => connected.map_err(|error| refused(error.to_string())),
        Err(_) => Err(refused(format!("no answer within {CONNECT_TIMEOUT:?}"))),
    }
}

/// One client's life.
pub(super) async fn follow(
    shared: &Shared,
    number: usize,
    address: SocketAddr,
    mut dialect: Dialect,
    connecting: &Semaphore,
) -> Result<(), Fault> {
    // The semaphore is never closed; without a permit it would only be less gentle.
    let permit = connecting.acquire().await.ok();
    let mut stream = connect(number, address).await?;
    drop(permit);
    let mut reply = Vec::new();
    dialect.hello(address, &mut reply);
    // What came of a message that is not whole.
    let mut carry = Vec::new();
    stream.write_all(&reply).await?;
    // A long-poll is told nothing until there is something to tell.
    let mut ready = matches!(dialect, Dialect::Poll(_));
    if ready {
        shared.became_ready();
    }
    loop {
        reply = hear(&mut stream, shared, number, &mut dialect, &mut carry, &mut ready).await?;
        stream.write_all(&reply).await?;
    }
}

/// Reads until there is something to say.
async fn hear(
    stream: &mut TcpStream,
    shared: &Shared,
    number: usize,
    dialect: &mut Dialect,
    carry: &mut Vec<u8>,
    ready: &mut bool,
) -> Result<Vec<u8>, Fault> {
    let mut stream = pin!(stream);
    poll_fn(|context| {
        BUFFER.with_borrow_mut(|buffer| {
            loop {
                let mut read = ReadBuf::new(buffer);
                match stream.as_mut().poll_read(context, &mut read) {
                    Progress::Pending => return Progress::Pending,
                    Progress::Ready(done) => done?,
                }
                if read.filled().is_empty() {
                    return Progress::Ready(Err(Fault::new("the server closed the connection")));
                }
                let mut inbox = shared.inboxes[number].lock();
                let before = inbox.receipts.len();
                let mut ear = Ear::new(&mut inbox, shared.clock.us());
                let done = dialect.hear(read.filled(), carry, &mut ear);
                let (reply, is_ready) = ear.end();
                shared.received((inbox.receipts.len() - before) as u64);
                drop(inbox);
                if is_ready && !*ready {
                    *ready = true;
                    shared.became_ready();
                }
                done?;
                if !reply.is_empty() {
                    shared.replied();
                    return Progress::Ready(Ok(reply));
                }
            }
        })
    })
    .await
}

/// Opens a connection as a client of `target` would, asks for `topic`, and reads nothing.
///
/// # Errors
/// Nobody listens there.
pub async fn stalled(target: &Target, number: usize, topic: &str) -> Result<TcpStream, Fault> {
    let Some((address, mut dialect)) = target.dialect(topic, &Manner::default()) else {
        return Err(Fault::new("LISTEN has no stalled readers: its server gives up none"));
    };
    let mut hello = Vec::new();
    dialect.hello(address, &mut hello);
    // So that the little that its system takes for it is soon full.
    let mut stream = open(number, address, Some(STALLED_BYTES)).await?;
    stream.write_all(&hello).await?;
    Ok(stream)
}
