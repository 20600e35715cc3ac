//! Current values of state topics, exact from the settle point on.
//!
//! Values come from events and from seeding, which reads tables beside the stream. Which of the two is newer
//! is decided by transaction id against the seed's snapshot, never by position: a transaction that the
//! snapshot contains is older than the rows read, wherever its commit lies in the WAL.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;
use walcast_wire::{Op, Position, Topic, TopicPattern};

use crate::event::{Commit, Effect, Event, Snapshot};

/// Bookkeeping that a value costs beside its bytes.
const OVERHEAD_BYTES: usize = 256;

/// The current value of a topic.
#[derive(Debug)]
struct Value {
    event: Arc<Event>,
    table: Arc<str>,
    /// The seeding that read it, or during which the stream brought it.
    round: u32,
    /// Whether its row is a member is for the seed to say: the stream brought a change of it that does not tell.
    unsure: bool,
}

impl Value {
    fn cost_bytes(&self) -> u64 {
        (self.event.data.len() + self.event.topic.as_str().len() + OVERHEAD_BYTES) as u64
    }

    fn xid(&self) -> Option<u32> {
        self.event.commit.as_ref().map(|commit| commit.xid)
    }
}

/// A seeding under way.
#[derive(Debug)]
struct Seeding {
    tables: Arc<[Arc<str>]>,
    /// Known once rows come.
    snapshot: Option<Arc<Snapshot>>,
    /// Rows are still to come.
    reading: bool,
    /// Topics and tables cleared since it began, by which transaction.
    cleared: HashMap<Topic, u32>,
    /// Where rows went whose value was not known when they moved.
    moved: HashMap<Topic, Topic>,
    cleared_tables: HashMap<Arc<str>, u32>,
}

impl Seeding {
    /// Whether the rows read already contain what this transaction did.
    fn contains(&self, xid: u32) -> bool {
        self.snapshot.as_ref().is_some_and(|snapshot| snapshot.contains(xid))
    }
}

/// What a record of the log cleared. If the record then sets a value of the same table, the row has moved.
#[derive(Debug)]
struct Left {
    position: Position,
    table: Arc<str>,
    topic: Topic,
    /// `None`: its row is still to be read by the seed.
    data: Option<Bytes>,
}

/// Whether an event goes on into history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// It tells nobody anything new.
    Drop,
}

#[derive(Debug, Default)]
pub(super) struct Retained {
    values: BTreeMap<Topic, Value>,
    bytes: u64,
    seeding: Option<Seeding>,
    left: Option<Left>,
    round: u32,
    settle: Option<Position>,
    settled: bool,
    /// They settled once: all values are known, though perhaps not exact.
    known: bool,
}

