//! Order, and going on after a cut: the same for every transport, from one to another, and inside a unit.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use walcast::cli::local;
use walcast_client::wire::{Cursor, Event};
use walcast_client::{After, Transport};

use crate::broker::{Broker, Follower, MARK, line, run, until};
use crate::streams::{Sse, Ws};

const VMS: &str = "CREATE TABLE vms (hostname text PRIMARY KEY, pin int)";
const RULE: &str = "[[table]]\nname = \"public.vms\"\ntopic = \"vm/{hostname}\"\nstate = true";

#[tokio::test]
async fn eight_writers_arrive_in_commit_order_on_every_transport() {
    const WRITERS: usize = 8;
    const TRANSACTIONS: usize = 60;
    let broker = Broker::start(
        "order_writers",
        "CREATE TABLE ledger (writer int, n int, PRIMARY KEY (writer, n));
         CREATE TABLE turn (n int PRIMARY KEY); INSERT INTO turn VALUES (0)",
        "[[table]]\nname = \"public.ledger\"\ntopic = \"by/{writer}\"\ncolumns = [\"n\"]",
    )
    .await;
    let mut followers = Vec::new();
    for transport in Transport::ALL {
        followers.push(broker.follow(transport, &["by/*", "turn", MARK]).await);
    }
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let sql = broker.session().await;
        writers.spawn(async move {
            let mut n = 0;
            for transaction in 0..TRANSACTIONS {
                let mut statements = "BEGIN;".to_owned();
                for event in 0..1 + (transaction + writer) % 4 {
                    n += 1;
                    statements += &match (event + writer) % 2 {
                        0 => format!("INSERT INTO ledger VALUES ({writer}, {n});"),
                        _ => format!("SELECT walcast.publish('by/{writer}', '{{\"n\": {n}}}');"),
                    };
                }
                // Whoever takes a turn holds the row until its commit, so turns are numbered in commit order.
                if transaction % 2 == 0 {
                    statements +=
                        "UPDATE turn SET n = n + 1; SELECT walcast.publish('turn', to_jsonb(n)) FROM turn;";
                }
                sql.batch_execute(&(statements + "COMMIT")).await.unwrap();
            }
            n
        });
    }
    let written: usize = writers.join_all().await.into_iter().sum();
    let mut stories = Vec::new();
    for follower in &mut followers {
        stories.push(broker.rest(follower).await);
    }
    assert_eq!(stories[0].len(), written + WRITERS * TRANSACTIONS / 2);
    in_order(&stories[0]);
    // Marks apart, all heard the same.
    assert_eq!(stories[0], stories[1]);
    assert_eq!(stories[0], stories[2]);
}

/// Cursors rise, transactions are whole and in commit order, and each topic counts without a hole.
fn in_order(events: &[Event<Value>]) {
    let (mut counts, mut finished) = (HashMap::new(), HashSet::new());
    for pair in events.windows(2) {
        assert!(pair[0].cursor.position < pair[1].cursor.position, "{pair:?}");
        if pair[0].xid != pair[1].xid {
            assert!(finished.insert(pair[0].xid), "parted: {pair:?}");
        }
    }
    for event in events {
        let count: &mut u64 = counts.entry(&event.topic).or_default();
        *count += 1;
        let n = event.data.get("n").unwrap_or(&event.data);
        assert_eq!(n, *count, "{event:?}");
    }
}

/// A row that moves from `vm/a` to `vm/b`: two events, one cursor. Returns the cursor before it.
async fn moved(broker: &Broker) -> Cursor {
    broker.run("INSERT INTO vms VALUES ('a', 1)").await;
    broker.catch_up().await;
    let before = broker.http.get("/v1/events?topic=vm/*&after=now&wait=0").await.cursor();
    broker.run("UPDATE vms SET hostname = 'b'").await;
    broker.run("SELECT walcast.publish('vm/after', '1')").await;
    broker.catch_up().await;
    before
}
const LEFT: &str = r#"vm/a {"hostname":"a"}"#;
const ENTERED: &str = r#"vm/b {"hostname":"b","pin":1}"#;

