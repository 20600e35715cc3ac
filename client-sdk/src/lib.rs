//! Client for the walcast notification broker: wait for events over long-poll, server-sent events or
//! WebSocket, read current values, publish.
//!
//! ```no_run
//! use walcast_client::{Client, EventsRequest, Message, Transport};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new("http://127.0.0.1:8480")?;
//! let request = EventsRequest::new(["vm/host-17".parse()?]);
//! let mut stream = client.open(Transport::Sse, request).await?;
//! while let Some(message) = stream.next().await? {
//!     if let Message::Event(event) = message {
//!         println!("{} {}", event.topic, event.data);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - [`client`]: [`Client`], the calls
//! - [`request`]: [`EventsRequest`], what to wait for and from where
//! - [`subscription`]: [`Subscription`] keeps the cursor; [`Message`] is what arrives; [`Stream`] is any
//!   transport
//! - [`poll`], [`sse`], [`websocket`]: the transports; [`publisher`]: the other direction
//! - [`error`]: [`Error`], each kind that a caller may branch on
//!
//! A stream ends when its connection does; it does not reconnect by itself. Its subscription holds the
//! cursor from which [`Client::resume`] goes on, over any transport, without loss or repetition.

pub mod client;
mod connection;
pub mod error;
pub mod poll;
pub mod publisher;
pub mod request;
pub mod sse;
pub mod subscription;
pub mod websocket;

use serde_json::value::RawValue;
pub use walcast_wire as wire;

pub use client::{Client, State};
pub use error::Error;
pub use poll::PollStream;
pub use request::{After, EventsRequest};
pub use sse::SseStream;
pub use subscription::{Message, Stream, Subscription, Transport};
pub use websocket::WsStream;

/// JSON as the broker sent it.
pub type Data = Box<RawValue>;

/// An event whose data was not looked into.
pub type Event = walcast_wire::Event<Data>;
