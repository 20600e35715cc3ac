//! One broker at a time streams from a slot; the others stand by, and one takes over when it goes, however it
//! goes.

use std::time::{Duration, Instant};

use tokio_postgres::Client as Sql;
use walcast_client::{After, EventsRequest, Message, Subscription, Transport};

use crate::broker::{Broker, Follower, connect, patterns, prepare, run, until, value_of, within};
use crate::plain::{Plain, get};
use crate::server;
use crate::serving::{self, Process};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY)";
const RULE: &str = "[[table]]\nname = 'public.t'\ntopic = 't'";
const LEASE: &str = "lease = '1s'";
/// A standby streams so soon after the leader's end.
const SOON: Duration = Duration::from_secs(2);

/// A database, the settings for brokers on it, and a session.
pub(crate) async fn database(name: &str, source: &str) -> (String, Sql) {
    let url = server::create(name).await;
    prepare(&url, name, TABLE, RULE).await;
    (serving::settings(&url, name, source, RULE), connect(&url).await)
}

/// The place of one who has read everything so far.
pub(crate) async fn place(process: &Process) -> Subscription {
    let mut now = EventsRequest::new(patterns(&["t"])).after(After::Now);
    now.wait = Some(Duration::ZERO);
    let cursor = process.client.poll(&now).await.unwrap().cursor;
    Subscription::new(EventsRequest::new(patterns(&["t"])).after(After::Cursor(cursor)))
}

/// The process that streams, empty if there is none.
pub(crate) async fn walsender(sql: &Sql, name: &str) -> String {
    let query = format!(
        "SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots WHERE slot_name = '{name}_live'"
    );
    value_of(sql, &query).await
}

/// Until somebody streams who is not `old`; how long that took.
pub(crate) async fn until_moved(sql: &Sql, name: &str, old: &str) -> Duration {
    let start = Instant::now();
    until("another broker streams", async || {
        let now = walsender(sql, name).await;
        now != "0" && now != old
    })
    .await;
    start.elapsed()
}

/// The connections of all brokers on a database.
pub(crate) async fn connections(sql: &Sql, name: &str) -> String {
    let query = format!(
        "SELECT string_agg(application_name, ',' ORDER BY application_name) FROM pg_stat_activity
         WHERE datname = '{name}' AND application_name LIKE 'walcast%'"
    );
    value_of(sql, &query).await
}

/// Whoever goes on at this place gets exactly these.
pub(crate) async fn gets(process: &Process, place: &Subscription, ids: std::ops::RangeInclusive<u64>) {
    let mut follower = Follower(process.client.resume(Transport::Sse, place.clone()).await.unwrap());
    for id in ids {
        assert_eq!(follower.next().await.data["id"], id);
    }
}

#[tokio::test]
async fn a_second_broker_stands_by_and_leads_when_the_first_stops() {
    let name = "lease_second";
    let mut first = Broker::start(name, TABLE, RULE).await;
    let mut follower = first.follow(Transport::WebSocket, &["t"]).await;
    let leader = walsender(&first.sql, name).await;
    let second = Process::start(name, &serving::settings(&first.url, name, LEASE, RULE)).await;
    second.unready(&format!("\"lease\":\"another broker leads: pid {leader}, since 2")).await;
    assert_eq!(get(&second.admin, "/livez").await.0, 200);
    let waiting = Plain { address: second.http.parse().unwrap() }.get("/v1/events?topic=t").await;
    assert!(waiting.status == 503 && waiting.headers.contains_key("retry-after"), "{waiting:?}");
    until("three of the leader, one of the standby", async || {
        connections(&first.sql, name).await == "walcast,walcast companion,walcast companion,walcast gate"
    })
    .await;
    first.run("INSERT INTO t VALUES (1)").await;
    assert_eq!(follower.next().await.data["id"], 1);
    assert_eq!(walsender(&first.sql, name).await, leader, "the first was disturbed");
    let place = follower.0.into_subscription();
    let start = Instant::now();
    first.stop().await.unwrap();
    first.run("INSERT INTO t VALUES (2), (3)").await;
    second.ready().await;
    assert!(start.elapsed() < SOON * 2, "{:?}", start.elapsed());
    gets(&second, &place, 2..=3).await;
}

