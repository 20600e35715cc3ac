//! What reports name: scenarios, systems, transports.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What can be played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// Memory and CPU of clients that wait.
    Idle,
    /// A topic each, one client woken at a time.
    Wake,
    /// One transaction wakes all.
    Storm,
    /// One topic, many subscribers.
    Fanout,
    /// Connections per second until all wait.
    Arrive,
    /// What publishing costs a transaction.
    Commit,
    /// The write-ahead log beside the outbox.
    Sources,
    /// From the write-ahead log to the hub.
    Ingest,
    /// Stalled readers beside good ones.
    Slow,
    /// The delivery gap behind a huge transaction.
    Stall,
    /// Clients that come and go with their cursors.
    Churn,
}

impl Scenario {
    /// All of them, in the order in which reports show them.
    pub const ALL: [Self; 11] = [
        Self::Idle,
        Self::Wake,
        Self::Storm,
        Self::Fanout,
        Self::Arrive,
        Self::Commit,
        Self::Sources,
        Self::Ingest,
        Self::Slow,
        Self::Stall,
        Self::Churn,
    ];

    /// Its name in arguments and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Wake => "wake",
            Self::Storm => "storm",
            Self::Fanout => "fanout",
            Self::Arrive => "arrive",
            Self::Commit => "commit",
            Self::Sources => "sources",
            Self::Ingest => "ingest",
            Self::Slow => "slow",
            Self::Stall => "stall",
            Self::Churn => "churn",
        }
    }

    /// What it shows, in a line.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            Self::Idle => "memory and CPU of clients that wait",
            Self::Wake => "a topic for each client, one client woken at a time",
            Self::Storm => "one transaction wakes all clients",
            Self::Fanout => "one topic, all clients subscribe to it",
            Self::Arrive => "connections per second until all clients wait",
            Self::Commit => "what publishing costs a transaction, by method",
            Self::Sources => "the write-ahead log beside the outbox",
            Self::Ingest => "changes per second from the write-ahead log to the hub",
            Self::Slow => "stalled readers beside good ones",
            Self::Stall => "the delivery gap behind a huge transaction",
            Self::Churn => "clients that come and go with their cursors",
        }
    }
}

/// What was measured: walcast, or a peer beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum System {
    /// Ours.
    Walcast,
    /// LISTEN/NOTIFY on the same Postgres.
    Listen,
    /// Redis publish/subscribe.
    Redis,
    /// nginx with the nchan module.
    Nchan,
    /// `pg_recvlogical` to /dev/null, on the same log.
    Recvlogical,
    /// Postgres alone: what a transaction costs that tells nobody.
    Postgres,
}

impl System {
    /// Its name in arguments and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Walcast => "walcast",
            Self::Listen => "listen",
            Self::Redis => "redis",
            Self::Nchan => "nchan",
            Self::Recvlogical => "pg_recvlogical",
            Self::Postgres => "postgres",
        }
    }
}

/// How walcast's clients wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// HTTP long-poll.
    Poll,
    /// Server-sent events.
    Sse,
    /// WebSocket.
    Ws,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Poll, Self::Sse, Self::Ws];

    /// Its name in arguments and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Sse => "sse",
            Self::Ws => "ws",
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
