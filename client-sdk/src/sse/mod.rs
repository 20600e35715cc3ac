//! Server-sent events: one answer that does not end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::connection::{Connection, Endpoint};
use crate::subscription::{Step, Steps};
use crate::{Error, Message, Subscription};

pub mod parser;

use parser::{Block, ParseError, Parser};

/// The largest event that is read; the broker's default limit is 1 MiB.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// A stream of server-sent events.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// use walcast_client::{EventsRequest, Message};
///
/// let mut stream = client.sse(EventsRequest::new(vec!["vm/*".parse()?])).await?;
/// while let Some(Message::Event(event)) = stream.next().await? {
///     println!("{}", event.topic);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SseStream {
    endpoint: Arc<Endpoint>,
    subscription: Subscription,
    body: Incoming,
    parser: Parser,
    retry: Option<Duration>,
    /// Something came.
    heard: bool,
    ended: bool,
    /// The body comes on it.
    _connection: Connection,
}

impl SseStream {
    pub(crate) async fn open(endpoint: Arc<Endpoint>, subscription: Subscription) -> Result<Self, Error> {
        let target = format!("/v1/events{}", subscription.request().stream_query().as_str());
        let get = endpoint.request("GET", &target).header(ACCEPT, "text/event-stream");
        let (connection, response) = endpoint.send(get, Bytes::new(), Duration::ZERO).await?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            let body = endpoint.read(body).await?;
            return Err(endpoint.refusal(head.status, &head.headers, &body));
        }
        let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("nothing");
        if !kind.starts_with("text/event-stream") {
            return Err(endpoint.protocol(format!("{kind} where text/event-stream was asked for")));
        }
        let parser = Parser::new(EVENT_BYTES_MAX);
        Ok(Self {
            endpoint,
            subscription,
            body,
            parser,
            retry: None,
            heard: false,
            ended: false,
            _connection: connection,
        })
    }

    /// As [`Stream::next`](crate::Stream::next).
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::EventsRequest;
    ///
    /// let mut stream = client.sse(EventsRequest::new(vec!["vm/*".parse()?])).await?;
    /// let first = stream.next().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        self.message().await
    }

    fn read(&mut self, block: Block) -> Result<Option<Message>, Error> {
        if let Some(retry) = block.retry {
            self.retry = Some(Duration::from_millis(retry));
        }
        let message = match (block.event.as_str(), &block.data) {
            ("" | "event", Some(data)) => {
                let event = self.json(data)?;
                self.subscription.admit(&event).then_some(Message::Event(event))
            }
            ("reset", Some(data)) => {
                let reset: walcast_wire::Reset = self.json(data)?;
                self.subscription.reset(reset.resume);
                Some(Message::Reset(reset))
            }
            // Said here and not by the status, which an EventSource could not get over. The end follows.
            ("problem", Some(data)) => {
                let problem: walcast_wire::Problem = self.json(data)?;
                Some(Message::Refused { code: problem.code, detail: problem.detail })
            }
            // A later broker may say more.
            _ => None,
        };
        if let Some(id) = block.id {
            let cursor = id.parse().map_err(|_| self.endpoint.protocol(format!("the id {id:?}")))?;
            self.subscription.reached(cursor);
        }
        Ok(message)
    }

    fn json<T: DeserializeOwned>(&self, text: &str) -> Result<T, Error> {
        serde_json::from_str(text).map_err(|error| self.endpoint.protocol(error.to_string()))
    }

    /// When the broker wants to be asked again, however the stream ends.
    pub(crate) fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// What is waited for, and how far it was received.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::EventsRequest;
    ///
    /// let stream = client.sse(EventsRequest::new(vec!["vm/*".parse()?])).await?;
    /// println!("{:?}", stream.subscription().cursor());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }
}

impl Steps for SseStream {
    async fn advance(&mut self) -> Result<Option<Step>, Error> {
        loop {
            let block = self.parser.next_block().map_err(|error| match error {
                ParseError::TooLarge(bytes_max) => self.endpoint.too_large(bytes_max),
                ParseError::NotUtf8 => self.endpoint.protocol(error.to_string()),
            })?;
            if let Some(block) = block {
                let moved = block.id.is_some();
                match self.read(block)? {
                    Some(message) => return Ok(Some(Step::Message(message))),
                    None if moved => return Ok(Some(Step::Moved)),
                    None => continue,
                }
            }
            if self.ended {
                return Ok(None);
            }
            // The broker begins every stream with a few words; a proxy that keeps them keeps everything.
            let limit = match self.heard {
                true => self.endpoint.silence_max(),
                false => self.endpoint.connect_timeout(),
            };
            match timeout(limit, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    self.heard = true;
                    if let Ok(data) = frame.into_data() {
                        self.parser.push(&data);
                    }
                }
                Ok(Some(Err(error))) => return Err(self.endpoint.broken(&error)),
                Ok(None) => {
                    self.ended = true;
                    return Ok(Some(Step::Message(Message::Bye { retry: self.retry })));
                }
                Err(_) => return Err(self.endpoint.silent(limit)),
            }
        }
    }
}
