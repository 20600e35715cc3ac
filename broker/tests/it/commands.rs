//! The commands, each as a process, the way a person or a script uses it.

use serde_json::Value;
use tokio::process::Command;
use walcast_client::Transport;
use walcast_wire::{Cursor, Epoch, Position};

use crate::broker::{run as sql, until};
use crate::plain::get;
use crate::process::{Ended, Running, file, run, shell, walcast};
use crate::server;
use crate::serving::{Process, settings};

const RULE: &str = "[[table]]\nname = 'public.vms'\ntopic = 'vm/{host}'\nstate = true\n";
const TABLE: &str = "CREATE TABLE vms (host text PRIMARY KEY, pin int)";

/// A database with the table, set up, and `walcast serve` on it.
async fn serving(name: &str) -> Process {
    let url = server::create(name).await;
    sql(&server::connect(name, "postgres").await, TABLE).await;
    let path = file(name, &settings(&url, name, "", RULE));
    run(&["setup", "--config", &path]).await.succeeded();
    serve(&path).await
}

/// `walcast serve` with this file.
async fn serve(path: &str) -> Process {
    let broker = Process::on(path).await;
    broker.ready().await;
    broker
}

#[tokio::test]
async fn help_is_there_and_wrong_usage_is_64() {
    let help = run(&["--help"]).await;
    let commands = ["demo", "dev", "serve", "setup", "shadow", "teardown", "tail", "publish", "token"];
    for command in commands {
        assert!(help.succeeded().contains(command), "{command}");
        let help = run(&[command, "--help"]).await;
        assert!(help.succeeded().contains(&format!("\n  walcast {command}")), "no example: {help:?}");
        let ended = run(&[command, "--no-such-flag"]).await;
        assert_eq!(ended.code, Some(64), "{ended:?}");
        assert!(ended.err.contains("--no-such-flag"), "{ended:?}");
    }
    assert!(run(&["--version"]).await.succeeded().starts_with("walcast 0."));
    let check = async |args: &[&str], part: &str| {
        let ended = run(args).await;
        assert!(ended.code == Some(64) && ended.err.contains(part), "{args:?}: {ended:?}");
    };
    check(&[], "Usage").await;
    check(&["sevre"], "sevre").await;
    check(&["tail", "a//b"], "empty segment").await;
    check(&["publish", "vm/*", "1"], "'*'").await;
    check(&["tail", "a", "--after", "yesterday"], "not a cursor").await;
    check(&["tail", "a", "--url", "ftp://x"], "ftp://x").await;
    check(&["demo", "--vms", "0"], "--vms").await;
    check(&["setup", "--lock-timeout", "soon"], "--lock-timeout").await;
    let check = async |args: &[&str], code: i32, parts: &[&str]| run(args).await.failed(code, parts);
    check(&["publish", "a", "hello"], 65, &["not JSON", "own quotes"]).await;
    let nowhere = "--url=http://127.0.0.1:1";
    check(&["publish", "a", "1", nowhere], 69, &["127.0.0.1:1", "walcast serve", "--url"]).await;
    for transport in Transport::ALL {
        let transport = format!("--transport={transport}");
        check(&["tail", "a", nowhere, &transport], 69, &["127.0.0.1:1", "walcast serve", "--url"]).await;
    }
}

