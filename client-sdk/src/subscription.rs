//! What is the same on all transports: the messages, and the cursor from which to go on.
//!
//! The cursor never runs ahead of what was handed out, so going on from it loses nothing. It may lag by
//! the events of one record of the log, which share a cursor; of those, the ones already handed out are
//! remembered and not handed out again. It lags more while topics that were added to a WebSocket catch up;
//! a stream resumed from then repeats events.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use walcast_wire::{Cursor, Op, ProblemCode, Reset, Topic, TopicPattern};

use crate::{After, Error, Event, EventsRequest, PollStream, SseStream, WsStream};

/// What arrives on a stream.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// use walcast_client::{After, EventsRequest, Message, Transport};
///
/// let request = EventsRequest::new(vec!["vm/*".parse()?]).after(After::Earliest);
/// let mut stream = client.open(Transport::Sse, request).await?;
/// match stream.next().await? {
///     Some(Message::Event(event)) => println!("{}", event.data),
///     Some(Message::Bye { retry }) => println!("come back after {retry:?}"),
///     other => println!("{other:?}"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum Message {
    /// Something happened, or (with `op` snapshot) is so.
    Event(Event),
    /// The broker confirmed which topics this WebSocket waits for.
    Subscribed {
        /// All of them.
        topics: Vec<TopicPattern>,
        /// Where delivery goes on.
        cursor: Cursor,
    },
    /// Events may be missing before what follows. What was derived from earlier ones is to be rebuilt.
    Reset(Reset),
    /// The broker refused a frame of ours, and the stream goes on; or it cannot serve the stream now, and
    /// [`Self::Bye`] follows. Long-poll says this by [`Error::Problem`].
    Refused {
        /// Stable code.
        code: ProblemCode,
        /// For people.
        detail: String,
    },
    /// The broker ended the stream in good order; nothing follows. Come back with the cursor.
    Bye {
        /// After this time, if the broker named one.
        retry: Option<Duration>,
    },
}

/// What happened on a stream.
#[derive(Debug)]
pub(crate) enum Step {
    Message(Message),
    /// The cursor was told anew, without a message.
    Moved,
}

/// A transport, step by step.
pub(crate) trait Steps: Send {
    /// The next message, or that the cursor moved without one. Cancel safe.
    fn advance(&mut self) -> impl Future<Output = Result<Option<Step>, Error>> + Send;

    /// The next message.
    fn message(&mut self) -> impl Future<Output = Result<Option<Message>, Error>> + Send {
        async {
            while let Some(step) = self.advance().await? {
                if let Step::Message(message) = step {
                    return Ok(Some(message));
                }
            }
            Ok(None)
        }
    }
}

impl Step {
    /// The broker does not serve, or goes away: nothing of use follows.
    pub(crate) fn ends(&self) -> bool {
        matches!(self, Self::Message(Message::Refused { .. } | Message::Bye { .. }))
    }
}

/// What is waited for, and how far it was received.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use walcast_client::{EventsRequest, Subscription};
///
/// let subscription = Subscription::new(EventsRequest::new(vec!["vm/*".parse()?]));
/// assert_eq!(subscription.cursor(), None);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Subscription {
    request: EventsRequest,
    cursor: Option<Cursor>,
    /// The cursor of the newest event, while more events with the same one may follow.
    unit: Option<Cursor>,
    /// The topics of the events that had it.
    unit_topics: HashSet<Topic>,
    /// Added topics catch up, so that events say nothing of how far all topics are.
    held: bool,
}

