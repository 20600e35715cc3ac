//! HTTP: long-poll, server-sent events, WebSocket, current values, publishing, configured endpoints.
//!
//! The transports are dialects of one loop over a [`Subscription`](crate::hub::Subscription). They wrap
//! bytes that the hub encoded; none keeps a queue for its client, and none knows where events come from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use walcast_wire::ProblemCode;

use crate::auth::{self, Key, Keys};
use crate::endpoint::Endpoints;
use crate::hub::Hub;
use crate::listen::{self, Limits};

mod beat;
mod body;
mod call;
mod door;
mod driver;
mod endpoint;
mod events;
mod fields;
mod frame;
mod link;
mod long_poll;
mod look;
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
    /// Listen beyond loopback although nobody is asked who they are, or tokens go over the network as they are.
    pub insecure: bool,
    /// A proxy in front encrypts: listen beyond loopback without a certificate.
    pub behind_tls_proxy: bool,
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
            behind_tls_proxy: false,
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
    endpoints: Arc<Endpoints>,
    auth: auth::Config,
    keys: watch::Receiver<Arc<Keys>>,
    drain: CancellationToken,
    away: watch::Receiver<bool>,
}

impl App {
    /// Clients are to go elsewhere. Whoever waits looks at this when its subscription's task is woken.
    fn leaving(&self) -> bool {
        self.drain.is_cancelled() || *self.away.borrow()
    }

    /// The same of one client, who has to come again also where its key does not hold any more.
    fn ends(&self, key: &Key) -> bool {
        self.leaving() || key.revoked()
    }

    /// Who sends this request.
    fn admit(&self, request: &call::Request<'_>) -> Result<Arc<Key>, Refusal> {
        let keys = Arc::clone(&self.keys.borrow());
        door::admit(request, &keys, &self.auth)
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

    /// Wakes all who wait whenever some are to leave; never ends. One task does it for all, so that each of
    /// thousands need not listen.
    async fn wake_leavers(&self) {
        let (mut away, mut keys) = (self.away.clone(), self.keys.clone());
        // Whoever could say so may be gone.
        let (mut away_known, mut keys_known, mut draining) = (true, true, false);
        loop {
            tokio::select! {
                () = self.drain.cancelled(), if !draining => draining = true,
                changed = away.changed(), if away_known => away_known = changed.is_ok(),
                changed = keys.changed(), if keys_known => keys_known = changed.is_ok(),
                else => return std::future::pending().await,
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

/// What the API is made of, beside its settings.
pub struct Parts {
    /// What clients wait at.
    pub hub: Arc<Hub>,
    /// Commits what they publish.
    pub publisher: Arc<dyn Publisher>,
    /// Knows who waits at other nodes.
    pub others: Arc<dyn Others>,
    /// What else is answered than the API.
    pub endpoints: Arc<Endpoints>,
    /// How browsers may show their token.
    pub auth: auth::Config,
    /// Who is let in, at any moment.
    pub keys: watch::Receiver<Arc<Keys>>,
    /// The certificate, where there is one.
    pub tls: Option<listen::tls::Current>,
}

/// Serves the HTTP API on `listener` until `drain` fires: then every wait answers with its cursor and asks the
/// client to come back. So it does while `away` holds, and new waits are refused: another broker has what they
/// wait for. Returns once every connection has ended; dropping the future cuts what is left.
pub async fn serve(
    listener: TcpListener,
    config: Config,
    parts: Parts,
    drain: CancellationToken,
    away: watch::Receiver<bool>,
) {
    let Parts { hub, publisher, others, endpoints, auth, keys, tls } = parts;
    let mut limits = config.limits();
    limits.connections_max = listen::connections_possible(limits.connections_max);
    let app =
        Arc::new(App { config, hub, publisher, others, endpoints, auth, keys, drain: drain.clone(), away });
    let front = Arc::new(driver::Front { router: router(Arc::clone(&app)), app: Arc::clone(&app) });
    let serving = listen::serve(listener, front, limits, tls, drain);
    tokio::select! {
        () = serving => {}
        () = app.wake_leavers() => {}
    }
}

/// What does not wait, and what waits on a connection that hyper has already.
fn router(app: Arc<App>) -> Router {
    let (router, _) = api().split_for_parts();
    router
        .fallback(endpoint::fallback)
        .method_not_allowed_fallback(method_not_allowed)
        // Bodies are read by hand, with their own limit.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(app)
}

fn not_found(path: &str) -> Refusal {
    let detail = match path {
        "/livez" | "/readyz" | "/metrics" => {
            format!("{path} is on the listener for operators, whose address is `admin.listen`")
        }
        _ => format!("no such path: {path}"),
    };
    Refusal::new(ProblemCode::NoSuchPath, detail)
}

async fn method_not_allowed() -> Refusal {
    Refusal::new(ProblemCode::MethodNotAllowed, "the header `Allow` says which methods this path takes")
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(|s| &**s));
    tracing::error!(panic = text.unwrap_or("of unknown kind"), "a handler panicked");
    Refusal::new(ProblemCode::Internal, "a fault of the broker; its log has the details").into_response()
}
