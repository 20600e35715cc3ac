//! Listening: one accept loop for every HTTP listener of the process.
//!
//! It bounds what strangers can take before anybody sees them: connections, and time without write progress.
//! What is served on an accepted [`Socket`] is for the [`Serve`] that it is given; [`http`] is the usual one.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use walcast_wire::ProblemCode;

pub mod http;
mod refusal;
mod socket;
pub mod tls;

pub use socket::Socket;

/// The largest request head, in bytes.
pub const HEAD_BYTES_MAX: usize = 8192;
/// Connections above the limit that are still told why, rather than cut.
const SHED_MAX: usize = 64;
/// File descriptors kept for everything that is not a client.
const DESCRIPTORS_KEPT: u64 = 128;
/// Connections that wait to be accepted; the kernel allows as many as `net.core.somaxconn` says. One beyond them tries
/// again only after a second.
const BACKLOG: u32 = 65_535;
/// Pauses after `accept` failed for want of a file descriptor or memory.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What one listener grants.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections_max: usize,
    /// From the end of one request (or the start of the connection) to the end of the next head.
    pub head_timeout: Duration,
    /// Without a byte taken by the peer while there is something to write.
    pub write_timeout: Duration,
}

/// Listens, with room for a fleet that arrives at once.
///
/// # Errors
/// The address is in use, or not ours.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart does not wait for the connections of before to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Raises the limit on open files as far as the process may, and says how many of the wanted connections
/// fit below it.
#[must_use]
pub fn connections_possible(wanted: usize) -> usize {
    let granted = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    wanted.min(usize::try_from(granted.saturating_sub(DESCRIPTORS_KEPT)).unwrap_or(usize::MAX)).max(1)
}

/// What is done with accepted connections.
pub trait Serve: Send + Sync + 'static {
    /// Serves one until it ends. When `house.drain` fires, what waits is answered and the connection ends soon.
    /// The future is kept by every connection, so it should be small.
    fn serve(self: Arc<Self>, socket: Socket, house: Arc<House>) -> impl Future<Output = ()> + Send;
}

/// What the connections of one listener share.
#[derive(Debug)]
pub struct House {
    /// What each is granted.
    pub limits: Limits,
    /// Asks connections to end.
    pub drain: CancellationToken,
    tasks: TaskTracker,
    kill: CancellationToken,
}

impl House {
    /// Held by a task that outlives its connection's own (an upgraded one): [`serve`] waits for it.
    pub fn hold(&self) -> TaskTrackerToken {
        self.tasks.token()
    }

    /// Fires when the time to drain is over: whoever holds a token ends at once.
    #[must_use]
    pub fn kill(&self) -> &CancellationToken {
        &self.kill
    }
}

/// Serves connections of `listener`, by TLS where there is a certificate, until `drain` fires; then stops accepting and returns once every one has
/// ended. Dropping the future cuts what is left, so the caller bounds the drain with a timeout.
pub async fn serve(
    listener: TcpListener,
    service: Arc<impl Serve>,
    limits: Limits,
    tls: Option<tls::Current>,
    drain: CancellationToken,
) {
    let (tasks, kill) = (TaskTracker::new(), CancellationToken::new());
    let _kill_on_drop = kill.clone().drop_guard();
    let house = Arc::new(House { limits, drain, tasks, kill });
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let shed = Arc::new(Semaphore::new(SHED_MAX));
    socket::tune(&listener);
    let mut backoff = None;
    loop {
        let accepted = tokio::select! {
            biased; // A drain wins over a storm of new connections.
            () = house.drain.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // The peer went away between the handshake and here.
            Err(error) if is_peers(&error) => continue,
            Err(error) => {
                let pause = match backoff {
                    None => {
                        tracing::error!(%error, "cannot accept connections; raise the limit on open files");
                        BACKOFF.0
                    }
                    Some(pause) => BACKOFF.1.min(pause * 2),
                };
                backoff = Some(pause);
                tokio::select! {
                    () = house.drain.cancelled() => break,
                    () = tokio::time::sleep(pause) => continue,
                }
            }
        };
        backoff = None;
        if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
            let (service, at) = (Arc::clone(&service), Arc::clone(&house));
            let opening = open(stream, tls.as_ref(), Arc::clone(&house), slot);
            let serving = Box::pin(async move {
                if let Some(socket) = opening.await {
                    service.serve(socket, at).await;
                }
            });
            house.tasks.spawn(cut_off(serving, Arc::clone(&house)));
        } else if let Ok(slot) = Arc::clone(&shed).try_acquire_owned() {
            // The socket lingers on drop, so that the answer is not lost to a reset.
            house.tasks.spawn(refuse(open(stream, tls.as_ref(), Arc::clone(&house), slot)));
        }
    }
    drop(listener);
    house.tasks.close();
    house.tasks.wait().await;
}

fn is_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// The socket; with a certificate, once hands were shaken.
fn open(
    stream: TcpStream,
    tls: Option<&tls::Current>,
    house: Arc<House>,
    slot: OwnedSemaphorePermit,
) -> impl Future<Output = Option<Socket>> + Send + use<> {
    let certificate = tls.map(|tls| Arc::clone(&tls.borrow()));
    async move {
        match certificate {
            None => Some(Socket::new(tls::Stream::Plain(stream), house, slot)),
            Some(certificate) => shake_hands(stream, certificate, house, slot).await,
        }
    }
}

/// The socket, once both sides agree on their keys. Boxed: what it takes is needed once, and a connection lives long.
fn shake_hands(
    stream: TcpStream,
    certificate: Arc<rustls::ServerConfig>,
    house: Arc<House>,
    slot: OwnedSemaphorePermit,
) -> Pin<Box<dyn Future<Output = Option<Socket>> + Send>> {
    Box::pin(async move {
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(house.limits.head_timeout, tls::accept(stream, certificate)) => shaken.ok()?,
            () = house.drain.cancelled() => return None,
        };
        match shaken {
            Ok(stream) => Some(Socket::new(stream, house, slot)),
            // The other side's affair: it does not trust us, or speaks something else.
            Err(error) => {
                tracing::debug!(%error, "no TLS");
                None
            }
        }
    })
}

async fn refuse(opening: impl Future<Output = Option<Socket>>) {
    let Some(mut socket) = opening.await else { return };
    let answer = refusal::answer(ProblemCode::Overloaded, "too many connections; retry later");
    // Within the write timeout; a peer that hangs up loses only its answer.
    let _ = socket.write_all(&answer).await;
    let _ = socket.flush().await;
}

/// Lets it take its time, unless patience ends.
async fn cut_off(serving: Pin<Box<impl Future<Output = ()> + Send>>, house: Arc<House>) {
    let serving = AssertUnwindSafe(serving).catch_unwind();
    if let Some(Err(_)) = house.kill.run_until_cancelled(serving).await {
        tracing::error!(
            "the task of a connection panicked, and its client was cut off; this is a fault of walcast"
        );
    }
}
