//! Positions on a source's number line, and the cursor that carries one over the wire.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A place in a source's number line, ordered.
///
/// For the WAL `major` is a commit's log sequence number (LSN) and `ordinal` counts the raw records of
/// that transaction from 1. A position made from an LSN alone has ordinal 0 and lies before the
/// transaction that commits there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Commit LSN (WAL) or tick (outbox).
    pub major: u64,
    /// Number of the raw record in the transaction, from 1; 0 before all of them.
    pub ordinal: u64,
}

impl Position {
    /// Before everything. As a cursor: that of a client that has seen nothing.
    pub const ZERO: Self = Self { major: 0, ordinal: 0 };
    /// Behind everything.
    pub const MAX: Self = Self { major: u64::MAX, ordinal: u64::MAX };

    /// The position of a record in a transaction.
    #[must_use]
    pub const fn new(major: u64, ordinal: u64) -> Self {
        Self { major, ordinal }
    }

    /// The position before the first record of a transaction that commits at `lsn`.
    #[must_use]
    pub const fn before(lsn: u64) -> Self {
        Self { major: lsn, ordinal: 0 }
    }

    /// The greatest position smaller than this one; `ZERO` stays.
    #[must_use]
    pub const fn predecessor(self) -> Self {
        match (self.major, self.ordinal) {
            (0, 0) => self,
            (major, 0) => Self { major: major - 1, ordinal: u64::MAX },
            (major, ordinal) => Self { major, ordinal: ordinal - 1 },
        }
    }
}

impl fmt::Display for Position {
    /// Written as Postgres writes an LSN, then the ordinal: `16/B374D848:3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}:{}", self.major >> 32, self.major & 0xFFFF_FFFF, self.ordinal)
    }
}

/// Names a number line; positions of different epochs cannot be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Hashes the parts that identify a number line (FNV-1a over length-prefixed parts, 64 bits).
    ///
    /// The function is fixed for ever: clients hold its result across broker versions.
    #[must_use]
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut byte = |b: u8| hash = (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        for part in parts {
            (part.len() as u64).to_be_bytes().into_iter().for_each(&mut byte);
            part.bytes().for_each(&mut byte);
        }
        Self(hash)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a client keeps and presents to go on: an epoch and a position.
///
/// On the wire it is an opaque, URL-safe string of [`Cursor::WIDTH`] characters. Strings of one epoch
/// sort as their positions do. Clients must not look inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The number line.
    pub epoch: Epoch,
    /// The place on it.
    pub position: Position,
}

/// The version of the wire form; also keeps a cursor from starting with a hyphen.
const VERSION: u8 = b'1';
/// In ASCII order, so that encoded strings sort as the bytes do.
const ALPHABET: &[u8; 64] = b"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz";

impl Cursor {
    /// Length of the wire form in bytes.
    pub const WIDTH: usize = 33;

    /// A cursor at `position` in `epoch`.
    #[must_use]
    pub const fn new(epoch: Epoch, position: Position) -> Self {
        Self { epoch, position }
    }

    /// The wire form as ASCII bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::WIDTH] {
        let mut raw = [0_u8; 24];
        raw[..8].copy_from_slice(&self.epoch.0.to_be_bytes());
        raw[8..16].copy_from_slice(&self.position.major.to_be_bytes());
        raw[16..].copy_from_slice(&self.position.ordinal.to_be_bytes());
        let mut out = [VERSION; Self::WIDTH];
        for (three, four) in raw.chunks_exact(3).zip(out[1..].chunks_exact_mut(4)) {
            let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
            for (i, slot) in four.iter_mut().enumerate() {
                *slot = ALPHABET[(bits >> (18 - 6 * i) & 63) as usize];
            }
        }
        out
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.encode() {
            fmt::Write::write_char(f, char::from(byte))?;
        }
        Ok(())
    }
}

/// The text is no cursor of this protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorError;

impl fmt::Display for CursorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a cursor: present one exactly as the broker gave it ({} characters)", Cursor::WIDTH)
    }
}

impl std::error::Error for CursorError {}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let text = text.as_bytes();
        if text.len() != Self::WIDTH || text[0] != VERSION {
            return Err(CursorError);
        }
        let mut raw = [0_u8; 24];
        for (four, three) in text[1..].chunks_exact(4).zip(raw.chunks_exact_mut(3)) {
            let mut bits = 0_u32;
            for byte in four {
                let digit = ALPHABET.binary_search(byte).map_err(|_| CursorError)?;
                bits = bits << 6 | digit as u32;
            }
            three.copy_from_slice(&bits.to_be_bytes()[1..]);
        }
        let number =
            |i: usize| raw[i..i + 8].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        Ok(Self { epoch: Epoch(number(0)), position: Position::new(number(8), number(16)) })
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position() -> impl Strategy<Value = Position> {
        let edges = prop_oneof![
            Just(0),
            Just(u64::from(u32::MAX)),
            Just(u64::from(u32::MAX) + 1),
            Just(i64::MAX as u64),
            Just(i64::MAX as u64 + 1),
            Just(u64::MAX),
            any::<u64>()
        ];
        (edges.clone(), edges).prop_map(|(major, ordinal)| Position { major, ordinal })
    }

    proptest! {
        #[test]
        fn a_cursor_survives_the_wire(epoch: u64, position in position()) {
            let cursor = Cursor::new(Epoch(epoch), position);
            let text = cursor.to_string();
            prop_assert_eq!(text.len(), Cursor::WIDTH);
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(text.parse(), Ok(cursor));
        }

        #[test]
        fn strings_sort_as_positions(epoch: u64, a in position(), b in position()) {
            let (x, y) = (Cursor::new(Epoch(epoch), a), Cursor::new(Epoch(epoch), b));
            prop_assert_eq!(x.to_string().cmp(&y.to_string()), a.cmp(&b));
        }

        #[test]
        fn foreign_text_is_refused_or_means_itself(text in "[ -~]{0,40}|1[-0-9A-Z_a-z]{32}") {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }

        #[test]
        fn a_predecessor_is_next_below(p in position()) {
            let before = p.predecessor();
            prop_assert!(p == Position::ZERO || before < p);
            if before.ordinal < u64::MAX {
                prop_assert!(p == Position::ZERO || Position::new(before.major, before.ordinal + 1) == p);
            }
        }
    }

    #[test]
    fn epochs_differ_when_parts_move() {
        assert_ne!(Epoch::of(["ab", "c"]), Epoch::of(["a", "bc"]));
        // Pinned: a change here would reset every client in the field.
        assert_eq!(Epoch::of(["walcast"]).to_string(), Epoch::of(["walcast"]).to_string());
    }
}
