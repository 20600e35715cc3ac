//! Query strings, strictly: every parameter is known, well-formed UTF-8, and in range.
//!
//! Lenient decoders turn what they do not understand into something else, and a client would wait on a
//! topic that nobody publishes.

use std::borrow::Cow;
use std::time::Duration;

use walcast_wire::{Cursor, ProblemCode, TopicPattern};

use super::Config;
use super::problem::Refusal;
use crate::hub::From as Start;

/// Longest `client` name, in characters.
const CLIENT_CHARS_MAX: usize = 128;
/// Most events in one answer.
const LIMIT_MAX: usize = 1000;
const LIMIT_DEFAULT: usize = 100;

/// What a wait asks for.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) topics: Vec<TopicPattern>,
    pub(crate) after: Option<After>,
    pub(crate) wait: Option<Duration>,
    pub(crate) limit: usize,
    /// How the client calls itself.
    pub(crate) client: Option<Box<str>>,
}

/// Where a client wants to go on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum After {
    Now,
    Earliest,
    Cursor(Cursor),
}

impl After {
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        match text {
            "now" => Ok(Self::Now),
            "earliest" => Ok(Self::Earliest),
            other => other.parse().map(Self::Cursor).map_err(|error| {
                Refusal::new(ProblemCode::BadCursor, format!("`after` is {error}, or `now` or `earliest`"))
            }),
        }
    }

    /// What the hub calls it; without `after` current values come first.
    pub(crate) fn start(after: Option<Self>) -> Start {
        match after {
            None => Start::Current,
            Some(Self::Now) => Start::Now,
            Some(Self::Earliest) => Start::Earliest,
            Some(Self::Cursor(cursor)) => Start::After(cursor),
        }
    }
}

impl Ask {
    /// Reads `query`, in which only the parameters in `known` may stand.
    pub(crate) fn parse(query: Option<&str>, known: &[&str], config: &Config) -> Result<Self, Refusal> {
        let mut ask =
            Self { topics: Vec::new(), after: None, wait: None, limit: LIMIT_DEFAULT, client: None };
        let mut seen: Vec<&str> = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name, true)?;
            let Some(name) = known.iter().find(|known| **known == name) else {
                return Err(Refusal::parameter(match known {
                    [] => format!("unknown parameter {name:?}; this call takes none"),
                    _ => format!("unknown parameter {name:?}; this call takes {}", known.join(", ")),
                }));
            };
            if *name != "topic" && seen.contains(name) {
                return Err(Refusal::parameter(format!("`{name}` stands twice")));
            }
            seen.push(name);
            ask.set(name, &decode(value, true)?, config)?;
        }
        Ok(ask)
    }

    fn set(&mut self, name: &str, value: &str, config: &Config) -> Result<(), Refusal> {
        match name {
            "topic" => {
                if self.topics.len() == config.topics_max {
                    let max = config.topics_max;
                    return Err(Refusal::parameter(format!("more than {max} topics; use a pattern")));
                }
                let topic = TopicPattern::new(value)
                    .map_err(|error| Refusal::new(ProblemCode::BadTopic, format!("{value:?}: {error}")))?;
                if !self.topics.contains(&topic) {
                    self.topics.push(topic);
                }
            }
            "after" => self.after = Some(After::parse(value)?),
            "wait" => self.wait = Some(duration(value, config.wait_max)?),
            "limit" => {
                self.limit =
                    value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit)).ok_or_else(|| {
                        Refusal::parameter(format!("`limit` is a number from 1 to {LIMIT_MAX}"))
                    })?;
            }
            "client" => {
                if !names_client(value) {
                    return Err(Refusal::parameter(format!(
                        "`client` has 1 to {CLIENT_CHARS_MAX} characters, none of them control characters"
                    )));
                }
                self.client = Some(value.into());
            }
            _ => return Err(Refusal::parameter(format!("unknown parameter {name:?}"))),
        }
        Ok(())
    }
}

/// Whether a client may be called so.
pub(crate) fn names_client(name: &str) -> bool {
    (1..=CLIENT_CHARS_MAX).contains(&name.chars().count()) && !name.chars().any(char::is_control)
}

