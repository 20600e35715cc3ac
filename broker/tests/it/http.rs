//! Plain requests: waiting, current values, publishing, bad input, limits, drain.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use walcast::hub;
use walcast::transport::Config;
use walcast_wire::{Cursor, Epoch, Position};

use crate::edge::{EPOCH, Edge, message};
use crate::plain::Answer;
use crate::wait::within;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let edge = Edge::start().await;
    let check = async |request: String, status: u16, code: &str, named: &str| {
        let answer = edge.raw(&request).await;
        let problem = answer.problem();
        assert_eq!((answer.status, problem.code.as_str()), (status, code), "{request}");
        assert!(problem.detail.contains(named), "{request}: {}", problem.detail);
    };
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    check(get("/v1/events"), 400, "bad_parameter", "topic").await;
    check(get("/v1/events?topic=a&wiat=1"), 400, "bad_parameter", "wiat").await;
    check(get("/v1/events?topic=a//b"), 400, "bad_topic", "empty segment").await;
    check(get(&format!("/v1/events?topic={}", "x".repeat(256))), 400, "bad_topic", "255").await;
    check(get("/v1/events?topic=a&after=x"), 400, "bad_cursor", "after").await;
    check(get("/v1/events?topic=a&wait=301"), 400, "bad_parameter", "wait").await;
    check(get("/v1/events?topic=a&wait=-1"), 400, "bad_parameter", "wait").await;
    check(get("/v1/events?topic=a&wait=soon"), 400, "bad_parameter", "wait").await;
    check(get("/v1/events?topic=a&wait=1&wait=2"), 400, "bad_parameter", "wait").await;
    check(get("/v1/events?topic=a&limit=0"), 400, "bad_parameter", "limit").await;
    check(get("/v1/events?topic=a&limit=many"), 400, "bad_parameter", "limit").await;
    check(get("/v1/events?topic=a%ff"), 400, "bad_parameter", "UTF-8").await;
    check(get("/v1/events?topic=a%00"), 400, "bad_topic", "").await;
    check(get("/v1/events?topic=a%"), 400, "bad_parameter", "").await;
    check(get(&format!("/v1/events?topic=a&after={}", "0".repeat(400))), 400, "bad_cursor", "after").await;
    check(get("/v1/state/a?wait=6m"), 400, "bad_parameter", "wait").await;
    check(get(&format!("/v1/state/{}", "x".repeat(256))), 400, "bad_topic", "255").await;
    check(get("/v1/state/a/%2A"), 400, "bad_topic", "*").await;
    check(get("/v1/state/a?after=now"), 400, "bad_parameter", "after").await;
    check(get("/v1/ws?wait=1"), 400, "bad_parameter", "wait").await;
    check(get("/v1/ws?topic=a"), 400, "bad_parameter", "WebSocket").await;
    check(get("/v1/openapi.json?x"), 400, "bad_parameter", "none").await;
    check(get("/v2"), 404, "no_such_path", "/v2").await;
    check(get("/v1/state/a"), 404, "not_found", "a").await;
    check(get("/v1/publish"), 405, "method_not_allowed", "Allow").await;
    check("hello\r\n\r\n".to_owned(), 400, "bad_parameter", "HTTP").await;
    check("GET / HTTP/1.1\r\nbad header\r\n\r\n".to_owned(), 400, "bad_parameter", "HTTP").await;
    let long = format!("GET /v1/events?topic=a HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(9000));
    check(long, 431, "head_too_large", "8192").await;
    let many = "x: y\r\n".repeat(200);
    check(format!("GET /v1/events?topic=a HTTP/1.1\r\n{many}\r\n"), 431, "head_too_large", "100").await;
}

#[tokio::test]
async fn bad_bodies_are_told_what_is_wrong() {
    let edge = Edge::start().await;
    let check = async |headers: &str, body: &str, code: &str, named: &str| {
        let problem = edge.post(headers, body).await.problem();
        assert_eq!(problem.code.as_str(), code, "{body:.60}");
        assert!(problem.detail.contains(named), "{body:.60}: {}", problem.detail);
    };
    check("", "", "bad_body", "EOF").await;
    check("", "{\"topic\":\"a\",\"data\":", "bad_body", "EOF").await;
    check("", "{\"topic\":\"a\"}", "bad_body", "data").await;
    check("", "{\"topic\":\"a\",\"data\":1,\"more\":2}", "bad_body", "more").await;
    check("", "{\"topic\":\"a\",\"topic\":\"a\",\"data\":1}", "bad_body", "duplicate").await;
    check("", "{\"topic\":\"a b\",\"data\":1}", "bad_topic", "' '").await;
    check("idempotency-key: a b\r\n", "{\"topic\":\"a\",\"data\":1}", "bad_parameter", "Idempotency-Key")
        .await;
    check("", "{\"topic\":\"refused\",\"data\":1}", "rejected", "refused").await;
    check("", "{\"topic\":\"conflict\",\"data\":1}", "idempotency_conflict", "key").await;
    check("", "{\"topic\":\"away\",\"data\":1}", "unavailable", "no connection").await;
    check("", "{\"topic\":\"panic\",\"data\":1}", "internal", "log").await;
    check("", &format!("{{\"topic\":\"a\",\"data\":\"{}\"}}", "x".repeat(70_000)), "body_too_large", "65536")
        .await;
    let chunked = edge.raw(format!(
        "POST /v1/publish HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n11170\r\n{}\r\n0\r\n\r\n",
        "x".repeat(70_000),
    ));
    assert_eq!(chunked.await.problem().code.as_str(), "body_too_large");
    let untyped = "POST /v1/publish HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(edge.raw(untyped).await.problem().code.as_str(), "bad_body");
    assert!(edge.shelf.0.lock().is_empty());
}

