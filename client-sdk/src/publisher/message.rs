//! What is published inside a transaction, checked before the transaction hears of it.
//!
//! A statement that fails makes Postgres refuse all that follows in its transaction. So whatever can be known to fail is
//! found here, where it costs the caller nothing but the call.

use std::error::Error as StdError;

use serde::Serialize;
use walcast_wire::{Topic, TopicError, encode_segment};

/// The most bytes that the data of an event has where `router.event_bytes_max` is left as it is: 1 MiB. What is larger
/// is published, but brokers tell it without its data.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use walcast_client::publisher::{EVENT_BYTES_MAX, Message};
///
/// assert!(Message::new("logs/host-17", &"x".repeat(EVENT_BYTES_MAX)).is_err());
/// # Ok(())
/// # }
/// ```
pub const EVENT_BYTES_MAX: usize = 1 << 20;
/// A longer number than Postgres stores begins a little above.
const EXPONENT_MAX: usize = 100_000;

/// Why nothing was published.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use walcast_client::publisher::{Message, PublishError};
///
/// let error = Message::new("vm/*", "start").unwrap_err();
/// assert!(matches!(error, PublishError::Topic { .. }));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// It breaks the rules of topics; nothing was sent.
    #[error("{text:?} is no topic: {source}")]
    Topic {
        /// As given.
        text: String,
        /// The rule.
        source: TopicError,
    },
    /// It cannot be a channel, or the payload cannot be a text of Postgres; nothing was sent.
    #[error("{text:?} cannot be notified: {reason}")]
    Channel {
        /// The channel as given.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Brokers would leave the data out; nothing was sent.
    #[error(
        "the data for {topic} has {bytes} bytes, at most {bytes_max} are delivered: publish where it is kept, or raise \
         `router.event_bytes_max` and the limit here"
    )]
    TooLarge {
        /// Where it was to be published.
        topic: Topic,
        /// Its size as Postgres writes it.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// It cannot be written as JSON; nothing was sent.
    #[error("the data for {topic} cannot be written as JSON: {source}")]
    NotJson {
        /// Where it was to be published.
        topic: Topic,
        /// Why not.
        source: serde_json::Error,
    },
    /// It is JSON, but none that `jsonb` can hold; nothing was sent.
    #[error("the data for {topic} cannot be stored by Postgres: {reason}")]
    NotStorable {
        /// Where it was to be published.
        topic: Topic,
        /// What is in the way.
        reason: &'static str,
    },
    /// The database has no schema `walcast`, or an older one (42883, 3F000). The transaction is spoiled.
    #[error("walcast is not set up in this database ({message}): run `walcast setup` there")]
    NotSetUp {
        /// As Postgres says it.
        message: String,
        /// The client's error.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The role may not publish (42501). The transaction is spoiled.
    #[error("this role may not publish ({message}): run `walcast setup --publisher ROLE` for it")]
    NotAllowed {
        /// As Postgres says it.
        message: String,
        /// The client's error.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// Anything else of Postgres, or of the way to it. The transaction is spoiled or lost.
    #[error("publishing failed: {message}")]
    Database {
        /// The SQLSTATE, where Postgres answered; 40001 and 40P01 ask for the transaction to be tried again.
        code: Option<String>,
        /// What was said.
        message: String,
        /// The client's error.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl PublishError {
    /// Whether the transaction heard nothing of it, and may go on.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let error = walcast_client::publisher::Message::new("vm/*", "start").unwrap_err();
    /// assert!(error.nothing_was_sent());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn nothing_was_sent(&self) -> bool {
        !matches!(self, Self::NotSetUp { .. } | Self::NotAllowed { .. } | Self::Database { .. })
    }

    /// Sorts what the database answered by its SQLSTATE.
    pub(super) fn of(code: Option<&str>, message: String, source: Box<dyn StdError + Send + Sync>) -> Self {
        match code {
            Some("42883" | "3F000") => Self::NotSetUp { message, source },
            Some("42501") => Self::NotAllowed { message, source },
            _ => Self::Database { code: code.map(str::to_owned), message, source },
        }
    }
}

/// A message that was checked and may be published in a transaction.
///
/// ```
/// use serde_json::json;
/// use walcast_client::publisher::{Message, PublishError};
///
/// # fn main() -> Result<(), PublishError> {
/// let message = Message::new("jobs/done", &json!({"id": 7}))?;
/// // Where `router.event_bytes_max` was raised to 4 MiB.
/// let larger = Message::limited("jobs/done", &json!({"id": 7}), 4 << 20)?;
/// assert_eq!(message, larger);
/// let refused = Message::limited("jobs/done", &"x".repeat(64), 64).unwrap_err();
/// assert!(refused.nothing_was_sent());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Message(Kind);

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Publish { topic: Topic, json: String },
    Notify { channel: String, payload: String },
}

impl Message {
    /// `data` on `topic`, at most [`EVENT_BYTES_MAX`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::publisher::Message;
    ///
    /// let message = Message::new("vm/host-17", &serde_json::json!({"pin": 7}))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`PublishError::Topic`], [`PublishError::NotJson`], [`PublishError::TooLarge`], [`PublishError::NotStorable`].
    pub fn new<D: Serialize + ?Sized>(topic: impl AsRef<str>, data: &D) -> Result<Self, PublishError> {
        Self::limited(topic, data, EVENT_BYTES_MAX)
    }

    /// The same with at most `bytes_max` bytes of data, which is what brokers have as `router.event_bytes_max`.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::publisher::Message;
    ///
    /// // Where `router.event_bytes_max` is 4 MiB.
    /// let message = Message::limited("logs/host-17", &"x".repeat(2 << 20), 4 << 20)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn limited<D: Serialize + ?Sized>(
        topic: impl AsRef<str>,
        data: &D,
        bytes_max: usize,
    ) -> Result<Self, PublishError> {
        let text = topic.as_ref();
        let named = Topic::new(text);
        let topic = named.map_err(|source| PublishError::Topic { text: text.to_owned(), source })?;
        let json = match serde_json::to_string(data) {
            Ok(json) => json,
            Err(source) => return Err(PublishError::NotJson { topic, source }),
        };
        match stored_bytes(&json) {
            Err(reason) => Err(PublishError::NotStorable { topic, reason }),
            Ok(bytes) if bytes > bytes_max => Err(PublishError::TooLarge { topic, bytes, bytes_max }),
            Ok(_) => Ok(Self(Kind::Publish { topic, json })),
        }
    }

    /// What `pg_notify` would be told: the channel becomes one segment of a topic, the payload a JSON string of at most
    /// [`EVENT_BYTES_MAX`]. The same pair arrives once, however often a transaction sends it.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::publisher::Message;
    ///
    /// let message = Message::notification("vm_assigned", "host-17")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`PublishError::Channel`], [`PublishError::TooLarge`].
    pub fn notification(channel: &str, payload: &str) -> Result<Self, PublishError> {
        Self::notification_limited(channel, payload, EVENT_BYTES_MAX)
    }

    /// The same with at most `bytes_max` bytes, counted as a JSON string.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::publisher::Message;
    ///
    /// let message = Message::notification_limited("vm_assigned", "host-17", 4 << 20)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`notification`](Self::notification).
    pub fn notification_limited(
        channel: &str,
        payload: &str,
        bytes_max: usize,
    ) -> Result<Self, PublishError> {
        let refused = |reason| PublishError::Channel { text: channel.to_owned(), reason };
        if payload.contains('\0') || channel.contains('\0') {
            return Err(refused("no text of Postgres has a character with the code 0"));
        }
        let segment = encode_segment(channel);
        let topic = Topic::new(&segment).map_err(|error| match error {
            TopicError::Empty => refused("a channel has at least one character"),
            _ => refused(
                "as a topic it has more than 255 bytes; characters that topics forbid count three times",
            ),
        })?;
        let written = serde_json::to_string(payload);
        let written = written.map_err(|source| PublishError::NotJson { topic: topic.clone(), source })?;
        if written.len() > bytes_max {
            return Err(PublishError::TooLarge { topic, bytes: written.len(), bytes_max });
        }
        Ok(Self(Kind::Notify { channel: channel.to_owned(), payload: payload.to_owned() }))
    }

    /// The statement, which casts from text, so that Postgres parses the JSON and not a client library; and its two
    /// parameters.
    pub(super) fn statement(&self) -> (&'static str, [&str; 2]) {
        match &self.0 {
            Kind::Publish { topic, json } => {
                ("SELECT walcast.publish($1::text, $2::text::jsonb)", [topic.as_str(), json])
            }
            Kind::Notify { channel, payload } => {
                ("SELECT walcast.notify($1::text, $2::text)", [channel, payload])
            }
        }
    }
}