fn duration(text: &str, max: Duration) -> Result<Duration, Refusal> {
    let wait = match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    wait.filter(|wait| *wait <= max).ok_or_else(|| {
        let max = humantime::format_duration(max);
        Refusal::parameter(format!("`wait` is a number of seconds, or like `50s` or `2m`, and at most {max}"))
    })
}

/// Decodes `%XX` once, and `+` in a query. What is not UTF-8 then is refused.
pub(crate) fn decode(text: &str, plus: bool) -> Result<Cow<'_, str>, Refusal> {
    let encoded = |byte| byte == b'%' || plus && byte == b'+';
    if !text.bytes().any(encoded) {
        return Ok(Cow::Borrowed(text));
    }
    let bad = || Refusal::parameter("`%` in a URL is followed by two hexadecimal digits, of UTF-8");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16).map(|digit| digit as u8);
                digit().zip(digit()).map(|(high, low)| high << 4 | low).ok_or_else(bad)?
            }
            b'+' if plus => b' ',
            other => other,
        });
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: &[&str] = &["topic", "after", "wait", "limit", "client"];

    fn parse(query: &str) -> Result<Ask, Refusal> {
        Ask::parse(Some(query), ALL, &Config::default())
    }

    #[test]
    fn bad_queries_are_refused_by_name() {
        let check = |query: &str, code: ProblemCode, named: &str| {
            let refusal = parse(query).expect_err(query);
            assert_eq!(refusal.code, code, "{query}");
            assert!(refusal.detail.contains(named), "{query}: {}", refusal.detail);
        };
        use ProblemCode::{BadCursor, BadParameter, BadTopic};
        check("topic=a&wiat=3", BadParameter, "wiat");
        check("topic=", BadTopic, "at least one");
        check("topic=a//b", BadTopic, "empty segment");
        check("topic=a+b", BadTopic, "' '");
        check("topic=a%0Ab", BadTopic, "\\n");
        check("topic=%FF", BadParameter, "UTF-8");
        check("topic=%4", BadParameter, "hexadecimal");
        check("topic=%+4", BadParameter, "hexadecimal");
        check(&format!("topic={}", "x".repeat(256)), BadTopic, "255");
        check("topic=a&after=yesterday", BadCursor, "after");
        check("topic=a&after=", BadCursor, "after");
        check("topic=a&after=now&after=now", BadParameter, "twice");
        check("topic=a&wait=301", BadParameter, "wait");
        check("topic=a&wait=6m", BadParameter, "wait");
        check("topic=a&wait=-1", BadParameter, "wait");
        check("topic=a&wait=99999999999999999999", BadParameter, "wait");
        check("topic=a&wait=", BadParameter, "wait");
        check("topic=a&limit=0", BadParameter, "limit");
        check("topic=a&limit=1001", BadParameter, "limit");
        check("topic=a&client=", BadParameter, "client");
        check("topic=a&client=%00", BadParameter, "client");
        check(&format!("client={}", "x".repeat(129)), BadParameter, "client");
        let many: String = (0..=100).map(|i| format!("topic=t{i}&")).collect();
        check(&many, BadParameter, "100");
    }

    #[test]
    fn good_queries_are_read() {
        let ask =
            parse("topic=vm%2Fa&topic=b%252F/*&topic=vm/a&after=now&wait=0&limit=1&client=vm%20a").unwrap();
        let topics: Vec<_> = ask.topics.iter().map(TopicPattern::as_str).collect();
        assert_eq!(topics, ["vm/a", "b%2F/*"]);
        assert_eq!(ask.after, Some(After::Now));
        assert_eq!(ask.wait, Some(Duration::ZERO));
        assert_eq!((ask.limit, ask.client.as_deref()), (1, Some("vm a")));
        assert_eq!(parse("topic=a&wait=1m").unwrap().wait, Some(Duration::from_secs(60)));
        assert_eq!(parse("").unwrap().wait, None);
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding_once(text in "\\PC{0,20}") {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(decode(&encoded, true).unwrap(), text);
        }

        #[test]
        fn no_query_panics(query in "[ -~]{0,60}") {
            let _ = parse(&query);
        }
    }
}