#[tokio::test]
async fn what_is_published_is_handed_on_untouched() {
    let edge = Edge::start().await;
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    for (data, headers) in
        [("{\"n\": 1e400, \"n\":\"\\u0000\"}", "idempotency-key: k-1\r\n"), (deep.as_str(), "")]
    {
        let answer = edge.post(headers, &format!("{{\"topic\":\"vm/a\",\"data\":{data}}}")).await;
        assert_eq!(answer.json(), serde_json::json!({"topic": "vm/a", "xid": 7, "duplicate": false}));
        let (topic, published, key) = edge.shelf.0.lock().pop().unwrap();
        assert_eq!((topic.as_str(), published.as_str()), ("vm/a", data));
        assert_eq!(key.is_some(), !headers.is_empty());
    }
}

#[tokio::test]
async fn a_parked_request_is_answered_by_the_event() {
    let edge = Edge::start().await;
    let mut waiting = edge.begin("/v1/events?topic=vm/*&wait=60&client=test", "").await;
    edge.until_waiting(1).await;
    edge.send("other", "1");
    edge.send("vm/a", "{\"pin\":1}");
    let answer = Answer::read(&mut waiting).await;
    assert_eq!(answer.events(), ["vm/a {\"pin\":1}"]);
    assert_eq!(answer.headers["cache-control"], "no-store");
    edge.until_waiting(0).await;
}

#[tokio::test]
async fn every_answer_carries_the_cursor_to_go_on_from() {
    let edge = Edge::start().await;
    let empty = edge.get("/v1/events?topic=a&wait=0").await;
    assert_eq!(empty.events(), [""; 0]);
    edge.send("a", "1");
    edge.send("b", "2");
    edge.send("a", "3");
    let target = |cursor: Cursor| format!("/v1/events?topic=a&topic=b&limit=2&wait=0&after={cursor}");
    let first = edge.get(&target(empty.cursor())).await;
    assert_eq!(first.events(), ["a 1", "b 2"]);
    // An answer that was lost is asked for again, with the cursor of before.
    let again = edge.get(&target(empty.cursor())).await;
    assert_eq!(again.body, first.body);
    let second = edge.get(&target(first.cursor())).await;
    assert_eq!(second.events(), ["a 3"]);
    let last = edge.get(&target(second.cursor())).await;
    assert_eq!((last.events(), last.cursor()), (vec![], second.cursor()));
    let earliest = edge.get("/v1/events?topic=a&wait=0&after=earliest").await;
    assert_eq!(earliest.events(), ["a 1", "a 3"]);
}

#[tokio::test]
async fn a_limit_never_parts_a_unit() {
    let edge = Edge::start().await;
    let start = edge.get("/v1/events?topic=*&wait=0").await.cursor();
    edge.commit(vec![(1, message("old", "1")), (1, message("new", "1")), (2, message("new", "2"))]);
    let first = edge.get(&format!("/v1/events?topic=*&wait=0&limit=1&after={start}")).await;
    assert_eq!(first.events(), ["old 1", "new 1"]);
    let second = edge.get(&format!("/v1/events?topic=*&wait=0&limit=1&after={}", first.cursor())).await;
    assert_eq!(second.events(), ["new 2"]);
}

#[tokio::test]
async fn a_cursor_that_cannot_be_gone_on_from_is_told() {
    let edge = Edge::with(Config::default(), hub::Config { events: 2, ..hub::Config::default() }).await;
    let old = edge.get("/v1/events?topic=a&wait=0").await.cursor();
    for i in 0..5 {
        edge.send("a", &i.to_string());
    }
    let check = async |cursor: Cursor, code: &str| {
        let answer = edge.get(&format!("/v1/events?topic=a&after={cursor}")).await;
        let problem = answer.problem();
        assert_eq!((answer.status, problem.code.as_str()), (410, code));
        assert_eq!(answer.headers["cache-control"], "no-store");
        let resumed = edge.get(&format!("/v1/events?topic=a&after={}", problem.resume.unwrap())).await;
        assert_eq!(resumed.events(), ["a 3", "a 4"]);
    };
    check(old, "cursor_expired").await;
    check(Cursor::new(Epoch(9), Position::before(100)), "epoch_changed").await;
    check(Cursor::new(EPOCH, Position::before(1 << 40)), "gap").await;
}

