//! Endpoints: an existing client's own request, answered as the configuration says.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use walcast::auth::{KeyConfig, RoleConfig, Token};
use walcast_wire::Epoch;

use crate::edge::Edge;
use crate::plain::Answer;
use crate::wait::within;

const STARTUP: &str = r#"
[[endpoint]]
method = "POST"
path = "/vm_startup"
topic = "vm/{body.hostname}"
ready = "data.crdcommand != null && data.pin != null"
response = { status = "'success'", command = "data.crdcommand", pin = "data.pin" }
missing = { status = 404, body = { error = "'VM not found.'" } }
invalid = { status = 400, body = { error = "'Hostname is required.'" } }
"#;
const FREE: &str = r#"{"crdcommand":null,"pin":null}"#;
const START: &str = r#"{"crdcommand":"start","pin":7}"#;
const HOST: &str = r#"{"hostname":"a"}"#;
/// By the wait path, and by hyper, which gets what the wait path does not know.
const WAYS: [&str; 2] = ["", "expect: nothing\r\n"];

/// The same, heard of every second while it is held, and beside it one that is patient.
fn heard() -> String {
    format!("{STARTUP}keepalive = '1s'\n{}", STARTUP.replace("/vm_startup", "/patient"))
}

fn success() -> Value {
    json!({"status": "success", "command": "start", "pin": 7})
}

fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

async fn ask(edge: &Edge, headers: &str, body: &str) -> Answer {
    edge.raw(post("/vm_startup", &format!("connection: close\r\n{headers}"), body)).await
}

/// A request whose answer is read later.
async fn begin(edge: &Edge, headers: &str) -> TcpStream {
    begin_at(edge, "/vm_startup", headers).await
}

async fn begin_at(edge: &Edge, path: &str, headers: &str) -> TcpStream {
    let mut stream = edge.connect().await;
    let close = format!("connection: close\r\n{headers}");
    stream.write_all(post(path, &close, HOST).as_bytes()).await.unwrap();
    stream
}

/// Reads until the body has begun with a blank; what was read.
async fn blank(stream: &mut TcpStream) -> String {
    let mut read = String::new();
    while !read.ends_with("\r\n1\r\n \r\n") {
        let mut buf = [0; 1024];
        let length = within("a blank", stream.read(&mut buf)).await.unwrap();
        assert!(length > 0, "it ended: {read}");
        read.push_str(std::str::from_utf8(&buf[..length]).unwrap());
    }
    assert!(read.starts_with("HTTP/1.1 200"), "{read}");
    assert!(
        read.contains("content-type: application/json\r\n") && read.contains("x-accel-buffering: no"),
        "{read}"
    );
    read
}

/// What stands in chunks behind blanks; `None` if they were cut off, and nothing but blanks came before.
async fn rest(stream: &mut TcpStream) -> Option<String> {
    let mut read = String::new();
    // Whoever is cut off may see that as an error, too.
    let _ = within("the end", stream.read_to_string(&mut read)).await;
    let (mut rest, mut text) = (read.as_str(), String::new());
    while let Some((length, after)) = rest.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        let (chunk, after) = after.split_at(length);
        text.push_str(chunk);
        rest = after.strip_prefix("\r\n").unwrap();
        if length == 0 {
            assert_eq!(rest, "");
            return Some(text);
        }
    }
    assert_eq!(text.trim(), "", "it was cut off behind its answer");
    None
}

