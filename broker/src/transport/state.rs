//! `GET /v1/state/{topic}`: the current value alone, so that a shell script needs no JSON parser.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use walcast_wire::{ProblemCode, Topic};

use super::App;
use super::openapi::ProblemDoc;
use super::problem::Refusal;
use super::query::{Ask, decode};
use super::session::Session;
use crate::hub::{Current, Encoded};

const PREFIX: &str = "/v1/state/";
const PIECE: usize = 64;

/// Reads the current value of a state topic, or waits for it.
///
/// The body is the value alone; the `ETag` is its cursor. Without a value the request is held up to `wait`,
/// then answered 404. With `If-None-Match` it is held until the value differs, else answered 304; if the
/// value goes away meanwhile, 404 at once. Without `wait` it is answered at once.
#[utoipa::path(
    get,
    path = "/v1/state/{*topic}",
    tag = "waiting",
    params(
        ("topic" = String, Path, description = "A topic, percent-encoded; its slashes may stand as they are"),
        ("wait" = Option<String>, Query, description = "Seconds, or like `50s`; default 0, at most 5 min"),
        ("client" = Option<String>, Query, max_length = 128, description = "How the client calls itself"),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of the value that the client has"),
    ),
    responses(
        (status = 200, description = "The value", body = Object, content_type = "application/json", headers(("ETag" = String, description = "The value's cursor, quoted"))),
        (status = 304, description = "Still the value of `If-None-Match`"),
        (status = 400, description = "`bad_topic`, `bad_parameter`", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: no value", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 429, description = "`overloaded`: come back after `Retry-After`", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: current values are not known yet, or the broker drains", body = ProblemDoc, content_type = "application/problem+json"),
    )
)]
pub(super) async fn state(
    State(app): State<Arc<App>>,
    uri: Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let ask = Ask::parse(query.as_deref(), &["wait", "client"], &app.config)?;
    let name = decode(uri.path().strip_prefix(PREFIX).unwrap_or_default(), false)?;
    let topic = Topic::new(&name)
        .map_err(|error| Refusal::new(ProblemCode::BadTopic, format!("{name:?}: {error}")))?;
    // Subscribed before the first look, so that no change between look and wait is missed.
    let mut session = Session::open(&app, vec![topic.clone().into()], None)?;
    let wait = tokio::time::sleep(ask.wait.unwrap_or(Duration::ZERO));
    let changed = async {
        session.settled().await;
        loop {
            match answer(&app, &topic, &headers) {
                Answer::Now(result) => return result,
                Answer::Hold => drop(session.page(PIECE).await),
            }
        }
    };
    tokio::select! {
        biased; // What is known is answered, however little time was given.
        result = changed => result,
        () = app.leave() => Err(Refusal::unavailable("the broker goes away; ask again")),
        () = wait => match app.hub.current(&topic) {
            Current::Unsettled => Err(Refusal::unavailable("current values are not known yet; ask again")),
            Current::None => Err(Refusal::new(ProblemCode::NotFound, format!("no current value for {name:?}"))),
            Current::Value(value) if matches(&headers, &etag(&value)) => {
                Ok((StatusCode::NOT_MODIFIED, meta(&value)).into_response())
            }
            Current::Value(value) => Ok(whole(&value)),
        },
    }
}

enum Answer {
    Now(Result<Response, Refusal>),
    Hold,
}

fn answer(app: &App, topic: &Topic, headers: &HeaderMap) -> Answer {
    match app.hub.current(topic) {
        Current::Value(value) if !matches(headers, &etag(&value)) => Answer::Now(Ok(whole(&value))),
        Current::None if headers.contains_key(header::IF_NONE_MATCH) => Answer::Now(Err(Refusal::new(
            ProblemCode::NotFound,
            format!("the value of {:?} that you have is gone", topic.as_str()),
        ))),
        Current::Value(_) | Current::None | Current::Unsettled => Answer::Hold,
    }
}

fn whole(value: &Encoded) -> Response {
    (meta(value), Body::from(value.data())).into_response()
}

fn etag(value: &Encoded) -> String {
    format!("\"{}\"", value.cursor())
}

fn meta(value: &Encoded) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(etag) = HeaderValue::try_from(etag(value)) {
        headers.insert(header::ETAG, etag);
    }
    headers
}

/// Whether `If-None-Match` names `etag`, by weak comparison (RFC 9110).
fn matches(headers: &HeaderMap, etag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|candidate| candidate == "*" || candidate.strip_prefix("W/").unwrap_or(candidate) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_match_as_http_says() {
        let check = |value: &'static str, expected: bool| {
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(value))]);
            assert_eq!(matches(&headers, "\"a\""), expected, "{value}");
        };
        check("\"a\"", true);
        check("W/\"a\"", true);
        check("\"b\", \"a\"", true);
        check("*", true);
        check("\"b\"", false);
        check("a", false);
    }
}
