//! What flows through the pipeline: raw changes from a source, events after routing, batches of events.
//!
//! Everything here is plain data, cheap to move and to clone. It knows nothing of Postgres connections,
//! topics' subscribers or sockets.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use walcast_wire::{Epoch, Op, Position, Topic, TopicPattern};

use crate::value::ValueKind;

/// A table as the stream (or the catalog, when seeding) describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Relation {
    /// Schema and name, joined by a dot, unquoted; partitions appear as their root.
    pub name: Arc<str>,
    /// In the order in which rows carry them.
    pub columns: Vec<Column>,
}

/// A column of a [`Relation`].
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// The column's name.
    pub name: Arc<str>,
    /// How its text form becomes JSON.
    pub kind: ValueKind,
    /// Whether it belongs to the replica identity.
    pub key: bool,
}

/// One column's value in one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// SQL NULL; in an old row also a column outside the replica identity.
    Null,
    /// A stored-out-of-line value (TOAST) that the update left as it was; Postgres does not send it.
    Unchanged,
    /// Too large to be sent.
    Omitted,
    /// The text form.
    Text(Bytes),
}

/// The cells of a row, in the order of [`Relation::columns`].
pub type Row = Box<[Cell]>;

/// What Postgres sent of a row before its change.
#[derive(Clone, Debug, PartialEq)]
pub enum OldRow {
    /// Only the columns of the replica identity; the others are `Null`.
    Key(Row),
    /// All columns (REPLICA IDENTITY FULL).
    Full(Row),
}

impl OldRow {
    /// The cells.
    #[must_use]
    pub fn row(&self) -> &Row {
        match self {
            Self::Key(row) | Self::Full(row) => row,
        }
    }
}

/// One raw record of a transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Number of the record in its transaction, from 1, counted over all raw records.
    pub ordinal: u64,
    /// What it says.
    pub kind: ChangeKind,
}

/// The kinds of raw record.
#[derive(Clone, Debug, PartialEq)]
pub enum ChangeKind {
    /// A new row.
    Insert {
        /// The table.
        relation: Arc<Relation>,
        /// The row.
        new: Row,
    },
    /// A changed row.
    Update {
        /// The table.
        relation: Arc<Relation>,
        /// Present if the replica identity changed or is FULL.
        old: Option<OldRow>,
        /// The row after the change.
        new: Row,
    },
    /// A deleted row.
    Delete {
        /// The table.
        relation: Arc<Relation>,
        /// What is known of it.
        old: OldRow,
    },
    /// An emptied table; one change per table of the statement, in its order, sharing the ordinal.
    Truncate {
        /// The table.
        relation: Arc<Relation>,
    },
    /// A message that carries our key: first line topic and pairs, then the data.
    Message {
        /// The content behind the prefix.
        content: Bytes,
    },
}

/// The transaction that a change or an event belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The commit LSN (outbox: the tick).
    pub major: u64,
    /// The commit LSN, for readers of replicas; `None` where no log was read. Transactions of one `major` interleave
    /// then, so nobody knows which event is a transaction's last.
    pub lsn: Option<u64>,
    /// The top-level transaction id.
    pub xid: u32,
    /// When it committed, in microseconds since 1970-01-01 UTC, by Postgres's clock.
    pub time_us: i64,
}

/// A run of a transaction's changes. Small transactions are one part, large ones many.
#[derive(Clone, Debug)]
pub struct TransactionPart {
    /// The transaction.
    pub commit: Arc<Commit>,
    /// In order.
    pub changes: Vec<Change>,
    /// On the last part: the LSN just behind the transaction, to acknowledge once it is published.
    pub end: Option<u64>,
}

/// Which transactions a database snapshot contains, by `pg_current_snapshot()`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All ids below are finished.
    pub xmin: u64,
    /// All ids at or above are unfinished.
    pub xmax: u64,
    /// Unfinished ids between the two, ascending. Subtransactions never appear here.
    pub xip: Vec<u64>,
}

