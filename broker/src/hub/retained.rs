//! Current values of state topics, exact from the settle point on.
//!
//! Values come from events and from seeding, which reads tables beside the stream. Which of the two is newer
//! is decided by transaction id against the seed's snapshot, never by position: a transaction that the
//! snapshot contains is older than the rows read, wherever its commit lies in the WAL.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use walcast_wire::{Op, Position, Topic, TopicPattern};

use super::merge::merge;
use crate::event::{Commit, Effect, Event, Outdated, Seeded, Snapshot, State};

/// Bookkeeping that a value costs beside its bytes.
const OVERHEAD_BYTES: usize = 256;
/// If more topics of a table have to be told anew, all of it are.
const MISLED_MAX: usize = 32;

/// The current value of a topic.
#[derive(Debug)]
struct Value {
    event: Arc<Event>,
    table: Arc<str>,
    /// The seeding that read it, or during which the stream brought it.
    round: u32,
    /// Whether its row is a member is for the seed to say: the stream brought a change of it that does not tell.
    unsure: bool,
    /// From where it moved, and by which transaction, since the seed is to complete it.
    path: Vec<(Topic, u32)>,
}

impl Value {
    fn cost_bytes(&self) -> u64 {
        (self.event.data.len() + self.event.topic.as_str().len() + OVERHEAD_BYTES) as u64
    }

    fn xid(&self) -> Option<u32> {
        self.event.commit.as_ref().map(|commit| commit.xid)
    }

    /// Whether the seed has yet to say something of its row.
    fn lacks(&self) -> bool {
        self.unsure || !self.event.unchanged.is_empty()
    }

    /// The topic of its row in this snapshot.
    fn origin(&self, snapshot: &Snapshot) -> &Topic {
        let moved = self.path.iter().find(|(_, xid)| !snapshot.contains(*xid));
        moved.map_or(&self.event.topic, |(from, _)| from)
    }
}

/// What the seed knows of columns that events of history were sent without.
#[derive(Debug)]
pub(super) struct Filling {
    pub(super) topic: Topic,
    /// Where those events are.
    pub(super) positions: Vec<Position>,
    pub(super) data: Bytes,
}

/// A seeding under way.
#[derive(Debug, Default)]
struct Seeding {
    tables: Vec<Arc<str>>,
    /// Known once rows come.
    snapshot: Option<Arc<Snapshot>>,
    /// What values may already contain by a seeding that broke off, and in which round that was.
    older: Option<(Arc<Snapshot>, u32)>,
    /// Rows are still to come.
    reading: bool,
    /// Topics and tables cleared since it began, by which transaction.
    cleared: HashMap<Topic, u32>,
    /// Where rows went that the seed is to complete, by each topic that they left.
    departed: HashMap<Topic, Vec<Topic>>,
    /// Events that lack columns, by topic, since its row came there.
    lacking: HashMap<Topic, Vec<Position>>,
    cleared_tables: HashMap<Arc<str>, u32>,
}

impl Seeding {
    /// Whether the rows read already contain what this transaction did.
    fn contains(&self, xid: u32) -> bool {
        let older = || self.older.as_ref().map(|(snapshot, _)| snapshot);
        self.snapshot.as_ref().or_else(older).is_some_and(|snapshot| snapshot.contains(xid))
    }

    /// Whether a value is as new as the stream. Once a snapshot is known, what it contains waits for the seed, and
    /// values of before fall behind.
    fn current(&self, value: &Value, round: u32) -> bool {
        let since = match (&self.snapshot, &self.older) {
            (Some(_), _) => round,
            (None, Some((_, since))) => *since,
            (None, None) => return true,
        };
        value.round >= since && value.xid().is_none_or(|xid| !self.contains(xid))
    }

    /// Remembers which events lack columns that the seed will tell.
    fn note_lacking(&mut self, event: &Event, effect: Effect) {
        if !self.reading || effect == Effect::Clear || event.unchanged.is_empty() {
            self.lacking.remove(&event.topic);
        } else {
            self.lacking.entry(event.topic.clone()).or_default().push(event.position);
        }
    }
}

/// What a record of the log cleared. If the record then sets a value of the same table, the row has moved.
#[derive(Debug)]
struct Left {
    position: Position,
    table: Arc<str>,
    topic: Topic,
    /// `None`: it was not known.
    value: Option<Value>,
    /// An earlier record said that its row is no member.
    absent: bool,
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
    /// They settled once: all values are known, but those of `due`.
    known: bool,
    /// Tables to be read since their rules changed.
    due: BTreeMap<Arc<str>, Due>,
    /// Topics of which followers hold a value by what they were told, of each table whose values are not exact: of
    /// all others the values say it.
    told: HashMap<Arc<str>, HashSet<Topic>>,
    /// Where they turned out to hold what is not there.
    misled: Vec<TopicPattern>,
}

