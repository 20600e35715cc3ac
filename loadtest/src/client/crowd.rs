//! Many clients, one task each, and what they received.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Fault, Manner, Target, listen, socket};
use crate::Error;
use crate::latency::{Clock, Latencies, Sent};
use crate::report::Checks;
use crate::verify::{self, Receipt};

/// Clients that connect at a time: fewer than a listener's queue holds.
const CONNECTING_MAX: usize = 256;

/// What one client received.
#[derive(Clone, Debug, Default)]
pub struct Inbox {
    /// Messages, in the order in which they came.
    pub receipts: Vec<Receipt>,
    /// Where to go on, as far as the client was told.
    pub cursor: Option<String>,
    /// How often it was told that events may be missing.
    pub resets: u32,
}

/// What all clients share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) clock: Clock,
    pub(super) inboxes: Box<[Mutex<Inbox>]>,
    ready: AtomicU64,
    delivered: AtomicU64,
    replies: AtomicU64,
    faults: AtomicU64,
    fault: Mutex<Option<String>>,
    /// Set when `delivered` reaches `target`, and at every ready client and every fault.
    target: AtomicU64,
    changed: Notify,
}

impl Shared {
    pub(super) fn became_ready(&self) {
        self.ready.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    pub(super) fn received(&self, count: u64) {
        if count > 0 {
            // In one order with who sets the target and then looks: one of the two sees the other.
            let before = self.delivered.fetch_add(count, Ordering::SeqCst);
            if before + count >= self.target.load(Ordering::SeqCst) {
                self.changed.notify_one();
            }
        }
    }

    pub(super) fn replied(&self) {
        self.replies.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, client: usize, fault: &Fault) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.fault.lock().get_or_insert_with(|| format!("client {client}: {fault}"));
        self.changed.notify_one();
    }
}

