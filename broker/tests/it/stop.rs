//! A server that is told to stop does stop, whatever the broker is doing, and nothing is lost over it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use walcast::backbone::{Backbone, BackboneError};
use walcast::config::Config;
use walcast::event::Batch;
use walcast::health::Health;
use walcast::hub::Hub;
use walcast::pipeline;
use walcast::postgres::Companion;
use walcast::router::Router;
use walcast::source::wal::{Delivery, Wal};
use walcast_client::Transport;

use crate::broker::{Broker, Follower, connect, prepare, run, until, value_of, within};
use crate::server::Server;

const LOG: &str = "CREATE TABLE log (writer int, n int, PRIMARY KEY (writer, n))";
const RULE: &str = "[[table]]\nname = 'public.log'\ntopic = 'log/{writer}'";

/// What `pg_ctl stop -m fast` may take with a broker attached.
const STOP_MAX: Duration = Duration::from_secs(2);

fn impatient(config: &mut Config) {
    config.source.shutdown_pause = Duration::from_millis(50);
}

async fn stop(server: &Server, when: &str) {
    let took = server.stop().await;
    println!("stop, {when}: {took:?}");
    assert!(took < STOP_MAX, "{when}: {took:?}");
}

/// Everything that the table holds arrives once, each writer's rows in their order.
async fn check_all(broker: &Broker, follower: &mut Follower) {
    let sql = connect(&broker.url).await;
    let rows = value_of(&sql, "SELECT json_agg(ARRAY[writer, n] ORDER BY writer, n) FROM log").await;
    let expected: Vec<(u64, u64)> = serde_json::from_str(&rows).unwrap();
    let mut next: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for _ in 0..expected.len() {
        let event = follower.next().await;
        let number = |name: &str| event.data[name].as_u64().unwrap();
        next.entry(number("writer")).or_default().push(number("n"));
    }
    let pairs = next.into_iter().flat_map(|(writer, ns)| ns.into_iter().map(move |n| (writer, n)));
    let found: Vec<_> = pairs.collect();
    assert_eq!(found, expected);
    run(&sql, "INSERT INTO log VALUES (99, 1)").await;
    let event = follower.next().await;
    assert_eq!(event.data, json!({"writer": 99, "n": 1}), "something came twice");
}

async fn stops_idle_and_under_load(delivery: Delivery) {
    let server = Server::tuned(&[]).await;
    let broker = Broker::start_at(&server, "stop", LOG, RULE, |config| {
        impatient(config);
        config.source.delivery = delivery;
    })
    .await;
    let mut follower = broker.follow(Transport::WebSocket, &["log/*"]).await;
    stop(&server, &format!("{delivery:?}, idle")).await;
    until("it is noticed", async || broker.readiness().await.0 == 503).await;
    server.start_again().await;
    broker.ready().await;

    let writers: Vec<_> = (1..=4)
        .map(|writer| {
            let url = broker.url.clone();
            tokio::spawn(async move {
                let sql = connect(&url).await;
                for n in 1.. {
                    let insert = format!("INSERT INTO log VALUES ({writer}, {n})");
                    if sql.batch_execute(&insert).await.is_err() {
                        return;
                    }
                }
            })
        })
        .collect();
    for _ in 0..200 {
        follower.next().await;
    }
    stop(&server, &format!("{delivery:?}, under load")).await;
    for writer in writers {
        writer.await.unwrap();
    }
    server.start_again().await;
    broker.ready().await;
    // What came before the stop is asked for again: it is the same.
    let mut follower =
        broker.follow_after(Transport::Poll, &["log/*"], walcast_client::After::Earliest).await;
    check_all(&broker, &mut follower).await;
}

#[tokio::test]
async fn a_fast_stop_does_not_wait_for_the_broker() {
    stops_idle_and_under_load(Delivery::Visible).await;
}

#[tokio::test]
async fn a_fast_stop_does_not_wait_for_a_broker_without_a_gate() {
    stops_idle_and_under_load(Delivery::Fast).await;
}

