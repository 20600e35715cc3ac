//! `walcast setup`.

use std::time::Duration;

use tokio_postgres::Client;
use walcast::cli::setup::{
    Audience, PublishedTable, SetupArgs, SetupError, SetupOptions, run, setup as set_up,
};

use crate::process::{Running, directory, walcast};
use crate::server::{ADMIN, Server};

pub(super) fn table(name: &str, columns: Option<&[&str]>) -> PublishedTable {
    let (schema, name) = name.split_once('.').unwrap();
    let columns = columns.map(|columns| columns.iter().map(ToString::to_string).collect());
    PublishedTable { schema: schema.into(), name: name.into(), columns, state: true }
}

fn options(tables: &[PublishedTable]) -> SetupOptions {
    SetupOptions { tables: tables.to_vec(), ..SetupOptions::default() }
}

pub(super) async fn text(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get::<_, Option<String>>(0).unwrap_or_default()
}

async fn published(client: &Client) -> String {
    text(
        client,
        "SELECT string_agg(schemaname || '.' || tablename || attnames::text, ' ' ORDER BY tablename)
            FROM pg_publication_tables WHERE pubname = 'walcast'",
    )
    .await
}

#[tokio::test]
async fn a_second_run_finds_nothing_to_do() {
    let server = Server::tuned(&[]).await;
    let admin = server.admin().await;
    let schema = "CREATE TABLE a (id int PRIMARY KEY, x text); CREATE SCHEMA \"App\";
        CREATE TABLE \"App\".\"B b\" (id int, x text); ALTER TABLE \"App\".\"B b\" REPLICA IDENTITY FULL;
        CREATE ROLE app; CREATE ROLE broker REPLICATION";
    admin.batch_execute(schema).await.unwrap();
    let options = SetupOptions {
        broker_role: Some("broker".into()),
        publishers: vec!["app".into()],
        ..options(&[table("public.a", Some(&["id"])), table("App.B b", None)])
    };
    let report = server.set_up(&options).await.unwrap();
    assert_eq!(report.steps.len(), 6, "{report:?}");
    assert!(report.warnings.iter().any(|warning| warning.contains("42P10")), "{report:?}");
    assert_eq!(published(&admin).await, r#"App.B b{id,x} public.a{id}"#);
    let state = "SELECT concat_ws(' ', (SELECT generation FROM walcast.source WHERE slot = 'walcast'),
        (SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'walcast'),
        (SELECT key FROM walcast.key), (SELECT pubviaroot FROM pg_publication))";
    let before = text(&admin, state).await;
    assert!(before.ends_with(" t"), "{before}");
    let again = server.set_up(&options).await.unwrap();
    assert_eq!(again.steps, Vec::<String>::new());
    assert_eq!(text(&admin, state).await, before);
    let rights = "SELECT concat_ws(' ', has_schema_privilege('broker', 'App', 'USAGE'),
        has_table_privilege('broker', '\"App\".\"B b\"', 'SELECT'), has_table_privilege('broker', 'a', 'SELECT'),
        has_table_privilege('app', 'a', 'SELECT'))";
    assert_eq!(text(&admin, rights).await, "t t t f");
    // The session is given back as it was.
    let mut client = server.admin().await;
    set_up(&mut client, &options).await.unwrap();
    let settings = "SELECT concat_ws(' ', current_setting('search_path'), current_setting('lock_timeout'),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'))";
    assert_eq!(text(&client, settings).await, "\"$user\", public 0 0");
}

