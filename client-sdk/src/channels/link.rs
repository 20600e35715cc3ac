//! A connection to Redis that listens, whichever client made it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use walcast_wire::Cursor;

use super::inbox::Outlet;
use super::names::Names;
use super::seen;

/// How long Redis has for an answer.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How often a connection is asked whether it still lives.
const PING_EVERY: Duration = Duration::from_secs(15);
/// The form of the stream that is read here.
const VERSION: &str = "1";

pub(crate) type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Fault>> + Send>>;

/// Why Redis does not serve.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It may later.
    Mends(String),
    /// Somebody has to change something.
    Lasting(String),
}

/// Makes connections.
pub(crate) trait Dial: Send + Sync {
    /// Connects and listens; done once Redis confirmed all of it.
    fn open(&self, names: &Names) -> Answer<Line>;
}

/// The same connection, for questions.
pub(crate) trait Ask: Send + Sync {
    /// The fields `version`, `epoch` and `head` of this hash.
    fn meta(&self, key: &str) -> Answer<[Option<String>; 3]>;

    /// Whether it lives.
    fn ping(&self) -> Answer<()>;
}

/// Listens to the end; dropping it hangs up.
pub(crate) struct Line {
    heard: Outlet,
    pub(crate) asks: Arc<dyn Ask>,
    pub(crate) since: Instant,
    /// When nothing was heard up to then, it is asked whether it lives.
    ping_at: Instant,
    ping: Option<Answer<()>>,
}

impl Line {
    pub(crate) fn new(heard: Outlet, asks: Arc<dyn Ask>) -> Self {
        let now = Instant::now();
        Self { heard, asks, since: now, ping_at: now + PING_EVERY, ping: None }
    }

    /// The next message; `None` once the connection ended or does not answer. May be dropped without loss.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        let Self { heard, asks, ping_at, ping, .. } = self;
        loop {
            tokio::select! {
                biased;
                message = heard.next() => {
                    *ping_at = Instant::now() + PING_EVERY;
                    return message;
                }
                pong = done(ping) => {
                    *ping = None;
                    *ping_at = Instant::now() + PING_EVERY;
                    if let Err(Fault::Mends(reason) | Fault::Lasting(reason)) = pong {
                        tracing::debug!(reason, "walcast: Redis is asked whether it lives");
                        return None;
                    }
                }
                () = sleep_until(*ping_at), if ping.is_none() => *ping = Some(Box::pin(in_time(asks.ping()))),
            }
        }
    }
}

/// Up to where everything was told before Redis answered; `None` while it holds no log.
pub(crate) async fn head(asks: Arc<dyn Ask>, meta: String) -> Result<Option<Cursor>, Fault> {
    let [version, epoch, head] = in_time(asks.meta(&meta)).await?;
    let (Some(version), Some(epoch), Some(head)) = (version, epoch, head) else { return Ok(None) };
    if version != VERSION {
        let reason = format!("{meta} is of version {version}, this client reads {VERSION}: upgrade it");
        return Err(Fault::Lasting(reason));
    }
    match seen::head(&epoch, &head) {
        Some(head) => Ok(Some(head)),
        None => Err(Fault::Lasting(format!("{meta} holds {head:?} of {epoch:?}, which is no place"))),
    }
}

/// Redis has its time.
pub(crate) async fn in_time<T>(answer: Answer<T>) -> Result<T, Fault> {
    let late = |_| Fault::Mends(format!("no answer within {} s", ANSWER_MAX.as_secs()));
    tokio::time::timeout(ANSWER_MAX, answer).await.map_err(late)?
}

/// Waits for what is under way; for ever if nothing is.
pub(crate) async fn done<T>(work: &mut Option<Answer<T>>) -> Result<T, Fault> {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}