impl Snapshot {
    /// Parses `xmin:xmax:xip,…`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let xmin = parts.next()?.parse().ok()?;
        let xmax = parts.next()?.parse().ok()?;
        let xip = match parts.next()? {
            "" => Vec::new(),
            list => list.split(',').map(str::parse).collect::<Result<_, _>>().ok()?,
        };
        parts.next().is_none().then_some(Self { xmin, xmax, xip })
    }

    /// The 64-bit id that the stream's 32-bit one stands for, given that both are near `xmax`.
    #[must_use]
    pub fn widen(&self, xid: u32) -> u64 {
        let distance = xid.wrapping_sub(self.xmax as u32).cast_signed();
        self.xmax.saturating_add_signed(i64::from(distance))
    }

    /// Whether a top-level transaction is finished, and so visible, in this snapshot.
    #[must_use]
    pub fn contains(&self, xid: u32) -> bool {
        self.sees(self.widen(xid))
    }

    /// The same, by the whole id.
    #[must_use]
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.xip.binary_search(&xid).is_err())
    }
}

/// Rows of a state table as one snapshot sees them.
#[derive(Clone, Debug)]
pub struct SeedRows {
    /// The snapshot, shared by all parts of a seeding.
    pub snapshot: Arc<Snapshot>,
    /// The rows' table.
    pub relation: Arc<Relation>,
    /// Some of its rows.
    pub rows: Vec<Row>,
}

/// The end of a seeding.
#[derive(Clone, Debug)]
pub struct SeedEnd {
    /// What the rows contain.
    pub snapshot: Arc<Snapshot>,
    /// The settle point, an LSN: state is exact once the head reaches it.
    pub settle: u64,
}

/// A state table whose values a seeding reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seeded {
    /// The table.
    pub table: Arc<str>,
    /// Where its values are told; none where it has no rule any more.
    pub topics: Vec<TopicPattern>,
}

/// A table of which what was told may not hold: its rule is new, another, or gone, or events were missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outdated {
    /// The table.
    pub table: Arc<str>,
    /// Where its values are told, by the rule of before and by that of now.
    pub topics: Vec<TopicPattern>,
    /// What was told of them no longer holds, though no event says so: other rows are members, on other
    /// topics, or with other columns; or events were missing.
    pub withdrawn: bool,
    /// Its values are kept, and to be read, or to be forgotten.
    pub state: bool,
}

/// What a source yields.
#[derive(Clone, Debug)]
pub enum Changes {
    /// A stream began, or began again, at this position of this number line.
    Start(Start),
    /// Part of a transaction, visible to other sessions (unless delivery is `fast`).
    Transaction(TransactionPart),
    /// Seeding starts: from now on, until [`Changes::SeedEnd`], streamed transactions may or may not be
    /// contained in what [`Changes::Seed`] brings. Names the tables to come; values of theirs that are not
    /// read again are gone.
    SeedBegin(Arc<[Arc<str>]>),
    /// Rows read by seeding.
    Seed(SeedRows),
    /// Seeding ended.
    SeedEnd(SeedEnd),
    /// Nothing happened up to this LSN.
    Idle(u64),
}

/// Who leads, among those who ever did: the later leader has the greater one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence {
    /// The branch of the server's history.
    pub timeline: u32,
    /// Where its log ended while the lease was held.
    pub lsn: u64,
}

impl Fence {
    /// Of a lease that was held on this timeline when the log ended there.
    #[must_use]
    pub const fn new(timeline: u32, lsn: u64) -> Self {
        Self { timeline, lsn }
    }
}

impl fmt::Display for Fence {
    /// As text of equal width, which compares as fences do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:010}-{:020}", self.timeline, self.lsn)
    }
}

/// Where a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The number line.
    pub epoch: Epoch,
    /// Everything after this LSN will be yielded.
    pub from: u64,
    /// Nothing was published between this position and `from`.
    pub quiet_from: Position,
    /// The end of the WAL when the stream began: cursors up to here are not in the future, merely not
    /// yet reached.
    pub replay_until: u64,
    /// Of the lease by which it is read.
    pub fence: Fence,
}

/// Something that happened on a topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Where on the number line. Several events of one raw record share it.
    pub position: Position,
    /// Where it is published.
    pub topic: Topic,
    /// What happened.
    pub op: Op,
    /// JSON, without raw line breaks.
    pub data: Bytes,
    /// The transaction; `None` for a value read by seeding.
    pub commit: Option<Arc<Commit>>,
    /// Columns whose value Postgres did not send, in the rule's order.
    pub unchanged: Box<[Arc<str>]>,
    /// Columns left out because the event was too large.
    pub omitted: Box<[Arc<str>]>,
    /// The transaction was too large to mark its last events.
    pub partial: bool,
    /// For a state rule: how it touches the current value of the topic.
    pub state: Option<State>,
}

