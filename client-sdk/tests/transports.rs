//! The client against servers that answer canned bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use walcast_client::wire::{Cursor, Epoch, Position, ProblemCode, ResetReason};
use walcast_client::{After, Client, Error, EventsRequest, Message, State, Stream, Transport};

/// What the server does with one request.
enum Answer {
    /// Sends it and waits for the next request on the same connection.
    Keep(String),
    /// Sends it and closes.
    Close(String),
    /// Upgrades to a WebSocket, sends these text frames, and a close frame.
    WebSocket(Vec<String>, Option<(u16, &'static str)>),
    /// Closes at once.
    HangUp,
}

/// Serves the connections' scripts in turn; yields the head and body of each request.
async fn serve(connections: Vec<Vec<Answer>>) -> (Client, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
    let (seen, requests) = mpsc::channel(64);
    tokio::spawn(async move {
        for answers in connections {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in answers {
                let request = read_request(&mut stream).await;
                seen.send(request.clone()).await.unwrap();
                match answer {
                    Answer::Keep(text) => stream.write_all(text.as_bytes()).await.unwrap(),
                    Answer::Close(text) => {
                        stream.write_all(text.as_bytes()).await.unwrap();
                        break;
                    }
                    Answer::WebSocket(frames, close) => {
                        upgrade(&mut stream, &request, &frames, close).await;
                        break;
                    }
                    Answer::HangUp => break,
                }
            }
        }
    });
    (client, requests)
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "hung up within {text:?}");
    }
}

