//! `walcast serve`: the broker.

use std::net::SocketAddr;

use tokio::signal::unix::{SignalKind, signal};

use super::exit::{self, Failure};
use super::settings::{Settings, SourceFlag};
use crate::config::{Config, FILE_DEFAULT, Loaded, Loader};
use crate::node::{Node, NodeError, Reloader};
use crate::telemetry;

/// Arguments.
#[derive(clap::Args, Clone, Debug)]
#[command(
    about = "Run the broker",
    after_help = "Examples:
  walcast serve
  walcast serve --config /etc/walcast.toml
  WALCAST_POSTGRES__URL=postgres://walcast@db/app walcast serve --listen 127.0.0.1:9000
  walcast serve --redis redis://cache:6379                  one of several brokers
  walcast serve --redis redis://cache:6379 --role edge      one that never leads

While another broker reads the same slot this one stands by, and takes over when that one ends;
--takeover asks it to end, so that a new version can replace an old one that runs.

SIGHUP reads rules, roles and keys again. SIGTERM drains: clients are told to come back, and the
process ends within 10 s. Every key of the file: docs/configuration.md

Exit codes: 0 ended by a signal, 64 wrong configuration, 69 something needed is not there, 1 anything else."
)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    source: SourceFlag,
    /// What this broker does among others, over `node.role`: any, edge or leader
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// Redis where brokers meet, over `redis.url`
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// Address of the API, over `http.listen`
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Address for health and metrics, over `admin.listen`
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<SocketAddr>,
    /// A proxy in front encrypts: listen beyond loopback without a certificate
    #[arg(long)]
    behind_tls_proxy: bool,
    /// Listen beyond loopback although nobody is asked who they are, or nothing is encrypted
    #[arg(long)]
    insecure: bool,
    /// Ask the broker that leads to hand over: for rolling updates
    #[arg(long)]
    takeover: bool,
    /// What to log, over `log.level`
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl Args {
    fn loader(&self) -> Loader {
        let mut loader = self.source.over(self.settings.loader());
        if let Some(role) = &self.role {
            loader = loader.flag("--role", "node.role", role.as_str());
        }
        if let Some(url) = &self.redis {
            loader = loader.flag("--redis", "redis.url", url.as_str());
        }
        if let Some(address) = self.listen {
            loader = loader.flag("--listen", "http.listen", address.to_string());
        }
        if let Some(address) = self.admin_listen {
            loader = loader.flag("--admin-listen", "admin.listen", address.to_string());
        }
        if self.behind_tls_proxy {
            loader = loader.flag("--behind-tls-proxy", "http.behind_tls_proxy", "true");
        }
        if self.insecure {
            loader = loader.flag("--insecure", "http.insecure", "true");
        }
        if let Some(level) = &self.log_level {
            loader = loader.flag("--log-level", "log.level", level.as_str());
        }
        loader
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// The configuration cannot be used, or the node ended by itself.
pub async fn run(args: &Args) -> Result<(), Failure> {
    let loader = args.loader();
    let file = loader.file().display().to_string();
    let loaded = loader.load_all()?;
    let mut config = loaded.config.clone();
    config.read_keys()?;
    config.source.takeover = args.takeover;
    telemetry::init(&config.log).map_err(|error| Failure::new(exit::USAGE, format!("log.level: {error}")))?;
    let failed = |error: NodeError| Failure::of_node(&file, &error);
    let beyond = config.http.insecure && !config.http.listen.ip().is_loopback();
    let insecure = match (!config.asks(), config.tls.certificate.is_none() && !config.http.behind_tls_proxy) {
        (true, _) if beyond => Some("can read and publish, for there are no keys"),
        (false, true) if beyond => {
            Some("and whoever listens on the way can read tokens, for nothing is encrypted")
        }
        _ => None,
    };
    let node = Node::start(config).map_err(failed)?;
    let listening = {
        let (begun, http, admin) = (node.begun(), node.http, node.admin);
        async move {
            // Not in front of the line that says why there is no broker.
            begun.await;
            tracing::info!(%http, %admin, "listening");
            std::future::pending().await
        }
    };
    if let Some(why) = insecure {
        tracing::warn!("insecure = true: everybody who reaches {} {why}", node.http);
    }
    if !loader.found() {
        tracing::warn!(
            "there are no rules, for no file was found: {FILE_DEFAULT} is not in the working directory; name one by \
             --config, or publish from SQL alone"
        );
    }
    let stop = stop_signal()?;
    let reloader = node.reloader();
    let ended = node.join(stop);
    tokio::select! {
        ended = ended => ended.map_err(failed),
        failure = reload_on_hangup(loader, &loaded, &reloader) => Err(failure),
        failure = listening => Err(failure),
    }
}

impl Failure {
    /// How the end of a node ends the process; `origin` is the file that holds the rules.
    pub(super) fn of_node(origin: &str, error: &NodeError) -> Self {
        let code = match error {
            NodeError::Dsn(_)
            | NodeError::Rules(_)
            | NodeError::Keys(_)
            | NodeError::Endpoint(_)
            | NodeError::Tls(_)
            | NodeError::Redis(_) => exit::USAGE,
            NodeError::Listen { .. }
            | NodeError::Source(_)
            | NodeError::Publication(_)
            | NodeError::Publish(_) => exit::UNAVAILABLE,
            NodeError::StateFull(_) | NodeError::Panicked(_) => exit::OTHER,
        };
        match error {
            NodeError::Rules(errors) => Self::of_rules(origin, errors),
            NodeError::Keys(_) | NodeError::Endpoint(_) => Self::new(code, format!("{origin}: {error}")),
            _ => Self::new(code, error.to_string()),
        }
    }
}

/// Completes on SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()>, Failure> {
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => tracing::info!("SIGTERM: draining"),
            _ = int.recv() => tracing::info!("SIGINT: draining"),
        }
    })
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(exit::OTHER, format!("cannot listen for signals: {error}")))
}