#[tokio::test]
async fn a_cut_between_the_events_of_a_key_change_loses_neither() {
    let broker = Broker::start("order_unit", VMS, RULE).await;
    let before = moved(&broker).await;

    let target = |after: Cursor| format!("/v1/events?topic=vm/*&limit=1&after={after}");
    let page = broker.http.get(&target(before)).await;
    assert_eq!(page.events(), [LEFT, ENTERED]);
    assert_eq!(broker.http.get(&target(page.cursor())).await.events(), ["vm/after 1"]);

    let mut sse = Sse::open(&broker.http, &format!("/v1/events?topic=vm/*&after={before}"), "").await;
    let (_, id, first) = sse.event().await;
    assert_eq!((id, &first["op"]), (None, &json!("delete")));
    drop(sse);
    // A browser has seen no id but the one before.
    let header = format!("last-event-id: {before}\r\n");
    let mut sse = Sse::open(&broker.http, "/v1/events?topic=vm/*", &header).await;
    let again = [sse.event().await, sse.event().await, sse.event().await];
    assert_eq!(again.each_ref().map(|event| &event.2["topic"]), ["vm/a", "vm/b", "vm/after"]);
    assert_eq!(again.each_ref().map(|event| event.1.is_some()), [false, true, true]);
    assert_eq!(again[1].1, Some(page.cursor()));

    let mut ws = Ws::open(&broker.http, &format!("?topic=vm/*&after={before}")).await;
    ws.expect("subscribed").await;
    let unit = ws.expect("events").await;
    assert_eq!(
        (&unit[0]["topic"], &unit[1]["topic"], unit.as_array().unwrap().len()),
        (&json!("vm/a"), &json!("vm/b"), 2)
    );
    assert_eq!(ws.expect("event").await["topic"], "vm/after");

    // Our client hands out one, is cut, and goes on anywhere with the other.
    for transport in Transport::ALL {
        for other in Transport::ALL {
            let mut stream = broker.follow_after(transport, &["vm/*"], After::Cursor(before)).await;
            assert_eq!(stream.next().await.topic.as_str(), "vm/a");
            let rest = stream.0.into_subscription();
            let mut stream = Follower(broker.client.resume(other, rest).await.unwrap());
            let topics = [stream.next().await.topic, stream.next().await.topic];
            assert_eq!(
                topics.each_ref().map(|topic| topic.as_str()),
                ["vm/b", "vm/after"],
                "{transport}, {other}"
            );
        }
    }
}