async fn upgrade(stream: &mut TcpStream, request: &str, frames: &[String], close: Option<(u16, &str)>) {
    let key = request.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
    let mut bytes = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    )
    .into_bytes();
    let mut frame = |opcode: u8, body: &[u8]| {
        bytes.extend([0x80 | opcode, 126]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
    };
    for text in frames {
        frame(1, text.as_bytes());
    }
    if let Some((code, reason)) = close {
        // A close frame must be short, and so must be the length's form.
        let body = [&code.to_be_bytes(), reason.as_bytes()].concat();
        bytes.extend([0x88, body.len() as u8]);
        bytes.extend(body);
    }
    stream.write_all(&bytes).await.unwrap();
    // Until the client's close frame or its end, so that nothing is lost to a reset.
    let _ = stream.read(&mut [0; 256]).await;
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

fn json(body: &str) -> String {
    answer("200 OK", "content-type: application/json\r\n", body)
}

fn cursor(n: u64) -> Cursor {
    Cursor::new(Epoch(7), Position::new(n, 1))
}

fn event(n: u64, topic: &str) -> String {
    format!(
        r#"{{"cursor":"{}","topic":"{topic}","op":"update","data":{{"n":{n}}},"lsn":"0/{n:X}"}}"#,
        cursor(n)
    )
}

fn page(upto: u64, events: &[String]) -> String {
    format!(r#"{{"cursor":"{}","events":[{}]}}"#, cursor(upto), events.join(","))
}

fn problem(code: &str, status: u16, resume: Option<Cursor>) -> String {
    let resume = resume.map_or(String::new(), |cursor| format!(r#","resume":"{cursor}""#));
    format!(r#"{{"title":"t","status":{status},"code":"{code}","detail":"what to do"{resume}}}"#)
}

fn request(topic: &str) -> EventsRequest {
    EventsRequest::new([topic.parse().unwrap()])
}

async fn next_event(stream: &mut Stream) -> String {
    match stream.next().await.unwrap() {
        Some(Message::Event(event)) => format!("{} {}", event.topic, event.data.get()),
        other => panic!("{other:?}"),
    }
}

fn first_line(request: &str) -> &str {
    request.lines().next().unwrap()
}

#[tokio::test]
async fn a_poll_answers_events_and_reuses_its_connection() {
    let (client, mut requests) = serve(vec![vec![
        Answer::Keep(json(&page(9, &[event(8, "a%2Fb")]))),
        Answer::Keep(json(&page(9, &[]))),
    ]])
    .await;
    let mut wanted = request("a%2Fb");
    wanted.wait = Some(Duration::from_secs(5));
    wanted.limit = Some(10);
    let reply = client.poll(&wanted).await.unwrap();
    assert_eq!((reply.cursor, reply.events[0].data.get()), (cursor(9), r#"{"n":8}"#));
    wanted.after = After::Cursor(reply.cursor);
    assert!(client.poll(&wanted).await.unwrap().events.is_empty());

    let seen = requests.recv().await.unwrap();
    assert_eq!(first_line(&seen), "GET /v1/events?topic=a%252Fb&wait=5&limit=10 HTTP/1.1");
    let seen = requests.recv().await.unwrap();
    let expected = format!("GET /v1/events?topic=a%252Fb&after={}&wait=5&limit=10 HTTP/1.1", cursor(9));
    assert_eq!(first_line(&seen), expected);
}

#[tokio::test]
async fn a_connection_that_went_stale_is_replaced() {
    let (client, _requests) = serve(vec![
        vec![Answer::Keep(json(&page(1, &[]))), Answer::HangUp],
        vec![Answer::Keep(json(&page(2, &[])))],
    ])
    .await;
    assert_eq!(client.poll(&request("a")).await.unwrap().cursor, cursor(1));
    assert_eq!(client.poll(&request("a")).await.unwrap().cursor, cursor(2));
}

#[tokio::test]
async fn a_poll_stream_goes_on_from_each_answer_and_says_goodbye() {
    let draining = answer("200 OK", "retry-after: 3\r\n", &page(6, &[]));
    let gone = answer("410 Gone", "", &problem("cursor_expired", 410, Some(cursor(5))));
    let (client, mut requests) = serve(vec![vec![
        Answer::Keep(json(&page(3, &[event(2, "vm/a"), event(3, "vm/b")]))),
        Answer::Keep(gone),
        Answer::Keep(draining),
    ]])
    .await;
    let mut stream = client.open(Transport::Poll, request("vm/*")).await.unwrap();
    assert_eq!(next_event(&mut stream).await, r#"vm/a {"n":2}"#);
    assert_eq!(stream.subscription().cursor(), None, "the page is not handed out");
    assert_eq!(next_event(&mut stream).await, r#"vm/b {"n":3}"#);
    assert_eq!(stream.subscription().cursor(), Some(cursor(3)));
    match stream.next().await.unwrap() {
        Some(Message::Reset(reset)) => {
            assert_eq!((reset.reason, reset.resume), (ResetReason::CursorExpired, cursor(5)));
        }
        other => panic!("{other:?}"),
    }
    match stream.next().await.unwrap() {
        Some(Message::Bye { retry }) => assert_eq!(retry, Some(Duration::from_secs(3))),
        other => panic!("{other:?}"),
    }
    assert!(stream.next().await.unwrap().is_none());
    assert_eq!(stream.into_subscription().request().after, After::Cursor(cursor(6)));
    for after in ["", &format!("&after={}", cursor(3)), &format!("&after={}", cursor(5))] {
        let seen = requests.recv().await.unwrap();
        assert_eq!(first_line(&seen), format!("GET /v1/events?topic=vm/*{after} HTTP/1.1"));
    }
}

#[tokio::test]
async fn server_sent_events() {
    let body = format!(
        ":hello\n\ndata: {}\n\ndata: {}\nid: {}\n\nevent: reset\nid: {}\ndata: {}\n\nretry: 1200\n\n",
        event(2, "vm/a"),
        event(2, "vm/b"),
        cursor(2),
        cursor(9),
        format_args!(r#"{{"reason":"gap","resume":"{}"}}"#, cursor(9)),
    );
    let half = body.len() / 2;
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let text = format!("{head}{}{}0\r\n\r\n", chunk(&body[..half]), chunk(&body[half..]));
    let (client, mut requests) = serve(vec![vec![Answer::Close(text)]]).await;
    let wanted = request("vm/*").after(After::Cursor(cursor(1)));
    let mut stream = client.open(Transport::Sse, wanted).await.unwrap();
    assert_eq!(next_event(&mut stream).await, r#"vm/a {"n":2}"#);
    assert_eq!(stream.subscription().cursor(), Some(cursor(1)), "the record is not complete");
    assert_eq!(next_event(&mut stream).await, r#"vm/b {"n":2}"#);
    assert_eq!(stream.subscription().cursor(), Some(cursor(2)));
    assert!(matches!(stream.next().await.unwrap(), Some(Message::Reset(_))));
    assert_eq!(stream.subscription().cursor(), Some(cursor(9)));
    match stream.next().await.unwrap() {
        Some(Message::Bye { retry }) => assert_eq!(retry, Some(Duration::from_millis(1200))),
        other => panic!("{other:?}"),
    }
    assert!(stream.next().await.unwrap().is_none());
    let seen = requests.recv().await.unwrap();
    assert_eq!(first_line(&seen), format!("GET /v1/events?topic=vm/*&after={} HTTP/1.1", cursor(1)));
    assert!(seen.contains("accept: text/event-stream\r\n"), "{seen}");
}

#[tokio::test]
async fn a_stream_that_breaks_is_an_error() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n5\r\n";
    let (client, _requests) = serve(vec![vec![Answer::Close(head.to_owned())]]).await;
    let mut stream = client.sse(request("a")).await.unwrap();
    let error = stream.next().await.unwrap_err();
    assert!(matches!(error, Error::Broken { .. }) && error.is_unavailable(), "{error}");
    assert!(error.to_string().contains(client.address()), "{error}");
}

#[tokio::test]
async fn websockets() {
    let topics = r#"["vm/*"]"#;
    let frames = vec![
        format!(r#"{{"subscribed":{{"topics":{topics},"cursor":"{}"}}}}"#, cursor(1)),
        format!(r#"{{"event":{}}}"#, event(2, "vm/a")),
        format!(r#"{{"events":[{},{}]}}"#, event(3, "vm/a"), event(3, "vm/b")),
        format!(r#"{{"bookmark":{{"cursor":"{}"}}}}"#, cursor(6)),
        r#"{"error":{"code":"bad_topic","detail":"no"}}"#.to_owned(),
        format!(r#"{{"reset":{{"reason":"epoch_changed","resume":"{}"}}}}"#, cursor(8)),
    ];
    let (client, mut requests) =
        serve(vec![vec![Answer::WebSocket(frames, Some((1001, "retry=700")))]]).await;
    let mut stream = client.open(Transport::WebSocket, request("vm/*")).await.unwrap();
    match stream.next().await.unwrap() {
        Some(Message::Subscribed { cursor: at, .. }) => assert_eq!(at, cursor(1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(next_event(&mut stream).await, r#"vm/a {"n":2}"#);
    assert_eq!(stream.subscription().cursor(), Some(cursor(2)));
    assert_eq!(next_event(&mut stream).await, r#"vm/a {"n":3}"#);
    assert_eq!(stream.subscription().cursor(), Some(cursor(2)), "the record is not complete");
    assert_eq!(next_event(&mut stream).await, r#"vm/b {"n":3}"#);
    assert_eq!(stream.subscription().cursor(), Some(cursor(3)));
    match stream.next().await.unwrap() {
        Some(Message::Refused { code, .. }) => assert_eq!(code, ProblemCode::BadTopic),
        other => panic!("{other:?}"),
    }
    assert_eq!(stream.subscription().cursor(), Some(cursor(6)));
    assert!(matches!(stream.next().await.unwrap(), Some(Message::Reset(_))));
    match stream.next().await.unwrap() {
        Some(Message::Bye { retry }) => assert_eq!(retry, Some(Duration::from_millis(700))),
        other => panic!("{other:?}"),
    }
    assert!(stream.next().await.unwrap().is_none());
    assert_eq!(stream.subscription().cursor(), Some(cursor(8)));
    assert_eq!(first_line(&requests.recv().await.unwrap()), "GET /v1/ws?topic=vm/* HTTP/1.1");
}

#[tokio::test]
async fn a_websocket_cut_without_goodbye_is_an_error() {
    let (client, _requests) = serve(vec![vec![Answer::WebSocket(vec![], Some((4008, "too slow")))]]).await;
    let error = client.websocket(request("a")).await.unwrap().next().await.unwrap_err();
    assert!(matches!(error, Error::Closed { code: 4008, .. }), "{error}");
}

#[tokio::test]
async fn refusals_are_typed_on_every_transport() {
    let refused = answer(
        "503 Service Unavailable",
        "retry-after: 4\r\ncontent-type: application/problem+json\r\n",
        &problem("unavailable", 503, None),
    );
    for transport in Transport::ALL {
        let (client, _requests) = serve(vec![vec![Answer::Close(refused.clone())]]).await;
        let error = match client.open(transport, request("a")).await {
            Ok(mut stream) => stream.next().await.unwrap_err(),
            Err(error) => error,
        };
        match &error {
            Error::Problem { problem, retry_after } => {
                assert_eq!(problem.code, ProblemCode::Unavailable, "{transport}");
                assert_eq!(*retry_after, Some(Duration::from_secs(4)), "{transport}");
            }
            other => panic!("{transport}: {other:?}"),
        }
        assert!(error.is_unavailable());
    }
}

#[tokio::test]
async fn what_is_not_walcast_is_named() {
    let (client, _requests) = serve(vec![
        vec![Answer::Close(answer("502 Bad Gateway", "", "<html>"))],
        vec![Answer::Close(answer("200 OK", "content-type: text/html\r\n", "<html>"))],
        vec![Answer::Close(json("<html>"))],
    ])
    .await;
    let check = |error: Error, part: &str| {
        assert!(matches!(error, Error::Protocol { .. }) && error.to_string().contains(part), "{error}");
    };
    check(client.poll(&request("a")).await.unwrap_err(), "502");
    check(client.sse(request("a")).await.unwrap_err(), "text/html");
    check(client.poll(&request("a")).await.unwrap_err(), "expected value");
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = Client::new(&format!("http://{address}")).unwrap().poll(&request("a")).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }) && error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn current_values() {
    let value = answer("200 OK", &format!("etag: \"{}\"\r\n", cursor(4)), r#"{"pin":1}"#);
    let (client, mut requests) = serve(vec![vec![
        Answer::Keep(value),
        Answer::Keep("HTTP/1.1 304 Not Modified\r\n\r\n".to_owned()),
        Answer::Keep(answer("404 Not Found", "", &problem("not_found", 404, None))),
        Answer::Keep(answer("400 Bad Request", "", &problem("bad_topic", 400, None))),
    ]])
    .await;
    let topic = "vm/a%2Fb".parse().unwrap();
    let minute = Some(Duration::from_secs(60));
    match client.state(&topic, None, None).await.unwrap() {
        State::Value { data, cursor: at } => assert_eq!((data.get(), at), (r#"{"pin":1}"#, cursor(4))),
        other => panic!("{other:?}"),
    }
    assert!(matches!(client.state(&topic, minute, Some(cursor(4))).await.unwrap(), State::Unchanged));
    assert!(matches!(client.state(&topic, minute, None).await.unwrap(), State::Absent));
    let error = client.state(&topic, None, None).await.unwrap_err();
    assert_eq!(error.problem().unwrap().code, ProblemCode::BadTopic);

    assert_eq!(first_line(&requests.recv().await.unwrap()), "GET /v1/state/vm/a%252Fb HTTP/1.1");
    let seen = requests.recv().await.unwrap();
    assert_eq!(first_line(&seen), "GET /v1/state/vm/a%252Fb?wait=60 HTTP/1.1");
    assert!(seen.contains(&format!("if-none-match: \"{}\"\r\n", cursor(4))), "{seen}");
}

#[tokio::test]
async fn publishing() {
    let (client, mut requests) =
        serve(vec![vec![Answer::Keep(json("{}")), Answer::Close(answer("200 OK", "", ""))]]).await;
    let topic = "vm/a".parse().unwrap();
    client.publish(&topic, &serde_json::json!({"n": 1}), Some("key-1")).await.unwrap();
    client.publish(&topic, "text", None).await.unwrap();
    let seen = requests.recv().await.unwrap();
    assert_eq!(first_line(&seen), "POST /v1/publish HTTP/1.1");
    assert!(seen.contains("idempotency-key: key-1\r\n"), "{seen}");
    assert!(seen.ends_with(r#"{"topic":"vm/a","data":{"n":1}}"#), "{seen}");
    let seen = requests.recv().await.unwrap();
    assert!(seen.ends_with(r#"{"topic":"vm/a","data":"text"}"#) && !seen.contains("idempotency"), "{seen}");
}
