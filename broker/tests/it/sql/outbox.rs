//! `walcast setup` and `teardown` where events travel through a table.

use tokio_postgres::Client;
use walcast::cli::setup::{Audience, PublishedTable, SetupError, SetupOptions, setup as set_up};
use walcast::cli::teardown::{TeardownOptions, teardown};
use walcast::postgres::Session;
use walcast::source::SourceKind;

use super::setup::{printed, table, text};
use crate::harness::pooler::Pooler;
use crate::process::{file, run};
use crate::server::{self, Server};

/// For an outbox that publishes these.
pub(super) fn options(tables: &[PublishedTable]) -> SetupOptions {
    SetupOptions { kind: SourceKind::Outbox, tables: tables.to_vec(), ..SetupOptions::default() }
}

/// What was written since the last call, in order.
pub(super) async fn written(client: &Client) -> Vec<String> {
    let sql = "WITH taken AS (DELETE FROM walcast.outbox RETURNING *)
        SELECT topic || options || ' ' || data FROM taken ORDER BY id";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// A server whose log is not logical, and a role that owns a database and has no other right.
async fn plain() -> Server {
    let server = Server::tuned(&[("wal_level", "replica")]).await;
    server.create_database("mine").await;
    let roles = "CREATE ROLE owner LOGIN; CREATE ROLE broker LOGIN; CREATE ROLE app LOGIN; CREATE ROLE other;
        ALTER DATABASE mine OWNER TO owner";
    server.sql(roles);
    let owner = server.connect("mine", "owner", "test").await;
    let schema =
        "CREATE TABLE a (id int PRIMARY KEY, x text, y text); CREATE TABLE b (id int PRIMARY KEY, x text);
        CREATE SCHEMA app; CREATE TABLE app.c (id int PRIMARY KEY, x text); GRANT INSERT ON a TO app;
        ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO other";
    owner.batch_execute(schema).await.unwrap();
    server
}

fn full_options() -> SetupOptions {
    SetupOptions {
        broker_role: Some("broker".into()),
        publishers: vec!["app".into()],
        ..options(&[table("public.a", Some(&["id", "x"])), table("app.c", None)])
    }
}

/// All that is to be the same whichever way it was made.
async fn rows(client: &Client) -> String {
    text(
        client,
        "SELECT concat_ws(' ', (SELECT carry || lane_seconds FROM walcast.settings),
            (SELECT string_agg(slot, ',') FROM walcast.source), (SELECT count(*) FROM walcast.tick),
            (SELECT count(*) FROM walcast.outbox_reader), (SELECT string_agg(g::text, '' ORDER BY g) FROM walcast.granted g),
            (SELECT string_agg(version || checksum, ' ' ORDER BY version) FROM walcast.refinery_schema_history))",
    )
    .await
}

