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

use crate::connection::{Connection, Endpoint, SILENCE_MAX};
use crate::{Error, Message, Subscription};

pub mod parser;

use parser::{Block, Parser};

/// The largest event that is read; the broker's default limit is 1 MiB.
const EVENT_BYTES_MAX: usize = 16 << 20;

/// A stream of server-sent events.
#[derive(Debug)]
pub struct SseStream {
    endpoint: Arc<Endpoint>,
    subscription: Subscription,
    body: Incoming,
    parser: Parser,
    retry: Option<Duration>,
    ended: bool,
    /// The body comes on it.
    _connection: Connection,
}

impl SseStream {
    pub(crate) async fn open(endpoint: Arc<Endpoint>, subscription: Subscription) -> Result<Self, Error> {
        let target = format!("/v1/events{}", subscription.request().stream_query().as_str());
        let get = endpoint.request("GET", &target).header(ACCEPT, "text/event-stream");
        let sent = timeout(SILENCE_MAX, endpoint.send(get, Bytes::new())).await;
        let (connection, response) = sent.map_err(|_| silent(&endpoint))??;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            let body = timeout(SILENCE_MAX, endpoint.read(body)).await.map_err(|_| silent(&endpoint))??;
            return Err(endpoint.refusal(head.status, &head.headers, &body));
        }
        let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("nothing");
        if !kind.starts_with("text/event-stream") {
            return Err(endpoint.protocol(format!("{kind} where text/event-stream was asked for")));
        }
        let parser = Parser::new(EVENT_BYTES_MAX);
        Ok(Self { endpoint, subscription, body, parser, retry: None, ended: false, _connection: connection })
    }

    /// As [`Stream::next`](crate::Stream::next).
    ///
    /// # Errors
    /// As there.
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        loop {
            let block =
                self.parser.next_block().map_err(|error| self.endpoint.protocol(error.to_string()))?;
            if let Some(block) = block {
                if let Some(message) = self.read(block)? {
                    return Ok(Some(message));
                }
                continue;
            }
            if self.ended {
                return Ok(None);
            }
            match timeout(SILENCE_MAX, self.body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.parser.push(&data);
                    }
                }
                Ok(Some(Err(error))) => return Err(self.endpoint.broken(&error)),
                Ok(None) => {
                    self.ended = true;
                    return Ok(Some(Message::Bye { retry: self.retry }));
                }
                Err(_) => return Err(silent(&self.endpoint)),
            }
        }
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

    /// What is waited for, and how far it was received.
    #[must_use]
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }
}

fn silent(endpoint: &Endpoint) -> Error {
    Error::Silent { address: endpoint.address().to_owned(), after: SILENCE_MAX }
}