#[tokio::test]
async fn the_publication_follows_the_rules() {
    let server = Server::tuned(&[]).await;
    let admin = server.admin().await;
    let tables = "CREATE TABLE a (id int PRIMARY KEY, x text); CREATE TABLE b (id int PRIMARY KEY, x text);
        CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        CREATE TABLE child () INHERITS (a)";
    admin.batch_execute(tables).await.unwrap();
    let check = async |tables: &[PublishedTable], expected: &str| {
        server.set_up(&options(tables)).await.unwrap();
        assert_eq!(published(&admin).await, expected);
        assert!(!server.set_up(&options(tables)).await.unwrap().changed());
    };
    check(&[], "").await;
    check(&[table("public.a", None), table("public.p", None)], "public.a{id,x} public.p{id}").await;
    check(&[table("public.b", None), table("public.a", Some(&["id"]))], "public.a{id} public.b{id,x}").await;
    check(&[table("public.a", None)], "public.a{id,x}").await;
    admin.batch_execute("ALTER PUBLICATION walcast SET (publish_via_partition_root = false)").await.unwrap();
    let report = server.set_up(&options(&[table("public.a", None)])).await.unwrap();
    assert_eq!(report.steps, ["publication walcast: options corrected"]);
    admin.batch_execute("DROP PUBLICATION walcast; CREATE PUBLICATION walcast FOR ALL TABLES").await.unwrap();
    let error = server.set_up(&options(&[])).await.unwrap_err();
    assert!(matches!(&error, SetupError::Rules(lines) if lines[0].contains("FOR ALL TABLES")), "{error}");
}

#[tokio::test]
async fn without_a_file_no_table_is_taken_out() {
    let server = Server::tuned(&[]).await;
    let admin = server.admin().await;
    admin
        .batch_execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
        .await
        .unwrap();
    let url = server.url("postgres");
    let directory = directory("setup-without-a-file");
    let command = async |args: &[&str]| {
        let mut command = walcast(&[&["setup"], args].concat());
        command.current_dir(&directory).env("DATABASE_URL", &url);
        Running::start(command).end().await
    };
    // Where nothing is published there is nothing to lose.
    command(&[]).await.succeeded();
    server.set_up(&options(&[table("public.a", None), table("public.b", None)])).await.unwrap();
    let before = published(&admin).await;
    for args in [&[][..], &["--print-sql"]] {
        let ended = command(args).await;
        ended.failed(64, &["no walcast.toml", "public.a, public.b", "--config FILE", "--no-tables"]);
        assert_eq!(published(&admin).await, before);
    }
    std::fs::write(directory.join("walcast.toml"), "").unwrap();
    command(&["--no-tables"]).await.failed(64, &["walcast.toml", "--no-tables"]);
    std::fs::remove_file(directory.join("walcast.toml")).unwrap();
    command(&["--no-tables"]).await.succeeded();
    assert_eq!(published(&admin).await, "");
}

#[tokio::test]
async fn a_broker_may_read_what_is_added_later() {
    let server = Server::tuned(&[]).await;
    let admin = server.admin().await;
    let schema =
        "CREATE TABLE a (id int PRIMARY KEY); CREATE SCHEMA app; CREATE TABLE app.b (id int PRIMARY KEY);
        CREATE ROLE broker; CREATE ROLE publisher";
    admin.batch_execute(schema).await.unwrap();
    let first = SetupOptions {
        broker_role: Some("broker".into()),
        publishers: vec!["publisher".into()],
        ..options(&[])
    };
    server.set_up(&first).await.unwrap();
    // Nobody names the roles again.
    let later = options(&[table("public.a", None), table("app.b", None)]);
    let report = server.set_up(&later).await.unwrap();
    assert!(report.steps.iter().any(|step| step.starts_with("grants to broker: ")), "{report:?}");
    let rights = "SELECT concat_ws(' ', has_table_privilege('broker', 'a', 'SELECT'),
        has_schema_privilege('broker', 'app', 'USAGE'), has_table_privilege('broker', 'app.b', 'SELECT'),
        has_table_privilege('publisher', 'a', 'SELECT'))";
    assert_eq!(text(&admin, rights).await, "t t t f");
    assert!(!server.set_up(&later).await.unwrap().changed());
}

