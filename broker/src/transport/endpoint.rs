//! Configured endpoints: a client's own request, held until what it asks for is ready.
//!
//! A request that is held begins to be answered only when silence would get it cut: with a blank now and then, which
//! JSON allows before a value. By then it has the status of a success, so whatever is no success ends the body in its
//! middle, and the client sees a request that failed.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use metrics::counter;
use serde::Deserialize;
use tokio::time::Instant;
use walcast_wire::{Cursor, ProblemCode, Topic};

use super::beat::Beat;
use super::body::{bad_body, collect};
use super::call::Request;
use super::fields::{self, BodyKind};
use super::look::Look;
use super::problem::Refusal;
use super::reply::{Reply, streamed};
use super::session::{PIECE, Page, Session};
use super::{App, door, query, waiters};
use crate::auth::{Action, Key};
use crate::endpoint::{Admits, Answer, Endpoint, Field, Found, Of, Verdict};
use crate::hub::{Current, Encoded};
use crate::telemetry::{ENDPOINT_REQUESTS_TOTAL, LABEL_ENDPOINT, LABEL_OUTCOME};

/// What a held request hears.
pub(super) const BLANK: Bytes = Bytes::from_static(b" ");

/// A request for an endpoint, as far as its head says.
pub(super) struct Ask {
    endpoint: Arc<Endpoint>,
    key: Arc<Key>,
    head: Result<Vec<Option<String>>, String>,
    kind: BodyKind,
}

impl Ask {
    /// Reads a head; `segments` are those of the path that may vary.
    pub(super) fn read(
        app: &App,
        endpoint: &Arc<Endpoint>,
        segments: &[&str],
        request: &Request<'_>,
    ) -> Result<Self, Refusal> {
        let key = match endpoint.admits {
            Admits::Bearer => app.admit(request)?,
            Admits::None => Key::anybody(),
        };
        let head = fields::of_head(endpoint.fields(), request, segments);
        Ok(Self { endpoint: Arc::clone(endpoint), key, head, kind: BodyKind::of(request) })
    }
}

/// A request that is held.
pub(super) struct Wait {
    endpoint: Arc<Endpoint>,
    what: What,
    beat: Beat,
    ends_at: Instant,
    /// Whether it may hear blanks.
    heard: bool,
    /// Its answer has begun.
    begun: bool,
}

/// What it waits for.
enum What {
    /// A current value; the cursor is that of the last that was not ready.
    State(Look, Option<Cursor>),
    /// An event of this topic.
    Events(Session, Topic),
}

/// What becomes of a request that is held.
pub(super) enum Step {
    /// All of its answer, of which nothing was sent.
    Whole(Reply),
    /// A blank, behind the [`headers`] of a success if it is the first.
    Blank,
    /// The rest of its answer, behind blanks.
    Rest(Bytes),
    /// Nothing more is sent, so that the client sees that its request failed.
    Abort,
}

/// How the waiting ends.
enum End {
    Answer(Answer),
    Refused(Refusal),
}

/// What an answer says of itself.
pub(super) fn headers() -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    std::iter::once(kind).chain(streamed())
}

impl Wait {
    /// Begins to wait for what a request asks; or says what answers it at once. `heard`: its answer can be cut off, so
    /// that it may begin before it is known.
    pub(super) fn begin(app: &App, ask: Ask, body: &[u8], heard: bool) -> Result<Self, Reply> {
        let Ask { endpoint, key, head, kind } = ask;
        let values = head.and_then(|head| fields::with_body(endpoint.fields(), head, kind, body));
        let read = values.and_then(|values| Ok((endpoint.topic(&values)?, values.into_iter().next())));
        match read {
            Ok((topic, client)) => {
                Self::open(app, endpoint, key, topic, client, heard).map_err(Refusal::into_reply)
            }
            Err(detail) => {
                let reads_body = endpoint.fields().iter().any(|field| matches!(field, Field::Body(_)));
                count(&endpoint, "invalid");
                let refusal = if reads_body { bad_body(detail) } else { Refusal::parameter(detail) };
                Err(endpoint.invalid().map_or_else(|| refusal.into_reply(), whole))
            }
        }
    }

