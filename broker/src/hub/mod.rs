//! The hub: recent history, current values, and who waits for what.
//!
//! It takes batches in and hands encoded events out. No sockets, no files, no SQL, no tasks: time and wakers
//! come from the callers. A subscriber is a cursor into the shared history; nothing is queued for it, so a
//! slow one costs nothing and is told when it has fallen below the floor.

mod asked;
mod encoded;
mod follow;
mod history;
mod merge;
pub mod page;
mod registry;
pub mod relay;
mod retained;
pub mod roll;
mod subscription;
mod withdrawn;

use std::collections::HashSet;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use walcast_wire::{Cursor, Epoch, Op, Position, ResetReason, Topic, TopicPattern};

use self::asked::Asked;
pub use self::asked::Lane;
use self::encoded::Encoder;
pub use self::encoded::{Encoded, NotEncoded};
use self::history::{History, Limits};
use self::page::Remark;
use self::registry::Registry;
use self::relay::Relay;
use self::retained::{Filling, Retained, Verdict};
use self::roll::Roll;
pub use self::subscription::{CurrentValues, Delivery, From, Subscription};
use self::withdrawn::Withdrawn;
use crate::event::{Batch, Effect, Entry, Event, Note, State};
use crate::sabotage::{Fault, sabotaged};

/// How much the hub holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Events older than this are forgotten.
    #[serde(with = "humantime_serde")]
    pub age: Duration,
    /// Memory for history, in bytes.
    #[serde(deserialize_with = "crate::units::bytes")]
    pub bytes: u64,
    /// Number of events in history.
    pub events: usize,
    /// Memory for current values of state topics, in bytes; more is an error that ends the node.
    #[serde(deserialize_with = "crate::units::bytes")]
    pub state_bytes: u64,
    /// Subscriptions at a time.
    pub subscriptions_max: usize,
    /// Topics and patterns of one subscription.
    pub topics_max: usize,
    /// Memory for current values that were asked for, in bytes, on a node that holds none of its own.
    #[serde(deserialize_with = "crate::units::bytes")]
    pub asked_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(600),
            bytes: 256 << 20,
            events: 2_000_000,
            state_bytes: 1 << 30,
            subscriptions_max: 200_000,
            topics_max: 100,
            asked_bytes: 64 << 20,
        }
    }
}

/// Why nothing can be subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// No stream has begun yet.
    #[error("no stream from Postgres has begun on this broker yet; try again shortly, its /readyz says why")]
    NotStarted,
    /// One subscription asks for too much.
    #[error("at most {max} topics in one subscription; use a pattern")]
    TooManyTopics {
        /// How many are allowed.
        max: usize,
    },
    /// The hub's own limit.
    #[error("too many subscriptions; try again later or raise `history.subscriptions_max`")]
    Overloaded,
}

/// Current values exceed their memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "current values of state topics need more than {max} bytes: narrow the state rules' columns or raise `history.state_bytes`"
)]
pub struct StateFull {
    /// The limit.
    pub max: u64,
}

/// The current value of a topic.
#[derive(Clone, Debug)]
pub enum Current {
    /// Not known yet: seeding is not done.
    Unsettled,
    /// There is none.
    None,
    /// This.
    Value(Arc<Encoded>),
}

/// Which part of the log brings back all that the hub holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The newest event that is gone; nothing lies between it and `replay_from`.
    pub quiet_from: Position,
    /// The LSN from which the log has to be read: the oldest event's commit, or the head without events.
    pub replay_from: u64,
    /// Of what lies before this LSN some was withdrawn: a restart must not read it again, for it would know nothing
    /// of that.
    pub withdrawn: u64,
    /// More is to be withdrawn as soon as the log goes on.
    pub waits: bool,
}

/// The hub in figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// A stream has begun.
    pub started: bool,
    /// Current values are exact.
    pub settled: bool,
    /// Cursors exist that are not reached yet.
    pub replaying: bool,
    /// Number line.
    pub epoch: Epoch,
    /// Everything up to here has been ingested.
    pub head: Position,
    /// Cursors up to here may exist.
    pub replay_until: Position,
    /// Everything up to here may be gone.
    pub floor: Position,
    /// Events in history.
    pub events: usize,
    /// Their memory.
    pub bytes: u64,
    /// Events that other nodes lack, on one that leads them.
    pub uncarried: usize,
    /// Current values.
    pub values: usize,
    /// Their memory.
    pub state_bytes: u64,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Topics subscribed to by name.
    pub topics: usize,
}

/// History, values and subscriptions of one node.
#[derive(Debug)]
pub struct Hub {
    config: Config,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    line: Option<Line>,
    history: History,
    retained: Retained,
    registry: Registry,
    /// What the hubs of other nodes lack, while this one leads them.
    relay: Option<Relay>,
    /// It follows another one: values are asked for, `retained` is empty.
    follows: bool,
    asked: Asked,
}

