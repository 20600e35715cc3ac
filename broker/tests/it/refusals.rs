//! What a wrong configuration and a server that does not fit get from the command: one line that names the
//! thing, the cause and the remedy, and an exit code.

use std::time::Duration;

use walcast::source::wal::replication::Connection;

use crate::broker::{Broker, run as sql, until, within};
use crate::plain::get;
use crate::process::{Ended, Running, directory, file, run, walcast};
use crate::server::{self, Server};
use crate::serving::{Process, settings};

const NOWHERE: &str = "postgres://nobody@127.0.0.1:1/none";
const ANY_PORT: [&str; 2] = ["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];

/// `walcast serve`, which is to refuse.
async fn serve(file: &str) -> Ended {
    run(&["serve", "--config", file, ANY_PORT[0], ANY_PORT[1]]).await
}

/// `walcast serve`, which is to turn ready, and then told to end.
async fn works(file: &str) -> Ended {
    let broker = Process::on(file).await;
    broker.ready().await;
    broker.stop().await
}

async fn setup(file: &str, more: &[&str]) -> Ended {
    run(&[&["setup", "--config", file], more].concat()).await
}

#[tokio::test]
async fn a_file_that_is_wrong_ends_with_64() {
    let check = async |rest: &str, expected: &[&str]| {
        let path = file("refusals-file", &settings(NOWHERE, "refusals", rest, ""));
        let expected: Vec<&str> = expected.iter().copied().chain([path.as_str()]).collect();
        run(&["serve", "--config", &path]).await.failed(64, &expected);
        setup(&path, &[]).await.failed(64, &expected);
    };
    let rule = "[[table]]\nname = 'public.vms'\ntopic = 'vm/{id}'\n";
    check("lease = '5 apples'", &["source.lease", "line 5", "correct it"]).await;
    check("leese = '5s'", &["leese", "spelling", "docs/configuration.md"]).await;
    check("[http]\nwait_max = 7", &["http.wait_max", "line 6"]).await;
    check("[history]\nage = '1ms'", &["history.age", "out of range", "1s to"]).await;
    check("[http]\nlisten = '0.0.0.0:8480'", &["http.listen", "insecure"]).await;
    check("[admin]\nlisten = '0.0.0.0:8481'", &["admin.listen", "insecure"]).await;
    check("[log]\nlevel = 'lots'", &["log.level", "`lots`", "info"]).await;
    check("lease = ", &["line 5"]).await;
    check("[[table]]\nname = 'public.vms'", &["topic", "add it"]).await;
    check(&format!("{rule}colums = ['id']"), &["colums", "spelling"]).await;
    check(&rule.replace("public.", ""), &["\"vms\"", "`name`", "public.vms"]).await;
    check(&rule.replace("{id}", "{id"), &["\"public.vms\"", "`topic`"]).await;
    check(&format!("{rule}when = 'data.id =='"), &["\"public.vms\"", "`when`"]).await;
    check(&format!("{rule}{rule}state = true"), &["\"public.vms\"", "`name`"]).await;
    run(&["serve", "--config", "/nonexistent/walcast.toml"])
        .await
        .failed(64, &["cannot be read", "--config"]);
    run(&["serve", "--database-url", "postgres://a@b:port/"]).await.failed(64, &["port"]);
    let mut command = walcast(&["serve"]);
    command.env("WALCAST_HTTP__WIAT_MAX", "1m");
    Running::start(command).end().await.failed(64, &["WALCAST_HTTP__WIAT_MAX", "http.wiat_max"]);
    let mut command = walcast(&["serve"]);
    command.env("WALCAST_HTTP_LISTEN", "127.0.0.1:1");
    Running::start(command).end().await.failed(64, &["WALCAST_HTTP_LISTEN", "write WALCAST_HTTP__LISTEN"]);
}

#[tokio::test]
async fn a_database_that_nobody_named_is_what_the_line_is_about() {
    let remedies = ["DATABASE_URL", "`postgres.url`", "--database-url"];
    let forgotten = async |command: &str, user: Option<&str>| {
        let mut command = walcast(&[command]);
        command.env_remove("USER").env_remove("LOGNAME");
        command.envs(user.map(|user| ("USER", user)));
        Running::start(command).end().await
    };
    for command in ["setup", "serve"] {
        let ended = forgotten(command, None).await;
        ended.failed(64, &remedies);
        assert!(!ended.err.contains("walcast.toml"), "no such file is there: {ended:?}");
    }
    // With a user there is a default, as for psql. Nobody of this name may come in, if a server runs there.
    forgotten("setup", Some("walcast_nobody")).await.failed(69, &remedies);
}

#[tokio::test]
async fn a_start_without_a_file_is_said() {
    let mut command = walcast(&["serve", ANY_PORT[0], ANY_PORT[1]]);
    command.current_dir(directory("refusals-no-file")).env("DATABASE_URL", NOWHERE);
    let mut process = Running::start(command);
    process.until("there are no rules, for no file was found").await;
    process.signal("TERM");
    process.end().await.succeeded();
}

#[tokio::test]
async fn an_address_in_use_is_named_with_how_to_choose_another() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let path = file("refusals-address", &settings(NOWHERE, "refusals", "", ""));
    for (flag, other, key) in
        [("--listen", "--admin-listen", "http.listen"), ("--admin-listen", "--listen", "admin.listen")]
    {
        let (here, free) = (format!("{flag}={address}"), format!("{other}=127.0.0.1:0"));
        let ended = run(&["serve", "--config", &path, &here, &free]).await;
        ended.failed(69, &[&address, "another walcast", &format!("by {flag}, or by {key}")]);
    }
}

