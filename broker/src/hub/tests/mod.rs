//! What subscribers are promised: order, completeness or a reset, units whole, values exact.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use proptest::prelude::*;

use super::*;
use crate::event::{Commit, Outdated, Seeded, Snapshot};

mod exact;
mod follow;
mod outdated;
mod roll;
mod values;

fn hub(events: usize) -> Arc<Hub> {
    Hub::new(Config { events, ..Config::default() })
}

fn commit(lsn: u64, xid: u32) -> Arc<Commit> {
    Arc::new(Commit { major: lsn, lsn: Some(lsn), xid, time_us: 0 })
}

fn message(lsn: u64, ordinal: u64, topic: &str) -> Entry {
    Entry::Event(Event {
        position: Position::new(lsn, ordinal),
        topic: Topic::new(topic).unwrap(),
        op: Op::Message,
        data: Bytes::from_static(b"1"),
        commit: Some(commit(lsn, 5)),
        unchanged: Box::default(),
        omitted: Box::default(),
        partial: false,
        state: None,
    })
}

fn state(lsn: u64, xid: u32, topic: &str, op: Op, effect: Effect, data: &'static str) -> Entry {
    let Entry::Event(event) = message(lsn, 1, topic) else { unreachable!() };
    Entry::Event(Event {
        op,
        data: Bytes::from_static(data.as_bytes()),
        commit: Some(commit(lsn, xid)),
        state: Some(State { table: "public.vms".into(), effect }),
        ..event
    })
}

fn put(lsn: u64, xid: u32, topic: &str, data: &'static str) -> Entry {
    state(lsn, xid, topic, Op::Update, Effect::Put, data)
}

