//! The broker does not make the server keep WAL: both slots follow what is written, whoever writes it.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use walcast_client::{After, Transport};

use crate::broker::{Broker, until, value_of, within};
use crate::server::Server;

const RETAINED: &str = "SELECT (pg_current_wal_lsn() - min(restart_lsn))::int8 FROM pg_replication_slots";

#[tokio::test]
async fn writes_to_other_tables_leave_no_wal_behind() {
    let server = Server::tuned(&[("max_wal_size", "4GB"), ("autovacuum", "off")]).await;
    let ddl = "CREATE TABLE watched (id int PRIMARY KEY);
               CREATE TABLE other (filler text); ALTER TABLE other ALTER filler SET STORAGE PLAIN";
    let rule = "[[table]]\nname = 'public.watched'\ntopic = 'watched'";
    let broker = Broker::start_at(&server, "retention", ddl, rule, |_| ()).await;
    let start = value_of(&broker.sql, "SELECT pg_current_wal_lsn() - '0/0'").await;
    for _ in 0..8 {
        broker.run("INSERT INTO other SELECT repeat('x', 8000) FROM generate_series(1, 16000)").await;
    }
    let written =
        value_of(&broker.sql, &format!("SELECT (pg_current_wal_lsn() - '0/0' - {start})::int8")).await;
    assert!(written.parse::<u64>().unwrap() > 1_000_000_000, "{written}");
    let end = Instant::now();
    let before = value_of(&broker.sql, RETAINED).await;
    until("the slots follow", async || {
        value_of(&broker.sql, RETAINED).await.parse::<u64>().unwrap() < 64 << 20
    })
    .await;
    println!("retained {before} of {written} bytes; under 64 MB after {:?}", end.elapsed());
    assert!(end.elapsed() < Duration::from_secs(30), "{:?}", end.elapsed());
}

#[tokio::test]
async fn the_live_slot_follows_an_idle_server() {
    let server = Server::tuned(&[]).await;
    let broker = Broker::start_at(&server, "idle", "", "", |config| {
        config.source.lease = Duration::from_secs(1);
    })
    .await;
    for _ in 0..3 {
        broker.run("CREATE TABLE IF NOT EXISTS t (id int); INSERT INTO t VALUES (1)").await;
        let lsn = value_of(&broker.sql, "SELECT pg_current_wal_lsn()").await;
        let behind = format!(
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'idle_live' AND confirmed_flush_lsn < '{lsn}'"
        );
        until("the live slot follows", async || value_of(&broker.sql, &behind).await == "0").await;
        assert_eq!(value_of(&broker.sql, "SELECT count(*) FROM pg_replication_slots").await, "2");
    }
    // Signs of life are no events.
    assert_eq!(broker.poll(&["**"], After::Earliest).await.len(), 0);
}

#[tokio::test]
async fn a_client_that_never_reads_holds_no_wal_and_loses_nothing() {
    const EVENTS: u64 = 320;
    let broker = Broker::start_with("unread", "", "", |config| {
        config.http.write_timeout = Duration::from_secs(1);
    })
    .await;
    let target = "/v1/events?topic=big&after=now";
    let mut stuck = broker.http.begin(target, "accept: text/event-stream\r\n").await;
    broker.until_waiting(1).await;
    for tens in 0..EVENTS / 10 {
        let publish = "walcast.publish('big', jsonb_build_object('n', n, 'filler', repeat('x', 100000)))";
        broker.run(&format!("SELECT {publish} FROM generate_series({tens}0, {tens}9) n")).await;
    }
    let end = value_of(&broker.sql, "SELECT pg_current_wal_lsn()").await;
    let behind = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'unread_live' AND confirmed_flush_lsn < '{end}'"
    );
    until("the live slot follows", async || value_of(&broker.sql, &behind).await == "0").await;
    // Nobody waits for it, and nothing is skipped for it: it is cut, and goes on where it was.
    broker.until_waiting(0).await;
    let (mut read, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while let Ok(length @ 1..) = within("the end", stuck.read(&mut buffer)).await {
        read.extend_from_slice(&buffer[..length]);
    }
    let text = String::from_utf8(read).unwrap();
    let blocks: Vec<&str> = text.split("\n\n").collect();
    // The last one is not whole.
    let (_, blocks) = blocks.split_last().unwrap();
    let id = blocks.iter().rev().find_map(|block| block.lines().find_map(|line| line.strip_prefix("id: ")));
    let seen = blocks.iter().filter(|block| block.contains("\"filler\"")).count() as u64;
    assert!(seen < EVENTS, "it was not cut");
    let place = After::Cursor(id.unwrap().parse().unwrap());
    let mut again = broker.follow_after(Transport::Sse, &["big"], place).await;
    let first = again.next().await.data["n"].as_u64().unwrap();
    println!("cut after {seen} events, goes on with {first}");
    assert!(first <= seen, "{seen} seen, then {first}");
    for n in first + 1..EVENTS {
        assert_eq!(again.next().await.data["n"], n);
    }
}