#[tokio::test]
async fn tail_and_publish_meet_on_every_transport() {
    let broker = serving("commands_tail").await;
    let path = broker.file.clone();
    let url = broker.url();
    for (pin, transport) in Transport::ALL.into_iter().enumerate() {
        let topic = format!("jobs/{transport}");
        let transport = format!("--transport={transport}");
        server::script("postgres", "commands_tail", &format!("INSERT INTO vms VALUES ('{topic}', {pin})"))
            .await;
        // The current value of a state topic comes first; then that it came, the tail is attached.
        let state = format!("vm/jobs%2F{}", &topic[5..]);
        let mut tail = Running::start(walcast(&[
            "tail", &state, &topic, "--url", &url, &transport, "--json", "--limit", "2",
        ]));
        tail.until("\n").await;
        run(&["publish", &topic, "{\"a\": [1, \"ü\"]}", "--url", &url]).await.succeeded();
        let ended = tail.end().await;
        let lines: Vec<Value> =
            ended.succeeded().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{ended:?}");
        assert_eq!(lines[0]["data"], serde_json::json!({"host": topic, "pin": pin}));
        assert_eq!(
            (&lines[1]["op"], &lines[1]["data"]),
            (&"message".into(), &serde_json::json!({"a": [1, "ü"]}))
        );
        // And from a cursor, without JSON.
        let after = lines[0]["cursor"].as_str().unwrap();
        let ended = run(&["tail", &topic, "--url", &url, &transport, "--after", after, "--limit=1"]).await;
        assert!(ended.succeeded().trim_end().ends_with("message {\"a\": [1, \"ü\"]}"), "{ended:?}");
    }
    // From standard input, once for each key.
    let binary = env!("CARGO_BIN_EXE_walcast");
    for (input, code) in [("[1]", 0), ("[1]", 0), ("[2]", 65)] {
        let line = format!("echo '{input}' | {binary} publish jobs/in - --url {url} --idempotency-key k");
        assert_eq!(shell(&line).await.code, Some(code), "{input}");
    }
    assert_eq!(shell(&format!("echo '[1' | {binary} publish a - --url {url}")).await.code, Some(65));
    run(&["publish", "a", "\"\\u0000\"", "--url", &url]).await.failed(65, &["\\u0000"]);
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    run(&["publish", "a", &deep, "--url", &url]).await.failed(65, &["stack depth"]);
    let large = format!("echo '\"{}\"' | {binary} publish a - --url {url}", "x".repeat(70_000));
    shell(&large).await.failed(65, &["65536"]);
    let ended = run(&["tail", "jobs/in", "--url", &url, "--after=earliest", "--limit=1", "--json"]).await;
    assert!(ended.succeeded().contains("\"data\":[1]"), "{ended:?}");
    // A cursor of another broker: what may be missing is said, and it goes on.
    let foreign = Cursor::new(Epoch(9), Position::new(5, 1)).to_string();
    for transport in Transport::ALL {
        let transport = format!("--transport={transport}");
        let args = ["tail", "jobs/in", "--url", &url, &transport, "--after", &foreign, "--json", "--limit=1"];
        let ended = run(&args).await;
        let lines: Vec<&str> = ended.succeeded().lines().collect();
        assert!(lines.len() == 2 && lines[0].contains("\"reason\":\"epoch_changed\""), "{ended:?}");
    }

    // A reader that has read enough is no failure.
    let mut pipe = Command::new("sh");
    pipe.args([
        "-c",
        &format!("{{ {binary} tail '**' --url {url} --after=earliest; echo \"code $?\" >&2; }} | head -1"),
    ]);
    let pipe = Running::start(pipe);
    let session = server::connect("commands_tail", "postgres").await;
    until("tail notices", async || {
        sql(&session, "SELECT walcast.publish('jobs/more', '1')").await;
        pipe.said().contains("code ")
    })
    .await;
    let ended = pipe.end().await;
    assert_eq!((ended.out.lines().count(), ended.err.as_str()), (1, "code 0\n"), "{ended:?}");

    // Ctrl-C is how one ends it; a broker that ends is told, with where to go on.
    let mut tail = Running::start(walcast(&["tail", "vm/*", "--url", &url]));
    tail.until("vm/jobs").await;
    tail.signal("INT");
    tail.end().await.succeeded();
    let mut tails = Vec::new();
    for transport in Transport::ALL {
        let transport = format!("--transport={transport}");
        let mut tail = Running::start(walcast(&["tail", "vm/*", "--url", &url, &transport]));
        tail.until("vm/jobs").await;
        tails.push(tail);
    }
    broker.stop().await.succeeded();
    for tail in tails {
        tail.end().await.failed(69, &["the broker ended the stream", "--after "]);
    }
    run(&["teardown", "--config", &path]).await.succeeded();
}

