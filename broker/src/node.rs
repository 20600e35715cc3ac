//! The one place where the parts meet: build, bind, spawn, supervise, drain.
//!
//! A node is made of named tasks that it owns. The first that ends with an error ends the node; nothing
//! outlives [`Node::join`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use walcast_wire::Position;

use crate::auth::{KeyError, Keys};
use crate::backbone::Backbone as _;
use crate::backbone::local::Local;
use crate::backbone::redis::RedisError;
use crate::config::Config;
use crate::endpoint::{EndpointError, Endpoints, Of};
use crate::health::{Health, Part};
use crate::hub::{Hub, StateFull};
use crate::listen::tls::{Certificate, TlsError};
use crate::pipeline::fleet::Lead;
use crate::pipeline::{self, PublishError};
use crate::postgres::{Companion, DsnError};
use crate::router::{Router, RuleConfig, RuleError};
use crate::source::outbox::{self, Outbox};
use crate::source::wal::{self, Wal};
use crate::source::{Retry, Source, SourceError, SourceKind};
use crate::{admin, listen, telemetry, transport};

mod fleet;
mod monitor;
mod publisher;

pub use fleet::{Config as NodeConfig, Role};

/// How long a node that drains waits until its slot is released,
const RELEASE: Duration = Duration::from_secs(1);
/// then for its clients,
const GRACE: Duration = Duration::from_secs(7);
/// and then for a publish that still waits for Postgres.
const GOODBYE: Duration = Duration::from_secs(1);
/// Publishes that wait for the companion session.
const PUBLISHERS_MAX: usize = 256;
/// Pause before Postgres is looked for again at start.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a node does not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The connection string cannot be used.
    #[error("postgres.url: {0}")]
    Dsn(#[from] DsnError),
    /// A rule is wrong by itself, or does not fit the database.
    #[error("{}", rules(.0))]
    Rules(Vec<RuleError>),
    /// A role or a key is wrong.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// An endpoint is wrong.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address cannot be listened on.
    #[error(
        "{key}: cannot listen on {address}: {error}; {}choose another address by {flag}, or by {key}",
        if .error.kind() == std::io::ErrorKind::AddrInUse { "is another walcast running? Else " } else { "" }
    )]
    Listen {
        /// The key that names it.
        key: &'static str,
        /// The flag that goes before the key.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The server, or what is in it, does not fit.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The publication leaves out what the rules rely on.
    #[error("{0}")]
    Publication(String),
    /// The stream ended for good.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Redis cannot be used as it is named.
    #[error("redis.url: {0}")]
    Redis(#[from] RedisError),
    /// Current values outgrew their memory.
    #[error(transparent)]
    StateFull(#[from] StateFull),
    /// A task panicked; the log has more.
    #[error("the task {0} panicked; this is a fault of walcast")]
    Panicked(&'static str),
}

fn rules(errors: &[RuleError]) -> String {
    // One line, whatever it becomes a part of: a log, an answer.
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    /// Where the API listens.
    pub http: SocketAddr,
    /// Where operators connect.
    pub admin: SocketAddr,
    parts: Arc<Parts>,
    tasks: JoinSet<Result<(), NodeError>>,
    names: HashMap<Id, &'static str>,
}

/// What the tasks share.
#[derive(Debug)]
struct Parts {
    config: Config,
    companion: Arc<Companion>,
    health: Arc<Health>,
    hub: Arc<Hub>,
    backbone: Arc<Local>,
    rules: watch::Sender<Arc<Router>>,
    keys: watch::Sender<Arc<Keys>>,
    /// Postgres is as it must be, or is waited for.
    begun: CancellationToken,
    /// Ends the source, and so releases the slot.
    stop: CancellationToken,
    /// It is released.
    released: CancellationToken,
    /// Asks clients to go elsewhere.
    drain: CancellationToken,
    /// The last of them has gone.
    clients_gone: CancellationToken,
    /// Other nodes are not told any more that somebody waits here.
    signed_off: CancellationToken,
    /// Ends what operators see; last.
    end: CancellationToken,
}

impl Node {
    /// Checks what can be checked without Postgres, binds both listeners and starts all tasks. Postgres may
    /// come later: until then the node is live but not ready. To be called on a Tokio runtime.
    ///
    /// # Errors
    /// The configuration cannot be used, or an address not be bound.
    pub fn start(config: Config) -> Result<Self, NodeError> {
        let router = compile(&config, &config.table)?;
        let keys = keys(&config)?;
        let endpoints = Endpoints::new(&config.endpoint)?;
        // An edge has no rules: the leader's say what is kept.
        if config.node.role != Role::Edge {
            agree(&endpoints, &router)?;
        }
        let certificate = Certificate::load(&config.tls)?;
        let tls = certificate.as_ref().map(Certificate::current);
        let target = config.target()?;
        // What is measured before it is there is lost.
        let metrics = telemetry::metrics();
        let companion = Arc::new(Companion::new(target, "walcast companion", PUBLISHERS_MAX));
        let silence_max = config.source.lease * 2;
        config.redis.check()?;
        let health = match config.redis.url {
            None => Health::new(silence_max),
            Some(_) => Health::among_others(silence_max),
        };
        let health = Arc::new(health);
        let http = match config.node.role {
            Role::Leader => None,
            Role::Any | Role::Edge => Some(bind("http.listen", "--listen", config.http.listen)?),
        };
        let admin = bind("admin.listen", "--admin-listen", config.admin.listen)?;
        let parts = Arc::new(Parts {
            companion,
            health,
            hub: Hub::new(config.history.clone()),
            backbone: Arc::new(Local::default()),
            rules: watch::Sender::new(Arc::new(router)),
            keys: watch::Sender::new(Arc::new(keys)),
            begun: CancellationToken::new(),
            stop: CancellationToken::new(),
            released: CancellationToken::new(),
            drain: CancellationToken::new(),
            clients_gone: CancellationToken::new(),
            signed_off: CancellationToken::new(),
            end: CancellationToken::new(),
            config,
        });
        let mut node = Self {
            http: http.as_ref().map_or(parts.config.http.listen, |(_, address)| *address),
            admin: admin.1,
            parts: Arc::clone(&parts),
            tasks: JoinSet::new(),
            names: HashMap::new(),
        };
        let lead = fleet::spawn(&mut node)?;
        if parts.config.node.role != Role::Edge {
            node.spawn("publish", publish(Arc::clone(&parts), lead));
            node.spawn("monitor", monitor::run(Arc::clone(&parts)));
        }
        node.spawn("ingest", {
            let (backbone, hub) = (Arc::clone(&parts.backbone), Arc::clone(&parts.hub));
            let health = Arc::clone(&parts.health);
            let kind = parts.config.source.kind;
            async move { Ok(pipeline::ingest(backbone, hub, health, kind).await?) }
        });
        node.spawn("housekeeping", housekeeping(Arc::clone(&parts)));
        if let Some(certificate) = certificate {
            let end = parts.end.clone();
            node.spawn("certificate", async move {
                match end.run_until_cancelled(certificate.watch()).await {
                    Some(never) => match never {},
                    None => Ok(()),
                }
            });
        }
        if let Some((listener, _)) = http {
            let others = fleet::others(&mut node)?;
            node.spawn("http", serve(&parts, listener, others, endpoints, tls.clone()));
        } else {
            parts.clients_gone.cancel();
            parts.signed_off.cancel();
        }
        node.spawn("admin", {
            let (health, hub) = (Arc::clone(&parts.health), Arc::clone(&parts.hub));
            let router = admin::router(health, hub, metrics, parts.keys.subscribe());
            let (limits, end) = (parts.config.admin.limits(), parts.end.clone());
            async move {
                listen::serve(admin.0, Arc::new(listen::http::Routed(router)), limits, tls, end).await;
                Ok(())
            }
        });
        Ok(node)
    }

    fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), NodeError>> + Send + 'static,
    ) {
        self.names.insert(self.tasks.spawn(task).id(), name);
    }

    /// Whether clients are served as promised.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.parts.health.ready(Instant::now())
    }

    /// What is unwell now, in one line.
    #[must_use]
    pub fn problems(&self) -> String {
        let problems = self.parts.health.problems(Instant::now());
        problems
            .iter()
            .map(|(part, reason)| format!("{}: {reason}", part.as_str()))
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// Completes once Postgres was found to be as the node needs it, or is waited for. Cancel safe.
    pub fn begun(&self) -> impl Future<Output = ()> + Send + 'static {
        self.parts.begun.clone().cancelled_owned()
    }

    /// What changes the rules of this node while it runs.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        Reloader { parts: Arc::clone(&self.parts) }
    }

    /// Runs until `shutdown` completes, then drains; or until a part fails.
    ///
    /// # Errors
    /// What ended the node.
    pub async fn join(mut self, shutdown: impl Future<Output = ()>) -> Result<(), NodeError> {
        let result = tokio::select! {
            ended = first_failure(&mut self.tasks, &self.names) => ended,
            () = shutdown => Ok(()),
        };
        self.drain().await;
        // An error says it by itself.
        if result.is_ok() {
            tracing::info!("stopped");
        }
        result
    }

    /// Releases the slot first, so that another broker can take over, then tells the clients, and ends.
    async fn drain(mut self) {
        let parts = Arc::clone(&self.parts);
        parts.health.unwell(Part::Node, "draining");
        parts.stop.cancel();
        if tokio::time::timeout(RELEASE, parts.released.cancelled()).await.is_err() {
            tracing::warn!(
                "the slot is not released after {} s; its connection is cut at the end",
                RELEASE.as_secs()
            );
        }
        parts.drain.cancel();
        parts.backbone.close();
        if tokio::time::timeout(GRACE, parts.clients_gone.cancelled()).await.is_err() {
            tracing::warn!("clients were still connected after {} s; cutting them off", GRACE.as_secs());
        }
        // It takes two seconds at most, mostly while clients leave.
        parts.signed_off.cancelled().await;
        parts.end.cancel();
        if tokio::time::timeout(GOODBYE, parts.companion.close()).await.is_err() {
            parts.companion.cut();
        }
        self.tasks.shutdown().await;
    }
}

