//! What lies there until its counterpart comes: found by what it says, and by age.
//!
//! Payloads themselves are not kept: a hash, the length, and a sample for people.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::time::Duration;

/// So much of a payload is shown, in characters.
const SAMPLE_MAX: usize = 80;

/// By which way something came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    /// To a session that listens.
    Listen,
    /// To a client of the broker.
    Walcast,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Listen => Self::Walcast,
            Self::Walcast => Self::Listen,
        }
    }
}

/// What stands for a payload: two hashes with keys of this process, and the length.
pub(super) type Key = (u64, u64, usize);

/// Makes keys.
#[derive(Debug, Default)]
pub(super) struct Keys(RandomState, RandomState);

impl Keys {
    pub(super) fn of(&self, payload: &str) -> Key {
        (self.0.hash_one(payload), self.1.hash_one(payload), payload.len())
    }
}

/// Something that came, and whose counterpart did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) side: Side,
    pub(super) key: Key,
    /// When it came, since the beginning.
    pub(super) at: Duration,
    /// Where it was committed, in the server's log, if that is known.
    pub(super) lsn: Option<u64>,
    /// The beginning of the payload.
    pub(super) sample: String,
}

/// The beginning of a payload, for people.
pub(super) fn sample(payload: &str) -> String {
    match payload.char_indices().nth(SAMPLE_MAX) {
        Some((end, _)) => format!("{}…", &payload[..end]),
        None => payload.to_owned(),
    }
}

/// Items, oldest first.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    items: BTreeMap<u64, Item>,
    by_key: HashMap<(Side, Key), VecDeque<u64>>,
    next: u64,
}

impl Shelf {
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Item> {
        self.items.values()
    }

    pub(super) fn put(&mut self, item: Item) {
        self.by_key.entry((item.side, item.key)).or_default().push_back(self.next);
        self.items.insert(self.next, item);
        self.next += 1;
    }

    /// Takes the oldest that came by `side` and says this.
    pub(super) fn take(&mut self, side: Side, key: Key) -> Option<Item> {
        let number = *self.by_key.get(&(side, key))?.front()?;
        self.remove(number)
    }

    pub(super) fn oldest(&self) -> Option<&Item> {
        self.items.first_key_value().map(|(_, item)| item)
    }

    pub(super) fn take_oldest(&mut self) -> Option<Item> {
        let number = *self.items.first_key_value()?.0;
        self.remove(number)
    }

    /// The oldest of all is the oldest of its key, so what is removed stands first there, too.
    fn remove(&mut self, number: u64) -> Option<Item> {
        let item = self.items.remove(&number)?;
        let name = (item.side, item.key);
        if let Some(numbers) = self.by_key.get_mut(&name) {
            numbers.pop_front();
            if numbers.is_empty() {
                self.by_key.remove(&name);
            }
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_what_was_taken() {
        let keys = Keys::default();
        let item = |payload: &str, at| Item {
            side: Side::Listen,
            key: keys.of(payload),
            at: Duration::from_secs(at),
            lsn: None,
            sample: sample(payload),
        };
        let mut shelf = Shelf::default();
        for (payload, at) in [("a", 1), ("b", 2), ("a", 3)] {
            shelf.put(item(payload, at));
        }
        assert_eq!(shelf.take(Side::Walcast, keys.of("a")), None);
        assert_eq!(shelf.take(Side::Listen, keys.of("a")), Some(item("a", 1)));
        assert_eq!(shelf.take_oldest(), Some(item("b", 2)));
        assert_eq!(shelf.take_oldest(), Some(item("a", 3)));
        assert_eq!((shelf.take_oldest(), shelf.len(), shelf.by_key.len()), (None, 0, 0));
    }

    #[test]
    fn a_sample_is_short() {
        assert_eq!(sample("ü"), "ü");
        assert_eq!(sample(&"ü".repeat(81)), "ü".repeat(80) + "…");
    }
}