#[tokio::test]
async fn a_tail_says_on_every_transport_why_it_ends_and_where_to_go_on() {
    let name = "commands_cut";
    let broker = serving(name).await;
    let standby = Process::on(&broker.file).await;
    standby.unready("another broker leads").await;
    let session = server::connect(name, "postgres").await;
    sql(&session, "INSERT INTO vms VALUES ('a', 1)").await;
    let mut tails = Vec::new();
    for transport in Transport::ALL {
        let transport = format!("--transport={transport}");
        let ended = run(&["tail", "vm/*", "--url", &standby.url(), &transport]).await;
        ended.failed(69, &["the broker refused (unavailable): another broker leads"]);
        let mut tail = Running::start(walcast(&["tail", "vm/*", "jobs", "--url", &broker.url(), &transport]));
        tail.until("vm/a").await;
        tails.push(tail);
    }
    // A standby takes it, for it is a commit in Postgres.
    run(&["publish", "jobs", "1", "--url", &standby.url()]).await.succeeded();
    for tail in &mut tails {
        tail.until("jobs message 1").await;
    }
    broker.signal("KILL");
    standby.ready().await;
    sql(&session, "SELECT walcast.publish('jobs', '2')").await;
    for tail in tails {
        let ended = tail.end().await;
        ended.failed(69, &["; go on with --after "]);
        let cursor = ended.err.trim_end().rsplit(' ').next().unwrap();
        let ended = run(&["tail", "jobs", "--url", &standby.url(), "--after", cursor, "--limit=1"]).await;
        assert!(ended.succeeded().trim_end().ends_with("jobs message 2"), "{ended:?}");
    }
    let path = standby.file.clone();
    standby.stop().await.succeeded();
    run(&["teardown", "--config", &path]).await.succeeded();
}

#[tokio::test]
async fn printed_sql_makes_a_broker_that_runs_with_few_rights() {
    let name = "commands_rights";
    server::create(name).await;
    let admin = server::connect(name, "postgres").await;
    let roles = "CREATE ROLE commands_owner LOGIN; CREATE ROLE commands_broker LOGIN;
        CREATE ROLE commands_app LOGIN; CREATE ROLE commands_other LOGIN;
        GRANT CREATE ON DATABASE commands_rights TO commands_owner; CREATE SCHEMA lab AUTHORIZATION commands_owner";
    sql(&admin, roles).await;
    server::script(
        "commands_owner",
        name,
        "CREATE TABLE lab.vms (host text PRIMARY KEY, pin int); INSERT INTO lab.vms VALUES ('a', 1)",
    )
    .await;
    let before = server::dump(name).await;
    let rules = RULE.replace("public.", "lab.");
    // Printed where there is no connection to anything.
    let offline = format!("[source]\nslot = '{name}'\npublication = '{name}'\n{rules}");
    let offline = file("commands-rights-offline", &offline);
    for (who, role) in [("dba", "postgres"), ("owner", "commands_owner"), ("broker", "commands_broker")] {
        let who = format!("--print-sql={who}");
        let grants = ["--broker-role=commands_broker", "--publisher=commands_app"];
        let text = run(&["setup", "--config", &offline, &who, grants[0], grants[1]]).await;
        server::script(role, name, text.succeeded()).await;
    }
    let url = server::url(name).await;
    let path =
        file("commands-rights", &settings(&url.replace("postgres@", "commands_broker@"), name, "", &rules));
    let broker = serve(&path).await;
    let url = broker.url();
    let (status, body) = get(&broker.http, "/v1/state/vm/a").await;
    assert_eq!((status, body.as_str()), (200, "{\"host\":\"a\",\"pin\":1}"));
    let mut tail = Running::start(walcast(&["tail", "vm/*", "app/*", "--url", &url, "--limit=5"]));
    tail.until("vm/a").await;
    server::script("commands_owner", name, "UPDATE lab.vms SET pin = 2").await;
    server::script(
        "commands_app",
        name,
        "SELECT walcast.publish('app/sql', '1'); SELECT walcast.notify('app/old', 'x')",
    )
    .await;
    run(&["publish", "app/http", "1", "--url", &url]).await.succeeded();
    run(&["publish", "app/once", "1", "--url", &url, "--idempotency-key=k"]).await.succeeded();
    let ended = tail.end().await;
    for expected in ["update {\"host\":\"a\",\"pin\":2}", "app/sql message 1", "app/http message 1"] {
        assert!(ended.succeeded().contains(expected), "{expected}: {ended:?}");
    }
    let other = server::connect(name, "commands_other").await;
    for call in ["walcast.publish('a', '1')", "walcast.notify('a', '')", "key FROM walcast.key"] {
        let error = other.batch_execute(&format!("SELECT {call}")).await.unwrap_err();
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{call}");
    }
    let mut log = broker.stop().await;
    log.succeeded();
    log.err.retain(|c| c != '\u{1b}');
    assert!(!log.err.contains("WARN") && !log.err.contains("ERROR"), "{log:?}");
    let own = file("commands-rights", &settings(&server::url(name).await, name, "", &rules));
    run(&["teardown", "--config", &own]).await.succeeded();
    assert_eq!(server::dump(name).await, before);
}

