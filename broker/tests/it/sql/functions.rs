//! `walcast.publish`, `walcast.notify`, `walcast.publish_once` and who may call them.

use std::collections::BTreeSet;

use tokio_postgres::Client;
use walcast::cli::setup::SetupOptions;
use walcast_wire::{Topic, TopicError, encode_segment};

use crate::server::{ADMIN, Server};
use crate::wait::until;

/// A message as the floor slot shows it: prefix and content.
pub(super) type Message = (String, String);

/// All messages in the WAL since setup.
pub(super) async fn messages(client: &Client) -> Vec<Message> {
    let sql = "SELECT data FROM pg_logical_slot_peek_binary_changes('walcast', NULL, NULL,
        'proto_version', '1', 'publication_names', 'walcast', 'messages', 'true')";
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().filter_map(|row| parse_message(row.get(0))).collect()
}

fn parse_message(record: &[u8]) -> Option<Message> {
    let rest = record.strip_prefix(b"M")?;
    assert_eq!(rest[0], 1, "the message is transactional");
    let (prefix, rest) = rest[9..].split_at(rest[9..].iter().position(|byte| *byte == 0)?);
    Some((String::from_utf8(prefix.into()).unwrap(), String::from_utf8(rest[5..].into()).unwrap()))
}

async fn started() -> (Server, Client) {
    let server = Server::tuned(&[]).await;
    server.set_up(&SetupOptions::default()).await.unwrap();
    let client = server.admin().await;
    (server, client)
}

async fn error(client: &Client, sql: &str) -> (String, String) {
    let error = client.batch_execute(sql).await.unwrap_err();
    let db = error.as_db_error().unwrap();
    (db.code().code().into(), db.message().into())
}

/// Characters that topics forbid or that could be mistaken for such, beside all of ASCII.
fn characters() -> Vec<char> {
    let odd = ('\u{80}'..=char::MAX).filter(|c| c.is_whitespace() || c.is_control());
    let near = ['\u{180e}', '\u{200b}', '\u{200d}', '\u{2060}', '\u{feff}', '\u{ad}', '\u{2027}', '\u{202a}'];
    let sample = ('\u{a1}'..=char::MAX).step_by(9973);
    ('\u{1}'..='\u{7f}').chain(odd).chain(near).chain(sample).collect()
}

fn texts() -> Vec<String> {
    let mut texts: BTreeSet<String> = BTreeSet::new();
    for c in characters() {
        for text in [format!("{c}"), format!("a{c}"), format!("{c}b"), format!("a/{c}/b"), format!("%2F{c}")]
        {
            texts.insert(text);
        }
    }
    for text in [
        "",
        ".",
        "..",
        "...",
        "a/..",
        "./a",
        "a/.b",
        "a/..b",
        "a//b",
        "/",
        "//",
        "a/",
        "/a",
        "a%2Fb",
        "%",
        "%2",
        "%2f",
        "%2G",
        "a%é",
        "%%41",
        "%41%",
        ".%2E",
        "größe/日本",
        "a/b/c/d/e/f",
        "a\nb",
        "\\",
        "'",
        "E'\\n'",
        "$1",
    ] {
        texts.insert(text.into());
    }
    for length in [254, 255, 256] {
        texts.insert("x".repeat(length));
        texts.insert("é".repeat(length / 2) + &"x".repeat(length % 2));
    }
    // A fixed sequence of unlike texts over the characters that matter.
    let alphabet: Vec<char> = "ab.%/2FfE+ \u{a0}\u{2028}é*-_:@~".chars().collect();
    let mut seed = 1_u64;
    for _ in 0..5_000 {
        let mut text = String::new();
        for _ in 0..=(seed >> 60) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push(alphabet[(seed >> 33) as usize % alphabet.len()]);
        }
        texts.insert(text);
    }
    texts.into_iter().collect()
}

