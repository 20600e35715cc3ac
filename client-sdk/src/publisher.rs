//! Publishing: through the brokers, or in a transaction of one's own.
//!
//! [`Client::publish`] asks a broker. An application that has a database connection publishes there instead, so that the
//! message comes with what the transaction changes, or not at all: over tokio-postgres by `publish`, `notify` and `send`
//! with the feature `postgres`, over sqlx by those of `publisher::sqlx` with the feature `sqlx`.

#[cfg(any(feature = "postgres", feature = "sqlx"))]
mod message;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlx")]
pub mod sqlx;

#[cfg(any(feature = "postgres", feature = "sqlx"))]
pub use message::{EVENT_BYTES_MAX, Message, PublishError};
#[cfg(feature = "postgres")]
pub use postgres::{notify, publish, send};

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use walcast_wire::Topic;

use crate::call::Answer;
use crate::{Client, Error, call};

/// The body of a publish call.
#[derive(Serialize)]
struct Body<'a, D: ?Sized> {
    topic: &'a Topic,
    data: &'a D,
}

/// What became of a publication.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// let published = client.publish("jobs/7", "new").await?;
/// println!("transaction {:?}, again: {}", published.xid, published.duplicate);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Published {
    /// The transaction, as the event carries it.
    pub xid: Option<u32>,
    /// The idempotency key was used before: this call published nothing.
    pub duplicate: bool,
}

impl Client {
    /// Publishes `data`, JSON of at most 64 KiB. It is committed in Postgres when this is done.
    ///
    /// Each call has an idempotency key of its own, so that it publishes once, whichever broker it reaches and
    /// however often it is tried.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), walcast_client::Error> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// client.publish("jobs/done", &serde_json::json!({"id": 7})).idempotency_key("run-42").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn publish<D: Serialize + ?Sized>(&self, topic: impl AsRef<str>, data: &D) -> Publish {
        let body = call::topic(topic.as_ref()).and_then(|topic| {
            let body = serde_json::to_vec(&Body { topic: &topic, data });
            Ok((topic, Bytes::from(body.map_err(|error| Error::Request(error.to_string()))?)))
        });
        Publish { client: self.clone(), body, key: uuid::Uuid::new_v4().to_string() }
    }
}

/// Publishes; from [`Client::publish`]. Await it.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// client.publish("jobs/7", "new").idempotency_key("order-1047").await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Topic`], [`Error::Request`] (the data cannot be written as JSON, or the key has other than visible
/// ASCII characters), [`Error::Refused`], [`Error::Certificate`] of every broker, or whatever came last when the
/// [patience](crate::ClientBuilder::patience) was over. Then it may or may not have been published; repeat it with
/// the same key.
#[derive(Debug)]
#[must_use = "await it"]
pub struct Publish {
    client: Client,
    body: Result<(Topic, Bytes), Error>,
    key: String,
}

impl Publish {
    /// Publishes nothing if this key was used within the last 24 hours: give one where the caller itself may be
    /// repeated. 1 to 255 visible ASCII characters. Default: a random one.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// // However often this program is started for that order.
    /// client.publish("orders/1047", "paid").idempotency_key("order-1047-paid").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.key = key.into();
        self
    }

    async fn send(self) -> Result<Published, Error> {
        let (topic, body) = self.body?;
        let key = HeaderValue::try_from(self.key)
            .map_err(|_| Error::Request("an idempotency key has only visible ASCII characters".to_owned()))?;
        // Longer than the clock goes is for ever.
        let deadline = Instant::now().checked_add(self.client.patience);
        self.client
            .over(topic.as_str(), deadline, |endpoint| {
                let (key, body) = (key.clone(), body.clone());
                async move {
                    let post = endpoint
                        .request("POST", "/v1/publish")
                        .header(CONTENT_TYPE, "application/json")
                        .header("idempotency-key", key);
                    let (_, _, answer) = endpoint.call(post, body, Duration::ZERO).await?;
                    serde_json::from_slice(&answer).map_err(|error| endpoint.protocol(error.to_string()))
                }
            })
            .await
    }
}

impl IntoFuture for Publish {
    type Output = Result<Published, Error>;
    type IntoFuture = Answer<Published>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}