/// What is left of a broker in its database.
async fn left(name: &str, slots: &str) -> String {
    let sql = format!("SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '{slots}%')
        + (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'walcast%')");
    server::script("postgres", name, &sql).await.trim().to_owned()
}

#[tokio::test]
async fn teardown_takes_everything_back_whether_the_broker_lives_or_not() {
    let name = "commands_teardown";
    server::create(name).await;
    sql(&server::connect(name, "postgres").await, TABLE).await;
    let before = server::dump(name).await;
    let path = file(name, &settings(&server::url(name).await, name, "", RULE));
    for alive in [true, false] {
        run(&["setup", "--config", &path]).await.succeeded();
        let broker = serve(&path).await;
        if !alive {
            broker.signal("KILL");
        }
        run(&["teardown", "--config", &path]).await.succeeded();
        assert_eq!((server::dump(name).await, left(name, name).await.as_str()), (before.clone(), "0"));
        if alive {
            // It says what is missing, and makes nothing anew.
            until("the broker knows", async || {
                let (status, body) = get(&broker.admin, "/readyz").await;
                status == 503 && body.contains("walcast setup")
            })
            .await;
            assert_eq!(get(&broker.admin, "/livez").await.0, 200);
            broker.stop().await.succeeded();
        }
        let again = run(&["teardown", "--config", &path]).await;
        assert!(again.succeeded().contains("Nothing to do"), "{again:?}");
        assert_eq!((server::dump(name).await, left(name, name).await.as_str()), (before.clone(), "0"));
    }
}

/// The commands among the lines that `walcast dev` printed; what is indented further goes on.
pub(crate) fn printed(out: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    for line in out.lines() {
        match (line.strip_prefix("    "), line.strip_prefix("  "), commands.last_mut()) {
            (Some(more), _, Some(command)) => command.push_str(&format!(" {}", more.trim_end_matches('\\'))),
            (None, Some(line), _) => commands.push(format!("exec {}", line.trim_end_matches('\\'))),
            _ => {}
        }
    }
    commands
}

/// Waits until server and directory are gone.
async fn until_gone(data: &str, port: u16) {
    until("server and directory are gone", async || {
        !std::path::Path::new(data).parent().unwrap().exists()
            && tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err()
    })
    .await;
}

async fn dev() -> (Running, Vec<String>, String, u16) {
    let mut dev = Running::start(walcast(&["dev", "--port", "0"]));
    dev.until("/readyz'\n").await;
    let lines = printed(&dev.out());
    assert_eq!(lines.len(), 6, "{}", dev.out());
    let psql = lines[2].split(" -c ").next().unwrap();
    let port = psql.rsplit_once(':').unwrap().1.split('/').next().unwrap().parse().unwrap();
    let data = shell(&format!("{psql} -XAtc 'SHOW data_directory'")).await;
    (dev, lines, data.succeeded().trim().to_owned(), port)
}

#[tokio::test]
async fn what_dev_prints_works_and_it_leaves_nothing() {
    let (dev, lines, data, port) = dev().await;
    let start = |line: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", line]).kill_on_drop(true);
        Running::start(command)
    };
    let [follow, wait, assign, by_sql, by_http, health] = &lines[..] else { panic!("{lines:?}") };
    let (waiting, mut following) = (start(wait), start(follow));
    until("both wait", async || {
        let metrics = health.replace("/readyz", "/metrics").replacen("exec ", "", 1);
        shell(&metrics).await.out.contains("walcast_subscriptions 2")
    })
    .await;
    shell(assign).await.succeeded();
    let ended = waiting.end().await;
    let value: Value = serde_json::from_str(ended.succeeded()).unwrap();
    assert!(
        value["hostname"] == "host-17" && value["crdcommand"] == "start" && value["pin"].is_i64(),
        "{value}"
    );
    following.until("host-17").await;
    // Now it is there at once, and assigning again is fine.
    assert_eq!(shell(wait).await.succeeded(), ended.out);
    shell(assign).await.succeeded();
    shell(by_sql).await.succeeded();
    assert!(shell(by_http).await.succeeded().contains("\"topic\":\"hello\""));
    shell(health).await.succeeded();
    dev.signal("INT");
    let ended = dev.end().await;
    assert!(ended.code == Some(0) && ended.err.lines().count() == 1, "{ended:?}");
    assert!(!std::path::Path::new(&data).exists());
    until_gone(&data, port).await;
}