impl Retained {
    /// Values are exact: state may be answered, and what changes nothing may be dropped.
    pub(super) fn settled(&self) -> bool {
        self.settled
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn seed_begin(&mut self, tables: Arc<[Arc<str>]>) {
        self.round += 1;
        (self.settled, self.settle) = (false, None);
        self.seeding = Some(Seeding {
            tables,
            snapshot: None,
            reading: true,
            cleared: HashMap::new(),
            moved: HashMap::new(),
            cleared_tables: HashMap::new(),
        });
    }

    /// Takes rows read by seeding, unless the stream brought something newer.
    pub(super) fn seed(&mut self, snapshot: &Arc<Snapshot>, events: &[Event]) {
        let Some(seeding) = &mut self.seeding else { return };
        let snapshot = &**seeding.snapshot.get_or_insert_with(|| Arc::clone(snapshot));
        for event in events {
            let Some(state) = &event.state else { continue };
            let newer = |xid: Option<u32>| xid.is_some_and(|xid| !snapshot.contains(xid));
            if newer(seeding.cleared_tables.get(&state.table).copied())
                || newer(seeding.cleared.get(&event.topic).copied())
            {
                let to = seeding.moved.get(&event.topic);
                if let Some(value) = to.and_then(|topic| self.values.get_mut(topic)) {
                    self.bytes -= value.cost_bytes();
                    merge_unchanged(Arc::make_mut(&mut value.event), &event.data);
                    self.bytes += value.cost_bytes();
                }
                continue;
            }
            // What the stream brought before this seeding is in the snapshot, whatever its id looks like by now.
            if let Some(value) = self.values.get_mut(&event.topic)
                && value.round == self.round
                && newer(value.xid())
            {
                self.bytes -= value.cost_bytes();
                merge_unchanged(Arc::make_mut(&mut value.event), &event.data);
                self.bytes += value.cost_bytes();
                value.unsure = false;
                continue;
            }
            let (event, table) = (Arc::new(event.clone()), Arc::clone(&state.table));
            let value = Value { event, table, round: self.round, unsure: false };
            insert(&mut self.values, &mut self.bytes, value);
        }
    }

    /// All rows were read: values of the seeded tables that were not confirmed are gone.
    pub(super) fn seed_end(&mut self, snapshot: &Arc<Snapshot>, settle: Position) {
        let Some(seeding) = &mut self.seeding else { return };
        seeding.reading = false;
        let snapshot = &**seeding.snapshot.get_or_insert_with(|| Arc::clone(snapshot));
        let (round, bytes) = (self.round, &mut self.bytes);
        self.values.retain(|_, value| {
            // Contained in the snapshot, yet not replaced by a row: the row was gone by then.
            let contained = value.xid().is_some_and(|xid| snapshot.contains(xid));
            let confirmed = value.round == round && !contained && !value.unsure;
            let keep = confirmed || !seeding.tables.contains(&value.table);
            if !keep {
                *bytes -= value.cost_bytes();
            }
            keep
        });
        self.settle = Some(settle);
        for value in self.values.values_mut() {
            if value.event.commit.is_none() && value.event.position == Position::ZERO {
                Arc::make_mut(&mut value.event).position = settle;
            }
        }
    }

    /// The head moved; true if that made the values exact.
    pub(super) fn reached(&mut self, head: Position) -> bool {
        let settles = !self.settled && self.settle.is_some_and(|settle| head >= settle);
        if settles {
            (self.settled, self.known) = (true, true);
            self.seeding = None;
        }
        settles
    }

    /// Lets an event of a state rule change its topic's value.
    pub(super) fn apply(&mut self, event: &mut Event) -> Verdict {
        let (Some(state), Some(commit)) = (event.state.clone(), event.commit.clone()) else {
            return Verdict::Keep;
        };
        if let Some(seeding) = &mut self.seeding
            && seeding.tables.contains(&state.table)
        {
            if seeding.contains(commit.xid) {
                if let Some(value) = self.values.get(&event.topic) {
                    merge_unchanged(event, &value.event.data);
                }
                return Verdict::Keep;
            }
            match state.effect {
                Effect::Clear if seeding.reading => seeding.cleared.insert(event.topic.clone(), commit.xid),
                _ => seeding.cleared.remove(&event.topic),
            };
        }
        let reading = self
            .seeding
            .as_ref()
            .is_some_and(|seeding| seeding.reading && seeding.tables.contains(&state.table));
        if state.effect == Effect::Clear {
            let old = remove(&mut self.values, &mut self.bytes, &event.topic);
            if old.is_none() && self.settled {
                return Verdict::Drop;
            }
            self.left = Some(Left {
                position: event.position,
                table: state.table,
                topic: event.topic.clone(),
                data: old.map(|old| old.event.data.clone()),
            });
            return Verdict::Keep;
        }
        let moved = self.left.take().filter(|it| it.position == event.position && it.table == state.table);
        if let Some(Left { topic, data: None, .. }) = &moved
            && let Some(seeding) = self.seeding.as_mut().filter(|_| reading)
        {
            seeding.moved.insert(topic.clone(), event.topic.clone());
        }
        let moved = moved.and_then(|it| it.data);
        let old = self.values.get(&event.topic);
        if let Some(known) = moved.as_ref().or(old.map(|old| &old.event.data)) {
            merge_unchanged(event, known);
        }
        let whole = event.unchanged.is_empty() && event.omitted.is_empty();
        let same = |old: &Value| whole && event.op == Op::Update && old.event.data == event.data;
        match old {
            // Only a seed that is still reading may yet say that the row is a member.
            None if !reading && state.effect == Effect::PutIfPresent => return Verdict::Drop,
            Some(old) if self.settled && same(old) => return Verdict::Drop,
            _ => {}
        }
        let unsure = old.is_none() && state.effect == Effect::PutIfPresent;
        let value = Value { event: Arc::new(event.clone()), table: state.table, round: self.round, unsure };
        insert(&mut self.values, &mut self.bytes, value);
        Verdict::Keep
    }

    /// Whether nobody knows which topics a TRUNCATE of the table clears, for its values were never read.
    pub(super) fn blind(&self) -> bool {
        !self.known
    }

    /// Clears the values of a table; the topics that held one.
    pub(super) fn clear_table(&mut self, table: &Arc<str>, commit: &Commit) -> Vec<Topic> {
        let (mut contained, round) = (false, self.round);
        if let Some(seeding) = &mut self.seeding
            && seeding.tables.contains(table)
        {
            contained = seeding.contains(commit.xid);
            if !contained {
                seeding.cleared_tables.insert(Arc::clone(table), commit.xid);
            }
        }
        let mut topics = Vec::new();
        let bytes = &mut self.bytes;
        self.values.retain(|topic, value| {
            // Rows that the seed found were inserted behind a TRUNCATE that it contains.
            let gone = value.table == *table && !(contained && value.round == round);
            if gone {
                *bytes -= value.cost_bytes();
                topics.push(topic.clone());
            }
            !gone
        });
        topics
    }

    /// The value of one topic.
    pub(super) fn get(&self, topic: &str) -> Option<&Arc<Event>> {
        self.values.get(topic).map(|value| &value.event)
    }

    /// The values that a pattern names.
    pub(super) fn matching<'a>(&'a self, pattern: &'a TopicPattern) -> impl Iterator<Item = &'a Arc<Event>> {
        // Only topics that begin as the pattern does, up to its first wildcard, can match.
        let prefix = pattern.as_str().split('*').next().unwrap_or_default();
        self.values
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .take_while(move |(topic, _)| topic.as_str().starts_with(prefix))
            .filter(move |(topic, _)| pattern.matches(topic))
            .map(|(_, value)| &value.event)
    }
}

fn insert(values: &mut BTreeMap<Topic, Value>, bytes: &mut u64, mut value: Value) {
    // A snapshot is the whole value, whatever became of the transaction around it.
    if value.event.partial {
        Arc::make_mut(&mut value.event).partial = false;
    }
    *bytes += value.cost_bytes();
    if let Some(old) = values.insert(value.event.topic.clone(), value) {
        *bytes -= old.cost_bytes();
    }
}

fn remove(values: &mut BTreeMap<Topic, Value>, bytes: &mut u64, topic: &Topic) -> Option<Value> {
    let old = values.remove(topic)?;
    *bytes -= old.cost_bytes();
    Some(old)
}

/// Fills the columns that Postgres did not send from an older value of the same row, in its order, so that
/// equal rows have equal bytes.
fn merge_unchanged(event: &mut Event, old: &[u8]) {
    if event.unchanged.is_empty() {
        return;
    }
    let (Ok(new), Ok(old)) = (serde_json::from_slice::<Fields<'_>>(&event.data), serde_json::from_slice(old))
    else {
        return;
    };
    let (new, old): (Fields<'_>, Fields<'_>) = (new, old);
    let missing = |name: &str| event.unchanged.iter().any(|unchanged| **unchanged == *name);
    let mut out = Vec::with_capacity(event.data.len() + 64);
    let mut write = |name: &str, value: &RawValue| {
        out.push(if out.is_empty() { b'{' } else { b',' });
        // Writing to a Vec does not fail.
        let _ = serde_json::to_writer(&mut out, name);
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    };
    for (name, value) in &old.0 {
        match new.0.iter().find(|(other, _)| other == name) {
            Some((_, value)) => write(name, value),
            None if missing(name) => write(name, value),
            None => {}
        }
    }
    for (name, value) in &new.0 {
        if !old.0.iter().any(|(other, _)| other == name) {
            write(name, value);
        }
    }
    if out.is_empty() {
        return;
    }
    out.push(b'}');
    let unchanged = event.unchanged.iter().filter(|name| !old.0.iter().any(|(other, _)| **other == ***name));
    event.unchanged = unchanged.cloned().collect();
    event.data = Bytes::from(out);
}

/// The fields of a JSON object in their order, values untouched.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> serde::Deserialize<'de> for Fields<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