#[tokio::test]
async fn a_request_is_answered_once_its_value_is_ready() {
    for way in WAYS {
        let edge = Edge::answering(STARTUP).await;
        let missing = ask(&edge, way, HOST).await;
        assert_eq!((missing.status, missing.json()), (404, json!({"error": "VM not found."})));
        for body in ["{}", "", "[", r#"{"hostname":null}"#, r#"{"hostname":""}"#] {
            let invalid = ask(&edge, way, body).await;
            assert_eq!(
                (invalid.status, invalid.json()),
                (400, json!({"error": "Hostname is required."})),
                "{body}"
            );
        }
        edge.put("vm/a", FREE);
        let mut held = begin(&edge, way).await;
        edge.until_waiting(1).await;
        edge.put("vm/a", r#"{"crdcommand":"start","pin":null}"#);
        edge.put("vm/b", START);
        edge.put("vm/a", START);
        let answer = Answer::read(&mut held).await;
        assert_eq!((answer.status, answer.json()), (200, success()), "{answer:?}");
        assert_eq!(answer.headers["content-type"], "application/json");
        // It is there already.
        assert_eq!(ask(&edge, way, HOST).await.json(), success());
        edge.put("vm/a", FREE);
        let mut held = begin(&edge, way).await;
        edge.until_waiting(1).await;
        edge.clear("vm/a");
        assert_eq!(Answer::read(&mut held).await.status, 404);
        edge.until_waiting(0).await;
    }
}

#[tokio::test]
async fn a_held_request_hears_blanks_and_then_its_answer() {
    for way in WAYS {
        let edge = Edge::answering(&heard()).await;
        edge.put("vm/a", FREE);
        let mut held = begin(&edge, way).await;
        blank(&mut held).await;
        edge.put("vm/a", START);
        let text = rest(&mut held).await.expect("it was cut off");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), success());
    }
}

#[tokio::test]
async fn what_is_no_success_is_cut_off_once_the_answer_has_begun() {
    type Act = fn(&Edge);
    let acts: [(&str, Act, u16); 4] = [
        (
            "deleted",
            |edge| {
                edge.clear("vm/a");
            },
            404,
        ),
        // Of the new line it is known already that there is no such value.
        ("something may be missing", |edge| edge.begin_line(Epoch(2)), 404),
        ("the key is taken back", |edge| edge.let_in(&[], &[role("vm")]), 503),
        ("the broker goes away", |edge| edge.drain.cancel(), 503),
    ];
    for (what, act, status) in acts {
        for way in WAYS {
            let edge = Edge::answering(&heard()).await;
            edge.let_in(&[key("a", "token-a")], &[role("vm")]);
            edge.put("vm/a", FREE);
            let way = format!("{way}authorization: Bearer token-a\r\n");
            let mut held = begin(&edge, &way).await;
            edge.until_waiting(1).await;
            blank(&mut held).await;
            let mut new = begin_at(&edge, "/patient", &way).await;
            edge.until_waiting(2).await;
            act(&edge);
            assert_eq!(rest(&mut held).await, None, "{what}");
            // Of which nothing was sent is told, if it still can be.
            let answer = Answer::read(&mut new).await;
            assert_eq!(answer.status, status, "{what}: {answer:?}");
            edge.until_waiting(0).await;
        }
    }
}

#[tokio::test]
async fn nothing_is_held_for_longer_than_allowed() {
    for way in WAYS {
        let edge = Edge::answering(&format!("{STARTUP}hold = '1s'\n")).await;
        edge.put("vm/a", FREE);
        let answer = Answer::read(&mut begin(&edge, way).await).await;
        assert_eq!(answer.problem().code.as_str(), "unavailable");
        assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    }
}

#[tokio::test]
async fn http_1_0_hears_nothing_before_its_answer() {
    let edge = Edge::answering(&heard()).await;
    edge.put("vm/a", FREE);
    let old = post("/vm_startup", "", HOST).replace("HTTP/1.1", "HTTP/1.0");
    let mut stream = edge.connect().await;
    stream.write_all(old.as_bytes()).await.unwrap();
    edge.until_waiting(1).await;
    // Another one hears its blanks meanwhile.
    blank(&mut begin(&edge, "").await).await;
    edge.clear("vm/a");
    assert_eq!(Answer::read(&mut stream).await.status, 404);
}

