//! Bodies of requests: whole, within a limit and a time.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use walcast_wire::ProblemCode;

use super::problem::Refusal;

/// Time for a body to arrive.
pub(super) const TIMEOUT: Duration = Duration::from_secs(15);

/// A body that hyper reads.
pub(super) async fn collect(body: Body, headers: &HeaderMap, max: usize) -> Result<Bytes, Refusal> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > max as u64) {
        return Err(too_large(max));
    }
    match tokio::time::timeout(TIMEOUT, Limited::new(body, max).collect()).await {
        Err(_) => Err(late()),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large(max)),
        Ok(Err(error)) => Err(bad_body(format!("the body did not arrive whole: {error}"))),
    }
}

/// A body that did not.
pub(super) fn late() -> Refusal {
    bad_body(format!("the body did not arrive within {} s", TIMEOUT.as_secs()))
}

/// Whether a `Content-Type` is this one, whatever its parameters.
pub(super) fn is_of_type(header: &[u8], media_type: &str) -> bool {
    let named = header.split(|byte| *byte == b';').next().unwrap_or_default();
    named.trim_ascii().eq_ignore_ascii_case(media_type.as_bytes())
}

fn too_large(max: usize) -> Refusal {
    Refusal::new(ProblemCode::BodyTooLarge, format!("the body has at most {max} bytes"))
}

/// A body that is not what the call takes.
pub(super) fn bad_body(detail: impl Into<String>) -> Refusal {
    Refusal::new(ProblemCode::BadBody, detail)
}
