//! What travels: events, replies, WebSocket frames and problems. All of it JSON.

use serde::{Deserialize, Serialize};

use crate::{Cursor, ProblemCode, Topic, TopicPattern};

/// What happened to a row, or that a message was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// A row came into being.
    Insert,
    /// A row changed, or came under this topic by a change of its key.
    Update,
    /// A row went away, or left this topic.
    Delete,
    /// The whole table was emptied.
    Truncate,
    /// `walcast.publish`, `walcast.notify` or `POST /v1/publish`.
    Message,
    /// The current value of a state topic, rather than a change.
    Snapshot,
}

impl Op {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
            Self::Message => "message",
            Self::Snapshot => "snapshot",
        }
    }
}

/// One event. `D` is the type that holds `data`: `serde_json::Value`, a raw value, or one's own.
///
/// Unique is (cursor, topic): a key change and a TRUNCATE make several events with one cursor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event<D> {
    /// Present it to go on after this event.
    pub cursor: Cursor,
    /// Where it was published.
    pub topic: Topic,
    /// What happened.
    pub op: Op,
    /// The row, its key (on delete), or the message.
    pub data: D,
    /// When it was committed: RFC 3339, UTC, microseconds. Absent on a value read by seeding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// The commit LSN as Postgres writes it. A reader of a replica waits until
    /// `pg_last_wal_replay_lsn() > lsn`. Absent on a value read by seeding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<String>,
    /// The transaction id, 32 bits, as in a row's `xmin`. Absent on a value read by seeding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xid: Option<u32>,
    /// The last event of its transaction on this topic.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub last: bool,
    /// The transaction was too large to mark its last events.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Columns that the change left as they were and whose value Postgres did not send.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unchanged: Vec<String>,
    /// Columns left out because the event was too large.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<String>,
}

/// The answer of a long-poll: the events, and the cursor to present next, also when there are none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventsReply<D> {
    /// Present it as `after` in the next request.
    pub cursor: Cursor,
    /// In order.
    pub events: Vec<Event<D>>,
}

/// Why a subscription cannot go on from its cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetReason {
    /// Events after the cursor were evicted.
    CursorExpired,
    /// The cursor belongs to another number line.
    EpochChanged,
    /// Events after the cursor never reached this broker.
    Gap,
}

impl ResetReason {
    /// The code of the problem that a plain request is answered with.
    #[must_use]
    pub const fn code(self) -> ProblemCode {
        match self {
            Self::CursorExpired => ProblemCode::CursorExpired,
            Self::EpochChanged => ProblemCode::EpochChanged,
            Self::Gap => ProblemCode::Gap,
        }
    }
}

/// Events may be missing before what follows. `data` of SSE's `reset`, body of the WebSocket frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// Why.
    pub reason: ResetReason,
    /// Where the stream goes on: current values of state topics, then the events still held.
    pub resume: Cursor,
}

/// What a client sends on a WebSocket, as JSON text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientFrame {
    /// Adds topics. `after` as in a long-poll; it holds for the topics added by this frame.
    Subscribe {
        /// Topics or patterns to add.
        topics: Vec<TopicPattern>,
        /// A cursor, `now` or `earliest`; absent: current values first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<String>,
    },
    /// Drops topics, named as they were subscribed.
    Unsubscribe {
        /// Topics or patterns to drop.
        topics: Vec<TopicPattern>,
    },
}

/// What the broker sends on a WebSocket, as JSON text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerFrame<D> {
    /// One event.
    Event(Event<D>),
    /// Several events that share a cursor, in one message, so that a cut cannot part them.
    Events(Vec<Event<D>>),
    /// The topics that are now subscribed. Keep this cursor until the next `bookmark`: added topics catch up
    /// meanwhile, so the cursors of events may run ahead of what they still miss.
    Subscribed {
        /// All topics and patterns of this connection.
        topics: Vec<TopicPattern>,
        /// Before everything that is still to come on any of them.
        cursor: Cursor,
    },
    /// Everything up to here has been sent. Comes after catching up, and now and then when it is quiet.
    Bookmark {
        /// Present it to go on.
        cursor: Cursor,
    },
    /// Events may be missing before what follows.
    Reset(Reset),
    /// The last client frame was refused; the connection goes on.
    Error {
        /// Stable code.
        code: ProblemCode,
        /// For people.
        detail: String,
    },
}

/// `application/problem+json` (RFC 9457), with a stable `code`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A short name of the kind of problem.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable; branch on this.
    pub code: ProblemCode,
    /// What was wrong and what to do, for people.
    pub detail: String,
    /// With 410: the cursor to go on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Cursor>,
}

impl Problem {
    /// With title and status as its code has them, and nowhere to go on from.
    #[must_use]
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self { title: code.title(), status: code.status(), code, detail: detail.into(), resume: None }
    }
}
