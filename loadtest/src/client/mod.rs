//! Crowds of clients: one task each, which waits, and notes what came and when.
//!
//! A client must cost far less than what it measures: it parses only what it needs, reads into a buffer that
//! all clients of a thread share, and holds none while parked. What a dialect makes of bytes is pure (no
//! socket, no clock), so it is tried under every split. A client that fails is not revived: it says why, and
//! what it misses counts as lost.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll as Progress;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Error;
use crate::latency::{Clock, Latencies, Sent};
use crate::report::{Checks, Transport};
use crate::verify::{self, Receipt};

mod dialect;
mod http;
pub mod listen;
pub mod poll;
pub mod redis;
pub mod sse;
pub mod ws;

pub use dialect::{Dialect, Ear, Fault};

/// Bytes read at a time, by all clients of a thread into one buffer.
const READ_BYTES: usize = 64 << 10;
/// No message that we measure is larger.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Clients that connect at a time: fewer than a listener's queue holds.
const CONNECTING_MAX: usize = 256;
/// Clients from one source address; the kernel has about 28,000 ports for each.
const PER_SOURCE: usize = 20_000;
/// Room for what a stalled reader's system takes on its own.
const STALLED_BYTES: u32 = 4096;
/// How long one connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// Where clients wait.
#[derive(Clone, Debug)]
pub enum Target {
    /// A broker's listener.
    Walcast(SocketAddr, Transport),
    /// Sessions of their own in this database.
    Listen(String),
    /// A Redis.
    Redis(SocketAddr),
    /// nginx with nchan, over SSE or WebSocket.
    Nchan(SocketAddr, Transport),
}

impl Target {
    /// What a client of it speaks to wait for `topic`; `None` where it is more than bytes on a socket.
    #[must_use]
    pub fn dialect(&self, topic: &str) -> Option<(SocketAddr, Dialect)> {
        let (address, dialect) = match self {
            Self::Walcast(address, Transport::Poll) => (address, Dialect::Poll(poll::Poll::new(topic, None))),
            Self::Walcast(address, Transport::Sse) => {
                let path = format!("/v1/events?topic={topic}");
                (address, Dialect::Sse(sse::Sse::new(path, None)))
            }
            Self::Walcast(address, Transport::Ws) => {
                let path = format!("/v1/ws?topic={topic}");
                (address, Dialect::Ws(ws::Ws::new(path)))
            }
            Self::Nchan(address, Transport::Ws) => {
                (address, Dialect::Ws(ws::Ws::new(format!("/sub?id={topic}"))))
            }
            Self::Nchan(address, _) => {
                (address, Dialect::Sse(sse::Sse::new(format!("/sub?id={topic}"), None)))
            }
            Self::Redis(address) => (address, Dialect::Redis(redis::Redis::new(topic))),
            Self::Listen(_) => return None,
        };
        Some((*address, dialect))
    }
}

/// What one client received.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    /// Messages, in the order in which they came.
    pub receipts: Vec<Receipt>,
    /// Where to go on, as far as the client was told.
    pub cursor: Option<String>,
    /// How often it was told that events may be missing.
    pub resets: u32,
}

/// What all clients share.
#[derive(Debug)]
struct Shared {
    clock: Clock,
    inboxes: Box<[Mutex<Inbox>]>,
    ready: AtomicU64,
    delivered: AtomicU64,
    faults: AtomicU64,
    fault: Mutex<Option<String>>,
    /// Set when `delivered` reaches `target`, and at every ready client and every fault.
    target: AtomicU64,
    changed: Notify,
}

impl Shared {
    fn became_ready(&self) {
        self.ready.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    fn received(&self, count: u64) {
        if count > 0 {
            // In one order with who sets the target and then looks: one of the two sees the other.
            let before = self.delivered.fetch_add(count, Ordering::SeqCst);
            if before + count >= self.target.load(Ordering::SeqCst) {
                self.changed.notify_one();
            }
        }
    }

    fn failed(&self, client: usize, fault: &Fault) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.fault.lock().get_or_insert_with(|| format!("client {client}: {fault}"));
        self.changed.notify_one();
    }
}