impl Subscription {
    /// A subscription that received nothing yet.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::{EventsRequest, Subscription};
    ///
    /// let subscription = Subscription::new(EventsRequest::new(vec!["vm/*".parse()?]));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(request: EventsRequest) -> Self {
        let cursor = match request.after {
            After::Cursor(cursor) => Some(cursor),
            _ => None,
        };
        Self { request, cursor, unit: None, unit_topics: HashSet::new(), held: false }
    }

    /// Everything up to here was handed out. `None` until the broker named a cursor.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::{EventsRequest, Subscription};
    ///
    /// let subscription = Subscription::new(EventsRequest::new(vec!["vm/*".parse()?]));
    /// assert_eq!(subscription.cursor(), None);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        self.cursor
    }

    /// The request that goes on from the cursor.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::{EventsRequest, Subscription};
    ///
    /// let request = EventsRequest::new(vec!["vm/*".parse()?]);
    /// assert_eq!(Subscription::new(request.clone()).request(), request);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn request(&self) -> EventsRequest {
        let mut request = self.request.clone();
        if let Some(cursor) = self.cursor {
            request.after = After::Cursor(cursor);
        }
        request
    }

    /// Notes an event, after which others with its cursor may follow; false if it was handed out before.
    pub(crate) fn admit(&mut self, event: &Event) -> bool {
        // A current value carries the cursor of its change, which says nothing of how far we are.
        if event.op == Op::Snapshot {
            return true;
        }
        if self.unit == Some(event.cursor) {
            return self.unit_topics.insert(event.topic.clone());
        }
        if self.held {
            return true;
        }
        if let Some(complete) = self.unit.replace(event.cursor) {
            self.cursor = Some(complete);
        }
        self.unit_topics.clear();
        self.unit_topics.insert(event.topic.clone());
        true
    }

    /// Notes that no other event with the cursor of the last admitted one will follow.
    pub(crate) fn unit_ended(&mut self) {
        if let Some(cursor) = self.unit.filter(|_| !self.held) {
            self.reached(cursor);
        }
    }

    /// Notes that everything up to `cursor` was handed out. What was handed out beyond it stays known.
    pub(crate) fn reached(&mut self, cursor: Cursor) {
        let beyond = |unit: Cursor| unit.epoch == cursor.epoch && unit.position > cursor.position;
        if !self.unit.is_some_and(beyond) {
            self.forget_unit();
        }
        (self.held, self.cursor) = (false, Some(cursor));
    }

    /// Notes that the broker goes on from `cursor` and may repeat anything.
    pub(crate) fn reset(&mut self, cursor: Cursor) {
        self.forget_unit();
        (self.held, self.cursor) = (false, Some(cursor));
    }

    /// Stays at the cursor until the broker names another.
    pub(crate) fn hold(&mut self) {
        self.held = true;
    }

    fn forget_unit(&mut self) {
        self.unit = None;
        self.unit_topics.clear();
    }
}

/// A way to wait.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use walcast_client::Transport;
///
/// assert_eq!(Transport::WebSocket.to_string().parse::<Transport>().ok(), Some(Transport::WebSocket));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Long-poll.
    Poll,
    /// Server-sent events.
    Sse,
    /// WebSocket.
    WebSocket,
}

impl Transport {
    /// All of them.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::Transport;
    ///
    /// assert!(Transport::ALL.contains(&Transport::Poll));
    /// # Ok(())
    /// # }
    /// ```
    pub const ALL: [Self; 3] = [Self::Poll, Self::Sse, Self::WebSocket];
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poll => "poll",
            Self::Sse => "sse",
            Self::WebSocket => "ws",
        })
    }
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = Self::ALL.into_iter();
        all.into_iter()
            .find(|transport| transport.to_string() == text)
            .ok_or_else(|| format!("{text:?} is no transport; choose poll, sse or ws"))
    }
}

/// A stream over any transport.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// use walcast_client::{After, EventsRequest, Transport};
///
/// let request = EventsRequest::new(vec!["vm/*".parse()?]).after(After::Earliest);
/// for transport in Transport::ALL {
///     let mut stream = client.open(transport, request.clone()).await?;
///     println!("{:?}", stream.next().await?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum Stream {
    /// Long-poll.
    Poll(PollStream),
    /// Server-sent events.
    Sse(SseStream),
    /// WebSocket.
    WebSocket(Box<WsStream>),
}