#[tokio::test]
async fn rules_that_would_harm_are_refused() {
    let server = Server::tuned(&[]).await;
    let admin = server.admin().await;
    let tables = "CREATE TABLE keyless (x int); CREATE TABLE good (id int PRIMARY KEY, x int, y int);
        CREATE TABLE wide (id int PRIMARY KEY, x int); ALTER TABLE wide REPLICA IDENTITY FULL;
        CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
        CREATE TABLE late (id int PRIMARY KEY DEFERRABLE);
        CREATE TABLE indexed (a int NOT NULL, b int); CREATE UNIQUE INDEX i ON indexed (a) INCLUDE (b);
        ALTER TABLE indexed REPLICA IDENTITY USING INDEX i;
        CREATE TABLE p (id int) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p (PRIMARY KEY (id)) FOR VALUES FROM (0) TO (10);
        CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
        CREATE VIEW v AS SELECT 1 AS x; CREATE UNLOGGED TABLE u (id int PRIMARY KEY)";
    admin.batch_execute(tables).await.unwrap();
    let check = async |name: &str, columns: Option<&[&str]>, expected: &[&str]| {
        let error = server.set_up(&options(&[table(name, columns)])).await.unwrap_err();
        let SetupError::Rules(lines) = &error else { panic!("{error:?}") };
        assert_eq!(lines.len(), 1, "{error}");
        assert!(expected.iter().all(|word| lines[0].contains(word)), "{error}");
    };
    check("public.absent", None, &["public.absent does not exist"]).await;
    check("public.keyless", None, &["public.keyless", "ADD PRIMARY KEY", "REPLICA IDENTITY FULL"]).await;
    check("public.nothing", None, &["no replica identity"]).await;
    check("public.late", None, &["no replica identity"]).await;
    check("public.p", None, &["public.p2 has no replica identity"]).await;
    check("public.v", None, &["not a table"]).await;
    check("public.u", None, &["SET LOGGED"]).await;
    check("public.good", Some(&["x"]), &["\"id\"", "42P10"]).await;
    check("public.good", Some(&["id", "absent"]), &["no column \"absent\""]).await;
    check("public.wide", Some(&["id"]), &["\"x\"", "FULL"]).await;
    check("public.indexed", Some(&["b"]), &["\"a\""]).await;
    // Nothing was made by all that, and a list that holds the identity leaves UPDATE alone.
    assert_eq!(text(&admin, "SELECT to_regnamespace('walcast')::text").await, "");
    server
        .set_up(&options(&[table("public.good", Some(&["id"])), table("public.indexed", Some(&["a"]))]))
        .await
        .unwrap();
    let update = "INSERT INTO good VALUES (1, 1, 1); UPDATE good SET x = 2; DELETE FROM good;
        INSERT INTO indexed VALUES (1, 1); UPDATE indexed SET b = 2";
    admin.batch_execute(update).await.unwrap();
}

#[tokio::test]
async fn a_server_that_cannot_carry_a_broker_is_refused() {
    let server = Server::tuned(&[
        ("wal_level", "replica"),
        ("max_slot_wal_keep_size", "-1"),
        ("max_replication_slots", "1"),
    ])
    .await;
    let check = async |options: &SetupOptions, expected: &[&str]| {
        let error = server.set_up(options).await.unwrap_err();
        let SetupError::Server(lines) = &error else { panic!("{error:?}") };
        assert_eq!(lines.len(), expected.len(), "{error}");
        assert!(lines.iter().zip(expected).all(|(line, word)| line.contains(word)), "{error}");
    };
    check(&options(&[]), &["wal_level", "max_slot_wal_keep_size", "max_replication_slots"]).await;
    let accepting = SetupOptions { accept_unbounded_wal: true, ..options(&[]) };
    check(&accepting, &["wal_level", "max_replication_slots"]).await;
    let created = server
        .program("createdb", ADMIN, "postgres")
        .args(["-E", "LATIN1", "-T", "template0", "latin"])
        .status();
    assert!(created.unwrap().success());
    let mut client = server.connect("latin", ADMIN, "test").await;
    let error = set_up(&mut client, &accepting).await.unwrap_err().to_string();
    assert!(error.contains("LATIN1"), "{error}");
}