#[tokio::test]
async fn a_key_that_is_taken_back_before_the_body_has_come_is_none() {
    for way in WAYS {
        let edge = Edge::answering(STARTUP).await;
        edge.let_in(&[key("a", "token-a")], &[role("vm")]);
        edge.put("vm/a", START);
        let way = format!("connection: close\r\n{way}authorization: Bearer token-a\r\n");
        let request = post("/vm_startup", &way, HOST);
        let (head, body) = request.split_at(request.len() - 1);
        let mut stream = edge.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        // Whoever asks behind it was let in behind it.
        assert_eq!(edge.get("/v1/waiters?topic=vm/a").await.status, 401);
        edge.let_in(&[], &[role("vm")]);
        stream.write_all(body.as_bytes()).await.unwrap();
        assert_eq!(Answer::read(&mut stream).await.problem().code.as_str(), "unauthorized");
    }
}

#[tokio::test]
async fn a_broker_that_knows_nothing_yet_says_so() {
    let edge = Edge::answering_unstarted(STARTUP).await;
    for way in WAYS {
        assert_eq!(ask(&edge, way, HOST).await.problem().code.as_str(), "unavailable");
    }
}

#[tokio::test]
async fn a_body_that_never_comes_does_not_hold_up_a_drain() {
    let edge = Edge::answering(STARTUP).await;
    let mut stream = edge.connect().await;
    stream.write_all(b"POST /vm_startup HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{").await.unwrap();
    // A whole answer to another one: by then the first has been read.
    assert_eq!(ask(&edge, "", HOST).await.status, 404);
    edge.drain.cancel();
    let mut read = String::new();
    within("it ends", stream.read_to_string(&mut read)).await.unwrap();
    assert_eq!(read, "");
}

