//! Following over cuts, brokers and transports: nothing twice, nothing missing.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use walcast_client::wire::{Cursor, ResetReason};
use walcast_client::{After, Client, CursorStore, Error, Transport, Update, Updates};

use crate::fake::{
    Answer, Fake, answer, bookmark, cursor, dead, event, event_as, frame, json, page, problem, sse,
    subscribed, within, zero,
};
use crate::log::Log;

async fn next(updates: &mut Updates) -> String {
    match within(updates.next()).await.unwrap().unwrap() {
        Update::Event(event) => {
            format!("{} {} {}", event.op.as_str(), event.topic, event.cursor.position.major)
        }
        Update::Reset(reset) => format!("reset {}", reset.resume.position.major),
    }
}

async fn error(updates: &mut Updates) -> Error {
    let error = within(updates.next()).await.unwrap().unwrap_err();
    assert!(within(updates.next()).await.is_none(), "it is over");
    error
}

fn get(path: &str, after: Option<Cursor>) -> String {
    let after = after.map_or(String::new(), |cursor| format!("&after={cursor}"));
    format!("GET {path}?topic=vm/*{after} HTTP/1.1")
}

#[tokio::test]
async fn it_goes_on_behind_a_cut() {
    let mut fake = Fake::start(vec![
        vec![Answer::CutWebSocket(vec![subscribed(cursor(1)), frame(&event(2, "vm/a"))])],
        vec![Answer::WebSocket(vec![subscribed(cursor(2)), bookmark(4)], Some((1001, "retry=1")))],
        vec![Answer::HeldWebSocket(vec![subscribed(cursor(4)), frame(&event(5, "vm/b")), bookmark(6)])],
    ])
    .await;
    let mut updates = fake.client().subscribe(["vm/*"]).after(After::Now).stream();
    assert_eq!((updates.cursor(), updates.connections()), (None, 0));
    assert_eq!(next(&mut updates).await, "update vm/a 2");
    assert_eq!((updates.cursor(), updates.connections()), (Some(cursor(2)), 1));
    assert_eq!(next(&mut updates).await, "update vm/b 5");
    assert_eq!((updates.cursor(), updates.connections()), (Some(cursor(5)), 3));
    assert_eq!(fake.asked().await, "GET /v1/ws?topic=vm/*&after=now HTTP/1.1");
    assert_eq!(fake.asked().await, get("/v1/ws", Some(cursor(2))));
    assert_eq!(fake.asked().await, get("/v1/ws", Some(cursor(4))));
}

#[tokio::test]
async fn half_a_unit_is_completed_and_not_repeated() {
    let half = format!("id: {}\n\ndata: {}\n\n", cursor(4), event_as("delete", 5, "vm/a"));
    let whole = |id: &str| {
        let unit = (event_as("delete", 5, "vm/a"), event(5, "vm/b"));
        format!(
            "data: {}\n\n{id}data: {}\n\nid: {}\ndata: {}\n\n",
            unit.0,
            unit.1,
            cursor(6),
            event(6, "vm/a")
        )
    };
    let whole = whole(&format!("id: {}\n", cursor(5)));
    let mut fake = Fake::start(vec![
        vec![Answer::Close(sse(&half))],
        vec![Answer::Hold(sse(&format!("retry: 1\n\n{whole}")))],
    ])
    .await;
    let mut updates =
        fake.client().subscribe(["vm/*"]).transport(Transport::Sse).after(After::Earliest).stream();
    assert_eq!(next(&mut updates).await, "delete vm/a 5");
    assert_eq!(updates.cursor(), Some(cursor(4)), "the unit is not whole");
    assert_eq!(next(&mut updates).await, "update vm/b 5");
    assert_eq!(updates.cursor(), Some(cursor(5)));
    assert_eq!(next(&mut updates).await, "update vm/a 6");
    fake.request().await;
    assert_eq!(fake.asked().await, get("/v1/events", Some(cursor(4))));
}

#[tokio::test]
async fn half_a_unit_is_completed_over_another_transport() {
    let half = format!("id: {}\n\ndata: {}\n\n", cursor(4), event_as("delete", 5, "vm/a"));
    let unit = [event_as("delete", 5, "vm/a"), event(5, "vm/b")];
    let proxy = || answer("403 Forbidden", "", "<html>no upgrades here");
    let fake = Fake::start(vec![
        vec![Answer::Close(proxy())],
        vec![Answer::Close(sse(&half))],
        vec![Answer::Close(answer("404 Not Found", "", "<html>"))],
        vec![Answer::Keep(json(&page(9, &unit)))],
    ])
    .await;
    let mut updates = fake.client().subscribe(["vm/*"]).after(After::Now).stream();
    assert_eq!(next(&mut updates).await, "delete vm/a 5");
    assert_eq!(next(&mut updates).await, "update vm/b 5");
    assert_eq!(updates.cursor(), Some(cursor(9)));
}