/// Clients that wait; all end when it is dropped.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Crowd {
    /// Starts `clients` clients, each waiting for `topic(its number)`. Returns at once; see
    /// [`all_ready`](Self::all_ready).
    #[must_use]
    pub fn start(target: &Target, clock: Clock, clients: usize, topic: impl Fn(usize) -> String) -> Self {
        let shared = Arc::new(Shared {
            clock,
            inboxes: (0..clients).map(|_| Mutex::default()).collect(),
            ready: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            fault: Mutex::new(None),
            target: AtomicU64::new(u64::MAX),
            changed: Notify::new(),
        });
        let connecting = Arc::new(Semaphore::new(CONNECTING_MAX));
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let topic = topic(number);
            let (shared, connecting) = (Arc::clone(&shared), Arc::clone(&connecting));
            match (target.dialect(&topic), target) {
                (Some((address, dialect)), _) => {
                    tasks.spawn(async move {
                        if let Err(fault) = follow(&shared, number, address, dialect, &connecting).await {
                            shared.failed(number, &fault);
                        }
                    });
                }
                (None, Target::Listen(url)) => {
                    let url = url.clone();
                    tasks.spawn(async move {
                        if let Err(fault) = listen::follow(&shared, number, &url, &topic, &connecting).await {
                            shared.failed(number, &fault);
                        }
                    });
                }
                (None, _) => unreachable!("all others are bytes on a socket"),
            }
        }
        Self { shared, tasks }
    }

    /// How many there are.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.shared.inboxes.len()
    }

    /// Clients whom the server has told, where it does, that they wait; else those that have asked to.
    #[must_use]
    pub fn ready(&self) -> u64 {
        self.shared.ready.load(Ordering::Relaxed)
    }

    /// Messages received, by all.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.shared.delivered.load(Ordering::SeqCst)
    }

    /// Clients that failed, and why the first of them did.
    #[must_use]
    pub fn faults(&self) -> (u64, Option<String>) {
        (self.shared.faults.load(Ordering::Relaxed), self.shared.fault.lock().clone())
    }

    /// Waits until all are [`ready`](Self::ready).
    ///
    /// # Errors
    /// A client failed, or none became ready for `patience`.
    pub async fn all_ready(&self, patience: Duration) -> Result<(), Error> {
        let clients = self.clients() as u64;
        loop {
            let (ready, (faults, why)) = (self.ready(), self.faults());
            if faults > 0 {
                let why = why.unwrap_or_default();
                return Err(Error::failed(format!("{faults} of {clients} clients failed to connect: {why}")));
            }
            if ready >= clients {
                return Ok(());
            }
            if timeout(patience, self.shared.changed.notified()).await.is_err() && self.ready() == ready {
                return Err(Error::failed(format!(
                    "only {ready} of {clients} clients wait, and none more came within {patience:?}; \
                     look at the server's log, or try fewer clients"
                )));
            }
        }
    }

    /// Waits until `count` messages were received in all, or nothing came for `quiet`; whether they were.
    pub async fn until_delivered(&self, count: u64, quiet: Duration) -> bool {
        self.shared.target.store(count, Ordering::SeqCst);
        loop {
            let before = self.delivered();
            if before >= count {
                return true;
            }
            let waited = timeout(quiet, self.shared.changed.notified()).await;
            if waited.is_err() && self.delivered() == before {
                return false;
            }
        }
    }

    /// Ends all clients and answers what each received.
    pub async fn finish(mut self) -> Received {
        self.tasks.shutdown().await;
        let inboxes = self.shared.inboxes.iter().map(|inbox| std::mem::take(&mut *inbox.lock()));
        Received { inboxes: inboxes.collect(), fault: self.shared.fault.lock().clone() }
    }
}

/// What a crowd received.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// One for each client.
    pub inboxes: Vec<Inbox>,
    /// Why the first client that failed did.
    pub fault: Option<String>,
}

impl Received {
    /// Judges all clients; `due` is what each must have, by its number.
    pub fn judge<I: IntoIterator<Item = u32>>(&self, due: impl Fn(usize) -> I) -> Checks {
        let each = self.inboxes.iter().enumerate();
        each.fold(Checks::default(), |sum, (number, inbox)| {
            sum.and(verify::client(&inbox.receipts, due(number)))
        })
    }

    /// All latencies.
    #[must_use]
    pub fn latencies(&self, sent: &Sent) -> Latencies {
        let mut latencies = Latencies::default();
        for inbox in &self.inboxes {
            latencies.receipts(&inbox.receipts, sent);
        }
        latencies
    }

    /// When the first and the last message came, in microseconds of the run's clock.
    #[must_use]
    pub fn span_us(&self) -> Option<(u32, u32)> {
        let all = || self.inboxes.iter().flat_map(|inbox| inbox.receipts.iter().map(|receipt| receipt.at_us));
        Some((all().min()?, all().max()?))
    }
}

/// Status and length of the whole HTTP answer at the beginning of `bytes`, once it is there.
///
/// # Errors
/// It is no answer, or its length is not told.
pub fn answer(bytes: &[u8]) -> Result<Option<(u16, usize)>, Fault> {
    let Some(head) = http::head(bytes)? else { return Ok(None) };
    let http::Body::Length(length) = head.body else {
        return Err(Fault::unexpected("an answer without a length", bytes));
    };
    let whole = head.length + length;
    Ok((bytes.len() >= whole).then_some((head.status, whole)))
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
async fn follow(
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
                if carry.len() > MESSAGE_BYTES_MAX {
                    return Progress::Ready(Err(Fault::new("a message is larger than 16 MiB")));
                }
                done?;
                if !reply.is_empty() {
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
    let Some((address, mut dialect)) = target.dialect(topic) else {
        return Err(Fault::new("LISTEN has no stalled readers: its server gives up none"));
    };
    let mut hello = Vec::new();
    dialect.hello(address, &mut hello);
    // So that the little that its system takes for it is soon full.
    let mut stream = open(number, address, Some(STALLED_BYTES)).await?;
    stream.write_all(&hello).await?;
    Ok(stream)
}