#[tokio::test]
async fn sql_and_rust_agree_on_topics() {
    let (_server, client) = started().await;
    let helper = "CREATE FUNCTION try_publish(topic text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN
        PERFORM walcast.publish(topic, '1'); RETURN 'ok';
        EXCEPTION WHEN invalid_parameter_value THEN RETURN SQLERRM; END $$";
    client.batch_execute(helper).await.unwrap();
    let texts = texts();
    let sql = "SELECT t, try_publish(t), walcast.encode_segment(t) FROM unnest($1::text[]) WITH ORDINALITY AS u (t, i)
        ORDER BY i";
    let rows = client.query(sql, &[&texts]).await.unwrap();
    assert_eq!(rows.len(), texts.len());
    for (text, row) in texts.iter().zip(rows) {
        let (published, encoded): (String, String) = (row.get(1), row.get(2));
        let expected = match Topic::new(text) {
            Ok(_) => "ok".to_owned(),
            Err(TopicError::Forbidden(c)) => {
                format!("walcast: a topic has no character U+{:04X}; percent-encode it", u32::from(c))
            }
            Err(error) => format!("walcast: {error}"),
        };
        assert_eq!(published, expected, "{text:?}");
        assert_eq!(encoded, encode_segment(text), "{text:?}");
    }
}