#[tokio::test]
async fn listening_beyond_loopback_is_said() {
    let path = file(
        "refusals-insecure",
        &settings(NOWHERE, "refusals", "", "[http]\ninsecure = true\nlisten = '0.0.0.0:0'"),
    );
    let mut command = walcast(&["serve", "--config", &path, ANY_PORT[1]]);
    command.env("WALCAST_LOG", "warn");
    let mut process = Running::start(command);
    process.until("everybody who reaches 0.0.0.0:").await;
    process.signal("TERM");
    process.end().await.succeeded();
}

#[tokio::test]
async fn rules_that_do_not_fit_end_with_64_before_the_stream_starts() {
    let name = "refusals_rules";
    server::create(name).await;
    let admin = server::connect(name, "postgres").await;
    let tables = "CREATE TABLE vms (id int PRIMARY KEY, host text NOT NULL, note text, UNIQUE (host));
        CREATE TABLE keyless (id int); CREATE VIEW seen AS SELECT 1 AS id;
        CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
        CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
        CREATE TABLE parent (id int PRIMARY KEY) PARTITION BY LIST (id);
        CREATE TABLE child PARTITION OF parent FOR VALUES IN (1)";
    sql(&admin, tables).await;
    let rules: [(&str, &str, &[&str]); 10] = [
        ("public.vmz", "vm/{id}", &["`name`", "does not exist", "create it, or correct the name"]),
        ("public.vms", "vm/{hostname}", &["`topic`", "no column \"hostname\"", "id, host, note"]),
        ("public.vms", "vm/{id}'\ncolumns = ['pin']#", &["`columns`", "no column \"pin\"", "id, host, note"]),
        ("public.keyless", "vm/{id}", &["UPDATE and DELETE fail", "primary key", "REPLICA IDENTITY FULL"]),
        (
            "public.nothing",
            "vm/{id}",
            &["UPDATE and DELETE fail", "REPLICA IDENTITY USING INDEX nothing_pkey"],
        ),
        ("public.vms", "vm/{note}'\nstate = true#", &["`topic`", "no unique index", "CREATE UNIQUE INDEX"]),
        (
            "public.vms",
            "vm/{host}'\nstate = true#",
            &["`topic`", "host is not in the replica identity", "USING INDEX"],
        ),
        ("public.seen", "vm/{id}", &["a view", "name a table"]),
        ("public.fleeting", "vm/{id}", &["write-ahead log", "SET LOGGED"]),
        ("public.child", "vm/{id}", &["is a partition", "public.parent"]),
    ];
    let url = server::url(name).await;
    let path = |table: &str, topic: &str| {
        let rule = format!("[[table]]\nname = '{table}'\ntopic = '{topic}'\n");
        file("refusals-rules", &settings(&url, name, "", &rule))
    };
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'refusals_rules%'";
    for (table, topic, expected) in rules {
        let path = path(table, topic);
        let expected = [expected, &[path.as_str(), table]].concat();
        setup(&path, &[]).await.failed(64, &expected);
        let made = admin.query_one("SELECT to_regnamespace('walcast') IS NULL", &[]).await.unwrap();
        assert!(made.get::<_, bool>(0), "{table}: setup made something");
    }
    assert_eq!(admin.query_one(slots, &[]).await.unwrap().get::<_, i64>(0), 0);
    // Against what somebody published by hand.
    setup(&file("refusals-empty", &settings(&url, name, "", "")), &[]).await.succeeded();
    sql(&admin, "ALTER PUBLICATION refusals_rules ADD TABLE vms, keyless, nothing, parent").await;
    for (table, topic, expected) in rules {
        let path = path(table, topic);
        let ended = serve(&path).await;
        ended.failed(64, &[expected, &[path.as_str(), table]].concat());
        assert!(!ended.err.contains("streaming"), "{ended:?}");
    }
    let unpublished = path("public.vms", "vm/{id}");
    sql(&admin, "ALTER PUBLICATION refusals_rules DROP TABLE vms").await;
    serve(&unpublished).await.failed(64, &["publication does not hold the table", "walcast setup"]);
    sql(&admin, "SELECT pg_drop_replication_slot('refusals_rules')").await;
}

