//! Topic names, patterns over them, and the encoding that makes any text one segment.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest topic, in bytes of UTF-8.
pub const TOPIC_BYTES_MAX: usize = 255;

/// The name that events are published to and waited for by: 1–255 bytes of UTF-8, segments split by
/// `/`. No segment is empty, `.` or `..`; no control characters, no white space, none of `* # + ?`, and
/// `%` only where it starts an encoded byte (`%2F`, upper-case digits). Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

/// Why a text is no topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicError {
    /// Nothing at all.
    Empty,
    /// Longer than [`TOPIC_BYTES_MAX`].
    TooLong,
    /// Two slashes in a row, or one at an end.
    EmptySegment,
    /// A segment `.` or `..`, which proxies resolve.
    DotSegment,
    /// A character that topics forbid.
    Forbidden(char),
    /// `%` without two upper-case hexadecimal digits after it.
    BadEncoding,
    /// `**` anywhere but as the last segment of a pattern.
    MisplacedRest,
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a topic has at least one character"),
            Self::TooLong => write!(f, "a topic has at most {TOPIC_BYTES_MAX} bytes"),
            Self::EmptySegment => f.write_str("a topic has no empty segment"),
            Self::DotSegment => f.write_str("a topic has no segment `.` or `..`"),
            Self::Forbidden('*') => f.write_str(
                "a topic has no '*', which stands for a whole segment of a pattern, as in `vm/*`; percent-encode it",
            ),
            Self::Forbidden(c) => write!(f, "a topic has no {c:?}; percent-encode it"),
            Self::BadEncoding => {
                f.write_str("`%` in a topic is followed by two upper-case hexadecimal digits")
            }
            Self::MisplacedRest => f.write_str("`**` stands only as the last segment of a pattern"),
        }
    }
}

impl std::error::Error for TopicError {}

/// Whether topics forbid `c` everywhere (the slash, which splits them, is not among these).
fn forbidden(c: char) -> bool {
    c.is_control() || c.is_whitespace() || matches!(c, '*' | '#' | '+' | '?')
}

fn check_segment(segment: &str) -> Result<(), TopicError> {
    match segment {
        "" => return Err(TopicError::EmptySegment),
        "." | ".." => return Err(TopicError::DotSegment),
        _ => {}
    }
    if let Some(c) = segment.chars().find(|c| forbidden(*c)) {
        return Err(TopicError::Forbidden(c));
    }
    let upper_hex = |b: &u8| b.is_ascii_digit() || (b'A'..=b'F').contains(b);
    for part in segment.split('%').skip(1) {
        if !part.as_bytes().get(..2).is_some_and(|two| two.iter().all(upper_hex)) {
            return Err(TopicError::BadEncoding);
        }
    }
    Ok(())
}

fn check_length(text: &str) -> Result<(), TopicError> {
    match text.len() {
        0 => Err(TopicError::Empty),
        1..=TOPIC_BYTES_MAX => Ok(()),
        _ => Err(TopicError::TooLong),
    }
}