#[tokio::test]
async fn a_client_that_is_gone_is_counted_out() {
    let edge = Edge::answering(STARTUP).await;
    edge.put("vm/a", FREE);
    for way in WAYS {
        let held = [begin(&edge, way).await, begin(&edge, way).await];
        edge.until_waiting(2).await;
        let waiters = edge.get("/v1/waiters?topic=vm/a").await.json();
        assert_eq!(waiters["waiters"][0]["transport"], "endpoint", "{waiters}");
        assert_eq!(waiters["waiters"][0]["client"], "a");
        drop(held);
        edge.until_waiting(0).await;
    }
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let edge = Edge::answering(&heard()).await;
    edge.put("vm/a", FREE);
    let mut stream = edge.connect().await;
    // Its body in two parts, and the next request before the first is answered.
    let request = post("/vm_startup", "", HOST);
    let (first, second) = request.split_at(request.len() - 5);
    stream.write_all(first.as_bytes()).await.unwrap();
    stream.write_all(second.as_bytes()).await.unwrap();
    blank(&mut stream).await;
    let next =
        format!("{}{}", post("/vm_startup", "", "{}"), post("/vm_startup", "connection: close\r\n", HOST));
    stream.write_all(next.as_bytes()).await.unwrap();
    edge.put("vm/a", START);
    let mut read = String::new();
    within("three answers", stream.read_to_string(&mut read)).await.unwrap();
    let (first, rest) = read.split_once("0\r\n\r\n").unwrap();
    assert!(first.contains("\"pin\":7"), "{read}");
    let bad = rest.find("HTTP/1.1 400 ").unwrap();
    let good = rest.find("HTTP/1.1 200 ").unwrap();
    assert!(bad < good && rest.ends_with(r#"{"command":"start","pin":7,"status":"success"}"#), "{read}");
}

#[tokio::test]
async fn other_requests_are_told_what_there_is() {
    let edge = Edge::answering(STARTUP).await;
    for way in WAYS {
        let wrong = edge.get_with("/vm_startup", way).await;
        assert_eq!((wrong.status, wrong.headers["allow"].as_str()), (405, "POST"));
        assert_eq!(wrong.problem().code.as_str(), "method_not_allowed");
        assert_eq!(edge.get_with("/vm_startup/", way).await.problem().code.as_str(), "no_such_path");
        let large = ask(&edge, way, &" ".repeat(70_000)).await;
        assert_eq!(large.problem().code.as_str(), "body_too_large");
        // A body of unknown length is read, too.
        edge.put("vm/a", START);
        let length = HOST.len();
        let request = format!(
            "POST /vm_startup HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{HOST}\r\n0\r\n\r\n"
        );
        assert_eq!(edge.raw(request).await.json(), success());
    }
}

fn role(name: &str) -> RoleConfig {
    RoleConfig { name: name.into(), subscribe: vec!["vm/{sub}".into()], ..RoleConfig::default() }
}

fn key(sub: &str, token: &str) -> KeyConfig {
    KeyConfig { sub: sub.into(), sha256: Token::sha256_of(token.as_bytes()), roles: vec!["vm".into()] }
}

#[tokio::test]
async fn each_asks_for_its_own_unless_everybody_may() {
    let open = STARTUP.replace("/vm_startup", "/open") + "auth = 'none'\n";
    let edge = Edge::answering(&format!("{STARTUP}{open}")).await;
    edge.put("vm/a", START);
    edge.let_in(&[key("a", "token-a"), key("b", "token-b")], &[role("vm")]);
    for way in WAYS {
        let bearer = |token: &str| format!("{way}authorization: Bearer {token}\r\n");
        assert_eq!(ask(&edge, way, HOST).await.problem().code.as_str(), "unauthorized");
        assert_eq!(ask(&edge, &bearer("token-c"), HOST).await.problem().code.as_str(), "unauthorized");
        assert_eq!(ask(&edge, &bearer("token-b"), HOST).await.problem().code.as_str(), "forbidden");
        assert_eq!(ask(&edge, &bearer("token-a"), HOST).await.json(), success());
        let open = edge.raw(post("/open", &format!("connection: close\r\n{way}"), HOST)).await;
        assert_eq!(open.json(), success());
    }
}

#[tokio::test]
async fn a_topic_is_made_of_any_part_of_a_request() {
    let endpoints = r#"
[[endpoint]]
path = "/{fleet}/up"
topic = "vm/{path.fleet}.{query.slot}.{header.X-Zone}.{body.vm.id}"
[[endpoint]]
path = "/form"
topic = "vm/{body.name}"
[[endpoint]]
method = "GET"
path = "/vms"
topic = "vm/{query.name}"
"#;
    let edge = Edge::answering(endpoints).await;
    for topic in ["vm/a.3.z.17", "vm/a%2Fb", "vm/c"] {
        edge.put(topic, r#"{"n":1.10}"#);
    }
    for way in WAYS {
        let check = async |request: String| {
            let answer = edge
                .raw(request.replace("host: a", &format!("host: a\r\nconnection: close\r\n{way}x-a: b")))
                .await;
            assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"n":1.10}"#), "{request}");
        };
        check(post("/a/up?slot=3&more", "x-zone: z\r\n", r#"{"vm":{"id":17}}"#)).await;
        let form = "content-type: application/x-www-form-urlencoded\r\n";
        check(post("/form", form, "x=1&name=a%2Fb")).await;
        check("GET /vms?name=c HTTP/1.1\r\nhost: a\r\n\r\n".to_owned()).await;
        let bad = edge.get_with("/vms", way).await;
        let detail = bad.problem().detail;
        assert!(bad.status == 400 && detail.contains("the parameter `name` is missing"), "{detail}");
    }
}

#[tokio::test]
async fn an_event_can_be_what_is_waited_for() {
    let endpoints = r#"
[[endpoint]]
path = "/next"
topic = "jobs/{body.queue}"
of = "events"
ready = "op == 'message' && data.size > 1"
response = { job = "data", where = "topic" }
keepalive = "1s"
"#;
    for way in WAYS {
        let edge = Edge::answering(endpoints).await;
        edge.send("jobs/a", r#"{"size":9}"#);
        let mut stream = edge.connect().await;
        let request = post("/next", &format!("connection: close\r\n{way}"), r#"{"queue":"a"}"#);
        stream.write_all(request.as_bytes()).await.unwrap();
        blank(&mut stream).await;
        edge.send("jobs/a", r#"{"size":1}"#);
        edge.send("jobs/a", "null");
        edge.send("jobs/a", r#"{"size":2}"#);
        let text = rest(&mut stream).await.unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&text).unwrap(),
            json!({"job": {"size": 2}, "where": "jobs/a"})
        );
    }
}
