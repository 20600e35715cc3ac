//! History lies in the log: a broker that starts again serves what the last one served, under the same cursors.

use std::time::Duration;

use walcast_client::{After, EventsRequest, Transport};

use crate::broker::{Broker, line, patterns, until, value_of};
use crate::plain::Answer;
use crate::proxy::Proxy;
use crate::server::Server;

const FLOOR: &str = "SELECT (pg_current_wal_lsn() - confirmed_flush_lsn)::int8 FROM pg_replication_slots
                     WHERE slot_name = current_database()";

#[tokio::test]
async fn a_restart_serves_the_window_again_with_the_same_cursors() {
    let broker = Broker::start("restart_window", "CREATE TABLE t (id int PRIMARY KEY)", "").await;
    let before = broker.client.poll(&now(&["job/*"])).await.unwrap().cursor;
    for n in 0..20 {
        broker.run(&format!("SELECT walcast.publish('job/{n}', '{n}')")).await;
    }
    broker.catch_up().await;
    let told = broker.poll(&["job/*"], After::Cursor(before)).await;
    assert_eq!(told.len(), 20);
    let broker = broker.restart().await;
    assert_eq!(broker.poll(&["job/*"], After::Cursor(before)).await, told);
    // A client that had half of them gets the other half, on every transport.
    for transport in [Transport::Poll, Transport::Sse, Transport::WebSocket] {
        let mut late = broker.follow_after(transport, &["job/*"], After::Cursor(told[9].cursor)).await;
        for expected in &told[10..] {
            assert_eq!(late.next().await, *expected, "{transport:?}");
        }
    }
    let earliest = broker.poll(&["job/*"], After::Earliest).await;
    assert_eq!(earliest.iter().map(line).collect::<Vec<_>>(), told.iter().map(line).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_window_is_bounded_by_wal_and_an_empty_one_costs_none() {
    let ddl = "CREATE TABLE other (filler text); ALTER TABLE other ALTER filler SET STORAGE PLAIN";
    let broker = Broker::start_with("restart_bounds", ddl, "", |config| {
        config.replay.wal_bytes = 4 << 20;
    })
    .await;
    broker.run("SELECT walcast.publish('job', '1')").await;
    broker.catch_up().await;
    let held = broker.poll(&["job"], After::Earliest).await;
    broker.run("INSERT INTO other SELECT repeat('x', 8000) FROM generate_series(1, 2000)").await;
    let lag = async |broker: &Broker| value_of(&broker.sql, FLOOR).await.parse::<u64>().unwrap();
    until("the floor follows", async || lag(&broker).await < 13 << 20).await;
    // A running broker serves what it holds, however far the floor has moved.
    assert_eq!(broker.poll(&["job"], After::Earliest).await, held);
    let broker = broker.restart().await;
    assert!(broker.poll(&["job"], After::Earliest).await.is_empty());
    let problem = broker.client.poll(&after(&["job"], After::Cursor(held[0].cursor))).await.unwrap_err();
    assert_eq!(problem.problem().unwrap().code.as_str(), "cursor_expired");
    until("nothing is held for nothing", async || lag(&broker).await < 9 << 20).await;
}

#[tokio::test]
async fn a_cursor_from_a_quiet_time_outlives_a_restart_behind_much_wal() {
    let ddl = "CREATE TABLE other (filler text); ALTER TABLE other ALTER filler SET STORAGE PLAIN";
    let broker = Broker::start("restart_quiet", ddl, "").await;
    let before = broker.client.poll(&now(&["job"])).await.unwrap().cursor;
    let slot = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = current_database()";
    let at = value_of(&broker.sql, slot).await;
    broker.run("INSERT INTO other SELECT repeat('x', 8000) FROM generate_series(1, 2000)").await;
    until("the floor moves", async || value_of(&broker.sql, slot).await != at).await;
    let broker = broker.restart().await;
    assert!(broker.poll(&["job"], After::Cursor(before)).await.is_empty());
    broker.run("SELECT walcast.publish('job', '1')").await;
    let mut late = broker.follow_after(Transport::Sse, &["job"], After::Cursor(before)).await;
    assert_eq!(late.lines(1).await, ["job message 1"]);
}

fn after(topics: &[&str], after: After) -> EventsRequest {
    let mut request = EventsRequest::new(patterns(topics)).after(after);
    request.wait = Some(Duration::ZERO);
    request
}

fn now(topics: &[&str]) -> EventsRequest {
    after(topics, After::Now)
}

#[tokio::test]
async fn while_the_window_is_replayed_that_is_told_and_who_is_ahead_waits() {
    let name = "restart_replay";
    let server = Server::tuned(&[]).await;
    let proxy = Proxy::start(server.port).await;
    let mut broker = Broker::start_at(&server, name, "", "", |config| {
        let url = format!("postgres://postgres@127.0.0.1:{}/{name}", proxy.address.port());
        config.postgres.url = Some(url.as_str().into());
    })
    .await;
    for _ in 0..60 {
        let fill = "SELECT walcast.publish('fill', to_jsonb(repeat('x', 10000))) FROM generate_series(1, 5)";
        broker.run(fill).await;
    }
    broker.run("SELECT walcast.publish('job', '1')").await;
    broker.catch_up().await;
    let place = broker.client.poll(&now(&["job"])).await.unwrap().cursor;
    broker.stop().await.unwrap();
    proxy.slow(200 << 10);
    let broker = Broker::begin(name, broker.config, broker.sql);
    let left = async || {
        let (status, body) = broker.readiness().await;
        let reason = body["problems"]["state"].as_str().unwrap_or_default();
        let (_, rest) = reason.split_once("replaying the log: ")?;
        assert_eq!(status, 503, "{body}");
        rest.split_once(" bytes left")?.0.parse::<u64>().ok()
    };
    let mut first = 0;
    until("the replay is told", async || {
        first = left().await.unwrap_or_default();
        first > 0
    })
    .await;
    // Its cursor is beyond what is replayed yet: neither unknown nor too old.
    let target = format!("/v1/events?topic=job&after={place}&wait=60");
    let waiting = broker.http.begin(&target, "").await;
    let stream = broker.follow_after(Transport::Sse, &["job"], After::Cursor(place)).await;
    broker.until_waiting(2).await;
    until("less is left", async || left().await.is_some_and(|left| left < first)).await;
    proxy.slow(0);
    broker.ready().await;
    broker.run("SELECT walcast.publish('job', '2')").await;
    let mut waiting = waiting;
    assert_eq!(Answer::read(&mut waiting).await.events(), ["job 2"]);
    let mut stream = stream;
    assert_eq!(stream.lines(1).await, ["job message 2"]);
}