    fn open(
        app: &App,
        endpoint: Arc<Endpoint>,
        key: Arc<Key>,
        topic: Topic,
        client: Option<String>,
        heard: bool,
    ) -> Result<Self, Refusal> {
        // The body may have taken its time.
        if key.revoked() {
            return Err(Refusal::new(ProblemCode::Unauthorized, "the token was taken back"));
        }
        door::check(&key, Action::Subscribe, &[topic.clone().into()])?;
        // What makes the topic tells who asks, as far as anything does.
        let client = client.filter(|client| query::names_client(client)).map(Into::into);
        let name = waiters::name(client, "endpoint");
        let what = match endpoint.of {
            Of::State => What::State(Look::open(app, key, topic, name)?, None),
            Of::Events => {
                let now = Some(query::After::Now);
                What::Events(Session::open(app, key, vec![topic.clone().into()], now, name)?, topic)
            }
        };
        // Before the beat, which must not fall short of it.
        let ends_at = Instant::now() + endpoint.hold;
        let mut beat = Beat::new(endpoint.keepalive);
        beat.due_in(endpoint.keepalive.min(endpoint.hold));
        Ok(Self { endpoint, what, beat, ends_at, heard, begun: false })
    }

    /// What to send next. Behind anything but [`Step::Blank`] there is nothing more.
    pub(super) fn poll(&mut self, app: &App, cx: &mut Context<'_>) -> Poll<Step> {
        if let Poll::Ready(end) = self.poll_end(app, cx) {
            return Poll::Ready(self.last(end));
        }
        loop {
            ready!(self.beat.poll(cx));
            if Instant::now() >= self.ends_at {
                let end = End::Refused(Refusal::unavailable("this has not become ready; ask again"));
                return Poll::Ready(self.last(end));
            }
            self.beat.moved();
            if self.heard {
                self.begun = true;
                return Poll::Ready(Step::Blank);
            }
        }
    }

    fn last(&self, end: End) -> Step {
        let answered = matches!(end, End::Answer(Answer { status: 200, .. }));
        let (outcome, step) = match end {
            End::Answer(Answer { body, .. }) if answered && self.begun => ("answered", Step::Rest(body)),
            _ if self.begun => ("cut", Step::Abort),
            End::Answer(answer) if answered => ("answered", Step::Whole(whole(answer))),
            End::Answer(answer) => ("missing", Step::Whole(whole(answer))),
            End::Refused(refusal) => ("refused", Step::Whole(refusal.into_reply())),
        };
        count(&self.endpoint, outcome);
        step
    }

    fn poll_end(&mut self, app: &App, cx: &mut Context<'_>) -> Poll<End> {
        let endpoint = &self.endpoint;
        let gap = || End::Refused(Refusal::unavailable("something may have been missed; ask again"));
        let (ended, leaves) = match &mut self.what {
            What::State(looking, waited) => {
                let topic = looking.topic().clone();
                let look = |current: &Current| match current {
                    // Woken again and again, each of thousands reads its value once.
                    Current::Value(value) if *waited == Some(value.cursor()) => None,
                    Current::Value(value) => {
                        *waited = Some(value.cursor());
                        end(endpoint.look(&topic, &value.data(), None))
                    }
                    Current::None => endpoint.missing(&topic).map(End::Answer),
                    Current::Unsettled => None,
                };
                (looking.poll(app, cx, look, |_| Some(gap())), looking.ends(app))
            }
            What::Events(session, topic) => {
                let ended = loop {
                    match session.poll_page(cx, PIECE) {
                        Poll::Ready(Page::Events(events)) => {
                            let mut ends = events.iter().filter_map(|event| happened(endpoint, topic, event));
                            if let Some(end) = ends.next() {
                                break Poll::Ready(end);
                            }
                        }
                        Poll::Ready(Page::Values(_)) => {}
                        Poll::Ready(Page::Reset(_)) => break Poll::Ready(gap()),
                        Poll::Pending => break Poll::Pending,
                    }
                };
                (ended, session.ends(app))
            }
        };
        match ended {
            Poll::Pending if leaves => {
                Poll::Ready(End::Refused(Refusal::unavailable("the broker goes away; ask again")))
            }
            ended => ended,
        }
    }
}