/// The first task that fails; tasks that merely end are no reason to stop.
async fn first_failure(
    tasks: &mut JoinSet<Result<(), NodeError>>,
    names: &HashMap<Id, &'static str>,
) -> Result<(), NodeError> {
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error),
            Err(error) if error.is_panic() => {
                return Err(NodeError::Panicked(names.get(&error.id()).copied().unwrap_or("of the node")));
            }
            Err(_) => {}
        }
    }
    Ok(())
}

/// Serves clients until they are asked to go and have gone.
fn serve(
    parts: &Arc<Parts>,
    listener: TcpListener,
    others: Arc<dyn transport::Others>,
    endpoints: Endpoints,
    tls: Option<listen::tls::Current>,
) -> impl Future<Output = Result<(), NodeError>> + Send + 'static {
    let (drain, away) = (parts.drain.clone(), parts.health.away());
    let config = parts.config.http.clone();
    let api = transport::Parts {
        hub: Arc::clone(&parts.hub),
        publisher: Arc::new(publisher::OverCompanion::new(Arc::clone(&parts.companion))),
        others,
        endpoints: Arc::new(endpoints),
        auth: parts.config.auth.clone(),
        keys: parts.keys.subscribe(),
        tls,
    };
    let serving = transport::serve(listener, config, api, drain, away);
    let gone = parts.clients_gone.clone().drop_guard();
    async move {
        let _gone = gone;
        serving.await;
        Ok(())
    }
}

