//! What each kind of change makes.

use std::sync::Arc;

use walcast_wire::Position;

use super::super::notice::Reason;
use super::super::{Config, Router, Routing};
use super::*;

const EVENTS: &str = "name = 'public.vms'\ntopic = 'vm/{host}'\n";
const STATE: &str = "name = 'public.vms'\ntopic = 'vm/{host}'\nstate = true\n";
const RUNNING: &str =
    "name = 'public.vms'\ntopic = 'vm/{host}'\nstate = true\nwhen = \"data.status == 'on'\"\n";

#[test]
fn events() {
    let (r, t) = (router(EVENTS), relation(&["host!", "n:int"]));
    check(&r, insert(&t, &["a", "1"]), &[r#"insert vm/a {"host":"a","n":1}"#]);
    check(&r, update(&t, None, &["a", "2"]), &[r#"update vm/a {"host":"a","n":2}"#]);
    check(&r, update(&t, Some(key(&["a", "∅"])), &["b", "2"]), &[r#"update vm/b {"host":"b","n":2}"#]);
    check(&r, delete(&t, key(&["a", "∅"])), &[r#"delete vm/a {"host":"a"}"#]);
    check(&r, delete(&t, whole(&["a", "∅"])), &[r#"delete vm/a {"host":"a","n":null}"#]);
}

#[test]
fn other_tables_make_nothing() {
    let mut other = (*relation(&["host!"])).clone();
    other.name = "public.other".into();
    check(&router(EVENTS), insert(&Arc::new(other), &["a"]), &[]);
}

#[test]
fn positions_and_commit() {
    let (r, t) = (router(STATE), relation(&["host!"]));
    let entries = route(&r, vec![insert(&t, &["a"]), update(&t, Some(key(&["a"])), &["b"])]);
    let positions: Vec<_> = entries.iter().map(Entry::position).collect();
    assert_eq!(positions, [Position::new(100, 1), Position::new(100, 2), Position::new(100, 2)]);
    for entry in entries {
        let Entry::Event(event) = entry else { panic!("{entry:?}") };
        assert_eq!(event.commit, Some(commit()));
        assert!(!event.partial);
        assert_eq!(&*event.state.unwrap().table, "public.vms");
    }
}

#[test]
fn topics() {
    let check = |cells: &[&str], expected: Result<&str, Reason>| {
        let r = router("name = 'public.vms'\ntopic = '{region}/vm-{host}'\ncolumns = []");
        let entries = route(&r, vec![insert(&relation(&["host!", "region"]), cells)]);
        match (entries.as_slice(), expected) {
            ([Entry::Event(event)], Ok(topic)) => assert_eq!(event.topic.as_str(), topic),
            ([], Err(reason)) => assert!(r.rules[0].notices.seen(reason), "{cells:?} {reason:?}"),
            (got, _) => panic!("{cells:?}: {got:?}"),
        }
    };
    let long = "x".repeat(249);
    check(&["h", "eu"], Ok("eu/vm-h"));
    check(&["a b/c", ".."], Ok("%2E%2E/vm-a%20b%2Fc"));
    check(&[&long, "eu"], Ok(&format!("eu/vm-{long}")));
    check(&[&format!("{long}x"), "eu"], Err(Reason::TooLong));
    check(&[&"x".repeat(300), "eu"], Err(Reason::TooLong));
    check(&["∅", "eu"], Err(Reason::Null));
    check(&["h", ""], Err(Reason::Empty));
    check(&["h", "…"], Err(Reason::Unchanged));
    check(&["h"], Err(Reason::Absent));
}

#[test]
fn text_that_is_not_utf8_has_no_topic() {
    let (r, t) = (router(EVENTS), relation(&["host!"]));
    let new = Box::new([Cell::Text(Bytes::from_static(b"\xff"))]);
    check(&r, ChangeKind::Insert { relation: t, new }, &[]);
    assert!(r.rules[0].notices.seen(Reason::Invalid));
}

#[test]
fn topic_columns_outside_the_identity() {
    let (r, t) = (router(EVENTS), relation(&["id!", "host"]));
    check(&r, delete(&t, key(&["1", "∅"])), &[]);
    assert!(r.rules[0].notices.seen(Reason::NotSent));
    check(&r, delete(&t, whole(&["1", "a"])), &[r#"delete vm/a {"id":"1","host":"a"}"#]);
}

#[test]
fn columns_are_those_of_the_rule_in_its_order() {
    let t = relation(&["host!", "a:int", "b:json"]);
    let r = router(&format!("{EVENTS}columns = ['b', 'a']"));
    check(&r, insert(&t, &["h", "∅", "{\"x\": [1]}"]), &[r#"insert vm/h {"b":{"x": [1]},"a":null}"#]);
    check(&r, delete(&t, key(&["h", "∅", "∅"])), &["delete vm/h {}"]);
    let r = router(&format!("{EVENTS}columns = ['host', 'gone']"));
    check(&r, insert(&t, &["h", "1", "2"]), &[r#"insert vm/h {"host":"h"}"#]);
    assert!(r.rules[0].notices.seen(Reason::ColumnAbsent));
}

#[test]
fn an_altered_table_is_read_by_its_new_description() {
    let r = router(&format!("{EVENTS}columns = ['n']"));
    let (before, after) = (relation(&["host!", "n:int"]), relation(&["n:int", "x", "host!"]));
    let made = route(
        &r,
        vec![insert(&before, &["a", "1"]), insert(&after, &["2", "x", "a"]), insert(&before, &["a", "3"])],
    );
    assert_eq!(lines(&made), [r#"insert vm/a {"n":1}"#, r#"insert vm/a {"n":2}"#, r#"insert vm/a {"n":3}"#]);
}

#[test]
fn unchanged_values_are_named_and_never_null() {
    let (r, t) = (router(EVENTS), relation(&["host!", "big", "n:int"]));
    check(&r, update(&t, None, &["a", "…", "2"]), &[r#"update vm/a {"host":"a","n":2} ~big"#]);
    check(
        &r,
        update(&t, Some(key(&["x", "∅", "∅"])), &["a", "…", "2"]),
        &[r#"update vm/a {"host":"a","n":2} ~big"#],
    );
    check(
        &r,
        update(&t, Some(whole(&["a", "old", "1"])), &["a", "…", "2"]),
        &[r#"update vm/a {"host":"a","big":"old","n":2}"#],
    );
    // A key that is stored out of line comes with the old row.
    check(
        &r,
        update(&t, Some(key(&["a", "∅", "∅"])), &["…", "b", "2"]),
        &[r#"update vm/a {"host":"a","big":"b","n":2}"#],
    );
}

#[test]
fn too_large_rows_carry_their_key() {
    let limited = |toml: &str, event_bytes_max| {
        Arc::new(Router::new(&[rule(toml)], Config { event_bytes_max }).unwrap())
    };
    let (large, t) = ("x".repeat(100), relation(&["host!", "big", "toast"]));
    let r = limited(EVENTS, 50);
    check(&r, insert(&t, &["a", "12345", "∅"]), &[r#"insert vm/a {"host":"a","big":"12345","toast":null}"#]);
    check(&r, update(&t, None, &["a", &large, "…"]), &[r#"update vm/a {"host":"a"} ~toast -big"#]);
    check(&r, insert(&t, &["a", &large, "∅"]), &[r#"insert vm/a {"host":"a"} -big -toast"#]);
    assert!(r.rules[0].notices.seen(Reason::TooLarge));
    // REPLICA IDENTITY FULL: every column is a key, so what the topic names is kept.
    let full = relation(&["host!", "big!", "toast!"]);
    check(&r, delete(&full, whole(&["a", &large, "t"])), &[r#"delete vm/a {"host":"a"} -big -toast"#]);
    check(&limited(EVENTS, 5), insert(&t, &["a", "b", "c"]), &["insert vm/a {} -host -big -toast"]);
    // Exactly at the limit.
    let exact = r#"{"host":"a"}"#.len();
    let narrow = relation(&["host!"]);
    check(&limited(EVENTS, exact), insert(&narrow, &["a"]), &[r#"insert vm/a {"host":"a"}"#]);
    check(&limited(EVENTS, exact - 1), insert(&narrow, &["a"]), &["insert vm/a {} -host"]);
}

#[test]
fn truncate() {
    let t = relation(&["host!"]);
    let truncate = || ChangeKind::Truncate { relation: Arc::clone(&t) };
    check(&router(STATE), truncate(), &["clear table public.vms"]);
    check(&router("name = 'public.vms'\ntopic = 'vms'"), truncate(), &["truncate vms null"]);
    let r = router(EVENTS);
    check(&r, truncate(), &[]);
    assert!(r.rules[0].notices.seen(Reason::Truncate));
}

#[test]
fn state() {
    let (r, t) = (router(STATE), relation(&["host!", "n:int"]));
    check(&r, insert(&t, &["a", "1"]), &[r#"put insert vm/a {"host":"a","n":1}"#]);
    check(&r, update(&t, None, &["a", "2"]), &[r#"put update vm/a {"host":"a","n":2}"#]);
    check(&r, update(&t, Some(whole(&["a", "1"])), &["a", "2"]), &[r#"put update vm/a {"host":"a","n":2}"#]);
    check(&r, delete(&t, key(&["a", "∅"])), &[r#"clear delete vm/a {"host":"a"}"#]);
    check(
        &r,
        update(&t, Some(key(&["a", "∅"])), &["b", "2"]),
        &[r#"clear delete vm/a {"host":"a"}"#, r#"put update vm/b {"host":"b","n":2}"#],
    );
    // The new row has no topic, or the old one had none.
    check(
        &r,
        update(&t, Some(whole(&["a", "1"])), &["∅", "2"]),
        &[r#"clear delete vm/a {"host":"a","n":1}"#],
    );
    check(&r, update(&t, Some(whole(&["∅", "1"])), &["b", "2"]), &[r#"put update vm/b {"host":"b","n":2}"#]);
}

#[test]
fn membership() {
    let (r, t) = (router(RUNNING), relation(&["host!", "status"]));
    check(&r, insert(&t, &["a", "on"]), &[r#"put insert vm/a {"host":"a","status":"on"}"#]);
    check(&r, insert(&t, &["a", "off"]), &[]);
    check(&r, update(&t, None, &["a", "on"]), &[r#"put update vm/a {"host":"a","status":"on"}"#]);
    check(&r, update(&t, None, &["a", "off"]), &[r#"clear delete vm/a {"host":"a"}"#]);
    check(&r, delete(&t, key(&["a", "∅"])), &[r#"clear delete vm/a {"host":"a"}"#]);
    // A change of the key, in and out.
    let moved = Some(key(&["a", "∅"]));
    check(&r, update(&t, moved.clone(), &["b", "off"]), &[r#"clear delete vm/a {"host":"a"}"#]);
    check(
        &r,
        update(&t, moved.clone(), &["b", "on"]),
        &[r#"clear delete vm/a {"host":"a"}"#, r#"put update vm/b {"host":"b","status":"on"}"#],
    );
    // What was not sent leaves membership as it was.
    check(&r, update(&t, None, &["a", "…"]), &[r#"put? update vm/a {"host":"a"} ~status"#]);
    check(
        &r,
        update(&t, moved, &["b", "…"]),
        &[r#"clear delete vm/a {"host":"a"}"#, r#"put? update vm/b {"host":"b"} ~status"#],
    );
}

#[test]
fn seeding() {
    let r = router(RUNNING);
    let rows = [row(&["a", "on"]), row(&["b", "off"]), row(&["∅", "on"]), row(&["c", "on"])];
    let events = r.seed(&relation(&["host!", "status"]), &rows);
    let made: Vec<_> = events.iter().map(line).collect();
    assert_eq!(
        made,
        [
            r#"put snapshot vm/a {"host":"a","status":"on"}"#,
            r#"put snapshot vm/c {"host":"c","status":"on"}"#
        ]
    );
    assert!(events.iter().all(|event| event.position == Position::ZERO && event.commit.is_none()));
    assert!(router(EVENTS).seed(&relation(&["host!"]), &[row(&["a"])]).is_empty());
}

#[test]
fn messages() {
    let r = router(STATE);
    check(&r, message("vm/a\n{\"x\": 1}"), &[r#"message vm/a {"x": 1}"#]);
    check(&r, message("vm/a\n{\n}"), &["message vm/a { }"]);
    check(&r, message("no line break"), &[]);
    check(&r, message("a//b\n1"), &[]);
    check(&r, message("a\nx"), &[]);
    for reason in [Reason::NoLineBreak, Reason::BadTopic, Reason::NotJson] {
        assert!(r.notices.seen(reason), "{reason:?}");
    }
    let small = Arc::new(Router::new(&[], Config { event_bytes_max: 3 }).unwrap());
    check(&small, message("a\n123"), &["message a 123"]);
    check(&small, message("a\n1234"), &["message a null -data"]);
}

#[test]
fn notifications_arrive_once_per_transaction() {
    let r = Arc::new(Router::new(&[], Config { event_bytes_max: 3 }).unwrap());
    let made = route(
        &r,
        vec![
            message("a once=1\n1"),
            message("a once=1\n1"),
            message("a\n1"),
            message("a\n1"),
            message("b once=1\n1"),
            message("a once=1\n\"large\""),
            message("a once=1\n\"other\""),
        ],
    );
    assert_eq!(
        lines(&made),
        [
            "message a 1",
            "message a 1",
            "message a 1",
            "message b 1",
            "message a null -data",
            "message a null -data"
        ]
    );
    let (mut routing, mut out) = (Routing::new(Arc::clone(&r)), Vec::new());
    for _ in 0..2 {
        routing.begin(&r);
        routing.route(&commit(), &Change { ordinal: 1, kind: message("a once=1\n1") }, &mut out);
    }
    assert_eq!(out.len(), 2);
}

#[test]
fn a_reload_takes_effect_with_the_next_transaction() {
    let (first, second) = (router(EVENTS), router("name = 'public.vms'\ntopic = 'other/{host}'"));
    let (t, mut out) = (relation(&["host!"]), Vec::new());
    let mut routing = Routing::new(Arc::clone(&first));
    for router in [&first, &second, &first] {
        routing.begin(router);
        routing.route(&commit(), &Change { ordinal: 1, kind: insert(&t, &["a"]) }, &mut out);
    }
    assert_eq!(
        lines(&out),
        [r#"insert vm/a {"host":"a"}"#, r#"insert other/a {"host":"a"}"#, r#"insert vm/a {"host":"a"}"#]
    );
}

#[test]
fn what_did_not_come_with_a_row_is_omitted() {
    let (r, t) = (router(EVENTS), relation(&["host!", "big", "n:int"]));
    check(&r, insert(&t, &["a", "✂", "1"]), &[r#"insert vm/a {"host":"a","n":1} -big"#]);
    assert!(r.rules[0].notices.seen(Reason::TooLarge));
    check(&r, insert(&t, &["a", "✂", "∅"]), &[r#"insert vm/a {"host":"a","n":null} -big"#]);
    check(
        &r,
        update(&t, Some(key(&["b", "✂", "1"])), &["a", "✂", "✂"]),
        &[r#"update vm/a {"host":"a"} -big -n"#],
    );
    check(&r, delete(&t, key(&["a", "✂", "✂"])), &[r#"delete vm/a {"host":"a"}"#]);
    let full = relation(&["host!", "big!", "n!:int"]);
    check(&r, insert(&full, &["a", "✂", "1"]), &[r#"insert vm/a {"host":"a","n":1} -big"#]);
    check(&r, delete(&full, whole(&["a", "✂", "1"])), &[r#"delete vm/a {"host":"a","n":1} -big"#]);
    // Without what its topic is made of, there is none.
    check(&r, insert(&t, &["✂", "b", "1"]), &[]);
    assert!(r.rules[0].notices.seen(Reason::Omitted));
    // What the rule does not publish is not missed.
    let narrow = router(&format!("{EVENTS}columns = ['host', 'n']"));
    check(&narrow, insert(&t, &["a", "✂", "1"]), &[r#"insert vm/a {"host":"a","n":1}"#]);
    assert!(!narrow.rules[0].notices.seen(Reason::TooLarge));
    // And too large for an event as well.
    let long = "x".repeat(2 << 20);
    check(&r, insert(&t, &["a", "✂", &long]), &[r#"insert vm/a {"host":"a"} -big -n"#]);
}

#[test]
fn a_condition_on_what_was_cut_off_hides_nothing() {
    let t = relation(&["host!", "status"]);
    check(&router(RUNNING), insert(&t, &["a", "✂"]), &[r#"put insert vm/a {"host":"a"} -status"#]);
    check(&router(RUNNING), update(&t, None, &["a", "✂"]), &[r#"put? update vm/a {"host":"a"} -status"#]);
    let events = RUNNING.replace("state = true", "");
    check(&router(&events), insert(&t, &["a", "✂"]), &[r#"insert vm/a {"host":"a"} -status"#]);
}