#[tokio::test]
async fn a_standby_leads_soon_after_the_leader_was_killed() {
    let name = "lease_killed";
    // The lease does not matter, for the server hears of the end.
    let (text, sql) = database(name, "lease = '60s'").await;
    let first = Process::start(name, &text).await;
    first.ready().await;
    let second = Process::start(name, &text).await;
    second.unready("another broker leads").await;
    let place = place(&first).await;
    run(&sql, "INSERT INTO t VALUES (1)").await;
    gets(&first, &place, 1..=1).await;
    let old = walsender(&sql, name).await;
    let start = Instant::now();
    first.signal("KILL");
    run(&sql, "INSERT INTO t SELECT generate_series(2, 10)").await;
    let took = until_moved(&sql, name, &old).await;
    println!("another broker streams {took:?} after the first was killed");
    assert!(took < SOON, "{took:?}");
    second.ready().await;
    gets(&second, &place, 1..=10).await;
    println!("all is delivered {:?} after it", start.elapsed());
    assert!(start.elapsed() < SOON * 2, "{:?}", start.elapsed());
    assert_eq!(first.ended().await.0, None);
    second.signal("TERM");
    let (code, _, log) = second.ended().await;
    assert!(code == Some(0) && log.contains("replay_bytes=") && log.contains("replayed"), "{log}");
}

/// A leader that is stopped, idle or while the server cannot send it any more, loses the lease by its silence alone.
async fn stopped(name: &str, full: bool) {
    let (text, sql) = database(name, "lease = '2s'").await;
    let first = Process::start(name, &text).await;
    first.ready().await;
    let second = Process::start(name, &text).await;
    second.unready("another broker leads").await;
    let before = place(&first).await;
    let mut waiting = first.client.resume(Transport::WebSocket, before.clone()).await.unwrap();
    let old = walsender(&sql, name).await;
    first.signal("STOP");
    if full {
        fill(&sql, &old).await;
    }
    run(&sql, "INSERT INTO t VALUES (1), (2)").await;
    let took = until_moved(&sql, name, &old).await;
    println!("another broker streams {took:?} after the first was stopped, socket full: {full}");
    // A busy machine may add to it; twice the lease it never is.
    assert!(took < Duration::from_secs(2) + SOON, "{took:?}");
    second.ready().await;
    let leader = walsender(&sql, name).await;
    first.signal("CONT");
    first.unready("another broker leads").await;
    assert_eq!(walsender(&sql, name).await, leader, "the first came back");
    run(&sql, "INSERT INTO t VALUES (3)").await;
    gets(&second, &before, 1..=3).await;
    // Its clients are sent away: nothing comes here any more.
    let refused = Plain { address: first.http.parse().unwrap() }.get("/v1/events?topic=t").await;
    assert!(refused.status == 503 && refused.headers.contains_key("retry-after"), "{refused:?}");
    within("a goodbye", async {
        while !matches!(waiting.next().await.unwrap().unwrap(), Message::Bye { .. }) {}
    })
    .await;
    // Nobody asked it to go for good: it leads again once it is needed.
    second.signal("TERM");
    assert_eq!(second.ended().await.0, Some(0));
    first.ready().await;
    let before = place(&first).await;
    run(&sql, "INSERT INTO t VALUES (4)").await;
    gets(&first, &before, 4..=4).await;
}

/// Writes until the server waits for the one that it sends to.
pub(crate) async fn fill(sql: &Sql, walsender: &str) {
    let waits = format!(
        "SELECT coalesce(bool_or(wait_event = 'WalSenderWriteData'), false) FROM pg_stat_activity WHERE pid = {walsender}"
    );
    until("the server cannot send", async || {
        let write =
            "SELECT pg_logical_emit_message(true, 'other', repeat('x', 1000000)) FROM generate_series(1, 5)";
        run(sql, write).await;
        value_of(sql, &waits).await == "true"
    })
    .await;
}

#[tokio::test]
async fn a_leader_that_is_stopped_loses_the_lease() {
    stopped("lease_stopped", false).await;
}

#[tokio::test]
async fn a_leader_that_is_stopped_with_its_socket_full_loses_the_lease() {
    stopped("lease_full", true).await;
}
