//! What is larger than a transport reads.

use walcast_client::{After, Error, Transport, Update};

use crate::fake::{Answer, Fake, cursor, event, frame, json, page, sse, subscribed, within};

/// More than WebSockets and server-sent events read at once.
fn large(n: u64) -> String {
    let data = "x".repeat(17 << 20);
    event(n, "vm/a").replace(&format!(r#"{{"n":{n}}}"#), &format!("{data:?}"))
}

/// An answer that says how long it is, and does not come.
fn endless(bytes: u64) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {bytes}\r\n\r\n")
}

#[tokio::test]
async fn the_next_transport_reads_it_whatever_came_before() {
    let block = |n: u64, event: &str| format!("id: {}\ndata: {event}\n\n", cursor(n));
    let mut fake = Fake::start(vec![
        vec![Answer::HeldWebSocket(vec![subscribed(cursor(1)), frame(&event(2, "vm/a")), frame(&large(4))])],
        vec![Answer::Hold(sse(&(block(3, &event(3, "vm/a")) + &block(4, &large(4)))))],
        vec![Answer::Keep(json(&page(4, &[large(4)]))), Answer::Silence],
    ])
    .await;
    let mut updates = fake.client().subscribe(["vm/*"]).after(After::Now).stream();
    for n in 2..5 {
        let update = within(updates.next()).await.unwrap().unwrap();
        assert!(matches!(update, Update::Event(event) if event.cursor == cursor(n)));
    }
    fake.request().await;
    assert!(fake.asked().await.contains(&format!("after={}", cursor(2))));
    assert!(fake.asked().await.contains(&format!("after={}", cursor(3))));
}

#[tokio::test]
async fn where_no_transport_reads_it_the_limit_is_named() {
    let silent = || vec![Answer::Hold(endless((128 << 20) + 1))];
    let fake = Fake::start(vec![
        vec![Answer::HeldWebSocket(vec![subscribed(cursor(1)), frame(&large(4))])],
        vec![Answer::Hold(sse(&format!("data: {}\n\n", large(4))))],
        silent(),
    ])
    .await;
    let mut updates = fake.client().subscribe(["vm/*"]).after(After::Now).stream();
    let error = within(updates.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::TooLarge { bytes_max: 134_217_728, .. }), "{error}");
    assert!(error.to_string().contains(&fake.address) && error.to_string().contains("134217728"), "{error}");
    assert!(!error.is_unavailable());

    let fake = Fake::start(vec![vec![Answer::HeldWebSocket(vec![frame(&large(4))])]]).await;
    let mut updates = fake.client().subscribe(["vm/*"]).transport(Transport::WebSocket).stream();
    let error = within(updates.next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::TooLarge { bytes_max: 16_777_216, .. }), "{error}");

    let fake = Fake::start(vec![silent()]).await;
    let error = within(fake.client().wait("vm/a").into_future()).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}
