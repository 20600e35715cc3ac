//! Long-poll: one question, one answer, which always carries the cursor of the next question.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use walcast_wire::Cursor;

use super::App;
use super::problem::{Refusal, retry_after};
use super::query::Ask;
use super::reply::{Reply, streamed};
use super::session::{Page, Session};
use crate::hub::Encoded;

/// Carries the cursor where no JSON is parsed.
const CURSOR_HEADER: HeaderName = HeaderName::from_static("walcast-cursor");

/// Why a wait ends.
enum Turn {
    Page(Page),
    Leave,
    Late,
}

pub(super) async fn answer(app: &App, ask: Ask) -> Result<Reply, Refusal> {
    let Ask { topics, after, wait, limit, .. } = ask;
    let mut session = Session::open(app, topics, after)?;
    let turn = {
        let mut late = pin!(tokio::time::sleep(wait.unwrap_or(app.config.wait_default)));
        poll_fn(|cx| {
            // What is there is answered, however little time was given.
            if let Poll::Ready(page) = session.poll_whole(cx, limit, app.config.state_answer_bytes_max) {
                return Poll::Ready(page.map(Turn::Page));
            }
            if app.leaving() {
                return Poll::Ready(Ok(Turn::Leave));
            }
            late.as_mut().poll(cx).map(|()| Ok(Turn::Late))
        })
        .await?
    };
    let leaving = matches!(turn, Turn::Leave);
    let events = match turn {
        Turn::Page(Page::Events(events)) => events,
        Turn::Page(Page::Values(values)) => values.collect(),
        Turn::Page(Page::Reset(reset)) => return Err(reset.into()),
        Turn::Leave | Turn::Late if session.unsettled() => {
            return Err(Refusal::unavailable("current values are not known yet; ask again"));
        }
        Turn::Leave | Turn::Late => Vec::new(),
    };
    let reply = reply(session.bookmark(), &events);
    Ok(if leaving { reply.with(header::RETRY_AFTER, retry_after()) } else { reply })
}

fn reply(cursor: Cursor, events: &[Arc<Encoded>]) -> Reply {
    let cursor = cursor.encode();
    let mut reply = Reply::new(StatusCode::OK)
        .with(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply.headers.extend(streamed());
    if let Ok(value) = HeaderValue::from_bytes(&cursor) {
        reply = reply.with(CURSOR_HEADER, value);
    }
    let body = &mut reply.body;
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
    reply
}
