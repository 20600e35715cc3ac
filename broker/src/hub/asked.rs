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
}

/// What is wanted, and what is known.
#[derive(Debug)]
pub(super) struct Asked {
    bytes_max: u64,
    bytes: u64,
    known: HashMap<TopicPattern, Known>,
    /// In the order in which they were learned.
    order: VecDeque<TopicPattern>,
    wanted: BTreeSet<TopicPattern>,
    /// Subscriptions that wait for values.
    pub(super) waiting: BTreeSet<WaiterId>,
    /// Who asks.
    pub(super) asker: Option<Waker>,
}

impl Asked {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            known: HashMap::new(),
            order: VecDeque::new(),
            wanted: BTreeSet::new(),
            waiting: BTreeSet::new(),
            asker: None,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.known.values().map(|known| known.values.len()).sum()
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
        if self.known.get(pattern).is_none_or(|known| known.at <= head)
            && self.wanted.insert(pattern.clone())
            && let Some(asker) = self.asker.take()
        {
            // A waker of a task: it only puts that task in line.
            asker.wake();
        }
    }

    /// What to ask for now.
    pub(super) fn question(&mut self) -> Vec<TopicPattern> {
        let mut question = Vec::new();
        while question.len() < QUESTION_MAX
            && let Some(pattern) = self.wanted.pop_first()
        {
            question.push(pattern);
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
            self.order.push_back(pattern.clone());
            // Those of a pattern were not read at one moment.
            let since = if pattern.as_topic().is_some() { answer.at } else { answer.since };
            self.known.insert(pattern, Known { since, at: answer.at, values, bytes });
        }
        while self.bytes > self.bytes_max
            && self.known.len() > 1
            && let Some(oldest) = self.order.pop_front()
        {
            self.forget_one(&oldest);
        }
    }

    fn forget_one(&mut self, pattern: &TopicPattern) {
        if let Some(known) = self.known.remove(pattern) {
            self.bytes -= known.bytes;
            self.order.retain(|kept| kept != pattern);
        }
    }

    /// Nothing that was answered holds any more.
    pub(super) fn forget(&mut self) {
        self.known.clear();
        self.order.clear();
        self.bytes = 0;
    }
}
