//! Who takes updates slowly, on purpose or not, loses neither its connection for it nor an update.

use std::time::Duration;

use walcast_client::{After, Update, Updates};

use crate::fake::{Answer, Fake, cursor, event, frame, subscribed, within};
use crate::log::Log;

/// A delay that no test sees the end of, unless its clock jumps.
const LONG: Duration = Duration::from_secs(1 << 24);

async fn next(updates: &mut Updates) -> u64 {
    match within(updates.next()).await.unwrap().unwrap() {
        Update::Event(event) => event.cursor.position.major,
        Update::Reset(reset) => panic!("{reset:?}"),
    }
}

/// So much time passes at once.
async fn jump(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn pings_are_answered_while_an_event_waits_for_its_turn() {
    let frames = vec![subscribed(cursor(1)), frame(&event(2, "vm/a"))];
    let mut fake = Fake::start(vec![vec![Answer::PingingWebSocket(frames, 3)]]).await;
    let mut updates = fake.client().subscribe(["vm/*"]).after(After::Now).spread(LONG).stream();
    tokio::select! {
        _ = updates.next() => panic!("it waits for its turn"),
        () = async {
            fake.request().await;
            for _ in 0..3 {
                assert_eq!(fake.request().await, "pong");
            }
        } => {}
    }
}

#[tokio::test]
async fn what_comes_meanwhile_is_bounded_and_read_later() {
    let data = format!("{:?}", "x".repeat(60_000));
    let large = |n: u64| event(n, "vm/a").replace(&format!(r#"{{"n":{n}}}"#), &data);
    let events: Vec<_> = (2..60).map(|n| (n, large(n))).collect();
    let log = || vec![Answer::LogWebSocket(events.clone())];
    let mut fake = Fake::start(vec![log(), log()]).await;
    let (said, _guard) = Log::listen();
    let mut updates = fake.client().subscribe(["vm/*"]).after(cursor(1)).spread(LONG).stream();
    tokio::select! {
        _ = updates.next() => panic!("it waits for its turn"),
        () = async {
            assert!(fake.asked().await.contains(&format!("after={} ", cursor(1))));
            assert_eq!(fake.request().await, "left");
        } => {}
    }
    jump(LONG).await;
    for n in 2..60 {
        assert_eq!(next(&mut updates).await, n);
        assert_eq!(updates.cursor(), Some(cursor(n)));
    }
    let again = fake.asked().await;
    assert!((10..60).any(|n| again.contains(&format!("after={} ", cursor(n)))), "{again}");
    assert_eq!(said.lines(), Vec::<String>::new());
}

#[tokio::test]
async fn who_comes_back_late_and_finds_itself_cut_goes_on_quietly() {
    let frames = vec![subscribed(cursor(1)), frame(&event(2, "vm/a")), frame(&event(3, "vm/a"))];
    let mut fake = Fake::start(vec![
        vec![Answer::WebSocket(frames, Some((4008, "no pong in time")))],
        vec![Answer::HeldWebSocket(vec![subscribed(cursor(3)), frame(&event(4, "vm/a"))])],
    ])
    .await;
    let (said, _guard) = Log::listen();
    let mut updates = fake.client().subscribe(["vm/*"]).after(After::Now).stream();
    assert_eq!(next(&mut updates).await, 2);
    jump(Duration::from_secs(300)).await;
    assert_eq!(next(&mut updates).await, 3);
    assert_eq!(next(&mut updates).await, 4);
    fake.request().await;
    assert!(fake.asked().await.contains(&format!("after={}", cursor(3))));
    assert_eq!(said.lines(), Vec::<String>::new());
}
