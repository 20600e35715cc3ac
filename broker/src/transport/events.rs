//! `GET /v1/events`: one address, answered as a long-poll or as a stream of server-sent events.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use walcast_wire::{Cursor, Epoch, Position};

use super::openapi::{EventsReplyDoc, ProblemDoc};
use super::problem::Refusal;
use super::query::{After, Ask};
use super::{App, long_poll, sse};

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
        (status = 410, description = "`cursor_expired`, `epoch_changed`, `gap`: go on from `resume`", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 429, description = "`overloaded`: come back after `Retry-After`", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: come back after `Retry-After`", body = ProblemDoc, content_type = "application/problem+json"),
    )
)]
pub(super) async fn events(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let ask = Ask::parse(query.as_deref(), PARAMETERS, &app.config).and_then(|ask| match ask.topics[..] {
        [] => Err(Refusal::parameter("`topic` is missing; name what to wait for")),
        _ => Ok(ask),
    });
    let ask = match ask {
        Ok(ask) => ask,
        Err(refusal) => return refusal.into_response(),
    };
    tracing::debug!(client = ask.client.as_deref(), topics = ask.topics.len(), "waits");
    if wants_stream(&headers) {
        let after = last_event_id(&headers).or(ask.after);
        return sse::answer(app, ask.topics, after);
    }
    long_poll::answer(&app, ask).await.unwrap_or_else(IntoResponse::into_response)
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .filter_map(|range| range.split(';').next())
        .any(|range| range.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// Where an EventSource goes on. It cannot mend an id that this broker does not understand and would give up
/// for ever on an error, so such an id counts as one of another number line: the stream begins with a reset.
fn last_event_id(headers: &HeaderMap) -> Option<After> {
    let id = headers.get("last-event-id").filter(|id| !id.is_empty())?;
    let foreign = Cursor::new(Epoch::default(), Position::ZERO);
    Some(After::Cursor(id.to_str().ok().and_then(|id| id.parse().ok()).unwrap_or(foreign)))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_stream_is_asked_for_by_name() {
        let check = |accept: &'static str, expected: bool| {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(wants_stream(&headers), expected, "{accept}");
        };
        check("text/event-stream", true);
        check("application/json, TEXT/Event-Stream;q=0.9", true);
        check("*/*", false);
        check("text/event-streams", false);
    }
}
