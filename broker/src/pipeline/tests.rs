//! What is published and what is acknowledged, in which order.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::event::{Change, ChangeKind, Commit, Fence};
use crate::router;

fn assembly(atomic_events_max: usize) -> Assembly {
    let router = Router::new(&[], router::Config::default()).unwrap();
    let config = Config { atomic_events_max, ..Config::default() };
    let mut assembly = Assembly::new(Routing::new(Arc::new(router)), config);
    assembly.start(Start {
        epoch: Epoch(1),
        from: 100,
        quiet_from: Position::before(100),
        replay_until: 100,
        fence: Fence::default(),
    });
    assembly
}

fn part(lsn: u64, ordinals: std::ops::RangeInclusive<u64>, end: Option<u64>) -> TransactionPart {
    let commit = Arc::new(Commit { major: lsn, lsn: Some(lsn), xid: 1, time_us: 0 });
    let content = Bytes::from_static(b"t\n1");
    let change = |ordinal| Change { ordinal, kind: ChangeKind::Message { content: content.clone() } };
    TransactionPart { commit, changes: ordinals.map(change).collect(), end }
}

fn partials(batch: &Batch) -> Vec<bool> {
    let partial = |entry: &Entry| matches!(entry, Entry::Event(event) if event.partial);
    batch.entries.iter().map(partial).collect()
}

#[test]
fn small_transactions_go_together_and_are_acknowledged_by_their_end() {
    let mut assembly = assembly(10);
    assembly.take(&part(100, 1..=2, Some(110)));
    assembly.take(&part(110, 1..=1, Some(120)));
    assembly.idle(150);
    let batch = assembly.batch(None).unwrap();
    assert_eq!((batch.after, batch.upto), (Position::before(100), Position::before(150)));
    assert_eq!(partials(&batch), [false; 3]);
    assert_eq!(assembly.published(&batch), Some(150));
    assert!(assembly.batch(None).is_none());
}

#[test]
fn an_open_transaction_is_neither_published_nor_acknowledged() {
    let mut assembly = assembly(10);
    assembly.take(&part(100, 1..=2, None));
    assembly.idle(200);
    assert!(!assembly.pending());
    assembly.take(&part(100, 3..=3, Some(110)));
    let batch = assembly.batch(None).unwrap();
    assert_eq!((batch.upto, batch.entries.len()), (Position::before(110), 3));
}

#[test]
fn a_large_transaction_passes_in_parts_all_marked() {
    let mut assembly = assembly(2);
    assembly.take(&part(100, 1..=2, None));
    assert!(!assembly.pending());
    assembly.take(&part(100, 3..=4, None));
    assert!(assembly.full());
    let batch = assembly.batch(None).unwrap();
    assert_eq!(batch.upto, Position::new(100, 4));
    assert_eq!(partials(&batch), [true; 4]);
    assert_eq!(assembly.published(&batch), None);
    assembly.take(&part(100, 5..=5, Some(110)));
    let batch = assembly.batch(None).unwrap();
    assert_eq!((batch.after, batch.upto), (Position::new(100, 4), Position::before(110)));
    assert_eq!(partials(&batch), [true]);
    assert_eq!(assembly.published(&batch), Some(110));
}

#[test]
fn what_fails_at_the_same_place_is_tried_less_and_less_often() {
    let mut backoff = Backoff::new();
    let mut check = |began: u64, failed: u64, expected_ms: u64| {
        backoff.passed(Position::before(began));
        let pause = backoff.failed(Position::before(failed));
        assert_eq!(pause, Duration::from_millis(expected_ms), "from {began} to {failed}");
    };
    check(100, 100, 200);
    check(100, 100, 400);
    check(100, 100, 800);
    check(101, 101, 200);
    check(101, 101, 400);
    for _ in 0..10 {
        backoff.failed(Position::before(101));
    }
    assert_eq!(backoff.failed(Position::before(101)), BACKOFF.1);
}

