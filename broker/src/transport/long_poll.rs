//! Long-poll: one question, one answer, which always carries the cursor of the next question.

use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use walcast_wire::Cursor;

use super::problem::{Refusal, retry_after};
use super::query::Ask;
use super::reply::{Reply, streamed};
use super::session::{Late, Page, Session};
use super::{App, waiters};
use crate::auth::Key;
use crate::hub::Encoded;

/// Carries the cursor where no JSON is parsed.
const CURSOR_HEADER: HeaderName = HeaderName::from_static("walcast-cursor");

/// Why a wait ends.
enum Turn {
    Page(Page),
    Leave,
    Late,
}

/// A question that waits for its answer. Thousands are parked at a time: it is all that each of them needs.
pub(super) struct Wait {
    session: Session,
    late: Late,
    limit: usize,
}

impl Wait {
    pub(super) fn begin(app: &App, key: Arc<Key>, ask: Ask) -> Result<Self, Refusal> {
        let late = Late::new(app, ask.wait.unwrap_or(app.config.wait_default));
        let session = Session::open(app, key, ask.topics, ask.after, waiters::name(ask.client, "poll"))?;
        Ok(Self { session, late, limit: ask.limit })
    }

    /// The answer, once there is something, or the time is up.
    pub(super) fn poll(&mut self, app: &App, cx: &mut Context<'_>) -> Poll<Result<Reply, Refusal>> {
        let bytes_max = app.config.state_answer_bytes_max;
        // What is there is answered, however little time was given.
        let turn = match self.session.poll_whole(cx, self.limit, bytes_max) {
            Poll::Ready(Ok(page)) => Turn::Page(page),
            Poll::Ready(Err(refusal)) => return Poll::Ready(Err(refusal)),
            Poll::Pending if self.session.ends(app) => Turn::Leave,
            Poll::Pending => {
                std::task::ready!(self.late.poll(cx, || self.session.unsettled()));
                Turn::Late
            }
        };
        Poll::Ready(self.answer(turn))
    }

    fn answer(&mut self, turn: Turn) -> Result<Reply, Refusal> {
        let leaving = matches!(turn, Turn::Leave);
        let events = match turn {
            Turn::Page(Page::Events(events)) => events,
            Turn::Page(Page::Values(values)) => values.collect(),
            Turn::Page(Page::Reset(reset)) => return Err(reset.into()),
            Turn::Leave | Turn::Late if self.session.unsettled() => {
                return Err(Refusal::unavailable("current values are not known yet; ask again"));
            }
            Turn::Leave | Turn::Late => Vec::new(),
        };
        let reply = reply(self.session.bookmark(), &events);
        Ok(if leaving { reply.with(header::RETRY_AFTER, retry_after()) } else { reply })
    }
}

fn reply(cursor: Cursor, events: &[Arc<Encoded>]) -> Reply {
    let cursor = cursor.encode();
    let mut reply =
        Reply::new(StatusCode::OK).with(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
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
