//! Calls that whichever broker can answers: values, publishing, waits.

use std::time::Duration;

use serde::Deserialize;
use walcast_client::wire::{Op, ProblemCode};
use walcast_client::{Client, Error, State};

use crate::fake::{
    Answer, Fake, answer, cursor, dead, event, event_as, first_line, json, page, problem, within, zero,
};

fn key(request: &str) -> &str {
    request.lines().find_map(|line| line.strip_prefix("idempotency-key: ")).unwrap()
}

fn value(n: u64) -> String {
    answer("200 OK", &format!("etag: \"{}\"\r\n", cursor(n)), &format!(r#"{{"pin":{n}}}"#))
}

/// As a starting broker, or a proxy before it, says it.
fn not_now(headers: &str, body: &str) -> String {
    answer("503 Service Unavailable", headers, body)
}

#[tokio::test]
async fn current_values() {
    let mut fake = Fake::start(vec![vec![
        Answer::Keep(value(4)),
        Answer::Keep("HTTP/1.1 304 Not Modified\r\n\r\n".to_owned()),
        Answer::Keep(answer("404 Not Found", "", &problem("not_found", 404, None))),
        Answer::Keep(answer("404 Not Found", "", &problem("no_such_path", 404, None))),
        Answer::Keep(answer("400 Bad Request", "", &problem("bad_topic", 400, None))),
    ]])
    .await;
    let client = fake.client();
    let topic = "vm/a%2Fb";
    let minute = Duration::from_secs(60);
    match client.state(topic).await.unwrap() {
        State::Value { data, cursor: at } => assert_eq!((data.get(), at), (r#"{"pin":4}"#, cursor(4))),
        other => panic!("{other:?}"),
    }
    let state = client.state(topic).wait(minute).unless(cursor(4)).await.unwrap();
    assert!(matches!(state, State::Unchanged));
    assert!(matches!(client.state(topic).wait(minute).await.unwrap(), State::Absent));
    // The wrong port has no values, and so cannot say that there is none.
    let error = client.state(topic).await.unwrap_err();
    assert_eq!(error.problem().unwrap().code, ProblemCode::NoSuchPath);
    let error = client.state(topic).await.unwrap_err();
    assert_eq!(error.problem().unwrap().code, ProblemCode::BadTopic);
    assert!(error.to_string().contains(&fake.address) && error.to_string().contains(topic), "{error}");

    assert_eq!(fake.asked().await, "GET /v1/state/vm/a%252Fb HTTP/1.1");
    let seen = fake.request().await;
    assert_eq!(first_line(&seen), "GET /v1/state/vm/a%252Fb?wait=60 HTTP/1.1");
    assert!(seen.contains(&format!("if-none-match: \"{}\"\r\n", cursor(4))), "{seen}");
}

#[tokio::test]
async fn publishing() {
    let fake = |_| {
        let published = r#"{"topic":"vm/a","xid":7,"duplicate":true}"#;
        Fake::start(vec![vec![Answer::Keep(json(published)), Answer::Keep(json("{}"))]])
    };
    let mut fake = fake(()).await;
    let client = fake.client();
    let data = serde_json::json!({"n": 1});
    let published = client.publish("vm/a", &data).idempotency_key("key-1").await.unwrap();
    assert_eq!((published.xid, published.duplicate), (Some(7), true));
    client.publish("vm/a", "text").await.unwrap();
    let seen = fake.request().await;
    assert_eq!(first_line(&seen), "POST /v1/publish HTTP/1.1");
    assert_eq!(key(&seen), "key-1");
    assert!(seen.ends_with(r#"{"topic":"vm/a","data":{"n":1}}"#), "{seen}");
    let seen = fake.request().await;
    assert!(seen.ends_with(r#"{"topic":"vm/a","data":"text"}"#), "{seen}");
    assert_eq!(key(&seen).len(), 36, "{seen}");

    let error = client.publish("vm/ a", "text").await.unwrap_err();
    assert!(matches!(error, Error::Topic { .. }) && error.to_string().contains("vm/ a"), "{error}");
    let error = client.publish("vm/a", "text").idempotency_key("a\nb").await.unwrap_err();
    assert!(matches!(error, Error::Request(_)), "{error}");
}

#[tokio::test]
async fn what_is_published_again_elsewhere_has_the_same_key() {
    let (mut lost, mut next) = (
        Fake::start(vec![vec![Answer::HangUp]]).await,
        Fake::start(vec![
            vec![Answer::HangUp],
            vec![Answer::Keep(not_now("", ""))],
            vec![Answer::Keep(json("{}"))],
        ])
        .await,
    );
    let hosts = [lost.url(), dead().await, next.url()];
    let client = Client::builder().hosts(hosts).build().unwrap();
    within(client.publish("vm/a", "text")).await.unwrap();
    let mut keys = Vec::new();
    for fake in [&mut lost, &mut next] {
        while let Ok(request) = fake.requests.try_recv() {
            keys.push(key(&request).to_owned());
        }
    }
    assert!(keys.len() >= 3, "{keys:?}");
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[tokio::test]
async fn a_call_waits_as_it_is_asked_to_and_goes_on() {
    let fake = Fake::start(vec![
        vec![Answer::Close(not_now("retry-after: 1\r\n", &problem("unavailable", 503, None)))],
        vec![Answer::Close(answer("429 Too Many Requests", "retry-after: 0\r\n", "slow down"))],
        vec![Answer::Keep(value(4))],
    ])
    .await;
    let start = std::time::Instant::now();
    let client = fake.client();
    assert!(matches!(within(client.state("vm/a")).await.unwrap(), State::Value { .. }));
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn patience_ends() {
    let fake = Fake::start(vec![vec![Answer::Silence]]).await;
    let builder = fake.builder().connect_timeout(Duration::from_millis(200)).patience(Duration::ZERO);
    let error = within(builder.build().unwrap().state("vm/a")).await.unwrap_err();
    assert!(matches!(error, Error::Silent { .. }) && error.to_string().contains(&fake.address), "{error}");

    let client = Client::builder().hosts([dead().await]).patience(Duration::ZERO).build().unwrap();
    let error = within(client.publish("vm/a", "text")).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_named() {
    let client = Client::builder()
        .hosts(["http://walcast.invalid:8480"])
        .connect_timeout(Duration::from_secs(5))
        .patience(Duration::ZERO)
        .build()
        .unwrap();
    let error = within(client.state("vm/a")).await.unwrap_err();
    assert!(matches!(error, Error::Resolve { .. }), "{error}");
    assert!(error.to_string().contains("walcast.invalid:8480"), "{error}");
}

#[tokio::test]
async fn a_wait_has_a_place_before_it_is_held() {
    let mut fake = Fake::start(vec![
        vec![Answer::Keep(json(&page(3, &[]))), Answer::Keep(json(&page(4, &[]))), Answer::HangUp],
        vec![Answer::Keep(json(&page(6, &[event(6, "vm/a")])))],
    ])
    .await;
    let found = within(fake.client().wait("vm/a").named("me")).await.unwrap();
    assert_eq!((found.cursor, found.data.get()), (cursor(6), r#"{"n":6}"#));
    let mut wants = ["client=me&wait=0&limit=1".to_owned()].to_vec();
    wants.extend([3, 4, 4].map(|n| format!("after={}&client=me&wait=50&limit=1", cursor(n))));
    for query in wants {
        assert_eq!(fake.asked().await, format!("GET /v1/events?topic=vm/a&{query} HTTP/1.1"));
    }
}

#[tokio::test]
async fn a_wait_tells_of_a_gap_only_who_named_a_place() {
    let gone = || Answer::Keep(answer("410 Gone", "", &problem("cursor_expired", 410, Some(zero()))));
    let mut fake = Fake::start(vec![vec![
        gone(),
        Answer::Keep(json(&page(3, &[]))),
        gone(),
        Answer::Keep(json(&page(9, &[event_as("snapshot", 8, "vm/a")]))),
    ]])
    .await;
    let client = fake.client();
    let error = within(client.wait("vm/a").after(cursor(1))).await.unwrap_err();
    assert!(matches!(error, Error::Missed { reset } if reset.resume == zero()));
    let found = within(client.wait("vm/a")).await.unwrap();
    assert_eq!((found.op, found.cursor), (Op::Snapshot, cursor(8)));
    for _ in 0..3 {
        fake.request().await;
    }
    assert_eq!(fake.asked().await, "GET /v1/events?topic=vm/a&wait=0&limit=1 HTTP/1.1");
}

#[tokio::test]
async fn a_wait_goes_to_the_next_broker_when_one_goes_away() {
    let leaving = || {
        let leaving = answer("200 OK", "retry-after: 1\r\n", &page(3, &[]));
        Fake::start(vec![vec![Answer::Keep(leaving.clone()), Answer::Keep(leaving)]])
    };
    let here = Fake::start(vec![vec![Answer::Keep(json(&page(5, &[event(5, "vm/a")])))]]).await;
    let (one, two) = (leaving().await, leaving().await);
    let client = Client::builder().hosts([one.url(), two.url(), here.url()]).build().unwrap();
    assert_eq!(within(client.wait("vm/a")).await.unwrap().cursor, cursor(5));
}

#[tokio::test]
async fn a_condition_is_waited_for() {
    #[derive(Debug, Deserialize)]
    struct Row {
        n: u64,
    }
    let script = || {
        vec![vec![
            Answer::Keep(json(&page(3, &[event_as("snapshot", 2, "vm/a")]))),
            Answer::Keep(json(&page(5, &[event_as("delete", 4, "vm/a"), event(5, "vm/a")]))),
            Answer::Keep(json(&page(7, &[event(6, "vm/a"), event(7, "vm/a")]))),
        ]]
    };
    let fake = Fake::start(script()).await;
    let found = within(fake.client().wait_for("vm/a", |row: &Row| row.n > 5)).await.unwrap();
    assert_eq!((found.data.n, found.cursor, found.op), (6, cursor(6), Op::Update));

    let fake = Fake::start(script()).await;
    let error = within(fake.client().wait_for("vm/a", |_: &String| true)).await.unwrap_err();
    assert!(matches!(error, Error::Data { .. }) && error.to_string().contains("vm/a"), "{error}");
}

#[tokio::test]
async fn who_may_not_wait_hears_of_it() {
    for (status, headers, body) in [
        ("401 Unauthorized", "", "<html>"),
        ("403 Forbidden", "", r#"{"code":"forbidden","detail":"not this topic"}"#),
        ("404 Not Found", "", "nothing here"),
        ("400 Bad Request", "", &problem("bad_parameter", 400, None)),
    ] {
        let fake = Fake::start(vec![vec![Answer::Close(answer(status, headers, body))]]).await;
        let error = within(fake.client().wait("vm/a")).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        assert_eq!(error.status(), Some(status[..3].parse().unwrap()));
        let text = error.to_string();
        assert!(text.contains(&fake.address) && text.contains("vm/a"), "{text}");
    }
}

#[tokio::test]
async fn one_broker_that_does_not_let_us_in_is_passed_over() {
    for _ in 0..8 {
        let unknown = || answer("401 Unauthorized", "", &problem("unauthorized", 401, None));
        let old = Fake::start(vec![vec![Answer::Keep(unknown()), Answer::Keep(unknown())]]).await;
        let here = Fake::start(vec![vec![Answer::Keep(value(4)), Answer::Keep(json("{}"))]]).await;
        let client = Client::builder().hosts([old.url(), here.url()]).build().unwrap();
        assert!(matches!(within(client.state("vm/a")).await.unwrap(), State::Value { .. }));
        within(client.publish("vm/a", "text")).await.unwrap();
    }
}

#[tokio::test]
async fn limits_may_be_as_long_as_they_can_be_written() {
    let fake = Fake::start(vec![vec![Answer::Keep(value(4)), Answer::Keep(json("{}"))]]).await;
    let long = Duration::MAX;
    let client = fake.builder().patience(long).connect_timeout(long).silence_timeout(long).build().unwrap();
    assert!(matches!(within(client.state("vm/a").wait(long)).await.unwrap(), State::Value { .. }));
    within(client.publish("vm/a", "text")).await.unwrap();
}
