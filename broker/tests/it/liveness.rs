//! Links and sessions that break, stall or fall silent: the broker comes back, and nothing is lost or doubled.

use std::time::{Duration, Instant};

use walcast::config::Config;
use walcast_client::Transport;

use crate::broker::{Broker, Follower, until, value_of};
use crate::proxy::Proxy;
use crate::server::Server;

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, filler text)";
const RULE: &str = "[[table]]\nname = 'public.t'\ntopic = 't'\ncolumns = ['id']";
const LEASE: Duration = Duration::from_secs(2);

/// A broker that reaches its server through `proxy`.
async fn behind(proxy: &Proxy, server: &Server, name: &str, lease: Duration) -> Broker {
    let port = proxy.address.port();
    Broker::start_at(server, name, TABLE, RULE, |config| {
        let url = format!("postgres://postgres@127.0.0.1:{port}/{name}?connect_timeout=2");
        config.postgres.url = Some(url.as_str().into());
        quick(config);
        config.source.lease = lease;
    })
    .await
}

fn quick(config: &mut Config) {
    config.source.shutdown_pause = Duration::from_millis(50);
}

async fn insert(broker: &Broker, from: u64, to: u64) {
    broker
        .run(&format!("INSERT INTO t SELECT n, repeat('x', 300) FROM generate_series({from}, {to}) n"))
        .await;
}

async fn check(follower: &mut Follower, from: u64, to: u64) {
    for id in from..=to {
        assert_eq!(follower.next().await.data["id"], id);
    }
}

const WALSENDER: &str = "SELECT pid FROM pg_stat_replication WHERE application_name = 'walcast'";

#[tokio::test]
async fn a_link_that_falls_silent_is_given_up() {
    let server = Server::tuned(&[]).await;
    let proxy = Proxy::start(server.port).await;
    let broker = behind(&proxy, &server, "silent", LEASE).await;
    let mut follower = broker.follow(Transport::WebSocket, &["t"]).await;
    insert(&broker, 1, 10).await;
    check(&mut follower, 1, 10).await;
    proxy.blackhole();
    let start = Instant::now();
    insert(&broker, 11, 20).await;
    until("it is noticed", async || broker.readiness().await.0 == 503).await;
    println!("silence noticed after {:?}", start.elapsed());
    // A third of the lease until the next question, half of it for the answer; the rest is a busy machine's.
    assert!(start.elapsed() < LEASE * 2, "{:?}", start.elapsed());
    proxy.heal();
    let healed = Instant::now();
    check(&mut follower, 11, 20).await;
    println!("delivering again {:?} after the link was", healed.elapsed());
    broker.ready().await;
    insert(&broker, 21, 30).await;
    check(&mut follower, 21, 30).await;
}

#[tokio::test]
async fn a_link_that_is_reset_within_a_frame_loses_nothing() {
    let server = Server::tuned(&[]).await;
    let proxy = Proxy::start(server.port).await;
    let broker = behind(&proxy, &server, "reset", LEASE).await;
    let mut follower = broker.follow(Transport::WebSocket, &["t"]).await;
    for (round, bytes) in [40_000, 400_000, 1_000].into_iter().enumerate() {
        let first = round as u64 * 2_000 + 1;
        proxy.reset_after(bytes);
        insert(&broker, first, first + 1_999).await;
        check(&mut follower, first, first + 1_999).await;
        assert_eq!(proxy.resets(), round as u64 + 1);
    }
    broker.ready().await;
}

#[tokio::test]
async fn a_slow_link_is_no_dead_link() {
    let server = Server::tuned(&[]).await;
    let proxy = Proxy::start(server.port).await;
    let broker = behind(&proxy, &server, "slow", LEASE / 2).await;
    let mut follower = broker.follow(Transport::WebSocket, &["t"]).await;
    let before = value_of(&broker.sql, WALSENDER).await;
    proxy.slow(2 << 20);
    // More than three leases long.
    broker.run("INSERT INTO t SELECT n, repeat('x', 7000) FROM generate_series(1, 1000) n").await;
    let start = Instant::now();
    check(&mut follower, 1, 1000).await;
    println!("7 MB at 2 MB/s took {:?}", start.elapsed());
    assert_eq!(value_of(&broker.sql, WALSENDER).await, before, "it was connected again");
}

#[tokio::test]
async fn a_session_that_is_terminated_comes_back() {
    let server = Server::tuned(&[]).await;
    let broker = Broker::start_at(&server, "killed", TABLE, RULE, quick).await;
    let mut follower = broker.follow(Transport::WebSocket, &["t"]).await;
    let mut id = 0;
    for session in ["walcast", "walcast gate", "walcast companion"] {
        let before = value_of(&broker.sql, WALSENDER).await;
        let start = Instant::now();
        let kill = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = '{session}'"
        );
        assert_eq!(value_of(&broker.sql, &kill).await, "1", "{session}");
        insert(&broker, id + 1, id + 10).await;
        check(&mut follower, id + 1, id + 10).await;
        until("another stream", async || {
            let now = value_of_opt(&broker).await;
            !now.is_empty() && now != before
        })
        .await;
        broker.ready().await;
        println!("{session} terminated: back after {:?}", start.elapsed());
        id += 10;
    }
    let sessions = "SELECT string_agg(application_name, ', ' ORDER BY application_name) FROM pg_stat_activity \
                    WHERE application_name LIKE 'walcast%'";
    until("the seed's session has gone", async || {
        value_of(&broker.sql, sessions).await == "walcast, walcast companion, walcast gate"
    })
    .await;
}

async fn value_of_opt(broker: &Broker) -> String {
    value_of(&broker.sql, &format!("SELECT max(pid) FROM ({WALSENDER}) w")).await
}