#[tokio::test]
async fn what_is_missing_in_the_database_is_named() {
    let name = "refusals_missing";
    server::create(name).await;
    let admin = server::connect(name, "postgres").await;
    let url = server::url(name).await;
    let path = file("refusals-missing", &settings(&url, name, "", ""));
    serve(&path)
        .await
        .failed(69, &["database refusals_missing has no schema walcast", "run `walcast setup`"]);
    setup(&path, &[]).await.succeeded();
    assert!(setup(&path, &[]).await.succeeded().contains("Nothing to do"));

    sql(&admin, "DROP PUBLICATION refusals_missing").await;
    serve(&path).await.failed(69, &["publication refusals_missing does not exist", "run `walcast setup`"]);
    sql(&admin, "CREATE PUBLICATION refusals_missing").await;
    serve(&path).await.failed(69, &["under their own names", "publish_via_partition_root = true"]);
    setup(&path, &[]).await.succeeded();

    sql(&admin, "SELECT pg_drop_replication_slot('refusals_missing')").await;
    sql(&admin, "SELECT pg_create_physical_replication_slot('refusals_missing')").await;
    serve(&path).await.failed(69, &["physical", "`source.slot`"]);
    setup(&path, &[]).await.failed(69, &["taken by another use"]);
    sql(&admin, "SELECT pg_drop_replication_slot('refusals_missing')").await;
    sql(&admin, "SELECT pg_create_logical_replication_slot('refusals_missing', 'test_decoding')").await;
    serve(&path).await.failed(69, &["plugin test_decoding", "`source.slot`"]);
    sql(&admin, "SELECT pg_drop_replication_slot('refusals_missing')").await;
    let elsewhere = server::connect("postgres", "postgres").await;
    sql(&elsewhere, "SELECT pg_create_logical_replication_slot('refusals_missing', 'pgoutput')").await;
    serve(&path).await.failed(69, &["belongs to the database postgres", "`source.slot`"]);
    sql(&elsewhere, "SELECT pg_drop_replication_slot('refusals_missing')").await;
    // A slot without the generation that setup writes first.
    sql(&admin, "SELECT pg_create_logical_replication_slot('refusals_missing', 'pgoutput'); DELETE FROM walcast.source").await;
    serve(&path).await.failed(69, &["no row in walcast.source", "run `walcast setup`"]);
    sql(&admin, "SELECT pg_drop_replication_slot('refusals_missing')").await;

    let absent =
        file("refusals-absent", &settings(&url.replace("refusals_missing", "refusals_absent"), name, "", ""));
    for ended in [serve(&absent).await, setup(&absent, &[]).await] {
        ended.failed(69, &["refusals_absent", "does not exist", "create it, or correct dbname"]);
    }
}