#[tokio::test]
async fn current_values_that_were_cut_are_told_once_and_as_they_are_then() {
    let value = |n, topic| frame(&event_as("snapshot", n, topic));
    // By the second time vm/a is gone, and vm/b is another; nothing of the first time may be told.
    let mut fake = Fake::start(vec![
        vec![Answer::CutWebSocket(vec![subscribed(zero()), value(2, "vm/a"), value(3, "vm/b")])],
        vec![Answer::HeldWebSocket(vec![
            subscribed(zero()),
            value(7, "vm/b"),
            value(8, "vm/c"),
            frame(&event(9, "vm/b")),
            bookmark(9),
        ])],
    ])
    .await;
    let mut updates = fake.client().subscribe(["vm/*"]).stream();
    assert_eq!(next(&mut updates).await, "snapshot vm/b 7");
    assert_eq!(updates.cursor(), None, "who begins again gets all values");
    assert_eq!(next(&mut updates).await, "snapshot vm/c 8");
    assert_eq!(next(&mut updates).await, "update vm/b 9");
    assert_eq!(updates.cursor(), Some(cursor(9)));
    for _ in 0..2 {
        assert_eq!(fake.asked().await, get("/v1/ws", None));
    }
}

#[tokio::test]
async fn it_goes_on_from_where_a_reset_says() {
    let reset = |n| format!(r#"{{"reset":{{"reason":"epoch_changed","resume":"{n}"}}}}"#);
    let mut fake = Fake::start(vec![
        vec![Answer::CutWebSocket(vec![
            subscribed(cursor(1)),
            reset(zero()),
            frame(&event_as("snapshot", 2, "vm/a")),
        ])],
        vec![Answer::HeldWebSocket(vec![
            subscribed(zero()),
            frame(&event_as("snapshot", 2, "vm/a")),
            frame(&event(3, "vm/a")),
        ])],
    ])
    .await;
    let mut updates = fake.client().subscribe(["vm/*"]).after(cursor(1)).stream();
    assert_eq!(updates.cursor(), Some(cursor(1)));
    assert_eq!(next(&mut updates).await, "reset 0");
    assert_eq!(updates.cursor(), Some(zero()));
    assert_eq!(next(&mut updates).await, "snapshot vm/a 2");
    assert_eq!(next(&mut updates).await, "update vm/a 3");
    assert_eq!(fake.asked().await, get("/v1/ws", Some(cursor(1))));
    assert_eq!(fake.asked().await, get("/v1/ws", Some(zero())));
}

#[tokio::test]
async fn a_410_is_a_reset() {
    let gone = answer("410 Gone", "", &problem("gap", 410, Some(zero())));
    let fake =
        Fake::start(vec![vec![Answer::Keep(gone), Answer::Keep(json(&page(3, &[event(3, "vm/a")])))]]).await;
    let stream = fake.client().subscribe(["vm/*"]).after(cursor(1)).transport(Transport::Poll).stream();
    let mut updates = stream;
    match within(updates.next()).await.unwrap().unwrap() {
        Update::Reset(reset) => assert_eq!((reset.reason, reset.resume), (ResetReason::Gap, zero())),
        other => panic!("{other:?}"),
    }
    assert_eq!(next(&mut updates).await, "update vm/a 3");
}

#[tokio::test]
async fn silence_on_better_transports_leads_to_long_poll() {
    let mut fake = Fake::start(vec![
        vec![Answer::HeldWebSocket(vec![])],
        vec![Answer::Hold(sse(""))],
        vec![
            Answer::Keep(json(&page(1, &[]))),
            Answer::Keep(json(&page(3, &[event(3, "vm/a")]))),
            Answer::Silence,
        ],
    ])
    .await;
    let limit = Duration::from_secs(2);
    let builder = fake.builder().silence_timeout(limit).connect_timeout(limit);
    let mut updates = builder.build().unwrap().subscribe(["vm/*"]).stream();
    assert_eq!(next(&mut updates).await, "update vm/a 3");
    assert_eq!(fake.asked().await, get("/v1/ws", None));
    let seen = fake.request().await;
    assert!(seen.contains("accept: text/event-stream"), "{seen}");
    let seen = fake.request().await;
    assert!(seen.contains("topic=vm/*&wait=0 ") && seen.contains("accept: application/json"), "{seen}");
    assert_eq!(fake.asked().await, get("/v1/events", Some(cursor(1))).replace(" HTTP", "&wait=2 HTTP"));
}

#[tokio::test]
async fn a_broker_that_takes_connections_and_says_nothing_holds_nobody_up() {
    let silent = || vec![Answer::Silence];
    let silent = Fake::start(vec![silent(), silent(), silent()]).await;
    let here =
        Fake::start(vec![vec![Answer::HeldWebSocket(vec![subscribed(cursor(1)), frame(&event(2, "vm/a"))])]])
            .await;
    let limit = Duration::from_secs(2);
    let builder = Client::builder().hosts([silent.url(), here.url()]).connect_timeout(limit);
    let client = builder.silence_timeout(limit).build().unwrap();
    let mut updates = client.subscribe(["vm/*"]).stream();
    assert_eq!(next(&mut updates).await, "update vm/a 2");
}

#[tokio::test]
async fn a_stream_that_broke_comes_back_when_it_was_told_to() {
    // The answer's last chunk is missing: this is no end in good order.
    let broken = format!("retry: 700\n\nid: {}\ndata: {}\n\n", cursor(2), event(2, "vm/a"));
    let whole = format!("id: {}\ndata: {}\n\n", cursor(3), event(3, "vm/a"));
    let fake = Fake::start(vec![vec![Answer::Close(sse(&broken))], vec![Answer::Hold(sse(&whole))]]).await;
    let mut updates = fake.client().subscribe(["vm/*"]).transport(Transport::Sse).stream();
    assert_eq!(next(&mut updates).await, "update vm/a 2");
    let start = std::time::Instant::now();
    assert_eq!(next(&mut updates).await, "update vm/a 3");
    assert!(start.elapsed() >= Duration::from_millis(600), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_taken_up_again() {
    let mut fake = Fake::start(vec![
        vec![Answer::HeldWebSocket(vec![subscribed(cursor(1)), frame(&event(2, "vm/a"))])],
        vec![Answer::HeldWebSocket(vec![subscribed(cursor(2)), frame(&event(3, "vm/a"))])],
    ])
    .await;
    let client = fake.builder().silence_timeout(Duration::from_secs(1)).build().unwrap();
    let mut updates = client.subscribe(["vm/*"]).stream();
    assert_eq!(next(&mut updates).await, "update vm/a 2");
    assert_eq!(next(&mut updates).await, "update vm/a 3");
    fake.request().await;
    assert_eq!(fake.asked().await, get("/v1/ws", Some(cursor(2))));
}

#[tokio::test]
async fn brokers_that_do_not_serve_are_passed_over() {
    let refused =
        |headers: &str| answer("503 Service Unavailable", headers, &problem("unavailable", 503, None));
    for _ in 0..5 {
        let one = Fake::start(vec![vec![Answer::Close(refused("retry-after: 600\r\n"))]]).await;
        let standby = vec![r#"{"error":{"code":"unavailable","detail":"another leads"}}"#.to_owned()];
        let two = Fake::start(vec![vec![Answer::WebSocket(standby, Some((1001, "retry=600000")))]]).await;
        let here = Fake::start(vec![vec![Answer::HeldWebSocket(vec![
            subscribed(cursor(1)),
            frame(&event(2, "vm/a")),
        ])]])
        .await;
        let hosts = [dead().await, one.url(), here.url(), two.url()];
        let mut updates = Client::builder().hosts(hosts).build().unwrap().subscribe(["vm/*"]).stream();
        assert_eq!(next(&mut updates).await, "update vm/a 2");
    }
}

#[tokio::test]
async fn what_repeating_does_not_change_ends_it() {
    for (status, body) in [
        ("401 Unauthorized", r#"{"code":"unauthorized","detail":"no token"}"#.to_owned()),
        ("403 Forbidden", "<html>".to_owned()),
        ("404 Not Found", "<html>".to_owned()),
        ("400 Bad Request", problem("bad_topic", 400, None)),
    ] {
        let refused = || vec![Answer::Close(answer(status, "", &body))];
        let fake = Fake::start(vec![refused(), refused(), refused()]).await;
        let client = fake.builder().token("se-cret").build().unwrap();
        let error = error(&mut client.subscribe(["vm/a", "vm/b"]).stream()).await;
        assert_eq!(error.status(), Some(status[..3].parse().unwrap()), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&fake.address) && text.contains("vm/a, vm/b"), "{text}");
        assert!(!format!("{text}{error:?}").contains("se-cret"));
    }
    let frames = vec![r#"{"error":{"code":"bad_topic","detail":"no"}}"#.to_owned()];
    let fake = Fake::start(vec![vec![Answer::WebSocket(frames, Some((1002, "see the error")))]]).await;
    let error = error(&mut fake.client().subscribe(["vm/a"]).stream()).await;
    assert_eq!((error.status(), error.code()), (Some(400), Some("bad_topic")), "{error}");
    assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains(&fake.address), "{error}");
}

/// As a broker says it whose key file is another than the others'.
fn unknown() -> Answer {
    Answer::Close(answer("401 Unauthorized", "", &problem("unauthorized", 401, None)))
}

#[tokio::test]
async fn one_broker_that_does_not_let_us_in_is_passed_over() {
    let here = || vec![Answer::HeldWebSocket(vec![subscribed(cursor(1)), frame(&event(2, "vm/a"))])];
    let said = || r#"{"error":{"code":"forbidden","detail":"a key taken back"}}"#.to_owned();
    for _ in 0..6 {
        let old = Fake::start(vec![vec![unknown()], vec![unknown()]]).await;
        let back =
            Fake::start(vec![vec![Answer::WebSocket(vec![said()], Some((1002, "see the error")))]]).await;
        let here = Fake::start(vec![here()]).await;
        let hosts = [old.url(), here.url(), back.url()];
        let mut updates = Client::builder().hosts(hosts).build().unwrap().subscribe(["vm/*"]).stream();
        assert_eq!(next(&mut updates).await, "update vm/a 2");
    }
}

#[tokio::test]
async fn brokers_none_of_which_lets_us_in_end_it() {
    let old = || Fake::start((0..4).map(|_| vec![unknown()]).collect());
    let hosts = [old().await, old().await];
    let client = Client::builder().hosts(hosts.each_ref().map(Fake::url)).build().unwrap();
    let error = error(&mut client.subscribe(["vm/a"]).stream()).await;
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_eq!((error.status(), error.code()), (Some(401), Some("unauthorized")));
    assert!(hosts.iter().any(|host| error.to_string().contains(&host.address)), "{error}");
}

#[tokio::test]
async fn the_log_is_told_once_that_no_broker_serves() {
    let standby = || {
        let said = r#"{"error":{"code":"unavailable","detail":"another leads"}}"#.to_owned();
        vec![Answer::WebSocket(vec![said], Some((1001, "retry=1")))]
    };
    let leads = vec![Answer::HeldWebSocket(vec![subscribed(cursor(1)), frame(&event(2, "vm/a"))])];
    let fake = Fake::start(vec![standby(), standby(), standby(), leads]).await;
    let (log, _guard) = Log::listen();
    let mut updates = fake.client().subscribe(["vm/*"]).stream();
    assert_eq!(next(&mut updates).await, "update vm/a 2");
    assert_eq!(log.count("no broker serves"), 1, "{:?}", log.lines());
    assert_eq!(log.count("is reached again"), 1, "{:?}", log.lines());
}

#[tokio::test]
async fn what_is_no_topic_is_said_before_anybody_is_asked() {
    let client = Client::new(&dead().await).unwrap();
    let error_of = async |topics: &[&str]| error(&mut client.subscribe(topics).stream()).await;
    assert!(matches!(error_of(&["vm/ a"]).await, Error::Topic { .. }));
    assert!(matches!(error_of(&[]).await, Error::Request(_)));
}

#[tokio::test]
async fn the_token_goes_with_every_request() {
    let proxy = || answer("403 Forbidden", "", "<html>");
    let mut fake = Fake::start(vec![
        vec![Answer::Close(proxy())],
        vec![Answer::Close(proxy())],
        vec![Answer::Keep(json(&page(3, &[event(3, "vm/a")]))), Answer::Keep(json("{}"))],
    ])
    .await;
    let client = fake.builder().token("se-cret").build().unwrap();
    let mut updates = client.subscribe(["vm/*"]).stream();
    assert_eq!(next(&mut updates).await, "update vm/a 3");
    client.publish("vm/a", "text").await.unwrap();
    for _ in 0..4 {
        let seen = fake.request().await;
        assert!(seen.contains("authorization: Bearer se-cret\r\n"), "{seen}");
        assert_eq!(seen.matches("se-cret").count(), 1, "{seen}");
    }
}

#[tokio::test]
async fn a_spread_keeps_the_order() {
    let events = (2..40).map(|n| frame(&event(n, "vm/a")));
    let frames = std::iter::once(subscribed(cursor(1))).chain(events).collect();
    let fake = Fake::start(vec![vec![Answer::HeldWebSocket(frames)]]).await;
    let mut updates = fake.client().subscribe(["vm/*"]).spread(Duration::from_millis(20)).stream();
    for n in 2..40 {
        assert_eq!(next(&mut updates).await, format!("update vm/a {n}"));
    }
}

#[tokio::test]
async fn more_values_than_allowed_are_an_error() {
    let value = |n: u64| frame(&event_as("snapshot", n, &format!("vm/{n}")));
    let frames = std::iter::once(subscribed(zero())).chain((2..40).map(value)).collect();
    let fake = Fake::start(vec![vec![Answer::HeldWebSocket(frames)]]).await;
    let error = error(&mut fake.client().subscribe(["vm/*"]).values_bytes_max(1000).stream()).await;
    assert!(matches!(error, Error::TooBroad { bytes_max: 1000, .. }), "{error}");
}

/// Keeps all places that were saved.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<Cursor>>>);

impl Memory {
    fn last(&self) -> Option<Cursor> {
        self.0.lock().unwrap().last().copied()
    }

    async fn until(&self, wanted: Cursor) {
        within(async {
            while self.last() != Some(wanted) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

impl CursorStore for Memory {
    fn load(&self) -> io::Result<Option<Cursor>> {
        Ok(self.last())
    }

    fn save(&self, cursor: Cursor) -> io::Result<()> {
        self.0.lock().unwrap().push(cursor);
        Ok(())
    }
}

#[tokio::test]
async fn a_place_is_kept_once_the_program_asks_for_more() {
    let frames = vec![subscribed(cursor(1)), frame(&event(2, "vm/a")), frame(&event(3, "vm/a"))];
    let mut fake = Fake::start(vec![
        vec![Answer::HeldWebSocket(frames)],
        vec![Answer::HeldWebSocket(vec![subscribed(cursor(2)), frame(&event(3, "vm/a")), bookmark(8)])],
        vec![Answer::HeldWebSocket(vec![])],
    ])
    .await;
    let (client, store) = (fake.client(), Memory::default());
    let stream = |store: &Memory| client.subscribe(["vm/*"]).after(After::Now).store(store.clone()).stream();
    let mut updates = stream(&store);
    assert_eq!(next(&mut updates).await, "update vm/a 2");
    assert!(store.last().is_none_or(|last| last == cursor(1)), "nobody is done with it");
    assert_eq!(next(&mut updates).await, "update vm/a 3");
    store.until(cursor(2)).await;
    // A crash: the event that may not be finished comes again.
    drop(updates);
    let mut updates = stream(&store);
    assert_eq!(next(&mut updates).await, "update vm/a 3");
    assert_eq!(updates.cursor(), Some(cursor(3)));
    updates.save().await.unwrap();
    assert_eq!(store.last(), Some(cursor(3)));
    // Where nothing comes for the program, its place moves on all the same.
    tokio::select! {
        _ = updates.next() => panic!("there is nothing"),
        () = store.until(cursor(8)) => {}
    }
    drop(updates);
    let mut updates = stream(&store);
    tokio::select! {
        _ = updates.next() => panic!("there is nothing"),
        () = async {
            assert_eq!(fake.asked().await, "GET /v1/ws?topic=vm/*&after=now HTTP/1.1");
            assert_eq!(fake.asked().await, get("/v1/ws", Some(cursor(2))));
            assert_eq!(fake.asked().await, get("/v1/ws", Some(cursor(8))));
        } => {}
    }
}

#[tokio::test]
async fn a_place_that_cannot_be_read_is_no_reason_to_begin_anywhere() {
    struct Broken;
    impl CursorStore for Broken {
        fn load(&self) -> io::Result<Option<Cursor>> {
            Err(io::Error::other("the disk is gone"))
        }
        fn save(&self, _: Cursor) -> io::Result<()> {
            Ok(())
        }
    }
    let client = Client::new(&dead().await).unwrap();
    let error = error(&mut client.subscribe(["vm/*"]).store(Broken).stream()).await;
    assert!(matches!(error, Error::Store(_)) && error.to_string().contains("the disk is gone"), "{error}");
}