#[tokio::test]
async fn roles_that_may_not_are_told_who_may() {
    let server = Server::tuned(&[("max_slot_wal_keep_size", "-1")]).await;
    let admin = server.admin().await;
    let roles =
        "CREATE ROLE owner LOGIN; GRANT CREATE ON DATABASE postgres TO owner; CREATE ROLE nobody LOGIN;
        CREATE ROLE sender LOGIN REPLICATION; CREATE ROLE broker LOGIN; CREATE TABLE a (id int PRIMARY KEY)";
    admin.batch_execute(roles).await.unwrap();
    let accepting = SetupOptions { accept_unbounded_wal: true, ..options(&[table("public.a", None)]) };
    let check = async |role: &str, expected: &[&str]| {
        let error = set_up(&mut server.connect_as(role, "test").await, &accepting).await.unwrap_err();
        assert!(matches!(error, SetupError::Denied(_)), "{error:?}");
        assert!(expected.iter().all(|word| error.to_string().contains(word)), "{error}");
    };
    check("owner", &["ALTER ROLE \"owner\" REPLICATION", "--print-sql=broker"]).await;
    check("sender", &["schema walcast: not migrated", "permission denied for database"]).await;
    admin.batch_execute("GRANT CREATE ON DATABASE postgres TO sender").await.unwrap();
    check("sender", &["publication walcast: not created: must be owner of table a", "--print-sql"]).await;
    let options = SetupOptions { broker_role: Some("absent".into()), ..accepting.clone() };
    let error = server.set_up(&options).await.unwrap_err();
    assert!(error.to_string().contains("role \"absent\" does not exist"), "{error}");
    let options = SetupOptions { broker_role: Some("broker".into()), ..accepting };
    let report = server.set_up(&options).await.unwrap();
    assert!(
        report.warnings.iter().any(|warning| warning.contains("ALTER ROLE \"broker\" REPLICATION")),
        "{report:?}"
    );
    assert!(
        report.warnings.iter().any(|warning| warning.contains("max_slot_wal_keep_size is -1")),
        "{report:?}"
    );
}

#[tokio::test]
async fn an_open_transaction_in_the_way_is_named() {
    let server = Server::tuned(&[]).await;
    let mut other = server.connect_as(ADMIN, "forgotten").await;
    let pid: i32 = other.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let transaction = other.transaction().await.unwrap();
    transaction.batch_execute("SELECT pg_current_xact_id()").await.unwrap();
    let impatient = SetupOptions { lock_timeout: Duration::from_millis(200), ..options(&[]) };
    let error = server.set_up(&impatient).await.unwrap_err();
    let SetupError::Blocked(line) = &error else { panic!("{error:?}") };
    assert!(line.contains(&format!("pid {pid} ({ADMIN}, forgotten, open for")), "{error}");
    assert!(line.contains("slot walcast: not created") && line.contains("pg_terminate_backend"), "{error}");
    transaction.rollback().await.unwrap();
    let report = server.set_up(&impatient).await.unwrap();
    assert_eq!(report.steps, ["new generation of slot walcast", "slot walcast: created"]);
}

#[tokio::test]
async fn a_lost_slot_begins_a_new_generation() {
    let server = Server::tuned(&[("max_slot_wal_keep_size", "1MB"), ("max_wal_size", "32MB")]).await;
    server.set_up(&options(&[])).await.unwrap();
    let admin = server.admin().await;
    let generation = "SELECT generation::text FROM walcast.source";
    let before = text(&admin, generation).await;
    let status = "SELECT wal_status FROM pg_replication_slots";
    while text(&admin, status).await != "lost" {
        let fill = "SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1000000)); SELECT pg_switch_wal(); CHECKPOINT";
        admin.batch_execute(fill).await.unwrap();
    }
    let report = server.set_up(&options(&[])).await.unwrap();
    assert_eq!(report.steps.len(), 3, "{report:?}");
    assert_ne!(text(&admin, generation).await, before);
    assert_ne!(text(&admin, status).await, "lost");
}

