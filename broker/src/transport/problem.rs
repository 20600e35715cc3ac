//! How a call is refused: `application/problem+json` with a stable code, and when to come back.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use walcast_wire::{Cursor, Problem, ProblemCode};

use super::reply::Reply;
use crate::hub::SubscribeError;

/// A refused call.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// What the client branches on.
    pub(crate) code: ProblemCode,
    /// What was wrong and what to do, for people.
    pub(crate) detail: String,
    /// With a reset: where to go on.
    pub(crate) resume: Option<Cursor>,
}

impl Refusal {
    pub(crate) fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), resume: None }
    }

    pub(crate) fn parameter(detail: impl Into<String>) -> Self {
        Self::new(ProblemCode::BadParameter, detail)
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(ProblemCode::Unavailable, detail)
    }
}

impl From<walcast_wire::Reset> for Refusal {
    fn from(reset: walcast_wire::Reset) -> Self {
        let code = reset.reason.code();
        let detail = match code {
            ProblemCode::EpochChanged => "the order of events that the cursor belongs to has ended",
            ProblemCode::Gap => "events after the cursor never reached this broker",
            _ => "the events after the cursor are no longer held",
        };
        let detail = format!("{detail}; you may have missed some: go on from `resume`");
        Self { resume: Some(reset.resume), ..Self::new(code, detail) }
    }
}

impl From<SubscribeError> for Refusal {
    fn from(error: SubscribeError) -> Self {
        let code = match error {
            SubscribeError::NotStarted => ProblemCode::Unavailable,
            SubscribeError::TooManyTopics { .. } => ProblemCode::BadParameter,
            SubscribeError::Overloaded => ProblemCode::Overloaded,
        };
        Self::new(code, error.to_string())
    }
}

/// Seconds after which a refused client may come back, spread so that a crowd does not come at once.
pub(crate) fn retry_after() -> HeaderValue {
    HeaderValue::from(rand::random_range(1_u32..=10))
}

impl Refusal {
    /// The problem document, on one line.
    pub(crate) fn into_json(self) -> Vec<u8> {
        let problem = Problem { resume: self.resume, ..Problem::new(self.code, self.detail) };
        // Plain data with string keys: serialising it cannot fail.
        serde_json::to_vec(&problem).unwrap_or_default()
    }

    /// The answer that says so.
    pub(crate) fn into_reply(self) -> Reply {
        let code = self.code;
        let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut reply = Reply::new(status)
            .with(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"))
            .with(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        reply.body.share(self.into_json().into());
        if matches!(code, ProblemCode::Overloaded | ProblemCode::Unavailable) {
            reply = reply.with(header::RETRY_AFTER, retry_after());
        }
        if code == ProblemCode::Unauthorized {
            reply = reply.with(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        reply
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.into_reply().into_response()
    }
}