#[tokio::test]
async fn current_values_come_first_and_whole() {
    let config = Config { state_answer_bytes_max: 2000, ..Config::default() };
    let edge = Edge::with(config, hub::Config { events: 2, ..hub::Config::default() }).await;
    for i in 0..5 {
        edge.put(&format!("vm/{i}"), "{}");
    }
    let head = edge.send("other", "1");
    let answer = edge.get("/v1/events?topic=vm/*&limit=1").await;
    assert_eq!(answer.events(), ["vm/0 {}", "vm/1 {}", "vm/2 {}", "vm/3 {}", "vm/4 {}"]);
    assert_eq!(answer.cursor(), head);
    edge.send("vm/x", "1");
    let next = edge.get(&format!("/v1/events?topic=vm/*&after={head}")).await;
    assert_eq!(next.events(), ["vm/x 1"]);
    edge.put("vm/big", &format!("\"{}\"", "x".repeat(2000)));
    assert_eq!(edge.get("/v1/events?topic=vm/*").await.problem().code.as_str(), "too_broad");
}

#[tokio::test]
async fn a_value_is_read_polled_and_waited_for() {
    let edge = Edge::start().await;
    let get = async |etag: &str, wait: &str| {
        edge.get_with(&format!("/v1/state/vm/a{wait}"), &format!("if-none-match: {etag}\r\n")).await
    };
    assert_eq!(edge.get("/v1/state/vm/a").await.status, 404);
    let mut waiting = edge.begin("/v1/state/vm/a?wait=1m", "").await;
    edge.until_waiting(1).await;
    edge.put("vm/a", "{\"pin\":1}");
    let first = Answer::read(&mut waiting).await;
    assert_eq!((first.status, first.body.as_str()), (200, "{\"pin\":1}"));
    let etag = &first.headers["etag"];
    let same = get(etag, "").await;
    assert_eq!((same.status, same.body.as_str(), &same.headers["etag"]), (304, "", etag));
    assert_eq!(get("\"other\"", "?wait=60").await.status, 200);
    // Held until it differs; gone is told at once.
    let mut held = edge.begin("/v1/state/vm/a?wait=60", &format!("if-none-match: {etag}\r\n")).await;
    edge.until_waiting(1).await;
    edge.put("vm/a", "{\"pin\":2}");
    let second = Answer::read(&mut held).await;
    assert_eq!(second.body, "{\"pin\":2}");
    let etag = &second.headers["etag"];
    let mut held = edge.begin("/v1/state/vm/a?wait=60", &format!("if-none-match: {etag}\r\n")).await;
    edge.until_waiting(1).await;
    edge.clear("vm/a");
    assert_eq!(Answer::read(&mut held).await.problem().code.as_str(), "not_found");
    assert_eq!(get(etag, "?wait=60").await.status, 404);
}

#[tokio::test]
async fn a_path_is_decoded_once() {
    let edge = Edge::start().await;
    edge.put("a/b%2Fc", "1");
    assert_eq!(edge.get("/v1/state/a/b%252Fc").await.body, "1");
    assert_eq!(edge.get("/v1/state/a%2Fb%252Fc").await.body, "1");
    assert_eq!(edge.get("/v1/state/a/b%2Fc").await.status, 404);
}

#[tokio::test]
async fn before_the_stream_requests_are_asked_to_come_back() {
    let edge = Edge::unstarted(Config::default(), hub::Config::default()).await;
    for target in ["/v1/events?topic=a", "/v1/state/a"] {
        let answer = edge.get(target).await;
        let problem = answer.problem();
        assert_eq!(problem.code.as_str(), "unavailable");
        // Whatever it is that keeps it from beginning: a standby says this, too.
        assert!(
            problem.detail.starts_with("no stream from Postgres has begun on this broker yet"),
            "{problem:?}"
        );
        assert!(answer.headers["retry-after"].parse::<u32>().unwrap() > 0);
    }
}

#[tokio::test]
async fn who_looks_for_health_here_is_told_where_it_is() {
    let edge = Edge::start().await;
    for path in ["/livez", "/readyz", "/metrics"] {
        let problem = edge.get(path).await.problem();
        assert_eq!(problem.status, 404);
        let detail = format!("{path} is on the listener for operators, whose address is `admin.listen`");
        assert_eq!(problem.detail, detail, "and nobody is told where that is");
    }
    assert_eq!(edge.get("/ready").await.problem().detail, "no such path: /ready");
}