#[tokio::test]
async fn a_slot_of_somebody_else_is_left_alone() {
    let server = Server::tuned(&[]).await;
    let admin = server.admin().await;
    admin.batch_execute("SELECT pg_create_physical_replication_slot('walcast')").await.unwrap();
    let error = server.set_up(&options(&[])).await.unwrap_err();
    assert!(error.to_string().contains("taken by another use (plugin physical"), "{error}");
}

pub(super) async fn printed(
    audience: Audience,
    options: &SetupOptions,
    client: Option<&mut Client>,
) -> String {
    let args = SetupArgs { print_sql: Some(audience), ..SetupArgs::default() };
    let mut out = Vec::new();
    run(&args, options, client, &mut out).await.unwrap();
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn printed_statements_run_as_they_are() {
    let server = Server::tuned(&[]).await;
    let admin = server.admin().await;
    let schema = "CREATE ROLE owner LOGIN; GRANT CREATE ON DATABASE postgres TO owner; CREATE ROLE \"the broker\" LOGIN;
        CREATE ROLE app; CREATE TABLE vms (id int PRIMARY KEY); ALTER TABLE vms OWNER TO owner";
    admin.batch_execute(schema).await.unwrap();
    let options = SetupOptions {
        broker_role: Some("the broker".into()),
        publishers: vec!["app".into()],
        ..options(&[table("public.vms", None)])
    };
    let by = [(Audience::Dba, ADMIN), (Audience::Owner, "owner"), (Audience::Broker, "the broker")];
    for (audience, role) in by {
        server.script(role, "postgres", &printed(audience, &options, None).await);
    }
    let mut broker = server.connect_as("the broker", "test").await;
    let report = set_up(&mut broker, &options).await.unwrap();
    assert_eq!((report.steps, report.warnings), (vec![], vec![]));
    let left = printed(Audience::All, &options, Some(&mut broker)).await;
    assert_eq!(left.matches("-- Nothing to do.").count(), 3, "{left}");
    admin.batch_execute("ALTER ROLE \"the broker\" NOREPLICATION").await.unwrap();
    let left = printed(Audience::Dba, &options, Some(&mut broker)).await;
    assert!(left.contains("ALTER ROLE \"the broker\" REPLICATION;\n"), "{left}");
    server.script(ADMIN, "postgres", &left);
    let left = printed(Audience::Dba, &options, Some(&mut broker)).await;
    assert!(left.contains("-- Nothing to do.") && !left.contains("ALTER"), "{left}");
    server.change(&[("max_slot_wal_keep_size", "-1")]).await;
    let mut broker = server.connect_as("the broker", "test").await;
    let left = printed(Audience::Dba, &options, Some(&mut broker)).await;
    assert!(left.contains("--    max_slot_wal_keep_size is -1") && !left.contains("Nothing"), "{left}");
    let admin = server.admin().await;
    assert_eq!(published(&admin).await, "public.vms{id}");
    broker.batch_execute("SELECT key FROM walcast.key; SELECT FROM vms").await.unwrap();
}

#[tokio::test]
async fn the_report_is_text_or_json() {
    let server = Server::tuned(&[]).await;
    let mut client = server.admin().await;
    let mut told = async |json| {
        let mut out = Vec::new();
        run(&SetupArgs { json, ..SetupArgs::default() }, &options(&[]), Some(&mut client), &mut out)
            .await
            .unwrap();
        String::from_utf8(out).unwrap()
    };
    assert!(told(false).await.ends_with("slot walcast: created\n"));
    assert_eq!(told(false).await, "Nothing to do: everything is set up.\n");
    assert_eq!(told(true).await, "{\"steps\":[],\"warnings\":[]}\n");
}