#[tokio::test]
async fn roles_that_may_not_are_told_what_to_grant() {
    let name = "refusals_roles";
    server::create(name).await;
    let admin = server::connect(name, "postgres").await;
    let schema = "CREATE ROLE refusals_login LOGIN; CREATE ROLE refusals_sender LOGIN REPLICATION;
        CREATE ROLE refusals_super LOGIN SUPERUSER;
        CREATE TABLE vms (id int PRIMARY KEY); INSERT INTO vms VALUES (1)";
    sql(&admin, schema).await;
    let url = server::url(name).await;
    let rule = "[[table]]\nname = 'public.vms'\ntopic = 'vm/{id}'\nstate = true\n";
    let own = file("refusals-roles", &settings(&url, name, "", rule));
    let path = |role: &str| {
        let url = url.replace("postgres@", &format!("{role}@"));
        file(&format!("refusals-roles-{role}"), &settings(&url, name, "", rule))
    };
    let (login, sender) = (path("refusals_login"), path("refusals_sender"));
    let ended = setup(&own, &["--broker-role", "refusals_login"]).await;
    assert!(ended.succeeded().contains("ALTER ROLE \"refusals_login\" REPLICATION"), "{ended:?}");
    serve(&login).await.failed(69, &["REPLICATION"]);
    // Without any grant at all.
    serve(&sender).await.failed(69, &["walcast setup --broker-role"]);
    setup(&own, &["--broker-role", "refusals_sender"]).await.succeeded();
    sql(&admin, "REVOKE SELECT ON vms FROM refusals_sender").await;
    serve(&sender).await.failed(69, &["public.vms", "may not read it", "GRANT SELECT"]);
    sql(&admin, "GRANT SELECT ON vms TO refusals_sender; ALTER TABLE vms ENABLE ROW LEVEL SECURITY").await;
    serve(&sender).await.failed(69, &["public.vms", "row-level security", "run:"]);
    // What is told to do helps.
    sql(&admin, "ALTER ROLE refusals_sender BYPASSRLS").await;
    works(&sender).await.succeeded();
    // Rights are tried, not read: a superuser may replicate although its flag says no, as on managed services.
    let flags = "SELECT rolreplication FROM pg_roles WHERE rolname = 'refusals_super'";
    assert!(!admin.query_one(flags, &[]).await.unwrap().get::<_, bool>(0));
    let superuser = path("refusals_super");
    setup(&superuser, &[]).await.succeeded();
    works(&superuser).await.succeeded();
    sql(&admin, "SELECT pg_drop_replication_slot('refusals_roles')").await;
}

#[tokio::test]
async fn a_server_that_is_not_fit_says_what_to_change() {
    let server = Server::tuned(&[]).await;
    server.change(&[("wal_level", "replica"), ("max_slot_wal_keep_size", "-1")]).await;
    let url = server.url("postgres");
    let path = file("refusals-server", &settings(&url, "refusals", "", ""));
    let ended = serve(&path).await;
    ended.failed(69, &["wal_level is `replica`", "ALTER SYSTEM SET wal_level = logical", "restart"]);
    // It was never at work, and says nothing but that.
    assert_eq!(ended.err.lines().count(), 1, "{ended:?}");
    server.change(&[("wal_level", "logical"), ("max_replication_slots", "2")]).await;
    setup(&path, &[]).await.failed(69, &["max_slot_wal_keep_size is -1", "10GB", "--accept-unbounded-wal"]);
    let ended = setup(&path, &["--accept-unbounded-wal"]).await;
    assert!(ended.succeeded().contains("warning: max_slot_wal_keep_size is -1"), "{ended:?}");
    server.sql("SELECT pg_create_physical_replication_slot('taken')");
    serve(&path).await.failed(69, &["no replication slot is free", "max_replication_slots"]);
    server.file("standby.signal", "");
    server.change(&[]).await;
    serve(&path).await.failed(69, &["standby", "primary", "postgres.url"]);
    setup(&path, &["--accept-unbounded-wal"]).await.failed(69, &["standby", "primary"]);
}

