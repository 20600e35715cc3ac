//! `walcast dev`: a throwaway Postgres with a broker on it, or several, to try things out.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use super::brokers::{Brokers, NodesFlag};
use super::exit::{self, Failure};
use super::local;
use super::settings::SourceFlag;
use crate::node::Node;
use crate::postgres::describe;
use crate::telemetry;
use crate::throwaway::Options;

/// Arguments.
#[derive(clap::Args, Clone, Debug)]
#[command(
    about = "Start a throwaway Postgres with a broker on it",
    after_help = "Examples:
  walcast dev
  walcast dev --port 9000
  walcast dev --source outbox
  walcast dev --nodes 3

Everything goes when it ends, by Ctrl-C or otherwise. Health and metrics are on the next port, Postgres
on the one after that, and then two ports for each edge. Metrics are those of all brokers together.
Needs the Postgres binaries (14 or later), on PATH or under /usr/lib/postgresql, and redis-server for
several brokers."
)]
pub struct Args {
    /// Port of the API on loopback, the first of three, and of two more for each edge; 0 takes free ones
    #[arg(long, default_value_t = 8480, value_parser = clap::value_parser!(u16).range(..=65_533))]
    port: u16,
    #[command(flatten)]
    nodes: NodesFlag,
    #[command(flatten)]
    source: SourceFlag,
    /// What to log
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    log_level: String,
}

/// The table that is there to be tried.
const TABLE: &str = "CREATE TABLE public.vms (
    hostname text PRIMARY KEY, email text, crdcommand text, pin int, status text, logs text)";
/// Its rule, as a user would write it.
const RULE: &str = r#"
name    = "public.vms"
topic   = "vm/{hostname}"
columns = ["hostname", "crdcommand", "pin"]
state   = true
"#;

/// Runs until `stop`.
///
/// # Errors
/// No server can be started, or the broker ended by itself.
pub async fn run(args: &Args, out: &mut impl Write, stop: impl Future<Output = ()>) -> Result<(), Failure> {
    let log = telemetry::Config { level: args.log_level.clone(), ..telemetry::Config::default() };
    telemetry::init(&log).map_err(|error| Failure::new(exit::USAGE, format!("--log-level: {error}")))?;
    let nodes = args.nodes.nodes;
    let ports = 1 + 2 * nodes;
    if args.port > 0 && args.port.checked_add(ports - 1).is_none() {
        let most = u16::MAX - ports + 1;
        let message = format!("--nodes {nodes} takes {ports} ports: --port may be {most} at most, or 0");
        return Err(Failure::new(exit::USAGE, message));
    }
    // With 0, each is any free one.
    let next = |n: u16| if args.port == 0 { 0 } else { args.port + n };
    for n in 0..ports {
        refuse_if_taken(next(n))?;
    }
    let _ = match nodes {
        1 => writeln!(io::stderr(), "Starting a throwaway Postgres and a broker …"),
        _ => writeln!(io::stderr(), "Starting a throwaway Postgres, a Redis and {nodes} brokers …"),
    };
    let redis = args.nodes.redis().await?;
    let server = local::throwaway(Options { port: next(2), ..Options::default() }).await?;
    let url = server.url("postgres");
    let mut config = local::config(&url, next(0));
    config.admin.listen.set_port(next(1));
    config.source.kind = args.source.source.unwrap_or_default();
    let rule = toml::from_str(RULE).map_err(|error| Failure::new(exit::OTHER, error.to_string()))?;
    config.table = vec![rule];
    let session = super::settings::connect(&config).await?;
    let created = session.batch_execute(TABLE).await;
    created.map_err(|error| {
        Failure::new(exit::OTHER, format!("creating the table vms: {}", describe(&error)))
    })?;
    session.close().await;
    local::set_up(&config, false).await?;
    let configs = (0..nodes).map(|n| {
        let mut config = config.clone();
        if n > 0 {
            config.http.listen.set_port(next(1 + 2 * n));
            config.admin.listen.set_port(next(2 + 2 * n));
        }
        config
    });
    let brokers = Brokers::start(configs, redis).await?;
    say(out, &url, server.version(), brokers.nodes());
    let ended = brokers.join(stop).await.map_err(|error| Failure::of_node("the built-in rules", &error));
    // Blocks until the server is gone.
    let _ = tokio::task::spawn_blocking(move || drop(server)).await;
    ended
}

/// What is there, and what to do with it. The first node leads.
fn say(out: &mut impl Write, url: &str, version: u32, nodes: &[Node]) {
    let [leader, edges @ ..] = nodes else { return };
    // Each call works on each broker; that two are different ones shows it.
    let (http, admin, other) = (leader.http, leader.admin, edges.last().unwrap_or(leader).http);
    let place = |who: &str, node: &Node| {
        format!("\n{who:<6}  http://{}  health http://{}/readyz", node.http, node.admin)
    };
    let running = match edges {
        [] => format!("Postgres {version} and a broker are running; Ctrl-C ends and removes both."),
        _ => format!(
            "Postgres {version}, a Redis and {} brokers are running; Ctrl-C ends and removes all.\n{}{}",
            nodes.len(),
            place("leader", leader),
            edges.iter().map(|edge| place("edge", edge)).collect::<String>()
        ),
    };
    // To a closed pipe there is nothing to say.
    let _ = write!(
        out,
        "\
{running}

Follow everything, in a second terminal:
  curl -sN -H 'Accept: text/event-stream' 'http://{other}/v1/events?topic=**'
Wait for an assignment, as a VM does (it comes at once if there is one already):
  curl -sw '\\n' 'http://{other}/v1/state/vm/host-17?wait=5m'
Assign, in a third:
  psql '{url}' -c \"INSERT INTO vms (hostname, crdcommand, pin)
    VALUES ('host-17', 'start', (random() * 9999)::int)
    ON CONFLICT (hostname) DO UPDATE SET crdcommand = excluded.crdcommand, pin = excluded.pin\"
Publish a message, by SQL or by HTTP:
  psql '{url}' -c \"SELECT walcast.publish('hello', '{{\\\"from\\\": \\\"psql\\\"}}')\"
  curl -sw '\\n' -H 'Content-Type: application/json' -d '{{\"topic\": \"hello\", \"data\": {{\"from\": \"curl\"}}}}' \\
    'http://{http}/v1/publish'
Health:
  curl -sw '\\n' 'http://{admin}/readyz'
"
    );
    let _ = out.flush();
}

/// Better before a server is made than after.
fn refuse_if_taken(port: u16) -> Result<(), Failure> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).map(drop).map_err(|error| {
        let message = format!(
            "port {port} on 127.0.0.1: {error}; is another `walcast dev` running? --port names other ports"
        );
        Failure::new(exit::UNAVAILABLE, message)
    })
}
