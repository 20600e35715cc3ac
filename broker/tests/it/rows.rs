//! Rows of every shape: odd topics, all types, partitions, and tables that change under the stream.

use serde_json::{Value, json};
use walcast_client::Transport;

use crate::broker::{Broker, MARK, Way};

#[tokio::test]
async fn odd_values_in_a_topic_are_encoded_or_counted() {
    let ddl = "CREATE TABLE odd (id int PRIMARY KEY, name text, nick varchar)";
    let rule = "[[table]]\nname = \"public.odd\"\ntopic = \"odd/{name}/x\"\ncolumns = [\"id\"]";
    let broker = Broker::start("rows_odd", ddl, rule).await;
    let mut all = broker.follow(Transport::Sse, &["odd/**", MARK]).await;
    let dropped = async |reason: &str| {
        broker
            .metric(&format!(r#"walcast_router_dropped_total{{table="public.odd",reason="{reason}"}}"#))
            .await
    };
    let mut id = 0;
    let mut check = async |name: &str, topic: Result<&str, &str>| {
        id += 1;
        let before = dropped(topic.err().unwrap_or("none")).await;
        broker.run(&format!("INSERT INTO odd VALUES ({id}, {name})")).await;
        // One transaction, so that a row that went wrong would take the next one with it.
        broker.run(&format!("INSERT INTO odd VALUES (-{id}, {name}), (1000 + {id}, 'next')")).await;
        let events = broker.rest(&mut all).await;
        let seen: Vec<_> =
            events.iter().map(|event| (event.topic.as_str(), event.data["id"].clone())).collect();
        let next = ("odd/next/x", json!(1000 + id));
        match topic {
            Ok(topic) => assert_eq!(seen, [(topic, json!(id)), (topic, json!(-id)), next], "{name}"),
            Err(reason) => {
                assert_eq!(seen, [next], "{name}");
                assert_eq!(dropped(reason).await - before, 2.0, "{name}");
            }
        }
    };
    check("NULL", Err("null")).await;
    check("''", Err("empty")).await;
    check("repeat('x', 300)", Err("too_long")).await;
    check("repeat('ü', 130)", Err("too_long")).await;
    let long = format!("odd/{}/x", "x".repeat(249));
    check("repeat('x', 249)", Ok(&long)).await;
    check("'a b/c'", Ok("odd/a%20b%2Fc/x")).await;
    check("'100%'", Ok("odd/100%25/x")).await;
    check("'*#+?'", Ok("odd/%2A%23%2B%3F/x")).await;
    check("'..'", Ok("odd/%2E%2E/x")).await;
    check(r"E'\t\n\u00a0\u3000'", Ok("odd/%09%0A%C2%A0%E3%80%80/x")).await;
    check("'größe-日本'", Ok("odd/größe-日本/x")).await;
    check(r#"'"\{}<>&='"#, Ok(r#"odd/"\{}<>&=/x"#)).await;
}

/// Types, a value of each, and its JSON.
const VALUES: &[(&str, &str, &str)] = &[
    ("bool", "true", "true"),
    ("int2", "-5", "-5"),
    ("int4", "2147483647", "2147483647"),
    ("int8", "9007199254740991", "9007199254740991"),
    ("int8", "9007199254740993", r#""9007199254740993""#),
    ("float4", "1.1", "1.1"),
    ("float8", "1e300", "1e+300"),
    ("float8", "'NaN'", r#""NaN""#),
    ("float8", "'Infinity'", r#""Infinity""#),
    ("numeric", "12345678901234567890.10", r#""12345678901234567890.10""#),
    ("text", r#"E'a"b\\c\n\u2028'"#, "\"a\\\"b\\\\c\\n\u{2028}\""),
    ("char(4)", "'ab'", r#""ab  ""#),
    ("uuid", "'00000000-0000-0000-0000-00000000000A'", r#""00000000-0000-0000-0000-00000000000a""#),
    ("json", r#"E'{"b": 1,\n "b":2.0}'"#, r#"{"b": 1,  "b":2.0}"#),
    ("jsonb", r#"'{"b": [1, null, "x"]}'"#, r#"{"b": [1, null, "x"]}"#),
    ("timestamp", "'2026-01-31 12:00:00.123456'", r#""2026-01-31T12:00:00.123456""#),
    ("timestamptz", "'2026-01-31 12:00:00+02'", r#""2026-01-31T10:00:00Z""#),
    ("timestamptz", "'-infinity'", r#""-infinity""#),
    ("date", "'2026-01-31'", r#""2026-01-31""#),
    ("interval", "'1 month 2 days'", r#""1 mon 2 days""#),
    ("bytea", r"'\x00ff10'", r#""AP8Q""#),
    ("inet", "'10.0.0.1'", r#""10.0.0.1""#),
    ("int4[]", "'{1,NULL,3}'", "[1,null,3]"),
    ("text[]", r#"ARRAY['a', NULL, 'NULL', 'b,"c']"#, r#"["a",null,"NULL","b,\"c"]"#),
    ("int8[]", "'{{1,2},{3,4}}'", "[[1,2],[3,4]]"),
    ("mood", "'so so'", r#""so so""#),
    ("mood[]", "'{happy}'", r#"["happy"]"#),
    ("percent", "50", "50"),
    ("int4range", "'[1,5)'", r#""[1,5)""#),
    ("text", "NULL", "null"),
];

#[tokio::test]
async fn values_are_told_by_their_type_streamed_and_seeded_alike() {
    let columns: String = (0..).zip(VALUES).map(|(i, (of, ..))| format!(", c{i} {of}")).collect();
    let values: String = VALUES.iter().map(|(_, value, _)| format!(", {value}")).collect();
    let expected: String = (0..).zip(VALUES).map(|(i, (.., json))| format!(",\"c{i}\":{json}")).collect();
    let expected = format!("{{\"id\":1{expected}}}");
    let ddl = format!(
        "CREATE TYPE mood AS ENUM ('so so', 'happy'); CREATE DOMAIN percent AS int4;
         CREATE TABLE kinds (id int PRIMARY KEY{columns});
         ALTER DATABASE rows_values SET timezone = 'Asia/Tokyo'; ALTER DATABASE rows_values SET datestyle = 'SQL, DMY';
         ALTER DATABASE rows_values SET bytea_output = 'escape'; ALTER DATABASE rows_values SET extra_float_digits = -3;
         ALTER DATABASE rows_values SET intervalstyle = 'iso_8601'"
    );
    let rule = "[[table]]\nname = \"public.kinds\"\ntopic = \"kinds/{id}\"\nstate = true";
    let broker = Broker::start("rows_values", &ddl, rule).await;
    let start = broker.http.get("/v1/events?topic=kinds/1&wait=0").await.cursor();
    broker.run(&format!("INSERT INTO kinds VALUES (1{values})")).await;
    let event = broker.http.get(&format!("/v1/events?topic=kinds/1&after={start}")).await.body;
    assert!(event.contains(&format!("\"data\":{expected}")), "{event}\n{expected}");
    assert_eq!(broker.http.get("/v1/state/kinds/1").await.body, expected);
    let broker = broker.restart().await;
    assert_eq!(broker.http.get("/v1/state/kinds/1").await.body, expected);
    // So alike that an update that changes nothing makes no event.
    let mut follower = broker.follow(Transport::Poll, &["kinds/*", MARK]).await;
    broker.run("UPDATE kinds SET c1 = c1").await;
    assert_eq!(broker.rest_lines(&mut follower).await, [""; 0]);
}

#[tokio::test]
async fn partitions_come_and_go_and_publish_as_their_root() {
    let ddl = "CREATE TABLE jobs (id int, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE jobs_1 PARTITION OF jobs FOR VALUES FROM (1) TO (2);
        CREATE TABLE jobs_2 (day int NOT NULL, id int NOT NULL, PRIMARY KEY (id, day))";
    let rule = "[[table]]\nname = \"public.jobs\"\ntopic = \"jobs/{day}\"\ncolumns = [\"id\", \"day\"]";
    let broker = Broker::start("rows_partitions", ddl, rule).await;
    let mut all = broker.follow(Transport::WebSocket, &["jobs/*", MARK]).await;
    let mut check = async |sql: &str, expected: &[&str]| {
        broker.run(sql).await;
        assert_eq!(broker.rest_lines(&mut all).await, expected, "{sql}");
    };
    check("INSERT INTO jobs VALUES (1, 1)", &[r#"jobs/1 insert {"day":1,"id":1}"#]).await;
    check("INSERT INTO jobs_1 VALUES (2, 1)", &[r#"jobs/1 insert {"day":1,"id":2}"#]).await;
    check("INSERT INTO jobs_2 VALUES (2, 3)", &[]).await;
    check(
        "ALTER TABLE jobs ATTACH PARTITION jobs_2 FOR VALUES FROM (2) TO (3); INSERT INTO jobs VALUES (4, 2)",
        &[r#"jobs/2 insert {"day":2,"id":4}"#],
    )
    .await;
    check(
        "UPDATE jobs SET day = 2 WHERE id = 1",
        &[r#"jobs/1 delete {"day":1,"id":1}"#, r#"jobs/2 insert {"day":2,"id":1}"#],
    )
    .await;
    check(
        "INSERT INTO jobs VALUES (5, 1); ALTER TABLE jobs DETACH PARTITION jobs_1; INSERT INTO jobs_1 VALUES (6, 1)",
        &[r#"jobs/1 insert {"day":1,"id":5}"#],
    )
    .await;
    check(
        "CREATE TABLE jobs_3 PARTITION OF jobs FOR VALUES FROM (3) TO (4); INSERT INTO jobs VALUES (7, 3)",
        &[r#"jobs/3 insert {"day":3,"id":7}"#],
    )
    .await;
}

#[tokio::test]
async fn a_table_may_change_under_the_stream() {
    let ddl = "CREATE TABLE items (id int PRIMARY KEY, a text); CREATE TABLE other (id int PRIMARY KEY)";
    let rule = "[[table]]\nname = \"public.items\"\ntopic = \"items/{id}\"\n
        [[table]]\nname = \"public.other\"\ntopic = \"other/{id}\"";
    let broker = Broker::start("rows_altered", ddl, rule).await;
    let mut all = broker.follow(Transport::Sse, &["items/*", "other/*", MARK]).await;
    let mut check = async |sql: &str, expected: &[Value]| {
        broker.run(sql).await;
        let events = broker.rest(&mut all).await;
        let seen: Vec<_> = events.into_iter().map(|event| event.data).collect();
        assert_eq!(seen, expected, "{sql}");
    };
    check(
        "INSERT INTO items VALUES (1, 'x'); ALTER TABLE items ADD COLUMN b int DEFAULT 7;
         INSERT INTO items VALUES (2, 'y'); UPDATE items SET a = 'z' WHERE id = 1",
        &[json!({"id": 1, "a": "x"}), json!({"id": 2, "a": "y", "b": 7}), json!({"id": 1, "a": "z", "b": 7})],
    )
    .await;
    check("ALTER TABLE items RENAME COLUMN a TO c", &[]).await;
    check(
        "INSERT INTO items VALUES (3, 'x', 1); ALTER TABLE items ALTER COLUMN c TYPE int USING 5;
         ALTER TABLE items DROP COLUMN b; UPDATE items SET c = 6 WHERE id = 3",
        &[json!({"id": 3, "c": "x", "b": 1}), json!({"id": 3, "c": 6})],
    )
    .await;
    // What was committed before, or with, the end of a table still arrives.
    check(
        "INSERT INTO items VALUES (4, 1); DROP TABLE items; INSERT INTO other VALUES (1)",
        &[json!({"id": 4, "c": 1}), json!({"id": 1})],
    )
    .await;
    check("INSERT INTO other VALUES (2)", &[json!({"id": 2})]).await;
}

#[tokio::test]
async fn what_a_trigger_leaves_out_is_named() {
    let ddl = "CREATE TABLE large (id int PRIMARY KEY, t text, b bytea, j jsonb, note text);
        CREATE TABLE wide (id int, t text, note text); ALTER TABLE wide REPLICA IDENTITY FULL";
    let rules = "[[table]]\nname = 'public.large'\ntopic = 'row/{id}'\n
        [[table]]\nname = 'public.wide'\ntopic = 'wide/{id}'\n";
    let broker = Way::Outbox.start("rows_large", ddl, rules).await;
    let mut all = broker.follow(Transport::Sse, &["row/*", "wide/*", MARK]).await;
    let mut check = async |sql: &str, expected: &[(&str, Value, &str)]| {
        broker.run(sql).await;
        let events = broker.rest(&mut all).await;
        let seen: Vec<_> = events
            .iter()
            .map(|event| (event.topic.as_str(), event.data.clone(), event.omitted.join(" ")))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(topic, data, omitted)| (*topic, data.clone(), (*omitted).to_owned()))
            .collect();
        assert_eq!(seen, expected, "{sql}");
    };
    let small = |note: &str| json!({"id": 1, "b": "AA==", "j": [1], "note": note});
    let insert = "INSERT INTO large VALUES (1, repeat('x', 9437184), '\\x00', '[1]', NULL); UPDATE large SET note = 'n'";
    let mut first = small("");
    first["note"] = Value::Null;
    check(insert, &[("row/1", first, "t"), ("row/1", small("n"), "t")]).await;
    let more =
        "UPDATE large SET t = 't', b = decode(repeat('00', 5242880), 'hex'); UPDATE large SET b = NULL,
        j = to_jsonb(repeat('x', 9437184)); UPDATE large SET j = '{}'; DELETE FROM large";
    let expected = [
        ("row/1", json!({"id": 1, "t": "t", "j": [1], "note": "n"}), "b"),
        ("row/1", json!({"id": 1, "t": "t", "b": null, "note": "n"}), "j"),
        ("row/1", json!({"id": 1, "t": "t", "b": null, "j": {}, "note": "n"}), ""),
        ("row/1", json!({"id": 1}), ""),
    ];
    check(more, &expected).await;
    let wide = "INSERT INTO wide VALUES (1, repeat('x', 9437184), 'n'); UPDATE wide SET note = 'm'; DELETE FROM wide";
    let row = |note: &str| ("wide/1", json!({"id": 1, "note": note}), "t");
    check(wide, &[row("n"), row("m"), row("m")]).await;
}
