//! The governor: a server that may keep little WAL loses no slot, and what holds the log is named.

use std::collections::BTreeSet;
use std::time::Duration;

use walcast_client::wire::ResetReason;
use walcast_client::{After, Client, EventsRequest, Message, Transport};

use crate::broker::{Broker, connect, patterns, run, until, value_of, within};
use crate::epochs::COUNTED;
use crate::server::Server;

const DDL: &str = "CREATE TABLE watched (id int PRIMARY KEY);
    CREATE TABLE other (filler text); ALTER TABLE other ALTER filler SET STORAGE PLAIN";
const RULE: &str = "[[table]]\nname = 'public.watched'\ntopic = 'watched'";

/// Keeps 64 MB for slots, and removes the rest often.
async fn frugal() -> Server {
    let settings = [
        ("max_slot_wal_keep_size", "64MB"),
        ("max_wal_size", "64MB"),
        ("min_wal_size", "32MB"),
        ("autovacuum", "off"),
    ];
    Server::tuned(&settings).await
}

/// About so many MB of WAL, in one transaction.
async fn write(broker: &Broker, megabytes: u32) {
    let rows = megabytes * 122;
    broker.run(&format!("INSERT INTO other SELECT repeat('x', 8000) FROM generate_series(1, {rows})")).await;
}

async fn now(client: &Client) -> After {
    let mut request = EventsRequest::new(patterns(&["watched"])).after(After::Now);
    request.wait = Some(Duration::ZERO);
    After::Cursor(client.poll(&request).await.unwrap().cursor)
}

