//! What every source promises, whichever way it reads Postgres: each test here runs with the log, with the outbox, and
//! with the outbox through a transaction pooler.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use walcast::node::Node;
use walcast_client::wire::Op;
use walcast_client::{After, Transport};

use crate::broker::{Broker, MARK, Way, config, connect, run, until, value_of};

/// Each of these, in each way.
macro_rules! contract {
    ($($test:ident),* $(,)?) => {
        mod wal { $(#[tokio::test] async fn $test() { super::$test(super::Way::Wal).await; })* }
        mod outbox { $(#[tokio::test] async fn $test() { super::$test(super::Way::Outbox).await; })* }
        mod pooled { $(#[tokio::test] async fn $test() { super::$test(super::Way::Pooled).await; })* }
    };
}

contract!(
    every_kind_of_change_arrives_in_its_order,
    values_have_one_form,
    what_is_rolled_back_never_arrives,
    a_notification_arrives_once_in_a_transaction,
    a_restart_tells_the_same_again,
    what_was_written_while_nobody_read_arrives,
    a_transaction_that_commits_late_is_not_lost,
    current_values_are_those_of_the_table,
    rules_come_and_go_while_it_runs,
    one_leads_and_the_next_takes_over,
    one_that_is_told_to_takes_over,
    a_published_event_is_acknowledged_with_its_transaction,
    a_row_changed_by_many_has_its_final_state_last,
    a_row_that_a_trigger_changes_again_has_its_final_state_last,
);

const VMS: &str = "
    CREATE TABLE vms (id int PRIMARY KEY, host text NOT NULL, secret text);
    CREATE TABLE parts (id int, kind text, n int, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
    CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a');
    CREATE TABLE parts_b (n int, junk int, kind text NOT NULL, id int NOT NULL, PRIMARY KEY (id, kind));
    ALTER TABLE parts_b DROP COLUMN junk;
    ALTER TABLE parts ATTACH PARTITION parts_b FOR VALUES IN ('b');
    CREATE TABLE fixed (id int PRIMARY KEY)";
const RULES: &str = r#"
[[table]]
name = "public.vms"
topic = "vm/{id}"
columns = ["id", "host"]

[[table]]
name = "public.parts"
topic = "part/{kind}/{id}"

[[table]]
name = "public.fixed"
topic = "fixed"
"#;

async fn every_kind_of_change_arrives_in_its_order(way: Way) {
    let broker = way.start("source_kinds", VMS, RULES).await;
    let mut follower = broker.follow(Transport::Sse, &["**"]).await;
    broker
        .run(
            "BEGIN;
            INSERT INTO vms VALUES (1, 'one', 'x'), (2, 'two', 'y');
            SELECT walcast.publish('m/1', '{\"a\": [1, 2]}');
            UPDATE vms SET host = 'uno', secret = 'z' WHERE id = 1;
            UPDATE vms SET id = 3 WHERE id = 2;
            DELETE FROM vms WHERE id = 3;
            INSERT INTO parts VALUES (1, 'a', 10), (2, 'b', 20);
            UPDATE parts SET n = n + 1;
            UPDATE parts SET kind = 'b' WHERE id = 1;
            INSERT INTO parts_b VALUES (7, 'b', 9);
            DELETE FROM parts WHERE id = 2;
            INSERT INTO fixed VALUES (1);
            TRUNCATE fixed;
            SELECT walcast.notify('ch', 'text');
            COMMIT",
        )
        .await;
    assert_eq!(
        broker.rest_lines(&mut follower).await,
        [
            r#"vm/1 insert {"host":"one","id":1}"#,
            r#"vm/2 insert {"host":"two","id":2}"#,
            r#"m/1 message {"a":[1,2]}"#,
            r#"vm/1 update {"host":"uno","id":1}"#,
            r#"vm/3 update {"host":"two","id":3}"#,
            r#"vm/3 delete {"id":3}"#,
            r#"part/a/1 insert {"id":1,"kind":"a","n":10}"#,
            r#"part/b/2 insert {"id":2,"kind":"b","n":20}"#,
            r#"part/a/1 update {"id":1,"kind":"a","n":11}"#,
            r#"part/b/2 update {"id":2,"kind":"b","n":21}"#,
            r#"part/a/1 delete {"id":1,"kind":"a"}"#,
            r#"part/b/1 insert {"id":1,"kind":"b","n":11}"#,
            r#"part/b/9 insert {"id":9,"kind":"b","n":7}"#,
            r#"part/b/2 delete {"id":2,"kind":"b"}"#,
            r#"fixed insert {"id":1}"#,
            "fixed truncate null",
            r#"ch message "text""#,
        ]
    );
}

const VALUES: &str = r#"
    CREATE TYPE mood AS ENUM ('so so', 'good');
    CREATE TYPE pair AS (a int, b text);
    CREATE DOMAIN age AS int;
    CREATE TABLE vals (id int PRIMARY KEY, b boolean, i8 bigint, f8 float8, n numeric, t text, e text, c char(3), j json,
        jb jsonb, ts timestamp, tz timestamptz, d date, iv interval, by bytea, ia int[], ta text[], m mood, ma mood[],
        p pair, a age, u uuid, ip inet, none text, g int GENERATED ALWAYS AS (1) STORED)"#;
const VALUES_RULE: &str = "[[table]]\nname = 'public.vals'\ntopic = 'val/{id}'\n";

async fn values_have_one_form(way: Way) {
    let broker = way.start("source_values", VALUES, VALUES_RULE).await;
    let mut follower = broker.follow(Transport::Sse, &["**"]).await;
    let insert = r#"
        SET TimeZone = 'Asia/Kolkata'; SET DateStyle = 'German, DMY'; SET IntervalStyle = 'iso_8601';
        SET bytea_output = 'escape'; SET extra_float_digits = -3; SET search_path = public, pg_catalog;
        INSERT INTO vals VALUES (1, true, 9007199254740993, 0.1, 1.50, E'say "hi", \\ (you)\n ', '', 'x', '{"b" : 1, "a":2}',
            '{"b" : 1, "a":2}', '2026-01-31 12:00:00.5', '2026-01-31 12:00:00+02', '2026-01-31', '1 day 02:00:00', '\x00ff',
            '{1,NULL,3}', '{"a b",NULL,"\"q\"",""}', 'so so', '{"so so",good}', '(1,"x,y")', 7,
            '00000000-0000-0000-0000-000000000001', '10.0.0.1', NULL);
        INSERT INTO vals (id, f8, tz, ts) VALUES (2, 'NaN', 'infinity', '-infinity')"#;
    broker.run(insert).await;
    let told = broker.rest(&mut follower).await;
    let expected = json!({
        "id": 1, "b": true, "i8": "9007199254740993", "f8": 0.1, "n": "1.50", "t": "say \"hi\", \\ (you)\n ", "e": "",
        "c": "x  ", "j": {"b": 1, "a": 2}, "jb": {"a": 2, "b": 1}, "ts": "2026-01-31T12:00:00.5",
        "tz": "2026-01-31T10:00:00Z", "d": "2026-01-31", "iv": "1 day 02:00:00", "by": "AP8=", "ia": [1, null, 3],
        "ta": ["a b", null, "\"q\"", ""], "m": "so so", "ma": ["so so", "good"], "p": "(1,\"x,y\")", "a": 7,
        "u": "00000000-0000-0000-0000-000000000001", "ip": "10.0.0.1", "none": null,
    });
    assert_eq!(told[0].data, expected);
    let odd = |name: &str| told[1].data[name].clone();
    assert_eq!([odd("f8"), odd("tz"), odd("ts")], ["NaN", "infinity", "-infinity"].map(Value::from));
}

async fn what_is_rolled_back_never_arrives(way: Way) {
    let broker = way.start("source_rollback", VMS, RULES).await;
    let mut follower = broker.follow(Transport::Sse, &["**"]).await;
    let gone = "INSERT INTO vms VALUES (9, 'gone', ''); SELECT walcast.publish('m', '\"gone\"'); ";
    broker.run(&format!("BEGIN; {gone} ROLLBACK")).await;
    broker
        .run(&format!(
            "BEGIN; SELECT walcast.publish('m', '1'); SAVEPOINT a; {gone} SAVEPOINT b; UPDATE vms SET id = 8;
             RELEASE b; ROLLBACK TO a; SELECT walcast.publish('m', '2'); COMMIT"
        ))
        .await;
    assert_eq!(broker.rest_lines(&mut follower).await, ["m message 1", "m message 2"]);
}

async fn a_notification_arrives_once_in_a_transaction(way: Way) {
    let broker = way.start("source_once", "", "").await;
    let mut follower = broker.follow(Transport::Sse, &["**"]).await;
    let both = "SELECT walcast.notify('ch', 'a'), walcast.notify('ch', 'b'), walcast.notify('ch', 'a')";
    // At the same time by another, which is another's.
    let other = broker.session().await;
    run(&other, &format!("BEGIN; {both}")).await;
    broker.run(both).await;
    run(&other, &format!("{both}; COMMIT")).await;
    let lines = [r#"ch message "a""#, r#"ch message "b""#];
    assert_eq!(broker.rest_lines(&mut follower).await, [lines, lines].concat());
}

/// All that there is, as clients see it.
async fn history(broker: &Broker) -> Vec<String> {
    let mut follower = broker.follow_after(Transport::Sse, &["**"], After::Earliest).await;
    broker.rest(&mut follower).await.iter().map(|event| serde_json::to_string(event).unwrap()).collect()
}

async fn a_restart_tells_the_same_again(way: Way) {
    let broker = way.start("source_again", VMS, RULES).await;
    let late = broker.session().await;
    run(&late, "BEGIN; SELECT walcast.publish('late', '1')").await;
    for n in 0..20 {
        broker.run(&format!("INSERT INTO vms SELECT {n} * 10 + i, 'x' FROM generate_series(1, 5) i")).await;
        broker.run(&format!("SELECT walcast.publish('m', '{n}'), walcast.publish('m', '0')")).await;
        if n % 7 == 6 {
            broker.catch_up().await;
        }
    }
    run(&late, "SELECT walcast.publish('late', '2'); COMMIT").await;
    broker.catch_up().await;
    let first = history(&broker).await;
    assert_eq!(first.len(), 20 * 7 + 2);
    let broker = broker.restart().await;
    assert_eq!(history(&broker).await, first);
}

async fn what_was_written_while_nobody_read_arrives(way: Way) {
    let mut broker = way.start("source_away", "", "").await;
    broker.run("SELECT walcast.publish('m', '0')").await;
    broker.catch_up().await;
    let from = After::Cursor(broker.place().await);
    broker.stop().await.unwrap();
    let late = broker.session().await;
    run(&late, "BEGIN; SELECT walcast.publish('late', '1')").await;
    // More than one reading brings, by one transaction and by many.
    run(&broker.sql, "SELECT walcast.publish('many', to_jsonb(i)) FROM generate_series(1, 5000) i").await;
    run(
        &broker.sql,
        "DO $$ BEGIN FOR i IN 1..2500 LOOP PERFORM walcast.publish('single', to_jsonb(i)); COMMIT; END LOOP; END $$",
    )
    .await;
    run(&late, "SELECT walcast.publish('late', '2'); COMMIT").await;
    let broker = broker.start_again().await;
    let mut follower =
        broker.follow_after(Transport::WebSocket, &["m", "many", "single", "late", MARK], from).await;
    let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for event in broker.rest(&mut follower).await {
        found.entry(event.topic.to_string()).or_default().push(event.data.as_u64().unwrap());
    }
    let expected = [("late", 1..3), ("many", 1..5001), ("single", 1..2501)];
    let expected = expected.map(|(topic, numbers)| (topic.to_owned(), numbers.collect()));
    assert_eq!(found, BTreeMap::from(expected));
}

async fn a_transaction_that_commits_late_is_not_lost(way: Way) {
    let broker = way.start("source_late", VMS, RULES).await;
    let mut follower = broker.follow(Transport::Sse, &["vm/*", "m", MARK]).await;
    let late = broker.session().await;
    run(&late, "BEGIN; INSERT INTO vms VALUES (1, 'late', ''); SELECT walcast.publish('m', '\"late\"')")
        .await;
    broker.run("INSERT INTO vms VALUES (2, 'soon', '')").await;
    // It delays nobody.
    assert_eq!(broker.rest_lines(&mut follower).await, [r#"vm/2 insert {"host":"soon","id":2}"#]);
    run(&late, "COMMIT").await;
    let expected = [r#"vm/1 insert {"host":"late","id":1}"#, r#"m message "late""#];
    assert_eq!(broker.rest_lines(&mut follower).await, expected);
}

const STATE: &str =
    "[[table]]\nname = 'public.vms'\ntopic = 'vm/{id}'\ncolumns = ['id', 'host']\nstate = true\n";

async fn state(broker: &Broker) -> Vec<String> {
    let mut values: Vec<_> = broker
        .poll(&["vm/*"], After::Current)
        .await
        .iter()
        .map(|event| format!("{} {}", event.topic, event.data))
        .collect();
    values.sort();
    values
}

async fn expected_state(broker: &Broker) -> Vec<String> {
    let rows =
        "SELECT coalesce(json_agg(format('vm/%s {\"host\":\"%s\",\"id\":%s}', id, host, id)), '[]') FROM vms";
    let mut rows: Vec<String> = serde_json::from_str(&value_of(&broker.sql, rows).await).unwrap();
    rows.sort();
    rows
}

async fn current_values_are_those_of_the_table(way: Way) {
    let ddl = format!("{VMS}; INSERT INTO vms SELECT i, 'x' || i FROM generate_series(1, 3000) i");
    let mut broker = way.start("source_state", &ddl, STATE).await;
    for round in 0..3 {
        // Changes before, during and after the reading.
        let writer = broker.session().await;
        let writing = tokio::spawn(async move {
            for n in 0..150 {
                let id = n * 37 % 3000 + 1;
                run(
                    &writer,
                    &format!(
                        "BEGIN; UPDATE vms SET host = 'y{round}-{n}' WHERE id = {id}; UPDATE vms SET id = -id WHERE id = {id} + 1;
                         DELETE FROM vms WHERE id = {id} + 2; INSERT INTO vms VALUES ({id} + 2, 'z') ON CONFLICT DO NOTHING; COMMIT"
                    ),
                )
                .await;
            }
        });
        broker.stop().await.unwrap();
        broker = broker.start_again().await;
        writing.await.unwrap();
        broker.catch_up().await;
        assert_eq!(state(&broker).await, expected_state(&broker).await);
    }
    broker.run("TRUNCATE vms").await;
    broker.catch_up().await;
    assert_eq!(state(&broker).await, Vec::<String>::new());
}

async fn rules_come_and_go_while_it_runs(way: Way) {
    let ddl = format!("{VMS}; INSERT INTO vms VALUES (1, 'a', 's'), (2, 'b', 's')");
    let broker = way.start("source_reload", &ddl, STATE).await;
    let reload =
        async |text: &str| broker.node().reloader().reload(&config("", "", text).table).await.unwrap();
    let read = async |expected: &[&str]| {
        until("the values are told", async || {
            broker.readiness().await.0 == 200 && state(&broker).await == expected
        })
        .await;
    };
    read(&[r#"vm/1 {"host":"a","id":1}"#, r#"vm/2 {"host":"b","id":2}"#]).await;
    reload(&STATE.replace("state = true", "state = true\nwhen = 'data.id > 1'")).await;
    read(&[r#"vm/2 {"host":"b","id":2}"#]).await;
    broker.run("UPDATE vms SET id = 3 WHERE id = 1").await;
    read(&[r#"vm/2 {"host":"b","id":2}"#, r#"vm/3 {"host":"a","id":3}"#]).await;
    reload("").await;
    broker.run("INSERT INTO vms VALUES (4, 'd', '')").await;
    broker.catch_up().await;
    read(&[]).await;
    reload(STATE).await;
    read(&[r#"vm/2 {"host":"b","id":2}"#, r#"vm/3 {"host":"a","id":3}"#, r#"vm/4 {"host":"d","id":4}"#])
        .await;
}

async fn one_leads_and_the_next_takes_over(way: Way) {
    let mut broker = way.start("source_lead", "", "").await;
    let sql = connect(&broker.url).await;
    broker.run("SELECT walcast.publish('m', '1')").await;
    broker.catch_up().await;
    let next = Broker::begin(&broker.name, broker.config.clone(), sql);
    let standing_by = |node: &Node| node.problems().contains("another broker");
    until("it stands by", async || standing_by(next.node())).await;
    broker.run("SELECT walcast.publish('m', '2')").await;
    broker.catch_up().await;
    let before = history(&broker).await;
    broker.stop().await.unwrap();
    next.ready().await;
    next.run("SELECT walcast.publish('m', '3')").await;
    let after = history(&next).await;
    assert_eq!((&after[..2], after.len()), (&before[..], 3), "the same events at the same cursors");
}

async fn one_that_is_told_to_takes_over(way: Way) {
    let broker = way.start("source_takeover", "", "").await;
    broker.run("SELECT walcast.publish('m', '1')").await;
    let before = history(&broker).await;
    let mut config = broker.config.clone();
    config.source.takeover = true;
    let next = Broker::on(&broker.name, config, connect(&broker.url).await).await;
    until("the first has let go", async || broker.node().problems().contains("lease")).await;
    next.run("SELECT walcast.publish('m', '2')").await;
    let after = history(&next).await;
    assert_eq!((&after[..1], after.len()), (&before[..], 2), "the same events at the same cursors");
}

async fn a_published_event_is_acknowledged_with_its_transaction(way: Way) {
    let broker = way.start("source_publish", "", "").await;
    let mut follower = broker.follow(Transport::Sse, &["m"]).await;
    let answer =
        broker.http.post("Content-Type: application/json\r\n", r#"{"topic":"m","data":{"a":1}}"#).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let event = follower.next().await;
    assert_eq!((event.op, event.data), (Op::Message, json!({"a": 1})));
    assert_eq!(answer.json()["xid"], event.xid.unwrap());
    assert!(event.time.is_some());
    let logged = way == Way::Wal;
    assert_eq!((event.lsn.is_some(), event.last), (logged, logged), "the outbox knows neither");
}

async fn a_row_changed_by_many_has_its_final_state_last(way: Way) {
    const ROWS: i64 = 5;
    let ddl = format!("{VMS}; INSERT INTO vms SELECT i, '0' FROM generate_series(1, {ROWS}) i");
    let broker = way.start("source_final", &ddl, RULES).await;
    let mut follower = broker.follow(Transport::Sse, &["**"]).await;
    let mut writers = Vec::new();
    for writer in 0..6_i64 {
        let sql = broker.session().await;
        writers.push(tokio::spawn(async move {
            for n in 0..60 {
                // Ids are taken before the rows are waited for, so they come in another order than the changes do.
                let (row, end) = ((writer + n) % ROWS + 1, if n % 5 == 4 { "ROLLBACK" } else { "COMMIT" });
                let change = format!(
                    "BEGIN; SELECT walcast.publish('other', '0');
                     UPDATE vms SET host = (host::int + 1)::text WHERE id = {row}; {end}"
                );
                run(&sql, &change).await;
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let mut steps: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for event in broker.rest(&mut follower).await.iter().filter(|event| event.op == Op::Update) {
        let n = event.data["host"].as_str().unwrap().parse().unwrap();
        steps.entry(event.topic.to_string()).or_default().push(n);
    }
    assert_eq!(steps.values().map(Vec::len).sum::<usize>(), 6 * 48);
    for (topic, steps) in steps {
        assert_eq!(steps, (1..=steps.len() as i64).collect::<Vec<_>>(), "{topic}");
    }
}

async fn a_row_that_a_trigger_changes_again_has_its_final_state_last(way: Way) {
    let ddl = format!(
        "{VMS}; CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN UPDATE public.vms SET host = 'touched' WHERE id = NEW.id; RETURN NULL; END $$;
        CREATE TRIGGER a_touch AFTER INSERT ON vms FOR EACH ROW EXECUTE FUNCTION touch()"
    );
    let broker = way.start("source_touch", &ddl, RULES).await;
    let mut follower = broker.follow(Transport::Sse, &["**"]).await;
    broker.run("INSERT INTO vms VALUES (1, 'new', '')").await;
    let expected = [r#"vm/1 insert {"host":"new","id":1}"#, r#"vm/1 update {"host":"touched","id":1}"#];
    assert_eq!(broker.rest_lines(&mut follower).await, expected);
}