#[tokio::test]
async fn an_owner_sets_up_and_takes_down_through_a_pooler() {
    let server = plain().await;
    let (before, pooler) = (server.dump("mine"), Pooler::start(&server, "").await);
    let owner = server.connect("mine", "owner", "test").await;
    let target =
        walcast::postgres::Target { pooled: true, ..server::target(&pooler.dsn_as("mine", "owner")) };
    let mut session = Session::connect(&target, "walcast setup").await.unwrap();
    let options = full_options();
    let report = set_up(&mut session, &options).await.unwrap();
    let heads: Vec<_> = report.steps.iter().map(|step| step.split(':').next().unwrap()).collect();
    let expected =
        ["schema walcast", "grants to app", "grants to broker", "new generation of source walcast", "outbox"];
    assert_eq!(heads, [&expected[..], &["triggers", "settings"]].concat());
    assert_eq!(report.warnings, Vec::<String>::new());
    let again = set_up(&mut session, &options).await.unwrap();
    assert_eq!((again.steps, again.warnings), (vec![], vec![]));
    assert!(rows(&owner).await.starts_with("outbox150 walcast 1 1 "), "{}", rows(&owner).await);

    // What may be called, and by whom.
    let app = server.connect("mine", "app", "test").await;
    app.batch_execute("INSERT INTO a VALUES (1, 'x', 'y'); SELECT walcast.publish('t', '1')").await.unwrap();
    assert_eq!(
        written(&owner).await,
        [
            r#"public.a op=insert {"new": "(1,x)", "full": false, "columns": [["id", 23, true], ["x", 25, false]]}"#,
            "t 1"
        ]
    );
    let broker = server.connect("mine", "broker", "test").await;
    let reads = "SELECT walcast.outbox_start('walcast'), walcast.outbox_lead(gen_random_uuid(), 5); SELECT FROM a, app.c;
        SELECT FROM walcast.settings, walcast.source, walcast.refinery_schema_history; SELECT walcast.publish('t', '1')";
    broker.batch_execute(reads).await.unwrap();
    let open = "SELECT string_agg(p.oid::regprocedure::text, ' ') FROM pg_proc p
        WHERE pronamespace = 'walcast'::regnamespace AND proname ~ '^outbox_' AND proname <> 'outbox_begin'
            AND NOT has_function_privilege('broker', oid, 'EXECUTE')";
    assert_eq!(text(&owner, open).await, "");
    let open = "SELECT string_agg(p.oid::regprocedure || ' ' || r.rolname, ', ')
        FROM pg_proc p, pg_roles r WHERE pronamespace = 'walcast'::regnamespace AND proname ~ '^(rows_|carry|lane)'
            AND r.rolname IN ('app', 'broker', 'other') AND has_function_privilege(r.oid, p.oid, 'EXECUTE')";
    assert_eq!(text(&owner, open).await, "");

    let taken = TeardownOptions { kind: SourceKind::Outbox, ..TeardownOptions::default() };
    let report = teardown(&mut session, &taken).await.unwrap();
    assert!(report.steps.starts_with(&["table app.c: triggers dropped".to_owned()]), "{report:?}");
    assert_eq!(server.dump("mine"), before);
    assert!(!teardown(&mut session, &taken).await.unwrap().changed());
    session.close().await;
    let left = pooler.left_behind("mine").await;
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn printed_statements_make_what_setup_makes() {
    let server = plain().await;
    let mut owner = server.connect("mine", "owner", "test").await;
    let options = full_options();
    let text = printed(Audience::Owner, &options, Some(&mut owner)).await;
    set_up(&mut owner, &options).await.unwrap();
    let (dump, made) = (server.dump("mine"), rows(&owner).await);
    teardown(&mut owner, &TeardownOptions::default()).await.unwrap();
    server.script("owner", "mine", &text);
    assert_eq!(server.dump("mine"), dump);
    assert_eq!(rows(&owner).await, made);
    assert!(!set_up(&mut owner, &options).await.unwrap().changed());
    let text = printed(Audience::All, &options, Some(&mut owner)).await;
    assert!(!text.contains("ALTER") && !text.contains("wal_level"), "{text}");
    assert_eq!(text.matches("-- Nothing to do.").count(), 3, "{text}");
    server.sql("ALTER ROLE broker NOLOGIN");
    let text = printed(Audience::Dba, &options, Some(&mut owner)).await;
    assert!(text.contains("ALTER ROLE \"broker\" LOGIN;\n"), "{text}");
    // What the tables are, only the database knows.
    let args = walcast::cli::setup::SetupArgs { print_sql: Some(Audience::All), ..Default::default() };
    let error = walcast::cli::setup::run(&args, &options, None, &mut Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("--database-url, as the owner"), "{error}");
}

#[tokio::test]
async fn the_commands_take_a_flag() {
    let server = plain().await;
    let url = format!("postgres://owner@127.0.0.1:{}/mine", server.port);
    let path = file("outbox-flag", &format!("[postgres]\nurl = '{url}'\n[history]\nage = '1h'\n"));
    let setup = ["setup", "--config", &path, "--source", "outbox"];
    run(&setup).await.succeeded();
    let owner = server.connect("mine", "owner", "test").await;
    assert_eq!(text(&owner, "SELECT carry || lane_seconds FROM walcast.settings").await, "outbox900");
    // Where nobody says by which way, it stays as it is.
    assert!(run(&["setup", "--config", &path]).await.succeeded().contains("Nothing to do"));
    run(&["setup", "--config", &path, "--source", "wal"]).await.failed(69, &["wal_level", "--source outbox"]);
    run(&["teardown", "--config", &path, "--source", "outbox"]).await.succeeded();
    assert_eq!(text(&owner, "SELECT to_regnamespace('walcast')::text").await, "");
}

#[tokio::test]
async fn triggers_follow_the_rules_and_the_tables() {
    let database = "outbox_rules";
    server::create(database).await;
    let mut client = server::connect(database, "postgres").await;
    let schema =
        "CREATE TABLE a (id int PRIMARY KEY, x text, y text); CREATE TABLE b (id int PRIMARY KEY, x text)";
    client.batch_execute(schema).await.unwrap();
    let triggers = "SELECT string_agg(concat_ws(' ', tgrelid::regclass, tgname, tgenabled,
            encode(substr(tgargs, 1, greatest(length(tgargs) - 1, 0)), 'escape')), ' | ' ORDER BY tgrelid::regclass::text, tgname)
        FROM pg_trigger WHERE tgname ~ 'walcast_'";
    let mut check = async |tables: &[PublishedTable], step: &str, expected: &str| {
        let report = set_up(&mut client, &options(tables)).await.unwrap();
        assert!(report.steps.contains(&format!("triggers: {step}")), "{report:?}");
        assert_eq!(text(&client, triggers).await, expected);
        assert!(!set_up(&mut client, &options(tables)).await.unwrap().changed());
        let functions = "SELECT count(*)::text FROM pg_proc WHERE proname ~ '^rows_'";
        assert_eq!(text(&client, functions).await, tables.len().to_string());
    };
    let (a, b) = (table("public.a", Some(&["x"])), table("public.b", None));
    let (of_a, of_b) = (
        r#"a 0_walcast_rows A {"columns":["x","id"],"key":["id"],"full":false} | a 0_walcast_truncate A "#,
        r#"b 0_walcast_rows A {"columns":null,"key":["id"],"full":false} | b 0_walcast_truncate A "#,
    );
    check(std::slice::from_ref(&a), "public.a created", of_a).await;
    check(&[a.clone(), b.clone()], "public.b created", &format!("{of_a} | {of_b}")).await;
    check(std::slice::from_ref(&b), "public.a dropped", of_b).await;
    let y = table("public.a", Some(&["id", "y"]));
    check(
        &[y, b.clone()],
        "public.a created",
        &format!("{} | {of_b}", of_a.replace(r#""x","id""#, r#""id","y""#)),
    )
    .await;
    check(&[a.clone(), b.clone()], "public.a changed", &format!("{of_a} | {of_b}")).await;

    let admin = server::connect(database, "postgres").await;
    admin.batch_execute("ALTER TABLE b REPLICA IDENTITY FULL").await.unwrap();
    let full = r#"b 0_walcast_rows A {"columns":null,"key":[],"full":true} | b 0_walcast_truncate A "#;
    check(&[a.clone(), b.clone()], "public.b changed", &format!("{of_a} | {full}")).await;
    admin
        .batch_execute("ALTER TABLE b REPLICA IDENTITY DEFAULT; ALTER TABLE a ENABLE TRIGGER ALL")
        .await
        .unwrap();
    let both = format!("{of_a} | {of_b}");
    check(&[a.clone(), b.clone()], "public.a changed, public.b changed", &both).await;
    // A column more is sent either way; the function is faster when it knows it.
    admin.batch_execute("ALTER TABLE b ADD COLUMN z text").await.unwrap();
    check(&[a.clone(), b.clone()], "public.b changed", &both).await;
    // Another table under the name of one that was renamed.
    admin
        .batch_execute("ALTER TABLE a RENAME TO was_a; CREATE TABLE a (x text, id int PRIMARY KEY)")
        .await
        .unwrap();
    check(&[a.clone(), b.clone()], "public.was_a dropped, public.a created", &both).await;
    // Of a name that it once had.
    admin.batch_execute("ALTER TRIGGER \"0_walcast_rows\" ON a RENAME TO walcast_rows").await.unwrap();
    check(&[a.clone(), b.clone()], "public.a changed", &both).await;
    admin.batch_execute("DROP TABLE a").await.unwrap();
    check(std::slice::from_ref(&b), "functions of dropped tables dropped", of_b).await;
}

#[tokio::test]
async fn without_a_file_no_trigger_is_dropped() {
    let database = "outbox_rules_missing";
    server::create(database).await;
    let mut client = server::connect(database, "postgres").await;
    client.batch_execute("CREATE TABLE a (id int PRIMARY KEY)").await.unwrap();
    set_up(&mut client, &options(&[table("public.a", None)])).await.unwrap();
    let missing = SetupOptions { rules_missing: Some("there is no file".into()), ..options(&[]) };
    let error = set_up(&mut client, &missing).await.unwrap_err().to_string();
    assert!(error.contains("public.a would lose theirs") && error.contains("--no-tables"), "{error}");
}

#[tokio::test]
async fn what_fails_changes_nothing() {
    let server = plain().await;
    server.sql(
        "ALTER DATABASE mine OWNER TO postgres; GRANT CREATE ON DATABASE mine TO other; GRANT other TO app",
    );
    let before = server.dump("mine");
    let mut app = server.connect("mine", "app", "test").await;
    app.batch_execute("SET ROLE other").await.unwrap();
    let error = set_up(&mut app, &options(&[table("public.a", None)])).await.unwrap_err();
    assert!(matches!(error, SetupError::Denied(_)), "{error:?}");
    assert!(error.to_string().contains("triggers: not changed: permission denied for table a"), "{error}");
    assert_eq!(server.dump("mine"), before);
}

#[tokio::test]
async fn a_later_versions_schema_is_left_alone() {
    let server = Server::tuned(&[]).await;
    let log = SetupOptions::default();
    server.set_up(&log).await.unwrap();
    for (sql, migration) in [
        ("INSERT INTO walcast.refinery_schema_history VALUES (999, 'later', '', '1')", "V999 "),
        ("UPDATE walcast.refinery_schema_history SET checksum = '1' WHERE version = 2", "V2 "),
    ] {
        server.sql(sql);
        for options in [&log, &options(&[])] {
            let error = server.set_up(options).await.unwrap_err().to_string();
            for part in [migration, "older than the one that set up", "`walcast teardown`"] {
                assert!(error.contains(part), "{part}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn each_publish_lands_where_it_is_read() {
    let server = Server::tuned(&[]).await;
    let mut admin = server.admin().await;
    admin.batch_execute("CREATE TABLE a (id int PRIMARY KEY)").await.unwrap();
    let log = SetupOptions { tables: vec![table("public.a", None)], ..SetupOptions::default() };
    let outbox = options(&[table("public.a", None)]);
    // One session all the time, whose plans know what was.
    let app = server.connect_as("postgres", "app").await;
    let publish = async |topic: &str, row: i32| {
        let sql = format!("SELECT walcast.publish('{topic}', '1'); INSERT INTO a VALUES ({row})");
        app.batch_execute(&sql).await.unwrap();
        app.batch_execute(&format!("SELECT walcast.notify('{topic}', 'x')")).await.unwrap();
    };
    let in_log = async || {
        let messages = super::functions::messages(&app).await;
        messages.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("; ")
    };
    let generation = async || text(&app, "SELECT generation::text FROM walcast.source").await;
    set_up(&mut admin, &log).await.unwrap();
    publish("first", 1).await;
    let first = generation().await;
    assert_eq!(in_log().await, "first\n1; first once=1\n\"x\"");

    let report = set_up(&mut admin, &outbox).await.unwrap();
    assert!(report.steps.iter().any(|step| step.contains("through the outbox")), "{report:?}");
    assert_eq!(report.warnings.len(), 2, "{report:?}");
    assert!(report.warnings[0].contains("SELECT pg_drop_replication_slot('walcast')"), "{report:?}");
    assert!(report.warnings[1].contains("DROP PUBLICATION \"walcast\""), "{report:?}");
    publish("second", 2).await;
    assert_eq!(in_log().await, "first\n1; first once=1\n\"x\"");
    let row = r#"public.a op=insert {"new": "(2)", "full": false, "columns": [["id", 23, true]]}"#;
    assert_eq!(written(&admin).await, ["second 1", row, "second once=1 \"x\""]);
    let second = generation().await;
    assert_ne!(first, second);

    let report = set_up(&mut admin, &log).await.unwrap();
    assert!(report.steps.contains(&"triggers: public.a dropped".to_owned()), "{report:?}");
    assert!(report.steps.iter().any(|step| step.contains("through the write-ahead log")), "{report:?}");
    publish("third", 3).await;
    assert_eq!(written(&admin).await, Vec::<String>::new());
    assert!(in_log().await.ends_with("third\n1; third once=1\n\"x\""));
    let third = generation().await;
    assert_ne!(second, third);
    assert!(!set_up(&mut admin, &log).await.unwrap().changed());

    // And there again: what went by the log is missing from the outbox, so it is another number line.
    set_up(&mut admin, &outbox).await.unwrap();
    assert_ne!(third, generation().await);
    let steps = teardown(&mut admin, &TeardownOptions::default()).await.unwrap().steps;
    for step in ["slot walcast: dropped", "table public.a: triggers dropped", "schema walcast: dropped"] {
        assert!(steps.contains(&step.to_owned()), "{steps:?}");
    }
}

#[tokio::test]
async fn a_broker_that_leads_is_told_of() {
    let database = "outbox_led";
    server::create(database).await;
    let mut client = server::connect(database, "postgres").await;
    for (seconds, warnings) in [(3600, 1), (0, 0)] {
        set_up(&mut client, &options(&[])).await.unwrap();
        let lead = format!("SELECT walcast.outbox_lead(gen_random_uuid(), {seconds})");
        client.batch_execute(&lead).await.unwrap();
        let taken = TeardownOptions { kind: SourceKind::Outbox, ..TeardownOptions::default() };
        let report = teardown(&mut client, &taken).await.unwrap();
        assert_eq!(report.steps, ["schema walcast: dropped"]);
        assert_eq!(report.warnings.len(), warnings, "{report:?}");
        assert!(report.warnings.iter().all(|warning| warning.contains("stop the brokers")), "{report:?}");
    }
}
