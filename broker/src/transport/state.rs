//! `GET /v1/state/{topic}`: the current value alone, so that a shell script needs no JSON parser.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use walcast_wire::{ProblemCode, Topic};

use super::call::Request;
use super::look::Look;
use super::openapi::ProblemDoc;
use super::problem::Refusal;
use super::query::{Ask, decode};
use super::reply::Reply;
use super::session::Late;
use super::{App, Config, door, waiters};
use crate::auth::{Action, Key};
use crate::hub::{Current, Encoded};

/// What stands before the topic.
pub(super) const PREFIX: &str = "/v1/state/";

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
        (status = 401, description = "`unauthorized`: no token, or none that is known", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 403, description = "`forbidden`: the token does not grant it", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: no value", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 429, description = "`overloaded`: come back after `Retry-After`", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`: current values are not known yet, or the broker drains", body = ProblemDoc, content_type = "application/problem+json"),
    )
)]
pub(super) async fn state(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Reply, Refusal> {
    let request = Request { path: uri.path(), query: uri.query(), headers: &headers };
    let (key, question) = read(&request, &app)?;
    let mut wait = Wait::begin(&app, key, question)?;
    poll_fn(|cx| wait.poll(&app, cx)).await
}

/// What a request for a current value asks.
#[derive(Debug)]
pub(super) struct Question {
    topic: Topic,
    wait: Duration,
    /// What the client has: the values of `If-None-Match`.
    known: Vec<String>,
    client: Option<Box<str>>,
}

/// Reads a question, and who asks.
pub(super) fn read(request: &Request<'_>, app: &App) -> Result<(Arc<Key>, Question), Refusal> {
    let key = app.admit(request)?;
    let question = parse(request, &app.config)?;
    door::check(&key, Action::Subscribe, &[question.topic.clone().into()])?;
    Ok((key, question))
}

fn parse(request: &Request<'_>, config: &Config) -> Result<Question, Refusal> {
    let ask = Ask::parse(request.query, &["wait", "client"], config)?;
    let name = decode(request.path.strip_prefix(PREFIX).unwrap_or_default(), false)?;
    let topic = Topic::new(&name)
        .map_err(|error| Refusal::new(ProblemCode::BadTopic, format!("{name:?}: {error}")))?;
    let known = request.words("if-none-match").map(str::to_owned).collect();
    Ok(Question { topic, wait: ask.wait.unwrap_or_default(), known, client: ask.client })
}

/// A question that waits for its answer.
pub(super) struct Wait {
    known: Vec<String>,
    looking: Look,
    late: Late,
}

impl Wait {
    pub(super) fn begin(app: &App, key: Arc<Key>, question: Question) -> Result<Self, Refusal> {
        let Question { topic, wait, known, client } = question;
        let looking = Look::open(app, key, topic, waiters::name(client, "state"))?;
        Ok(Self { known, looking, late: Late::new(app, wait) })
    }

    /// The answer, once there is one, or the time is up.
    pub(super) fn poll(&mut self, app: &App, cx: &mut Context<'_>) -> Poll<Result<Reply, Refusal>> {
        let (topic, known) = (self.looking.topic().clone(), &self.known[..]);
        // What is known is answered, however little time was given. Behind a reset the value is whole all the same.
        let looked = self.looking.poll(app, cx, |current| look(current, &topic, known), |_| None);
        if let Poll::Ready(answer) = looked {
            return Poll::Ready(answer);
        }
        if self.looking.ends(app) {
            return Poll::Ready(Err(Refusal::unavailable("the broker goes away; ask again")));
        }
        std::task::ready!(self.late.poll(cx, || self.looking.unsettled(app)));
        Poll::Ready(last(self.looking.last(app), &topic, known))
    }
}

/// What can be said before the time is up.
fn look(current: &Current, topic: &Topic, known: &[String]) -> Option<Result<Reply, Refusal>> {
    match current {
        Current::Value(value) if !matches(known, &etag(value)) => Some(Ok(whole(value))),
        Current::None if !known.is_empty() => Some(Err(Refusal::new(
            ProblemCode::NotFound,
            format!("the value of {:?} that you have is gone", topic.as_str()),
        ))),
        Current::Value(_) | Current::None | Current::Unsettled => None,
    }
}

/// What is said when it is.
fn last(current: Current, topic: &Topic, known: &[String]) -> Result<Reply, Refusal> {
    match current {
        Current::Unsettled => Err(Refusal::unavailable("current values are not known yet; ask again")),
        Current::None => {
            Err(Refusal::new(ProblemCode::NotFound, format!("no current value for {:?}", topic.as_str())))
        }
        Current::Value(value) if matches(known, &etag(&value)) => {
            Ok(meta(Reply::new(StatusCode::NOT_MODIFIED), &value))
        }
        Current::Value(value) => Ok(whole(&value)),
    }
}

fn whole(value: &Encoded) -> Reply {
    let mut reply = meta(Reply::new(StatusCode::OK), value);
    reply.body.share(value.data());
    reply
}

fn etag(value: &Encoded) -> String {
    format!("\"{}\"", value.cursor())
}

fn meta(reply: Reply, value: &Encoded) -> Reply {
    let reply = reply
        .with(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .with(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    match HeaderValue::try_from(etag(value)) {
        Ok(etag) => reply.with(header::ETAG, etag),
        Err(_) => reply,
    }
}

/// Whether the client has the value of `etag`, by weak comparison (RFC 9110).
fn matches(known: &[String], etag: &str) -> bool {
    known.iter().any(|it| it == "*" || it.strip_prefix("W/").unwrap_or(it) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_match_as_http_says() {
        let check = |value: &'static str, expected: bool| {
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(value))]);
            let request = Request { path: "/v1/state/vm/a", query: None, headers: &headers };
            let known = parse(&request, &Config::default()).unwrap().known;
            assert_eq!(matches(&known, "\"a\""), expected, "{value}");
        };
        check("\"a\"", true);
        check("W/\"a\"", true);
        check("\"b\", \"a\"", true);
        check("*", true);
        check("\"b\"", false);
        check("a", false);
    }
}
