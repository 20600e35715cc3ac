//! Who waits for what: exact topics in a map, patterns in a tree of segments.
//!
//! An event finds its waiters without looking at those of other topics, however many there are.

use std::collections::{BTreeSet, HashMap};
use std::task::Waker;

use slab::Slab;
use walcast_wire::{Position, Topic, TopicPattern};

use super::roll::{Look, Name, Names, Roll};

/// Names a waiter while its subscription lives.
pub(super) type WaiterId = usize;

/// The hub's side of a subscription.
#[derive(Debug, Default)]
pub(super) struct Waiter {
    /// Nothing that concerns the subscription lies between its own position and this one; `None`: nor up
    /// to the head.
    pub(super) pending_after: Option<Position>,
    /// Set while it is parked.
    pub(super) waker: Option<Waker>,
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    waiters: Slab<Waiter>,
    exact: HashMap<Topic, Waiters>,
    patterns: Node,
    names: Names,
}

/// Who waits for one topic: nearly always one, who needs no list.
#[derive(Debug)]
enum Waiters {
    One(WaiterId),
    Many(BTreeSet<WaiterId>),
}

impl Waiters {
    fn insert(&mut self, id: WaiterId) {
        match self {
            Self::One(one) if *one == id => {}
            Self::One(one) => *self = Self::Many(BTreeSet::from([*one, id])),
            Self::Many(many) => {
                many.insert(id);
            }
        }
    }

