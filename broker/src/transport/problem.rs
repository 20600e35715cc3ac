//! How a call is refused: `application/problem+json` with a stable code, and when to come back.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use walcast_wire::{Cursor, Problem, ProblemCode};

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
            ProblemCode::EpochChanged => "the cursor belongs to another number line",
            ProblemCode::Gap => "events after the cursor never reached this broker",
            _ => "the events after the cursor are no longer held",
        };
        let detail = format!("{detail}; some may be lost to you: go on from `resume`");
        Self { resume: Some(reset.resume), ..Self::new(code, detail) }
    }
}

/// Seconds after which a refused client may come back, spread so that a crowd does not come at once.
pub(crate) fn retry_after() -> HeaderValue {
    HeaderValue::from(rand::random_range(1_u32..=10))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let problem = Problem {
            title: self.code.title(),
            status: status.as_u16(),
            code: self.code,
            detail: self.detail,
            resume: self.resume,
        };
        // Plain data with string keys: serialising it cannot fail.
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if matches!(self.code, ProblemCode::Overloaded | ProblemCode::Unavailable) {
            headers.insert(header::RETRY_AFTER, retry_after());
        }
        response
    }
}