#[tokio::test]
async fn a_client_that_hangs_up_is_forgotten_at_once() {
    let edge = Edge::start().await;
    let waiting = edge.begin("/v1/events?topic=a&wait=300", "").await;
    edge.until_waiting(1).await;
    drop(waiting);
    edge.until_waiting(0).await;
}

#[tokio::test]
async fn resets_in_the_middle_of_an_answer_lose_and_change_nothing() {
    let edge = Edge::start().await;
    let start = edge.get("/v1/events?topic=a&wait=0").await.cursor();
    for n in 0..20 {
        edge.send("a", &format!("\"{n} {}\"", "x".repeat(50_000)));
    }
    let target = format!("/v1/events?topic=a&wait=0&after={start}");
    let whole = edge.get(&target).await;
    assert_eq!(whole.events().len(), 20);
    for round in 0..100 {
        let mut broken = edge.begin(&target, "").await;
        // Now within the head, now far in the body.
        broken.read_exact(&mut vec![0; 20 + round * 9_000]).await.unwrap();
        socket2::SockRef::from(&broken).set_linger(Some(Duration::ZERO)).unwrap();
        drop(broken);
        let again = edge.get(&target).await;
        assert_eq!(again.cursor(), whole.cursor(), "round {round}");
        assert!(again.body == whole.body, "round {round}: other bytes");
    }
    edge.until_waiting(0).await;
}

#[tokio::test]
async fn who_dribbles_or_does_not_read_is_cut_and_others_are_served() {
    let config = Config { head_timeout: SECOND, write_timeout: SECOND, ..Config::default() };
    let edge = Edge::with(config, hub::Config::default()).await;
    let mut dribbling = edge.connect().await;
    dribbling.write_all(b"GET /v1/ev").await.unwrap();
    let stalled = edge.begin("/v1/events?topic=a", "accept: text/event-stream\r\n").await;
    edge.until_waiting(1).await;
    // Megabytes, so that no socket buffer swallows them.
    for _ in 0..64 {
        edge.send("a", &format!("\"{}\"", "x".repeat(500_000)));
    }
    edge.send("b", "1");
    let other = edge.get("/v1/events?topic=b&after=earliest").await;
    assert_eq!(other.events(), ["b 1"]);
    edge.until_waiting(0).await;
    drop(stalled);
    let mut rest = Vec::new();
    within("the answer ends", dribbling.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&rest), "");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_and_slots_come_back() {
    let config = Config { connections_max: 1, ..Config::default() };
    let edge = Edge::with(config, hub::Config::default()).await;
    let only = edge.begin("/v1/events?topic=a&wait=300", "").await;
    edge.until_waiting(1).await;
    let refused = edge.get("/v1/state/a").await;
    assert_eq!((refused.status, refused.problem().code.as_str()), (429, "overloaded"));
    assert!(refused.headers["retry-after"].parse::<u32>().unwrap() > 0);
    drop(only);
    let mut status = 429;
    while status == 429 {
        status = edge.get("/v1/state/a").await.status;
    }
    assert_eq!(status, 404);
}

#[tokio::test]
async fn drain_answers_who_waits_and_ends() {
    let edge = Edge::start().await;
    let mut waiting = edge.begin("/v1/events?topic=a&wait=300", "").await;
    let mut state = edge.begin("/v1/state/a?wait=300", "").await;
    let idle = edge.connect().await;
    edge.until_waiting(2).await;
    let head = edge.send("b", "1");
    edge.drain.cancel();
    let answer = Answer::read(&mut waiting).await;
    assert_eq!((answer.events(), answer.cursor()), (vec![], head));
    assert!(answer.headers["retry-after"].parse::<u32>().unwrap() > 0);
    assert_eq!(Answer::read(&mut state).await.problem().code.as_str(), "unavailable");
    drop((waiting, state, idle));
    let address = edge.address;
    within("it ends", edge.served).await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn the_end_of_patience_cuts_what_is_left() {
    let edge = Edge::start().await;
    let mut half = edge.connect().await;
    half.write_all(b"GET /v1/state/a HTTP/1.1\r\nhost: a\r\n\r\nGET /v1/ev").await.unwrap();
    half.read_exact(&mut [0; 100]).await.unwrap();
    edge.drain.cancel();
    edge.served.abort();
    let mut rest = Vec::new();
    let _ = within("the answer ends", half.read_to_end(&mut rest)).await;
}

#[tokio::test]
async fn the_api_describes_itself() {
    let edge = Edge::start().await;
    let answer = edge.get("/v1/openapi.json").await;
    assert!(answer.json()["openapi"].as_str().unwrap().starts_with("3.1."));
    assert!(answer.json()["paths"]["/v1/state/{topic}"]["get"].is_object());
}
