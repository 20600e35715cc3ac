//! Who waits, in a form to be shown: how many for which topic, and who of them by name.
//!
//! Who gives no name is counted from what the registry holds anyway, and takes no memory for it. Names, and what one
//! look goes through, are bounded: nobody who wants to know may hold the hub for long.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use walcast_wire::TopicPattern;

use super::registry::WaiterId;

/// Topics of named waits that are kept, over all of them. Whoever comes when there is no room is counted without its
/// name.
const NAMED_TOPICS_MAX: usize = 10_000;
/// Topics and patterns that one look goes through.
const LOOK_MAX: usize = 10_000;

/// How a wait is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// What the client calls itself.
    pub client: Box<str>,
    /// By which way it waits: `poll`, `sse`, `ws`, `state` or `endpoint`.
    pub transport: Cow<'static, str>,
    /// Since when, in milliseconds since 1970, by the clock of the day: for people.
    pub since_ms: u64,
}

/// A wait that has a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its name.
    #[serde(flatten)]
    pub name: Name,
    /// What it waits for.
    pub topics: Vec<TopicPattern>,
}

/// Who waits at a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roll {
    /// All waits, whatever they are for.
    pub waiting: usize,
    /// How many wait for each topic and pattern, as they named it.
    pub topics: Vec<(TopicPattern, usize)>,
    /// Those with a name.
    pub named: Vec<Arc<Named>>,
    /// There are more topics or names than these.
    pub truncated: bool,
}

/// A roll as another node has told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// How that node calls itself.
    pub node: String,
    /// How long ago it said so.
    pub age: Duration,
    /// Who waits there.
    pub roll: Roll,
}

/// Who waits at other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// What they have told.
    pub rolls: Vec<Told>,
    /// Not all that others may have told could be read.
    pub partial: bool,
}

/// The names of waits.
#[derive(Debug, Default)]
pub(super) struct Names {
    named: HashMap<WaiterId, Arc<Named>>,
    /// How many topics these have.
    topics: usize,
    /// Of whose name, or topics, there is something missing.
    left_out: HashSet<WaiterId>,
}

impl Names {
    pub(super) fn add(&mut self, id: WaiterId, name: Name, topics: &[TopicPattern]) {
        // An empty wait takes no topic's room, so both are bounded.
        if self.topics >= NAMED_TOPICS_MAX || self.named.len() >= NAMED_TOPICS_MAX {
            self.left_out.insert(id);
            return;
        }
        self.named.insert(id, Arc::new(Named { name, topics: Vec::new() }));
        self.listen(id, topics);
    }

    pub(super) fn listen(&mut self, id: WaiterId, topics: &[TopicPattern]) {
        let Some(named) = self.named.get_mut(&id) else { return };
        let room = topics.len().min(NAMED_TOPICS_MAX - self.topics);
        Arc::make_mut(named).topics.extend_from_slice(&topics[..room]);
        self.topics += room;
        if room < topics.len() {
            self.left_out.insert(id);
        }
    }

    pub(super) fn unlisten(&mut self, id: WaiterId, topics: &[TopicPattern]) {
        let Some(named) = self.named.get_mut(&id) else { return };
        let before = named.topics.len();
        Arc::make_mut(named).topics.retain(|topic| !topics.contains(topic));
        self.topics -= before - named.topics.len();
    }

    pub(super) fn remove(&mut self, id: WaiterId) {
        if let Some(named) = self.named.remove(&id) {
            self.topics -= named.topics.len();
        }
        self.left_out.remove(&id);
    }
}

/// One look at who waits. It only takes along: what is asked for is picked out once the hub is free again.
#[derive(Debug)]
pub(super) struct Look {
    left: usize,
    roll: Roll,
}

impl Look {
    pub(super) fn new(waiting: usize) -> Self {
        Self { left: LOOK_MAX, roll: Roll { waiting, ..Roll::default() } }
    }

    /// Notes how many wait for `topic`; whether to go on.
    pub(super) fn count(&mut self, topic: impl FnOnce() -> Option<TopicPattern>, waits: usize) -> bool {
        let Some(left) = self.left.checked_sub(1) else {
            self.roll.truncated = true;
            return false;
        };
        self.left = left;
        self.roll.topics.extend(topic().map(|topic| (topic, waits)));
        true
    }

    pub(super) fn finish(mut self, names: &Names) -> Roll {
        self.roll.named = names.named.values().map(Arc::clone).collect();
        self.roll.truncated |= !names.left_out.is_empty();
        self.roll
    }
}

/// Whether `topic` is among those that were `asked` for, or a pattern has topics in common with them.
fn concerns(asked: &[TopicPattern], topic: &TopicPattern) -> bool {
    asked.iter().any(|asked| asked.overlaps(topic))
}

impl Roll {
    /// How many wait for what is `asked`, once for each of their topics; without a question, all.
    #[must_use]
    pub fn waiting_for(&self, asked: &[TopicPattern]) -> usize {
        if asked.is_empty() {
            return self.waiting;
        }
        self.topics.iter().filter(|(topic, _)| concerns(asked, topic)).map(|(_, waits)| waits).sum()
    }

    /// The named waits, each with those of its topics that are `asked` for; without a question, all.
    pub fn named_for<'a>(
        &'a self,
        asked: &'a [TopicPattern],
    ) -> impl Iterator<Item = (&'a Name, Vec<&'a TopicPattern>)> {
        self.named.iter().filter_map(move |named| {
            let topics = named.topics.iter().filter(|topic| asked.is_empty() || concerns(asked, topic));
            let topics: Vec<_> = topics.collect();
            (asked.is_empty() || !topics.is_empty()).then_some((&named.name, topics))
        })
    }
}
