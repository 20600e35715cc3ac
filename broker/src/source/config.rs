//! `[source]`: by which way Postgres is read, and what that way needs.

use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// How Postgres is read.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// By which way.
    pub kind: SourceKind,
    /// The persistent slot that keeps the log for restarts; the streamed copy is named after it. Where there is no
    /// slot, still the name of the source.
    pub slot: String,
    /// The publication that names the tables.
    pub publication: String,
    /// When an event may be delivered.
    pub delivery: Delivery,
    /// How long a silent leader keeps the stream.
    #[serde(with = "humantime_serde")]
    pub lease: Duration,
    /// How fast state tables are read, in bytes of text per second.
    #[serde(deserialize_with = "crate::units::bytes")]
    pub seed_bytes_per_second: u64,
    /// Of the outbox: the longest pause between two looks, while nothing comes.
    #[serde(with = "humantime_serde")]
    pub poll_max: Duration,
    /// Pause after the server said that it stops, for a client that comes back at once would be in its way. No
    /// key: nobody gains by another value, but tests, which do not have the time.
    #[serde(skip)]
    pub shutdown_pause: Duration,
    /// Ask the broker that leads to hand over, once. No key, for it is about one start: `serve --takeover`.
    #[serde(skip)]
    pub takeover: bool,
}

/// A way to read Postgres.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// The write-ahead log, by logical replication.
    #[default]
    Wal,
    /// A table, for servers without logical replication or behind a transaction pooler.
    Outbox,
}

impl SourceKind {
    /// Its name, as the configuration and `walcast.settings` have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Outbox => "outbox",
        }
    }
}

impl FromStr for SourceKind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Wal, Self::Outbox].into_iter().find(|kind| kind.as_str() == text).ok_or("wal or outbox")
    }
}

/// What a restart can read again.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// WAL that the server keeps for it at most, in bytes; reading that much takes about 10 s a GiB.
    #[serde(deserialize_with = "crate::units::bytes")]
    pub wal_bytes: u64,
}

impl Default for Replay {
    fn default() -> Self {
        Self { wal_bytes: 1 << 30 }
    }
}

impl Config {
    /// The name of the slot that is streamed from; holding it is the lease.
    #[must_use]
    pub fn live_slot(&self) -> String {
        format!("{}_live", self.slot)
    }

    /// The name of the slot that is there for a moment when the server is asked for a record of running
    /// transactions.
    #[must_use]
    pub fn mark_slot(&self) -> String {
        format!("{}_mark", self.slot)
    }
}

/// When an event may be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// Once every session can read its row.
    Visible,
    /// As soon as the log holds it; its row may not be readable yet.
    Fast,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kind: SourceKind::default(),
            slot: "walcast".into(),
            publication: "walcast".into(),
            delivery: Delivery::Visible,
            lease: Duration::from_secs(5),
            seed_bytes_per_second: 64 << 20,
            poll_max: Duration::from_millis(500),
            shutdown_pause: Duration::from_secs(10),
            takeover: false,
        }
    }
}
