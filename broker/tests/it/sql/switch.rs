//! What is still open when `walcast setup` switches publishers from one way to the other.

use std::time::Duration;

use tokio_postgres::Client;
use walcast::cli::setup::{Report, SetupArgs, SetupOptions, run, setup as set_up};
use walcast::postgres::Session;
use walcast::source::SourceKind;

use super::functions::messages;
use super::outbox::{options, written};
use super::setup::{table, text};
use crate::harness::pooler::Pooler;
use crate::server::{self, Server};
use crate::wait::until;

const DONE: &str = "settings: nothing is on the old way any more";

fn waiting(kind: SourceKind, limit: Duration) -> SetupOptions {
    SetupOptions { kind, lock_timeout: limit, ..options(&[]) }
}

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(600);

async fn pid(client: &Client) -> String {
    format!("pid {} ", text(client, "SELECT pg_backend_pid()::text").await)
}

/// The warning about transactions.
fn warning(report: &Report) -> &str {
    let warning = report.warnings.iter().find(|warning| warning.contains("the old way"));
    warning.unwrap_or_else(|| panic!("{report:?}"))
}

#[tokio::test]
async fn what_may_go_the_old_way_is_named() {
    let server = Server::tuned(&[("max_prepared_transactions", "2")]).await;
    server.create_database("another").await;
    let mut admin = server.admin().await;
    let first = set_up(&mut admin, &waiting(SourceKind::Wal, LONG)).await.unwrap();
    assert!(!first.steps.contains(&DONE.to_owned()), "{first:?}");
    let (app, elsewhere) =
        (server.connect_as("postgres", "app").await, server.connect("another", "postgres", "test").await);
    // It has written nothing yet, and has no id.
    let (app_pid, elsewhere_pid) = (pid(&app).await, pid(&elsewhere).await);
    app.batch_execute("BEGIN; SELECT 1").await.unwrap();
    elsewhere.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    let prepare = "BEGIN; SELECT walcast.publish('prepared', '1'); PREPARE TRANSACTION 'forgotten'";
    server.connect_as("postgres", "test").await.batch_execute(prepare).await.unwrap();

    let report = set_up(&mut admin, &waiting(SourceKind::Outbox, SHORT)).await.unwrap();
    let warning = warning(&report);
    for part in [&format!("{app_pid}(postgres, app, open for "), "prepared transaction forgotten"] {
        assert!(warning.contains(part), "{warning}");
    }
    assert!(warning.contains("keep the old broker running"), "{warning}");
    assert!(!warning.contains(&elsewhere_pid), "{warning}");
    assert!(!report.steps.contains(&DONE.to_owned()), "{report:?}");
    app.batch_execute("COMMIT").await.unwrap();
    admin.batch_execute("COMMIT PREPARED 'forgotten'").await.unwrap();
    assert_eq!(written(&admin).await, Vec::<String>::new());
    let told: Vec<_> = messages(&admin).await.into_iter().map(|(_, text)| text).collect();
    assert_eq!(told, ["prepared\n1"]);

    // Where publishers stay with their way nobody is waited for.
    app.batch_execute("BEGIN").await.unwrap();
    let report = set_up(&mut admin, &waiting(SourceKind::Outbox, LONG)).await.unwrap();
    assert!(!report.changed() && !report.warnings.iter().any(|it| it.contains("old way")), "{report:?}");
}

