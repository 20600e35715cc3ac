//! One connection at a time, over each transport.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use walcast_client::wire::{ProblemCode, ResetReason};
use walcast_client::{After, Client, Error, EventsRequest, Message, Stream, Transport};

use crate::fake::{Answer, Fake, answer, cursor, event, first_line, json, page, problem};

async fn serve(connections: Vec<Vec<Answer>>) -> (Client, mpsc::Receiver<String>) {
    let fake = Fake::start(connections).await;
    (fake.client(), fake.requests)
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
    assert_eq!(stream.subscription().cursor(), Some(cursor(2)), "nothing else shares it");
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
        let named = matches!(error, Error::Protocol { .. } | Error::Status { status: 502, .. });
        assert!(named && error.to_string().contains(part), "{error}");
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