impl Stream {
    /// The next message; `None` once the stream has ended. May be dropped and called again without loss.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::{After, EventsRequest, Transport};
    ///
    /// let request = EventsRequest::new(vec!["vm/*".parse()?]).after(After::Earliest);
    /// let mut stream = client.open(Transport::WebSocket, request).await?;
    /// let first = stream.next().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The connection broke, or the broker refused.
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        match self {
            Self::Poll(stream) => stream.next().await,
            Self::Sse(stream) => stream.next().await,
            Self::WebSocket(stream) => stream.next().await,
        }
    }

    /// As [`Self::next`], and tells where the cursor moved alone.
    pub(crate) async fn advance(&mut self) -> Result<Option<Step>, Error> {
        match self {
            Self::Poll(stream) => stream.advance().await,
            Self::Sse(stream) => stream.advance().await,
            Self::WebSocket(stream) => stream.advance().await,
        }
    }

    /// What is waited for, and how far it was received.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::{After, EventsRequest, Transport};
    ///
    /// let request = EventsRequest::new(vec!["vm/*".parse()?]).after(After::Earliest);
    /// let stream = client.open(Transport::WebSocket, request).await?;
    /// println!("{:?}", stream.subscription().cursor());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn subscription(&self) -> &Subscription {
        match self {
            Self::Poll(stream) => stream.subscription(),
            Self::Sse(stream) => stream.subscription(),
            Self::WebSocket(stream) => stream.subscription(),
        }
    }

    /// Ends the stream, keeping what is needed to go on.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::{After, EventsRequest, Transport};
    ///
    /// let request = EventsRequest::new(vec!["vm/*".parse()?]).after(After::Earliest);
    /// let stream = client.open(Transport::WebSocket, request).await?;
    /// let again = client.resume(Transport::Sse, stream.into_subscription()).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn into_subscription(self) -> Subscription {
        self.subscription().clone()
    }
}

#[cfg(test)]
mod tests {
    use walcast_wire::{Epoch, Position};

    use super::*;

    fn cursor(n: u64) -> Cursor {
        Cursor::new(Epoch(1), Position::new(n, 1))
    }

    fn event(n: u64, topic: &str, op: &str) -> Event {
        let json = format!(r#"{{"cursor":"{}","topic":"{topic}","op":"{op}","data":null}}"#, cursor(n));
        serde_json::from_str(&json).unwrap()
    }

    fn subscription(topics: &[&str]) -> Subscription {
        Subscription::new(EventsRequest::new(topics.iter().map(|topic| topic.parse().unwrap())))
    }

    #[test]
    fn the_cursor_waits_for_the_whole_record() {
        let mut it = subscription(&["vm/*"]);
        assert!(it.admit(&event(5, "vm/a", "delete")));
        assert_eq!(it.cursor(), None);
        assert!(it.admit(&event(5, "vm/b", "update")));
        assert_eq!(it.cursor(), None);
        assert!(it.admit(&event(6, "vm/a", "update")));
        assert_eq!(it.cursor(), Some(cursor(5)));
        it.reached(cursor(9));
        assert_eq!(it.request().after, After::Cursor(cursor(9)));
    }

    #[test]
    fn a_record_that_was_cut_is_completed_without_repetition() {
        let mut it = subscription(&["vm/*"]);
        it.reached(cursor(4));
        assert!(it.admit(&event(5, "vm/a", "delete")));
        assert_eq!(it.request().after, After::Cursor(cursor(4)));
        assert!(!it.admit(&event(5, "vm/a", "delete")), "sent again after the cut");
        assert!(it.admit(&event(5, "vm/b", "update")));
    }

    #[test]
    fn a_cut_record_is_known_on_a_connection_that_first_names_where_it_goes_on() {
        let mut it = subscription(&["vm/*"]);
        it.reached(cursor(4));
        assert!(it.admit(&event(5, "vm/a", "delete")));
        it.reached(cursor(4));
        assert!(!it.admit(&event(5, "vm/a", "delete")));
        it.hold();
        assert!(!it.admit(&event(5, "vm/a", "delete")));
        it.reset(cursor(4));
        assert!(it.admit(&event(5, "vm/a", "delete")), "after a reset everything is told again");
    }

    #[test]
    fn events_do_not_move_the_cursor_while_added_topics_catch_up() {
        let mut it = subscription(&["vm/a"]);
        it.reached(cursor(4));
        it.hold();
        assert!(it.admit(&event(9, "vm/a", "update")));
        it.unit_ended();
        assert_eq!(it.cursor(), Some(cursor(4)));
        it.reached(cursor(9));
        assert!(it.admit(&event(10, "vm/a", "update")));
        it.unit_ended();
        assert_eq!(it.cursor(), Some(cursor(10)));
    }

    #[test]
    fn current_values_do_not_move_the_cursor() {
        let mut it = subscription(&["vm/a"]);
        it.reached(cursor(9));
        assert!(it.admit(&event(5, "vm/a", "snapshot")));
        assert_eq!(it.cursor(), Some(cursor(9)));
    }
}