/// How many bytes `jsonb` makes of valid JSON when it is read again, or why it takes none of it: it writes a space behind
/// each comma and colon, and numbers without exponent.
fn stored_bytes(json: &str) -> Result<usize, &'static str> {
    let bytes = json.as_bytes();
    let (mut count, mut at) = (0, 0);
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => {
                let length = string_bytes(&bytes[at..])?;
                count += length + 1;
                at += length;
            }
            b',' | b':' => count += 2,
            b' ' | b'\t' | b'\r' | b'\n' => {}
            b'e' | b'E' if at > 1 && bytes[at - 2].is_ascii_digit() => {
                let digits =
                    bytes[at..].iter().take_while(|b| b.is_ascii_digit() || b"+-".contains(b)).count();
                let exponent =
                    json[at..at + digits].trim_start_matches(['+', '-']).parse().unwrap_or(usize::MAX);
                if exponent > EXPONENT_MAX {
                    return Err("it holds a number with too many digits");
                }
                count += exponent;
                at += digits;
            }
            _ => count += 1,
        }
    }
    Ok(count)
}

/// The length of a JSON string up to and with its closing quote.
fn string_bytes(bytes: &[u8]) -> Result<usize, &'static str> {
    let escape = |at: usize| {
        let hex = bytes.get(at..at + 6).filter(|six| six.starts_with(b"\\u"))?;
        u32::from_str_radix(std::str::from_utf8(&hex[2..]).ok()?, 16).ok()
    };
    let mut at = 0;
    loop {
        at += match bytes.get(at) {
            None => return Ok(at),
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => match escape(at) {
                None => 2,
                Some(0) => return Err("it holds a string with the character of code 0, \\u0000"),
                Some(0xD800..=0xDBFF) if matches!(escape(at + 6), Some(0xDC00..=0xDFFF)) => 12,
                Some(0xD800..=0xDFFF) => return Err("it holds a string with half a surrogate pair"),
                Some(_) => 6,
            },
            Some(_) => 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use serde::Serializer;
    use serde_json::json;
    use serde_json::value::RawValue;

    use super::*;

    #[test]
    fn data_counts_as_postgres_writes_it() {
        let check = |json: &str, expected: Result<usize, &str>| {
            let found = stored_bytes(json);
            match expected {
                Ok(bytes) => assert_eq!(found, Ok(bytes), "{json}"),
                Err(part) => assert!(found.unwrap_err().contains(part), "{json}"),
            }
        };
        check("null", Ok(4));
        check(r#"{"a":1,"b":[true,2]}"#, Ok(r#"{"a": 1, "b": [true, 2]}"#.len()));
        check(r#" { "a" : "x, y: \"z\\" } "#, Ok(r#"{"a": "x, y: \"z\\"}"#.len()));
        check(r#""\\u0000""#, Ok(9));
        check(r#""\ud83d\ude00""#, Ok(14));
        check("false", Ok(5));
        check("[1e300]", Ok(303));
        check(r#"["\u0000"]"#, Err("code 0"));
        check(r#"{"\u0000":1}"#, Err("code 0"));
        check(r#""\ud83d""#, Err("surrogate"));
        check(r#""\ude00x""#, Err("surrogate"));
        check("1e999999", Err("digits"));
    }

    #[test]
    fn what_is_too_large_is_refused_by_its_size_there() {
        let data = json!({"a": 1});
        assert!(Message::limited("a", &data, 8).is_ok());
        match Message::limited("a/b", &data, 7).unwrap_err() {
            PublishError::TooLarge { topic, bytes, bytes_max } => {
                assert_eq!((topic.as_str(), bytes, bytes_max), ("a/b", 8, 7));
            }
            other => panic!("{other}"),
        }
        assert!(Message::new("a", &"x".repeat(EVENT_BYTES_MAX - 2)).is_ok());
        let error = Message::new("a", &"x".repeat(EVENT_BYTES_MAX - 1)).unwrap_err().to_string();
        assert!(error.contains("1048577") && error.contains("router.event_bytes_max"), "{error}");
        assert!(Message::notification_limited("c", "12345", 7).is_ok());
        let error = Message::notification_limited("c", "12345\n", 7).unwrap_err();
        assert!(matches!(error, PublishError::TooLarge { bytes: 9, .. }), "{error}");
    }

    struct Broken;

    impl Serialize for Broken {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no"))
        }
    }

    #[test]
    fn what_would_fail_in_a_transaction_is_refused_before() {
        let check = |message: Result<Message, PublishError>, part: &str| {
            let error = message.unwrap_err();
            assert!(error.nothing_was_sent() && error.to_string().contains(part), "{error}");
        };
        check(Message::new("a//b", &1), "empty segment");
        check(Message::new("a", &Broken), "cannot be written as JSON: no");
        check(Message::new("a", "x\0"), "code 0");
        let raw = RawValue::from_string(r#""\ud800""#.to_owned()).unwrap();
        check(Message::new("a", &raw), "surrogate");
        check(Message::notification("", ""), "at least one character");
        check(Message::notification("c\0", ""), "code 0");
        check(Message::notification("c", "\0"), "code 0");
        check(Message::notification(&"ü ".repeat(52), ""), "255");
        assert!(Message::notification("my channel", "").is_ok());
    }

    #[test]
    fn answers_are_sorted_by_their_code() {
        let of = |code: Option<&str>| PublishError::of(code, "said".to_owned(), "said".into());
        assert!(matches!(of(Some("3F000")), PublishError::NotSetUp { .. }));
        assert!(of(Some("42883")).to_string().contains("walcast setup"));
        assert!(of(Some("42501")).to_string().contains("--publisher"));
        assert!(
            matches!(of(Some("40001")), PublishError::Database { code: Some(code), .. } if code == "40001")
        );
        assert!(!of(None).nothing_was_sent());
    }
}
