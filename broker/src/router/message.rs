//! The content of a message: a first line with the topic and optional `key=value` pairs, then the data.

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;
use walcast_wire::Topic;

use super::notice::Reason;

/// Messages of one transaction whose repetition is noticed. Beyond it repetitions arrive.
const ONCE_MAX: usize = 1_000_000;

/// What the set may keep from one transaction to the next.
const ONCE_KEPT: usize = 4096;

/// A parsed message.
#[derive(Debug, PartialEq)]
pub(super) struct Message {
    pub(super) topic: Topic,
    pub(super) data: Bytes,
    /// The data exceeded the limit; `data` is null.
    pub(super) too_large: bool,
    /// An identical one in the same transaction is the same event.
    pub(super) once: bool,
    /// Where the data begins in the content.
    pub(super) body: usize,
}

/// Parses a message's content.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(content: &Bytes, bytes_max: usize) -> Result<Message, Reason> {
    let end = content.iter().position(|byte| *byte == b'\n').ok_or(Reason::NoLineBreak)?;
    let head = std::str::from_utf8(&content[..end]).map_err(|_| Reason::BadTopic)?;
    let mut words = head.split(' ');
    let topic = Topic::new(words.next().unwrap_or_default()).map_err(|_| Reason::BadTopic)?;
    // Pairs that this version does not know are for later ones.
    let once = words.any(|pair| pair == "once=1");
    let body = end + 1;
    let json: &RawValue = serde_json::from_slice(&content[body..]).map_err(|_| Reason::NotJson)?;
    let json = json.get().as_bytes();
    if json.len() > bytes_max {
        return Ok(Message { topic, data: Bytes::from_static(b"null"), too_large: true, once, body });
    }
    let data = match one_line(json) {
        Cow::Borrowed(json) => content.slice_ref(json),
        Cow::Owned(json) => json.into(),
    };
    Ok(Message { topic, data, too_large: false, once, body })
}

/// JSON holds line breaks only between its tokens, where a space means the same.
fn one_line(json: &[u8]) -> Cow<'_, [u8]> {
    let breaks = |byte: &u8| matches!(byte, b'\n' | b'\r');
    if !json.iter().any(breaks) {
        return Cow::Borrowed(json);
    }
    Cow::Owned(json.iter().map(|byte| if breaks(byte) { b' ' } else { *byte }).collect())
}

/// The contents of messages that arrive once in a transaction.
#[derive(Debug, Default)]
pub(super) struct Once {
    seen: HashSet<u128>,
    hashers: [RandomState; 2],
}

impl Once {
    /// A transaction begins, or several that interleave.
    pub(super) fn clear(&mut self) {
        self.seen.clear();
        self.seen.shrink_to(ONCE_KEPT);
    }

    /// Whether this pair is new to the transaction.
    pub(super) fn first(&mut self, xid: u32, topic: &Topic, body: &[u8]) -> bool {
        let [high, low] =
            self.hashers.each_ref().map(|hasher| u128::from(hasher.hash_one((xid, topic, body))));
        let hash = (high << 64) | low;
        if self.seen.len() >= ONCE_MAX {
            return !self.seen.contains(&hash);
        }
        self.seen.insert(hash)
    }
}

/// Named in `omitted` when a message's data is left out.
pub(super) fn omitted() -> Box<[Arc<str>]> {
    Box::new(["data".into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_parse() {
        let check = |content: &'static str, expected: Result<(&str, &str, bool), Reason>| {
            let got = parse(&Bytes::from_static(content.as_bytes()), 20);
            let got = got.as_ref().map(|m| (m.topic.as_str(), std::str::from_utf8(&m.data).unwrap(), m.once));
            assert_eq!(got, expected.as_ref().copied(), "{content:?}");
        };
        check("a/b\n{\"x\": 1}", Ok(("a/b", "{\"x\": 1}", false)));
        check("a once=1\n1", Ok(("a", "1", true)));
        check("a later=2 once=1 more\n1", Ok(("a", "1", true)));
        check("a once=2\n1", Ok(("a", "1", false)));
        check("a\n{\"x\":\r\n1}", Ok(("a", "{\"x\":  1}", false)));
        check("a\n \"\\n\" \n", Ok(("a", "\"\\n\"", false)));
        check("a\n\"0123456789012345678\"", Ok(("a", "null", false)));
        check("a\n\"012345678901234567\"", Ok(("a", "\"012345678901234567\"", false)));
        check("a", Err(Reason::NoLineBreak));
        check("", Err(Reason::NoLineBreak));
        check("\n1", Err(Reason::BadTopic));
        check("a//b\n1", Err(Reason::BadTopic));
        check("a\n", Err(Reason::NotJson));
        check("a\n1 2", Err(Reason::NotJson));
        check("a\n{\"x\":\"\n\"}", Err(Reason::NotJson));
        assert_eq!(parse(&Bytes::from_static(b"\xff\n1"), 9), Err(Reason::BadTopic));
        assert_eq!(parse(&Bytes::from_static(b"a\n\"\xff\""), 9), Err(Reason::NotJson));
    }

    #[test]
    fn depth_is_no_danger() {
        let deep = format!("a\n{}{}", "[".repeat(500_000), "]".repeat(500_000));
        assert!(parse(&Bytes::from(deep), 2_000_000).is_ok());
    }

    #[test]
    fn once_is_per_transaction() {
        let (a, b) = (Topic::new("a").unwrap(), Topic::new("b").unwrap());
        let mut once = Once::default();
        assert!(once.first(7, &a, b"1"));
        assert!(!once.first(7, &a, b"1"));
        assert!(once.first(7, &a, b"2"));
        assert!(once.first(7, &b, b"1"));
        assert!(once.first(8, &a, b"1"), "another's, beside it");
        once.clear();
        assert!(once.first(7, &a, b"1"));
    }
}
