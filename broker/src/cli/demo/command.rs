//! `walcast demo`: its arguments, the servers that it needs, and what it says at the end.

use std::io::Write;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::display::Display;
use super::{Plan, lab};
use crate::cli::brokers::{Brokers, NodesFlag};
use crate::cli::exit::{self, Failure};
use crate::cli::local;
use crate::cli::settings::SourceFlag;
use crate::config::Config;
use crate::postgres::describe;
use crate::router::RuleConfig;
use crate::telemetry;
use crate::throwaway::redis::Server as Redis;
use crate::throwaway::{Options, Throwaway};

/// Arguments.
#[derive(clap::Args, Clone, Debug)]
#[command(
    about = "Let simulated VMs wait for their assignment, and judge what arrives",
    after_help = "Examples:
  walcast demo
  walcast demo --vms 5000 --seconds 60 --rate 200
  walcast demo --nodes 3
  walcast demo --database-url postgres://postgres@localhost/scratch --json

Without --database-url it starts a throwaway Postgres. With one it makes and removes the schemas
walcast and walcast_demo there. With several brokers each VM waits on one of them, and on the next one
after a cut. Exits 0 only if nothing was missed and nothing came twice."
)]
pub struct Args {
    /// Simulated VMs; a third each waits by long-poll, SSE and WebSocket
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    vms: u32,
    /// How long VMs are assigned
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Assignments a second
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    #[command(flatten)]
    nodes: NodesFlag,
    #[command(flatten)]
    source: SourceFlag,
    /// Print the result as one line of JSON
    #[arg(long)]
    json: bool,
    /// A database to use instead of a throwaway server
    #[arg(long, value_name = "URL", hide_env_values = true)]
    database_url: Option<String>,
}

/// The built-in rule, as it stands in a configuration file.
#[derive(serde::Deserialize)]
struct Rules {
    table: Vec<RuleConfig>,
}

/// Runs the demo.
///
/// # Errors
/// Something that is needed cannot be had, or events were missed or came twice.
pub async fn run(args: &Args, out: &mut impl Write, stop: impl Future<Output = ()>) -> Result<(), Failure> {
    let log = telemetry::Config { level: "error".to_owned(), ..telemetry::Config::default() };
    telemetry::init(&log).map_err(|error| Failure::new(exit::OTHER, error))?;
    check_file_limit(args.vms, args.nodes.nodes)?;
    let redis = args.nodes.redis().await?;
    let display = Display::new();
    let (server, url) = match &args.database_url {
        Some(url) => (None, url.clone()),
        None => {
            display.say("starting a throwaway Postgres");
            let server = local::throwaway(Options::default()).await?;
            let url = server.url("postgres");
            (Some(server), url)
        }
    };
    let ended = with_database(args, &url, server.as_ref(), redis, &display, stop).await;
    display.clear();
    // Blocks until the server is gone.
    let _ = tokio::task::spawn_blocking(move || drop(server)).await;
    let report = ended?;
    // To a closed pipe there is nothing to say.
    let _ = match args.json {
        true => writeln!(out, "{}", serde_json::to_string(&report).unwrap_or_default()),
        false => writeln!(out, "{report}"),
    };
    if report.is_good() {
        return Ok(());
    }
    let message = format!("{} events were missed and {} came twice", report.missed, report.duplicates);
    Err(Failure::new(exit::OTHER, message))
}

