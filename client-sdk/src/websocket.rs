//! WebSocket: JSON text frames; events that share a cursor come in one.
//!
//! The upgrade is made by our own HTTP side, so that a refusal is read like any other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper::StatusCode;
use hyper::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Error as WsError};
use walcast_wire::{ClientFrame, CloseCode, ServerFrame, TopicPattern};

use crate::connection::Endpoint;
use crate::dial::Wire;
use crate::subscription::{Step, Steps};
use crate::{After, Data, Error, Event, Message, Subscription};

/// The largest message that is read, which is all events of one record of the log. Whoever is sent more takes another
/// transport.
const EVENT_BYTES_MAX: usize = 16 << 20;
/// Small, for a process may hold thousands of sockets; it grows with a frame.
const READ_BUFFER_BYTES: usize = 4096;

/// A WebSocket that waits for events.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// use walcast_client::{EventsRequest, Message};
///
/// let mut stream = client.websocket(EventsRequest::new(vec!["vm/*".parse()?])).await?;
/// while let Some(Message::Event(event)) = stream.next().await? {
///     println!("{}", event.topic);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct WsStream {
    endpoint: Arc<Endpoint>,
    subscription: Subscription,
    socket: WebSocketStream<Wire>,
    /// Events of the last frame that were not handed out.
    unit: VecDeque<Event>,
    /// Topics were added since the last bookmark.
    added: bool,
    ended: bool,
}

impl WsStream {
    pub(crate) async fn open(endpoint: Arc<Endpoint>, subscription: Subscription) -> Result<Self, Error> {
        let socket = upgrade(&endpoint, &subscription).await?;
        Ok(Self { endpoint, subscription, socket, unit: VecDeque::new(), added: false, ended: false })
    }

    /// As [`Stream::next`](crate::Stream::next).
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::EventsRequest;
    ///
    /// let mut stream = client.websocket(EventsRequest::new(vec!["vm/*".parse()?])).await?;
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

    /// Waits for further topics, from `after` on. Answered by [`Message::Subscribed`]. They belong to this
    /// connection only: a resumed stream asks for what its request named.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::{After, EventsRequest};
    ///
    /// let mut stream = client.websocket(EventsRequest::new(vec!["vm/a".parse()?])).await?;
    /// stream.subscribe(vec!["vm/b".parse()?], After::Current).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The connection broke.
    pub async fn subscribe(&mut self, topics: Vec<TopicPattern>, after: After) -> Result<(), Error> {
        self.added = true;
        self.subscription.hold();
        self.send(&ClientFrame::Subscribe { topics, after: after.value() }).await
    }

    /// Waits no longer for `topics`, named as they were subscribed.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::EventsRequest;
    ///
    /// let mut stream = client.websocket(EventsRequest::new(vec!["vm/a".parse()?, "vm/b".parse()?])).await?;
    /// stream.unsubscribe(vec!["vm/a".parse()?]).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The connection broke.
    pub async fn unsubscribe(&mut self, topics: Vec<TopicPattern>) -> Result<(), Error> {
        self.send(&ClientFrame::Unsubscribe { topics }).await
    }

    /// Says goodbye. Dropping the stream does without.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::EventsRequest;
    ///
    /// let stream = client.websocket(EventsRequest::new(vec!["vm/a".parse()?])).await?;
    /// stream.close().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The connection broke.
    pub async fn close(mut self) -> Result<(), Error> {
        let closed = self.socket.close(None).await;
        closed.map_err(|error| self.broken(&error))
    }

    async fn send(&mut self, frame: &ClientFrame) -> Result<(), Error> {
        let text = serde_json::to_string(frame).map_err(|error| Error::Request(error.to_string()))?;
        let sent = self.socket.send(tungstenite::Message::text(text)).await;
        sent.map_err(|error| self.broken(&error))
    }

    fn read(&mut self, frame: ServerFrame<Data>) -> Option<Step> {
        match frame {
            ServerFrame::Event(event) => self.unit.push_back(event),
            ServerFrame::Events(events) => self.unit.extend(events),
            ServerFrame::Subscribed { topics, cursor } => {
                self.subscription.reached(cursor);
                if self.added {
                    self.subscription.hold();
                }
                return Some(Step::Message(Message::Subscribed { topics, cursor }));
            }
            ServerFrame::Bookmark { cursor } => {
                self.added = false;
                self.subscription.reached(cursor);
                return Some(Step::Moved);
            }
            ServerFrame::Reset(reset) => {
                self.subscription.reset(reset.resume);
                if self.added {
                    self.subscription.hold();
                }
                return Some(Step::Message(Message::Reset(reset)));
            }
            ServerFrame::Error { code, detail } => {
                return Some(Step::Message(Message::Refused { code, detail }));
            }
        }
        None
    }