/// A commit that waits for a standby is in the WAL, but nobody sees it yet.
#[tokio::test]
async fn a_fast_stop_does_not_wait_for_the_gate() {
    let server = Server::tuned(&[]).await;
    let lease = Duration::from_secs(1);
    let broker = Broker::start_at(&server, "stop", LOG, RULE, |config| {
        impatient(config);
        config.source.lease = lease;
    })
    .await;
    let mut follower = broker.follow(Transport::WebSocket, &["log/*"]).await;
    broker.run("ALTER SYSTEM SET synchronous_standby_names = 'absent'").await;
    broker.run("SELECT pg_reload_conf()").await;
    let writer = broker.session().await;
    until("the setting is in force", async || {
        value_of(&writer, "current_setting('synchronous_standby_names')").await == "absent"
    })
    .await;
    let walsender = "SELECT pid FROM pg_stat_replication WHERE application_name = 'walcast'";
    let before = value_of(&broker.sql, walsender).await;
    let committed = tokio::spawn(async move { writer.batch_execute("INSERT INTO log VALUES (1, 1)").await });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until("it waits for the standby", async || value_of(&broker.sql, waiting).await == "1").await;
    let xid =
        value_of(&broker.sql, "SELECT backend_xid FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await;
    // Far more than three leases pass; the server goes on hearing from us.
    until("operators are told which transaction", async || {
        let (status, body) = broker.readiness().await;
        let gate = body["problems"]["gate"].as_str().unwrap_or_default();
        status == 503 && gate.contains(&format!("transaction {xid} "))
    })
    .await;
    assert_eq!(value_of(&broker.sql, walsender).await, before, "the server dropped us");
    let none = tokio::time::timeout(Duration::from_millis(1), follower.0.next()).await;
    assert!(
        !matches!(none, Ok(Ok(Some(walcast_client::Message::Event(_))))),
        "delivered before it is visible"
    );

    broker.run("ALTER SYSTEM RESET synchronous_standby_names").await;
    stop(&server, "the gate waits").await;
    // Its client cannot know, but it is committed.
    let _ = committed.await.unwrap();
    server.start_again().await;
    broker.ready().await;
    check_all(&broker, &mut follower).await;
    let (status, body) = broker.readiness().await;
    assert_eq!((status, &body["problems"]), (200, &json!({})));
}

/// A backbone that never answers; counts what it was asked.
struct Stuck(watch::Sender<u32>);

impl Backbone for Stuck {
    async fn publish(&self, _: &Batch) -> Result<(), BackboneError> {
        self.0.send_modify(|asked| *asked += 1);
        std::future::pending().await
    }

    async fn next(&self) -> Result<Batch, BackboneError> {
        std::future::pending().await
    }

    fn close(&self) {}
}

#[tokio::test]
async fn a_fast_stop_does_not_wait_for_a_backbone_nor_does_the_broker() {
    let server = Server::tuned(&[]).await;
    let url = server.create_database("stop").await;
    let mut config = prepare(&url, "stop", LOG, RULE).await;
    impatient(&mut config);
    let target = config.postgres.target(|_| None).unwrap();
    let companion = Arc::new(Companion::new(target, "walcast companion", 1));
    let health = Arc::new(Health::new(config.source.lease * 2));
    let hub = Hub::new(config.history.clone());
    let router = Router::new(&config.table, config.router.clone()).unwrap();
    let (_rules, rules) = watch::channel(Arc::new(router));
    let (asked, mut count) = watch::channel(0);
    let shutdown = CancellationToken::new();
    let source = Wal::new(config.source, config.replay, Arc::clone(&companion), Arc::clone(&health), hub);
    let publishing = tokio::spawn(pipeline::publish(
        source,
        rules,
        Arc::new(Stuck(asked)),
        config.pipeline,
        health,
        None,
        shutdown.clone(),
    ));
    within("a batch is published", count.wait_for(|count| *count == 1)).await.unwrap();
    run(&connect(&url).await, "INSERT INTO log VALUES (1, 1)").await;
    stop(&server, "the backbone does not answer").await;
    server.start_again().await;
    within("it is tried again", count.wait_for(|count| *count == 2)).await.unwrap();
    let sql = connect(&url).await;
    shutdown.cancel();
    within("it ends", publishing).await.unwrap().unwrap();
    companion.close().await;
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'stop_live'";
    until("the slot is released", async || value_of(&sql, slots).await == "0").await;
}
