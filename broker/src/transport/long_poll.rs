//! Long-poll: one question, one answer, which always carries the cursor of the next question.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use walcast_wire::Cursor;

use super::App;
use super::pieces::Pieces;
use super::problem::{Refusal, retry_after};
use super::query::Ask;
use super::session::{Page, Session};
use crate::hub::Encoded;

/// Carries the cursor where no JSON is parsed.
pub(super) const CURSOR_HEADER: HeaderName = HeaderName::from_static("walcast-cursor");

pub(super) async fn answer(app: &App, ask: Ask) -> Result<Response, Refusal> {
    let wait = ask.wait.unwrap_or(app.config.wait_default);
    let mut session = Session::open(app, ask.topics, ask.after)?;
    let first = async {
        session.check_values(app.config.state_answer_bytes_max).await?;
        Ok::<_, Refusal>(session.page(ask.limit).await)
    };
    let (page, draining) = tokio::select! {
        biased; // What is there is answered, however little time was given.
        page = first => (Some(page?), false),
        () = app.leave() => (None, true),
        () = tokio::time::sleep(wait) => (None, false),
    };
    let events = match page {
        Some(Page::Events(events)) => events,
        Some(Page::Values(values)) => values.collect(),
        Some(Page::Reset(reset)) => return Err(reset.into()),
        None if session.unsettled() => {
            return Err(Refusal::unavailable("current values are not known yet; ask again"));
        }
        None => Vec::new(),
    };
    let mut response = reply(session.bookmark(), &events);
    if draining {
        response.headers_mut().insert(header::RETRY_AFTER, retry_after());
    }
    Ok(response)
}

fn reply(cursor: Cursor, events: &[Arc<Encoded>]) -> Response {
    let cursor = cursor.encode();
    let mut body = Pieces::default();
    body.copy(b"{\"cursor\":\"");
    body.copy(&cursor);
    body.copy(b"\",\"events\":[");
    for (i, event) in events.iter().enumerate() {
        if i > 0 {
            body.copy(b",");
        }
        body.share(event.json());
    }
    body.copy(b"]}");
    let mut headers = HeaderMap::with_capacity(5);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    streamed(&mut headers);
    if let Ok(value) = HeaderValue::from_bytes(&cursor) {
        headers.insert(CURSOR_HEADER, value);
    }
    (headers, Body::new(body.into_body())).into_response()
}

/// Keeps proxies and browsers from storing or holding back what is said once.
pub(super) fn streamed(headers: &mut HeaderMap) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
}
