//! Client for the walcast notification broker: follow topics, wait for one event, read current values, publish.
//!
//! ```no_run
//! use walcast_client::{Client, Update};
//!
//! # async fn example() -> Result<(), walcast_client::Error> {
//! let client = Client::builder().hosts(["http://broker-1:8480", "http://broker-2:8480"]).build()?;
//! let mut updates = client.subscribe(["vm/host-17"]).stream();
//! while let Some(update) = updates.next().await {
//!     if let Update::Event(event) = update? {
//!         println!("{} {}", event.topic, event.data);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Over all brokers, over cuts and restarts:
//! - [`builder`]: [`ClientBuilder`]: where the brokers are, who we are, whom we trust
//! - [`subscribe`]: [`Client::subscribe`], a stream of [`Update`]s; [`store`]: [`CursorStore`] keeps its place
//! - [`wait`]: [`Client::wait`] for the next event, [`Client::wait_for`] a condition
//! - [`call`]: [`Client::state`], a current value; [`publisher`]: [`Client::publish`]
//! - [`canary`]: [`Canary`], which part of a fleet takes part
//! - [`error`]: [`Error`], each kind that a caller may branch on
//!
//! One attempt at one broker, for programs that decide themselves what comes next:
//! - [`client`]: [`Client::poll`], [`Client::open`], [`Client::resume`]
//! - [`request`]: [`EventsRequest`], what to wait for and from where
//! - [`subscription`]: [`Subscription`] keeps the cursor; [`Message`] is what arrives; [`Stream`] is any transport
//! - [`poll`], [`sse`], [`websocket`]: the transports
//!
//! Such a stream ends when its connection does. Its subscription holds the cursor from which [`Client::resume`] goes
//! on, over any transport, without loss or repetition.
//!
//! The feature `tls`, on by default, is for `https`. Off by default, for programs that have such a client anyway:
//! - `postgres` and `sqlx`: publishing in a transaction of one's own, over tokio-postgres or over sqlx: [`publisher`]
//! - `redis` and `fred`: following the channels in Redis, over redis-rs or over fred: `RedisSubscriber`

pub mod builder;
pub mod call;
pub mod canary;
#[cfg(any(feature = "redis", feature = "fred"))]
pub mod channels;
pub mod client;
mod connection;
mod dial;
pub mod error;
mod follow;
mod hosts;
mod ladder;
mod pace;
pub mod poll;
pub mod publisher;
mod reconnect;
pub mod request;
pub mod sse;
pub mod store;
pub mod subscribe;
pub mod subscription;
#[cfg(feature = "tls")]
mod tls;
mod values;
pub mod wait;
pub mod websocket;

use serde_json::value::RawValue;
pub use walcast_wire as wire;

pub use builder::ClientBuilder;
pub use call::{GetState, State};
pub use canary::Canary;
#[cfg(any(feature = "redis", feature = "fred"))]
pub use channels::{RedisSubscriber, RedisUpdates};
pub use client::Client;
pub use error::Error;
pub use poll::PollStream;
pub use publisher::{Publish, Published};
pub use request::{After, EventsRequest};
pub use sse::SseStream;
pub use store::{CursorStore, FileStore};
pub use subscribe::{Subscribe, Update, Updates};
pub use subscription::{Message, Stream, Subscription, Transport};
pub use wait::Wait;
pub use websocket::WsStream;

/// JSON as the broker sent it.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use walcast_client::Data;
///
/// let data: Data = serde_json::from_str(r#"{"pin": 1.10}"#)?;
/// assert_eq!(data.get(), r#"{"pin": 1.10}"#);
/// # Ok(())
/// # }
/// ```
pub type Data = Box<RawValue>;

/// An event whose data was not looked into.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// let event = client.wait("vm/host-17").await?;
/// let row: serde_json::Value = serde_json::from_str(event.data.get())?;
/// println!("{} {} {}", event.cursor, event.topic, row["pin"]);
/// # Ok(())
/// # }
/// ```
pub type Event = walcast_wire::Event<Data>;