/// A table to be read.
#[derive(Debug, Default)]
struct Due {
    /// Where its values are told.
    topics: Vec<TopicPattern>,
    /// The seeding under way reads it.
    begun: bool,
}

impl Retained {
    /// All values are exact.
    pub(super) fn settled(&self) -> bool {
        self.known && self.due.is_empty()
    }

    /// The values of a table are exact: what changes nothing may be dropped.
    fn settled_table(&self, table: &str) -> bool {
        self.known && !self.due.contains_key(table)
    }

    /// The values that these name are exact: state may be answered.
    pub(super) fn exact(&self, asked: &[TopicPattern]) -> bool {
        let mut due = self.due.values().flat_map(|due| &due.topics);
        self.known && !due.any(|topics| asked.iter().any(|asked| asked.overlaps(topics)))
    }

    /// Topics whose values are not.
    pub(super) fn inexact(&self) -> Vec<TopicPattern> {
        if !self.known {
            return vec![TopicPattern::everything()];
        }
        let mut topics: Vec<_> = self.due.values().flat_map(|due| due.topics.iter().cloned()).collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    }

    /// Values were exact once.
    pub(super) fn known(&self) -> bool {
        self.known
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Arc<Event>> {
        self.values.values().map(|value| Arc::clone(&value.event)).collect()
    }

    /// The tables that are to be read while others are exact.
    pub(super) fn outdated(&self) -> Vec<Arc<str>> {
        if self.known { self.due.keys().cloned().collect() } else { Vec::new() }
    }

    /// The rules of tables changed: they are to be read, by a seeding that has not begun yet.
    pub(super) fn outdate(&mut self, tables: &[Outdated]) {
        let tables = || tables.iter().filter(|table| table.state);
        self.unsettle(tables().filter(|table| !table.withdrawn).map(|table| &table.table));
        for Outdated { table, topics, withdrawn, .. } in tables() {
            if *withdrawn {
                // Followers begin anew: what they were told is nothing.
                self.told.insert(Arc::clone(table), HashSet::new());
            }
            let due = self.due.entry(Arc::clone(table)).or_default();
            due.begun = false;
            due.topics.extend(topics.iter().cloned());
            due.topics.sort_unstable();
            due.topics.dedup();
        }
    }

    /// From now on the values of these tables do not say what followers were told.
    fn unsettle<'a>(&mut self, tables: impl Iterator<Item = &'a Arc<str>>) {
        let settled = tables.filter(|table| self.settled_table(table));
        let mut told: HashMap<_, HashSet<_>> =
            settled.map(|table| (Arc::clone(table), HashSet::new())).collect();
        if told.is_empty() {
            return;
        }
        for (topic, value) in &self.values {
            if let Some(told) = told.get_mut(&value.table) {
                told.insert(topic.clone());
            }
        }
        self.told.extend(told);
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn seed_begin(&mut self, tables: &[Seeded]) {
        self.round += 1;
        self.settle = None;
        self.due.values_mut().for_each(|due| due.begun = false);
        self.unsettle(tables.iter().map(|seeded| &seeded.table));
        for Seeded { table, topics } in tables {
            // Those whose rules changed are told elsewhere, too.
            let unchanged = || Due { topics: topics.clone(), begun: true };
            self.due.entry(Arc::clone(table)).or_insert_with(unchanged).begun = true;
        }
        let tables = tables.iter().map(|seeded| Arc::clone(&seeded.table)).collect();
        // What one that broke off was to tell, this one tells.
        let Seeding { snapshot, older, lacking, .. } = self.seeding.take().unwrap_or_default();
        let older = snapshot.map(|snapshot| (snapshot, self.round - 1)).or(older);
        self.seeding = Some(Seeding { tables, reading: true, older, lacking, ..Seeding::default() });
    }

    /// Takes rows read by seeding, unless the stream brought something newer; what they tell of events that the
    /// stream brought.
    pub(super) fn seed(&mut self, snapshot: &Arc<Snapshot>, events: &[Event]) -> Vec<Filling> {
        let mut fillings = Vec::new();
        let Some(seeding) = &mut self.seeding else { return fillings };
        let snapshot = &**seeding.snapshot.get_or_insert_with(|| Arc::clone(snapshot));
        let newer = |xid: Option<u32>| xid.is_some_and(|xid| !snapshot.contains(xid));
        for event in events {
            let Some(state) = &event.state else { continue };
            if newer(seeding.cleared_tables.get(&state.table).copied()) {
                continue;
            }
            // What the stream brought before this seeding is in the snapshot, whatever its id looks like by now.
            let is_newer = |value: &Value| value.round == self.round && newer(value.xid());
            let same_row = |topic: &&Topic| {
                let value = self.values.get(*topic);
                value.is_some_and(|value| is_newer(value) && *value.origin(snapshot) == event.topic)
            };
            let departed = seeding.departed.get(&event.topic).into_iter().flatten();
            let now = departed.chain([&event.topic]).find(same_row).cloned();
            let mut fill = |topic: &Topic, data: &Bytes| {
                if let Some(positions) = seeding.lacking.remove(topic) {
                    fillings.push(Filling { topic: topic.clone(), positions, data: data.clone() });
                }
            };
            if let Some((topic, value)) = now.and_then(|it| self.values.get_mut(&it).map(|value| (it, value)))
            {
                self.bytes -= value.cost_bytes();
                merge_unchanged(Arc::make_mut(&mut value.event), &event.data);
                self.bytes += value.cost_bytes();
                (value.unsure, value.path) = (false, Vec::new());
                fill(&topic, &event.data);
                continue;
            }
            if newer(seeding.cleared.get(&event.topic).copied())
                || self.values.get(&event.topic).is_some_and(is_newer)
            {
                continue;
            }
            fill(&event.topic, &event.data);
            let (event, table) = (Arc::new(event.clone()), Arc::clone(&state.table));
            let value = Value { event, table, round: self.round, unsure: false, path: Vec::new() };
            insert(&mut self.values, &mut self.bytes, value);
        }
        fillings
    }

    /// All rows were read: values of the seeded tables that were not confirmed are gone.
    pub(super) fn seed_end(&mut self, snapshot: &Arc<Snapshot>, settle: Position) {
        let Some(seeding) = &mut self.seeding else { return };
        seeding.reading = false;
        let snapshot = &**seeding.snapshot.get_or_insert_with(|| Arc::clone(snapshot));
        let (round, bytes) = (self.round, &mut self.bytes);
        (seeding.departed, seeding.lacking) = (HashMap::new(), HashMap::new());
        let tables = &seeding.tables;
        self.values.retain(|_, value| {
            // Contained in the snapshot, yet not replaced by a row: the row was gone by then.
            let contained = value.xid().is_some_and(|xid| snapshot.contains(xid));
            let confirmed = value.round == round && !contained && !value.unsure;
            let keep = confirmed || !tables.contains(&value.table);
            if !keep {
                *bytes -= value.cost_bytes();
            }
            value.path = Vec::new();
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
        let settles = self.settle.is_some_and(|settle| head >= settle);
        if settles {
            let read = |table: &Arc<str>| self.due.get(table).is_none_or(|due| due.begun);
            for (table, told) in self.told.extract_if(|table, _| read(table)) {
                let mut misled = told.into_iter().filter(|topic| !self.values.contains_key(topic));
                let few: Vec<_> = misled.by_ref().take(MISLED_MAX).map(TopicPattern::from).collect();
                match (misled.next(), self.due.get(&table)) {
                    (Some(_), Some(due)) => self.misled.extend(due.topics.iter().cloned()),
                    _ => self.misled.extend(few),
                }
            }
            (self.settle, self.seeding, self.known) = (None, None, true);
            self.due.retain(|_, due| !due.begun);
        }
        settles
    }

    /// Where what was told does not hold, since the values became exact; said once.
    pub(super) fn misled(&mut self) -> Vec<TopicPattern> {
        std::mem::take(&mut self.misled)
    }

    /// Lets an event of a state rule change its topic's value.
    pub(super) fn apply(&mut self, event: &mut Event) -> Verdict {
        let (Some(state), Some(commit)) = (event.state.clone(), event.commit.clone()) else {
            return Verdict::Keep;
        };
        let (table, clears) = (Arc::clone(&state.table), state.effect == Effect::Clear);
        let verdict = self.change(event, state, &commit);
        if verdict == Verdict::Keep && !self.settled_table(&table) {
            let told = self.told.entry(table).or_default();
            if clears {
                told.remove(&event.topic)
            } else {
                told.insert(event.topic.clone())
            };
        }
        verdict
    }

    fn change(&mut self, event: &mut Event, state: State, commit: &Commit) -> Verdict {
        let (mut reading, mut absent) = (None, false);
        let settled = self.settled_table(&state.table);
        let to_come = match self.due.get(&state.table) {
            Some(due) => !due.begun,
            None => !self.known && self.seeding.is_none(),
        };
        if let Some(seeding) = &mut self.seeding
            && seeding.tables.contains(&state.table)
        {
            if seeding.contains(commit.xid) {
                // What the seed says of it is newer.
                seeding.cleared.remove(&event.topic);
                if state.effect != Effect::Clear {
                    let value = self.values.get(&event.topic);
                    if let Some(value) = value.filter(|value| seeding.current(value, self.round)) {
                        merge_unchanged(event, &value.event.data);
                    }
                }
                seeding.note_lacking(event, state.effect);
                return Verdict::Keep;
            }
            let before = match state.effect {
                Effect::Clear if seeding.reading => seeding.cleared.insert(event.topic.clone(), commit.xid),
                _ => seeding.cleared.remove(&event.topic),
            };
            absent = before.is_some();
            reading = Some(seeding).filter(|seeding| seeding.reading);
        }
        if state.effect == Effect::Clear {
            let value = remove(&mut self.values, &mut self.bytes, &event.topic);
            if value.is_none() && settled {
                return Verdict::Drop;
            }
            if let Some(seeding) = reading {
                seeding.note_lacking(event, state.effect);
            }
            let topic = event.topic.clone();
            absent &= value.is_none();
            self.left = Some(Left { position: event.position, table: state.table, topic, value, absent });
            return Verdict::Keep;
        }
        let moved = self.left.take().filter(|it| it.position == event.position && it.table == state.table);
        absent = moved.as_ref().map_or(absent, |it| it.absent);
        let (from, mut left) = moved.map(|it| (it.topic, it.value)).unzip();
        // A row that comes from elsewhere has nothing to do with what the topic held.
        let old = match &mut left {
            Some(left) => left.as_mut(),
            None => self.values.get_mut(&event.topic),
        };
        let old = old.filter(|old| reading.as_ref().is_none_or(|seeding| seeding.current(old, self.round)));
        if let Some(old) = &old {
            merge_unchanged(event, &old.event.data);
        }
        let whole = event.unchanged.is_empty() && event.omitted.is_empty();
        let same =
            |old: &Value| whole && from.is_none() && event.op == Op::Update && old.event.data == event.data;
        match &old {
            // Nothing has said since that the row is a member again.
            None if absent && state.effect == Effect::PutIfPresent => {
                if let Some(seeding) = reading {
                    seeding.cleared.insert(event.topic.clone(), commit.xid);
                }
                // A broker that did not know it may have told it before a restart.
                self.told.entry(state.table).or_default().insert(event.topic.clone());
                return Verdict::Drop;
            }
            // Only a seed that is still reading, or is to come, may yet say that the row is a member.
            None if reading.is_none() && !to_come && state.effect == Effect::PutIfPresent => {
                return Verdict::Drop;
            }
            Some(old) if settled && same(old) => return Verdict::Drop,
            _ => {}
        }
        // What was a member before the seeding need not be one by the rules of now.
        let member = |old: &Value| !old.unsure && (reading.is_none() || old.round == self.round);
        let unsure = state.effect == Effect::PutIfPresent && !old.as_deref().is_some_and(member);
        let mut path = old.map(|old| std::mem::take(&mut old.path)).unwrap_or_default();
        path.extend(from.map(|from| (from, commit.xid)));
        let event_now = Arc::new(event.clone());
        let mut value = Value { event: event_now, table: state.table, round: self.round, unsure, path };
        match reading {
            Some(seeding) => {
                seeding.note_lacking(event, state.effect);
                if value.lacks() {
                    for (from, _) in &value.path {
                        seeding.departed.entry(from.clone()).or_default().push(event.topic.clone());
                    }
                } else {
                    value.path = Vec::new();
                }
            }
            None => value.path = Vec::new(),
        }
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
        let told = self.told.get_mut(table).map(std::mem::take);
        let mut topics: Vec<Topic> = told.into_iter().flatten().collect();
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
        topics.sort_unstable();
        topics.dedup();
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

/// Fills the columns that Postgres did not send from an older value of the same row.
fn merge_unchanged(event: &mut Event, old: &[u8]) {
    if let Some((data, unchanged)) = merge(&event.data, &event.unchanged, old) {
        (event.data, event.unchanged) = (data, unchanged);
    }
}
