//! The hub: a batch comes in and wakes the one of many parked waiters that it concerns.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use bytes::Bytes;
use walcast::event::{Batch, Commit, Entry, Event, Note};
use walcast::hub::{Config, Delivery, From, Hub, Subscription};
use walcast_wire::{Epoch, Op, Position, Topic};

use super::Operation;

/// So few that each event soon pushes an older one out, as in a broker that has run for a while.
const HISTORY_EVENTS: usize = 1_000;

/// From one waiter to the next to be woken: a prime, so that all get their turn and no two are neighbours.
const STRIDE: usize = 7_919;

const EPOCH: Epoch = Epoch(1);

/// Makes the batch, takes it in, reads the event as the waiter that it woke, and parks that one again.
pub(super) fn wake(topics: usize) -> Operation {
    let mut fleet = Fleet::parked(topics);
    Box::new(move || fleet.wake_next())
}

struct Fleet {
    hub: Arc<Hub>,
    waiters: Vec<Waiter>,
    next: usize,
    head: Position,
    now: Instant,
}

struct Waiter {
    topic: Topic,
    subscription: Subscription,
    woken: Arc<Woken>,
    waker: Waker,
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Fleet {
    /// One waiter on each topic.
    fn parked(topics: usize) -> Self {
        let hub = Hub::new(Config { events: HISTORY_EVENTS, ..Config::default() });
        let (head, now) = (Position::new(1, 0), Instant::now());
        let note = Some(Note::Start { replay_until: head, quiet_from: head });
        let start = Batch { epoch: EPOCH, after: head, upto: head, entries: [].into(), note };
        hub.ingest(&start, now).expect("there are no values");
        let waiters = (0..topics).map(|number| Waiter::parked(&hub, number)).collect();
        Self { hub, waiters, next: 0, head, now }
    }

    fn wake_next(&mut self) {
        self.next = (self.next + STRIDE) % self.waiters.len();
        let waiter = &mut self.waiters[self.next];
        let upto = Position::new(self.head.major + 8, 1);
        let event = Event {
            position: upto,
            topic: waiter.topic.clone(),
            op: Op::Message,
            data: Bytes::from_static(br#"{"job":4711}"#),
            commit: Some(Arc::new(Commit { major: upto.major, lsn: Some(upto.major), xid: 7, time_us: 1 })),
            unchanged: [].into(),
            omitted: [].into(),
            partial: false,
            state: None,
        };
        let entries = [Entry::Event(event)].into();
        let batch = Batch { epoch: EPOCH, after: self.head, upto, entries, note: None };
        self.hub.ingest(&batch, self.now).expect("there are no values");
        self.head = upto;
        assert!(waiter.woken.0.swap(false, Ordering::Relaxed), "the waiter was not woken");
        match waiter.poll() {
            Poll::Ready(Delivery::Events(events)) => assert_eq!(black_box(events).len(), 1),
            other => panic!("not the event: {other:?}"),
        }
        assert!(waiter.poll().is_pending(), "the waiter was told twice");
    }
}

impl Waiter {
    fn parked(hub: &Arc<Hub>, number: usize) -> Self {
        let topic = Topic::new(&format!("vm/host-{number:06}")).expect("a topic");
        let subscription = hub.subscribe(vec![topic.clone().into()], From::Now).expect("there is room");
        let woken = Arc::new(Woken::default());
        let waker = Arc::clone(&woken).into();
        let mut waiter = Self { topic, subscription, woken, waker };
        assert!(waiter.poll().is_pending(), "nothing has happened yet");
        waiter
    }

    fn poll(&mut self) -> Poll<Delivery> {
        self.subscription.poll_next(&mut Context::from_waker(&self.waker), 100)
    }
}
