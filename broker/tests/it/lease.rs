//! One broker at a time streams from a slot; the next one takes over when it goes, however it goes.

use std::time::{Duration, Instant};

use walcast_client::Transport;

use crate::broker::{Broker, Follower, connect, patterns, prepare, run, value_of};
use crate::server;
use crate::serving::{self, Process};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY)";
const RULE: &str = "[[table]]\nname = 'public.t'\ntopic = 't'";
const LEASE: &str = "lease = '1s'";

#[tokio::test]
async fn a_second_broker_is_refused_and_the_first_goes_on() {
    let name = "lease_second";
    let broker = Broker::start(name, TABLE, RULE).await;
    let mut follower = broker.follow(Transport::WebSocket, &["t"]).await;
    let walsender = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{name}_live'");
    let before = value_of(&broker.sql, &walsender).await;
    let (code, said) = Process::run(name, &serving::file(&broker.url, name, LEASE, RULE)).await;
    assert_eq!(code, Some(69), "{said}");
    let last = said.lines().last().unwrap();
    assert!(
        last.contains(&format!("the slot {name}_live is held")) && last.contains("stop that broker"),
        "{said}"
    );
    broker.run("INSERT INTO t VALUES (1)").await;
    assert_eq!(follower.next().await.data["id"], 1);
    assert_eq!(value_of(&broker.sql, &walsender).await, before, "the first was disturbed");
}

#[tokio::test]
async fn a_broker_that_was_killed_is_replaced_within_the_lease() {
    let name = "lease_killed";
    server::create(name).await;
    let url = server::url(name).await;
    prepare(&url, name, TABLE, RULE).await;
    let text = serving::file(&url, name, LEASE, RULE);
    let first = Process::start(name, &text).await;
    first.ready().await;
    let request = walcast_client::EventsRequest::new(patterns(&["t"])).after(walcast_client::After::Now);
    let mut follower = Follower(first.client.open(Transport::WebSocket, request).await.unwrap());
    let sql = connect(&url).await;
    // The stream's `now` may come later than the next commit; this one is seen to arrive.
    let mut id = 0;
    let seen = loop {
        id += 1;
        run(&sql, &format!("INSERT INTO t VALUES ({id})")).await;
        if let Ok(event) = tokio::time::timeout(Duration::from_millis(200), follower.next()).await {
            break event.data["id"].as_u64().unwrap();
        }
    };
    assert_eq!(seen, id);
    let place = follower.0.into_subscription();
    first.signal("KILL");
    let (code, ..) = first.ended().await;
    assert_eq!(code, None);
    run(&sql, "INSERT INTO t SELECT generate_series(1001, 1010)").await;
    let start = Instant::now();
    let second = Process::start(name, &text).await;
    second.ready().await;
    println!("ready {:?} after the first was killed", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let mut follower = Follower(second.client.resume(Transport::Sse, place).await.unwrap());
    for id in 1001..=1010 {
        assert_eq!(follower.next().await.data["id"], id);
    }
}