async fn with_database(
    args: &Args,
    url: &str,
    server: Option<&Throwaway>,
    redis: Option<Redis>,
    display: &Display,
    stop: impl Future<Output = ()>,
) -> Result<super::Report, Failure> {
    let mut config = local::config(url, 0);
    config.source.kind = args.source.source.unwrap_or_default();
    config.source.slot = "walcast_demo".to_owned();
    config.source.publication = "walcast_demo".to_owned();
    config.http.connections_max = config.http.connections_max.max(2 * args.vms as usize);
    let rules: Rules =
        toml::from_str(lab::RULE).map_err(|error| Failure::new(exit::OTHER, error.to_string()))?;
    config.table = rules.table;
    if server.is_none() {
        refuse_if_in_use(&config).await?;
    }
    let place = Place { url, redis, foreign: server.is_none() };
    let ended = with_brokers(args, place, &config, display, stop.shared()).await;
    if server.is_none() {
        // Also after a failure: what was made is removed, and the first error is the one to tell.
        let cleaned = async {
            local::take_down(&config).await?;
            lab::remove(url).await
        };
        let cleaned = cleaned.await;
        return ended.and_then(|report| cleaned.map(|()| report));
    }
    ended
}

/// Where it happens.
struct Place<'a> {
    url: &'a str,
    redis: Option<Redis>,
    /// The database is somebody's.
    foreign: bool,
}

async fn with_brokers(
    args: &Args,
    Place { url, redis, foreign }: Place<'_>,
    config: &Config,
    display: &Display,
    stop: impl Future<Output = ()> + Clone,
) -> Result<super::Report, Failure> {
    display.say("preparing the table of VMs");
    unless_stopped(stop.clone(), lab::prepare(url, args.vms)).await?;
    // A demo ends by itself and removes its slot, so a server without a bound on WAL is fine.
    unless_stopped(stop.clone(), local::set_up(config, foreign)).await?;
    display.say("starting the broker");
    let configs = std::iter::repeat_n(config.clone(), args.nodes.nodes.into());
    let brokers = unless_stopped(stop.clone(), Brokers::start(configs, redis)).await?;
    let urls: Vec<String> = brokers.nodes().iter().map(|node| format!("http://{}", node.http)).collect();
    let plan = Plan { vms: args.vms, duration: Duration::from_secs(args.seconds), rate: args.rate };
    display.say("booting VMs");
    let report = super::run(plan, &urls, url, display, stop).await;
    let stopped = brokers.join(std::future::ready(())).await;
    let report = report?;
    stopped.map_err(|error| Failure::of_node("the built-in rule", &error))?;
    Ok(report)
}

/// What comes before there is anything to report. Whoever stops it still gets the database back as it was.
async fn unless_stopped<T>(
    stop: impl Future<Output = ()>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        done = work => done,
        () = stop => Err(Failure::new(exit::OTHER, "interrupted before the VMs were waiting")),
    }
}

/// A database in which walcast is set up already is somebody's: taking ours down would take theirs.
async fn refuse_if_in_use(config: &Config) -> Result<(), Failure> {
    let session = crate::cli::settings::connect(config).await?;
    let found = session.query_typed_one("SELECT to_regnamespace('walcast') IS NOT NULL", &[]).await;
    let in_use = found.and_then(|row| row.try_get::<_, bool>(0));
    session.close().await;
    match in_use {
        Ok(false) => Ok(()),
        Ok(true) => Err(Failure::new(
            exit::USAGE,
            "this database has a schema walcast, which the demo would remove: name another database, or run \
             `walcast teardown` first",
        )),
        Err(error) => {
            Err(Failure::new(exit::UNAVAILABLE, format!("looking at the database: {}", describe(&error))))
        }
    }
}

/// Each VM holds a socket at both ends, in this one process.
fn check_file_limit(vms: u32, nodes: u16) -> Result<(), Failure> {
    const OTHERS: u64 = 80;
    const NODE: u64 = 20;
    let others = OTHERS + NODE * u64::from(nodes);
    let needed = 2 * u64::from(vms) + others;
    let limit = rlimit::increase_nofile_limit(needed)
        .map_err(|error| Failure::new(exit::OTHER, format!("the limit on open files: {error}")))?;
    if limit >= needed {
        return Ok(());
    }
    let possible = limit.saturating_sub(others) / 2;
    let message = format!(
        "{vms} VMs need {needed} open files and the limit is {limit}: at most --vms {possible}, or raise `ulimit -Hn`"
    );
    Err(Failure::new(exit::UNAVAILABLE, message))
}
