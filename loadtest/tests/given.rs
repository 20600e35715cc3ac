//! On a server that was there: whatever is played, and however it ends, the server is left as it was.
#![allow(clippy::disallowed_methods)] // Its sessions go to the server itself, so statements may have names.

use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::{interval, timeout};
use tokio_postgres::{Client, NoTls};
use walcast::cli::local;
use walcast::throwaway::{self, Throwaway};
use walcast_loadtest::lab::{self, Lab, Settings};
use walcast_loadtest::report::{Scenario, System, Transport};
use walcast_loadtest::scenario::{self, Plan};

const PATIENCE: Duration = Duration::from_secs(120);
/// What must not be there, in words.
const LEFT: &str = "select 'database ' || datname from pg_database where datname like 'loadtest%'
    union all select 'slot ' || slot_name from pg_replication_slots";
/// The same of sessions, other than our own.
const SESSIONS: &str = "select application_name || ': ' || query from pg_stat_activity
    where pid <> pg_backend_pid() and backend_type in ('client backend', 'walsender')";

struct Given {
    server: Throwaway,
    session: Client,
    // Drives the session until the test ends.
    _connection: tokio::task::JoinSet<()>,
}

impl Given {
    async fn start() -> Self {
        let server = local::throwaway(throwaway::Options::for_tests()).await.expect("Postgres is installed");
        let connected = tokio_postgres::connect(&server.url("postgres"), NoTls).await;
        let (session, connection) = connected.expect("the server runs");
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        Self { server, session, _connection: driver }
    }

    fn url(&self) -> String {
        self.server.url("postgres")
    }

    async fn query(&self, sql: &str) -> Vec<String> {
        let rows = self.session.query(sql, &[]).await.expect("the server runs");
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Waits until the query finds nothing, or something.
    async fn until(&self, sql: &str, something: bool) {
        let mut found = Vec::new();
        let met = async {
            let mut tick = interval(Duration::from_millis(20));
            loop {
                tick.tick().await;
                found = self.query(sql).await;
                if found.is_empty() != something {
                    return;
                }
            }
        };
        timeout(PATIENCE, met).await.unwrap_or_else(|_| panic!("{sql}: {found:?}"));
    }

    /// Nothing is left. A session may need a moment to notice that it is over; all else is gone already.
    async fn is_clean(&self) {
        let left = self.query(LEFT).await;
        assert!(left.is_empty(), "{left:?}");
        self.until(SESSIONS, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_scenario_leaves_nothing() {
    let given = Given::start().await;
    for (scenario, clients) in [
        (Scenario::Arrive, 7),
        (Scenario::Commit, 3),
        (Scenario::Sources, 2),
        (Scenario::Ingest, 1),
        (Scenario::Stall, 1),
    ] {
        let options = lab::Options { database_url: Some(given.url()), ..lab::Options::default() };
        let mut lab = Lab::new(options).expect("`cargo build -p walcast` first");
        let plan = Plan {
            clients: vec![clients],
            transports: vec![Transport::Sse],
            peers: vec![System::Listen],
            seconds: 1,
            quick: true,
        };
        let runs = scenario::play(scenario, &mut lab, &plan).await;
        let runs = runs.unwrap_or_else(|error| panic!("{scenario}: {error}"));
        assert!(!runs.is_empty() && runs.iter().all(|run| run.checks.held()), "{runs:?}");
        lab.end().await.unwrap_or_else(|error| panic!("{scenario}: {error}"));
        given.is_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_leaves_nothing() {
    let given = Given::start().await;
    let running = |query: &str| format!("{SESSIONS} and state = 'active' and query like '{query}'");
    for (scenario, signal, busy) in [
        // A block of statements, and then a statement, that would go on for long without their client.
        ("ingest", "TERM", running("%do $$ begin%insert into public.loadtest_ingest%")),
        ("stall", "INT", running("insert into public.loadtest_published%")),
        ("commit", "HUP", running("commit")),
    ] {
        let mut tester = Command::new(env!("CARGO_BIN_EXE_walcast-loadtest"));
        tester.args([scenario, "--peer", "none", "--transport", "sse", "--database-url", &given.url()]);
        let tester = tester.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        given.until(&busy, true).await;
        let killed = Command::new("sh").args(["-c", &format!("kill -{signal} {}", tester.id())]).status();
        assert!(killed.unwrap().success());
        let ended = tokio::task::spawn_blocking(move || tester.wait_with_output());
        let ended = timeout(PATIENCE, ended).await.expect("it ends").unwrap().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{scenario}: {said}");
        let named = format!("127.0.0.1:{}", given.server.port());
        assert!(said.contains("interrupted") && said.contains("database loadtest_"), "{said}");
        assert!(said.contains(&named), "names the server {named}: {said}");
        given.is_clean().await;
    }
}

/// Somebody else's session is not ended, and the rest is removed all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_removed_is_named() {
    let given = Given::start().await;
    let options = lab::Options { database_url: Some(given.url()), ..lab::Options::default() };
    let mut lab = Lab::new(options).expect("`cargo build -p walcast` first");
    let stand = lab.stand(System::Walcast, Some(Transport::Sse), &Settings::clients(1)).await;
    drop(stand.expect("it starts"));
    let name = lab.name().to_owned();
    let url = given.server.url(&name);
    let (held, connection) = tokio_postgres::connect(&url, NoTls).await.expect("the database is there");
    let driver = tokio::spawn(async move { drop(connection.await) });
    let error = lab.end().await.expect_err("the database is in use");
    assert!(error.message.contains(&format!("DROP DATABASE {name};")), "{error}");
    assert_eq!(given.query(LEFT).await, [format!("database {name}")]);
    drop(held);
    driver.await.expect("it ends with its client");
}