#[tokio::test]
async fn setup_waits_for_what_is_open() {
    let server = Server::tuned(&[]).await;
    let mut admin = server.admin().await;
    for kind in [SourceKind::Wal, SourceKind::Outbox] {
        set_up(&mut admin, &waiting(kind, LONG)).await.unwrap();
    }
    let app = server.connect_as("postgres", "app").await;
    let setup = text(&admin, "SELECT pg_backend_pid()::text").await;
    for kind in [SourceKind::Wal, SourceKind::Outbox] {
        app.batch_execute("BEGIN; SELECT walcast.publish('t', '1')").await.unwrap();
        let options = waiting(kind, LONG);
        let done = set_up(&mut admin, &options);
        let other = async {
            let looking = server.admin().await;
            let sql = format!(
                "SELECT (carry = '{}' AND EXISTS (SELECT FROM pg_stat_activity
                    WHERE pid = {setup} AND query ~ 'FROM pg_prepared_xacts'))::text FROM walcast.settings",
                kind.as_str()
            );
            until("setup has looked", async || text(&looking, &sql).await == "true").await;
            app.batch_execute("COMMIT; BEGIN").await.unwrap();
        };
        let (report, ()) = tokio::join!(done, other);
        let report = report.unwrap();
        // What began since then is not waited for.
        assert_eq!(report.steps.last().unwrap(), DONE, "{report:?}");
        assert!(!report.warnings.iter().any(|warning| warning.contains("old way")), "{report:?}");
        app.batch_execute("COMMIT").await.unwrap();
    }
}

#[tokio::test]
async fn it_is_named_where_the_rest_fails_as_well() {
    let server = Server::tuned(&[]).await;
    let mut admin = server.admin().await;
    admin.batch_execute("CREATE TABLE a (id int PRIMARY KEY)").await.unwrap();
    let options = |kind| SetupOptions { tables: vec![table("public.a", None)], ..waiting(kind, SHORT) };
    for kind in [SourceKind::Wal, SourceKind::Outbox] {
        set_up(&mut admin, &options(kind)).await.unwrap();
    }
    let (app, reader) =
        (server.connect_as("postgres", "app").await, server.connect_as("postgres", "reader").await);
    app.batch_execute("BEGIN; SELECT walcast.publish('t', '1')").await.unwrap();
    reader.batch_execute("BEGIN; SELECT FROM a").await.unwrap();
    let mut out = Vec::new();
    let back = options(SourceKind::Wal);
    let error = run(&SetupArgs::default(), &back, Some(&mut admin), &mut out).await.unwrap_err().to_string();
    assert!(error.starts_with("triggers: not changed: public.a is locked by "), "{error}");
    let told = String::from_utf8(out).unwrap();
    let warning = told.lines().find(|line| line.starts_with("warning: ") && line.contains("the old way"));
    let warning = warning.unwrap_or_else(|| panic!("{told}"));
    assert!(warning.contains(&pid(&app).await), "{warning}");
    assert!(told.contains("settings: from now on publishers send through the write-ahead log"), "{told}");
    reader.batch_execute("COMMIT").await.unwrap();
    let report = set_up(&mut admin, &back).await.unwrap();
    assert_eq!(report.steps, ["triggers: public.a dropped"]);
}

#[tokio::test]
async fn an_owner_behind_a_pooler_is_told_as_well() {
    let server = Server::tuned(&[]).await;
    server.create_database("mine").await;
    server.sql("CREATE ROLE owner LOGIN; CREATE ROLE app LOGIN; ALTER DATABASE mine OWNER TO owner");
    let pooler = Pooler::start(&server, "").await;
    let target =
        walcast::postgres::Target { pooled: true, ..server::target(&pooler.dsn_as("mine", "owner")) };
    let mut session = Session::connect(&target, "walcast setup").await.unwrap();
    let options = waiting(SourceKind::Outbox, SHORT);
    set_up(&mut session, &options).await.unwrap();
    session.batch_execute("UPDATE walcast.settings SET carry = 'wal'").await.unwrap();
    // The owner may not see since when it is open.
    let app = server.connect("mine", "app", "app").await;
    app.batch_execute("BEGIN").await.unwrap();
    let report = set_up(&mut session, &options).await.unwrap();
    let named = format!("old way: {}(app, app); keep", pid(&app).await);
    assert!(warning(&report).contains(&named), "{report:?}");
    session.close().await;
    let left = pooler.left_behind("mine").await;
    assert!(left.is_empty(), "{left:?}");
}