#[tokio::test]
async fn dev_that_is_killed_leaves_nothing_either() {
    let (dev, _, data, port) = dev().await;
    dev.signal("KILL");
    assert_eq!(dev.end().await.code, None);
    until_gone(&data, port).await;
}

#[track_caller]
fn demo_was_good(ended: &Ended) {
    assert_eq!((ended.succeeded().lines().count(), ended.err.as_str()), (1, ""), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    let keys = ["vms", "assigned", "delivered", "missed", "duplicates", "latency_ms", "postgres_connections"];
    assert_eq!(report.as_object().unwrap().len(), keys.len(), "{ended:?}");
    assert!(keys.iter().all(|key| report.get(key).is_some()), "{ended:?}");
    let latency = report["latency_ms"].as_object().unwrap();
    assert!(
        latency.len() == 3 && ["p50", "p99", "max"].iter().all(|key| latency.contains_key(*key)),
        "{ended:?}"
    );
    assert_eq!(report["vms"], 30);
    assert_eq!(report["postgres_connections"], 3);
    assert_eq!(report["assigned"], report["delivered"]);
    assert!(report["assigned"].as_u64() > Some(0), "{ended:?}");
    assert_eq!((&report["missed"], &report["duplicates"]), (&0.into(), &0.into()));
}

const DEMO: [&str; 4] = ["demo", "--vms=30", "--seconds=2", "--json"];

#[tokio::test]
async fn demo_on_a_server_of_its_own() {
    demo_was_good(&run(&DEMO).await);
}

#[tokio::test]
async fn demo_on_a_database_cleans_up_and_spares_what_is_set_up() {
    let name = "commands_demo";
    server::create(name).await;
    sql(&server::connect(name, "postgres").await, TABLE).await;
    let (before, url) = (server::dump(name).await, server::url(name).await);
    let args = [&DEMO[..], &["--database-url", &url]].concat();
    demo_was_good(&run(&args).await);
    assert_eq!((server::dump(name).await, left(name, "walcast_demo").await.as_str()), (before.clone(), "0"));
    // Whenever it is interrupted, too.
    let interrupted = ["demo", "--vms=30", "--seconds=600", "--database-url", &url];
    let interrupted = Running::start(walcast(&interrupted));
    let begun = "SELECT count(*) FROM pg_namespace WHERE nspname = 'walcast_demo'";
    until("the demo begins", async || server::script("postgres", name, begun).await.trim() == "1").await;
    interrupted.signal("INT");
    let ended = interrupted.end().await;
    assert!(matches!(ended.code, Some(0 | 1)), "{ended:?}");
    assert_eq!((server::dump(name).await, left(name, "walcast_demo").await.as_str()), (before, "0"));

    let path = file(name, &settings(&url, name, "", RULE));
    run(&["setup", "--config", &path]).await.succeeded();
    let set_up = server::dump(name).await;
    run(&args).await.failed(64, &["has a schema walcast", "walcast teardown"]);
    assert_eq!(server::dump(name).await, set_up);
    run(&["teardown", "--config", &path]).await.succeeded();
}
