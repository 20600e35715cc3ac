//! State topics: what their current values are, and who is woken by what.

use std::io::ErrorKind;

use serde_json::json;
use walcast_client::{After, Transport};

use crate::broker::{Broker, MARK, line};
use crate::plain::Answer;

const VMS: &str = "CREATE TABLE vms (hostname text PRIMARY KEY, pin int, status text, beat int)";
const RULE: &str = r#"
[[table]]
name = "public.vms"
topic = "vm/{hostname}"
columns = ["hostname", "pin", "status"]
state = true
"#;

async fn state(broker: &Broker, topic: &str) -> Option<String> {
    let answer = broker.http.get(&format!("/v1/state/{topic}")).await;
    match answer.status {
        200 => Some(answer.body),
        _ => {
            assert_eq!(answer.problem().code.as_str(), "not_found");
            None
        }
    }
}

#[tokio::test]
async fn each_change_is_told_and_kept() {
    let broker = Broker::start("state_changes", VMS, RULE).await;
    let mut vms = broker.follow(Transport::WebSocket, &["vm/*", MARK]).await;
    let mut check = async |sql: &str, events: &[&str], a: Option<&str>, b: Option<&str>| {
        broker.run(sql).await;
        assert_eq!(broker.rest_lines(&mut vms).await, events, "{sql}");
        for (topic, expected) in [("vm/a", a), ("vm/b", b)] {
            assert_eq!(state(&broker, topic).await.as_deref(), expected, "{topic} after {sql}");
        }
    };
    let (a1, a2) = (r#"{"hostname":"a","pin":1,"status":null}"#, r#"{"hostname":"a","pin":2,"status":null}"#);
    let b2 = r#"{"hostname":"b","pin":2,"status":null}"#;
    check("INSERT INTO vms VALUES ('a', 1)", &[&format!("vm/a insert {a1}")], Some(a1), None).await;
    check("UPDATE vms SET pin = 2", &[&format!("vm/a update {a2}")], Some(a2), None).await;
    check("UPDATE vms SET beat = 7", &[], Some(a2), None).await;
    check("UPDATE vms SET pin = pin", &[], Some(a2), None).await;
    let moved = [r#"vm/a delete {"hostname":"a"}"#, &format!("vm/b update {b2}")];
    check("UPDATE vms SET hostname = 'b'", &moved, None, Some(b2)).await;
    check("DELETE FROM vms", &[r#"vm/b delete {"hostname":"b"}"#], None, None).await;
    let both = [format!("vm/a insert {a1}"), format!("vm/b insert {b2}")];
    let both = both.each_ref().map(String::as_str);
    check("INSERT INTO vms VALUES ('a', 1), ('b', 2)", &both, Some(a1), Some(b2)).await;
    check("TRUNCATE vms", &["vm/a truncate null", "vm/b truncate null"], None, None).await;
    check("TRUNCATE vms", &[], None, None).await;
    // Within one transaction the value is what it leaves.
    let there_and_back = "INSERT INTO vms VALUES ('a', 1); DELETE FROM vms; INSERT INTO vms VALUES ('a', 2)";
    let events =
        [format!("vm/a insert {a1}"), r#"vm/a delete {"hostname":"a"}"#.into(), format!("vm/a insert {a2}")];
    check(there_and_back, &events.each_ref().map(String::as_str), Some(a2), None).await;
}

#[tokio::test]
async fn an_update_that_changes_nothing_published_wakes_nobody() {
    let broker = Broker::start("state_quiet", VMS, RULE).await;
    broker.run("INSERT INTO vms VALUES ('a', 1)").await;
    broker.catch_up().await;
    let etag = broker.http.get("/v1/state/vm/a").await.headers["etag"].clone();
    let now = broker.http.get("/v1/events?topic=vm/a&after=now&wait=0").await.cursor();
    let mut held = [
        broker.http.begin("/v1/state/vm/a?wait=300", &format!("if-none-match: {etag}\r\n")).await,
        broker.http.begin(&format!("/v1/events?topic=vm/a&wait=300&after={now}"), "").await,
    ];
    broker.until_waiting(2).await;
    for beat in 0..20 {
        broker.run(&format!("UPDATE vms SET beat = {beat}")).await;
    }
    broker.catch_up().await;
    for socket in &held {
        let read = socket.try_read(&mut [0; 1]);
        assert!(matches!(&read, Err(error) if error.kind() == ErrorKind::WouldBlock), "woken: {read:?}");
    }
    broker.run("UPDATE vms SET pin = 2").await;
    let [value, events] = &mut held;
    let data = r#"{"hostname":"a","pin":2,"status":null}"#;
    assert_eq!(Answer::read(value).await.body, data);
    assert_eq!(Answer::read(events).await.events(), [format!("vm/a {data}")]);
}

#[tokio::test]
async fn the_value_is_polled_and_waited_for() {
    let broker = Broker::start("state_calls", VMS, RULE).await;
    assert_eq!(state(&broker, "vm/a").await, None);
    let mut waiting = broker.http.begin("/v1/state/vm/a?wait=300", "").await;
    broker.until_waiting(1).await;
    broker.run("INSERT INTO vms VALUES ('b', 0); INSERT INTO vms VALUES ('a', 1)").await;
    let first = Answer::read(&mut waiting).await;
    assert_eq!((first.status, first.json()), (200, json!({"hostname": "a", "pin": 1, "status": null})));
    let present = async |etag: &str, wait: u32| {
        let header = format!("if-none-match: {etag}\r\n");
        broker.http.get_with(&format!("/v1/state/vm/a?wait={wait}"), &header).await
    };
    let etag = first.headers["etag"].clone();
    let same = present(&etag, 0).await;
    assert_eq!((same.status, same.body.as_str(), &same.headers["etag"]), (304, "", &etag));
    assert_eq!(present(&etag, 1).await.status, 304);
    // The tag is the cursor of the change: events go on from it.
    let cursor = etag.trim_matches('"');
    broker.run("UPDATE vms SET pin = pin + 1").await;
    let next = broker.http.get(&format!("/v1/events?topic=vm/a&after={cursor}")).await;
    assert_eq!(next.events(), [r#"vm/a {"hostname":"a","pin":2,"status":null}"#]);
    let changed = present(&etag, 300).await;
    assert_eq!((changed.status, changed.json()["pin"].as_i64()), (200, Some(2)));
    let etag = changed.headers["etag"].clone();
    let header = format!("if-none-match: {etag}\r\n");
    let mut held = broker.http.begin("/v1/state/vm/a?wait=300", &header).await;
    broker.until_waiting(1).await;
    broker.run("DELETE FROM vms WHERE hostname = 'a'").await;
    assert_eq!(Answer::read(&mut held).await.problem().code.as_str(), "not_found");
    assert_eq!(present(&etag, 300).await.status, 404);
    assert_eq!(state(&broker, "vm/a").await, None);
}

const LONG: &str = "CREATE TABLE kept (id int PRIMARY KEY, n int, doc text);
    CREATE TABLE told (id int PRIMARY KEY, n int, doc text);
    ALTER TABLE kept ALTER doc SET STORAGE EXTERNAL; ALTER TABLE told ALTER doc SET STORAGE EXTERNAL";
const LONG_RULES: &str = r#"
[[table]]
name = "public.kept"
topic = "kept/{id}"
state = true
[[table]]
name = "public.told"
topic = "told/{id}"
"#;

#[tokio::test]
async fn a_long_value_that_was_not_sent_again_is_never_null() {
    let broker = Broker::start("state_toast", LONG, LONG_RULES).await;
    let mut follower = broker.follow(Transport::Sse, &["kept/*", "told/*"]).await;
    let doc = "x".repeat(10_000);
    for table in ["kept", "told"] {
        broker.run(&format!("INSERT INTO {table} VALUES (1, 1, '{doc}')")).await;
        assert_eq!(follower.next().await.data, json!({"id": 1, "n": 1, "doc": doc}));
    }
    broker.run("UPDATE told SET n = 2").await;
    let told = follower.next().await;
    assert_eq!((told.data, told.unchanged), (json!({"id": 1, "n": 2}), vec!["doc".to_owned()]));

    broker.run("UPDATE kept SET n = 2").await;
    let whole = json!({"id": 1, "n": 2, "doc": doc});
    let kept = follower.next().await;
    assert_eq!((kept.data, kept.unchanged), (whole.clone(), vec![]));
    assert_eq!(broker.http.get("/v1/state/kept/1").await.json(), whole);
    // A changed key takes it along, though Postgres sends only the short columns.
    broker.run("UPDATE kept SET id = 2").await;
    assert_eq!(follower.next().await.data, json!({"id": 1}));
    let moved = follower.next().await;
    assert_eq!((moved.topic.as_str(), &moved.unchanged), ("kept/2", &vec![]));
    assert_eq!(moved.data, json!({"id": 2, "n": 2, "doc": doc}));
    // Also where the value was read by seeding.
    let broker = broker.restart().await;
    broker.run("UPDATE kept SET n = 3").await;
    broker.catch_up().await;
    let whole = json!({"id": 2, "n": 3, "doc": doc});
    assert_eq!(broker.http.get("/v1/state/kept/2").await.json(), whole);
    let events = broker.poll(&["kept/*"], After::Earliest).await;
    assert_eq!((&events.last().unwrap().data, events.last().unwrap().unchanged.len()), (&whole, 0));
}

#[tokio::test]
async fn rows_enter_and_leave_by_their_condition() {
    let rules = r#"
        [[table]]
        name = "public.vms"
        topic = "vm/{hostname}"
        columns = ["hostname", "pin"]
        when = "data.status == 'running'"
        state = true
        [[table]]
        name = "public.log"
        topic = "log"
        columns = ["id"]
        when = "data.level > 2"
    "#;
    let ddl = format!("{VMS}; CREATE TABLE log (id int PRIMARY KEY, level int)");
    let broker = Broker::start("state_when", &ddl, rules).await;
    let mut follower = broker.follow(Transport::Poll, &["vm/*", "log", MARK]).await;
    let mut check = async |sql: &str, events: &[&str], value: Option<&str>| {
        broker.run(sql).await;
        assert_eq!(broker.rest_lines(&mut follower).await, events, "{sql}");
        assert_eq!(state(&broker, "vm/a").await.as_deref(), value, "{sql}");
    };
    let (one, two) = (r#"{"hostname":"a","pin":1}"#, r#"{"hostname":"a","pin":2}"#);
    let gone = r#"vm/a delete {"hostname":"a"}"#;
    check("INSERT INTO vms VALUES ('a', 1, 'idle')", &[], None).await;
    check("UPDATE vms SET status = 'running'", &[&format!("vm/a update {one}")], Some(one)).await;
    check("UPDATE vms SET status = 'idle'", &[gone], None).await;
    check("UPDATE vms SET pin = 2", &[], None).await;
    check("UPDATE vms SET status = 'running'", &[&format!("vm/a update {two}")], Some(two)).await;
    check("DELETE FROM vms", &[gone], None).await;
    check("INSERT INTO log VALUES (1, 3), (2, 1)", &[r#"log insert {"id":1}"#], None).await;
    check("UPDATE log SET level = 1", &[], None).await;
    check("UPDATE log SET level = 3 WHERE id = 2", &[r#"log update {"id":2}"#], None).await;
    // What is not published now is not published after a restart.
    broker.run("INSERT INTO vms VALUES ('a', 1, 'running'), ('b', 1, 'idle')").await;
    let broker = broker.restart().await;
    let now = broker.poll(&["vm/*"], After::Current).await;
    assert_eq!(now.iter().map(line).collect::<Vec<_>>(), [format!("vm/a snapshot {one}")]);
}
