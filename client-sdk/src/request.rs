//! What to wait for and from where, and how that is written into a request.

use std::fmt::Write as _;
use std::time::Duration;

use walcast_wire::{Cursor, TopicPattern};

/// Where a subscription starts.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use walcast_client::After;
///
/// assert_eq!("now".parse::<After>()?, After::Now);
/// assert_eq!(After::default(), After::Current);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum After {
    /// With the current values of state topics; other topics start with the next event.
    #[default]
    Current,
    /// With the next event.
    Now,
    /// With the oldest event still held.
    Earliest,
    /// After what this cursor stands for.
    Cursor(Cursor),
}

impl After {
    /// The parameter's value; `None` leaves it out.
    pub(crate) fn value(self) -> Option<String> {
        match self {
            Self::Current => None,
            Self::Now => Some("now".to_owned()),
            Self::Earliest => Some("earliest".to_owned()),
            Self::Cursor(cursor) => Some(cursor.to_string()),
        }
    }
}

impl From<Cursor> for After {
    fn from(cursor: Cursor) -> Self {
        Self::Cursor(cursor)
    }
}

impl std::str::FromStr for After {
    type Err = walcast_wire::position::CursorError;

    /// `now`, `earliest`, or a cursor.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "now" => Ok(Self::Now),
            "earliest" => Ok(Self::Earliest),
            cursor => cursor.parse().map(Self::Cursor),
        }
    }
}

/// A wait for events.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use walcast_client::EventsRequest;
///
/// let mut request = EventsRequest::new(vec!["vm/host-17".parse()?]);
/// request.wait = Some(std::time::Duration::from_secs(50));
/// request.client = Some("host-17".to_owned());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventsRequest {
    /// Topics and patterns, at least one.
    pub topics: Vec<TopicPattern>,
    /// Where to start.
    pub after: After,
    /// Long-poll: how long the broker holds an answer that has nothing; `None` leaves it to the broker.
    pub wait: Option<Duration>,
    /// Long-poll: how many events one answer has at most, give or take those that share a cursor.
    pub limit: Option<u32>,
    /// A name under which the broker lists this waiter.
    pub client: Option<String>,
}

impl EventsRequest {
    /// Waits for `topics`, starting with current values.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::EventsRequest;
    ///
    /// let request = EventsRequest::new(vec!["vm/*".parse()?, "jobs/**".parse()?]);
    /// assert_eq!(request.topics.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(topics: impl IntoIterator<Item = TopicPattern>) -> Self {
        Self { topics: topics.into_iter().collect(), ..Self::default() }
    }

    /// Starts at `after` instead.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::{After, EventsRequest};
    ///
    /// let request = EventsRequest::new(vec!["jobs/**".parse()?]).after(After::Earliest);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn after(mut self, after: After) -> Self {
        self.after = after;
        self
    }

    /// The query of a stream.
    pub(crate) fn stream_query(&self) -> Query {
        let mut query = Query::default();
        for topic in &self.topics {
            query.add("topic", topic.as_str());
        }
        if let Some(after) = self.after.value() {
            query.add("after", &after);
        }
        if let Some(client) = &self.client {
            query.add("client", client);
        }
        query
    }

    /// The query of a long-poll.
    pub(crate) fn poll_query(&self) -> Query {
        let mut query = self.stream_query();
        if let Some(wait) = self.wait {
            query.add("wait", &seconds(wait));
        }
        if let Some(limit) = self.limit {
            query.add("limit", &limit.to_string());
        }
        query
    }
}

/// A duration as the broker reads it.
pub(crate) fn seconds(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        duration.as_secs().to_string()
    } else {
        format!("{}ms", duration.as_millis())
    }
}

/// A query string in the making.
#[derive(Debug, Default)]
pub(crate) struct Query(String);

impl Query {
    pub(crate) fn add(&mut self, name: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(name);
        self.0.push('=');
        encode(value, &mut self.0);
    }

    /// With its question mark; empty if nothing was added.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Percent-encodes all that has a meaning of its own, or none, in a path or a query. A topic's slashes
/// and stars may stay.
pub(crate) fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/*".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let check = |request: &EventsRequest, expected: &str| {
            assert_eq!(request.poll_query().as_str(), expected);
        };
        let topics = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        check(
            &EventsRequest { topics: topics(&["vm/host-17"]), ..EventsRequest::default() },
            "?topic=vm/host-17",
        );
        let request = EventsRequest {
            topics: topics(&["a%2Fb&c=d", "größe/**"]),
            after: After::Earliest,
            wait: Some(Duration::from_millis(1500)),
            limit: Some(7),
            client: Some("vm 1".to_owned()),
        };
        check(
            &request,
            "?topic=a%252Fb%26c%3Dd&topic=gr%C3%B6%C3%9Fe/**&after=earliest&client=vm%201&wait=1500ms&limit=7",
        );
        assert_eq!(seconds(Duration::from_secs(50)), "50");
    }
}