    /// Whether nobody is left.
    fn remove(&mut self, id: WaiterId) -> bool {
        match self {
            Self::One(one) => *one == id,
            Self::Many(many) => {
                many.remove(&id);
                many.is_empty()
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(many) => many.len(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &WaiterId> {
        let (one, many) = match self {
            Self::One(one) => (Some(one), None),
            Self::Many(many) => (None, Some(many)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

/// A level of the tree of patterns.
#[derive(Debug, Default)]
struct Node {
    named: HashMap<Box<str>, Node>,
    any: Option<Box<Node>>,
    /// Patterns that end here.
    here: BTreeSet<WaiterId>,
    /// Patterns that go on with `**`.
    rest: BTreeSet<WaiterId>,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.named.is_empty() && self.any.is_none() && self.here.is_empty() && self.rest.is_empty()
    }

    fn insert(&mut self, pattern: &str, id: WaiterId) {
        let mut node = self;
        for segment in pattern.split('/') {
            node = match segment {
                "**" => {
                    node.rest.insert(id);
                    return;
                }
                "*" => node.any.get_or_insert_default(),
                name => node.named.entry(name.into()).or_default(),
            };
        }
        node.here.insert(id);
    }

    fn remove<'a>(&mut self, mut segments: impl Iterator<Item = &'a str>, id: WaiterId) {
        match segments.next() {
            None => {
                self.here.remove(&id);
            }
            Some("**") => {
                self.rest.remove(&id);
            }
            Some("*") => {
                if let Some(node) = &mut self.any {
                    node.remove(segments, id);
                    if node.is_empty() {
                        self.any = None;
                    }
                }
            }
            Some(name) => {
                if let Some(node) = self.named.get_mut(name) {
                    node.remove(segments, id);
                    if node.is_empty() {
                        self.named.remove(name);
                    }
                }
            }
        }
    }

    fn find<'a>(&self, mut segments: impl Iterator<Item = &'a str> + Clone, found: &mut Vec<WaiterId>) {
        let Some(segment) = segments.next() else {
            found.extend(&self.here);
            return;
        };
        found.extend(&self.rest);
        if let Some(node) = &self.any {
            node.find(segments.clone(), found);
        }
        if let Some(node) = self.named.get(segment) {
            node.find(segments, found);
        }
    }

    /// Counts who waits for each pattern; `path` leads here. Whether to go on.
    fn count(&self, path: &str, look: &mut Look) -> bool {
        let below = |segment: &str| match path {
            "" => segment.to_owned(),
            path => format!("{path}/{segment}"),
        };
        let mut count = |pattern: &str, waiters: &BTreeSet<WaiterId>| {
            waiters.is_empty() || look.count(|| TopicPattern::new(pattern).ok(), waiters.len())
        };
        count(path, &self.here)
            && count(&below("**"), &self.rest)
            && self.any.as_ref().is_none_or(|node| node.count(&below("*"), look))
            && self.named.iter().all(|(name, node)| node.count(&below(name), look))
    }
}

impl Registry {
    pub(super) fn add(&mut self, topics: &[TopicPattern], waiter: Waiter) -> WaiterId {
        let id = self.waiters.insert(waiter);
        self.listen(id, topics);
        id
    }

    pub(super) fn listen(&mut self, id: WaiterId, topics: &[TopicPattern]) {
        for topic in topics {
            match topic.as_topic() {
                Some(topic) => {
                    self.exact.entry(topic).or_insert(Waiters::One(id)).insert(id);
                }
                None => self.patterns.insert(topic.as_str(), id),
            }
        }
        self.names.listen(id, topics);
    }

    /// Gives a waiter that waits for `topics` a name.
    pub(super) fn name(&mut self, id: WaiterId, name: Name, topics: &[TopicPattern]) {
        if self.waiters.contains(id) {
            self.names.add(id, name, topics);
        }
    }

    pub(super) fn unlisten(&mut self, id: WaiterId, topics: &[TopicPattern]) {
        for topic in topics {
            if topic.as_topic().is_none() {
                self.patterns.remove(topic.as_str().split('/'), id);
            } else if let Some(waiters) = self.exact.get_mut(topic.as_str())
                && waiters.remove(id)
            {
                self.exact.remove(topic.as_str());
            }
        }
        self.names.unlisten(id, topics);
    }

    pub(super) fn remove(&mut self, id: WaiterId, topics: &[TopicPattern]) {
        self.unlisten(id, topics);
        self.names.remove(id);
        self.waiters.try_remove(id);
    }

    pub(super) fn get(&mut self, id: WaiterId) -> Option<&mut Waiter> {
        self.waiters.get_mut(id)
    }

    pub(super) fn len(&self) -> usize {
        self.waiters.len()
    }

    pub(super) fn topics(&self) -> usize {
        self.exact.len()
    }

    /// Who waits, with all that is needed to tell who waits for what is `asked`.
    pub(super) fn roll(&self, asked: &[TopicPattern]) -> Roll {
        let mut look = Look::new(self.len());
        if asked.iter().all(|asked| asked.as_topic().is_some()) {
            for asked in asked {
                if let Some(waiters) = self.exact.get(asked.as_str()) {
                    look.count(|| Some(asked.clone()), waiters.len());
                }
            }
            let _ = asked.is_empty() || self.patterns.count("", &mut look);
        } else if self.patterns.count("", &mut look) {
            let mut all = self.exact.iter();
            while let Some((topic, waiters)) = all.next()
                && look.count(|| Some(topic.clone().into()), waiters.len())
            {}
        }
        look.finish(&self.names)
    }

    /// Notes that an event at `position` concerns those who wait for `topic`; collects whom to wake.
    pub(super) fn notify(&mut self, topic: &Topic, position: Position, woken: &mut Vec<Waker>) {
        let mut found = Vec::new();
        if !self.patterns.is_empty() {
            self.patterns.find(topic.as_str().split('/'), &mut found);
        }
        if let Some(waiters) = self.exact.get(topic) {
            for id in waiters.iter() {
                Self::mark(&mut self.waiters, *id, position.predecessor(), woken);
            }
        }
        for id in found {
            Self::mark(&mut self.waiters, id, position.predecessor(), woken);
        }
    }

    /// Wakes everyone: what lies behind `after` may concern them all.
    pub(super) fn notify_all(&mut self, after: Position, woken: &mut Vec<Waker>) {
        for (_, waiter) in &mut self.waiters {
            waiter.pending_after.get_or_insert(after);
            woken.extend(waiter.waker.take());
        }
    }

    /// Wakes those who are parked, though nothing new concerns them.
    pub(super) fn wake_parked(&mut self, woken: &mut Vec<Waker>) {
        woken.extend(self.waiters.iter_mut().filter_map(|(_, waiter)| waiter.waker.take()));
    }

    /// Wakes these, as far as they are parked.
    pub(super) fn wake(&mut self, ids: impl IntoIterator<Item = WaiterId>, woken: &mut Vec<Waker>) {
        woken.extend(ids.into_iter().filter_map(|id| self.waiters.get_mut(id)?.waker.take()));
    }

    fn mark(waiters: &mut Slab<Waiter>, id: WaiterId, after: Position, woken: &mut Vec<Waker>) {
        if let Some(waiter) = waiters.get_mut(id) {
            waiter.pending_after.get_or_insert(after);
            woken.extend(waiter.waker.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_tree_agrees_with_the_patterns(
            patterns in prop::collection::vec("([ab]|\\*)(/([ab]|\\*)){0,3}(/\\*\\*)?|\\*\\*", 1..8),
            topics in prop::collection::vec("[ab](/[ab]){0,4}", 1..8),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        ) {
            let mut tree = Node::default();
            let mut live: Vec<(WaiterId, TopicPattern)> =
                patterns.iter().map(|text| TopicPattern::new(text).unwrap()).enumerate().collect();
            for (id, pattern) in &live {
                tree.insert(pattern.as_str(), *id);
            }
            for index in removed {
                if !live.is_empty() {
                    let (id, pattern) = live.remove(index.index(live.len()));
                    tree.remove(pattern.as_str().split('/'), id);
                }
            }
            for topic in &topics {
                let mut found = Vec::new();
                tree.find(topic.split('/'), &mut found);
                found.sort_unstable();
                let topic = Topic::new(topic).unwrap();
                let expected: Vec<WaiterId> =
                    live.iter().filter(|(_, pattern)| pattern.matches(&topic)).map(|(id, _)| *id).collect();
                prop_assert_eq!(found, expected);
            }
            for (id, pattern) in live {
                tree.remove(pattern.as_str().split('/'), id);
            }
            prop_assert!(tree.is_empty());
        }
    }
}