/// How an event of a state rule touches the current value of its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The rule's table, whose TRUNCATE clears the value.
    pub table: Arc<str>,
    /// What happens to the value.
    pub effect: Effect,
}

/// What an event does to its topic's current value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The event's data becomes the value.
    Put,
    /// As `Put` where there is a value, or was where the same record took the row from; elsewhere
    /// the event is dropped.
    PutIfPresent,
    /// The value goes away; where there is none, the event is dropped.
    Clear,
}

/// What routing makes of changes.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// An event on one topic.
    Event(Event),
    /// Every topic that holds a current value of this table loses it, each with an event. (TRUNCATE names
    /// a table, and only the hub knows which topics that means.)
    ClearTable {
        /// Where on the number line.
        position: Position,
        /// The state rule's table.
        table: Arc<str>,
        /// The transaction.
        commit: Arc<Commit>,
        /// The transaction was too large to mark its last events.
        partial: bool,
    },
}

impl Entry {
    /// Where it lies.
    #[must_use]
    pub fn position(&self) -> Position {
        match self {
            Self::Event(event) => event.position,
            Self::ClearTable { position, .. } => *position,
        }
    }
}

/// A claim about an interval: `entries` is everything routed in `(after, upto]` of `epoch`.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The number line.
    pub epoch: Epoch,
    /// Exclusive start.
    pub after: Position,
    /// Inclusive end.
    pub upto: Position,
    /// In order of position; all events of one position are in one batch.
    pub entries: Arc<[Entry]>,
    /// What it says beside the interval.
    pub note: Option<Note>,
}

/// What a batch carries that is not part of the number line.
#[derive(Clone, Debug)]
pub enum Note {
    /// Cursors up to here may be presented before they are reached.
    Start {
        /// End of the WAL when the stream began.
        replay_until: Position,
        /// See [`Start::quiet_from`].
        quiet_from: Position,
    },
    /// The rules of these tables changed: what is known of their topics is not exact until they were read by
    /// a seeding that begins later.
    Outdated(Arc<[Outdated]>),
    /// See [`Changes::SeedBegin`].
    SeedBegin(Arc<[Seeded]>),
    /// Current values, `op` snapshot; their position is the settle point, which is not known yet.
    Seed {
        /// What they contain.
        snapshot: Arc<Snapshot>,
        /// One per row.
        events: Arc<[Event]>,
    },
    /// See [`Changes::SeedEnd`].
    SeedEnd {
        /// What the rows contain.
        snapshot: Arc<Snapshot>,
        /// The settle point.
        settle: Position,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_parse() {
        let check = |text: &str, expected: Option<Snapshot>| assert_eq!(Snapshot::parse(text), expected);
        check("10:20:12,15", Some(Snapshot { xmin: 10, xmax: 20, xip: vec![12, 15] }));
        check("10:10:", Some(Snapshot { xmin: 10, xmax: 10, xip: vec![] }));
        check("10:20", None);
        check("10:20:x", None);
        check("10:20:1:2", None);
    }

    #[test]
    fn visibility_by_xid() {
        let snapshot = Snapshot { xmin: 10, xmax: 20, xip: vec![10, 15] };
        let check = |xid: u32, expected: bool| assert_eq!(snapshot.contains(xid), expected, "{xid}");
        check(9, true);
        check(10, false);
        check(14, true);
        check(15, false);
        check(19, true);
        check(20, false);
    }

    #[test]
    fn ids_widen_across_the_wrap() {
        let base = 3_u64 << 32;
        let snapshot = Snapshot { xmin: base + 5, xmax: base + 5, xip: vec![] };
        assert_eq!(snapshot.widen(4), base + 4);
        assert_eq!(snapshot.widen(7), base + 7);
        assert_eq!(snapshot.widen(u32::MAX), base - 1);
        assert!(snapshot.contains(u32::MAX));
        assert!(!snapshot.contains(5));
    }
}
