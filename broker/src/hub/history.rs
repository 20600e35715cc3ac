//! Recent events in order, bounded by bytes, count and age; the floor says what is gone.
//!
//! Eviction takes whole units (events that share a position), oldest first. The floor is the position of
//! the newest evicted unit, never guessed from the oldest kept one: a cursor at or above it has missed
//! nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use walcast_wire::{Position, Topic};

use super::Encoded;

/// How much history is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) bytes: u64,
    pub(super) events: usize,
    pub(super) age: Duration,
}

#[derive(Debug)]
pub(super) struct History {
    limits: Limits,
    log: VecDeque<(Instant, Arc<Encoded>)>,
    by_topic: HashMap<Topic, VecDeque<Arc<Encoded>>>,
    bytes: u64,
    floor: Position,
}

impl History {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, log: VecDeque::new(), by_topic: HashMap::new(), bytes: 0, floor: Position::ZERO }
    }

    /// Forgets everything; history begins again after `floor`.
    pub(super) fn restart(&mut self, floor: Position) {
        *self = Self { floor, ..Self::new(self.limits) };
    }

    pub(super) fn floor(&self) -> Position {
        self.floor
    }

    /// Where the oldest event lies.
    pub(super) fn oldest(&self) -> Option<Position> {
        self.log.front().map(|(_, event)| event.position())
    }

    pub(super) fn len(&self) -> usize {
        self.log.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends an event that lies at or behind the newest one.
    pub(super) fn push(&mut self, event: Arc<Encoded>, now: Instant) {
        self.bytes += event.cost_bytes() as u64;
        match self.by_topic.get_mut(event.topic()) {
            Some(log) => log.push_back(Arc::clone(&event)),
            None => {
                let mut log = VecDeque::with_capacity(1);
                log.push_back(Arc::clone(&event));
                self.by_topic.insert(event.topic().clone(), log);
            }
        }
        self.log.push_back((now, event));
    }

    /// Puts others in the place of a topic's events at these positions, as far as they are still held.
    pub(super) fn replace(
        &mut self,
        topic: &Topic,
        positions: &[Position],
        make: impl Fn(&Encoded) -> Option<Encoded>,
    ) {
        let Some(log) = self.by_topic.get_mut(topic) else { return };
        for &position in positions {
            let start = log.partition_point(|event| event.position() < position);
            for held in log.range_mut(start..).take_while(|event| event.position() == position) {
                let Some(new) = make(held).map(Arc::new) else { continue };
                let start = self.log.partition_point(|(_, event)| event.position() < position);
                let same = |(_, event): &&mut (Instant, Arc<Encoded>)| Arc::ptr_eq(event, held);
                let Some((_, place)) = self.log.range_mut(start..).find(same) else { continue };
                self.bytes += new.cost_bytes() as u64;
                self.bytes -= held.cost_bytes() as u64;
                *place = Arc::clone(&new);
                *held = new;
            }
        }
    }

    /// Whether it is full, and nothing up to `may_go` is left to be dropped.
    pub(super) fn stuck(&self, may_go: Position) -> bool {
        let full = self.bytes > self.limits.bytes || self.log.len() > self.limits.events;
        full && self.oldest().is_some_and(|oldest| oldest > may_go)
    }

    /// Drops what exceeds a limit, up to `may_go`. The newest unit stays, whatever its size, unless it is too old.
    pub(super) fn evict(&mut self, now: Instant, may_go: Position) {
        while let Some((at, oldest)) = self.log.front() {
            let unit = oldest.position();
            let alone = self.log.back().is_some_and(|(_, newest)| newest.position() == unit);
            let old = now.saturating_duration_since(*at) > self.limits.age;
            let full = self.bytes > self.limits.bytes || self.log.len() > self.limits.events;
            if !(old || full && !alone) || unit > may_go {
                break;
            }
            while self.log.front().is_some_and(|(_, event)| event.position() == unit) {
                self.pop_front();
            }
            self.floor = unit;
        }
        // A burst may have grown the lists far beyond what is kept now.
        if self.log.capacity() > 1024 && self.log.len() * 4 < self.log.capacity() {
            self.log.shrink_to(self.log.len() * 2);
        }
    }

    fn pop_front(&mut self) {
        let Some((_, event)) = self.log.pop_front() else { return };
        self.bytes -= event.cost_bytes() as u64;
        if let Some(log) = self.by_topic.get_mut(event.topic()) {
            log.pop_front();
            if log.is_empty() {
                self.by_topic.remove(event.topic());
            }
        }
    }

    /// Whether the topic has an event behind `position`.
    pub(super) fn has_after(&self, topic: &str, position: Position) -> bool {
        self.by_topic.get(topic).and_then(VecDeque::back).is_some_and(|event| event.position() > position)
    }

    /// The topic's events behind `position`, in order.
    pub(super) fn of_topic(&self, topic: &str, position: Position) -> impl Iterator<Item = &Arc<Encoded>> {
        let log = self.by_topic.get(topic);
        let start = log.map_or(0, |log| log.partition_point(|event| event.position() <= position));
        log.into_iter().flat_map(move |log| log.range(start..))
    }

    /// How many events lie behind `position`.
    pub(super) fn count_after(&self, position: Position) -> usize {
        self.log.len() - self.log.partition_point(|(_, event)| event.position() <= position)
    }

    /// All events behind `position`, in order.
    pub(super) fn all(&self, position: Position) -> impl Iterator<Item = &Arc<Encoded>> {
        let start = self.log.partition_point(|(_, event)| event.position() <= position);
        self.log.range(start..).map(|(_, event)| event)
    }
}
