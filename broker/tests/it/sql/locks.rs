//! What `walcast setup` and `walcast teardown` say when somebody's lock is in the way.

use std::time::Duration;

use walcast::cli::setup::{SetupError, SetupOptions, setup as set_up};
use walcast::cli::teardown::{TeardownOptions, teardown};
use walcast::source::SourceKind;

use super::setup::{table, text};
use crate::server::Server;

const SHORT: Duration = Duration::from_millis(200);

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