#[tokio::test]
async fn a_follower_comes_back_on_another_transport_and_missed_nothing() {
    let broker = Broker::start("order_resume", VMS, RULE).await;
    let send = async |from: u32, to: u32| {
        for n in from..to {
            broker.run(&format!("INSERT INTO vms VALUES ('h{n}', {n})")).await;
            broker.run(&format!("SELECT walcast.publish('job/{n}', '{n}')")).await;
        }
    };
    let lines = |from: u32, to: u32| -> Vec<String> {
        let both = |n| {
            [format!(r#"vm/h{n} insert {{"hostname":"h{n}","pin":{n}}}"#), format!("job/{n} message {n}")]
        };
        (from..to).flat_map(both).collect()
    };
    let mut n = 0;
    for first in Transport::ALL {
        for second in Transport::ALL {
            let mut follower = broker.follow(first, &["**"]).await;
            send(n, n + 2).await;
            assert_eq!(follower.lines(4).await, lines(n, n + 2), "{first}");
            let rest = follower.0.into_subscription();
            send(n + 2, n + 5).await;
            let mut follower = Follower(broker.client.resume(second, rest).await.unwrap());
            send(n + 5, n + 6).await;
            assert_eq!(follower.lines(8).await, lines(n + 2, n + 6), "{first}, {second}");
            n += 6;
        }
    }
}

#[tokio::test]
async fn where_a_follower_may_begin() {
    let broker = Broker::start("order_begin", VMS, RULE).await;
    broker.run("INSERT INTO vms VALUES ('a', 1), ('b', 1)").await;
    broker.run("SELECT walcast.publish('job/a', '1'), walcast.publish('job/a/b', '2')").await;
    broker.run("UPDATE vms SET pin = 2 WHERE hostname = 'a'").await;
    broker.catch_up().await;
    let check = async |topics: &[&str], after: After, expected: &[&str]| {
        let events = broker.poll(topics, after).await;
        let seen: Vec<_> =
            events.iter().map(|event| format!("{} {}", event.topic, event.op.as_str())).collect();
        assert_eq!(seen, expected, "{topics:?} {after:?}");
    };
    check(&["vm/*"], After::Current, &["vm/b snapshot", "vm/a snapshot"]).await;
    check(&["vm/*"], After::Now, &[]).await;
    check(&["vm/*"], After::Earliest, &["vm/a insert", "vm/b insert", "vm/a update"]).await;
    check(&["vm/a", "job/*"], After::Earliest, &["vm/a insert", "job/a message", "vm/a update"]).await;
    check(&["job/**"], After::Earliest, &["job/a message", "job/a/b message"]).await;
    check(&["*/a"], After::Earliest, &["vm/a insert", "job/a message", "vm/a update"]).await;
    check(&["job/**"], After::Current, &[]).await;
    // After a restart history begins with the values that were read.
    let broker = broker.restart().await;
    let events = broker.poll(&["vm/*"], After::Earliest).await;
    let values: HashMap<_, _> =
        events.iter().map(|event| (event.topic.to_string(), &event.data["pin"])).collect();
    assert_eq!(values, HashMap::from([("vm/a".into(), &json!(2)), ("vm/b".into(), &json!(1))]));
}

#[tokio::test]
async fn a_cursor_of_another_slot_is_told_so() {
    let mut broker = Broker::start("order_epoch", VMS, RULE).await;
    broker.run("INSERT INTO vms VALUES ('a', 1)").await;
    broker.catch_up().await;
    let old = broker.http.get("/v1/events?topic=vm/*&wait=0").await.cursor();
    broker.stop().await.unwrap();
    local::take_down(&broker.config).await.unwrap();
    local::set_up(&broker.config, false).await.unwrap();
    let broker = Broker::on(&broker.name, broker.config, broker.sql).await;
    let answer = broker.http.get(&format!("/v1/events?topic=vm/*&after={old}")).await;
    let problem = answer.problem();
    assert_eq!((answer.status, problem.code.as_str()), (410, "epoch_changed"));
    let resume = problem.resume.unwrap();
    let resumed = broker.http.get(&format!("/v1/events?topic=vm/*&after={resume}")).await;
    assert_eq!(resumed.events(), [r#"vm/a {"hostname":"a","pin":1}"#]);
    broker.run("UPDATE vms SET pin = 2").await;
    let next = broker.http.get(&format!("/v1/events?topic=vm/*&after={}", resumed.cursor())).await;
    assert_eq!(next.events(), [r#"vm/a {"hostname":"a","pin":2}"#]);
    // A stream says it in-band.
    let mut sse =
        Sse::open(&broker.http, "/v1/events?topic=vm/*", &format!("last-event-id: {old}\r\n")).await;
    let (name, _, data) = sse.event().await;
    assert_eq!((name.as_str(), &data["reason"]), ("reset", &json!("epoch_changed")));
    assert_eq!(sse.event().await.2["data"]["pin"], 2);
}

/// How many commits begin where the record before them ends, be that another commit or a message outside of any
/// transaction; `slot` was there before.
async fn adjoining(broker: &Broker, slot: &str) -> (usize, usize) {
    let sql = format!(
        "SELECT data FROM pg_logical_slot_get_binary_changes('{slot}', NULL, NULL, 'proto_version', '1',
                                                            'publication_names', '{}', 'messages', 'true')",
        broker.name
    );
    let rows = broker.sql.query(&sql, &[]).await.unwrap();
    let (mut commits, mut messages, mut begins) = (HashSet::new(), HashSet::new(), Vec::new());
    for row in rows {
        let body: Vec<u8> = row.get(0);
        let lsn = |at: usize| u64::from_be_bytes(body[at..at + 8].try_into().unwrap());
        match (body[0], body[1]) {
            (b'C', _) => {
                begins.push(lsn(2));
                commits.insert(lsn(10));
            }
            (b'M', 0) => drop(messages.insert(lsn(2))),
            _ => {}
        }
    }
    let among = |ends: &HashSet<u64>| begins.iter().filter(|begin| ends.contains(begin)).count();
    (among(&commits), among(&messages))
}

#[tokio::test]
async fn commits_right_behind_another_record_have_cursors_of_their_own() {
    const ROUNDS: u64 = 25;
    let broker = Broker::start("order_adjoining", VMS, RULE).await;
    let slot = "order_adjoining_truth";
    broker.run(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    let mut followers = Vec::new();
    for transport in Transport::ALL {
        followers.push(broker.follow(transport, &["n/*", MARK]).await);
    }
    let (a, b) = (broker.session().await, broker.session().await);
    let (mut written, mut found) = (0, (0, 0));
    // Others write to the same log, and then nothing adjoins.
    until("commits adjoin commits and messages", async || {
        for n in written..written + ROUNDS {
            let publish = |who: &str| format!("BEGIN; SELECT walcast.publish('n/{who}', '{n}')");
            run(&a, &publish("a")).await;
            run(&b, &publish("b")).await;
            run(&a, "SELECT pg_logical_emit_message(false, 'between', 'x'); COMMIT").await;
            run(&b, "COMMIT").await;
        }
        written += ROUNDS;
        let (commits, messages) = adjoining(&broker, slot).await;
        found = (found.0 + commits, found.1 + messages);
        found.0 > 0 && found.1 > 0
    })
    .await;
    println!("{found:?} of {written} rounds adjoin a commit, a message");
    broker.run(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    let expected: Vec<String> =
        (0..written).flat_map(|n| [format!("n/a message {n}"), format!("n/b message {n}")]).collect();
    for follower in &mut followers {
        let events = broker.rest(follower).await;
        assert_eq!(events.iter().map(line).collect::<Vec<_>>(), expected);
        for pair in events.windows(2) {
            assert!(pair[0].cursor.position < pair[1].cursor.position, "{pair:?}");
        }
    }
}
