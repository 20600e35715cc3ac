//! `GET /v1/waiters`: who waits for what, over all nodes. For people and their tools, not for the way of an event.
//!
//! It answers for this node from the hub, and for others by what these told last. It must not hold up those who wait.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use serde::Serialize;
use utoipa::ToSchema;
use walcast_wire::TopicPattern;

use super::call::Request;
use super::openapi::ProblemDoc;
use super::problem::Refusal;
use super::query::Ask;
use super::{App, door};
use crate::auth::Action;
use crate::hub::roll::{Elsewhere, Name, Roll};

/// The last second that RFC 3339 can say.
const TIME_MAX_MS: u64 = 253_402_300_799_000;

/// The other nodes.
pub trait Others: Send + Sync + 'static {
    /// How this node calls itself.
    fn name(&self) -> &str;

    /// Who waits at the others, as far as that is known now.
    fn elsewhere(&self) -> BoxFuture<'_, Arc<Elsewhere>>;
}

/// Who waits.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Waiters)]
pub(super) struct WaitersDoc {
    /// How many wait. With `topic`, a wait counts once for each of its topics and patterns that has a topic in common with
    /// what was asked for.
    waiting: usize,
    /// The brokers that it is told of.
    nodes: Vec<NodeDoc>,
    /// Those who gave a name by `client`, by topic; at most `limit`.
    waiters: Vec<WaiterDoc>,
    /// There are more than the answer tells: by `limit`, or by what a broker keeps.
    truncated: bool,
    /// Other brokers may not all be in it, for Redis did not answer.
    partial: bool,
}

/// One topic of a wait that has a name.
#[derive(Debug, Serialize, PartialEq, Eq, PartialOrd, Ord, ToSchema)]
#[schema(as = Waiter)]
pub(super) struct WaiterDoc {
    /// The topic or pattern, as it was named.
    topic: String,
    /// How the client calls itself.
    client: String,
    /// `poll`, `sse`, `ws`, `state` or `endpoint`.
    transport: String,
    /// When the call began, or the WebSocket was opened: RFC 3339, UTC.
    since: String,
    /// The broker.
    node: String,
}

/// One broker.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Node)]
pub(super) struct NodeDoc {
    /// Its name.
    node: String,
    /// How many wait there, counted as above.
    waiting: usize,
    /// How many of these waits have a name that is known.
    clients: usize,
    /// Of when these numbers are: RFC 3339, UTC.
    seen: String,
}

/// Tells who waits.
///
/// Of this broker as it is now, of others as they were a few seconds ago.
#[utoipa::path(
    get,
    path = "/v1/waiters",
    tag = "about",
    params(
        ("topic" = Option<Vec<String>>, Query, explode = true, description = "Up to 100 topics or patterns: who waits for any of what they name. Without it, everybody"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Waiters in the answer, default 100; all are counted"),
    ),
    responses(
        (status = 200, description = "Who waits", body = WaitersDoc),
        (status = 400, description = "`bad_topic`, `bad_parameter`", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 401, description = "`unauthorized`: no token, or none that is known", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 403, description = "`forbidden`: the token does not grant it", body = ProblemDoc, content_type = "application/problem+json"),
    )
)]
pub(super) async fn waiters(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let guest = app.admit(&Request { path: uri.path(), query: uri.query(), headers: &headers })?;
    let ask = Ask::parse(uri.query(), &["topic", "limit"], &app.config)?;
    match &ask.topics[..] {
        [] => door::check(&guest, Action::Waiters, &[TopicPattern::everything()]).map_err(|refusal| {
            let named = "; without `topic` everybody is asked for: name topics that you may see";
            Refusal { detail: refusal.detail + named, ..refusal }
        })?,
        topics => door::check(&guest, Action::Waiters, topics)?,
    }
    let elsewhere = app.others.elsewhere().await;
    let here = app.hub.roll(&ask.topics);
    let mut told = Answer::new(&ask.topics, SystemTime::now());
    told.add(app.others.name(), Duration::ZERO, &here);
    for other in &elsewhere.rolls {
        // Many topics asked of many brokers take a while.
        tokio::task::yield_now().await;
        told.add(&other.node, other.age, &other.roll);
    }
    let answer = told.finish(ask.limit, elsewhere.partial);
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response())
}

/// What a wait that begins now is called, if its client gave a name.
pub(super) fn name(client: Option<Box<str>>, transport: &'static str) -> Option<Name> {
    client.map(|client| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Name { client, transport: transport.into(), since_ms }
    })
}

/// An answer in the making.
struct Answer<'a> {
    asked: &'a [TopicPattern],
    now: SystemTime,
    waiters: Vec<WaiterDoc>,
    nodes: Vec<NodeDoc>,
    truncated: bool,
}

impl<'a> Answer<'a> {
    fn new(asked: &'a [TopicPattern], now: SystemTime) -> Self {
        Self { asked, now, waiters: Vec::new(), nodes: Vec::new(), truncated: false }
    }

    fn add(&mut self, node: &str, age: Duration, roll: &Roll) {
        let mut clients = 0;
        for (name, topics) in roll.named_for(self.asked) {
            clients += 1;
            self.waiters.extend(topics.into_iter().map(|topic| WaiterDoc {
                topic: topic.to_string(),
                client: name.client.to_string(),
                transport: name.transport.to_string(),
                since: time(UNIX_EPOCH + Duration::from_millis(name.since_ms.min(TIME_MAX_MS))),
                node: node.to_owned(),
            }));
        }
        self.nodes.push(NodeDoc {
            node: node.to_owned(),
            waiting: roll.waiting_for(self.asked),
            clients,
            seen: time(self.now.checked_sub(age).unwrap_or(self.now)),
        });
        self.truncated |= roll.truncated;
    }

    fn finish(mut self, limit: usize, partial: bool) -> WaitersDoc {
        self.waiters.sort_unstable();
        let truncated = self.truncated || self.waiters.len() > limit;
        self.waiters.truncate(limit);
        let waiting = self.nodes.iter().map(|node| node.waiting).sum();
        WaitersDoc { waiting, waiters: self.waiters, nodes: self.nodes, truncated, partial }
    }
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
