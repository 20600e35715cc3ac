//! Messages: published in SQL or over HTTP, each arrives once, and nobody else's does.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use walcast_client::Transport;

use crate::broker::{Broker, MARK, line, run, until, value_of};
use crate::server::Server;

#[tokio::test]
async fn what_sql_publishes_arrives() {
    let broker = Broker::start("messages_sql", "", "").await;
    let mut all = broker.follow(Transport::WebSocket, &["**"]).await;
    let mut check = async |sql: &str, expected: &[&str]| {
        broker.run(sql).await;
        assert_eq!(broker.rest_lines(&mut all).await, expected, "{sql}");
    };
    check(
        r#"SELECT walcast.publish('jobs/7', '{"id": 7, "who": "Jürgen"}')"#,
        &[r#"jobs/7 message {"id":7,"who":"Jürgen"}"#],
    )
    .await;
    check("SELECT walcast.publish('größe/日本', 'null')", &["größe/日本 message null"]).await;
    check(
        "SELECT walcast.publish('a', to_jsonb(n)) FROM generate_series(1, 3) n",
        &["a message 1", "a message 2", "a message 3"],
    )
    .await;
    // Identical pairs of one transaction arrive once, as with pg_notify; published ones each time.
    check(
        "SELECT walcast.notify('ch', 'x'), walcast.notify('ch', 'y'), walcast.notify('ch', 'x'),
                walcast.notify('other', 'x'), walcast.notify('ch', 'y')",
        &[r#"ch message "x""#, r#"ch message "y""#, r#"other message "x""#],
    )
    .await;
    check("SELECT walcast.notify('ch', 'x')", &[r#"ch message "x""#]).await;
    check("SELECT walcast.publish('ch', '1'), walcast.publish('ch', '1')", &["ch message 1", "ch message 1"])
        .await;
    // A channel is any text, and one segment.
    check(
        "SELECT walcast.notify('My channel/1*', E'line\\n2'), walcast.notify('..', NULL)",
        &[r#"My%20channel%2F1%2A message "line\n2""#, r#"%2E%2E message """#],
    )
    .await;
    let long = "x".repeat(100_000);
    check(&format!("SELECT walcast.notify('long', '{long}')"), &[&format!("long message {long:?}")]).await;
}

#[tokio::test]
async fn what_http_publishes_is_committed_when_the_answer_comes() {
    let broker = Broker::start("messages_http", "", "").await;
    let mut all = broker.follow(Transport::Sse, &["jobs/**", MARK]).await;
    let committed = async |xid: &Value| {
        let sql = format!("SELECT pg_xact_status('{xid}'::xid8)");
        broker.sql.query_one(&sql, &[]).await.unwrap().get::<_, String>(0)
    };
    for n in 0..20 {
        let answer = broker.http.post("", &format!(r#"{{"topic":"jobs/{n}","data":{{"n": {n}}}}}"#)).await;
        let told = answer.json();
        assert_eq!(answer.status, 200);
        assert_eq!((&told["topic"], &told["duplicate"]), (&json!(format!("jobs/{n}")), &json!(false)));
        assert_eq!(committed(&told["xid"]).await, "committed");
        let event = all.next().await;
        assert_eq!(line(&event), format!(r#"jobs/{n} message {{"n":{n}}}"#));
        assert_eq!(json!(event.xid), told["xid"]);
    }
}

#[tokio::test]
async fn an_idempotency_key_makes_a_repetition_harmless() {
    let broker = Broker::start("messages_key", "", "").await;
    let mut all = broker.follow(Transport::Poll, &["jobs/**", MARK]).await;
    let post =
        async |key: &str, body: &str| broker.http.post(&format!("idempotency-key: {key}\r\n"), body).await;
    let body = r#"{"topic":"jobs/1","data":{"a":1,"b":2}}"#;
    let first = post("k-1", body).await.json();
    assert_eq!(first["duplicate"], json!(false));
    let again = post("k-1", r#"{"topic": "jobs/1", "data": {"b": 2, "a": 1}}"#).await.json();
    assert_eq!((&again["duplicate"], &again["xid"]), (&json!(true), &first["xid"]));
    for other in [r#"{"topic":"jobs/1","data":2}"#, r#"{"topic":"jobs/2","data":{"a":1,"b":2}}"#] {
        let answer = post("k-1", other).await;
        assert_eq!((answer.status, answer.problem().code.as_str()), (422, "idempotency_conflict"));
    }
    // At the same time, and not all through one broker: others call the function themselves.
    let sessions = [broker.session().await, broker.session().await];
    let by_http = std::iter::repeat_with(|| post("k-2", r#"{"topic":"jobs/2","data":2}"#)).take(8);
    let by_sql = sessions.iter().flat_map(|sql| {
        let once = "SELECT outcome FROM walcast.publish_once('k-2', 'jobs/2', '2')";
        std::iter::repeat_with(move || sql.query_one(once, &[])).take(4)
    });
    let (http, sql) =
        tokio::join!(futures_util::future::join_all(by_http), futures_util::future::join_all(by_sql));
    let mut published = http.iter().filter(|answer| answer.json()["duplicate"] == json!(false)).count();
    published += sql.into_iter().filter(|row| row.as_ref().unwrap().get::<_, &str>(0) == "published").count();
    assert_eq!(published, 1);
    assert_eq!(broker.rest_lines(&mut all).await, [r#"jobs/1 message {"a":1,"b":2}"#, "jobs/2 message 2"]);
}

/// A standby that is missing holds up a publish, which waits for it as the server is told to, and nothing else.
#[tokio::test]
async fn a_publish_that_waits_for_a_standby_is_given_up() {
    const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let server = Server::tuned(&[]).await;
    let broker = Broker::start_at(&server, "messages_sync", "", "", |_| ()).await;
    let mut all = broker.follow(Transport::Sse, &["jobs/**"]).await;
    let standby = async |change: &str, names: &str| {
        run(&broker.sql, &format!("ALTER SYSTEM {change}")).await;
        run(&broker.sql, "SELECT pg_reload_conf()").await;
        until("the setting is in force", async || {
            value_of(&broker.session().await, "current_setting('synchronous_standby_names')").await == names
        })
        .await;
    };
    standby("SET synchronous_standby_names = 'absent'", "absent").await;
    let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'walcast companion'";
    let companion = value_of(&broker.sql, sql).await;
    let body = r#"{"topic":"jobs/1","data":1}"#;
    let answer = broker.http.post("idempotency-key: k\r\n", body).await;
    assert_eq!((answer.status, answer.problem().code.as_str()), (503, "unavailable"));
    assert!(answer.body.contains("outcome is unknown"), "{}", answer.body);
    assert_eq!(value_of(&broker.sql, WAITING).await, "0", "it still waits");

    // A client that hangs up changes nothing.
    let mut gone = broker.http.connect().await;
    let body = r#"{"topic":"jobs/2","data":2}"#;
    let head = "POST /v1/publish HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 27";
    gone.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
    until("the publish waits", async || value_of(&broker.sql, WAITING).await == "1").await;
    drop(gone);
    until("the session is free", async || value_of(&broker.sql, WAITING).await == "0").await;
    assert_eq!(value_of(&broker.sql, sql).await, companion, "the session was cut");

    standby("RESET synchronous_standby_names", "").await;
    let body = r#"{"topic":"jobs/1","data":1}"#;
    let again = broker.http.post("idempotency-key: k\r\n", body).await;
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)));
    assert_eq!(all.lines(2).await, ["jobs/1 message 1", "jobs/2 message 2"]);
}

#[tokio::test]
async fn a_forged_message_is_ignored_and_counted() {
    const FORGED: &str = "walcast_messages_forged_total";
    let broker = Broker::start("messages_forged", "", "").await;
    let mut all = broker.follow(Transport::WebSocket, &["**"]).await;
    let before = broker.metric(FORGED).await;
    broker
        .run(
            r"SELECT pg_logical_emit_message(true, 'walcast:', E'forged\n1');
              SELECT pg_logical_emit_message(true, 'walcast:' || repeat('0', 64), E'forged\n1');
              SELECT pg_logical_emit_message(true, 'walcast:' || key || 'x', E'forged\n1') FROM walcast.key;
              SELECT pg_logical_emit_message(true, 'other', E'forged\n1');
              SELECT pg_logical_emit_message(true, '', E'forged\n1');
              SELECT pg_logical_emit_message(false, 'walcast:' || key, E'forged\n1') FROM walcast.key;
              SELECT pg_logical_emit_message(false, 'other', E'forged\n1');
              SELECT walcast.publish('true', '1')",
        )
        .await;
    assert_eq!(broker.rest_lines(&mut all).await, ["true message 1"]);
    let counted = broker.metric(FORGED).await - before;
    assert!(counted >= 3.0, "{counted}");
}

#[tokio::test]
async fn what_is_too_large_arrives_without_its_data() {
    let ddl = "CREATE TABLE rows (id int PRIMARY KEY, doc text, n int)";
    let rule = "[[table]]\nname = \"public.rows\"\ntopic = \"rows/{id}\"";
    let broker =
        Broker::start_with("messages_large", ddl, rule, |config| config.router.event_bytes_max = 2000).await;
    let mut all = broker.follow(Transport::Sse, &["**"]).await;
    broker
        .run(
            "SELECT walcast.publish('a', to_jsonb(repeat('x', 1998)));
             SELECT walcast.publish('a', to_jsonb(repeat('x', 1999)));
             INSERT INTO rows VALUES (1, repeat('x', 1900), 5), (2, repeat('x', 2000), 5), (3, 'short', 5)",
        )
        .await;
    let events = broker.rest(&mut all).await;
    let seen: Vec<_> = events.iter().map(|event| (&event.data, event.omitted.join(" "))).collect();
    let (x1998, x1900) = (json!("x".repeat(1998)), json!({"id": 1, "doc": "x".repeat(1900), "n": 5}));
    let expected = [
        (&x1998, ""),
        (&Value::Null, "data"),
        (&x1900, ""),
        (&json!({"id": 2}), "doc n"),
        (&json!({"id": 3, "doc": "short", "n": 5}), ""),
    ];
    assert_eq!(seen, expected.map(|(data, omitted)| (data, omitted.to_owned())));
}
