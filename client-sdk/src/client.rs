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
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use walcast_client::Client;
///
/// let client = Client::builder().hosts(["http://broker-1:8480", "http://broker-2:8480"]).build()?;
/// let same = client.clone();
/// tokio::join!(client.wait("vm/host-17").into_future(), same.wait("vm/host-18").into_future());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) patience: std::time::Duration,
}

impl Client {
    /// One broker by its base URL, such as `http://127.0.0.1:8480`. Connects when first used.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn new(url: &str) -> Result<Self, Error> {
        Self::builder().hosts([url]).build()
    }

    /// Several brokers, a token, trust and limits.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = walcast_client::Client::builder().hosts(["http://127.0.0.1:8480"]).build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Host and port of the broker that is asked next.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = walcast_client::Client::new("http://broker-1")?;
    /// assert_eq!(client.address(), "broker-1:80");
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn address(&self) -> &str {
        self.hosts.at(self.hosts.current()).endpoint.address()
    }

    fn endpoint(&self) -> Arc<Endpoint> {
        Arc::clone(&self.hosts.at(self.hosts.current()).endpoint)
    }

    /// One long-poll: answers what there is, or waits for it. One attempt.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::{After, EventsRequest};
    ///
    /// let mut request = EventsRequest::new(vec!["jobs/*".parse()?]).after(After::Now);
    /// loop {
    ///     let reply = client.poll(&request).await?;
    ///     println!("{} events", reply.events.len());
    ///     request.after = reply.cursor.into();
    /// }
    /// #[allow(unreachable_code)]
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Any but [`Error::Closed`].
    pub async fn poll(&self, request: &EventsRequest) -> Result<EventsReply<Data>, Error> {
        poll_once(&self.endpoint(), request).await.map(|(reply, _)| reply)
    }

    /// Server-sent events. One connection.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::EventsRequest;
    ///
    /// let mut stream = client.sse(EventsRequest::new(vec!["vm/*".parse()?])).await?;
    /// while let Some(message) = stream.next().await? {
    ///     println!("{message:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The broker cannot be reached, or refuses.
    pub async fn sse(&self, request: EventsRequest) -> Result<SseStream, Error> {
        SseStream::open(self.endpoint(), Subscription::new(request)).await
    }

    /// A WebSocket. One connection.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::EventsRequest;
    ///
    /// let mut stream = client.websocket(EventsRequest::new(vec!["vm/*".parse()?])).await?;
    /// while let Some(message) = stream.next().await? {
    ///     println!("{message:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The broker cannot be reached, or refuses.
    pub async fn websocket(&self, request: EventsRequest) -> Result<WsStream, Error> {
        WsStream::open(self.endpoint(), Subscription::new(request)).await
    }

    /// A stream over any transport, which ends with its connection.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::{After, EventsRequest, Message, Transport};
    ///
    /// let request = EventsRequest::new(vec!["vm/*".parse()?]).after(After::Earliest);
    /// let mut stream = client.open(Transport::Sse, request).await?;
    /// while let Some(message) = stream.next().await? {
    ///     if let Message::Event(event) = message {
    ///         println!("{}", event.data);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The broker cannot be reached, or refuses. Long-poll finds out with the first message only.
    pub async fn open(&self, transport: Transport, request: EventsRequest) -> Result<Stream, Error> {
        self.resume(transport, Subscription::new(request)).await
    }

    /// Goes on where another stream ended, over the same transport or another.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::{After, EventsRequest, Message, Transport};
    ///
    /// let request = EventsRequest::new(vec!["vm/*".parse()?]).after(After::Earliest);
    /// let mut stream = client.open(Transport::WebSocket, request).await?;
    /// while stream.next().await?.is_some() {}
    /// // Behind what came, by another way.
    /// let stream = client.resume(Transport::Poll, stream.into_subscription()).await?;
    /// # Ok(())
    /// # }
    /// ```
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
