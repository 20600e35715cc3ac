//! SIGTERM: the slot is free, every waiter knows where to go on, and the process is gone soon.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use walcast_client::{After, EventsRequest, Message, Stream, Transport};

use crate::broker::{Follower, connect, patterns, prepare, run, until, value_of, within};
use crate::plain::get;
use crate::server;
use crate::serving::{self, Process};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY)";
const RULE: &str = "[[table]]\nname = 'public.t'\ntopic = 't'";

/// The whole answer to a long-poll that waits.
async fn long_poll(address: String, cursor: String) -> String {
    let mut socket = TcpStream::connect(&address).await.unwrap();
    let request = format!(
        "GET /v1/events?topic=t&after={cursor} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

/// What a stream says last.
async fn goodbye(stream: &mut Stream) -> Option<Duration> {
    loop {
        match within("a goodbye", stream.next()).await.unwrap().expect("it ended without one") {
            Message::Bye { retry } => return retry,
            Message::Subscribed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_process_that_is_told_to_end_sends_its_clients_on() {
    let name = "drain_term";
    let url = server::create(name).await;
    prepare(&url, name, TABLE, RULE).await;
    let text = serving::settings(&url, name, "", RULE);
    let first = Process::start(name, &text).await;
    first.ready().await;
    let mut now = EventsRequest::new(patterns(&["t"])).after(After::Now);
    now.wait = Some(Duration::ZERO);
    let cursor = first.client.poll(&now).await.unwrap().cursor;
    let poll = tokio::spawn(long_poll(first.http.clone(), cursor.to_string()));
    let request = EventsRequest::new(patterns(&["t"])).after(After::Cursor(cursor));
    let mut sse = first.client.open(Transport::Sse, request.clone()).await.unwrap();
    let mut ws = first.client.open(Transport::WebSocket, request).await.unwrap();
    until("all three wait", async || {
        let (_, body) = get(&first.admin, "/readyz").await;
        body.contains("\"subscriptions\":3")
    })
    .await;

    let sql = connect(&url).await;
    first.signal("TERM");
    assert!(goodbye(&mut ws).await.is_some());
    let live = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}_live'");
    let held = value_of(&sql, &live).await != "0";
    assert!(goodbye(&mut sse).await.is_some());
    let answer = within("the answer to the long-poll", poll).await.unwrap();
    let head = answer.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200") && head.contains("\r\nretry-after: "), "{answer}");
    assert!(answer.contains("\"events\":[]") && answer.contains("{\"cursor\":\""), "{answer}");
    let (code, took, log) = first.ended().await;
    println!("ended {took:?} after its clients were gone");
    assert_eq!(code, Some(0), "{log}");
    assert!(took < Duration::from_secs(10));
    assert!(!log.contains("ERROR"), "{log}");
    // A machine without time for it is waited for, but not for long, and that is said.
    let said = log.contains("the slot is not released after");
    assert!(!held || said, "clients were sent away while the slot was held: {log}");

    // Whoever comes back misses nothing.
    run(&sql, "INSERT INTO t VALUES (1), (2)").await;
    let second = Process::start(name, &text).await;
    second.ready().await;
    for place in [sse.into_subscription(), ws.into_subscription()] {
        for transport in Transport::ALL {
            let mut follower = Follower(second.client.resume(transport, place.clone()).await.unwrap());
            assert_eq!(follower.lines(2).await, [r#"t insert {"id":1}"#, r#"t insert {"id":2}"#]);
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_nobody_up() {
    let name = "drain_stuck";
    let url = server::create(name).await;
    prepare(&url, name, "CREATE TABLE t (id int PRIMARY KEY, data text)", RULE).await;
    let process = Process::start(name, &serving::settings(&url, name, "", RULE)).await;
    process.ready().await;
    let mut stuck = TcpStream::connect(&process.http).await.unwrap();
    let request = format!(
        "GET /v1/events?topic=t&after=now HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n\r\n",
        process.http
    );
    stuck.write_all(request.as_bytes()).await.unwrap();
    until("it waits", async || get(&process.admin, "/readyz").await.1.contains("\"subscriptions\":1")).await;
    let sql = connect(&url).await;
    run(&sql, "INSERT INTO t SELECT n, repeat('x', 100000) FROM generate_series(1, 200) n").await;
    process.signal("TERM");
    let (code, took, log) = process.ended().await;
    println!("ended {took:?} with a client that does not read");
    assert_eq!(code, Some(0), "{log}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}