#[tokio::test]
async fn passwords_are_asked_for_and_never_told() {
    let hba = "host all,replication guest 127.0.0.1/32 scram-sha-256";
    let server = Server::start(hba, &[], &[]).await;
    server.sql("CREATE ROLE guest LOGIN REPLICATION PASSWORD 'swordfish-right'");
    let url = |password: &str| format!("postgres://guest{password}@127.0.0.1:{}/postgres", server.port);
    let admin = settings(&url("").replace("guest", "postgres"), "refusals", "", "");
    setup(&file("refusals-password", &admin), &["--broker-role", "guest"]).await.succeeded();
    let path = |password: &str| {
        file("refusals-password", &settings(&url(password), "refusals", "", "[log]\nlevel = 'trace'"))
    };
    let silent = |ended: &Ended| {
        assert!(!ended.err.contains("swordfish") && !ended.out.contains("swordfish"), "{ended:?}");
    };
    let wrong = serve(&path(":swordfish-wrong")).await;
    wrong.failed(69, &["password authentication failed", "password_file"]);
    silent(&wrong);
    serve(&path("")).await.failed(69, &["asks for a password", "password_file"]);
    let wrong = setup(&path(":swordfish-wrong"), &[]).await;
    wrong.failed(69, &["password authentication failed"]);
    silent(&wrong);
    let right = works(&path(":swordfish-right")).await;
    right.succeeded();
    assert!(right.err.contains("TRACE"), "tracing was off");
    silent(&right);
    // Where the connection string itself is at fault, too.
    for bad in [
        "user=guest sslmode=never password=swordfish-c",
        "postgres://guest:swordfish-d@[::/x",
        "password='swordfish-e",
    ] {
        let ended = serve(&file(
            "refusals-password",
            &settings("", "refusals", "", "").replace("''", &format!("\"{bad}\"")),
        ))
        .await;
        ended.failed(64, &["refusals-password.toml: postgres.url: ", "postgresql://user@host"]);
        silent(&ended);
        let ended = run(&["serve", "--database-url", bad]).await;
        ended.failed(64, &["--database-url: postgres.url: "]);
        silent(&ended);
        let ended = run(&["demo", "--database-url", bad]).await;
        assert_eq!(ended.code, Some(64), "{ended:?}");
        silent(&ended);
    }
}

#[tokio::test]
async fn a_server_that_comes_late_is_waited_for() {
    let server = Server::tuned(&[]).await;
    let path = file("refusals-late", &settings(&server.url("postgres"), "refusals", "", ""));
    setup(&path, &[]).await.succeeded();
    server.stop().await;
    // A command that does its work and ends does not wait.
    setup(&path, &[]).await.failed(69, &["cannot connect", "check that it runs"]);
    let mut serving = Process::on(&path).await;
    serving.said("waiting for Postgres").await;
    // It tries again and again, also where something else answers.
    let impostor = tokio::net::TcpListener::bind(("127.0.0.1", server.port)).await.unwrap();
    for _ in 0..3 {
        drop(within("another try", impostor.accept()).await.unwrap());
    }
    drop(impostor);
    assert_eq!(get(&serving.admin, "/livez").await.0, 200);
    let (status, body) = get(&serving.admin, "/readyz").await;
    assert_eq!(status, 503);
    assert!(body.contains("cannot connect to Postgres"), "{body}");
    let (status, body) = get(&serving.http, "/v1/events?topic=a").await;
    assert!(status == 503 && body.contains("\"unavailable\""), "{status} {body}");
    server.start_again().await;
    serving.ready().await;
    let ended = serving.stop().await;
    ended.succeeded();
    assert_eq!(ended.err.matches("waiting for Postgres").count(), 1, "{ended:?}");
}

#[tokio::test]
async fn a_server_without_a_free_walsender_says_so_until_one_is_free() {
    let server = Server::tuned(&[("max_wal_senders", "1")]).await;
    let mut running = Broker::start_at(&server, "senders", "", "", |config| {
        config.source.shutdown_pause = Duration::from_millis(50);
    })
    .await;
    let target = server.target();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = 'walcast'";
    let mut seat = None;
    until("another takes the seat", async || {
        server.sql(end);
        seat = Connection::connect(&target, "another", Duration::from_secs(60)).await.ok();
        seat.is_some()
    })
    .await;
    // One that runs tells why it does not, and goes on trying.
    let remedy = ["max_wal_senders", "raise", "free one"];
    until("the remedy is told", async || {
        let (status, body) = running.readiness().await;
        let reason = body["problems"]["stream"].as_str().unwrap_or_default();
        status == 503 && remedy.iter().all(|part| reason.contains(part))
    })
    .await;
    // One that starts ends.
    let path = file("refusals-senders", &settings(&server.url("senders"), "senders", "", ""));
    serve(&path).await.failed(69, &remedy);
    seat.unwrap().close().await;
    running.ready().await;
    running.stop().await.unwrap();
    works(&path).await.succeeded();
}