#[test]
fn a_broken_stream_leaves_nothing_half_done() {
    let mut assembly = assembly(2);
    assembly.take(&part(100, 1..=3, None));
    assembly.interrupt();
    assert!(!assembly.pending());
    assembly.start(Start {
        epoch: Epoch(1),
        from: 90,
        quiet_from: Position::before(90),
        replay_until: 120,
        fence: Fence::default(),
    });
    assembly.take(&part(100, 1..=1, Some(110)));
    let batch = assembly.batch(None).unwrap();
    assert_eq!((batch.after, batch.upto), (Position::before(90), Position::before(110)));
}

/// A log of transactions, and who reads it.
struct Log {
    /// Of each: where it commits, where that record ends, and how many changes it has.
    transactions: Vec<(u64, u64, u64)>,
    next: usize,
    /// So many of its changes were read.
    read: u64,
}

impl Log {
    /// Some commit where the record before them ends.
    fn new(shapes: &[(u64, u64, u64)]) -> Self {
        let mut end = 100;
        let lay = |&(gap, length, changes): &(u64, u64, u64)| {
            let lsn = end + gap;
            end = lsn + length;
            (lsn, end, changes)
        };
        Self { transactions: shapes.iter().map(lay).collect(), next: 0, read: 0 }
    }

    /// The next changes, at most so many.
    fn part(&mut self, changes: u64) -> Option<TransactionPart> {
        let &(lsn, end, all) = self.transactions.get(self.next)?;
        let upto = all.min(self.read + changes);
        let part = part(lsn, self.read + 1..=upto, (upto == all).then_some(end));
        self.read = upto;
        if upto == all {
            (self.next, self.read) = (self.next + 1, 0);
        }
        Some(part)
    }

    /// Where a sign of life may say the log is: before what was not read yet, unless that has begun.
    fn alive(&self, lsn: u64) -> u64 {
        let next = self.transactions.get(self.next).filter(|_| self.read == 0);
        next.map_or(lsn, |(begin, ..)| lsn.min(*begin))
    }

    fn go_back(&mut self, from: u64) {
        self.next = self.transactions.partition_point(|(_, end, _)| *end <= from);
        self.read = 0;
    }

    fn between(&self, after: Position, upto: Position) -> Vec<Position> {
        let positions = self
            .transactions
            .iter()
            .flat_map(|&(lsn, _, changes)| (1..=changes).map(move |ordinal| Position::new(lsn, ordinal)));
        positions.filter(|position| *position > after && *position <= upto).collect()
    }
}

proptest! {
    /// Whatever comes in which order, and wherever it breaks off.
    #[test]
    fn nothing_is_acknowledged_before_it_is_published_nor_left_out(
        shapes in prop::collection::vec((0_u64..3, 1_u64..20, 0_u64..7), 1..12),
        steps in prop::collection::vec((0_u8..10, 0_u64..250), 1..80),
        atomic_events_max in 1_usize..6,
    ) {
        let mut log = Log::new(&shapes);
        let mut assembly = assembly(atomic_events_max);
        // Everything up to `published` is; the stream that runs has brought everything up to `head`.
        let (mut published, mut head) = (Position::before(100), Position::before(100));
        let mut acknowledged = 100;
        for (step, number) in steps {
            let note = (step == 5).then(|| Note::SeedBegin(Arc::from([])));
            match step {
                0..3 => if let Some(part) = log.part(number % 4 + 1) {
                    assembly.take(&part);
                },
                3 => assembly.idle(log.alive(50 + number)),
                4..8 => if let Some(batch) = assembly.batch(note) {
                    prop_assert_eq!(batch.after, head, "a hole, or told twice");
                    let told: Vec<Position> = batch.entries.iter().map(Entry::position).collect();
                    prop_assert_eq!(told, log.between(batch.after, batch.upto));
                    let end = assembly.published(&batch);
                    head = batch.upto;
                    published = published.max(head);
                    if let Some(end) = end {
                        prop_assert!(Position::before(end) <= head, "{end} acknowledged, {head} published");
                        acknowledged = acknowledged.max(end);
                    }
                },
                // It breaks off, perhaps with a batch on its way, and goes on where it was acknowledged, or
                // at the floor.
                _ => {
                    if step == 8 {
                        assembly.batch(None);
                    }
                    assembly.interrupt();
                    prop_assert!(!assembly.pending());
                    let from = if number % 2 == 0 { acknowledged } else { 100 };
                    prop_assert!(Position::before(from) <= published);
                    log.go_back(from);
                    let quiet_from = Position::before(from);
                    assembly.start(Start { epoch: Epoch(1), from, quiet_from, replay_until: from, fence: Fence::default() });
                    head = Position::before(from);
                }
            }
        }
    }
}

