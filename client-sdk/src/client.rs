//! The calls that a broker answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{ACCEPT, ETAG, HeaderMap, IF_NONE_MATCH};
use walcast_wire::{Cursor, EventsReply, ProblemCode, Topic};

use crate::connection::{Endpoint, SILENCE_MAX, retry_after};
use crate::request::{Query, encode, seconds};
use crate::{Data, Error, EventsRequest, PollStream, SseStream, Stream, Subscription, Transport, WsStream};

/// How long the broker holds a long-poll that names no `wait`.
const WAIT_DEFAULT: Duration = Duration::from_secs(50);

/// A broker. Clones share idle connections; a waiting call has one of its own.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) endpoint: Arc<Endpoint>,
}

/// The current value of a state topic.
#[derive(Debug)]
pub enum State {
    /// It has one.
    Value {
        /// The value.
        data: Data,
        /// Its version: present it to wait for another.
        cursor: Cursor,
    },
    /// It still has the value that was presented.
    Unchanged,
    /// It has none.
    Absent,
}

impl Client {
    /// A broker by its base URL, such as `http://127.0.0.1:8480`. Connects when first used.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn new(url: &str) -> Result<Self, Error> {
        Ok(Self { endpoint: Arc::new(Endpoint::parse(url)?) })
    }

    /// Host and port of the broker.
    #[must_use]
    pub fn address(&self) -> &str {
        self.endpoint.address()
    }

    /// One long-poll: answers what there is, or waits for it.
    ///
    /// # Errors
    /// Any but [`Error::Closed`].
    pub async fn poll(&self, request: &EventsRequest) -> Result<EventsReply<Data>, Error> {
        self.poll_once(request).await.map(|(reply, _)| reply)
    }

    /// As [`poll`](Self::poll), with the delay after which a draining broker wants to be called again.
    pub(crate) async fn poll_once(
        &self,
        request: &EventsRequest,
    ) -> Result<(EventsReply<Data>, Option<Duration>), Error> {
        let target = format!("/v1/events{}", request.poll_query().as_str());
        let get = self.endpoint.request("GET", &target).header(ACCEPT, "application/json");
        let limit = request.wait.unwrap_or(WAIT_DEFAULT) + SILENCE_MAX;
        let (_, headers, body) = self.endpoint.call(get, Bytes::new(), limit).await?;
        let reply =
            serde_json::from_slice(&body).map_err(|error| self.endpoint.protocol(error.to_string()))?;
        Ok((reply, retry_after(&headers)))
    }

    /// The current value of a state topic; with `wait`, held until there is one, or until there is
    /// another than `not`.
    ///
    /// # Errors
    /// Any but [`Error::Closed`].
    pub async fn state(
        &self,
        topic: &Topic,
        wait: Option<Duration>,
        not: Option<Cursor>,
    ) -> Result<State, Error> {
        let mut target = "/v1/state/".to_owned();
        encode(topic.as_str(), &mut target);
        let mut query = Query::default();
        if let Some(wait) = wait {
            query.add("wait", &seconds(wait));
        }
        target.push_str(query.as_str());
        let mut get = self.endpoint.request("GET", &target);
        if let Some(cursor) = not {
            get = get.header(IF_NONE_MATCH, format!("\"{cursor}\""));
        }
        let limit = wait.unwrap_or_default() + SILENCE_MAX;
        match self.endpoint.call(get, Bytes::new(), limit).await {
            Ok((StatusCode::NOT_MODIFIED, ..)) => Ok(State::Unchanged),
            Ok((_, headers, body)) => {
                let cursor = etag(&headers).ok_or_else(|| self.endpoint.protocol("no ETag".to_owned()))?;
                let data = serde_json::from_slice(&body);
                let data = data.map_err(|error| self.endpoint.protocol(error.to_string()))?;
                Ok(State::Value { data, cursor })
            }
            Err(error) if error.problem().is_some_and(|it| it.code == ProblemCode::NotFound) => {
                Ok(State::Absent)
            }
            Err(error) => Err(error),
        }
    }

    /// Server-sent events.
    ///
    /// # Errors
    /// The broker cannot be reached, or refuses.
    pub async fn sse(&self, request: EventsRequest) -> Result<SseStream, Error> {
        SseStream::open(Arc::clone(&self.endpoint), Subscription::new(request)).await
    }

    /// A WebSocket.
    ///
    /// # Errors
    /// The broker cannot be reached, or refuses.
    pub async fn websocket(&self, request: EventsRequest) -> Result<WsStream, Error> {
        WsStream::open(Arc::clone(&self.endpoint), Subscription::new(request)).await
    }

    /// A stream over any transport.
    ///
    /// # Errors
    /// The broker cannot be reached, or refuses. Long-poll finds out with the first message only.
    pub async fn open(&self, transport: Transport, request: EventsRequest) -> Result<Stream, Error> {
        self.resume(transport, Subscription::new(request)).await
    }

    /// Goes on where another stream ended, over the same transport or another.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn resume(&self, transport: Transport, subscription: Subscription) -> Result<Stream, Error> {
        Ok(match transport {
            Transport::Poll => Stream::Poll(PollStream::new(self.clone(), subscription)),
            Transport::Sse => Stream::Sse(SseStream::open(Arc::clone(&self.endpoint), subscription).await?),
            Transport::WebSocket => {
                Stream::WebSocket(Box::new(WsStream::open(Arc::clone(&self.endpoint), subscription).await?))
            }
        })
    }
}

/// The cursor in `ETag: "…"`, weak or not.
fn etag(headers: &HeaderMap) -> Option<Cursor> {
    let text = headers.get(ETAG)?.to_str().ok()?;
    text.trim_start_matches("W/").trim_matches('"').parse().ok()
}
