//! What `walcast setup` and `walcast teardown` say when somebody's lock is in the way.

use std::time::Duration;

use tokio_postgres::Client;
use walcast::cli::setup::{SetupError, SetupOptions, setup as set_up};
use walcast::cli::teardown::{TeardownOptions, teardown};
use walcast::source::SourceKind;

use super::setup::{table, text};
use crate::server::Server;
use crate::wait::until;

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(600);

#[tokio::test]
async fn who_holds_a_lock_is_named() {
    let server = Server::tuned(&[("max_prepared_transactions", "2")]).await;
    let mut admin = server.admin().await;
    let schema =
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10)";
    admin.batch_execute(schema).await.unwrap();
    let writer = server.connect_as("postgres", "writer").await;
    let reader = server.connect_as("postgres", "reader").await;
    let mut named = Vec::new();
    for session in [&writer, &reader] {
        named.push(
            text(
                session,
                "SELECT format('pid %s (postgres, %s, open for ', pg_backend_pid(),
            current_setting('application_name'))",
            )
            .await,
        );
    }
    let check = |error: &SetupError, expected: &[&str], not: &str| {
        assert!(matches!(error, SetupError::Blocked(_)), "{error:?}");
        let line = error.to_string();
        for part in [expected, &["pg_terminate_backend(pid)", "--lock-timeout"]].concat() {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains(not) && !line.contains('\n'), "{line}");
    };
    let options = |kind| SetupOptions {
        kind,
        lock_timeout: SHORT,
        tables: vec![table("public.a", None), table("public.p", None)],
        ..SetupOptions::default()
    };
    let outbox = options(SourceKind::Outbox);

    // Only readers are no hindrance to a trigger.
    reader.batch_execute("BEGIN; SELECT FROM a, p").await.unwrap();
    writer.batch_execute("BEGIN; INSERT INTO p VALUES (1)").await.unwrap();
    let error = set_up(&mut admin, &outbox).await.unwrap_err();
    check(&error, &["triggers: not changed: public.p is locked by ", &named[0]], &named[1]);
    assert_eq!(text(&admin, "SELECT to_regnamespace('walcast')::text").await, "");
    writer.batch_execute("PREPARE TRANSACTION 'forgotten'").await.unwrap();
    let error = set_up(&mut admin, &outbox).await.unwrap_err();
    check(&error, &["public.p is locked by prepared transaction forgotten"], &named[1]);
    admin.batch_execute("ROLLBACK PREPARED 'forgotten'").await.unwrap();
    set_up(&mut admin, &outbox).await.unwrap();

    // But they are when it is to go.
    let down = TeardownOptions { lock_timeout: SHORT, ..TeardownOptions::default() };
    let error = teardown(&mut admin, &down).await.unwrap_err();
    check(&error, &["dropping triggers of public.a: public.a is locked by ", &named[1]], &named[0]);
    reader.batch_execute("COMMIT").await.unwrap();
    teardown(&mut admin, &down).await.unwrap();

    writer.batch_execute("BEGIN; LOCK TABLE a IN SHARE UPDATE EXCLUSIVE MODE").await.unwrap();
    let error = set_up(&mut admin, &options(SourceKind::Wal)).await.unwrap_err();
    check(&error, &["publication walcast: not created: public.a is locked by ", &named[0]], &named[1]);
}

/// A transaction of the application's has written one of two tables, `ours` waits for that, and then it writes the other.
async fn crossed<T>(app: &Client, looking: &Client, ours: impl Future<Output = T>) -> T {
    app.batch_execute("BEGIN; INSERT INTO two DEFAULT VALUES").await.unwrap();
    let theirs = async {
        let waits =
            "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'two'::regclass AND NOT granted)::text";
        until("ours waits", async || text(looking, waits).await == "true").await;
        app.batch_execute("INSERT INTO one DEFAULT VALUES; COMMIT").await.unwrap();
    };
    tokio::join!(ours, theirs).0
}

#[tokio::test]
async fn the_application_is_never_the_victim_of_a_deadlock() {
    // Whoever looks for a deadlock first is ended for it, so it would be the application.
    let server = Server::tuned(&[("deadlock_timeout", "5s")]).await;
    let mut admin = server.admin().await;
    let schema =
        "SET deadlock_timeout = '600s'; CREATE TABLE one (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
        CREATE TABLE two (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)";
    admin.batch_execute(schema).await.unwrap();
    let (app, looking) = (server.connect_as("postgres", "app").await, server.admin().await);
    let options = SetupOptions {
        kind: SourceKind::Outbox,
        lock_timeout: LONG,
        tables: vec![table("public.one", None), table("public.two", None)],
        ..SetupOptions::default()
    };
    let report = crossed(&app, &looking, set_up(&mut admin, &options)).await.unwrap();
    assert!(report.steps.contains(&"triggers: public.one created, public.two created".into()), "{report:?}");
    let down = TeardownOptions { kind: SourceKind::Outbox, lock_timeout: LONG, ..TeardownOptions::default() };
    let report = crossed(&app, &looking, teardown(&mut admin, &down)).await.unwrap();
    let dropped = |steps: &[String]| steps.iter().filter(|step| step.contains("triggers dropped")).count();
    assert_eq!(dropped(&report.steps), 2, "{report:?}");
    assert_eq!(
        text(&admin, "SELECT concat((SELECT count(*) FROM one), (SELECT count(*) FROM two))").await,
        "22"
    );
}