/// Where on which number line the hub is.
#[derive(Debug)]
struct Line {
    epoch: Epoch,
    head: Position,
    replay_until: Position,
    /// Another hub led on this line, and may have told more than is known here.
    others_led: bool,
    /// The floor was last raised to here by a gap rather than by eviction.
    gap: Position,
    withdrawn: Withdrawn,
    encoder: Encoder,
}

impl Line {
    /// Why a subscription at `position` cannot go on, if so; `withdrawn`: what it was told is void.
    fn reset_reason(
        &self,
        floor: Position,
        withdrawn: bool,
        epoch: Epoch,
        position: Position,
    ) -> Option<ResetReason> {
        match () {
            () if epoch != self.epoch => Some(ResetReason::EpochChanged),
            () if position < self.gap || withdrawn => Some(ResetReason::Gap),
            () if position < floor => Some(ResetReason::CursorExpired),
            () => None,
        }
    }
}

impl Hub {
    /// An empty hub.
    #[must_use]
    pub fn new(config: Config) -> Arc<Self> {
        let limits = Limits { bytes: config.bytes, events: config.events, age: config.age };
        let inner = Inner {
            line: None,
            history: History::new(limits),
            retained: Retained::default(),
            registry: Registry::default(),
            relay: None,
            follows: false,
            asked: Asked::new(config.asked_bytes),
        };
        Arc::new(Self { config, inner: Mutex::new(inner) })
    }

    /// Takes a batch in: what it claims beyond the head is appended, what it repeats is dropped, and where it
    /// leaves a gap the floor rises and subscribers are told.
    ///
    /// # Errors
    /// Current values outgrew their limit; the hub must not go on.
    pub fn ingest(&self, batch: &Batch, now: Instant) -> Result<(), StateFull> {
        let mut woken = Vec::new();
        let result = {
            let mut inner = self.inner.lock();
            inner.ingest(batch, now, &mut woken);
            let max = self.config.state_bytes;
            if inner.retained.bytes() > max { Err(StateFull { max }) } else { Ok(()) }
        };
        woken.into_iter().for_each(Waker::wake);
        result
    }

    /// Forgets what is too old; to be called now and then, also when nothing happens.
    pub fn evict(&self, now: Instant) {
        let mut inner = self.inner.lock();
        let may_go = inner.may_go();
        inner.history.evict(now, may_go);
    }

