//! `POST /v1/publish`: committed in Postgres before it is answered.
//!
//! Who commits it is not this module's business: the node hands in a [`Publisher`].

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::value::RawValue;
use walcast_wire::{ProblemCode, Topic};

use super::body::{bad_body, is_of_type};
use super::call::Request;
use super::openapi::{ProblemDoc, PublishDoc, PublishedDoc};
use super::problem::Refusal;
use super::query::Ask;
use super::{App, body, door};
use crate::auth::Action;

/// Longest idempotency key, in characters.
const KEY_CHARS_MAX: usize = 255;

/// Commits messages.
pub trait Publisher: Send + Sync {
    /// Commits `data` on `topic`, once per `key` where there is one.
    fn publish<'a>(
        &'a self,
        topic: &'a Topic,
        data: &'a RawValue,
        key: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Published, PublishError>>;
}

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// The transaction, as the event carries it.
    pub xid: Option<u32>,
    /// The same key had been published before with the same content; nothing new was committed.
    pub duplicate: bool,
}

/// Why nothing was committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Postgres refused the message; says why.
    #[error("Postgres refused the message: {0}")]
    Rejected(String),
    /// The key was used before with other content.
    #[error("the idempotency key was used before, with other content")]
    Conflict,
    /// Too many publishes wait.
    #[error("too many publishes at a time; try again shortly")]
    Busy,
    /// Postgres cannot be reached, or the outcome is unknown; says why.
    #[error("cannot publish: {0}; try again, with an idempotency key to be safe")]
    Unavailable(String),
}

impl From<PublishError> for Refusal {
    fn from(error: PublishError) -> Self {
        let code = match &error {
            PublishError::Rejected(_) => ProblemCode::Rejected,
            PublishError::Conflict => ProblemCode::IdempotencyConflict,
            PublishError::Busy | PublishError::Unavailable(_) => ProblemCode::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

/// The body, its data untouched: parsing it would cost memory and change it, and nesting costs no stack.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    topic: String,
    data: Box<RawValue>,
}

/// Publishes a message.
///
/// It is committed when the answer comes. With an `Idempotency-Key` the same request may be repeated for 24
/// hours and is committed once.
#[utoipa::path(
    post,
    path = "/v1/publish",
    tag = "publishing",
    params(("Idempotency-Key" = Option<String>, Header, max_length = 255, description = "Up to 255 visible ASCII characters, chosen by the client")),
    request_body(content = PublishDoc, description = "At most 64 KiB"),
    responses(
        (status = 200, description = "Committed", body = PublishedDoc),
        (status = 400, description = "`bad_body`, `bad_topic`, `bad_parameter`", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 401, description = "`unauthorized`: no token, or none that is known", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 403, description = "`forbidden`: the token does not grant it", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 413, description = "`body_too_large`", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 422, description = "`rejected`, `idempotency_conflict`", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: come back after `Retry-After`", body = ProblemDoc, content_type = "application/problem+json"),
    )
)]
pub(super) async fn publish(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let guest = app.admit(&Request { path: uri.path(), query: uri.query(), headers: &headers })?;
    Ask::parse(uri.query(), &[], &app.config)?;
    let key = idempotency_key(&headers)?;
    if !is_json(&headers) {
        return Err(bad_body("the body is JSON; say so with `Content-Type: application/json`"));
    }
    let bytes = body::collect(body, &headers, app.config.body_bytes_max).await?;
    let message: Message = serde_json::from_slice(&bytes)
        .map_err(|error| bad_body(format!("the body is `{{\"topic\": …, \"data\": …}}`: {error}")))?;
    // The body may have taken its time.
    if guest.revoked() {
        return Err(Refusal::new(ProblemCode::Unauthorized, "the token was taken back"));
    }
    let topic = Topic::new(&message.topic)
        .map_err(|error| Refusal::new(ProblemCode::BadTopic, format!("{:?}: {error}", message.topic)))?;
    door::check(&guest, Action::Publish, &[topic.clone().into()])?;
    let published = app.publisher.publish(&topic, &message.data, key).await?;
    let Published { xid, duplicate } = published;
    Ok(Json(PublishedDoc { topic: topic.to_string(), xid, duplicate }).into_response())
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| is_of_type(kind.as_bytes(), "application/json"))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut keys = headers.get_all("idempotency-key").into_iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| {
        (1..=KEY_CHARS_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
    });
    match (key, keys.next()) {
        (Some(key), None) => Ok(Some(key)),
        _ => Err(Refusal::parameter(format!(
            "`Idempotency-Key` stands once and has 1 to {KEY_CHARS_MAX} visible ASCII characters"
        ))),
    }
}
