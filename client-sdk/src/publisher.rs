//! Publishing through the broker. (An application that has a database connection calls
//! `walcast.publish` there instead, in its own transaction.)

use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use serde::Serialize;
use walcast_wire::Topic;

use crate::connection::SILENCE_MAX;
use crate::{Client, Error};

/// The body of a publish call.
#[derive(Serialize)]
struct Publish<'a, D: ?Sized> {
    topic: &'a Topic,
    data: &'a D,
}

impl Client {
    /// Publishes `data`. It is committed in Postgres when this returns.
    ///
    /// After an error of the connection it may or may not have been committed: repeat the call with the
    /// same `idempotency_key`, and it is published once.
    ///
    /// # Errors
    /// Any but [`Error::Closed`].
    pub async fn publish<D: Serialize + ?Sized>(
        &self,
        topic: &Topic,
        data: &D,
        idempotency_key: Option<&str>,
    ) -> Result<(), Error> {
        let body = serde_json::to_vec(&Publish { topic, data })
            .map_err(|error| Error::Request(error.to_string()))?;
        let mut post = self.endpoint.request("POST", "/v1/publish").header(CONTENT_TYPE, "application/json");
        if let Some(key) = idempotency_key {
            post = post.header("idempotency-key", key);
        }
        self.endpoint.call(post, Bytes::from(body), SILENCE_MAX).await.map(drop)
    }
}
