//! The second listener: health and metrics, for operators alone.
//!
//! `/livez` says that the process answers, `/readyz` that clients are served as promised, with what is
//! wrong in words, `/metrics` is Prometheus's text form. Nothing here changes anything. Where there are keys, strangers
//! hear no more than whether it is alive and ready.

pub mod config;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;
use walcast_wire::{Problem, ProblemCode};

pub use config::Config;

use crate::auth::{Keys, bearer};
use crate::facts::SourceFacts;
use crate::health::Health;
use crate::hub::{Hub, Status};
use crate::telemetry;

#[derive(Clone)]
struct App {
    keys: watch::Receiver<Arc<Keys>>,
    health: Arc<Health>,
    hub: Arc<Hub>,
    metrics: &'static PrometheusHandle,
}

/// What `/readyz` answers.
#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    /// By part; parts that are well are absent.
    problems: BTreeMap<&'static str, String>,
    epoch: String,
    head: String,
    floor: String,
    subscriptions: usize,
    /// Absent while nobody looks at the slots: there is no stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
}

/// The slots as they were.
#[derive(Debug, Serialize)]
struct Source {
    seen_seconds_ago: u64,
    #[serde(flatten)]
    facts: SourceFacts,
}

/// The routes of the listener for operators.
pub fn router(
    health: Arc<Health>,
    hub: Arc<Hub>,
    metrics: &'static PrometheusHandle,
    keys: watch::Receiver<Arc<Keys>>,
) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(render))
        .fallback(not_found)
        .method_not_allowed_fallback(async || problem(ProblemCode::MethodNotAllowed, "send GET".to_owned()))
        .with_state(App { health, hub, metrics, keys })
}

async fn not_found(uri: Uri) -> Response {
    let detail = format!("no such path: {}; this listener has /livez, /readyz and /metrics", uri.path());
    problem(ProblemCode::NoSuchPath, detail)
}

fn problem(code: ProblemCode, detail: String) -> Response {
    say(Problem::new(code, detail))
}

fn say(problem: Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(problem)).into_response()
}

/// Whether the sender of these may see everything.
fn admit(app: &App, headers: &HeaderMap) -> Result<(), Problem> {
    let keys = Arc::clone(&app.keys.borrow());
    if keys.open() {
        return Ok(());
    }
    let token = headers.get(header::AUTHORIZATION).and_then(|header| bearer(header.as_bytes()));
    match token.and_then(|token| keys.find(token)) {
        Some(key) if key.administers() => Ok(()),
        Some(key) => {
            let detail = format!("`{}` has no role with `admin = true`", key.sub());
            Err(Problem::new(ProblemCode::Forbidden, detail))
        }
        None => {
            let detail = "send `Authorization: Bearer` with a token whose role has `admin = true`";
            Err(Problem::new(ProblemCode::Unauthorized, detail.to_owned()))
        }
    }
}

async fn ready(State(app): State<App>, headers: HeaderMap) -> Response {
    let now = Instant::now();
    let (ready, status) = (app.health.ready(now), app.hub.status());
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if admit(&app, &headers).is_err() {
        let body = Json(serde_json::json!({ "ready": ready }));
        return (code, [(header::CACHE_CONTROL, "no-store")], body).into_response();
    }
    let problems = app.health.problems(now).into_iter();
    let body = Readiness {
        ready,
        problems: problems.map(|(part, reason)| (part.as_str(), reason)).collect(),
        epoch: status.epoch.to_string(),
        head: status.head.to_string(),
        floor: status.floor.to_string(),
        subscriptions: status.subscriptions,
        source: app.health.source().map(|(facts, at)| {
            let seen_seconds_ago = now.saturating_duration_since(at).as_secs();
            Source { seen_seconds_ago, facts }
        }),
    };
    (code, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

async fn render(State(app): State<App>, headers: HeaderMap) -> Response {
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    match admit(&app, &headers) {
        Ok(()) => ([(header::CONTENT_TYPE, TEXT)], app.metrics.render()).into_response(),
        Err(refusal) => say(refusal),
    }
}

/// What each node of this process said last: they share the process's metrics.
static NODES: Mutex<BTreeMap<u64, Status>> = Mutex::new(BTreeMap::new());

/// One node's share of the metrics, until it is dropped.
#[derive(Debug)]
pub struct Figures(u64);

impl Figures {
    /// A share without figures yet.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Relaxed))
    }

    /// Publishes the hub's figures.
    pub fn tell(&self, status: Status) {
        let mut nodes = NODES.lock();
        nodes.insert(self.0, status);
        gauges(&nodes);
    }
}

impl Default for Figures {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Figures {
    fn drop(&mut self) {
        let mut nodes = NODES.lock();
        nodes.remove(&self.0);
        gauges(&nodes);
    }
}

/// Sums over all nodes; what all have delivered is what the last of them has.
fn gauges(nodes: &BTreeMap<u64, Status>) {
    let sum = |figure: fn(&Status) -> f64| nodes.values().map(figure).sum::<f64>();
    gauge!(telemetry::SUBSCRIPTIONS).set(sum(|status| status.subscriptions as f64));
    gauge!(telemetry::HISTORY_EVENTS).set(sum(|status| status.events as f64));
    gauge!(telemetry::HISTORY_BYTES).set(sum(|status| status.bytes as f64));
    gauge!(telemetry::UNCARRIED_EVENTS).set(sum(|status| status.uncarried as f64));
    gauge!(telemetry::STATE_VALUES).set(sum(|status| status.values as f64));
    gauge!(telemetry::STATE_BYTES).set(sum(|status| status.state_bytes as f64));
    let head = nodes.values().map(|status| status.head.major).min();
    gauge!(telemetry::HEAD).set(head.unwrap_or_default() as f64);
}

#[cfg(test)]
mod tests {
    use walcast_wire::Position;

    use super::*;

    #[test]
    fn nodes_of_one_process_do_not_hide_each_other() {
        let status = |subscriptions, head| Status {
            subscriptions,
            head: Position::before(head),
            bytes: 10,
            ..Status::default()
        };
        let nodes = BTreeMap::from([(1, status(2, 700)), (2, status(3, 500))]);
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || gauges(&nodes));
        let text = recorder.handle().render();
        for line in ["walcast_subscriptions 5\n", "walcast_history_bytes 20\n", "walcast_head_lsn 500\n"] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
