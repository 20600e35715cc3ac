//! Listening: one accept loop for every HTTP listener of the process.
//!
//! It bounds what strangers can take before a handler sees them: connections, time for a request head,
//! size of it, time without write progress. It knows nothing of what is served.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tower::ServiceExt;
use walcast_wire::ProblemCode;

mod refusal;
mod socket;

use socket::Socket;

/// The largest request head, in bytes.
pub const HEAD_BYTES_MAX: usize = 8192;
/// Connections above the limit that are still told why, rather than cut.
const SHED_MAX: usize = 64;
/// File descriptors kept for everything that is not a client.
const DESCRIPTORS_KEPT: u64 = 128;
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

/// Raises the limit on open files as far as the process may, and says how many of the wanted connections
/// fit below it.
#[must_use]
pub fn connections_possible(wanted: usize) -> usize {
    let granted = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    wanted.min(usize::try_from(granted.saturating_sub(DESCRIPTORS_KEPT)).unwrap_or(usize::MAX)).max(1)
}

/// A connection, as its requests see it (a request extension).
#[derive(Clone, Debug)]
pub struct Connection {
    written: Arc<AtomicU64>,
    tasks: TaskTracker,
    kill: CancellationToken,
}

impl Connection {
    /// Bytes that the peer's side has taken so far, to tell a slow peer from a dead one.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Held by a task that outlives the request (a WebSocket): [`serve`] waits for it.
    pub fn hold(&self) -> TaskTrackerToken {
        self.tasks.token()
    }

    /// Fires when the time to drain is over: the holder ends at once.
    #[must_use]
    pub fn kill(&self) -> &CancellationToken {
        &self.kill
    }
}

/// Serves `router` on `listener` until `drain` fires; then stops accepting and returns once every
/// connection has ended. Handlers watch the same token to end their waits. Dropping the future cuts what
/// is left, so the caller bounds the drain with a timeout.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, drain: CancellationToken) {
    let (tasks, kill) = (TaskTracker::new(), CancellationToken::new());
    let _kill_on_drop = kill.clone().drop_guard();
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let shed = Arc::new(Semaphore::new(SHED_MAX));
    let mut backoff = None;
    loop {
        let accepted = tokio::select! {
            biased; // A drain wins over a storm of new connections.
            () = drain.cancelled() => break,
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
                    () = drain.cancelled() => break,
                    () = tokio::time::sleep(pause) => continue,
                }
            }
        };
        backoff = None;
        let connection = Connection { written: Arc::default(), tasks: tasks.clone(), kill: kill.clone() };
        if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
            let socket = Socket::new(stream, connection.clone(), limits.write_timeout, slot);
            tasks.spawn(run(socket, router.clone(), limits, connection, drain.clone()));
        } else if let Ok(slot) = Arc::clone(&shed).try_acquire_owned() {
            // The socket lingers on drop, so that the answer is not lost to a reset.
            let socket = Socket::new(stream, connection, limits.write_timeout, slot);
            tasks.spawn(refuse(socket));
        }
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

fn is_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn refuse(mut socket: Socket) {
    let answer = refusal::answer(ProblemCode::Overloaded, "too many connections; retry later");
    // Within the write timeout; a peer that hangs up loses only its answer.
    let _ = socket.write_all(&answer).await;
}

async fn run(
    socket: Socket,
    router: Router,
    limits: Limits,
    connection: Connection,
    drain: CancellationToken,
) {
    let kill = connection.kill.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(connection.clone());
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let mut http = http1::Builder::new();
    // Without a timer hyper's head timeout does nothing, in silence.
    http.timer(TokioTimer::new()).header_read_timeout(limits.head_timeout).max_buf_size(HEAD_BYTES_MAX);
    let mut serving = pin!(http.serve_connection(TokioIo::new(socket), service).with_upgrades());
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            () = kill.cancelled() => return,
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            () = drain.cancelled(), if !draining => {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// What every accepted socket gets: no delay for small writes, and an end for peers that vanished.
fn tune(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    // A failure leaves the kernel's defaults, which are slower but not wrong.
    let _ = stream.set_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(Duration::from_secs(30)));
}