impl Topic {
    /// Checks `text` and takes it as a topic.
    ///
    /// # Errors
    /// The first rule that `text` breaks.
    pub fn new(text: &str) -> Result<Self, TopicError> {
        check_length(text)?;
        text.split('/').try_for_each(check_segment)?;
        Ok(Self(text.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Topic {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for TopicPattern {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Topic {
    type Err = TopicError;
    fn from_str(text: &str) -> Result<Self, TopicError> {
        Self::new(text)
    }
}

impl Serialize for Topic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Topic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&Cow::<'de, str>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// What a client asks for: a topic, or a topic in which `*` stands for one segment and a final `**` for
/// one or more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPattern(Arc<str>);

impl TopicPattern {
    /// Checks `text` and takes it as a pattern.
    ///
    /// # Errors
    /// The first rule that `text` breaks.
    pub fn new(text: &str) -> Result<Self, TopicError> {
        check_length(text)?;
        let mut segments = text.split('/').peekable();
        while let Some(segment) = segments.next() {
            match segment {
                "*" => {}
                "**" if segments.peek().is_none() => {}
                "**" => return Err(TopicError::MisplacedRest),
                other => check_segment(other)?,
            }
        }
        Ok(Self(text.into()))
    }

    /// Names every topic.
    #[must_use]
    pub fn everything() -> Self {
        Self("**".into())
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The single topic this pattern names, if it has no wildcard.
    #[must_use]
    pub fn as_topic(&self) -> Option<Topic> {
        (!self.0.contains('*')).then(|| Topic(Arc::clone(&self.0)))
    }

    /// Whether `topic` is asked for.
    #[must_use]
    pub fn matches(&self, topic: &Topic) -> bool {
        let (mut pattern, mut name) = (self.0.split('/'), topic.0.split('/'));
        loop {
            match (pattern.next(), name.next()) {
                (Some("**"), Some(_)) | (None, None) => return true,
                (Some("*"), Some(_)) => {}
                (Some(a), Some(b)) if a == b => {}
                _ => return false,
            }
        }
    }

    /// Whether all that `other` asks for is asked for by this one, too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let (mut own, mut other) = (self.0.split('/'), other.0.split('/'));
        loop {
            match (own.next(), other.next()) {
                (Some("**"), Some(_)) | (None, None) => return true,
                (_, Some("**")) => return false,
                (Some("*"), Some(_)) => {}
                (Some(a), Some(b)) if a == b => {}
                _ => return false,
            }
        }
    }

    /// Whether some topic is asked for by both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut a, mut b) = (self.0.split('/'), other.0.split('/'));
        loop {
            match (a.next(), b.next()) {
                (Some("**"), Some(_)) | (Some(_), Some("**")) | (None, None) => return true,
                (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
                (Some(a), Some(b)) if a == b => {}
                _ => return false,
            }
        }
    }
}

impl From<Topic> for TopicPattern {
    fn from(topic: Topic) -> Self {
        Self(topic.0)
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TopicPattern {
    type Err = TopicError;
    fn from_str(text: &str) -> Result<Self, TopicError> {
        Self::new(text)
    }
}

impl Serialize for TopicPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TopicPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&Cow::<'de, str>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Makes any non-empty text one topic segment: what topics forbid, `/` and `%` become `%XX` per byte of
/// UTF-8, and the segments `.` and `..` are written `%2E` and `%2E%2E`. Distinct texts stay distinct.
#[must_use]
pub fn encode_segment(text: &str) -> Cow<'_, str> {
    let encode = |c: char| forbidden(c) || matches!(c, '/' | '%');
    match text {
        "." => return Cow::Borrowed("%2E"),
        ".." => return Cow::Borrowed("%2E%2E"),
        _ if !text.chars().any(encode) => return Cow::Borrowed(text),
        _ => {}
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if encode(c) {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                let _ = fmt::Write::write_fmt(&mut out, format_args!("%{byte:02X}"));
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn topics() {
        let check = |text: &str, expected: Result<(), TopicError>| {
            assert_eq!(Topic::new(text).map(|_| ()), expected, "{text:?}");
        };
        check("vm/host-17", Ok(()));
        check("größe/日本", Ok(()));
        check("a%2Fb", Ok(()));
        check(&"x".repeat(255), Ok(()));
        check("", Err(TopicError::Empty));
        check(&"x".repeat(256), Err(TopicError::TooLong));
        check("/a", Err(TopicError::EmptySegment));
        check("a//b", Err(TopicError::EmptySegment));
        check("a/", Err(TopicError::EmptySegment));
        check("a/../b", Err(TopicError::DotSegment));
        check("a b", Err(TopicError::Forbidden(' ')));
        check("a\u{a0}b", Err(TopicError::Forbidden('\u{a0}')));
        check("a\nb", Err(TopicError::Forbidden('\n')));
        check("a\0", Err(TopicError::Forbidden('\0')));
        check("a/*", Err(TopicError::Forbidden('*')));
        check("a%2f", Err(TopicError::BadEncoding));
        check("a%", Err(TopicError::BadEncoding));
        check("a%é", Err(TopicError::BadEncoding));
    }

    #[test]
    fn patterns() {
        let check = |pattern: &str, topic: &str, expected: bool| {
            let pattern: TopicPattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(&topic.parse().unwrap()), expected, "{pattern} {topic}");
        };
        check("vm/*", "vm/a", true);
        check("vm/*", "vm", false);
        check("vm/*", "vm/a/b", false);
        check("*/a", "vm/a", true);
        check("vm/**", "vm/a/b", true);
        check("vm/**", "vm", false);
        check("**", "vm", true);
        check("vm/a", "vm/a", true);
        check("vm/a", "vm/ab", false);
        assert_eq!(TopicPattern::new("**/a"), Err(TopicError::MisplacedRest));
        assert_eq!(TopicPattern::new("a*/b"), Err(TopicError::Forbidden('*')));
        assert_eq!(TopicPattern::new("a/*").unwrap().as_topic(), None);
    }

    #[test]
    fn patterns_overlap() {
        let check = |a: &str, b: &str, expected: bool| {
            let (left, right): (TopicPattern, TopicPattern) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!((left.overlaps(&right), right.overlaps(&left)), (expected, expected), "{a} {b}");
        };
        check("vm/a", "vm/a", true);
        check("vm/a", "vm/b", false);
        check("vm/*", "*/a", true);
        check("vm/*", "vm", false);
        check("vm/*/x", "vm/**", true);
        check("vm/**", "vm", false);
        check("vm/**", "host/**", false);
        check("**", "vm", true);
    }

    #[test]
    fn patterns_cover() {
        let check = |a: &str, b: &str, expected: bool| {
            let (own, other): (TopicPattern, TopicPattern) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(own.covers(&other), expected, "{a} {b}");
        };
        check("vm/a", "vm/a", true);
        check("vm/a", "vm/*", false);
        check("vm/*", "vm/a", true);
        check("vm/*", "vm/*", true);
        check("vm/*", "vm/**", false);
        check("vm/*", "*/a", false);
        check("vm/**", "vm/*/x", true);
        check("vm/**", "vm/**", true);
        check("vm/**", "vm", false);
        check("vm/a/**", "vm/**", false);
        check("**", "**", true);
    }

    #[test]
    fn segments_are_encoded() {
        let check = |text: &str, expected: &str| assert_eq!(encode_segment(text), expected);
        check("host-17", "host-17");
        check("a/b c%", "a%2Fb%20c%25");
        check("..", "%2E%2E");
        check("é", "é");
        check("\u{2028}", "%E2%80%A8");
    }

    proptest! {
        #[test]
        fn who_covers_a_pattern_matches_what_it_matches(
            own in "([ab]|\\*)(/([ab]|\\*)){0,2}(/\\*\\*)?|\\*\\*",
            other in "([ab]|\\*)(/([ab]|\\*)){0,2}(/\\*\\*)?|\\*\\*",
            topics in prop::collection::vec("[abc](/[abc]){0,4}", 1..40),
        ) {
            let (own, other): (TopicPattern, TopicPattern) = (own.parse().unwrap(), other.parse().unwrap());
            let topics = topics.iter().map(|topic| Topic::new(topic).unwrap());
            let outside = topics.filter(|topic| other.matches(topic)).find(|topic| !own.matches(topic));
            prop_assert!(!own.covers(&other) || outside.is_none(), "{own} {other} {outside:?}");
        }

        #[test]
        fn any_text_becomes_one_segment(text in ".{1,40}") {
            let encoded = encode_segment(&text);
            prop_assert!(!encoded.contains('/'));
            if encoded.len() <= TOPIC_BYTES_MAX {
                prop_assert!(Topic::new(&encoded).is_ok(), "{}", encoded);
            }
        }

        #[test]
        fn patterns_agree_with_a_naive_matcher(
            pattern in "([ab]|\\*)(/([ab]|\\*)){0,3}(/\\*\\*)?", topic in "[ab](/[ab]){0,4}"
        ) {
            fn naive(pattern: &[&str], topic: &[&str]) -> bool {
                match (pattern, topic) {
                    ([], []) => true,
                    (["**"], rest) => !rest.is_empty(),
                    ([p, ps @ ..], [t, ts @ ..]) => (*p == "*" || p == t) && naive(ps, ts),
                    _ => false,
                }
            }
            let split = |text: &'static str| text.split('/').collect::<Vec<_>>();
            let (p, t): (&'static str, &'static str) = (pattern.clone().leak(), topic.clone().leak());
            prop_assert_eq!(
                TopicPattern::new(&pattern).unwrap().matches(&Topic::new(&topic).unwrap()),
                naive(&split(p), &split(t))
            );
        }
    }
}
