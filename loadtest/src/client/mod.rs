//! Crowds of clients: one task each, which waits, and notes what came and when.
//!
//! A client must cost far less than what it measures: it parses only what it needs, reads into a buffer that
//! all clients of a thread share, and holds none while parked. What a dialect makes of bytes is pure (no
//! socket, no clock), so it is tried under every split. A client that fails is not revived: it says why, and
//! what it misses counts as lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::report::Transport;

mod crowd;
mod dialect;
mod http;
pub mod listen;
pub mod poll;
pub mod redis;
mod socket;
pub mod sse;
pub mod ws;

pub use crowd::{Crowd, Inbox, Received};
pub use dialect::{Dialect, Ear, Fault};
pub use http::answer;
pub use socket::{connect, stalled};

/// Where clients wait.
#[derive(Clone, Debug)]
pub enum Target {
    /// A broker's listener.
    Walcast(SocketAddr, Transport),
    /// Sessions of their own in this database.
    Listen(Arc<tokio_postgres::Config>),
    /// A Redis.
    Redis(SocketAddr),
    /// nginx with nchan, over SSE or WebSocket.
    Nchan(SocketAddr, Transport),
}

/// How clients ask a broker, beside what they ask for.
#[derive(Clone, Debug)]
pub struct Manner {
    /// Behind which cursor they begin; `None` is now.
    pub after: Option<String>,
    /// How long the broker may hold a long-poll.
    pub wait: Duration,
}

impl Default for Manner {
    /// From now on, and with long-polls held for the broker's most: whoever asks again is not waiting.
    fn default() -> Self {
        Self { after: None, wait: Duration::from_secs(300) }
    }
}

impl Target {
    /// What a client of it speaks to wait for `topic`; `None` where it is more than bytes on a socket.
    #[must_use]
    pub fn dialect(&self, topic: &str, manner: &Manner) -> Option<(SocketAddr, Dialect)> {
        let after = manner.after.clone();
        let (address, dialect) = match self {
            Self::Walcast(address, Transport::Poll) => {
                (address, Dialect::Poll(poll::Poll::new(topic, manner.wait, after)))
            }
            Self::Walcast(address, Transport::Sse) => {
                let path = format!("/v1/events?topic={topic}");
                (address, Dialect::Sse(sse::Sse::new(path, after)))
            }
            Self::Walcast(address, Transport::Ws) => {
                let after = after.map(|after| format!("&after={after}")).unwrap_or_default();
                let path = format!("/v1/ws?topic={topic}{after}");
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
