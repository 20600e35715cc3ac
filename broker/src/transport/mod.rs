//! HTTP: long-poll, server-sent events, WebSocket, current values, publishing.
//!
//! The transports are dialects of one loop over a [`Subscription`](crate::hub::Subscription). They wrap
//! bytes that the hub encoded; none keeps a queue for its client, and none knows where events come from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use walcast_wire::ProblemCode;

use crate::hub::Hub;
use crate::listen::{self, Limits};

mod beat;
mod call;
mod driver;
mod events;
mod frame;
mod long_poll;
pub mod openapi;
mod pieces;
mod problem;
mod publish;
mod query;
mod reply;
mod session;
mod sse;
mod state;
mod waiters;
mod websocket;

use problem::Refusal;
pub use publish::{PublishError, Published, Publisher};
pub use waiters::Others;

/// The public listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port of the HTTP API.
    pub listen: SocketAddr,
    /// Listen beyond loopback although there is no authentication yet.
    pub insecure: bool,
    /// Connections at a time; also bounded by the limit on open files.
    pub connections_max: usize,
    /// Topics and patterns of one request or WebSocket.
    pub topics_max: usize,
    /// How long a wait is held that does not say.
    #[serde(with = "humantime_serde")]
    pub wait_default: Duration,
    /// The longest wait.
    #[serde(with = "humantime_serde")]
    pub wait_max: Duration,
    /// A stream is silent for at most this long. Proxies cut silent connections, many after 60 s.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// A WebSocket that does not answer a ping within this is closed.
    #[serde(with = "humantime_serde")]
    pub pong_timeout: Duration,
    /// A request head arrives within this; an idle connection is closed after it.
    #[serde(with = "humantime_serde")]
    pub head_timeout: Duration,
    /// A client that takes nothing for this long, with something to take, is cut; it comes back with its cursor.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
    /// Current values in one answer, in bytes.
    #[serde(deserialize_with = "crate::units::bytes")]
    pub state_answer_bytes_max: u64,
    /// Body of a publish, in bytes.
    #[serde(deserialize_with = "crate::units::bytes")]
    pub body_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8480)),
            insecure: false,
            connections_max: 10_000,
            topics_max: 100,
            wait_default: Duration::from_secs(50),
            wait_max: Duration::from_secs(300),
            heartbeat: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(15),
            write_timeout: Duration::from_secs(15),
            state_answer_bytes_max: 8 << 20,
            body_bytes_max: 64 << 10,
        }
    }
}

impl Config {
    /// What the accept loop grants.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            connections_max: self.connections_max,
            head_timeout: self.head_timeout,
            write_timeout: self.write_timeout,
        }
    }
}

/// What handlers share.
struct App {
    config: Config,
    hub: Arc<Hub>,
    publisher: Arc<dyn Publisher>,
    others: Arc<dyn Others>,
    drain: CancellationToken,
    away: watch::Receiver<bool>,
}

impl App {
    /// Clients are to go elsewhere. Whoever waits looks at this when its subscription's task is woken.
    fn leaving(&self) -> bool {
        self.drain.is_cancelled() || *self.away.borrow()
    }

    /// Until they are, for whoever has no subscription.
    async fn until_leaving(self: Arc<Self>) {
        let mut away = self.away.clone();
        tokio::select! {
            () = self.drain.cancelled() => {}
            // Where whoever could say so is gone, only the drain is left.
            true = async { away.wait_for(|away| *away).await.is_ok() } => {}
        }
    }

    /// Wakes all who wait whenever they are to leave; never ends. One task does it for all, so that each of
    /// thousands need not listen.
    async fn wake_leavers(&self) {
        let mut away = self.away.clone();
        let mut draining = false;
        loop {
            tokio::select! {
                () = self.drain.cancelled(), if !draining => draining = true,
                changed = away.changed() => if changed.is_err() {
                    // Whoever could say so is gone.
                    self.drain.cancelled().await;
                    self.hub.wake_all();
                    return std::future::pending().await;
                },
            }
            self.hub.wake_all();
        }
    }
}

fn api() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(openapi::frame())
        .routes(routes!(events::events))
        .routes(routes!(websocket::ws))
        .routes(routes!(state::state))
        .routes(routes!(publish::publish))
        .routes(routes!(waiters::waiters))
        .routes(routes!(openapi::openapi))
}

/// Serves the HTTP API on `listener` until `drain` fires: then every wait answers with its cursor and asks the
/// client to come back. So it does while `away` holds, and new waits are refused: another broker has what they
/// wait for. Returns once every connection has ended; dropping the
/// future cuts what is left.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    hub: Arc<Hub>,
    publisher: Arc<dyn Publisher>,
    others: Arc<dyn Others>,
    drain: CancellationToken,
    away: watch::Receiver<bool>,
) {
    let mut limits = config.limits();
    limits.connections_max = listen::connections_possible(limits.connections_max);
    let app = Arc::new(App { config, hub, publisher, others, drain: drain.clone(), away });
    let front = Arc::new(driver::Front { router: router(Arc::clone(&app)), app: Arc::clone(&app) });
    let serving = listen::serve(listener, front, limits, drain);
    tokio::select! {
        () = serving => {}
        () = app.wake_leavers() => {}
    }
}

/// What does not wait, and what waits on a connection that hyper has already.
fn router(app: Arc<App>) -> Router {
    let (router, _) = api().split_for_parts();
    router
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        // Bodies are read by hand, with their own limit.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(app)
}

async fn not_found(uri: Uri) -> Refusal {
    let path = uri.path();
    let detail = match path {
        "/livez" | "/readyz" | "/metrics" => {
            format!("{path} is on the listener for operators, whose address is `admin.listen`")
        }
        _ => format!("no such path: {path}"),
    };
    Refusal::new(ProblemCode::NotFound, detail)
}

async fn method_not_allowed() -> Refusal {
    Refusal::new(ProblemCode::MethodNotAllowed, "the header `Allow` says which methods this path takes")
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(|s| &**s));
    tracing::error!(panic = text.unwrap_or("of unknown kind"), "a handler panicked");
    Refusal::new(ProblemCode::Internal, "a fault of the broker; its log has the details").into_response()
}