#[tokio::test]
async fn the_window_gives_way_before_the_server_removes_what_a_slot_needs() {
    const ROUNDS: u32 = 512;
    let server = frugal().await;
    let broker = Broker::start_at(&server, "governor", DDL, RULE, |_| ()).await;
    let mut follower = broker.follow(Transport::WebSocket, &["watched"]).await;
    let before = now(&broker.client).await;
    let walsender = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'governor_live'";
    let ours = value_of(&broker.sql, walsender).await;
    let start = value_of(&broker.sql, "SELECT pg_current_wal_lsn()").await;
    let watcher = connect(&broker.url).await;
    let (done, mut worst) = (tokio::sync::watch::Sender::new(false), i64::MAX);
    let writes = async {
        // Up to 170 MB a second, and no faster than a machine under load reads: a walsender that gets no core
        // for half a second would lose its slot whatever the governor does. One that does not govern stops
        // this for good, for 1 GB does not fit into what the server keeps.
        let mut pace = tokio::time::interval(Duration::from_millis(12));
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for id in 0..ROUNDS {
            pace.tick().await;
            until("there is room for what is written", async || {
                const ROOM: &str = "SELECT min(safe_wal_size) > 8 << 20 FROM pg_replication_slots
                    WHERE slot_name LIKE 'governor%'";
                value_of(&broker.sql, ROOM).await == "true"
            })
            .await;
            broker.run(&format!("INSERT INTO watched VALUES ({id})")).await;
            write(&broker, 2).await;
        }
        done.send_replace(true);
    };
    let watches = async {
        while !*done.borrow() {
            const SEEN: &str = "SELECT bool_or(wal_status = 'lost')::text || ' ' || min(safe_wal_size)
                FROM pg_replication_slots WHERE slot_name LIKE 'governor%'";
            let seen = value_of(&watcher, SEEN).await;
            let (lost, safe) = seen.split_once(' ').unwrap();
            assert_eq!(lost, "false", "a slot is lost");
            worst = worst.min(safe.parse().unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let clock = std::time::Instant::now();
    tokio::join!(writes, watches);
    let written = value_of(&broker.sql, &format!("SELECT (pg_current_wal_lsn() - '{start}')::int8")).await;
    println!("{written} bytes in {:?}; at worst {worst} bytes were left", clock.elapsed());
    assert!(written.parse::<u64>().unwrap() > 1_000_000_000, "{written}");
    assert_eq!(value_of(&broker.sql, walsender).await, ours, "the stream was cut");

    // Those who are connected, and those who come back, miss nothing.
    for id in 0..ROUNDS {
        assert_eq!(follower.next().await.data["id"], id);
    }
    let mut late = broker.follow_after(Transport::Sse, &["watched"], before).await;
    for id in 0..ROUNDS {
        assert_eq!(late.next().await.data["id"], id);
    }
    until("the floor follows", async || {
        let behind = "SELECT safe_wal_size > 32 << 20 FROM pg_replication_slots WHERE slot_name = 'governor'";
        value_of(&broker.sql, behind).await == "true"
    })
    .await;
    until("the metrics say what the server says", async || {
        let gauge = |name: &str, slot: &str| {
            let line = format!("walcast_slot_{name}{{source=\"governor\",slot=\"{slot}\"}}");
            let broker = &broker;
            async move { broker.metric(&line).await.to_string() }
        };
        let of = |column: &str, slot: &str| {
            let query = format!("SELECT {column} FROM pg_replication_slots WHERE slot_name = '{slot}'");
            let broker = &broker;
            async move { value_of(&broker.sql, &query).await }
        };
        let mut same = true;
        for (slot, name) in [("floor", "governor"), ("live", "governor_live")] {
            for (metric, column) in [
                ("retained_bytes", "pg_current_wal_lsn() - restart_lsn"),
                ("lag_bytes", "pg_current_wal_lsn() - confirmed_flush_lsn"),
                ("safe_bytes", "safe_wal_size"),
                ("catalog_xmin_age", "age(catalog_xmin)"),
                ("status", "array_position('{reserved,extended,unreserved,lost}', wal_status) - 1"),
            ] {
                same &= gauge(metric, slot).await == of(column, name).await;
            }
        }
        same && broker.metric("walcast_slot_keep_bytes_max{source=\"governor\"}").await == f64::from(64 << 20)
    })
    .await;
    let source = broker.readiness().await.1["source"].take();
    assert_eq!(source["slots"]["floor"]["name"], "governor");
    assert_eq!(source["wal_keep_bytes_max"], 64 << 20);
}

/// It would wait for itself: the gate for the commit, and the commit for what only comes behind the gate.
#[tokio::test]
async fn commits_that_wait_for_the_broker_itself_are_an_alarm() {
    let server = frugal().await;
    let broker = Broker::start_at(&server, "governor_sync", DDL, RULE, |_| ()).await;
    let mut follower = broker.follow(Transport::WebSocket, &["watched"]).await;
    run(&broker.sql, "ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    run(&broker.sql, "SELECT pg_reload_conf()").await;
    until("it is told", async || {
        let (_, body) = broker.readiness().await;
        let reason = body["problems"]["retention"].as_str().unwrap_or_default();
        reason.contains("synchronous_standby_names") && body["source"]["synchronous"] == true
    })
    .await;
    let session = broker.session().await;
    let commit = run(&session, "INSERT INTO watched VALUES (1)");
    let remedy = async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        until("the commit waits", async || value_of(&broker.sql, waits).await == "1").await;
        run(&broker.sql, "ALTER SYSTEM RESET synchronous_standby_names").await;
        run(&broker.sql, "SELECT pg_reload_conf()").await;
    };
    within("the commit", async { tokio::join!(commit, remedy) }).await;
    assert_eq!(follower.next().await.data["id"], 1);
    until("all is well", async || broker.readiness().await.1["problems"]["retention"].is_null()).await;
}

#[tokio::test]
async fn a_transaction_that_holds_the_log_is_named_and_the_disk_does_not_fill() {
    let server = frugal().await;
    let broker = Broker::start_at(&server, "governor_held", DDL, RULE, |_| ()).await;
    let holder = broker.session().await;
    let pid = value_of(&holder, "SELECT pg_backend_pid()").await;
    let named = async || {
        let (status, body) = broker.readiness().await;
        let reason = body["problems"]["retention"].as_str().unwrap_or_default();
        let remedy = format!("SELECT pg_terminate_backend({pid})");
        let named = reason.contains(&format!("transaction of process {pid} ")) && reason.contains(&remedy);
        if named {
            assert_eq!(status, 200, "{body}");
            let oldest = &body["source"]["oldest_transaction"];
            assert_eq!((oldest["pid"].to_string(), &oldest["holds_wal"]), (pid.clone(), &true.into()));
        }
        (named, reason.to_owned())
    };
    let mut pace = tokio::time::interval(Duration::from_millis(50));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    run(&holder, "BEGIN; INSERT INTO watched VALUES (1)").await;
    until("the transaction is named", async || {
        pace.tick().await;
        write(&broker, 2).await;
        named().await.0
    })
    .await;
    run(&holder, "COMMIT").await;
    until("it is over", async || named().await.1.is_empty()).await;
    let pressure = "walcast_slot_pressure{source=\"governor_held\"}";
    until("nothing presses", async || broker.metric(pressure).await == 0.0).await;

    broker.run(COUNTED).await;
    let mut follower = broker.follow(Transport::WebSocket, &["watched"]).await;
    run(&holder, "SET application_name = 'a holder'; BEGIN; INSERT INTO watched VALUES (2)").await;
    let since = value_of(&broker.sql, "SELECT pg_current_wal_lsn()").await;
    until("the transaction is named again", async || {
        pace.tick().await;
        write(&broker, 2).await;
        named().await.0
    })
    .await;
    let held = format!("SELECT count(*) FROM pg_replication_slots WHERE restart_lsn <= '{since}'");
    assert_eq!(value_of(&broker.sql, &held).await, "2");
    write(&broker, 44).await;
    until("both slots are given up", async || value_of(&broker.sql, &held).await == "0").await;
    // The slot cannot be made while the transaction is open: it is tried again and again, under one generation.
    let mut attempts = BTreeSet::new();
    until("several attempts", async || {
        const SEEN: &str = "SELECT string_agg(pid::text, ',') FROM pg_stat_activity
            WHERE application_name = 'walcast rebuild' AND datname = current_database()";
        attempts.insert(value_of(&broker.sql, SEEN).await);
        attempts.len() > 3
    })
    .await;
    let (status, body) = broker.readiness().await;
    let reason = body["problems"]["stream"].as_str().unwrap_or_default();
    for part in [&format!("transactions that are open: pid {pid} "), "a holder", "pg_terminate_backend"] {
        assert!(reason.contains(part), "{body}");
    }
    assert_eq!(status, 503);
    // Nobody looks at slots that are not there.
    assert!(body["source"].is_null() && body["problems"]["retention"].is_null(), "{body}");
    for slot in ["floor", "live"] {
        for name in ["status", "safe_bytes", "retained_bytes"] {
            let line = format!("walcast_slot_{name}{{source=\"governor_held\",slot=\"{slot}\"}}");
            let value = broker.metric(&line).await;
            assert!(value.is_nan(), "{line} {value}");
        }
    }
    // Whoever was faster, the governor or a checkpoint: nothing keeps the log any more, and once the transaction has
    // ended the broker goes on under a new epoch. Whoever waits is held until then, and told.
    let epoch = body["epoch"].clone();
    run(&holder, "COMMIT").await;
    until("the broker goes on", async || {
        let (status, body) = broker.readiness().await;
        status == 200 && body["epoch"] != epoch
    })
    .await;
    assert_eq!(value_of(&broker.sql, "SELECT count(*) FROM generations").await, "1");
    until("the slots are looked at again", async || {
        let status = broker.metric("walcast_slot_status{source=\"governor_held\",slot=\"live\"}").await;
        status == 0.0 && !broker.readiness().await.1["source"].is_null()
    })
    .await;
    let reset = within("the reset", async {
        loop {
            match follower.0.next().await.unwrap().unwrap() {
                Message::Reset(reset) => return reset,
                Message::Event(_) | Message::Subscribed { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    })
    .await;
    assert_eq!(reset.reason, ResetReason::EpochChanged);
}
