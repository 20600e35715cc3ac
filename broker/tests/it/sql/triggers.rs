//! What the triggers of published tables write to the outbox.

use tokio_postgres::Client;
use walcast::cli::setup::{PublishedTable, setup as set_up};

use super::outbox::{options, written};
use super::setup::table;
use crate::server;

/// A database with these tables, all published.
async fn published(database: &str, ddl: &str, tables: &[PublishedTable]) -> Client {
    server::create(database).await;
    let mut client = server::connect(database, "postgres").await;
    client.batch_execute(ddl).await.unwrap();
    set_up(&mut client, &options(tables)).await.unwrap();
    client
}

/// What these statements write.
async fn of(client: &Client, sql: &str) -> Vec<String> {
    client.batch_execute(sql).await.unwrap();
    written(client).await
}

#[tokio::test]
async fn each_kind_of_change_is_written() {
    let ddl = "CREATE TABLE a (id int PRIMARY KEY, x text, y int GENERATED ALWAYS AS (id * 2) STORED, z text);
        CREATE TABLE wide (x text, z json); ALTER TABLE wide REPLICA IDENTITY FULL;
        CREATE TABLE indexed (x text, k text NOT NULL, l int NOT NULL); CREATE UNIQUE INDEX i ON indexed (l, k) INCLUDE (x);
        ALTER TABLE indexed REPLICA IDENTITY USING INDEX i; CREATE TABLE child () INHERITS (wide)";
    let tables =
        [table("public.a", None), table("public.wide", Some(&["z"])), table("public.indexed", Some(&["x"]))];
    let client = published("triggers_kinds", ddl, &tables).await;

    let columns =
        r#""full": false, "columns": [["id", 23, true], ["x", 25, false], null, ["z", 25, false]]}"#;
    let changes = "INSERT INTO a VALUES (1, NULL, DEFAULT, ''), (2, E'a \"b\\\\c, (d)', DEFAULT, 'é');
        UPDATE a SET x = 'new' WHERE id = 1; UPDATE a SET id = 3 WHERE id = 1; UPDATE a SET id = 3 WHERE id = 3;
        DELETE FROM a WHERE id = 3; UPDATE a SET x = 'nobody' WHERE id = 9; TRUNCATE a";
    let expected = [
        format!(r#"public.a op=insert {{"new": "(1,,2,\"\")", {columns}"#),
        format!(r#"public.a op=insert {{"new": "(2,\"a \"\"b\\\\c, (d)\",4,é)", {columns}"#),
        format!(r#"public.a op=update {{"new": "(1,new,2,\"\")", {columns}"#),
        format!(r#"public.a op=update {{"new": "(3,new,6,\"\")", "old": "(1,,,)", {columns}"#),
        format!(r#"public.a op=update {{"new": "(3,new,6,\"\")", {columns}"#),
        format!(r#"public.a op=delete {{"old": "(3,,,)", {columns}"#),
        "public.a op=truncate {}".to_owned(),
    ];
    assert_eq!(of(&client, changes).await, expected);

    let columns = r#""full": true, "columns": [["z", 114, true]]}"#;
    let changes = r#"INSERT INTO wide VALUES ('x', '[1 ]'); UPDATE wide SET x = 'y'; UPDATE wide SET z = NULL;
        INSERT INTO child VALUES ('child'); DELETE FROM ONLY wide"#;
    let expected = [
        format!(r#"public.wide op=insert {{"new": "(\"[1 ]\")", {columns}"#),
        format!(r#"public.wide op=update {{"new": "(\"[1 ]\")", "old": "(\"[1 ]\")", {columns}"#),
        format!(r#"public.wide op=update {{"new": "()", "old": "(\"[1 ]\")", {columns}"#),
        format!(r#"public.wide op=delete {{"old": "()", {columns}"#),
    ];
    assert_eq!(of(&client, changes).await, expected);

    let columns = r#""full": false, "columns": [["x", 25, false], ["k", 25, true], ["l", 23, true]]}"#;
    let changes =
        "INSERT INTO indexed VALUES ('x', 'k', 1); UPDATE indexed SET x = 'y'; UPDATE indexed SET k = 'K'";
    let expected = [
        format!(r#"public.indexed op=insert {{"new": "(x,k,1)", {columns}"#),
        format!(r#"public.indexed op=update {{"new": "(y,k,1)", {columns}"#),
        format!(r#"public.indexed op=update {{"new": "(y,K,1)", "old": "(,k,1)", {columns}"#),
    ];
    assert_eq!(of(&client, changes).await, expected);
    // What is rolled back was never there, and what comes by replication is a change like any other.
    let changes = "BEGIN; DELETE FROM indexed; SAVEPOINT s; ROLLBACK; SET session_replication_role = replica;
        DELETE FROM indexed; TRUNCATE indexed; RESET session_replication_role";
    let expected = [
        format!(r#"public.indexed op=delete {{"old": "(,K,1)", {columns}"#),
        "public.indexed op=truncate {}".to_owned(),
    ];
    assert_eq!(of(&client, changes).await, expected);
}

#[tokio::test]
async fn a_table_that_is_altered_goes_on() {
    let ddl = "CREATE TABLE part (id int PRIMARY KEY, x text, y int); CREATE TABLE whole (id int PRIMARY KEY, x text, y int)";
    let tables = [table("public.part", Some(&["x"])), table("public.whole", None)];
    let client = published("triggers_altered", ddl, &tables).await;
    // Made plans, and one that has made none yet.
    let changes = "INSERT INTO part VALUES (1, 'x', 1); UPDATE part SET id = 1, x = 'y'; DELETE FROM part;
        INSERT INTO whole VALUES (1, 'x', 1); UPDATE whole SET x = 'y'; DELETE FROM whole";
    assert_eq!(of(&client, changes).await.len(), 6);
    let other = server::connect("triggers_altered", "postgres").await;
    let same = async |part: &str, whole: &str, columns: [&str; 3]| {
        for table in ["part", "whole"] {
            for client in [&client, &other] {
                let change = if table == "part" { part } else { whole };
                let [known, id, more] = columns;
                let named = format!(r#""full": false, "columns": [["{id}", 23, true], {more}]}}"#);
                let known = if table == "part" && !known.is_empty() { known } else { &named };
                let sql = format!(
                    "INSERT INTO {table} VALUES {change}; UPDATE {table} SET {id} = 2; DELETE FROM {table}"
                );
                let lines = of(client, &sql).await;
                assert_eq!(lines.len(), 3, "{lines:?}");
                assert!(lines.iter().all(|line| line.ends_with(known)), "{lines:?} {known}");
                assert!(lines[0].contains(r#"{"new": "(1,"#), "{lines:?}");
                assert!(
                    lines[1].contains(r#"{"new": "(2,"#) && lines[1].contains(r#""old": "(1,"#),
                    "{lines:?}"
                );
                assert!(lines[2].contains(r#"{"old": "(2,"#), "{lines:?}");
            }
        }
    };
    let alter = async |what: &str| {
        let sql = format!("ALTER TABLE part {what}; ALTER TABLE whole {what}");
        other.batch_execute(&sql).await.unwrap();
    };
    alter("RENAME x TO z").await;
    let row = "(1, 'x', 1)";
    same(row, row, ["", "id", r#"["z", 25, false], ["y", 23, false]"#]).await;
    alter("DROP COLUMN z").await;
    same("(1, 1)", "(1, 1)", ["", "id", r#"["y", 23, false]"#]).await;
    alter("RENAME id TO ident").await;
    same("(1, 1)", "(1, 1)", ["", "ident", r#"["y", 23, false]"#]).await;
    // Setup knows better again.
    let mut admin = server::connect("triggers_altered", "postgres").await;
    let tables = [table("public.part", Some(&["ident", "y"])), table("public.whole", None)];
    set_up(&mut admin, &options(&tables)).await.unwrap();
    let known = r#""columns": [["ident", 23, true], ["y", 23, false]]}"#;
    same("(1, 1)", "(1, 1)", [known, "ident", r#"["y", 23, false]"#]).await;
    alter("ADD COLUMN w bool DEFAULT true").await;
    same("(1, 1)", "(1, 1)", [known, "ident", r#"["y", 23, false], ["w", 16, false]"#]).await;
    // Of a type that is another one, whole rows are sent.
    alter("ALTER COLUMN y TYPE text").await;
    same("(1, '1')", "(1, '1')", ["", "ident", r#"["y", 25, false], ["w", 16, false]"#]).await;
}

#[tokio::test]
async fn partitions_write_as_their_root() {
    let ddl = "CREATE TABLE root (id int, x text, k text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
        CREATE TABLE low PARTITION OF root FOR VALUES FROM (0) TO (10);
        CREATE TABLE high (gone int, k text, x text, id int NOT NULL); ALTER TABLE high DROP COLUMN gone;
        ALTER TABLE root ATTACH PARTITION high FOR VALUES FROM (10) TO (20)";
    let mut client = published("triggers_partitions", ddl, &[table("public.root", None)]).await;
    let in_order = r#""full": false, "columns": [["id", 23, true], ["x", 25, false], ["k", 25, false]]}"#;
    let other = r#""full": false, "columns": [["k", 25, false], ["x", 25, false], ["id", 23, true]]}"#;
    let changes = "INSERT INTO root VALUES (1, 'x', 'k'), (11, 'x', 'k'); INSERT INTO low VALUES (2, 'x', 'k');
        INSERT INTO high (id, x) VALUES (12, 'x'); UPDATE root SET id = 13 WHERE id = 1; DELETE FROM high WHERE id = 11;
        TRUNCATE root";
    let expected = [
        format!(r#"public.root op=insert {{"new": "(1,x,k)", {in_order}"#),
        format!(r#"public.root op=insert {{"new": "(k,x,11)", {other}"#),
        format!(r#"public.root op=insert {{"new": "(2,x,k)", {in_order}"#),
        format!(r#"public.root op=insert {{"new": "(,x,12)", {other}"#),
        format!(r#"public.root op=delete {{"old": "(1,,)", {in_order}"#),
        format!(r#"public.root op=insert {{"new": "(k,x,13)", {other}"#),
        format!(r#"public.root op=delete {{"old": "(k,x,11)", {other}"#),
        "public.root op=truncate {}".to_owned(),
    ];
    assert_eq!(of(&client, changes).await, expected);

    // Named columns are found wherever they are, also in a partition that comes later.
    set_up(&mut client, &options(&[table("public.root", Some(&["x"]))])).await.unwrap();
    let changes = "CREATE TABLE later PARTITION OF root FOR VALUES FROM (20) TO (30); INSERT INTO root (id, x) VALUES (12, 'x');
        SET session_replication_role = replica; INSERT INTO root VALUES (21, 'x', 'k'); RESET session_replication_role;
        ALTER TABLE root DETACH PARTITION high; DELETE FROM high";
    let columns = r#""full": false, "columns": [["x", 25, false], ["id", 23, true]]}"#;
    let expected = [
        format!(r#"public.root op=insert {{"new": "(x,12)", {columns}"#),
        format!(r#"public.root op=insert {{"new": "(x,21)", {columns}"#),
    ];
    assert_eq!(of(&client, changes).await, expected);
    assert!(!set_up(&mut client, &options(&[table("public.root", Some(&["x"]))])).await.unwrap().changed());
}

#[tokio::test]
async fn values_look_the_same_whatever_the_session_sets() {
    let ddl = "CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ('glad'); CREATE TABLE app.of_class (id int);
        CREATE TABLE a (id int PRIMARY KEY, t timestamptz, i interval, f float8, b bytea, c regclass, m app.mood, n money)";
    let client = published("triggers_settings", ddl, &[table("public.a", None)]).await;
    let change = "INSERT INTO public.a VALUES (1, '2026-01-02 03:04:05.6+00', '1 day 2 hours', 0.1::float8 + 0.2, '\\x00ff',
        'app.of_class', 'glad', '1.50'); DELETE FROM public.a";
    let plain = of(&client, change).await;
    let new = r#"{"new": "(1,\"2026-01-02 03:04:05.6+00\",\"1 day 02:00:00\",0.30000000000000004,\"\\\\x00ff\",app.of_class,glad,"#;
    assert!(plain[0].contains(new), "{plain:?}");
    let set = "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'SQL, DMY'; SET IntervalStyle = iso_8601;
        SET extra_float_digits = -5; SET bytea_output = escape; SET search_path = app; SET quote_all_identifiers = on;
        SET lc_monetary = 'C.UTF-8'";
    client.batch_execute(set).await.unwrap();
    assert_eq!(of(&client, change).await, plain);
    let zone: String = client.query_one("SHOW TimeZone", &[]).await.unwrap().get(0);
    assert_eq!(zone, "Asia/Tokyo");
}

#[tokio::test]
async fn names_may_be_anything() {
    let long = "n".repeat(63);
    let mut ddl = "CREATE SCHEMA \"my app\"; CREATE SCHEMA \"éé\"; CREATE DOMAIN small AS int;".to_owned();
    let names =
        ["my app.it's $rows$ \\ {}", "éé.ü.. ✓", &format!("public.{long}"), "public.new", "public.%I %s"];
    let columns = ["it's", "a \"b\"", "ü.✓", "\\ $rows$ {} %", "new", "columns", &"c".repeat(63)];
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let mut tables = Vec::new();
    for name in names {
        let fields: Vec<_> = columns.iter().map(|column| format!("{} small", quoted(column))).collect();
        let (schema, table_name) = name.split_once('.').unwrap();
        ddl.push_str(&format!(
            "CREATE TABLE {}.{} ({}, PRIMARY KEY ({}));",
            quoted(schema),
            quoted(table_name),
            fields.join(", "),
            quoted(columns[1])
        ));
        tables.extend([table(name, if tables.len() % 2 == 0 { None } else { Some(&columns) })]);
    }
    let mut client = published("triggers_names", &ddl, &tables).await;
    for name in names {
        let (schema, table_name) = name.split_once('.').unwrap();
        let relation = format!("{}.{}", quoted(schema), quoted(table_name));
        let lines =
            of(&client, &format!("INSERT INTO {relation} VALUES (1, 2, 3, 4, 5, 6, 7); TRUNCATE {relation}"))
                .await;
        assert!(
            lines[0].starts_with(&format!("{name} op=insert {{\"new\": \"(1,2,3,4,5,6,7)\"")),
            "{lines:?}"
        );
        for column in columns {
            assert!(
                lines[0].contains(&format!("[{}, ", serde_json::to_string(column).unwrap())),
                "{column} {lines:?}"
            );
        }
        assert_eq!(lines[1], format!("{name} op=truncate {{}}"));
    }
    assert!(!set_up(&mut client, &options(&tables)).await.unwrap().changed());
}

#[tokio::test]
async fn a_table_may_have_many_columns() {
    let columns: Vec<_> = (0..300).map(|n| format!("c{n} int")).collect();
    let ddl = format!("CREATE TABLE a (id int PRIMARY KEY, {})", columns.join(", "));
    let client = published("triggers_many", &ddl, &[table("public.a", None)]).await;
    let lines = of(&client, "INSERT INTO a (id, c299) VALUES (1, 2)").await;
    assert!(lines[0].contains(&format!(r#""(1{}2)""#, ",".repeat(300))), "{lines:?}");
    assert!(lines[0].ends_with(r#"["c299", 23, false]]}"#), "{lines:?}");
}

#[tokio::test]
async fn a_cast_of_the_tables_owner_is_never_called() {
    let ddl = "CREATE TYPE pair AS (a int, b text); CREATE DOMAIN short AS text;
        CREATE TABLE a (id int PRIMARY KEY, x short, p pair, gone int); CREATE TABLE part (id int PRIMARY KEY, x short, p pair);
        ALTER TABLE a REPLICA IDENTITY FULL";
    let tables = [table("public.a", None), table("public.part", Some(&["x", "p"]))];
    let client = published("triggers_casts", ddl, &tables).await;
    let mut casts = String::new();
    for (name, of) in [("a", "a"), ("part", "part"), ("pair", "pair")] {
        for to in ["text", "json", "jsonb", "varchar"] {
            casts.push_str(&format!(
                "CREATE FUNCTION {name}_to_{to}({of}) RETURNS {to} LANGUAGE plpgsql AS
                 $$ BEGIN RAISE 'called by %', current_user; END $$;
                 CREATE CAST ({of} AS {to}) WITH FUNCTION {name}_to_{to}({of}) AS IMPLICIT;"
            ));
        }
    }
    client.batch_execute(&casts).await.unwrap();
    let check = async |table: &str, expected: [&str; 3]| {
        let changes = "INSERT INTO {} VALUES (1, 'x y', '(1,y)'); UPDATE {} SET id = 2; DELETE FROM {}";
        let lines = of(&client, &changes.replace("{}", table)).await;
        assert_eq!(lines.len(), 3, "{lines:?}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.contains(expected), "{line}");
        }
    };
    let (whole, moved) = (r#""(1,\"x y\",\"(1,y)\",)""#, r#""(2,\"x y\",\"(1,y)\",)""#);
    check("a", [whole, moved, moved]).await;
    let part = r#""(\"x y\",\"(1,y)\",1)""#;
    check("part", [part, &part.replace("1)\"", "2)\""), r#""(,,2)""#]).await;
    // Where the table is not as setup saw it, whole rows are sent.
    client.batch_execute("ALTER TABLE a DROP COLUMN gone; ALTER TABLE part RENAME x TO z").await.unwrap();
    let (whole, moved) = (r#""(1,\"x y\",\"(1,y)\")""#, r#""(2,\"x y\",\"(1,y)\")""#);
    check("a", [whole, moved, moved]).await;
    check("part", [whole, moved, moved]).await;
}

#[tokio::test]
async fn temporary_types_are_looked_for_last() {
    let ddl = "CREATE TABLE a (id int PRIMARY KEY)";
    let client = published("triggers_path", ddl, &[table("public.a", None)]).await;
    let paths = "SELECT proconfig FROM pg_proc
        WHERE pronamespace = 'walcast'::regnamespace AND prosecdef AND proname ~ '^rows_'";
    let rows = client.query(paths, &[]).await.unwrap();
    assert_eq!(rows.len(), 1);
    let settings: Vec<String> = rows[0].get(0);
    assert!(settings.contains(&"search_path=pg_catalog, pg_temp".to_owned()), "{settings:?}");
    // A type that hides one of ours would be the session's own.
    let hidden = "CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (false);
        CREATE DOMAIN pg_temp.jsonb AS pg_catalog.jsonb CHECK (false); CREATE DOMAIN pg_temp.int8 AS pg_catalog.int8 CHECK (false)";
    client.batch_execute(hidden).await.unwrap();
    assert_eq!(of(&client, "INSERT INTO public.a VALUES (1)").await.len(), 1);
}

/// Of 9 MiB: random and the same in all its parts; `bytea` of half that, for it is written as digits; JSON that is stored
/// in a hundredth of that.
const LARGE: [(&str, &str); 4] = [
    ("text", "(SELECT digits FROM random)"),
    ("varchar(10000000)", "repeat('x', 9437184)"),
    ("bytea", "(SELECT decode(digits, 'hex') FROM random)"),
    ("jsonb", "to_jsonb(repeat('x', 9437184))"),
];

/// Inserts a row with a large `x`, changes what is beside it, its key, and deletes it.
fn changes_beside(table: &str, large: &str) -> String {
    format!(
        "INSERT INTO {table} (id, x, y, n) VALUES (1, {large}, 'y', NULL); UPDATE {table} SET y = 'z';
         UPDATE {table} SET id = 2; UPDATE {table} SET x = NULL; DELETE FROM {table}"
    )
}

/// All of these are short, and each has what is expected of it.
#[track_caller]
fn check_rows(lines: &[String], expected: &[&str]) {
    let starts: Vec<_> = lines.iter().map(|line| &line[..line.len().min(300)]).collect();
    assert_eq!(lines.len(), expected.len(), "{starts:?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.len() < 1000 && line.contains(expected), "{expected} {starts:?}");
    }
}

#[tokio::test]
async fn what_is_too_large_is_left_out() {
    let mut ddl = "CREATE DOMAIN long AS text; CREATE TABLE random AS
        SELECT string_agg(md5(i::text), '') AS digits FROM generate_series(1, 294912) i;"
        .to_owned();
    let mut tables = Vec::new();
    for (number, (kind, _)) in LARGE.iter().enumerate() {
        for (name, key) in [("a", "PRIMARY KEY"), ("part", "PRIMARY KEY"), ("wide", "")] {
            let table_name = format!("{name}_{number}");
            ddl.push_str(&format!("CREATE TABLE {table_name} (id int {key}, x {kind}, y long, n int);"));
            tables.push(table(&format!("public.{table_name}"), (name == "part").then_some(&["x", "y"][..])));
        }
        ddl.push_str(&format!("ALTER TABLE wide_{number} REPLICA IDENTITY FULL;"));
    }
    let client = published("triggers_large", &ddl, &tables).await;
    for (number, (_, large)) in LARGE.iter().enumerate() {
        let new = [
            r#""new": "(1,,y,)""#,
            r#""new": "(1,,z,)""#,
            r#""new": "(2,,z,)", "old": "(1,,,)""#,
            r#""new": "(2,,z,)""#,
            r#""old": "(2,,,)""#,
        ];
        let lines = of(&client, &changes_beside(&format!("a_{number}"), large)).await;
        check_rows(&lines, &new);
        let omitted: Vec<_> = lines.iter().map(|line| line.contains(r#""omitted": {"new": [1]}}"#)).collect();
        assert_eq!(omitted, [true, true, true, false, false], "{lines:?}");

        let lines = of(&client, &changes_beside(&format!("part_{number}"), large)).await;
        check_rows(&lines, &[r#""(,y,1)""#, r#""(,z,1)""#, r#""(,z,2)""#, r#""(,z,2)""#, r#""(,,2)""#]);
        let omitted: Vec<_> = lines.iter().map(|line| line.contains(r#""omitted": {"new": [0]}}"#)).collect();
        assert_eq!(omitted, [true, true, true, false, false], "{lines:?}");

        // The old row is sent, too, with what it is short of.
        let lines = of(&client, &changes_beside(&format!("wide_{number}"), large)).await;
        let both = [
            r#""new": "(1,,y,)", "full": true"#,
            r#""new": "(1,,z,)", "old": "(1,,y,)""#,
            r#""new": "(2,,z,)", "old": "(1,,z,)""#,
            r#""new": "(2,,z,)", "old": "(2,,z,)""#,
            r#""old": "(2,,z,)""#,
        ];
        check_rows(&lines, &both);
        let of_both = r#""omitted": {"new": [1], "old": [1]}}"#;
        let omitted = [r#""omitted": {"new": [1]}}"#, of_both, of_both, r#""old": [1]}}"#];
        check_rows(&lines[..4], &omitted);
        assert!(!lines[4].contains("omitted"), "{lines:?}");
    }
    // Of tables that are not as setup saw them, likewise.
    for (number, (_, large)) in LARGE.iter().enumerate().step_by(3) {
        let alter = format!(
            "ALTER TABLE a_{number} ADD COLUMN w text DEFAULT 'w'; ALTER TABLE part_{number} DROP COLUMN n, ADD COLUMN n int;
             ALTER TABLE part_{number} ALTER COLUMN id TYPE bigint"
        );
        client.batch_execute(&alter).await.unwrap();
        for (name, end) in [("a", ",w"), ("part", "")] {
            let lines = of(&client, &changes_beside(&format!("{name}_{number}"), large)).await;
            let expected =
                ["(1,,y,", "(1,,z,", "(2,,z,", "(2,,z,", "(2,,z,"].map(|row| format!("{row}{end})\""));
            check_rows(&lines, &expected.each_ref().map(String::as_str));
            check_rows(
                &lines[..2],
                &[r#""omitted": {"new": [1]}}"#, r#""omitted": {"new": [1], "old": [1]}}"#],
            );
            assert!(!lines[4].contains("omitted"), "{lines:?}");
        }
    }
}

#[tokio::test]
async fn what_is_left_out_is_what_makes_a_row_too_large() {
    let ddl = "CREATE TABLE a (x text, y text, z text, n int); ALTER TABLE a REPLICA IDENTITY FULL;
        CREATE TABLE spread (id int PRIMARY KEY, x jsonb, y jsonb, z text);
        CREATE TABLE keyed (k numeric[] PRIMARY KEY, x text)";
    let tables = [table("public.a", None), table("public.spread", None), table("public.keyed", None)];
    let client = published("triggers_larger", ddl, &tables).await;
    let insert = async |sizes: [usize; 3]| {
        let [x, y, z] = sizes;
        let sql = format!("INSERT INTO a VALUES (repeat('x', {x}), repeat('y', {y}), repeat('z', {z}), 1)");
        let line = of(&client, &sql).await.remove(0);
        let omitted = line.split_once(r#""omitted": {"new": "#).map_or("", |(_, omitted)| omitted);
        (line.len() >> 20, omitted.trim_end_matches('}').to_owned())
    };
    const MIB: usize = 1 << 20;
    // A row of 8 MiB is sent whole: parentheses, commas, quotes and the number belong to it.
    assert_eq!(insert([8 * MIB - 10, 0, 0]).await, (8, String::new()));
    assert_eq!(insert([8 * MIB - 9, 0, 0]).await, (0, "[0]".to_owned()));
    // Each column's share is 2 MiB.
    assert_eq!(insert([3 * MIB, 3 * MIB, MIB]).await, (7, String::new()));
    assert_eq!(insert([3 * MIB, 4 * MIB, 2 * MIB]).await, (2, "[0, 1]".to_owned()));
    // Quotes are doubled, so it only proves too large once it is text; what is below its share goes nevertheless.
    let quotes = "INSERT INTO a VALUES (repeat('\"', 4800000), repeat('y', 2000), '', 1)";
    let line = of(&client, quotes).await.remove(0);
    assert!(line.len() > 2000 && line.contains(r#""omitted": {"new": [0]}"#), "{line:.300}");
    // What looks short and is not: then only what is very short is sent.
    let spread = "INSERT INTO spread VALUES (1, to_jsonb(repeat('x', 5000000)), to_jsonb(repeat('y', 5000000)), repeat('z', 1025));
        UPDATE spread SET y = NULL, z = 'z'";
    let lines = of(&client, spread).await;
    assert!(lines[0].contains(r#""new": "(1,,,)""#) && lines[0].contains(r#""omitted": {"new": [1, 2, 3]}"#));
    assert!(lines[1].len() > 5_000_000 && !lines[1].contains("omitted"));
    // A key that fits into an index and is still too large: it is told that something changed.
    let keyed = "INSERT INTO keyed SELECT array_agg('1e131071'::numeric), 'x' FROM generate_series(1, 70);
        UPDATE keyed SET x = 'y'; DELETE FROM keyed; INSERT INTO keyed VALUES ('{1}', 'x')";
    let omitted = r#""omitted": {"new": [0, 1], "old": [0, 1]}"#;
    check_rows(&of(&client, keyed).await, &[omitted, omitted, omitted, r#""new": "({1},x)""#]);
}

#[tokio::test]
async fn a_type_that_changes_is_never_cast() {
    let ddl =
        "CREATE TABLE a (id int PRIMARY KEY, x text, y varchar, b bytea); CREATE TYPE mood AS ENUM ('glad');
        CREATE TYPE weather AS ENUM ('fine'); CREATE TABLE casts (called_by text)";
    let client = published("triggers_retyped", ddl, &[table("public.a", None)]).await;
    let change = "INSERT INTO public.a VALUES (1, 'glad', 'glad', 'fine'); DELETE FROM public.a";
    assert_eq!(of(&client, change).await.len(), 2);
    let mut alter = "ALTER TABLE a ALTER x TYPE mood USING 'glad', ALTER y TYPE mood USING 'glad',
        ALTER b TYPE weather USING 'fine';"
        .to_owned();
    for (kind, to) in [("mood", "text"), ("weather", "bytea")] {
        alter.push_str(&format!(
            "CREATE FUNCTION cast_{kind}({kind}) RETURNS {to} LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO public.casts VALUES (current_user); RETURN 'called'; END $$;
             CREATE CAST ({kind} AS {to}) WITH FUNCTION cast_{kind}({kind}) AS IMPLICIT;"
        ));
    }
    client.batch_execute(&alter).await.unwrap();
    // One that has made its plans, and one that makes them now.
    let other = server::connect("triggers_retyped", "postgres").await;
    for client in [&client, &other] {
        let whole = "(1,glad,glad,fine)";
        check_rows(&of(client, change).await, &[whole, whole]);
    }
    let casts: i64 = client.query_one("SELECT count(*) FROM casts", &[]).await.unwrap().get(0);
    assert_eq!(casts, 0);
}
