//! `GET /v1/events`: one address, answered as a long-poll or as a stream of server-sent events.

use std::future::poll_fn;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use walcast_wire::{Cursor, Epoch, Position};

use super::call::Request;
use super::openapi::{EventsReplyDoc, ProblemDoc};
use super::problem::Refusal;
use super::query::{After, Ask};
use super::{App, door, long_poll, sse};
use crate::auth::{Action, Key};

const PARAMETERS: &[&str] = &["topic", "after", "wait", "limit", "client"];

/// Waits for events.
///
/// Answers at once if there is something behind `after`, else holds the request up to `wait`, and then
/// answers with no events. Every answer carries a cursor: present it as `after` in the next request. With
/// `Accept: text/event-stream` the answer is a stream that ends only when one side closes it.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "waiting",
    params(
        ("topic" = Vec<String>, Query, explode = true, description = "1 to 100 topics or patterns; `*` is one segment, a final `**` the rest"),
        ("after" = Option<String>, Query, description = "A cursor, `now` or `earliest`. Without it state topics tell their current values first, others what comes"),
        ("wait" = Option<String>, Query, description = "Seconds, or like `50s`; default 50 s, at most 5 min. No meaning for streams"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Events in one answer, default 100; events that share a cursor are never parted. No meaning for streams"),
        ("client" = Option<String>, Query, max_length = 128, description = "How the client calls itself"),
        ("Last-Event-ID" = Option<String>, Header, description = "Streams only: the last `id` seen; wins over `after`"),
    ),
    responses(
        (status = 200, description = "Events in order, or none when `wait` ran out; or the stream", headers(("Walcast-Cursor" = String, description = "The cursor to present next")), content(
            (EventsReplyDoc = "application/json"),
            (String = "text/event-stream"),
        )),
        (status = 400, description = "`bad_topic`, `bad_cursor`, `bad_parameter`, `too_broad`", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 401, description = "`unauthorized`: no token, or none that is known", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 403, description = "`forbidden`: the token does not grant it", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 410, description = "`cursor_expired`, `epoch_changed`, `gap`: go on from `resume`", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 429, description = "`overloaded`: come back after `Retry-After`", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: come back after `Retry-After`", body = ProblemDoc, content_type = "application/problem+json"),
    )
)]
pub(super) async fn events(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Response {
    let request = Request { path: uri.path(), query: uri.query(), headers: &headers };
    match read(&request, &app) {
        Ok(Call::Poll(key, ask)) => {
            let answer = match long_poll::Wait::begin(&app, key, ask) {
                Ok(mut wait) => poll_fn(|cx| wait.poll(&app, cx)).await,
                Err(refusal) => Err(refusal),
            };
            answer.unwrap_or_else(Refusal::into_reply).into_response()
        }
        Ok(Call::Stream(key, ask)) => match sse::open(app, key, ask) {
            Ok(stream) => stream.into_response(),
            Err(refusal) => refusal.into_response(),
        },
        Err(refusal) => refusal.into_response(),
    }
}

/// The two ways to be answered, and who asks.
#[derive(Debug)]
pub(super) enum Call {
    Poll(Arc<Key>, Ask),
    Stream(Arc<Key>, Ask),
}

pub(super) fn read(request: &Request<'_>, app: &App) -> Result<Call, Refusal> {
    let key = app.admit(request)?;
    let mut ask = Ask::parse(request.query, PARAMETERS, &app.config)?;
    if ask.topics.is_empty() {
        return Err(Refusal::parameter("`topic` is missing; name what to wait for"));
    }
    door::check(&key, Action::Subscribe, &ask.topics)?;
    tracing::debug!(client = ask.client.as_deref(), topics = ask.topics.len(), "waits");
    if !wants_stream(request) {
        return Ok(Call::Poll(key, ask));
    }
    ask.after = last_event_id(request).or(ask.after);
    Ok(Call::Stream(key, ask))
}

fn wants_stream(request: &Request<'_>) -> bool {
    request
        .words("accept")
        .filter_map(|range| range.split(';').next())
        .any(|range| range.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// Where an EventSource goes on. It cannot mend an id that this broker does not understand and would give up
/// for ever on an error, so such an id counts as one of another number line: the stream begins with a reset.
fn last_event_id(request: &Request<'_>) -> Option<After> {
    let id = request.header("last-event-id").filter(|id| !id.is_empty())?;
    let foreign = Cursor::new(Epoch::default(), Position::ZERO);
    Some(After::Cursor(std::str::from_utf8(id).ok().and_then(|id| id.parse().ok()).unwrap_or(foreign)))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderValue, header};

    use super::*;

    #[test]
    fn a_stream_is_asked_for_by_name() {
        let check = |accept: &'static str, expected: bool| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            let request = Request { path: "/v1/events", query: None, headers: &headers };
            assert_eq!(wants_stream(&request), expected, "{accept}");
        };
        check("text/event-stream", true);
        check("application/json, TEXT/Event-Stream;q=0.9", true);
        check("*/*", false);
        check("text/event-streams", false);
    }
}