    /// Wakes everyone who is parked, to look at something that the hub does not know of.
    pub fn wake_all(&self) {
        let mut woken = Vec::new();
        self.inner.lock().registry.wake_parked(&mut woken);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Starts reading.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    pub fn subscribe(
        self: &Arc<Self>,
        topics: Vec<TopicPattern>,
        from: From,
    ) -> Result<Subscription, SubscribeError> {
        if topics.len() > self.config.topics_max {
            return Err(SubscribeError::TooManyTopics { max: self.config.topics_max });
        }
        let mut inner = self.inner.lock();
        if inner.registry.len() >= self.config.subscriptions_max {
            return Err(SubscribeError::Overloaded);
        }
        Subscription::new(Arc::clone(self), &mut inner, topics, from)
    }

    /// How much it holds.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The newest position ingested, as a cursor.
    #[must_use]
    pub fn head(&self) -> Option<Cursor> {
        self.inner.lock().line.as_ref().map(|line| Cursor::new(line.epoch, line.head))
    }

    /// What a restart needs. `None`: the hub holds nothing yet.
    #[must_use]
    pub fn window(&self) -> Option<Window> {
        let inner = self.inner.lock();
        let line = inner.line.as_ref()?;
        let behind = u64::from(sabotaged(Fault::FloorAtOldest));
        // A restart knows nothing of other rules before: what they withdrew, it must not take up again.
        let withdrawn = line.withdrawn.newest();
        let replay_from = inner.history.oldest().unwrap_or(line.head).max(withdrawn).major + behind;
        Some(Window {
            quiet_from: inner.history.floor().max(withdrawn),
            replay_from,
            withdrawn: withdrawn.major,
            waits: line.withdrawn.waits(),
        })
    }

    /// The current value of a topic.
    #[must_use]
    pub fn current(&self, topic: &Topic) -> Current {
        let (epoch, value) = {
            let inner = self.inner.lock();
            let topic_alone = [topic.clone().into()];
            let Some(line) = &inner.line else { return Current::Unsettled };
            if inner.follows {
                return match inner.asked.get(&topic_alone[0], line.head, line.head, &inner.history) {
                    None => Current::Unsettled,
                    Some([]) => Current::None,
                    Some([value, ..]) => Current::Value(Arc::clone(value)),
                };
            }
            if !inner.retained.exact(&topic_alone) {
                return Current::Unsettled;
            }
            (line.epoch, inner.retained.get(topic.as_str()).map(Arc::clone))
        };
        match value {
            Some(value) => Current::Value(Arc::new(Encoder::new(epoch).snapshot(&value))),
            None => Current::None,
        }
    }

    /// Tables whose values are read anew while those of others are exact.
    #[must_use]
    pub fn outdated(&self) -> Vec<Arc<str>> {
        self.inner.lock().retained.outdated()
    }

    /// Who waits, with all that is needed to tell who waits for what is `asked`.
    #[must_use]
    pub fn roll(&self, asked: &[TopicPattern]) -> Roll {
        self.inner.lock().registry.roll(asked)
    }

    /// The hub in figures.
    #[must_use]
    pub fn status(&self) -> Status {
        let inner = self.inner.lock();
        let (retained, history, registry) = (&inner.retained, &inner.history, &inner.registry);
        let line = inner.line.as_ref();
        Status {
            started: line.is_some(),
            settled: inner.follows || retained.settled(),
            replaying: line.is_some_and(|line| line.head < line.replay_until),
            epoch: line.map(|line| line.epoch).unwrap_or_default(),
            head: line.map(|line| line.head).unwrap_or_default(),
            replay_until: line.map(|line| line.replay_until).unwrap_or_default(),
            floor: history.floor(),
            events: history.len(),
            bytes: history.bytes(),
            uncarried: history.count_after(inner.may_go()),
            values: retained.len() + inner.asked.len(),
            state_bytes: retained.bytes() + inner.asked.bytes(),
            subscriptions: registry.len(),
            topics: registry.topics(),
        }
    }
}

impl Inner {
    fn ingest(&mut self, batch: &Batch, now: Instant, woken: &mut Vec<Waker>) {
        // Left over from when it led.
        if self.follows {
            return;
        }
        if let Some(Note::Start { quiet_from, .. }) = &batch.note
            && let Some(line) = self.line.as_mut().filter(|line| line.epoch == batch.epoch)
            && (*quiet_from..batch.after).contains(&line.head)
        {
            // Nothing lies between.
            line.head = batch.after;
        }
        let fresh = self.enter(batch.epoch, batch.after, woken);
        let may_go = |relay: &Option<Relay>| relay.as_ref().map_or(Position::MAX, Relay::keep_from);
        let Some(line) = &mut self.line else { return };
        match &batch.note {
            None => {}
            Some(Note::Start { replay_until, quiet_from }) => {
                (line.replay_until, line.others_led) = (*replay_until, false);
                if fresh && *quiet_from < batch.after {
                    self.history.restart(*quiet_from);
                }
            }
            Some(Note::Outdated(tables)) => {
                let withdrawn: Vec<_> = tables.iter().filter(|table| table.withdrawn).collect();
                if !withdrawn.is_empty() {
                    let topics = withdrawn.into_iter().flat_map(|table| table.topics.iter().cloned());
                    line.withdrawn.withdraw(line.head.max(line.replay_until), topics);
                }
                self.retained.outdate(tables);
            }
            Some(Note::SeedBegin(tables)) => self.retained.seed_begin(tables),
            Some(Note::Seed { snapshot, events }) => {
                for Filling { topic, positions, data } in self.retained.seed(snapshot, events) {
                    self.history.replace(&topic, &positions, |event| event.filled(&data));
                }
            }
            Some(Note::SeedEnd { snapshot, settle }) => self.retained.seed_end(snapshot, *settle),
        }
        let replaying = line.head < line.replay_until;
        let as_text = || batch.upto.to_string() > line.head.to_string();
        if batch.upto > line.head && (!sabotaged(Fault::TextOrder) || as_text()) {
            if let Some((floor, placed)) = line.withdrawn.place(batch) {
                self.registry.notify_all(line.head, woken);
                self.relay.iter_mut().for_each(|relay| relay.remark(floor, placed.clone()));
            }
            let fresh = batch.entries.partition_point(|entry| entry.position() <= line.head);
            let (events, blind) = self.retained.take(&batch.entries[fresh..]);
            if let Some(position) = blind {
                self.registry.notify_all(line.head, woken);
                self.history.restart(position);
                line.gap = position;
                self.relay.iter_mut().for_each(|relay| relay.remark(position, Remark::Gap(position)));
            }
            for (index, Told { event, last, value }) in (0..).zip(events) {
                let mut encoded = line.encoder.encode(&event, event.op, last);
                encoded.index = index;
                let encoded = Arc::new(encoded);
                if let Some(relay) = self.relay.as_mut().filter(|_| event.state.is_some()) {
                    relay.changed(event.position, event.topic, value);
                }
                self.registry.notify(encoded.topic(), encoded.position(), woken);
                self.history.push(encoded, now);
            }
            line.head = batch.upto;
            self.history.evict(now, may_go(&self.relay));
            line.withdrawn.forget(self.history.floor());
            self.relay.iter_mut().for_each(|relay| relay.wake(woken));
        }
        // Who comes during a replay stands at its end, and may wait for the head to come there.
        let replayed = replaying && line.head >= line.replay_until;
        let settled = self.retained.reached(line.head);
        if let Some(relay) = self.relay.as_mut().filter(|_| settled) {
            relay.settled();
            relay.wake(woken);
        }
        if settled || replayed {
            self.registry.wake_parked(woken);
        }
        let misled = self.retained.misled();
        if !misled.is_empty() {
            line.withdrawn.withdraw(line.head.max(line.replay_until), misled);
        }
        self.take_values_whole();
    }