fn clear(lsn: u64, xid: u32, topic: &str) -> Entry {
    state(lsn, xid, topic, Op::Delete, Effect::Clear, r#"{"id":1}"#)
}

/// A seeding of this table begins.
fn reads(table: &str, topics: &str) -> Note {
    Note::SeedBegin(Arc::from([Seeded { table: table.into(), topics: vec![topics.parse().unwrap()] }]))
}

fn outdated(table: &str, topics: &[&str], withdrawn: bool) -> Note {
    let topics = topics.iter().map(|topic| topic.parse().unwrap()).collect();
    Note::Outdated(Arc::from([Outdated { table: table.into(), topics, withdrawn, state: true }]))
}

fn seeded(topic: &str, data: &'static str) -> Event {
    let Entry::Event(event) = put(1, 1, topic, data) else { unreachable!() };
    Event { position: Position::ZERO, op: Op::Snapshot, commit: None, ..event }
}

struct Feed {
    hub: Arc<Hub>,
    epoch: Epoch,
    head: Position,
    now: Instant,
}

impl Feed {
    fn new(events: usize) -> Self {
        let feed =
            Self { hub: hub(events), epoch: Epoch(1), head: Position::before(100), now: Instant::now() };
        feed.note(Note::Start { replay_until: feed.head, quiet_from: feed.head });
        feed
    }

    /// A feed whose values are exact from the start.
    fn settled(events: usize) -> Self {
        let feed = Self::new(events);
        feed.begin_seed();
        feed.end_seed("1:1:", feed.head);
        feed
    }

    fn note(&self, note: Note) {
        let batch = Batch {
            epoch: self.epoch,
            after: self.head,
            upto: self.head,
            entries: Arc::from([]),
            note: Some(note),
        };
        self.hub.ingest(&batch, self.now).unwrap();
    }

    fn begin_seed(&self) {
        self.note(reads("public.vms", "vm/*"));
    }

    fn seed(&self, snapshot: &str, events: Vec<Event>) {
        self.note(Note::Seed {
            snapshot: Arc::new(Snapshot::parse(snapshot).unwrap()),
            events: events.into(),
        });
    }

    fn end_seed(&self, snapshot: &str, settle: Position) {
        self.note(Note::SeedEnd { snapshot: Arc::new(Snapshot::parse(snapshot).unwrap()), settle });
    }

    fn send(&mut self, entries: Vec<Entry>) {
        let upto = entries.last().map(|entry| Position::before(entry.position().major + 1)).unwrap();
        self.send_upto(entries, upto);
    }

    fn send_upto(&mut self, entries: Vec<Entry>, upto: Position) {
        let batch = Batch { epoch: self.epoch, after: self.head, upto, entries: entries.into(), note: None };
        self.hub.ingest(&batch, self.now).unwrap();
        self.head = self.head.max(upto);
    }

    fn subscribe(&self, topics: &[&str], from: From) -> Subscription {
        let topics = topics.iter().map(|topic| topic.parse().unwrap()).collect();
        self.hub.subscribe(topics, from).unwrap()
    }
}

/// What is there without waiting.
fn ready(subscription: &mut Subscription, limit: usize) -> Option<Delivery> {
    let nothing =
        |delivery: &Delivery| matches!(delivery, Delivery::Values(values) if values.clone().next().is_none());
    // A look over long history pauses between pieces and asks to be polled again.
    let mut looks = (0..1000).filter_map(|_| subscription.next(limit).now_or_never());
    looks.find(|delivery| !nothing(delivery))
}

#[track_caller]
fn events(subscription: &mut Subscription, limit: usize) -> Vec<String> {
    let line = |event: &Arc<Encoded>| {
        let wire: walcast_wire::Event<serde_json::Value> = serde_json::from_slice(&event.json()).unwrap();
        let Position { major, ordinal } = wire.cursor.position;
        format!("{major}:{ordinal} {} {} {}", wire.topic, wire.op.as_str(), wire.data)
    };
    match ready(subscription, limit) {
        None => Vec::new(),
        Some(Delivery::Events(events)) => events.iter().map(line).collect(),
        Some(Delivery::Values(values)) => values.map(|value| line(&value)).collect(),
        Some(Delivery::Reset(reset)) => vec![format!("reset {:?}", reset.reason)],
    }
}

#[test]
fn a_waiter_gets_what_comes_and_nothing_else() {
    let mut feed = Feed::settled(100);
    let mut a = feed.subscribe(&["a"], From::Current);
    let mut any = feed.subscribe(&["*"], From::Now);
    assert_eq!(events(&mut a, 10), [""; 0]);
    feed.send(vec![message(101, 1, "b")]);
    assert_eq!(events(&mut a, 10), [""; 0]);
    feed.send(vec![message(103, 1, "a"), message(103, 2, "a/x")]);
    assert_eq!(events(&mut a, 10), ["103:1 a message 1"]);
    assert_eq!(events(&mut any, 10), ["101:1 b message 1", "103:1 a message 1"]);
    assert_eq!(events(&mut a, 10), [""; 0]);
}

#[test]
fn a_parked_waiter_is_woken() {
    let mut feed = Feed::settled(100);
    let mut a = feed.subscribe(&["a"], From::Now);
    let mut task = std::pin::pin!(a.next(10));
    let flag = Arc::new(Flag::default());
    let waker = Waker::from(Arc::clone(&flag));
    let mut cx = std::task::Context::from_waker(&waker);
    assert!(task.as_mut().poll(&mut cx).is_pending());
    feed.send(vec![message(101, 1, "b")]);
    assert!(!flag.raised());
    feed.send(vec![message(103, 1, "a")]);
    assert!(flag.raised());
    assert!(task.as_mut().poll(&mut cx).is_ready());
}

#[test]
fn who_waits_for_the_end_of_a_replay_is_woken_there() {
    let check = |mut feed: Feed, expected: &[&str]| {
        feed.note(Note::Start { replay_until: Position::before(110), quiet_from: feed.head });
        let mut a = feed.subscribe(&["vm/a"], From::Current);
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(Arc::clone(&flag));
        let mut cx = std::task::Context::from_waker(&waker);
        assert!(a.poll_settled(&mut cx).is_pending());
        feed.send_upto(vec![], Position::before(109));
        assert!(!flag.raised());
        feed.send_upto(vec![], Position::before(110));
        assert!(flag.raised());
        assert_eq!(events(&mut a, 10), expected);
    };
    // The values were exact before the stream broke off,
    let mut known = Feed::settled(100);
    known.send(vec![put(101, 10, "vm/a", "1")]);
    check(known, &["101:1 vm/a snapshot 1"]);
    // or there are none to be read.
    check(Feed::settled(100), &[]);
}

#[derive(Default)]
struct Flag(std::sync::atomic::AtomicBool);
impl Flag {
    fn raised(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}
impl std::task::Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

#[test]
fn an_evicted_cursor_is_told_and_goes_on() {
    let mut feed = Feed::settled(3);
    let old = feed.hub.head().unwrap();
    for lsn in (101..120).step_by(2) {
        feed.send(vec![message(lsn, 1, "a")]);
    }
    let mut late = feed.subscribe(&["a"], From::After(old));
    assert_eq!(events(&mut late, 10), ["reset CursorExpired"]);
    assert_eq!(late.cursor().position, Position::ZERO);
    assert_eq!(events(&mut late, 10), ["115:1 a message 1", "117:1 a message 1", "119:1 a message 1"]);
}

#[test]
fn a_parked_waiter_does_not_expire_when_others_are_busy() {
    let mut feed = Feed::settled(3);
    let mut quiet = feed.subscribe(&["quiet"], From::Now);
    assert_eq!(events(&mut quiet, 10), [""; 0]);
    for lsn in (101..200).step_by(2) {
        feed.send(vec![message(lsn, 1, "busy")]);
    }
    assert!(quiet.bookmark().position >= Position::before(200));
    feed.send(vec![message(201, 1, "quiet")]);
    assert_eq!(events(&mut quiet, 10), ["201:1 quiet message 1"]);
}

#[test]
fn a_unit_is_never_cut() {
    let mut feed = Feed::settled(100);
    feed.send(vec![message(101, 1, "a"), message(101, 1, "b"), message(101, 2, "a")]);
    for topics in [&["a", "b"][..], &["*"], &["**"]] {
        let mut all = feed.subscribe(topics, From::Earliest);
        assert_eq!(events(&mut all, 1), ["101:1 a message 1", "101:1 b message 1"]);
        assert_eq!(all.cursor().position, Position::new(101, 1));
        assert_eq!(events(&mut all, 1), ["101:2 a message 1"]);
    }
}

#[test]
fn other_epochs_future_cursors_and_gaps_are_told() {
    let mut feed = Feed::settled(100);
    let foreign = Cursor::new(Epoch(9), feed.head);
    assert_eq!(events(&mut feed.subscribe(&["a"], From::After(foreign)), 1), ["reset EpochChanged"]);
    let future = Cursor::new(feed.epoch, Position::before(500));
    assert_eq!(events(&mut feed.subscribe(&["a"], From::After(future)), 1), ["reset Gap"]);

    let mut parked = feed.subscribe(&["a"], From::Now);
    assert_eq!(events(&mut parked, 1), [""; 0]);
    feed.head = Position::before(200);
    feed.send(vec![message(201, 1, "b")]);
    assert_eq!(events(&mut parked, 1), ["reset Gap"]);
    feed.begin_seed();
    feed.end_seed("1:1:", feed.head);
    assert_eq!(events(&mut parked, 1), [""; 0]);
    feed.epoch = Epoch(2);
    feed.note(Note::Start { replay_until: feed.head, quiet_from: feed.head });
    assert_eq!(events(&mut parked, 1), ["reset EpochChanged"]);
}

#[test]
fn a_cursor_that_is_not_reached_yet_waits() {
    let mut feed = Feed::settled(100);
    feed.note(Note::Start { replay_until: Position::before(110), quiet_from: feed.head });
    let mut ahead = feed.subscribe(&["a"], From::After(Cursor::new(feed.epoch, Position::new(105, 1))));
    let mut now = feed.subscribe(&["a"], From::Now);
    feed.send(vec![message(103, 1, "a")]);
    feed.send(vec![message(105, 1, "a"), message(105, 2, "a")]);
    assert_eq!(events(&mut ahead, 10), ["105:2 a message 1"]);
    feed.send(vec![message(111, 1, "a")]);
    assert_eq!(events(&mut ahead, 10), ["111:1 a message 1"]);
    assert_eq!(events(&mut now, 10), ["111:1 a message 1"]);
}

#[test]
fn replayed_batches_are_dropped() {
    let mut feed = Feed::settled(100);
    feed.send(vec![message(101, 1, "a"), message(101, 2, "a")]);
    let head = feed.head;
    feed.head = Position::before(100);
    feed.send(vec![message(101, 1, "a"), message(101, 2, "a")]);
    feed.head = Position::before(100);
    feed.send_upto(
        vec![message(101, 1, "a"), message(101, 2, "a"), message(105, 1, "a")],
        Position::before(106),
    );
    assert!(feed.head > head);
    let mut all = feed.subscribe(&["a"], From::Earliest);
    assert_eq!(events(&mut all, 10), ["101:1 a message 1", "101:2 a message 1", "105:1 a message 1"]);
}

#[test]
fn the_last_event_of_a_transaction_is_marked_per_topic() {
    let mut feed = Feed::settled(100);
    let mut all = feed.subscribe(&["**"], From::Now);
    feed.send(vec![message(101, 1, "a"), message(101, 2, "b"), message(101, 3, "a"), message(103, 1, "a")]);
    let Some(Delivery::Events(events)) = ready(&mut all, 10) else { panic!("events") };
    let last: Vec<bool> = events
        .iter()
        .map(|event| String::from_utf8_lossy(&event.json()).contains(r#""last":true"#))
        .collect();
    assert_eq!(last, [false, true, true, true]);
}

#[test]
fn two_subscriptions_become_one_when_both_are_caught_up() {
    let mut feed = Feed::settled(100);
    let (mut a, mut b) = (feed.subscribe(&["a"], From::Now), feed.subscribe(&["b", "a"], From::Now));
    feed.send(vec![message(101, 1, "b")]);
    let mut b2 = a.add(b).unwrap_err();
    assert_eq!(events(&mut b2, 10), ["101:1 b message 1"]);
    assert_eq!(events(&mut a, 10), [""; 0]);
    a.add(b2).unwrap();
    assert_eq!(feed.hub.status().subscriptions, 1);
    feed.send(vec![message(103, 1, "a"), message(103, 2, "b")]);
    assert_eq!(events(&mut a, 10), ["103:1 a message 1", "103:2 b message 1"]);
    a.remove(&["a".parse().unwrap()]);
    feed.send(vec![message(105, 1, "a"), message(105, 2, "b")]);
    assert_eq!(events(&mut a, 10), ["105:2 b message 1"]);
    b = feed.subscribe(&["b"], From::Now);
    drop((a, b));
    let status = feed.hub.status();
    assert_eq!((status.subscriptions, status.topics), (0, 0));
}

#[test]
fn limits_hold() {
    let feed = Feed::settled(100);
    let hub = Hub::new(Config { subscriptions_max: 1, topics_max: 2, ..Config::default() });
    let topics = |n: usize| (0..n).map(|i| format!("t{i}").parse().unwrap()).collect::<Vec<TopicPattern>>();
    assert_eq!(hub.subscribe(topics(1), From::Now).err(), Some(SubscribeError::NotStarted));
    assert_eq!(hub.subscribe(topics(3), From::Now).err(), Some(SubscribeError::TooManyTopics { max: 2 }));
    let small = Feed { hub, ..feed };
    small.note(Note::Start { replay_until: small.head, quiet_from: small.head });
    let _first = small.hub.subscribe(topics(1), From::Now).unwrap();
    assert_eq!(small.hub.subscribe(topics(1), From::Now).err(), Some(SubscribeError::Overloaded));

    let full = Hub::new(Config { state_bytes: 300, ..Config::default() });
    let mut full = Feed { hub: full, ..Feed::settled(1) };
    full.note(Note::Start { replay_until: full.head, quiet_from: full.head });
    full.begin_seed();
    full.end_seed("1:1:", full.head);
    full.send(vec![put(101, 10, "vm/a", "1")]);
    let batch = Batch {
        epoch: full.epoch,
        after: full.head,
        upto: Position::before(110),
        entries: Arc::from([put(103, 10, "vm/b", "1")]),
        note: None,
    };
    assert_eq!(full.hub.ingest(&batch, full.now), Err(StateFull { max: 300 }));
}

#[test]
fn a_restart_needs_the_log_from_the_oldest_event_on() {
    let mut feed = Feed::settled(2);
    assert_eq!(Hub::new(Config::default()).window(), None);
    let check = |feed: &Feed, quiet_from: Position, replay_from: u64| {
        assert_eq!(feed.hub.window(), Some(Window { quiet_from, replay_from, withdrawn: 0, waits: false }));
    };
    check(&feed, Position::before(100), 100);
    feed.send(vec![message(101, 1, "a"), message(101, 2, "a")]);
    check(&feed, Position::before(100), 101);
    // One event of the transaction is left, so all of it is read again.
    feed.send(vec![message(105, 1, "a")]);
    check(&feed, Position::new(101, 1), 101);
    feed.send(vec![message(107, 1, "a")]);
    check(&feed, Position::new(101, 2), 105);
    feed.hub.evict(feed.now + Duration::from_secs(601));
    check(&feed, Position::new(107, 1), 108);
}

#[test]
fn what_was_quiet_before_a_restart_is_no_gap() {
    let feed = Feed { hub: hub(10), epoch: Epoch(1), head: Position::before(100), now: Instant::now() };
    feed.note(Note::Start { replay_until: feed.head, quiet_from: Position::new(80, 2) });
    feed.begin_seed();
    feed.end_seed("1:1:", feed.head);
    let from = |position| From::After(Cursor::new(Epoch(1), position));
    assert_eq!(events(&mut feed.subscribe(&["a"], from(Position::new(80, 2))), 1), [""; 0]);
    assert_eq!(events(&mut feed.subscribe(&["a"], from(Position::new(80, 1))), 1), ["reset CursorExpired"]);
}

#[test]
fn old_events_expire_also_when_idle() {
    let mut feed = Feed::settled(100);
    feed.send(vec![message(101, 1, "a")]);
    feed.hub.evict(feed.now + Duration::from_secs(599));
    assert_eq!(feed.hub.status().events, 1);
    feed.hub.evict(feed.now + Duration::from_secs(601));
    let status = feed.hub.status();
    assert_eq!((status.events, status.bytes, status.floor), (0, 0, Position::new(101, 1)));
}

proptest! {
    /// Against a model that keeps everything: what a reader gets, page by page while events come and go, is
    /// all that it asked for, in order, once, unless it was told otherwise.
    #[test]
    fn readers_miss_nothing_silently(
        sizes in prop::collection::vec((1..4_u64, prop::collection::vec((0..4_usize, any::<bool>()), 0..5), any::<bool>()), 1..40),
        kept in 1..20_usize,
        limit in 1..5_usize,
        topics in prop::sample::subsequence(vec!["a", "b/x", "b/*", "*", "**", "b/y"], 1..4),
    ) {
        const NAMES: [&str; 4] = ["a", "b/x", "b/y", "c"];
        let mut feed = Feed::settled(kept);
        let mut reader = feed.subscribe(&topics, From::Now);
        let patterns: Vec<TopicPattern> = topics.iter().map(|topic| topic.parse().unwrap()).collect();
        let mut expected: Vec<(Position, Topic)> = Vec::new();
        let mut got: Vec<(Position, Topic)> = Vec::new();
        let mut lsn = 100;
        let mut forgiven = Position::ZERO;
        let mut read = |reader: &mut Subscription, expected: &mut Vec<(Position, Topic)>, hub: &Hub| {
            match ready(reader, limit) {
                None => return false,
                Some(Delivery::Reset(_)) => {
                    forgiven = hub.status().floor;
                    let after = got.last().map_or(Position::ZERO, |last: &(Position, Topic)| last.0);
                    expected.retain(|(position, _)| *position <= after || *position > forgiven);
                }
                Some(Delivery::Values(_)) => {}
                Some(Delivery::Events(events)) => {
                    for event in &events {
                        got.push((event.position(), event.topic().clone()));
                    }
                    assert_eq!(got[..], expected[..got.len()]);
                    let end = events.last().unwrap().position();
                    assert!(expected.get(got.len()).is_none_or(|next| next.0 > end), "a unit was cut");
                }
            }
            true
        };
        for (gap, records, pause) in sizes {
            lsn += gap;
            let mut entries = Vec::new();
            let mut ordinal = 0;
            for (name, same_unit) in records {
                ordinal += u64::from(!(same_unit && ordinal > 0));
                entries.push(message(lsn, ordinal, NAMES[name]));
            }
            for entry in &entries {
                if let Entry::Event(event) = entry && patterns.iter().any(|p| p.matches(&event.topic)) {
                    expected.push((event.position, event.topic.clone()));
                }
            }
            lsn += 1;
            feed.send_upto(entries, Position::before(lsn));
            if pause {
                read(&mut reader, &mut expected, &feed.hub);
            }
        }
        while read(&mut reader, &mut expected, &feed.hub) {}
        prop_assert_eq!(got, expected);
    }
}

#[test]
fn short_polls_of_a_sparse_pattern_get_on() {
    let mut feed = Feed::settled(100_000);
    let mut from = From::After(feed.hub.head().unwrap());
    feed.send((1..=10_000).map(|n| message(101, n, "noise")).collect());
    feed.send(vec![message(103, 1, "vm/a")]);
    let mut told = 0;
    for _ in 0..10 {
        let mut poll = feed.subscribe(&["vm/*"], from);
        if let Some(Delivery::Events(events)) = poll.next(10).now_or_never() {
            told += events.len();
        }
        from = From::After(poll.bookmark());
    }
    assert_eq!(told, 1);
}
