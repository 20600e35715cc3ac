//! Streams: server-sent events and WebSocket.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};
use tokio_tungstenite::{WebSocketStream, client_async};
use walcast::hub;
use walcast::transport::Config;
use walcast_wire::{Cursor, Epoch, Position, ServerFrame};

use crate::edge::{EPOCH, Edge, message};
use crate::plain::Plain;
use crate::wait::within;

const SECOND: Duration = Duration::from_secs(1);

/// Reads a stream block by block.
pub(crate) struct Sse {
    stream: TcpStream,
    read: String,
}

impl Sse {
    pub(crate) async fn open(http: &Plain, target: &str, headers: &str) -> Self {
        let stream = http.begin(target, &format!("accept: text/event-stream\r\n{headers}")).await;
        let mut sse = Self { stream, read: String::new() };
        let head = sse.until("\r\n\r\n").await.unwrap();
        assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("text/event-stream") && head.contains("no-store"), "{head}");
        sse
    }

    async fn until(&mut self, end: &str) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.read.split_once(end) {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.read = rest;
                return Some(block);
            }
            let mut buf = [0; 4096];
            let read = within("more of the stream", self.stream.read(&mut buf)).await.unwrap();
            if read == 0 {
                return None;
            }
            self.read.push_str(std::str::from_utf8(&buf[..read]).unwrap());
        }
    }

    /// The next block, as field and value of each line; `None` at the end.
    async fn block(&mut self) -> Option<Vec<(String, String)>> {
        let block = self.until("\n\n").await?;
        let fields = block.lines().map(|line| line.split_once(':').unwrap());
        Some(fields.map(|(name, value)| (name.to_owned(), value.trim_start().to_owned())).collect())
    }

    /// The next block that is not only `retry`, `id` or a comment: event, id, data.
    pub(crate) async fn event(&mut self) -> (String, Option<Cursor>, Value) {
        loop {
            let block = self.block().await.expect("the stream ended");
            let field = |name: &str| block.iter().find(|(field, _)| field == name).map(|(_, value)| value);
            if let Some(data) = field("data") {
                let name = field("event").cloned().unwrap_or_else(|| "message".to_owned());
                let id = field("id").map(|id| id.parse().unwrap());
                return (name, id, serde_json::from_str(data).unwrap());
            }
        }
    }

    /// Reads one more block; whether there was one.
    pub(crate) async fn next_block(&mut self) -> bool {
        self.block().await.is_some()
    }

    /// The next id, of whatever block.
    pub(crate) async fn id(&mut self) -> Cursor {
        loop {
            let block = self.block().await.expect("the stream ended");
            if let Some((_, id)) = block.iter().find(|(field, _)| field == "id") {
                return id.parse().unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_stream_tells_events_and_ids_between_which_nothing_is_lost() {
    let edge = Edge::start().await;
    let mut sse = Sse::open(&edge, "/v1/events?topic=a&topic=b", "").await;
    assert_eq!(sse.block().await.unwrap()[0].0, "retry");
    // Known from the start: a cut before the first event must not lose it.
    let start = sse.id().await;
    edge.commit(vec![(1, message("a", "1")), (1, message("b", "1")), (2, message("a", "2"))]);
    let (first, second, third) = (sse.event().await, sse.event().await, sse.event().await);
    assert_eq!((first.1, &first.2["topic"]), (None, &json!("a")));
    assert_eq!(
        (second.1.unwrap().to_string(), &second.2["topic"]),
        (second.2["cursor"].as_str().unwrap().to_owned(), &json!("b"))
    );
    assert_eq!((third.1.is_some(), &third.2["data"]), (true, &json!(2)));
    // The last id wins over what the address says, as when a browser comes back.
    let header = format!("last-event-id: {start}\r\n");
    let mut again = Sse::open(&edge, "/v1/events?topic=a&topic=b&after=now", &header).await;
    assert_eq!(again.event().await.2, first.2);
}

#[tokio::test]
async fn a_stream_says_resets_in_band_and_goes_on() {
    let edge = Edge::with(Config::default(), hub::Config { events: 2, ..hub::Config::default() }).await;
    edge.put("vm/a", "1");
    for i in 2..6 {
        edge.send("vm/b", &i.to_string());
    }
    let old = Cursor::new(EPOCH, Position::before(100));
    let foreign = Cursor::new(Epoch(9), Position::before(100));
    for (id, reason) in [
        (old.to_string(), "cursor_expired"),
        (foreign.to_string(), "epoch_changed"),
        ("of-another-version".to_owned(), "epoch_changed"),
    ] {
        let mut sse = Sse::open(&edge, "/v1/events?topic=vm/*", &format!("last-event-id: {id}\r\n")).await;
        let (name, id, data) = sse.event().await;
        assert_eq!((name.as_str(), &data["reason"]), ("reset", &json!(reason)));
        assert_eq!(json!(id.unwrap()), data["resume"]);
        let mut data = Vec::new();
        for _ in 0..3 {
            data.push(sse.event().await.2["data"].clone());
        }
        assert_eq!(data, [json!(1), json!(4), json!(5)]);
        assert_eq!(sse.id().await, edge.hub.head().unwrap());
    }
}

#[tokio::test]
async fn a_quiet_stream_breathes_and_moves_on() {
    let edge = Edge::with(Config { heartbeat: SECOND, ..Config::default() }, hub::Config::default()).await;
    let mut sse = Sse::open(&edge, "/v1/events?topic=a", "").await;
    sse.id().await;
    let head = edge.send("b", "1");
    let block = sse.block().await.unwrap();
    assert_eq!(block[0].0, "");
    assert_eq!(block[1], ("id".to_owned(), head.to_string()));
}

#[tokio::test]
async fn a_stream_is_never_refused_for_what_time_mends() {
    let edge = Edge::unstarted(Config::default(), hub::Config::default()).await;
    let mut sse = Sse::open(&edge, "/v1/events?topic=a", "").await;
    let (name, id, problem) = sse.event().await;
    assert_eq!((name.as_str(), id, &problem["code"]), ("problem", None, &"unavailable".into()));
    assert_eq!(problem, serde_json::to_value(edge.get("/v1/events?topic=a").await.problem()).unwrap());
    assert_eq!(sse.block().await, None);
    // In the same block as the delay, for an EventSource comes back after it.
    let mut sse = Sse::open(&edge, "/v1/events?topic=a", "").await;
    let block = sse.block().await.unwrap();
    assert_eq!(block.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["event", "data", "retry"]);
}

pub(crate) struct Ws(WebSocketStream<TcpStream>);

impl Ws {
    pub(crate) async fn open(http: &Plain, query: &str) -> Self {
        let stream = http.connect().await;
        Self(client_async(format!("ws://a/v1/ws{query}"), stream).await.unwrap().0)
    }

    /// The next frame, as its name and content.
    async fn frame(&mut self) -> (String, Value) {
        loop {
            match within("a frame", self.0.next()).await.unwrap().unwrap() {
                Message::Text(text) => {
                    let _: ServerFrame<Value> = serde_json::from_str(&text).unwrap();
                    let frame: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
                    return frame.into_iter().next().unwrap();
                }
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) async fn expect(&mut self, name: &str) -> Value {
        let (got, content) = self.frame().await;
        assert_eq!(got, name, "{content}");
        content
    }

    /// The next event; bookmarks may come before it.
    async fn event(&mut self) -> Value {
        loop {
            match self.frame().await {
                (name, data) if name == "event" => return data,
                (name, data) => assert_eq!(name, "bookmark", "{data}"),
            }
        }
    }

    pub(crate) async fn send(&mut self, frame: Value) {
        self.0.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// Up to and with the closing frame.
    async fn close(&mut self) -> CloseFrame {
        loop {
            let message = within("a frame", self.0.next()).await.expect("ended without a close").unwrap();
            if let Message::Close(frame) = message {
                return frame.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn topics_come_and_go_on_a_websocket() {
    let edge = Edge::start().await;
    edge.put("vm/a", "1");
    let mut ws = Ws::open(&edge, "?topic=a").await;
    assert_eq!(ws.expect("subscribed").await["topics"], json!(["a"]));
    let head = edge.hub.head().unwrap();
    assert_eq!(ws.expect("bookmark").await["cursor"], json!(head));
    edge.send("a", "2");
    assert_eq!(ws.expect("event").await["data"], json!(2));
    // Added topics tell their current values, and what was there is not told again.
    ws.send(json!({"subscribe": {"topics": ["vm/*", "a"]}})).await;
    assert_eq!(ws.expect("subscribed").await["topics"], json!(["a", "vm/*"]));
    let value = ws.expect("event").await;
    assert_eq!((&value["op"], &value["data"]), (&json!("snapshot"), &json!(1)));
    assert_eq!(ws.expect("bookmark").await["cursor"], json!(edge.hub.head().unwrap()));
    assert_eq!(edge.waiting(), 1);
    // A unit is one message.
    edge.commit(vec![(1, message("a", "3")), (1, message("vm/b", "3"))]);
    let unit = ws.expect("events").await;
    assert_eq!((&unit[0]["topic"], &unit[1]["topic"]), (&json!("a"), &json!("vm/b")));
    ws.send(json!({"unsubscribe": {"topics": ["vm/*"]}})).await;
    assert_eq!(ws.expect("subscribed").await["topics"], json!(["a"]));
    ws.expect("bookmark").await;
    edge.send("vm/b", "4");
    edge.send("a", "5");
    assert_eq!(ws.expect("event").await["data"], json!(5));
    ws.send(json!({"subscribe": {"topics": ["vm/b"], "after": "earliest"}})).await;
    ws.expect("subscribed").await;
    assert_eq!(ws.expect("event").await["data"], json!(3));
    assert_eq!(ws.expect("event").await["data"], json!(4));
    drop(ws);
    edge.until_waiting(0).await;
}

#[tokio::test]
async fn a_bad_frame_is_refused_and_the_connection_goes_on() {
    let edge = Edge::start().await;
    let mut ws = Ws::open(&edge, "").await;
    let deep = "[".repeat(60_000);
    for (text, code) in [
        ("", "bad_frame"),
        ("{", "bad_frame"),
        ("{\"hello\":{}}", "bad_frame"),
        ("{\"subscribe\":{\"topics\":[\"a\"],\"more\":1}}", "bad_frame"),
        ("{\"subscribe\":{\"topics\":[\"a//b\"]}}", "bad_frame"),
        ("{\"subscribe\":{\"topics\":[\"a\"],\"after\":\"x\"}}", "bad_cursor"),
        (deep.as_str(), "bad_frame"),
    ] {
        ws.0.send(Message::text(text)).await.unwrap();
        assert_eq!(ws.expect("error").await["code"], code, "{text:.60}");
    }
    ws.0.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(ws.expect("error").await["code"], "bad_frame");
    let many: Vec<_> = (0..101).map(|i| format!("t{i}")).collect();
    ws.send(json!({"subscribe": {"topics": many}})).await;
    assert_eq!(ws.expect("error").await["code"], "bad_frame");
    ws.send(json!({"subscribe": {"topics": ["a"]}})).await;
    assert_eq!(ws.expect("subscribed").await["topics"], json!(["a"]));
}

#[tokio::test]
async fn too_large_a_message_ends_the_websocket() {
    let edge = Edge::start().await;
    let mut ws = Ws::open(&edge, "?topic=a").await;
    ws.expect("subscribed").await;
    // The broker may close before it has read everything.
    let _ = ws.0.send(Message::text("x".repeat(70_000))).await;
    assert_eq!(u16::from(ws.close().await.code), 1009);
    edge.until_waiting(0).await;
}

#[tokio::test]
async fn a_websocket_is_told_of_resets_and_trouble() {
    let edge = Edge::start().await;
    edge.put("a", "1");
    let foreign = Cursor::new(Epoch(9), Position::before(1 << 50));
    let mut ws = Ws::open(&edge, &format!("?topic=a&after={foreign}")).await;
    assert_eq!(ws.expect("subscribed").await["cursor"], json!(foreign));
    assert_eq!(ws.expect("reset").await["reason"], json!("epoch_changed"));
    // Where history begins, for who is cut behind the first event and goes where it begins later.
    assert_eq!(ws.expect("bookmark").await["cursor"], json!(Cursor::new(EPOCH, Position::before(100))));
    assert_eq!(ws.expect("event").await["data"], json!(1));
    assert_eq!(ws.expect("bookmark").await["cursor"], json!(edge.hub.head().unwrap()));

    let unstarted = Edge::unstarted(Config::default(), hub::Config::default()).await;
    let mut ws = Ws::open(&unstarted, "?topic=a").await;
    assert_eq!(ws.expect("error").await["code"], "unavailable");
    let close = ws.close().await;
    assert_eq!(u16::from(close.code), 1001);
    assert!(close.reason.starts_with("retry="), "{}", close.reason);
}

#[tokio::test]
async fn a_websocket_that_does_not_answer_pings_is_closed() {
    let config = Config { heartbeat: SECOND, pong_timeout: SECOND, ..Config::default() };
    let edge = Edge::with(config, hub::Config::default()).await;
    let mut ws = Ws::open(&edge, "?topic=a").await;
    ws.expect("subscribed").await;
    // Nobody reads, so nobody answers.
    edge.until_waiting(1).await;
    edge.until_waiting(0).await;
    assert_eq!(u16::from(ws.close().await.code), 4008);
}

#[tokio::test]
async fn a_websocket_that_answers_pings_stays() {
    let config = Config { heartbeat: SECOND, pong_timeout: SECOND, ..Config::default() };
    let edge = Edge::with(config, hub::Config::default()).await;
    let mut ws = Ws::open(&edge, "?topic=a").await;
    ws.expect("subscribed").await;
    let mut pings = 0;
    while pings < 3 {
        match within("a frame", ws.0.next()).await.unwrap().unwrap() {
            Message::Ping(_) => pings += 1,
            Message::Text(_) => {}
            other => panic!("{other:?}"),
        }
    }
    // Quiet, but its cursor keeps up.
    let head = edge.send("b", "1");
    while ws.expect("bookmark").await["cursor"] != json!(head) {}
}

#[tokio::test]
async fn drain_says_goodbye_to_streams() {
    let edge = Edge::start().await;
    let mut sse = Sse::open(&edge, "/v1/events?topic=a", "").await;
    let mut ws = Ws::open(&edge, "?topic=a").await;
    ws.expect("subscribed").await;
    ws.expect("bookmark").await;
    edge.until_waiting(2).await;
    sse.id().await;
    // It has not said yet what it wants to follow.
    let mut silent = Ws::open(&edge, "").await;
    let head = edge.send("b", "1");
    edge.drain.cancel();
    assert_eq!(u16::from(silent.close().await.code), 1001);
    let last = sse.block().await.unwrap();
    assert_eq!(last[0], ("id".to_owned(), head.to_string()));
    assert_eq!(last[1].0, "retry");
    assert_eq!(sse.block().await, None);
    assert_eq!(ws.expect("bookmark").await["cursor"], json!(head));
    let close = ws.close().await;
    assert_eq!(u16::from(close.code), 1001);
    assert!(close.reason.starts_with("retry="), "{}", close.reason);
    drop((sse, ws, silent));
    within("it ends", edge.served).await.unwrap();
}

#[tokio::test]
async fn connections_under_one_name_each_see_everything() {
    let edge = Edge::start().await;
    let start = edge.get("/v1/events?topic=vm/a&wait=0").await.cursor();
    let query = "?topic=vm/a&after=now&client=vm-a";
    let mut sse = [
        Sse::open(&edge, &format!("/v1/events{query}"), "").await,
        Sse::open(&edge, &format!("/v1/events{query}"), "").await,
    ];
    let mut ws = [Ws::open(&edge, query).await, Ws::open(&edge, query).await];
    for ws in &mut ws {
        ws.expect("subscribed").await;
    }
    edge.until_waiting(4).await;
    for n in 0..5 {
        edge.send("vm/a", &n.to_string());
        for sse in &mut sse {
            assert_eq!(sse.event().await.2["data"], n);
        }
        for ws in &mut ws {
            assert_eq!(ws.event().await["data"], n);
        }
    }
    // One that polls under the same name takes nothing from them, nor does one that goes.
    let poll = format!("/v1/events?topic=vm/a&after={start}&client=vm-a");
    for _ in 0..2 {
        assert_eq!(edge.get(&poll).await.events(), (0..5).map(|n| format!("vm/a {n}")).collect::<Vec<_>>());
    }
    let [mut left, gone] = sse;
    drop(gone);
    edge.until_waiting(3).await;
    edge.send("vm/a", "5");
    assert_eq!(left.event().await.2["data"], 5);
    for ws in &mut ws {
        assert_eq!(ws.event().await["data"], 5);
    }
}