/// Clients that wait; all end when it is dropped.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Crowd {
    /// Starts `clients` clients, each waiting for `topic(its number)`. Returns at once; see
    /// [`all_ready`](Self::all_ready).
    #[must_use]
    pub fn start(
        target: &Target,
        manner: &Manner,
        clock: Clock,
        clients: usize,
        topic: impl Fn(usize) -> String,
    ) -> Self {
        let shared = Arc::new(Shared {
            clock,
            inboxes: (0..clients).map(|_| Mutex::default()).collect(),
            ready: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            replies: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            fault: Mutex::new(None),
            target: AtomicU64::new(u64::MAX),
            changed: Notify::new(),
        });
        let connecting = Arc::new(Semaphore::new(CONNECTING_MAX));
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let topic = topic(number);
            let (shared, connecting) = (Arc::clone(&shared), Arc::clone(&connecting));
            match (target.dialect(&topic, manner), target) {
                (Some((address, dialect)), _) => {
                    tasks.spawn(async move {
                        if let Err(fault) =
                            socket::follow(&shared, number, address, dialect, &connecting).await
                        {
                            shared.failed(number, &fault);
                        }
                    });
                }
                (None, Target::Listen(config)) => {
                    let config = Arc::clone(config);
                    tasks.spawn(async move {
                        if let Err(fault) =
                            listen::follow(&shared, number, &config, &topic, &connecting).await
                        {
                            shared.failed(number, &fault);
                        }
                    });
                }
                (None, _) => unreachable!("all others are bytes on a socket"),
            }
        }
        Self { shared, tasks }
    }

    /// How many there are.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.shared.inboxes.len()
    }

    /// Clients whom the server has told, where it does, that they wait; else those that have asked to.
    #[must_use]
    pub fn ready(&self) -> u64 {
        self.shared.ready.load(Ordering::Relaxed)
    }

    /// Messages received, by all.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.shared.delivered.load(Ordering::SeqCst)
    }

    /// How often clients answered what they heard: a long-poll asks again.
    #[must_use]
    pub fn replies(&self) -> u64 {
        self.shared.replies.load(Ordering::Relaxed)
    }

    /// Clients that failed, and why the first of them did.
    #[must_use]
    pub fn faults(&self) -> (u64, Option<String>) {
        (self.shared.faults.load(Ordering::Relaxed), self.shared.fault.lock().clone())
    }

    /// Waits until all are [`ready`](Self::ready).
    ///
    /// # Errors
    /// A client failed, or none became ready for `patience`.
    pub async fn all_ready(&self, patience: Duration) -> Result<(), Error> {
        let clients = self.clients() as u64;
        loop {
            let (ready, (faults, why)) = (self.ready(), self.faults());
            if faults > 0 {
                let why = why.unwrap_or_default();
                return Err(Error::failed(format!("{faults} of {clients} clients failed to connect: {why}")));
            }
            if ready >= clients {
                return Ok(());
            }
            if timeout(patience, self.shared.changed.notified()).await.is_err() && self.ready() == ready {
                return Err(Error::failed(format!(
                    "only {ready} of {clients} clients wait, and none more came within {patience:?}; \
                     look at the server's log, or try fewer clients"
                )));
            }
        }
    }

    /// Waits until `count` messages were received in all, or nothing came for `quiet`; whether they were.
    pub async fn until_delivered(&self, count: u64, quiet: Duration) -> bool {
        self.shared.target.store(count, Ordering::SeqCst);
        loop {
            let before = self.delivered();
            if before >= count {
                return true;
            }
            let waited = timeout(quiet, self.shared.changed.notified()).await;
            if waited.is_err() && self.delivered() == before {
                return false;
            }
        }
    }

    /// Waits until clients have replied `count` times in all, or for `patience`.
    pub async fn until_replied(&self, count: u64, patience: Duration) {
        let replied = async {
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            while self.replies() < count && self.faults().0 == 0 {
                tick.tick().await;
            }
        };
        // What is then still missing shows in what the clients received.
        let _ = timeout(patience, replied).await;
    }

    /// Ends all clients and answers what each received.
    pub async fn finish(mut self) -> Received {
        self.tasks.shutdown().await;
        let inboxes = self.shared.inboxes.iter().map(|inbox| std::mem::take(&mut *inbox.lock()));
        let (failed, fault) = self.faults();
        Received { inboxes: inboxes.collect(), failed, fault }
    }
}

/// What a crowd received.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// One for each client.
    pub inboxes: Vec<Inbox>,
    /// Clients that could not go on.
    pub failed: u64,
    /// Why the first client that failed did.
    pub fault: Option<String>,
}

impl Received {
    /// Judges all clients; `due` is what each must have, by its number.
    pub fn judge<I: IntoIterator<Item = u32>>(&self, due: impl Fn(usize) -> I) -> Checks {
        let each = self.inboxes.iter().enumerate();
        each.fold(self.clients(), |sum, (number, inbox)| {
            sum.and(verify::client(&inbox.receipts, due(number)))
        })
    }

    /// What can be said of the clients without looking at what they received.
    #[must_use]
    pub fn clients(&self) -> Checks {
        let resets = self.inboxes.iter().map(|inbox| u64::from(inbox.resets)).sum();
        Checks { failed: self.failed, resets, ..Checks::default() }
    }

    /// All latencies.
    #[must_use]
    pub fn latencies(&self, sent: &Sent) -> Latencies {
        let mut latencies = Latencies::default();
        for inbox in &self.inboxes {
            latencies.receipts(&inbox.receipts, sent);
        }
        latencies
    }

    /// When the first and the last message came, in microseconds of the run's clock.
    #[must_use]
    pub fn span_us(&self) -> Option<(u32, u32)> {
        let all = || self.inboxes.iter().flat_map(|inbox| inbox.receipts.iter().map(|receipt| receipt.at_us));
        Some((all().min()?, all().max()?))
    }
}
