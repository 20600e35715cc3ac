//! Names of keys, and the texts by which Redis compares places.
//!
//! Lua's numbers merge above 2^53 and its strings compare by the locale of the server. So whatever is compared there
//! is digits, and as many of them as there can ever be.

use std::str::FromStr;

use walcast_wire::{Epoch, Position};

use crate::event::Fence;

/// Digits of the greatest number of 64 bits, and of 32.
const WIDE: usize = 20;
const NARROW: usize = 10;

/// The keys of a source. The braces make them all live in one slot of a cluster.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    base: String,
}

impl Keys {
    pub(super) fn new(source: &str) -> Self {
        Self { base: format!("walcast:{{{source}}}:") }
    }

    /// How far the log goes, and whose it is.
    pub(super) fn meta(&self) -> String {
        format!("{}meta", self.base)
    }

    /// The pages.
    pub(super) fn log(&self, epoch: Epoch) -> String {
        format!("{}{epoch}:log", self.base)
    }

    /// The current values.
    pub(super) fn state(&self, epoch: Epoch) -> String {
        format!("{}{epoch}:state", self.base)
    }

    /// Values that are to take the place of the current ones.
    pub(super) fn new_state(&self, epoch: Epoch) -> String {
        format!("{}{epoch}:state:new", self.base)
    }

    /// The ids of all nodes that say who waits there.
    pub(super) fn nodes(&self) -> String {
        format!("{}nodes", self.base)
    }

    /// What the node of this id says.
    pub(super) fn node(&self, id: &str) -> String {
        format!("{}node:{id}", self.base)
    }

    /// What channels begin with; the topic follows.
    pub(super) fn channels(&self) -> &str {
        &self.base
    }
}

/// A position as two numbers of equal width.
pub(super) fn wide(position: Position) -> String {
    let Position { major, ordinal } = position;
    format!("{major:0WIDE$}-{ordinal:0WIDE$}")
}

/// Reads [`wide`].
pub(super) fn read_wide(text: &str) -> Option<Position> {
    let (major, ordinal) = text.split_once('-')?;
    Some(Position::new(number(major, WIDE)?, number(ordinal, WIDE)?))
}

/// A position as the id of an entry.
pub(super) fn id(position: Position) -> String {
    format!("{}-{}", position.major, position.ordinal)
}

/// Reads [`id`].
pub(super) fn read_id(text: &str) -> Option<Position> {
    let (major, ordinal) = text.split_once('-')?;
    Some(Position::new(major.parse().ok()?, ordinal.parse().ok()?))
}

/// Reads 16 hexadecimal digits.
pub(super) fn read_epoch(text: &str) -> Option<Epoch> {
    let digits = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    digits.then(|| u64::from_str_radix(text, 16).ok().map(Epoch)).flatten()
}

/// Exactly so many digits.
fn number<T: FromStr>(text: &str, width: usize) -> Option<T> {
    let digits = text.len() == width && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Reads the text of a [`Fence`].
pub(super) fn read_fence(text: &str) -> Option<Fence> {
    let (timeline, lsn) = text.split_once('-')?;
    Some(Fence { timeline: number(timeline, NARROW)?, lsn: number(lsn, WIDE)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_of_a_source_share_a_slot() {
        let keys = Keys::new("orders");
        assert_eq!(keys.meta(), "walcast:{orders}:meta");
        assert_eq!(keys.log(Epoch(0xAB)), "walcast:{orders}:00000000000000ab:log");
        assert_eq!(keys.state(Epoch(0xAB)), "walcast:{orders}:00000000000000ab:state");
        assert_eq!(keys.nodes(), "walcast:{orders}:nodes");
        assert_eq!(keys.node("1f"), "walcast:{orders}:node:1f");
        assert_eq!(keys.channels(), "walcast:{orders}:");
    }

    #[test]
    fn what_is_not_of_full_width_is_refused() {
        for text in ["", "-", "1-2", "0000000000000000001-00000000000000000002", "99999999999999999999-1"] {
            assert_eq!(read_wide(text), None, "{text}");
        }
        assert_eq!(read_wide("99999999999999999999-00000000000000000001"), None, "beyond 64 bits");
        assert_eq!(read_wide("+0000000000000000001-00000000000000000001"), None, "a sign");
        assert_eq!(read_fence("0000000001-00000000000000000007"), Some(Fence::new(1, 7)));
        assert_eq!(read_fence("1-7"), None);
        assert_eq!(read_epoch("00000000000000ab"), Some(Epoch(0xAB)));
        assert_eq!(read_epoch("00000000000000AB"), None);
        assert_eq!(read_epoch("ab"), None);
    }

    fn edge() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), Just(1 << 53), Just((1 << 53) + 1), Just(u64::MAX), any::<u64>()]
    }

    proptest! {
        #[test]
        fn texts_compare_as_what_they_say(a in (edge(), edge()), b in (edge(), edge()), t: u32, u: u32) {
            let (x, y) = (Position::new(a.0, a.1), Position::new(b.0, b.1));
            prop_assert_eq!(wide(x).cmp(&wide(y)), x.cmp(&y));
            prop_assert_eq!(read_wide(&wide(x)), Some(x));
            prop_assert_eq!(read_id(&id(x)), Some(x));
            let (x, y) = (Fence::new(t, a.0), Fence::new(u, b.0));
            prop_assert_eq!(x.to_string().cmp(&y.to_string()), x.cmp(&y));
            prop_assert_eq!(read_fence(&x.to_string()), Some(x));
        }
    }
}