    fn broken(&self, error: &WsError) -> Error {
        match error {
            WsError::Capacity(CapacityError::MessageTooLong { .. }) => {
                self.endpoint.too_large(EVENT_BYTES_MAX)
            }
            _ => self.endpoint.broken(error),
        }
    }

    /// What is waited for, and how far it was received.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::EventsRequest;
    ///
    /// let stream = client.websocket(EventsRequest::new(vec!["vm/*".parse()?])).await?;
    /// println!("{:?}", stream.subscription().cursor());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }
}

impl Steps for WsStream {
    async fn advance(&mut self) -> Result<Option<Step>, Error> {
        loop {
            while let Some(event) = self.unit.pop_front() {
                let new = self.subscription.admit(&event);
                if self.unit.is_empty() {
                    self.subscription.unit_ended();
                }
                if new {
                    return Ok(Some(Step::Message(Message::Event(event))));
                }
            }
            if self.ended {
                return Ok(None);
            }
            let limit = self.endpoint.silence_max();
            let received = timeout(limit, self.socket.next()).await;
            let received = received.map_err(|_| self.endpoint.silent(limit))?;
            match received {
                Some(Ok(tungstenite::Message::Text(text))) => {
                    let frame = serde_json::from_str::<ServerFrame<Data>>(&text);
                    let frame = frame.map_err(|error| self.endpoint.protocol(error.to_string()))?;
                    let step = self.read(frame);
                    if step.is_some() {
                        return Ok(step);
                    }
                }
                Some(Ok(tungstenite::Message::Close(frame))) => {
                    self.ended = true;
                    return bye(frame).map(|message| Some(Step::Message(message)));
                }
                // Pings are answered by the socket itself; walcast sends no binary frames.
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    self.ended = true;
                    return Err(self.broken(&error));
                }
                None => {
                    self.ended = true;
                    return Err(self.broken(&WsError::ConnectionClosed));
                }
            }
        }
    }
}

async fn upgrade(endpoint: &Endpoint, subscription: &Subscription) -> Result<WebSocketStream<Wire>, Error> {
    let target = format!("/v1/ws{}", subscription.request().stream_query().as_str());
    let key = generate_key();
    let get = endpoint
        .request("GET", &target)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key);
    let (_connection, mut response) = endpoint.send(get, Bytes::new(), Duration::ZERO).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (head, body) = response.into_parts();
        let body = endpoint.read(body).await?;
        return Err(endpoint.refusal(head.status, &head.headers, &body));
    }
    let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT).map(|value| value.as_bytes().to_vec());
    if accepted.as_deref() != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(endpoint.protocol("it accepts another WebSocket than this one".to_owned()));
    }
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(|error| endpoint.broken(&error))?;
    let parts = upgraded.downcast::<TokioIo<Wire>>();
    let parts = parts.map_err(|_| endpoint.protocol("the upgraded connection is not TCP".to_owned()))?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(EVENT_BYTES_MAX))
        .max_frame_size(Some(EVENT_BYTES_MAX));
    let (stream, read) = (parts.io.into_inner(), parts.read_buf.to_vec());
    Ok(WebSocketStream::from_partially_read(stream, read, Role::Client, Some(config)).await)
}

/// What a close frame means.
fn bye(frame: Option<CloseFrame>) -> Result<Message, Error> {
    let Some(frame) = frame else { return Ok(Message::Bye { retry: None }) };
    let code = u16::from(frame.code);
    if code == CloseCode::GoingAway.code() || code == 1000 {
        return Ok(Message::Bye { retry: delay(&frame.reason) });
    }
    Err(Error::Closed { code, reason: frame.reason.to_string() })
}

/// The delay in a drain's close reason: its first whole number, in milliseconds.
fn delay(reason: &str) -> Option<Duration> {
    let digits = reason.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty())?;
    digits.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as Code;

    use super::*;

    #[test]
    fn closes() {
        let close =
            |code: u16, reason: &str| bye(Some(CloseFrame { code: Code::from(code), reason: reason.into() }));
        let retry = |message| match message {
            Ok(Message::Bye { retry }) => retry,
            other => panic!("{other:?}"),
        };
        assert_eq!(retry(close(1001, "retry=1500")), Some(Duration::from_millis(1500)));
        assert_eq!(retry(close(1000, "")), None);
        assert_eq!(retry(bye(None)), None);
        assert!(matches!(close(4008, "slow"), Err(Error::Closed { code: 4008, .. })));
    }
}
