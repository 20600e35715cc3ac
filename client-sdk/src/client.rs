//! A client, and what it asks of one broker at a time.
//!
//! Calls that go on over all brokers are in [`call`](crate::call), [`wait`](crate::wait),
//! [`publisher`](crate::publisher) and [`follow`](crate::follow). Those here make one attempt at one broker, and
//! leave it to the caller what to do next.

use std::sync::Arc;

use walcast_wire::EventsReply;

use crate::connection::Endpoint;
use crate::hosts::Hosts;
use crate::poll::poll_once;
use crate::{
    ClientBuilder, Data, Error, EventsRequest, PollStream, SseStream, Stream, Subscription, Transport,
    WsStream,
};

/// Brokers that serve the same source. Clones share idle connections; a waiting call has one of its own.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) patience: std::time::Duration,
}

impl Client {
    /// One broker by its base URL, such as `http://127.0.0.1:8480`. Connects when first used.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn new(url: &str) -> Result<Self, Error> {
        Self::builder().hosts([url]).build()
    }

    /// Several brokers, a token, trust and limits.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Host and port of the broker that is asked next.
    #[must_use]
    pub fn address(&self) -> &str {
        self.hosts.at(self.hosts.current()).endpoint.address()
    }

    fn endpoint(&self) -> Arc<Endpoint> {
        Arc::clone(&self.hosts.at(self.hosts.current()).endpoint)
    }

    /// One long-poll: answers what there is, or waits for it. One attempt.
    ///
    /// # Errors
    /// Any but [`Error::Closed`].
    pub async fn poll(&self, request: &EventsRequest) -> Result<EventsReply<Data>, Error> {
        poll_once(&self.endpoint(), request).await.map(|(reply, _)| reply)
    }

    /// Server-sent events. One connection.
    ///
    /// # Errors
    /// The broker cannot be reached, or refuses.
    pub async fn sse(&self, request: EventsRequest) -> Result<SseStream, Error> {
        SseStream::open(self.endpoint(), Subscription::new(request)).await
    }

    /// A WebSocket. One connection.
    ///
    /// # Errors
    /// The broker cannot be reached, or refuses.
    pub async fn websocket(&self, request: EventsRequest) -> Result<WsStream, Error> {
        WsStream::open(self.endpoint(), Subscription::new(request)).await
    }

    /// A stream over any transport, which ends with its connection.
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
        open(self.endpoint(), transport, subscription).await
    }
}

/// A stream from one broker.
pub(crate) async fn open(
    endpoint: Arc<Endpoint>,
    transport: Transport,
    subscription: Subscription,
) -> Result<Stream, Error> {
    Ok(match transport {
        Transport::Poll => Stream::Poll(PollStream::new(endpoint, subscription)),
        Transport::Sse => Stream::Sse(SseStream::open(endpoint, subscription).await?),
        Transport::WebSocket => Stream::WebSocket(Box::new(WsStream::open(endpoint, subscription).await?)),
    })
}