/// A source that brings what it is given, then nothing, and ends when asked to.
struct Scripted {
    changes: std::vec::IntoIter<Changes>,
    end: Arc<tokio::sync::Notify>,
}

fn ended() -> SourceError {
    SourceError { message: "the server stops".into(), retry: Retry::After(Duration::ZERO) }
}

impl Source for Scripted {
    async fn next(&mut self) -> Result<Changes, SourceError> {
        match self.changes.next() {
            Some(changes) => Ok(changes),
            None => std::future::pending().await,
        }
    }

    async fn ended(&mut self) -> SourceError {
        self.end.notified().await;
        ended()
    }

    async fn ack(&mut self, _: u64) -> Result<(), SourceError> {
        Ok(())
    }

    fn keep_values_of(&mut self, _: Vec<crate::router::TableRule>, _: Vec<Arc<str>>) {}

    async fn close(&mut self) {}
}

/// Takes one batch at a time; that of a seeding's end only at the second attempt.
#[derive(Default)]
struct Slow {
    taken: parking_lot::Mutex<Vec<Batch>>,
    refused: std::sync::atomic::AtomicBool,
    asked: tokio::sync::Notify,
}

impl Backbone for Slow {
    async fn publish(&self, batch: &Batch) -> Result<(), BackboneError> {
        let end = matches!(batch.note, Some(Note::SeedEnd { .. }));
        if end && !self.refused.swap(true, std::sync::atomic::Ordering::SeqCst) {
            self.asked.notify_one();
            std::future::pending::<()>().await;
        }
        self.taken.lock().push(batch.clone());
        self.asked.notify_one();
        Ok(())
    }

    async fn next(&self) -> Result<Batch, BackboneError> {
        std::future::pending().await
    }

    fn close(&self) {}
}

#[tokio::test]
async fn what_is_said_once_is_not_lost_with_the_stream() {
    let snapshot = Arc::new(crate::event::Snapshot::default());
    let start = Start {
        epoch: Epoch(1),
        from: 100,
        quiet_from: Position::before(100),
        replay_until: 100,
        fence: Fence::default(),
    };
    let changes = vec![
        Changes::Start(start),
        Changes::SeedBegin(Arc::from([])),
        Changes::Transaction(part(100, 1..=1, Some(110))),
        Changes::SeedEnd(crate::event::SeedEnd { snapshot, settle: 120 }),
    ];
    let end = Arc::new(tokio::sync::Notify::new());
    let source = Scripted { changes: changes.into_iter(), end: Arc::clone(&end) };
    let router = Router::new(&[], router::Config::default()).unwrap();
    let (_rules, watched) = watch::channel(Arc::new(router));
    let (backbone, shutdown) = (Arc::new(Slow::default()), CancellationToken::new());
    let health = Arc::new(Health::new(Duration::from_secs(1)));
    let running =
        publish(source, watched, Arc::clone(&backbone), Config::default(), health, None, shutdown.clone());
    let running = tokio::spawn(running);
    let seen = |seed_ends: bool| {
        let ends = |batch: &Batch| matches!(batch.note, Some(Note::SeedEnd { .. }));
        backbone.taken.lock().iter().any(ends) == seed_ends
    };
    let told = async {
        while !backbone.refused.load(std::sync::atomic::Ordering::SeqCst) {
            backbone.asked.notified().await;
        }
        assert!(seen(false));
        end.notify_one();
        while !seen(true) {
            backbone.asked.notified().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
    shutdown.cancel();
    running.await.unwrap().unwrap();
    let taken = backbone.taken.lock();
    let last = taken.last().unwrap();
    assert!(matches!(&last.note, Some(Note::SeedEnd { settle, .. }) if *settle == Position::before(120)));
    // The transaction was published before it, and is not published again.
    assert_eq!(
        (last.after, last.upto, last.entries.len()),
        (Position::before(110), Position::before(110), 0)
    );
}
