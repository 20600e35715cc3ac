//! What a client writes down: each connection, each event, each cursor, in the order in which they came.

use std::time::Duration;

use walcast_client::wire::{Cursor, Reset, Topic, TopicPattern};

/// One client's life.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// For people.
    pub(crate) client: String,
    /// What it follows from beginning to end.
    pub(crate) topics: Vec<TopicPattern>,
    pub(crate) entries: Vec<Entry>,
}

/// One thing that happened to it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Since the test began; for people only, for nothing is ordered by it.
    pub(crate) at: Duration,
    /// Counts connections, or what stands for them on long-poll, from 1.
    pub(crate) connection: u32,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    /// It came, and presented this cursor.
    Presented(Option<Cursor>),
    Event(Seen),
    /// It may present this cursor from now on.
    Upto(Cursor),
    /// It was told that events may be missing.
    Reset(Reset),
}

/// An event as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) cursor: Cursor,
    pub(crate) topic: Topic,
    /// Of the data; see [`digest`](super::digest).
    pub(crate) digest: u64,
    pub(crate) xid: Option<u32>,
    pub(crate) last: bool,
    pub(crate) partial: bool,
    /// Whether its row was there when it was looked for on delivery; `None`: nobody could look.
    pub(crate) found: Option<bool>,
}
