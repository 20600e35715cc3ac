//! `serve --takeover`: a new broker replaces one that runs, and nobody misses anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use walcast_client::{Message, Transport};

use crate::broker::{connect, run, until, value_of, within};
use crate::lease::{connections, database, fill, gets, place, until_moved, walsender};
use crate::plain::{Plain, get};
use crate::server;
use crate::serving::Process;

const HANDED_OVER: &str = "\"lease\":\"another broker was told to take over";
const WRITERS: u64 = 4;

#[tokio::test]
async fn a_running_broker_is_replaced_under_load_and_nothing_is_lost() {
    let name = "takeover_load";
    // So that nothing but the request moves the lease.
    let (text, sql) = database(name, "lease = '60s'").await;
    let old = Process::start(name, &text).await;
    old.ready().await;
    let mut place = place(&old).await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let sql = connect(&server::url(name).await).await;
        let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
        writers.push(tokio::spawn(async move {
            let mut n = 0;
            while !stop.load(Ordering::SeqCst) {
                run(&sql, &format!("INSERT INTO t VALUES ({})", n * WRITERS + writer)).await;
                n += 1;
                written.fetch_add(1, Ordering::SeqCst);
            }
            n
        }));
    }
    until("much is written", async || written.load(Ordering::SeqCst) > 200).await;
    let leader = walsender(&sql, name).await;
    let start = Instant::now();
    let new = Process::start_with(name, &text, &["--takeover"]).await;
    let took = until_moved(&sql, name, &leader).await;
    println!("handed over in {took:?}, {:?} after the new one was started", start.elapsed());
    assert!(took < Duration::from_secs(3), "{took:?}");
    new.ready().await;
    old.unready(HANDED_OVER).await;
    until("the old one took its connections down", async || {
        connections(&sql, name).await == "walcast,walcast companion,walcast gate"
    })
    .await;
    assert_eq!(get(&old.admin, "/livez").await.0, 200);
    let begun = written.load(Ordering::SeqCst);
    until("more is written", async || written.load(Ordering::SeqCst) > begun + 200).await;
    stop.store(true, Ordering::SeqCst);
    let mut rest = 0;
    for writer in writers {
        rest += writer.await.unwrap();
    }

    // One who changes transport at each cut, and reads everything from before the old one's end.
    let mut seen = BTreeMap::new();
    for transport in Transport::ALL {
        let mut stream = new.client.resume(transport, place.clone()).await.unwrap();
        let part = if transport == Transport::Poll { rest } else { rest / 3 };
        let mut count = 0;
        while count < part && (seen.len() as u64) < rest {
            match within("an event", stream.next()).await.unwrap() {
                Some(Message::Event(event)) => {
                    let id: serde_json::Value = serde_json::from_str(event.data.get()).unwrap();
                    let known = seen.insert(id["id"].as_u64().unwrap(), event.cursor);
                    assert!(known.is_none(), "{id} came twice: {known:?} and {:?}", event.cursor);
                    count += 1;
                }
                Some(Message::Subscribed { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        place = stream.into_subscription();
    }
    assert_eq!(seen.len() as u64, rest);

    // The old one does not lead, even now that nobody else does.
    new.signal("TERM");
    assert_eq!(new.ended().await.0, Some(0));
    until("nobody is connected", async || connections(&sql, name).await.is_empty()).await;
    old.unready(HANDED_OVER).await;
    old.signal("TERM");
    let (code, took, log) = old.ended().await;
    assert!(code == Some(0) && took < Duration::from_secs(5), "{took:?} {log}");
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_replaced_all_the_same() {
    let name = "takeover_full";
    let (text, sql) = database(name, "lease = '60s'").await;
    let old = Process::start(name, &text).await;
    old.ready().await;
    let place = place(&old).await;
    let leader = walsender(&sql, name).await;
    old.signal("STOP");
    fill(&sql, &leader).await;
    run(&sql, "INSERT INTO t VALUES (1), (2)").await;
    let new = Process::start_with(name, &text, &["--takeover"]).await;
    let took = until_moved(&sql, name, &leader).await;
    println!("taken over in {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    new.ready().await;
    let leader = walsender(&sql, name).await;
    old.signal("CONT");
    old.unready(HANDED_OVER).await;
    assert_eq!(walsender(&sql, name).await, leader, "it came back");
    run(&sql, "INSERT INTO t VALUES (3)").await;
    gets(&new, &place, 1..=3).await;
}

/// A leader whose companion session is taken, here by a publish that waits for another's key, hands over all the same.
#[tokio::test]
async fn a_leader_that_is_busy_hands_over() {
    let name = "takeover_busy";
    let (text, sql) = database(name, "lease = '60s'").await;
    let old = Process::start(name, &text).await;
    old.ready().await;
    let leader = walsender(&sql, name).await;
    let other = connect(&server::url(name).await).await;
    run(&other, "BEGIN; SELECT walcast.publish_once('k', 'm', '1')").await;
    let http = Plain { address: old.http.parse().unwrap() };
    let publish =
        tokio::spawn(
            async move { http.post("idempotency-key: k\r\n", r#"{"topic": "m", "data": 1}"#).await },
        );
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND application_name = 'walcast companion'
             AND wait_event_type = 'Lock'"
    );
    until("the companion is taken", async || value_of(&sql, &waits).await == "1").await;
    let new = Process::start_with(name, &text, &["--takeover"]).await;
    until_moved(&sql, name, &leader).await;
    old.unready(HANDED_OVER).await;
    run(&other, "COMMIT").await;
    new.ready().await;
    publish.abort();
    new.signal("TERM");
    let (_, _, log) = new.ended().await;
    assert!(log.contains("asked the leader to hand over"), "{log}");
    assert!(!log.contains("does not hand over"), "{log}");
}

#[tokio::test]
async fn where_nobody_leads_there_is_nothing_to_take_over() {
    let name = "takeover_nobody";
    let (text, sql) = database(name, "").await;
    let first = Process::start_with(name, &text, &["--takeover"]).await;
    first.ready().await;
    // The one that leads is asked; the one that stands by stays what it is, and follows.
    let standby = Process::start(name, &text).await;
    standby.unready("another broker leads").await;
    let leader = walsender(&sql, name).await;
    let new = Process::start_with(name, &text, &["--takeover"]).await;
    until_moved(&sql, name, &leader).await;
    new.ready().await;
    first.unready(HANDED_OVER).await;
    standby.unready("another broker leads").await;
    new.signal("KILL");
    standby.ready().await;
    first.unready(HANDED_OVER).await;
    assert_eq!(new.ended().await.0, None);
}