    /// Compares the batch with where the hub is; begins anew on another number line or behind a gap. Whether
    /// it is another line.
    fn enter(&mut self, epoch: Epoch, after: Position, woken: &mut Vec<Waker>) -> bool {
        match &mut self.line {
            Some(line) if line.epoch == epoch => {
                if after > line.head {
                    self.registry.notify_all(line.head, woken);
                    self.history.restart(after);
                    self.retained = Retained::default();
                    line.withdrawn = Withdrawn::default();
                    (line.gap, line.head) = (after, after);
                    self.relay.iter_mut().for_each(|relay| relay.begin_anew(after, woken));
                }
                false
            }
            _ => {
                self.registry.notify_all(Position::ZERO, woken);
                self.history.restart(after);
                self.retained = Retained::default();
                self.asked.forget();
                self.line = Some(Line {
                    epoch,
                    head: after,
                    replay_until: after,
                    others_led: self.follows,
                    gap: Position::ZERO,
                    withdrawn: Withdrawn::default(),
                    encoder: Encoder::new(epoch),
                });
                self.relay.iter_mut().for_each(|relay| relay.begin_anew(after, woken));
                true
            }
        }
    }

    /// What lies up to here may be forgotten.
    fn may_go(&self) -> Position {
        self.relay.as_ref().map_or(Position::MAX, Relay::keep_from)
    }
}

/// An event that goes into history.
struct Told {
    event: Event,
    /// Its transaction's last on its topic.
    last: bool,
    /// The value of its topic behind it, where its rule keeps one.
    value: Option<Arc<Event>>,
}

impl Retained {
    /// Lets entries change the values; what remains goes into history, marked where it is its transaction's
    /// last on its topic. The position is that of the newest entry of which nobody knows what it changed:
    /// everything up to it is void.
    fn take(&mut self, entries: &[Entry]) -> (Vec<Told>, Option<Position>) {
        let mut events = Vec::with_capacity(entries.len());
        let mut blind = None;
        for entry in entries {
            match entry {
                Entry::Event(event) => {
                    let mut event = event.clone();
                    if event.state.is_none() || self.apply(&mut event) == Verdict::Keep {
                        let value =
                            event.state.as_ref().and_then(|_| self.get(event.topic.as_str()).cloned());
                        events.push(Told { event, last: false, value });
                    }
                }
                Entry::ClearTable { position, table, commit, partial } => {
                    if self.blind() {
                        blind = Some(*position);
                        events.clear();
                    }
                    for topic in self.clear_table(table, commit) {
                        let state = State { table: Arc::clone(table), effect: Effect::Clear };
                        let event = Event {
                            position: *position,
                            topic,
                            op: Op::Truncate,
                            data: bytes::Bytes::from_static(b"null"),
                            commit: Some(Arc::clone(commit)),
                            unchanged: Box::default(),
                            omitted: Box::default(),
                            partial: *partial,
                            state: Some(state),
                        };
                        events.push(Told { event, last: false, value: None });
                    }
                }
            }
        }
        mark_last(&mut events);
        (events, blind)
    }
}

/// Marks each transaction's last event of each topic. A batch holds whole transactions, but for parts that
/// are too large to mark; where they interleave none is marked.
fn mark_last(events: &mut [Told]) {
    let same = |a: &Told, b: &Told| match (&a.event.commit, &b.event.commit) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
        _ => false,
    };
    let whole = |event: &Event| event.commit.as_ref().is_none_or(|commit| commit.lsn.is_some());
    for transaction in events.chunk_by_mut(same) {
        match transaction {
            [first, ..] if !whole(&first.event) => {}
            [only] => only.last = true,
            many => {
                let mut seen = HashSet::new();
                for told in many.iter_mut().rev() {
                    told.last = seen.insert(told.event.topic.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
