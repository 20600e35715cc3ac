//! What a backbone promises, whichever it is: everything in order and once, or that something is missing; to those who
//! come late, and after it lost everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use walcast::backbone::Backbone as _;
use walcast::backbone::local::Local;
use walcast::backbone::redis::Config as RedisConfig;
use walcast::event::{Batch, Commit, Effect, Entry, Event, Fence, Note, Seeded, Snapshot};
use walcast::health::Health;
use walcast::hub::{Config, Delivery, From, Hub, Lane, Subscription};
use walcast::pipeline;
use walcast::pipeline::fleet::{self, Carrier, Fleet, Lead};
use walcast::source::SourceKind;
use walcast::throwaway::redis::Server;
use walcast_wire::{Cursor, Epoch, Op, Position, ResetReason};

use crate::broker::{patterns, until, within};
use crate::edge::{message, state};

macro_rules! contract {
    ($($test:ident),* $(,)?) => {
        mod local { $(#[tokio::test] async fn $test() { super::$test(super::Way::Local).await; })* }
        mod redis { $(#[tokio::test] async fn $test() { super::$test(super::Way::Redis).await; })* }
    };
}

contract!(
    all_comes_in_order_and_once,
    what_shares_a_position_comes_together,
    who_comes_late_knows_what_is_kept,
    what_is_gone_is_told,
    what_was_lost_is_filled_again,
    values_are_those_behind_the_events,
    another_line_is_told,
);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Local,
    Redis,
}

const EPOCH: Epoch = Epoch(1);

/// A hub that is told all, and the way from it to others.
struct Bench {
    local: Arc<Local>,
    hub: Arc<Hub>,
    config: Config,
    epoch: Epoch,
    head: AtomicU64,
    shared: Option<Shared>,
    _ingest: AbortOnDropHandle<()>,
}

struct Shared {
    server: Arc<Server>,
    config: RedisConfig,
    lead: Lead,
    _carry: AbortOnDropHandle<()>,
}

/// One who reads what the bench tells.
struct Reader {
    hub: Arc<Hub>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Bench {
    async fn start(way: Way, events: usize) -> Self {
        let config = Config { events, ..Config::default() };
        let (local, hub) = (Arc::new(Local::default()), Hub::new(config.clone()));
        let shared = match way {
            Way::Local => None,
            Way::Redis => Some(Shared::start(&hub).await),
        };
        let ingest = {
            let (local, hub) = (Arc::clone(&local), Arc::clone(&hub));
            async move {
                let health = Arc::new(Health::new(Duration::from_secs(60)));
                pipeline::ingest(local, hub, health, SourceKind::Wal).await.unwrap();
            }
        };
        let ingest = AbortOnDropHandle::new(tokio::spawn(ingest));
        let head = AtomicU64::new(100);
        let mut bench = Self { local, hub, config, epoch: EPOCH, head, shared, _ingest: ingest };
        bench.begin(EPOCH).await;
        bench
    }

    /// A line begins.
    async fn begin(&mut self, epoch: Epoch) {
        if let Some(shared) = &self.shared {
            within("the lead is taken", shared.lead.take(Fence { timeline: 1, lsn: epoch.0 })).await;
        }
        self.epoch = epoch;
        let start = Position::before(self.head.load(Ordering::SeqCst));
        self.note(Note::Start { replay_until: start, quiet_from: start }).await;
        let seeded = Seeded { table: "public.vms".into(), topics: patterns(&["vm/*"]) };
        self.note(Note::SeedBegin(Arc::from([seeded]))).await;
        let snapshot = Arc::new(Snapshot::parse("1:1:").unwrap());
        self.note(Note::SeedEnd { settle: start, snapshot }).await;
    }

    async fn note(&self, note: Note) {
        let head = Position::before(self.head.load(Ordering::SeqCst));
        let batch =
            Batch { epoch: self.epoch, after: head, upto: head, entries: Arc::from([]), note: Some(note) };
        within("a note", self.local.publish(&batch)).await.unwrap();
    }

    /// Commits these; the cursor behind them.
    async fn commit(&self, events: Vec<(u64, Event)>) -> Cursor {
        let lsn = self.head.fetch_add(2, Ordering::SeqCst);
        let commit = Arc::new(Commit { major: lsn, lsn: Some(lsn), xid: lsn as u32, time_us: 0 });
        let entries = events.into_iter().map(|(ordinal, event)| {
            let (position, commit) = (Position::new(lsn, ordinal), Some(Arc::clone(&commit)));
            Entry::Event(Event { position, commit, ..event })
        });
        let upto = Position::before(lsn + 2);
        let entries = entries.collect();
        let batch = Batch { epoch: self.epoch, after: Position::before(lsn), upto, entries, note: None };
        within("a batch", self.local.publish(&batch)).await.unwrap();
        Cursor::new(self.epoch, upto)
    }

    async fn send(&self, n: u64) -> Cursor {
        self.commit(vec![(1, message("t", &n.to_string()))]).await
    }

    async fn put(&self, topic: &str, data: &str) -> Cursor {
        self.commit(vec![(1, state(topic, data, Op::Update, Effect::Put))]).await
    }

    /// One more reader, that knows of the line.
    async fn reader(&self) -> Reader {
        let Some(shared) = &self.shared else {
            until("a line", async || self.hub.status().settled).await;
            return Reader { hub: Arc::clone(&self.hub), _tasks: Vec::new() };
        };
        let hub = Hub::new(self.config.clone());
        hub.follow_others();
        let fleet = shared.fleet(&hub);
        let (always, follows) = watch::channel(true);
        let follow = {
            let fleet = fleet.clone();
            async move {
                fleet::follow(fleet, follows).await.unwrap();
                drop(always);
            }
        };
        let ask = async move {
            let lanes = [Lane::Topics, Lane::Patterns].map(|lane| fleet::ask(fleet.clone(), lane));
            futures_util::future::join_all(lanes).await;
        };
        let _tasks =
            vec![AbortOnDropHandle::new(tokio::spawn(follow)), AbortOnDropHandle::new(tokio::spawn(ask))];
        until("a line", async || hub.head().is_some_and(|head| head.epoch == self.epoch)).await;
        Reader { hub, _tasks }
    }

    /// What can be lost is.
    async fn lose(&self) {
        if let Some(shared) = &self.shared {
            let server = Arc::clone(&shared.server);
            tokio::task::spawn_blocking(move || server.restart_empty().unwrap()).await.unwrap();
        }
    }
}

impl Shared {
    async fn start(hub: &Arc<Hub>) -> Self {
        let server = tokio::task::spawn_blocking(|| Server::start().unwrap()).await.unwrap();
        let config = RedisConfig { url: Some(server.url()), ..RedisConfig::default() };
        let health = Arc::new(Health::among_others(Duration::from_secs(60)));
        let fleet = Fleet {
            redis: config.clone(),
            source: "orders".into(),
            hub: Arc::clone(hub),
            health,
            silence_max: Duration::from_secs(60),
        };
        let (carrier, lead, _) = Carrier::new(fleet);
        let carry = AbortOnDropHandle::new(tokio::spawn(carrier.run()));
        Self { server: Arc::new(server), config, lead, _carry: carry }
    }

    fn fleet(&self, hub: &Arc<Hub>) -> Fleet {
        let health = Arc::new(Health::among_others(Duration::from_secs(60)));
        Fleet {
            redis: self.config.clone(),
            source: "orders".into(),
            hub: Arc::clone(hub),
            health,
            silence_max: Duration::from_secs(60),
        }
    }
}

impl Reader {
    fn subscribe(&self, topics: &[&str], from: From) -> Subscription {
        self.hub.subscribe(patterns(topics), from).unwrap()
    }

    fn reached(&self, cursor: Cursor) -> bool {
        self.hub.head().is_some_and(|head| head.position >= cursor.position)
    }

    fn since_start(&self, topics: &[&str]) -> Subscription {
        self.subscribe(topics, From::After(Cursor::new(EPOCH, Position::before(100))))
    }
}

/// The data of the next events, page by page.
async fn told(subscription: &mut Subscription, count: usize) -> Vec<String> {
    let mut told = Vec::new();
    while told.len() < count {
        match within("events", subscription.next(100)).await {
            Delivery::Events(events) => {
                told.extend(events.iter().map(|event| String::from_utf8(event.data().to_vec()).unwrap()));
            }
            // Where history begins.
            Delivery::Values(values) => assert_eq!(values.count(), 0),
            Delivery::Reset(reset) => panic!("{reset:?}"),
        }
    }
    told
}

fn numbers(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

async fn all_comes_in_order_and_once(way: Way) {
    let bench = Bench::start(way, 100_000).await;
    let reader = bench.reader().await;
    let mut subscription = reader.subscribe(&["t"], From::Now);
    let sending = async {
        for n in 0..3_000 {
            bench.send(n).await;
        }
    };
    let (told, ()) = tokio::join!(told(&mut subscription, 3_000), sending);
    assert_eq!(told, numbers(0..3_000));
}

async fn what_shares_a_position_comes_together(way: Way) {
    let bench = Bench::start(way, 100_000).await;
    let reader = bench.reader().await;
    let mut subscription = reader.subscribe(&["**"], From::Now);
    let unit = |n: u64| (0..n).map(|i| (1, message(&format!("t/{i}"), &i.to_string()))).collect::<Vec<_>>();
    bench.commit(unit(2_500)).await;
    let Delivery::Events(events) = within("a unit", subscription.next(1)).await else { panic!("no events") };
    assert_eq!(events.len(), 2_500);
}

async fn who_comes_late_knows_what_is_kept(way: Way) {
    let bench = Bench::start(way, 100_000).await;
    for n in 0..50 {
        bench.send(n).await;
    }
    let reader = bench.reader().await;
    assert_eq!(told(&mut reader.since_start(&["t"]), 50).await, numbers(0..50));
}

async fn what_is_gone_is_told(way: Way) {
    let bench = Bench::start(way, 10).await;
    let reader = bench.reader().await;
    let mut old = reader.since_start(&["t"]);
    let mut end = bench.send(0).await;
    for n in 1..200 {
        end = bench.send(n).await;
    }
    let late = bench.reader().await;
    until("all is there", async || late.reached(end) && reader.reached(end)).await;
    for subscription in [&mut old, &mut late.since_start(&["t"])] {
        let first = within("a reset", subscription.next(100)).await;
        assert!(
            matches!(&first, Delivery::Reset(reset) if matches!(reset.reason, ResetReason::CursorExpired | ResetReason::Gap)),
            "{first:?}"
        );
        let rest = told(subscription, 1).await;
        assert_eq!(rest.last().map(String::as_str), Some("199"));
    }
}

async fn what_was_lost_is_filled_again(way: Way) {
    let bench = Bench::start(way, 100_000).await;
    let reader = bench.reader().await;
    let mut subscription = reader.since_start(&["t"]);
    for n in 0..10 {
        bench.send(n).await;
    }
    assert_eq!(told(&mut subscription, 10).await, numbers(0..10));
    bench.lose().await;
    for n in 10..20 {
        bench.send(n).await;
    }
    assert_eq!(told(&mut subscription, 10).await, numbers(10..20), "without a reset");
    let late = bench.reader().await;
    assert_eq!(told(&mut late.since_start(&["t"]), 20).await, numbers(0..20));
}

async fn values_are_those_behind_the_events(way: Way) {
    let bench = Bench::start(way, 100_000).await;
    let reader = bench.reader().await;
    bench.put("vm/a", "1").await;
    bench.put("vm/b", "1").await;
    bench.commit(vec![(1, state("vm/b", "{}", Op::Delete, Effect::Clear))]).await;
    let end = bench.put("vm/a", "2").await;
    until("all is there", async || reader.reached(end)).await;
    for topics in [&["vm/a"], &["vm/*"]] {
        let mut subscription = reader.subscribe(topics, From::Current);
        let values = within("values", subscription.next(10)).await;
        let Delivery::Values(values) = values else { panic!("{values:?}") };
        let values: Vec<_> = values.map(|value| (value.topic().to_string(), value.data())).collect();
        assert_eq!(values, [("vm/a".to_owned(), "2".into())]);
        bench.put("vm/a", "3").await;
        assert_eq!(told(&mut subscription, 1).await, ["3"]);
        let end = bench.put("vm/a", "2").await;
        until("all is there", async || reader.reached(end)).await;
    }
}

async fn another_line_is_told(way: Way) {
    let mut bench = Bench::start(way, 100_000).await;
    let reader = bench.reader().await;
    let mut subscription = reader.subscribe(&["t"], From::Now);
    bench.send(0).await;
    assert_eq!(told(&mut subscription, 1).await, ["0"]);
    bench.begin(Epoch(2)).await;
    let reset = within("a reset", subscription.next(10)).await;
    assert!(
        matches!(&reset, Delivery::Reset(reset) if reset.reason == ResetReason::EpochChanged),
        "{reset:?}"
    );
    bench.send(1).await;
    assert_eq!(told(&mut subscription, 1).await, ["1"]);
}