#[tokio::test]
async fn messages_carry_topic_data_and_key() {
    let (_server, mut client) = started().await;
    let statements = [
        r#"SELECT walcast.publish('vm/host-17', '{"b": "x\ny",   "a": 1}')"#,
        "SELECT walcast.publish('größe/日本', 'null')",
        "SELECT walcast.notify('my channel/1', E'line\\n\"quoted\"')",
        "SELECT walcast.notify('..', NULL)",
        "SELECT walcast.notify('jobs', repeat('x', 100000))",
    ];
    for statement in statements {
        client.batch_execute(statement).await.unwrap();
    }
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute("SELECT walcast.publish('rolled/back', '1')").await.unwrap();
    transaction.rollback().await.unwrap();
    let savepoint = "BEGIN; SAVEPOINT s; SELECT walcast.publish('undone', '1'); ROLLBACK TO s;
        SELECT walcast.notify('kept', ''); COMMIT";
    client.batch_execute(savepoint).await.unwrap();

    let key: String = client.query_one("SELECT key FROM walcast.key", &[]).await.unwrap().get(0);
    assert!(key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
    let long = format!("jobs once=1\n\"{}\"", "x".repeat(100_000));
    let expected = [
        "vm/host-17\n{\"a\": 1, \"b\": \"x\\ny\"}",
        "größe/日本\nnull",
        "my%20channel%2F1 once=1\n\"line\\n\\\"quoted\\\"\"",
        "%2E%2E once=1\n\"\"",
        &long,
        "kept once=1\n\"\"",
    ];
    let expected: Vec<Message> =
        expected.iter().map(|content| (format!("walcast:{key}"), (*content).into())).collect();
    assert_eq!(messages(&client).await, expected);
}

#[tokio::test]
async fn a_changed_key_reaches_sessions_that_published_before() {
    let (server, client) = started().await;
    let warm = server.admin().await;
    let publish = warm.prepare("SELECT walcast.publish('a', '1')").await.unwrap();
    let notify = warm.prepare("SELECT walcast.notify('a', '1')").await.unwrap();
    for _ in 0..10 {
        warm.query(&publish, &[]).await.unwrap();
        warm.query(&notify, &[]).await.unwrap();
    }
    let key = "0123456789abcdef".repeat(4);
    client.execute("UPDATE walcast.key SET key = $1", &[&key]).await.unwrap();
    warm.query(&publish, &[]).await.unwrap();
    warm.query(&notify, &[]).await.unwrap();
    let prefixes: Vec<_> = messages(&client).await.into_iter().map(|(prefix, _)| prefix).collect();
    assert_eq!(prefixes.len(), 22);
    assert_eq!(prefixes.iter().filter(|prefix| **prefix == format!("walcast:{key}")).count(), 2);
    assert!(prefixes[20..].iter().all(|prefix| *prefix == format!("walcast:{key}")));
}

#[tokio::test]
async fn bad_arguments_raise() {
    let (_server, client) = started().await;
    let check = async |call: &str, message: &str| {
        let found = error(&client, &format!("SELECT walcast.{call}")).await;
        assert_eq!(found, ("22023".into(), format!("walcast: {message}")), "{call}");
    };
    check("publish(NULL, '1')", "a topic is not NULL").await;
    check("publish('', '1')", "a topic has at least one character").await;
    check("publish('a', NULL)", "the data of an event is not NULL").await;
    check("notify(NULL, 'x')", "a channel has at least one character").await;
    check("notify('', 'x')", "a channel has at least one character").await;
    check(
        "notify(repeat('/', 86), 'x')",
        "the channel is too long: as a topic it has 258 bytes, at most 255 fit",
    )
    .await;
    check("publish_once('', 'a', '1')", "an idempotency key has 1 to 255 bytes").await;
    check("publish_once(NULL, 'a', '1')", "an idempotency key has 1 to 255 bytes").await;
    check("publish_once(repeat('k', 256), 'a', '1')", "an idempotency key has 1 to 255 bytes").await;
    check("publish_once('k', NULL, '1')", "a topic is not NULL").await;
    check("publish_once('k', 'a', NULL)", "the data of an event is not NULL").await;
    client.batch_execute("SELECT walcast.notify(repeat('/', 85), 'x')").await.unwrap();
    assert_eq!(error(&client, "UPDATE walcast.settings SET carry = 'pigeon'").await.0, "23514");
}

#[tokio::test]
async fn rights() {
    let server = Server::tuned(&[]).await;
    let admin = server.admin().await;
    let roles = "CREATE ROLE app LOGIN; CREATE ROLE other LOGIN; CREATE ROLE broker LOGIN REPLICATION;
        ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO other; ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO other";
    admin.batch_execute(roles).await.unwrap();
    let options = SetupOptions {
        broker_role: Some("broker".into()),
        publishers: vec!["app".into()],
        ..SetupOptions::default()
    };
    server.set_up(&options).await.unwrap();
    admin.batch_execute("GRANT USAGE ON SCHEMA walcast TO other").await.unwrap();
    let publish = "SELECT walcast.publish('a', '1')";
    let check = async |role: &str, sql: &str, allowed: bool| {
        let client = server.connect_as(role, "test").await;
        let result = client.batch_execute(sql).await;
        let code = result.as_ref().err().and_then(|error| error.code()).map(|code| code.code().to_owned());
        assert_eq!(code.as_deref(), if allowed { None } else { Some("42501") }, "{role}: {sql}");
    };
    for (role, may_publish, may_all) in
        [("app", true, false), ("other", false, false), ("broker", true, true)]
    {
        check(role, publish, may_publish).await;
        check(role, "SELECT walcast.notify('a', '1')", may_publish).await;
        check(role, "SELECT walcast.encode_segment('a b')", may_publish).await;
        check(role, "SELECT walcast.publish_once('k', 'a', '1')", may_all).await;
        check(role, "SELECT FROM walcast.key", may_all).await;
        check(role, "SELECT FROM walcast.settings", may_all).await;
        check(role, "UPDATE walcast.source SET generation = DEFAULT", may_all).await;
        check(role, "UPDATE walcast.key SET key = ''", false).await;
        check(role, "UPDATE walcast.settings SET carry = 'wal'", false).await;
        check(role, "SELECT FROM walcast.idempotency", false).await;
        check(role, "SELECT walcast.message_prefix()", false).await;
    }
}

#[tokio::test]
async fn a_search_path_redirects_nothing() {
    let server = Server::tuned(&[]).await;
    let admin = server.admin().await;
    admin.batch_execute("CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE postgres TO app").await.unwrap();
    let options = SetupOptions { publishers: vec!["app".into()], ..SetupOptions::default() };
    server.set_up(&options).await.unwrap();
    let app = server.connect_as("app", "test").await;
    // Same names and argument types as everything that the functions use; each one tells that it was called.
    let mut traps = String::from(
        "CREATE SCHEMA trap; SET search_path = trap, pg_catalog, pg_temp;
        CREATE FUNCTION trap.caught() RETURNS pg_catalog.text LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'caught'; END $$;
        CREATE TEMP TABLE key (key pg_catalog.text); CREATE TEMP TABLE idempotency (key pg_catalog.text);
        CREATE DOMAIN trap.text AS pg_catalog.int4; CREATE DOMAIN trap.pg_lsn AS pg_catalog.int4;
        CREATE DOMAIN trap.bytea AS pg_catalog.int4; CREATE DOMAIN trap.int8 AS pg_catalog.int2;",
    );
    let arguments = admin.query(
        "SELECT DISTINCT proname::text, pg_get_function_identity_arguments(oid), pg_get_function_result(oid)
        FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND provariadic = 0
            AND proname IN ('octet_length', 'pg_logical_emit_message', 'replace', 'upper', 'encode', 'convert_to',
                'regexp_replace', 'string_to_array', 'substring', 'format', 'lpad', 'to_hex', 'ascii', 'sha256', 'now')
            AND NOT proretset AND pg_get_function_identity_arguments(oid) !~ '\"any\"'",
        &[],
    );
    for row in arguments.await.unwrap() {
        let (name, arguments, result): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        traps.push_str(&format!(
            "SET search_path = pg_catalog; CREATE FUNCTION trap.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'caught'; END $$;"
        ));
    }
    for (number, (operator, left, right, result)) in [
        ("||", "text", "text", "text"),
        ("~", "text", "text", "boolean"),
        ("!~", "text", "text", "boolean"),
        ("=", "text", "text", "boolean"),
        ("=", "bytea", "bytea", "boolean"),
        (">", "integer", "integer", "boolean"),
        ("<=", "integer", "integer", "boolean"),
        ("<", "timestamptz", "timestamptz", "boolean"),
        ("-", "timestamptz", "interval", "timestamptz"),
    ]
    .into_iter()
    .enumerate()
    {
        traps.push_str(&format!(
            "SET search_path = pg_catalog; CREATE FUNCTION trap.op{number}({left}, {right}) RETURNS {result}
                LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'caught'; END $$;
            CREATE OPERATOR trap.{operator} (FUNCTION = trap.op{number}, LEFTARG = {left}, RIGHTARG = {right});"
        ));
    }
    app.batch_execute(&traps).await.unwrap();
    app.batch_execute("SET search_path = trap, pg_catalog, pg_temp").await.unwrap();
    assert_eq!(error(&app, "SELECT 'a'::pg_catalog.text || 'b'::pg_catalog.text").await.1, "caught");
    for call in ["publish('a', '1')", "publish('größe', '1')", "notify('a', '1')", "notify('a b', '1')"] {
        app.batch_execute(&format!("SELECT walcast.{call}")).await.unwrap();
    }
    assert_eq!(error(&app, "SELECT walcast.publish('a b', '1')").await.0, "22023");
    admin.batch_execute("GRANT EXECUTE ON FUNCTION walcast.publish_once TO app").await.unwrap();
    for _ in 0..2 {
        app.batch_execute("SELECT walcast.publish_once('k', 'a', '1')").await.unwrap();
    }
    assert_eq!(messages(&admin).await.len(), 5);
}

async fn once(client: &Client, key: &str, data: &str) -> (String, Option<String>) {
    let sql = "SELECT outcome, result ->> 'xid' FROM walcast.publish_once($1, 'a', $2::text::jsonb)";
    let row = client.query_one(sql, &[&key, &data]).await.unwrap();
    (row.get(0), row.get(1))
}

#[tokio::test]
async fn an_idempotency_key_publishes_once() {
    let (_server, client) = started().await;
    let (outcome, xid) = once(&client, "k", "{\"x\":1}").await;
    assert_eq!(outcome, "published");
    assert_eq!(once(&client, "k", "{ \"x\": 1 }").await, ("replayed".into(), xid.clone()));
    assert_eq!(once(&client, "k", "2").await, ("conflict".into(), None));
    assert_eq!(once(&client, "other", "2").await.0, "published");
    assert_eq!(messages(&client).await.len(), 2);

    // A day later the key is free again, and other old keys go a few at a time.
    let age = "UPDATE walcast.idempotency SET created_at = now() - interval '25 hours';
        INSERT INTO walcast.idempotency SELECT 'old' || i, '', '{}', now() - interval '26 hours' FROM generate_series(1, 20) i";
    client.batch_execute(age).await.unwrap();
    assert_eq!(once(&client, "k", "3").await.0, "published");
    let count = "SELECT count(*) FROM walcast.idempotency";
    assert_eq!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 22 - 8);
    for _ in 0..2 {
        once(&client, "k", "3").await;
    }
    assert_eq!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 1);
    assert_eq!(messages(&client).await.len(), 3);
}

#[tokio::test]
async fn an_idempotency_key_publishes_once_for_all_at_the_same_time() {
    let (server, mut client) = started().await;
    // All wait for this transaction, which leaves nothing.
    let first = client.transaction().await.unwrap();
    first.batch_execute("SELECT walcast.publish_once('k', 'a', '1')").await.unwrap();
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let client = server.connect_as(ADMIN, "waiting").await;
        tasks.push(tokio::spawn(async move { once(&client, "k", "1").await }));
    }
    let observer = server.admin().await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'waiting' AND wait_event_type = 'Lock'";
    until("all wait", async || observer.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 8).await;
    first.rollback().await.unwrap();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap());
    }
    outcomes.sort();
    assert_eq!(outcomes[0].0, "published");
    assert!(
        outcomes[1..].iter().all(|(outcome, xid)| outcome == "replayed" && *xid == outcomes[0].1),
        "{outcomes:?}"
    );
    assert_eq!(messages(&client).await.len(), 1);
}
