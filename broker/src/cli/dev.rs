//! `walcast dev`: a throwaway Postgres with a broker on it, to try things out.

use std::io::Write;

use super::exit::{self, Failure};
use super::local;
use crate::telemetry;
use crate::throwaway::Options;

/// Arguments.
#[derive(clap::Args, Clone, Debug)]
#[command(
    about = "Start a throwaway Postgres with a broker on it",
    after_help = "Examples:
  walcast dev
  walcast dev --port 9000

Everything goes when it ends, by Ctrl-C or otherwise. Needs the Postgres binaries (14 or later), on PATH
or under /usr/lib/postgresql."
)]
pub struct Args {
    /// Port of the API on loopback; 0 takes a free one
    #[arg(long, default_value_t = 8480)]
    port: u16,
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
    let server = local::throwaway(Options::default()).await?;
    let url = server.url("postgres");
    let mut config = local::config(&url, args.port);
    let rule = toml::from_str(RULE).map_err(|error| Failure::new(exit::OTHER, error.to_string()))?;
    config.table = vec![rule];
    let session = super::settings::connect(&config).await?;
    let created = session.batch_execute(TABLE).await;
    created.map_err(|error| Failure::new(exit::OTHER, format!("creating the table vms: {error}")))?;
    session.close().await;
    local::set_up(&config, false).await?;
    let node = local::start(config).await?;
    let (http, admin, version) = (node.http, node.admin, server.version());
    // To a closed pipe there is nothing to say.
    let _ = write!(
        out,
        "\
Postgres {version} and a broker are running; Ctrl-C ends and removes both.

Wait for an assignment, as a VM does (it comes at once if there is one already):
  curl -s 'http://{http}/v1/state/vm/host-17?wait=5m'
Follow all of them:
  curl -sN -H 'Accept: text/event-stream' 'http://{http}/v1/events?topic=vm/*'
Assign:
  psql '{url}' -c \"INSERT INTO vms (hostname, crdcommand, pin) VALUES ('host-17', 'start --code x', 4711) \\
    ON CONFLICT (hostname) DO UPDATE SET crdcommand = excluded.crdcommand, pin = excluded.pin\"
Publish a message, by SQL or HTTP:
  psql '{url}' -c \"SELECT walcast.publish('hello', '{{\\\"from\\\": \\\"psql\\\"}}')\"
  curl -s -H 'Content-Type: application/json' -d '{{\"topic\": \"hello\", \"data\": {{\"from\": \"curl\"}}}}' http://{http}/v1/publish
Health and metrics:
  curl -s http://{admin}/readyz
"
    );
    let _ = out.flush();
    let ended = node.join(stop).await.map_err(|error| Failure::of_node("the built-in rules", &error));
    // Blocks until the server is gone.
    let _ = tokio::task::spawn_blocking(move || drop(server)).await;
    ended
}