fn count(endpoint: &Endpoint, outcome: &'static str) {
    let name = endpoint.name().to_owned();
    counter!(ENDPOINT_REQUESTS_TOTAL, LABEL_ENDPOINT => name, LABEL_OUTCOME => outcome).increment(1);
}

/// Whether this event ends the waiting.
fn happened(endpoint: &Endpoint, topic: &Topic, event: &Encoded) -> Option<End> {
    #[derive(Deserialize)]
    struct Happened<'a> {
        op: &'a str,
    }
    let json = event.json();
    let op = serde_json::from_slice::<Happened<'_>>(&json).ok().map(|happened| happened.op);
    end(endpoint.look(topic, &event.data(), op))
}

fn end(verdict: Verdict) -> Option<End> {
    match verdict {
        Verdict::Waits => None,
        Verdict::Answer(answer) => Some(End::Answer(answer)),
        Verdict::Broken => {
            let detail = "the answer cannot be made; the broker's log says why";
            Some(End::Refused(Refusal::new(ProblemCode::Internal, detail)))
        }
    }
}

fn whole(answer: Answer) -> Reply {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut reply = Reply::new(status);
    reply.headers.extend(headers());
    reply.body.share(answer.body);
    reply
}

/// What no route is for, on a connection that hyper has: perhaps an endpoint is.
pub(super) async fn fallback(
    State(app): State<Arc<App>>,
    method: Method,
    request: axum::extract::Request,
) -> Response {
    let (Parts { uri, headers, version, .. }, body) = request.into_parts();
    let request = Request { path: uri.path(), query: uri.query(), headers: &headers };
    let ask = match app.endpoints.find(method.as_str(), uri.path()) {
        Found::None => return super::not_found(uri.path()).into_response(),
        Found::WrongMethod(allow) => return wrong_method(&allow),
        Found::Endpoint(endpoint, segments) => Ask::read(&app, endpoint, &segments, &request),
    };
    let ask = match ask {
        Ok(ask) => ask,
        Err(refusal) => return refusal.into_response(),
    };
    let body = match collect(body, &headers, app.config.body_bytes_max).await {
        Ok(body) => body,
        Err(refusal) => return refusal.into_response(),
    };
    // An answer of HTTP/1.0 that is cut off is an answer.
    match Wait::begin(&app, ask, &body, version > Version::HTTP_10) {
        Ok(wait) => respond(app, wait).await,
        Err(reply) => reply.into_response(),
    }
}

fn wrong_method(allow: &str) -> Response {
    let detail = format!("this path takes {allow}");
    let mut reply = Refusal::new(ProblemCode::MethodNotAllowed, detail).into_reply();
    if let Ok(allow) = HeaderValue::from_str(allow) {
        reply = reply.with(header::ALLOW, allow);
    }
    reply.into_response()
}

async fn respond(app: Arc<App>, mut wait: Wait) -> Response {
    let mut next = match poll_fn(|cx| wait.poll(&app, cx)).await {
        Step::Whole(reply) => return reply.into_response(),
        first => Some(first),
    };
    let mut done = false;
    let body = stream::poll_fn(move |cx| {
        if done {
            return Poll::Ready(None);
        }
        let step = match next.take() {
            Some(step) => step,
            None => ready!(wait.poll(&app, cx)),
        };
        done = !matches!(step, Step::Blank);
        Poll::Ready(Some(match step {
            Step::Blank => Ok(BLANK),
            Step::Rest(body) => Ok(body),
            // An error makes hyper cut the connection.
            Step::Whole(_) | Step::Abort => Err(io::Error::from(io::ErrorKind::ConnectionAborted)),
        }))
    });
    (HeaderMap::from_iter(headers()), Body::from_stream(body)).into_response()
}