fn bind(
    key: &'static str,
    flag: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), NodeError> {
    let failed = |error| NodeError::Listen { key, flag, address, error };
    let listener = listen::bind(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// What endpoints look at has to be kept by some rule; columns may still come with others.
fn agree(endpoints: &Endpoints, router: &Router) -> Result<(), EndpointError> {
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.of == Of::State) {
        let Some(topics) = endpoint.topics() else { continue };
        if !router.keeps(&topics, None) {
            return Err(endpoint.keeps_nothing());
        }
        for column in endpoint.reads().iter().filter(|column| !router.keeps(&topics, Some(column.as_ref()))) {
            tracing::warn!(
                endpoint = endpoint.name(),
                topics = topics.as_str(),
                column = &**column,
                "the endpoint reads a column that no rule of these topics sends: add it to the rule's `columns`, or correct its name"
            );
        }
    }
    Ok(())
}

fn keys(config: &Config) -> Result<Keys, KeyError> {
    Keys::new(&config.key, &config.role, config.auth.keys_file.is_some())
}

fn compile(config: &Config, rules: &[RuleConfig]) -> Result<Router, NodeError> {
    Router::new(rules, config.router.clone()).map_err(|error| NodeError::Rules(vec![error]))
}

/// Waits for Postgres, makes sure that everything fits, then reads until stopped.
async fn publish(parts: Arc<Parts>, lead: Option<Lead>) -> Result<(), NodeError> {
    let _released = parts.released.clone().drop_guard();
    let checked = parts.stop.run_until_cancelled(wait_until_suitable(&parts)).await;
    match checked {
        None => return Ok(()),
        Some(result) => result?,
    }
    let config = parts.config.source.clone();
    let (companion, health) = (Arc::clone(&parts.companion), Arc::clone(&parts.health));
    let hub = Arc::clone(&parts.hub);
    match config.kind {
        SourceKind::Wal => {
            let replay = parts.config.replay.clone();
            Box::pin(publish_from(&parts, lead, Wal::new(config, replay, companion, health, hub))).await
        }
        SourceKind::Outbox => {
            let target = companion.target().clone();
            Box::pin(publish_from(&parts, lead, Outbox::new(config, target, health, hub))).await
        }
    }
}

/// Reads until stopped.
async fn publish_from(parts: &Parts, lead: Option<Lead>, source: impl Source) -> Result<(), NodeError> {
    let ended = pipeline::publish(
        source,
        parts.rules.subscribe(),
        Arc::clone(&parts.backbone),
        parts.config.pipeline.clone(),
        Arc::clone(&parts.health),
        lead,
        parts.stop.clone(),
    )
    .await;
    match ended {
        Err(PublishError::Source(error)) if error.retry == Retry::HandedOver => {
            hand_over(parts, &error.message).await;
            Ok(())
        }
        ended => Ok(ended?),
    }
}

/// The slot is released to a broker that was told to take over. This one sends its clients there and never comes
/// back: it only waits to be stopped.
async fn hand_over(parts: &Parts, why: &str) {
    tracing::info!("handed over: {why}");
    parts.health.unwell(Part::Lease, why);
    parts.health.unwell(Part::Node, "handed over: clients are sent to the other broker");
    parts.stop.cancel();
    parts.drain.cancel();
    parts.companion.close().await;
}

async fn wait_until_suitable(parts: &Parts) -> Result<(), NodeError> {
    let mut told = false;
    loop {
        let router = Arc::clone(&parts.rules.borrow());
        match check(parts, &router).await {
            Err(NodeError::Source(error)) if error.retry != Retry::Never => {
                parts.health.unwell(Part::Stream, error.to_string());
                if !told {
                    tracing::warn!("waiting for Postgres: {error}");
                }
                told = true;
                parts.begun.cancel();
                tokio::time::sleep(PAUSE).await;
            }
            result => return result.map(|()| parts.begun.cancel()),
        }
    }
}

/// Whether server, schema, publication and tables are as the rules need them.
async fn check(parts: &Parts, router: &Router) -> Result<(), NodeError> {
    let names: Vec<Arc<str>> = router.tables().map(|table| table.name).collect();
    let config = &parts.config.source;
    let tables = match config.kind {
        SourceKind::Wal => {
            let facts = wal::catalog::read(&parts.companion, config, &names).await?;
            if let Some(problem) = facts.publication {
                return Err(NodeError::Publication(problem));
            }
            facts.tables
        }
        SourceKind::Outbox => outbox::catalog::read(&parts.companion, config, &names).await?,
    };
    match router.check(&tables) {
        errors if errors.is_empty() => Ok(()),
        errors => Err(NodeError::Rules(errors)),
    }
}

/// Where what is written from now on lies behind.
async fn end_of_line(parts: &Parts) -> Result<Position, SourceError> {
    let end = match parts.config.source.kind {
        SourceKind::Wal => wal::catalog::log_end(&parts.companion).await,
        SourceKind::Outbox => outbox::catalog::end(&parts.companion, &parts.config.source).await,
    };
    end.map(Position::before)
}

/// What needs doing now and then: old events go, also while nothing happens; figures are published.
async fn housekeeping(parts: Arc<Parts>) -> Result<(), NodeError> {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let figures = admin::Figures::new();
    while parts.end.run_until_cancelled(tick.tick()).await.is_some() {
        parts.hub.evict(Instant::now());
        figures.tell(parts.hub.status());
        telemetry::metrics().run_upkeep();
    }
    Ok(())
}

/// Changes a running node's rules.
#[derive(Clone, Debug)]
pub struct Reloader {
    parts: Arc<Parts>,
}

impl Reloader {
    /// Takes new rules, if they are right and fit the database; else the old ones stay. Only rules change:
    /// other settings need a restart.
    ///
    /// # Errors
    /// Why the old rules stay.
    pub async fn reload(&self, rules: &[RuleConfig]) -> Result<(), NodeError> {
        let result = self.take(rules).await;
        match &result {
            Ok(()) => self.parts.health.well(Part::Rules),
            Err(error) => {
                self.parts.health.unwell(Part::Rules, format!("the new rules were not taken: {error}"));
            }
        }
        result
    }

    /// Takes new keys. Who holds one that is gone, or grants something else now, is turned out at once; this does not
    /// wait for Postgres.
    ///
    /// # Errors
    /// Why the old keys stay.
    pub fn reload_keys(&self, config: &Config) -> Result<(), NodeError> {
        let new = self::keys(config).inspect_err(|error| self.refuse(&error.to_string()))?;
        self.parts.keys.send_modify(|keys| *keys = Arc::new(new.after(keys)));
        Ok(())
    }

    /// Notes that there are new rules and keys, but that they cannot even be read; the old ones stay.
    pub fn refuse(&self, why: &str) {
        let why = format!("the new rules were not taken: {why}; those of before hold, and so do the keys");
        self.parts.health.unwell(Part::Rules, why);
    }

    async fn take(&self, rules: &[RuleConfig]) -> Result<(), NodeError> {
        let router = compile(&self.parts.config, rules)?;
        if self.parts.config.node.role == Role::Edge {
            // Only whoever leads goes by them.
            return Ok(());
        }
        check(&self.parts, &router).await?;
        self.parts.rules.send_modify(|rules| *rules = Arc::new(router.after(rules)));
        Ok(())
    }
}