/// Takes new keys and rules on each SIGHUP, for ever. What is wrong with them is logged, and the old ones stay.
async fn reload_on_hangup(mut loader: Loader, started: &Loaded, reloader: &Reloader) -> Failure {
    let mut hangup = match listen(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(failure) => return failure,
    };
    while hangup.recv().await.is_some() {
        loader.settle();
        let read = loader.load_all().and_then(|mut loaded| loaded.config.read_keys().map(|()| loaded));
        let loaded = match read {
            Ok(loaded) => loaded,
            Err(error) => {
                reloader.refuse(&error.to_string());
                tracing::error!(
                    "SIGHUP: the old rules stay, and the old keys, for what is new cannot be used: {error}"
                );
                continue;
            }
        };
        tell_what_stays(&loaded.changed_since(started));
        let Config { table: rules, key: keys, .. } = &loaded.config;
        // They do not wait for a database that may be away.
        if let Err(error) = reloader.reload_keys(&loaded.config) {
            tracing::error!(
                "SIGHUP: the old rules stay, and the old keys, for the new keys cannot be used: {error}"
            );
            continue;
        }
        match reloader.reload(rules).await {
            Ok(()) => tracing::info!(rules = rules.len(), keys = keys.len(), "SIGHUP: new rules taken"),
            Err(error) => tracing::error!(
                keys = keys.len(),
                "SIGHUP: the old rules stay, for the new ones cannot be used; keys were taken: {error}"
            ),
        }
    }
    std::future::pending().await
}

/// Whoever changes a setting and sends SIGHUP would else believe that it is in force.
fn tell_what_stays(changed: &[String]) {
    let changed: Vec<&str> =
        changed.iter().map(String::as_str).filter(|key| *key != "auth.keys_file").collect();
    if !changed.is_empty() {
        tracing::warn!(
            "SIGHUP: {} changed since the start, which needs a restart: only rules, roles and keys change without one",
            changed.join(", ")
        );
    }
}
