//! Current values on a node that holds none: asked for when somebody wants them, and kept for a while.
//!
//! What was answered holds as of a position. It is good for whoever stands there or before, and for those behind it
//! as long as no event has changed its topic since; so nothing has to be thrown away when events come.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use walcast_wire::{Position, TopicPattern};

use super::Encoded;
use super::history::History;
use super::page::Answer;
use super::registry::WaiterId;

/// Bookkeeping that an answer costs beside its values.
const OVERHEAD_BYTES: u64 = 256;
/// Topics of one question.
const QUESTION_MAX: usize = 1_000;

/// What was answered for one topic or pattern.
#[derive(Debug)]
struct Known {
    /// Good for whoever stands here or before,
    since: Position,
    /// once the hub has come here.
    at: Position,
    values: Vec<Arc<Encoded>>,
    bytes: u64,
    /// When it was learned, counted.
    number: u64,
}

/// Topics are looked up at once; what a pattern names has to be searched for, which must not hold the others up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Topics.
    Topics,
    /// Patterns, one at a time.
    Patterns,
}

/// What is wanted of one kind, and who asks.
#[derive(Debug, Default)]
struct Wanted {
    patterns: BTreeSet<TopicPattern>,
    asker: Option<Waker>,
}

/// What is wanted, and what is known.
#[derive(Debug)]
pub(super) struct Asked {
    bytes_max: u64,
    bytes: u64,
    known: HashMap<TopicPattern, Known>,
    /// In the order in which they were learned; those with another number were learned again since.
    order: VecDeque<(TopicPattern, u64)>,
    learned: u64,
    values: usize,
    wanted: [Wanted; 2],
    /// Subscriptions that wait for values,
    waiting: BTreeSet<WaiterId>,
    /// or for the head to come here.
    reach: Position,
}

impl Asked {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            known: HashMap::new(),
            order: VecDeque::new(),
            learned: 0,
            values: 0,
            wanted: Default::default(),
            waiting: BTreeSet::new(),
            reach: Position::ZERO,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.values
    }

    /// The values of a pattern, as they are for somebody who was told all events up to `position`.
    pub(super) fn get(
        &self,
        pattern: &TopicPattern,
        position: Position,
        head: Position,
        history: &History,
    ) -> Option<&[Arc<Encoded>]> {
        let known = self.known.get(pattern).filter(|known| known.at <= head)?;
        let unchanged = || {
            let topic = pattern.as_topic().filter(|_| known.at >= history.floor());
            topic.is_some_and(|topic| !history.has_after(topic.as_str(), known.at))
        };
        (known.since >= position || unchanged()).then_some(known.values.as_slice())
    }

    /// Notes that this is wanted, unless an answer is known that only has to be reached.
    pub(super) fn want(&mut self, pattern: &TopicPattern, head: Position) {
        let lane = if pattern.as_topic().is_some() { Lane::Topics } else { Lane::Patterns };
        let Wanted { patterns, asker } = &mut self.wanted[lane as usize];
        if self.known.get(pattern).is_none_or(|known| known.at <= head)
            && patterns.insert(pattern.clone())
            && let Some(asker) = asker.take()
        {
            // A waker of a task: it only puts that task in line.
            asker.wake();
        }
    }

    /// Notes who is to be woken once there are answers, or the head has come to `reach`.
    pub(super) fn wait(&mut self, id: WaiterId, reach: Position) {
        self.reach = self.reach.max(reach);
        self.waiting.insert(id);
    }

    /// Who waits, if the head's coming from `before` may be what some wait for.
    pub(super) fn reached(&mut self, before: Position) -> BTreeSet<WaiterId> {
        if before < self.reach { self.woken() } else { BTreeSet::new() }
    }

    /// Who waits.
    pub(super) fn woken(&mut self) -> BTreeSet<WaiterId> {
        std::mem::take(&mut self.waiting)
    }

    /// What to ask for now; where there is nothing, `asker` is woken once there is.
    pub(super) fn question(&mut self, lane: Lane, asker: &Waker) -> Vec<TopicPattern> {
        let wanted = &mut self.wanted[lane as usize];
        let most = if lane == Lane::Topics { QUESTION_MAX } else { 1 };
        let mut question = Vec::new();
        while question.len() < most
            && let Some(pattern) = wanted.patterns.pop_first()
        {
            question.push(pattern);
        }
        if question.is_empty() {
            wanted.asker = Some(asker.clone());
        }
        question
    }

    /// Takes an answer, as far as it holds.
    pub(super) fn learn(&mut self, answer: Answer) {
        for (pattern, values) in answer.values {
            if answer.inexact.iter().any(|inexact| inexact.overlaps(&pattern)) {
                continue;
            }
            self.forget_one(&pattern);
            let bytes: usize = values.iter().map(|value| value.cost_bytes()).sum();
            let bytes = bytes as u64 + OVERHEAD_BYTES + pattern.as_str().len() as u64;
            self.bytes += bytes;
            self.values += values.len();
            self.learned += 1;
            self.order.push_back((pattern.clone(), self.learned));
            self.reach = self.reach.max(answer.at);
            // Those of a pattern were not read at one moment.
            let since = if pattern.as_topic().is_some() { answer.at } else { answer.since };
            let number = self.learned;
            self.known.insert(pattern, Known { since, at: answer.at, values, bytes, number });
        }
        let outdated = |known: &HashMap<TopicPattern, Known>, (pattern, number): &(TopicPattern, u64)| {
            known.get(pattern).is_none_or(|known| known.number != *number)
        };
        while self.bytes > self.bytes_max
            && self.known.len() > 1
            && let Some(oldest) = self.order.pop_front()
        {
            if !outdated(&self.known, &oldest) {
                self.forget_one(&oldest.0);
            }
        }
        // Where the same are learned again and again, nothing may ever have to go.
        if self.order.len() > 2 * self.known.len() + QUESTION_MAX {
            self.order.retain(|entry| !outdated(&self.known, entry));
        }
    }

    fn forget_one(&mut self, pattern: &TopicPattern) {
        if let Some(known) = self.known.remove(pattern) {
            self.bytes -= known.bytes;
            self.values -= known.values.len();
        }
    }

    /// Nothing that was answered holds any more.
    pub(super) fn forget(&mut self) {
        self.known.clear();
        self.order.clear();
        (self.bytes, self.values) = (0, 0);
    }
}
