//! What goes between brokers through Redis: the outcome of the leader's hub, page by page, and the current values.
//!
//! Redis is a copy that may be lost at any moment, never the source of truth: nothing is taken from it that Postgres
//! would not tell again. So every write says what it believes, in one script that either does all of it or changes
//! nothing: whose turn it is (the fence), which number line (the epoch), and where the line ends (the head). The form
//! is written down in `docs/protocol.md`, for others may read it.
//!
//! Nothing here decides when to try again, or what to do about a loss: that is said in [`RedisError`].

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use walcast_wire::{Epoch, Position};

pub use self::asker::Asker;
pub use self::reader::Reader;
pub use self::roll::{Book, STANDS};
pub use self::writer::Writer;

mod asker;
mod dial;
mod entry;
mod error;
mod find;
mod glob;
mod keys;
mod link;
mod reader;
mod roll;
mod scripts;
mod suit;
mod target;
mod writer;

pub use self::error::RedisError;

/// The version of the form in which all of this is written.
const VERSION: &str = "1";

/// `[redis]`: where other brokers find what this one tells.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `redis://`, `redis-sentinel://` or `redis-cluster://`, each with an `s` behind `redis` for TLS. None: a single broker.
    pub url: Option<String>,
    /// Publish each event on the channel of its topic, too, for programs that subscribe to Redis itself.
    pub pubsub: bool,
    /// How many replicas must have an append before Postgres hears that it is done.
    pub replicas: u32,
    /// How long they may take.
    #[serde(with = "humantime_serde")]
    pub replicas_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { url: None, pubsub: false, replicas: 0, replicas_timeout: Duration::from_secs(1) }
    }
}

impl fmt::Debug for Config {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self
            .url
            .as_deref()
            .map(|url| target::Target::parse(url).map_or_else(|_| "…".into(), |t| t.to_string()));
        f.debug_struct("Config")
            .field("url", &url)
            .field("pubsub", &self.pubsub)
            .field("replicas", &self.replicas)
            .field("replicas_timeout", &self.replicas_timeout)
            .finish()
    }
}

impl Config {
    /// Looks at the text of the settings, and at nothing else.
    ///
    /// # Errors
    /// [`RedisError::Unsuitable`]: the URL is none. It is not repeated, since it may hold a password.
    pub fn check(&self) -> Result<(), RedisError> {
        self.url.as_deref().map_or(Ok(()), |url| target::Target::parse(url).map(|_| ()))
    }

    /// Where it leads.
    fn target(&self) -> Result<target::Target, RedisError> {
        let missing = || RedisError::Unsuitable("redis.url is not set: give the URL of a Redis".into());
        target::Target::parse(self.url.as_deref().ok_or_else(missing)?)
    }
}

/// How far the log in Redis goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number line.
    pub epoch: Epoch,
    /// Everything up to here, inclusive, was appended.
    pub head: Position,
}
