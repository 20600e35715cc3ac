//! Keys: who is let in, on every way in, and turned out when its key is taken back.

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use walcast::auth::{KeyConfig, RoleConfig, Token};

use crate::edge::Edge;
use crate::streams::Sse;
use crate::wait::within;

fn role(name: &str, subscribe: &[&str], publish: &[&str], waiters: &[&str]) -> RoleConfig {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let (subscribe, publish, waiters) = (texts(subscribe), texts(publish), texts(waiters));
    RoleConfig { name: name.into(), subscribe, publish, waiters, admin: false }
}

fn key(sub: &str, token: &str, role: &str) -> KeyConfig {
    KeyConfig { sub: sub.into(), sha256: Token::sha256_of(token.as_bytes()), roles: vec![role.into()] }
}

fn roles() -> [RoleConfig; 2] {
    [role("vm", &["vm/{sub}"], &[], &[]), role("allocator", &["vm/*"], &["vm/*"], &["vm/**"])]
}

fn keys() -> [KeyConfig; 3] {
    [key("a", "token-a", "vm"), key("b", "token-b", "vm"), key("allocator", "token-c", "allocator")]
}

fn bearer(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

#[tokio::test]
async fn each_is_granted_its_own() {
    let edge = Edge::start().await;
    edge.let_in(&keys(), &roles());
    edge.put("vm/a", "1");
    let check = async |target: &str, token: Option<&str>, status: u16| {
        let headers = token.map(bearer).unwrap_or_default();
        // By the wait path, and by hyper, which gets what the wait path does not know.
        for more in ["", "expect: nothing\r\n"] {
            let answer = edge.get_with(target, &format!("{headers}{more}")).await;
            assert_eq!(answer.status, status, "{target} {token:?}: {answer:?}");
            if status == 401 {
                assert_eq!(answer.headers["www-authenticate"], "Bearer");
                assert_eq!(answer.problem().code.as_str(), "unauthorized");
            }
        }
    };
    for target in
        ["/v1/events?topic=vm/a&wait=0", "/v1/state/vm/a", "/v1/waiters?topic=vm/a", "/v1/ws?topic=vm/a"]
    {
        check(target, None, 401).await;
        check(target, Some("token-d"), 401).await;
        check(target, Some("token-b"), 403).await;
    }
    check("/v1/events?topic=vm/a&wait=0", Some("token-a"), 200).await;
    check("/v1/state/vm/a", Some("token-a"), 200).await;
    for other in ["vm/a&topic=vm/b", "vm/*", "**", "vm/a/x"] {
        check(&format!("/v1/events?topic={other}&wait=0"), Some("token-a"), 403).await;
    }
    check("/v1/events?topic=vm/*&wait=0", Some("token-c"), 200).await;
    check("/v1/waiters?topic=vm/*", Some("token-c"), 200).await;
    // Everybody, that is.
    check("/v1/waiters", Some("token-c"), 403).await;
    // A token in an address would be in the logs of whoever passes it on.
    check("/v1/events?topic=vm/a&wait=0&token=token-a", None, 401).await;
    check("/v1/events?topic=vm/a&wait=0&token=token-a", Some("token-a"), 400).await;
}

#[tokio::test]
async fn who_may_not_publish_commits_nothing() {
    let edge = Edge::start().await;
    edge.let_in(&keys(), &roles());
    let body = r#"{"topic": "vm/a", "data": 1}"#;
    assert_eq!(edge.post("", body).await.status, 401);
    let refused = edge.post(&bearer("token-a"), body).await;
    assert_eq!((refused.status, refused.problem().detail.as_str()), (403, "`a` may not publish to `vm/a`"));
    assert_eq!(edge.post(&bearer("token-c"), r#"{"topic": "x", "data": 1}"#).await.status, 403);
    assert_eq!(edge.shelf.0.lock().len(), 0);
    assert_eq!(edge.post(&bearer("token-c"), body).await.status, 200);
    assert_eq!(edge.shelf.0.lock().len(), 1);
}

#[tokio::test]
async fn a_websocket_is_granted_no_more_later() {
    let edge = Edge::start().await;
    edge.let_in(&keys(), &roles());
    let mut request = "ws://a/v1/ws?topic=vm/a".into_client_request().unwrap();
    request.headers_mut().insert("authorization", "Bearer token-a".parse().unwrap());
    let (mut socket, _) = client_async(request, edge.connect().await).await.unwrap();
    let mut frame = async |send: Option<&str>| {
        if let Some(text) = send {
            socket.send(Message::text(text)).await.unwrap();
        }
        loop {
            match within("a frame", socket.next()).await.unwrap().unwrap() {
                Message::Text(text) if !text.contains("bookmark") => {
                    return serde_json::from_str::<serde_json::Value>(&text).unwrap();
                }
                Message::Close(close) => return json!({"closed": u16::from(close.unwrap().code)}),
                _ => {}
            }
        }
    };
    assert_eq!(frame(None).await["subscribed"]["topics"], json!(["vm/a"]));
    let refused = frame(Some(r#"{"subscribe": {"topics": ["vm/b"]}}"#)).await;
    assert_eq!(refused["error"]["code"], "forbidden", "{refused}");
    edge.send("vm/b", "1");
    edge.send("vm/a", "2");
    assert_eq!(frame(None).await["event"]["data"], 2);
    // Its key is taken back: it has to come again, and is not let in.
    edge.let_in(&keys()[1..], &roles());
    assert_eq!(frame(None).await["closed"], 1001);
}

#[tokio::test]
async fn who_waits_is_turned_out_with_its_key() {
    let edge = Edge::start().await;
    edge.let_in(&keys(), &roles());
    let (a, b) = (bearer("token-a"), bearer("token-b"));
    let mut stream = Sse::open(&edge, "/v1/events?topic=vm/a", &a).await;
    let polls = async |topic: &str, header: &str| {
        edge.get_with(&format!("/v1/events?topic={topic}&wait=60"), header).await
    };
    let (turned_out, stays, ()) = tokio::join!(polls("vm/a", &a), polls("vm/b", &b), async {
        edge.until_waiting(3).await;
        edge.let_in(&keys()[1..], &roles());
        edge.until_waiting(1).await;
        edge.send("vm/b", "1");
    });
    assert_eq!((turned_out.status, turned_out.json()["events"].clone()), (200, json!([])));
    assert_eq!(stays.json()["events"][0]["data"], 1);
    assert_eq!(edge.get_with("/v1/events?topic=vm/a", &a).await.status, 401);
    // The stream ends, with a place to go on from.
    stream.id().await;
    while stream.next_block().await {}
}

#[tokio::test]
async fn without_keys_nobody_is_asked_until_there_is_one() {
    let edge = Edge::start().await;
    let waits = async { edge.get("/v1/events?topic=vm/a&wait=60").await };
    let (answer, ()) = tokio::join!(waits, async {
        edge.until_waiting(1).await;
        edge.let_in(&keys(), &roles());
    });
    assert_eq!(answer.status, 200);
    assert_eq!(edge.get("/v1/events?topic=vm/a&wait=0").await.status, 401);
}
