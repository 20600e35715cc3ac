//! What a real server sends, decoded, is what was committed.

use std::sync::Arc;

use walcast::event::{Cell, ChangeKind, TransactionPart};
use walcast::value::{ValueKind, write_json};

use crate::database::{Db, line};
use crate::server;

/// Types, a value of each as SQL, and its JSON.
const VALUES: &[(&str, &str, &str)] = &[
    ("bool", "true", "true"),
    ("int2", "-5", "-5"),
    ("int4", "2147483647", "2147483647"),
    ("int8", "9007199254740991", "9007199254740991"),
    ("int8", "9007199254740993", r#""9007199254740993""#),
    ("float4", "1.1", "1.1"),
    ("float8", "0.1::float8 + 0.2::float8", "0.30000000000000004"),
    ("float8", "1e300", "1e+300"),
    ("float8", "'NaN'", r#""NaN""#),
    ("float8", "'-Infinity'", r#""-Infinity""#),
    ("numeric", "12345678901234567890.10", r#""12345678901234567890.10""#),
    ("money", "12.5", r#""$12.50""#),
    ("text", r#"E'a"b\\c\n'"#, r#""a\"b\\c\n""#),
    ("varchar(9)", "'größe'", r#""größe""#),
    ("char(4)", "'ab'", r#""ab  ""#),
    ("\"char\"", "'x'", r#""x""#),
    ("name", "'n'", r#""n""#),
    ("uuid", "'00000000-0000-0000-0000-00000000000a'", r#""00000000-0000-0000-0000-00000000000a""#),
    ("json", r#"E'{"b": 1,\r\n "b":2.0}'"#, r#"{"b": 1,   "b":2.0}"#),
    ("jsonb", r#"'{"b": [1, null]}'"#, r#"{"b": [1, null]}"#),
    ("timestamp", "'2026-01-31 12:00:00.123456'", r#""2026-01-31T12:00:00.123456""#),
    ("timestamp", "'infinity'", r#""infinity""#),
    ("timestamptz", "'2026-01-31 12:00:00+02'", r#""2026-01-31T10:00:00Z""#),
    ("timestamptz", "'0044-03-15 12:00:00+00 BC'", r#""0044-03-15 12:00:00+00 BC""#),
    ("date", "'2026-01-31'", r#""2026-01-31""#),
    ("time", "'12:00:00.5'", r#""12:00:00.5""#),
    ("timetz", "'12:00:00+02'", r#""12:00:00+02""#),
    ("interval", "'1 month 2 days -00:00:01'", r#""1 mon 2 days -00:00:01""#),
    ("bytea", r"'\x00ff10'", r#""AP8Q""#),
    ("inet", "'10.0.0.1'", r#""10.0.0.1""#),
    ("cidr", "'10.0.0.0/8'", r#""10.0.0.0/8""#),
    ("macaddr", "'08:00:2b:01:02:03'", r#""08:00:2b:01:02:03""#),
    ("bit(3)", "B'101'", r#""101""#),
    ("point", "'(1,2)'", r#""(1,2)""#),
    ("box", "'(1,1),(0,0)'", r#""(1,1),(0,0)""#),
    ("tsvector", "'a b'", r#""'a' 'b'""#),
    ("oid", "7", r#""7""#),
    ("regclass", "'public.all_values'::regclass", r#""public.all_values""#),
    ("int2vector", "'1 2'", r#""1 2""#),
    ("int4range", "'[1,5)'", r#""[1,5)""#),
    ("int4multirange", "'{[1,5),[7,8)}'", r#""{[1,5),[7,8)}""#),
    ("int4[]", "'{1,NULL,3}'", "[1,null,3]"),
    ("int4[]", "'{}'", "[]"),
    ("int4[]", "'[0:2]={1,2,3}'", "[1,2,3]"),
    ("int8[]", "'{{1,9007199254740993},{3,4}}'", r#"[[1,"9007199254740993"],[3,4]]"#),
    (
        "text[]",
        r#"ARRAY['a', NULL, 'NULL', '', 'b,c', 'q"\', E'x\ny', '{}']"#,
        r#"["a",null,"NULL","","b,c","q\"\\","x\ny","{}"]"#,
    ),
    ("bool[]", "'{t,f}'", "[true,false]"),
    ("jsonb[]", r#"ARRAY['{"a": "}"}', '1']::jsonb[]"#, r#"[{"a": "}"},1]"#),
    ("timestamptz[]", "ARRAY['2026-01-31 12:00:00+00']::timestamptz[]", r#"["2026-01-31T12:00:00Z"]"#),
    ("bytea[]", r"ARRAY['\x00ff10']::bytea[]", r#"["AP8Q"]"#),
    ("box[]", "'{(1,1),(0,0);(2,2),(1,1)}'", r#"["(1,1),(0,0)","(2,2),(1,1)"]"#),
    ("mood", "'so so'", r#""so so""#),
    ("mood[]", "'{\"so so\",happy}'", r#"["so so","happy"]"#),
    ("percent", "50", "50"),
    ("half", "25", "25"),
    ("half[]", "ARRAY[25, NULL]::half[]", "[25,null]"),
    ("pair", "'{1,2}'", "[1,2]"),
    ("pair[]", "ARRAY['{1,2}'::pair, '{3,4}'::pair]", "[[1,2],[3,4]]"),
    ("boxes", "'{(1,1),(0,0);(2,2),(1,1)}'", r#"["(1,1),(0,0)","(2,2),(1,1)"]"#),
    ("place", "ROW(1, 'a b')", r#""(1,\"a b\")""#),
    ("span", "'[1,2]'", r#""[1,2]""#),
];

#[tokio::test]
async fn every_type_of_value_is_the_same_streamed_and_seeded() {
    let columns: Vec<_> = VALUES.iter().enumerate().map(|(i, (of, ..))| format!("c{i} {of}")).collect();
    let ddl = format!(
        "CREATE TYPE mood AS ENUM ('so so', 'happy'); CREATE DOMAIN percent AS int4 CHECK (VALUE <= 100);
         CREATE DOMAIN half AS percent CHECK (VALUE <= 50); CREATE DOMAIN pair AS int4[];
         CREATE DOMAIN boxes AS box[]; CREATE TYPE place AS (x int, name text);
         CREATE TYPE span AS RANGE (subtype = float8);
         CREATE TABLE all_values (
             gone int, id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED, {});
         ALTER TABLE all_values DROP COLUMN gone;
         CREATE PUBLICATION p FOR TABLE all_values",
        columns.join(", ")
    );
    let db = Db::new("every_type", &ddl).await;
    let values: Vec<_> = VALUES.iter().map(|(_, sql, _)| *sql).collect();
    let names: Vec<_> = (0..VALUES.len()).map(|i| format!("c{i}")).collect();
    db.run(&format!(
        "INSERT INTO all_values (id, {}) VALUES (1, {}); INSERT INTO all_values (id) VALUES (2)",
        names.join(", "),
        values.join(", ")
    ))
    .await;
    let parts = db.parts().await;
    let seeded = db.seed(&["public.all_values"]).await.unwrap();

    let [piece] = &seeded.pieces[..] else { panic!("{} pieces", seeded.pieces.len()) };
    let streamed: Vec<_> = parts
        .iter()
        .flat_map(|part| &part.changes)
        .map(|change| match &change.kind {
            ChangeKind::Insert { relation, new } => (Arc::clone(relation), new.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(*streamed[0].0, *piece.relation);
    assert_eq!(
        streamed.iter().map(|(_, row)| row).collect::<Vec<_>>(),
        piece.rows.iter().collect::<Vec<_>>()
    );

    let row = &piece.rows[0];
    for (i, (of, sql, expected)) in VALUES.iter().enumerate() {
        let mut out = Vec::new();
        let Cell::Text(text) = &row[i + 1] else { panic!("{of} {sql}: no text") };
        write_json(&piece.relation.columns[i + 1].kind, text, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), *expected, "{of} {sql}");
    }
    assert!(piece.rows[1][1..].iter().all(|cell| *cell == Cell::Null));
}

#[tokio::test]
async fn old_rows_and_unchanged_values_come_as_the_replica_identity_says() {
    let db = Db::new(
        "replica_identity",
        "CREATE TABLE by_key (id int PRIMARY KEY, n int, doc text);
         CREATE TABLE by_full (id int PRIMARY KEY, n int); ALTER TABLE by_full REPLICA IDENTITY FULL;
         CREATE TABLE by_index (id int PRIMARY KEY, host text NOT NULL);
         CREATE UNIQUE INDEX by_host ON by_index (host) INCLUDE (id);
         ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_host;
         ALTER TABLE by_key ALTER doc SET STORAGE EXTERNAL;
         CREATE TABLE by_nothing (id int PRIMARY KEY DEFERRABLE);
         CREATE PUBLICATION p FOR TABLE by_key, by_full, by_index;
         CREATE PUBLICATION inserts FOR TABLE by_nothing WITH (publish = 'insert')",
    )
    .await;
    db.run("INSERT INTO by_key VALUES (1, 1, repeat('x', 5000))").await;
    let parts = db.parts().await;
    assert!(line(&parts[0].changes[0]).len() > 5000);

    db.run("UPDATE by_key SET n = 2").await;
    db.run("UPDATE by_key SET id = 3").await;
    db.run("DELETE FROM by_key").await;
    db.run("INSERT INTO by_full VALUES (1, NULL)").await;
    db.run("UPDATE by_full SET n = 2").await;
    db.run("DELETE FROM by_full").await;
    db.run("INSERT INTO by_index VALUES (1, 'a')").await;
    db.run("UPDATE by_index SET host = 'b'").await;
    db.run("DELETE FROM by_index").await;
    let lines = db.lines().await;
    let expected = [
        "1 update public.by_key {id: 1, n: 2, doc: -}",
        "1 update public.by_key key {id: 1, n: null, doc: null} to {id: 3, n: 2, doc: -}",
        "1 delete public.by_key key {id: 3, n: null, doc: null}",
        "1 insert public.by_full {id: 1, n: null}",
        "1 update public.by_full full {id: 1, n: null} to {id: 1, n: 2}",
        "1 delete public.by_full full {id: 1, n: 2}",
        r#"1 insert public.by_index {id: 1, host: "a"}"#,
        r#"1 update public.by_index key {id: null, host: "a"} to {id: 1, host: "b"}"#,
        r#"1 delete public.by_index key {id: null, host: "b"}"#,
    ];
    assert_eq!(lines, expected);

    // Keys, as the stream flags them and as seeding finds them.
    db.run("INSERT INTO by_key VALUES (1, 1); INSERT INTO by_full VALUES (1); INSERT INTO by_index VALUES (1, 'a')")
        .await;
    let parts = db.parts().await;
    let seeded = db.seed(&["public.by_key", "public.by_full", "public.by_index"]).await.unwrap();
    for (change, piece) in parts.iter().flat_map(|part| &part.changes).zip(&seeded.pieces) {
        let ChangeKind::Insert { relation, .. } = &change.kind else { panic!("{change:?}") };
        assert_eq!(**relation, *piece.relation);
    }
    assert_eq!(seeded.pieces.len(), 3);
    db.run("INSERT INTO by_nothing VALUES (1)").await;
    let seeded = db.seed(&["public.by_nothing"]).await.unwrap();
    assert!(!seeded.pieces[0].relation.columns[0].key);
}

#[tokio::test]
async fn ordinals_are_the_same_on_each_replay() {
    let db = Db::new(
        "ordinals",
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);
         CREATE TABLE elsewhere (id int); CREATE PUBLICATION p FOR TABLE a, b",
    )
    .await;
    db.run(
        "BEGIN; INSERT INTO a VALUES (1);
         SELECT pg_logical_emit_message(true, 'someone', 'x');
         SELECT pg_logical_emit_message(false, 'walcast:secret', 'at once');
         INSERT INTO elsewhere VALUES (1);
         SELECT pg_logical_emit_message(true, 'walcast:forged', 'x');
         SELECT pg_logical_emit_message(true, 'walcast:secret', E't\\n{\"a\": 1}');
         TRUNCATE a, elsewhere, b;
         INSERT INTO b VALUES (1); COMMIT",
    )
    .await;
    db.run("BEGIN; SELECT pg_logical_emit_message(true, 'walcast:secret', 'undone'); ROLLBACK").await;
    let peeked = db.bodies("pg_logical_slot_peek_binary_changes").await;
    let again = db.bodies("pg_logical_slot_peek_binary_changes").await;
    let positions = |parts: Vec<TransactionPart>| -> Vec<_> {
        let changes =
            parts.iter().flat_map(|part| part.changes.iter().map(|c| (Arc::clone(&part.commit), c.clone())));
        changes.collect()
    };
    assert_eq!(positions(db.assemble(peeked).await), positions(db.assemble(again).await));
    let expected = [
        "1 insert public.a {id: 1}",
        "4 message t\n{\"a\": 1}",
        "5 truncate public.a",
        "5 truncate public.b",
        "6 insert public.b {id: 1}",
    ];
    assert_eq!(db.lines().await, expected);
}

#[tokio::test]
async fn partitions_appear_as_their_root() {
    let db = Db::new(
        "partitions",
        "CREATE TABLE vms (region text, id int, extra text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
         CREATE TABLE eu PARTITION OF vms FOR VALUES IN ('eu');
         CREATE TABLE us (extra text, id int NOT NULL, region text NOT NULL);
         ALTER TABLE vms ATTACH PARTITION us FOR VALUES IN ('us');
         CREATE PUBLICATION p FOR TABLE vms WITH (publish_via_partition_root = true)",
    )
    .await;
    db.run("INSERT INTO vms VALUES ('eu', 1, NULL), ('us', 2, 'x')").await;
    db.run("UPDATE vms SET region = 'us' WHERE id = 1").await;
    db.run("DELETE FROM us WHERE id = 2").await;
    let seeded = db.seed(&["public.vms"]).await.unwrap();
    assert_eq!(seeded.lines(), [r#"public.vms {region: "us", id: 1, extra: null}"#]);
    // Postgres tells nobody of this when partitions are published as their root.
    db.run("TRUNCATE us").await;
    db.run("TRUNCATE vms").await;
    let lines = db.lines().await;
    let expected = [
        r#"1 insert public.vms {region: "eu", id: 1, extra: null}"#,
        r#"2 insert public.vms {region: "us", id: 2, extra: "x"}"#,
        r#"1 delete public.vms key {region: "eu", id: 1, extra: null}"#,
        r#"2 insert public.vms {region: "us", id: 1, extra: null}"#,
        r#"1 delete public.vms key {region: "us", id: 2, extra: null}"#,
        "1 truncate public.vms",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn transactions_come_whole_in_commit_order() {
    let db = Db::new("transactions", "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
        .await;
    let other = server::connect(&db.name, "postgres").await;
    other.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    let xid: String = other.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap().get(0);
    db.run(
        "BEGIN; INSERT INTO t VALUES (2); SAVEPOINT s; INSERT INTO t VALUES (3); ROLLBACK TO s;
            SAVEPOINT r; INSERT INTO t VALUES (4); RELEASE r; INSERT INTO t VALUES (5); COMMIT",
    )
    .await;
    db.run("BEGIN; INSERT INTO t VALUES (6); PREPARE TRANSACTION 'transactions'").await;
    other.batch_execute("SAVEPOINT s; INSERT INTO t VALUES (7); COMMIT").await.unwrap();
    db.run("COMMIT PREPARED 'transactions'").await;
    let before: i64 =
        db.sql.query_one("SELECT (extract(epoch FROM now()) * 1000000)::int8", &[]).await.unwrap().get(0);
    let parts = db.parts().await;
    let ids: Vec<Vec<_>> = parts.iter().map(|part| part.changes.iter().map(line).collect()).collect();
    let insert = |ordinal: u64, id: u64| format!("{ordinal} insert public.t {{id: {id}}}");
    assert_eq!(
        ids,
        [
            vec![insert(1, 2), insert(2, 4), insert(3, 5)],
            vec![insert(1, 1), insert(2, 7)],
            vec![insert(1, 6)]
        ]
    );
    assert_eq!(parts[1].commit.xid, xid.parse::<u64>().unwrap() as u32);
    assert!(parts.windows(2).all(|two| two[0].commit.lsn < two[1].commit.lsn));
    assert!(parts.iter().all(|part| part.end > part.commit.lsn));
    let minute = 60_000_000;
    assert!(parts.iter().all(|part| (before - minute..=before).contains(&part.commit.time_us)));
}

#[tokio::test]
async fn tables_and_types_are_decoded_as_they_were() {
    let db = Db::new(
        "history",
        "CREATE DOMAIN short AS int; CREATE TABLE t (id int PRIMARY KEY, n short);
         CREATE PUBLICATION p FOR TABLE t",
    )
    .await;
    db.run("INSERT INTO t VALUES (1, 1)").await;
    db.run("ALTER TABLE t ADD flag bool; INSERT INTO t VALUES (2, 2, true)").await;
    db.run("ALTER TABLE t RENAME n TO m; ALTER TABLE t RENAME TO u; UPDATE u SET flag = false WHERE id = 2")
        .await;
    db.run("DROP TABLE u; DROP DOMAIN short").await;
    let lines = db.lines().await;
    let expected = [
        r#"1 insert public.t {id: 1, n: "1"}"#,
        r#"1 insert public.t {id: 2, n: "2", flag: true}"#,
        r#"1 update public.u {id: 2, m: "2", flag: false}"#,
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn kinds_of_builtin_types_agree_with_the_catalog() {
    let client = server::connect("postgres", "postgres").await;
    let sql = "SELECT oid, typarray, typdelim::text FROM pg_type WHERE typarray <> 0 AND typnamespace = 11";
    let mut known = 0;
    for row in client.query(sql, &[]).await.unwrap() {
        let (oid, array): (u32, u32) = (row.get(0), row.get(1));
        let delimiter = row.get::<_, &str>(2).chars().next().unwrap();
        let kind = ValueKind::of_builtin(oid);
        known += usize::from(kind.is_some());
        let expected = kind.map(|kind| ValueKind::Array(Box::new(kind), delimiter));
        assert_eq!(ValueKind::of_builtin(array), expected, "{oid}");
    }
    assert!(known > 30);
}
