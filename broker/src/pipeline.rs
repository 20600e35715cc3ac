//! The two loops. Publish, on the leader: source → router → backbone → acknowledge. Ingest, on every node:
//! backbone → hub.
//!
//! Publishing is the only place that decides whether and when a failed source is tried again, and nothing
//! is acknowledged to Postgres before the backbone has it.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use walcast_wire::{Epoch, Position};

use crate::backbone::{Backbone, BackboneError};
use crate::event::{Batch, Changes, Commit, Entry, Note, Outdated, Start, TransactionPart};
use crate::health::{Health, Part};
use crate::hub::{Hub, StateFull};
use crate::router::{Router, Routing};
use crate::source::{Retry, Source, SourceError, SourceKind};

pub mod fleet;
pub mod roll;

use fleet::Lead;

/// How long a note may wait for room before the stream is looked for.
const SAY_MAX: Duration = Duration::from_secs(2);
/// First and longest pause between attempts to reach the source; the pause taken is a random part of it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Sizes of what moves through the pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Transactions of more events are passed on in parts, and their events carry `partial` throughout.
    pub atomic_events_max: usize,
    /// The same for the size of a transaction's events, in bytes.
    #[serde(deserialize_with = "crate::units::bytes")]
    pub atomic_bytes_max: usize,
    /// Small transactions that are there at once are published together up to so many events.
    pub batch_events_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { atomic_events_max: 10_000, atomic_bytes_max: 16 << 20, batch_events_max: 1_000 }
    }
}

/// Why publishing ended for good.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The source cannot go on without an operator.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The backbone is gone.
    #[error(transparent)]
    Backbone(#[from] BackboneError),
}

/// Reads, routes and publishes until `shutdown`, then closes the source. Reconnects where that can help.
///
/// # Errors
/// The source or the backbone ended for good; the source is closed then, too.
pub async fn publish<S: Source, B: Backbone>(
    mut source: S,
    rules: watch::Receiver<Arc<Router>>,
    backbone: Arc<B>,
    config: Config,
    health: Arc<Health>,
    lead: Option<Lead>,
    shutdown: CancellationToken,
) -> Result<(), PublishError> {
    let router = Arc::clone(&rules.borrow());
    source.keep_values_of(router.state_tables().collect(), Vec::new());
    let assembly = Assembly::new(Routing::new(router), config);
    let mut publisher = Publisher {
        assembly,
        rules,
        new_rules: false,
        backbone,
        health,
        lead,
        streams: false,
        withheld: Vec::new(),
    };
    let result = shutdown.run_until_cancelled(publisher.run(&mut source)).await;
    source.close().await;
    result.unwrap_or(Ok(()))
}

struct Publisher<B> {
    assembly: Assembly,
    rules: watch::Receiver<Arc<Router>>,
    /// They changed, and wait for the end of a transaction.
    new_rules: bool,
    backbone: Arc<B>,
    health: Arc<Health>,
    /// Set where others follow.
    lead: Option<Lead>,
    /// A stream has begun, and not ended.
    streams: bool,
    /// Changes of rules that clients of other brokers are told of once this one leads.
    withheld: Vec<Outdated>,
}

/// How long to wait before the next attempt. What fails right behind a stream's begin is not tried without a pause.
struct Backoff {
    next: Duration,
    /// Everything up to here was published when the stream failed last.
    failed_at: Position,
}

impl Backoff {
    fn new() -> Self {
        Self { next: BACKOFF.0, failed_at: Position::ZERO }
    }

    /// The longest pause to make, after a failure of what comes behind `head`.
    fn failed(&mut self, head: Position) -> Duration {
        self.failed_at = head;
        let next = (self.next * 2).min(BACKOFF.1);
        std::mem::replace(&mut self.next, next)
    }

    /// Everything up to `head` is published: what is beyond the last failure is news.
    fn passed(&mut self, head: Position) {
        if head > self.failed_at {
            self.next = BACKOFF.0;
        }
    }
}

impl<B: Backbone> Publisher<B> {
    async fn run<S: Source>(&mut self, source: &mut S) -> Result<(), PublishError> {
        let mut backoff = Backoff::new();
        loop {
            let error = match self.stream(source, &mut backoff).await {
                Ok(never) => match never {},
                Err(PublishError::Source(error)) => error,
                Err(error) => return Err(error),
            };
            let Retry::After(at_least) = error.retry else { return Err(error.into()) };
            let pause = backoff.failed(self.assembly.head);
            self.assembly.interrupt();
            self.streams = false;
            self.health.unwell(Part::Stream, error.message.clone());
            self.say_unsaid().await?;
            let delay = at_least + rand::rng().random_range(Duration::ZERO..=pause);
            tracing::warn!(
                retry_in_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX),
                "no stream from Postgres: {error}"
            );
            tokio::time::sleep(delay).await;
        }
    }

    /// Until the source fails. Whatever is there at once is published together.
    async fn stream<S: Source>(
        &mut self,
        source: &mut S,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, PublishError> {
        loop {
            self.reload(source).await?;
            let pending = self.assembly.pending();
            let changes = tokio::select! {
                biased;
                changes = source.next() => changes?,
                // Nothing more at once: publish what is gathered before waiting.
                () = std::future::ready(()), if pending => {
                    self.flush(source, None).await?;
                    continue;
                }
                Ok(()) = self.rules.changed() => {
                    self.new_rules = true;
                    continue;
                }
            };
            self.health.beat(Instant::now());
            backoff.passed(self.assembly.head);
            match changes {
                Changes::Start(start) => {
                    if let Some(lead) = &self.lead {
                        lead.take(start.fence).await;
                    }
                    if start.epoch != self.assembly.epoch {
                        backoff.failed_at = Position::before(start.from);
                    }
                    if let Some(note) = self.assembly.unsaid.take() {
                        self.flush(source, Some(note)).await?;
                    }
                    self.assembly.start(start);
                    let replay_until = Position::before(start.replay_until);
                    let quiet_from = start.quiet_from;
                    self.flush(source, Some(Note::Start { replay_until, quiet_from })).await?;
                    self.streams = true;
                    let withheld = std::mem::take(&mut self.withheld);
                    if !withheld.is_empty() {
                        self.note(source, Note::Outdated(withheld.into())).await?;
                    }
                }
                Changes::Transaction(part) => {
                    self.assembly.take(&part);
                    if self.assembly.full() {
                        self.flush(source, None).await?;
                    }
                }
                Changes::Idle(lsn) => self.assembly.idle(lsn),
                Changes::SeedBegin(tables) => {
                    let seeded = self.assembly.routing.router().seeded(&tables).into();
                    self.note(source, Note::SeedBegin(seeded)).await?;
                }
                Changes::Seed(rows) => {
                    let router = self.assembly.routing.router();
                    let events = router.seed(&rows.relation, &rows.rows).into();
                    self.note(source, Note::Seed { snapshot: rows.snapshot, events }).await?;
                }
                Changes::SeedEnd(end) => {
                    let settle = Position::before(end.settle);
                    self.note(source, Note::SeedEnd { snapshot: end.snapshot, settle }).await?;
                }
            }
        }
    }

    /// Publishes a note behind everything that is gathered.
    async fn note<S: Source>(&mut self, source: &mut S, note: Note) -> Result<(), PublishError> {
        self.flush(source, None).await?;
        self.flush(source, Some(note)).await
    }

    /// Takes new rules between two transactions.
    async fn reload<S: Source>(&mut self, source: &mut S) -> Result<(), PublishError> {
        // Asked for here, too: a stream that never pauses would not let the change be noticed.
        self.new_rules |= self.rules.has_changed().unwrap_or(false);
        if !self.new_rules || self.assembly.open.is_some() {
            return Ok(());
        }
        self.new_rules = false;
        let new = Arc::clone(&self.rules.borrow_and_update());
        let old = std::mem::replace(&mut self.assembly.routing, Routing::new(Arc::clone(&new)));
        let outdated = new.outdated(old.router());
        let changed = outdated.iter().filter(|outdated| outdated.state);
        let changed = changed.map(|outdated| Arc::clone(&outdated.table)).collect();
        source.keep_values_of(new.state_tables().collect(), changed);
        if self.lead.is_some() && !self.streams {
            self.withheld.extend(outdated);
            return Ok(());
        }
        // Before the first stream nothing is known that could be outdated.
        if self.assembly.started && !outdated.is_empty() {
            self.note(source, Note::Outdated(outdated.into())).await?;
        }
        Ok(())
    }

    /// Publishes the note that the end of the stream has cut off.
    async fn say_unsaid(&mut self) -> Result<(), BackboneError> {
        let Some(note) = self.assembly.unsaid.take() else { return Ok(()) };
        let Some(batch) = self.assembly.batch(Some(note.clone())) else { return Ok(()) };
        // While there is no room the way on is to look who leads.
        match tokio::time::timeout(SAY_MAX, self.backbone.publish(&batch)).await {
            Ok(published) => published,
            Err(_) => {
                self.assembly.unsaid = Some(note);
                Ok(())
            }
        }
    }

    async fn flush<S: Source>(&mut self, source: &mut S, note: Option<Note>) -> Result<(), PublishError> {
        let Some(batch) = self.assembly.batch(note) else { return Ok(()) };
        tokio::select! {
            biased;
            published = self.backbone.publish(&batch) => published?,
            // However long the backbone takes, the server does not wait for it.
            error = source.ended() => {
                self.assembly.unsaid = batch.note.filter(said_once);
                return Err(error.into());
            }
        }
        if let Some(lsn) = self.assembly.published(&batch) {
            source.ack(lsn).await?;
        }
        Ok(())
    }
}

/// Makes batches of parts of transactions: pure.
struct Assembly {
    routing: Routing,
    config: Config,
    epoch: Epoch,
    /// A stream has begun, once.
    started: bool,
    /// Everything up to here is published.
    head: Position,
    /// Whole transactions, and parts of those that are too large to be held.
    ready: Vec<Entry>,
    ready_bytes: usize,
    /// What `ready` is everything of, if it is more than `head`.
    upto: Option<Position>,
    /// The transaction whose parts are arriving.
    open: Option<Open>,
    /// What may be acknowledged once `ready` is published.
    end: Option<u64>,
    /// A note that is said once, and was not when the stream ended.
    unsaid: Option<Note>,
}

struct Open {
    entries: Vec<Entry>,
    bytes: usize,
    partial: bool,
}

impl Assembly {
    fn new(routing: Routing, config: Config) -> Self {
        Self {
            routing,
            config,
            epoch: Epoch::default(),
            started: false,
            head: Position::ZERO,
            ready: Vec::new(),
            ready_bytes: 0,
            upto: None,
            open: None,
            end: None,
            unsaid: None,
        }
    }

    /// The stream broke off: what was not published will come again.
    fn interrupt(&mut self) {
        self.ready.clear();
        self.ready_bytes = 0;
        (self.upto, self.open, self.end) = (None, None, None);
    }

    fn start(&mut self, start: Start) {
        self.interrupt();
        self.started = true;
        (self.epoch, self.head) = (start.epoch, Position::before(start.from));
    }

    fn pending(&self) -> bool {
        self.upto.is_some()
    }

    fn full(&self) -> bool {
        self.ready.len() >= self.config.batch_events_max
            || self.ready_bytes >= self.config.atomic_bytes_max
            || (self.upto.is_some() && self.open.as_ref().is_some_and(|open| open.partial))
    }

    fn idle(&mut self, lsn: u64) {
        let upto = Position::before(lsn);
        if self.open.is_none() && upto > self.upto.unwrap_or(self.head) {
            (self.upto, self.end) = (Some(upto), Some(lsn));
        }
    }

    fn take(&mut self, part: &TransactionPart) {
        let open = self.open.get_or_insert_with(|| {
            let router = Arc::clone(self.routing.router());
            self.routing.begin(&router);
            Open { entries: Vec::new(), bytes: 0, partial: false }
        });
        for change in &part.changes {
            let known = open.entries.len();
            self.routing.route(&part.commit, change, &mut open.entries);
            open.bytes += open.entries[known..].iter().map(entry_bytes).sum::<usize>();
        }
        let Config { atomic_events_max, atomic_bytes_max, .. } = self.config;
        open.partial |= open.entries.len() > atomic_events_max || open.bytes > atomic_bytes_max;
        if open.partial {
            open.bytes = 0;
            self.ready.extend(open.entries.drain(..).map(partial));
            if let Some(last) = part.changes.last() {
                self.upto = Some(Position::new(part.commit.major, last.ordinal));
            }
        }
        if let Some(end) = part.end {
            self.ready_bytes += open.bytes;
            self.ready.append(&mut open.entries);
            self.open = None;
            (self.upto, self.end) = (Some(Position::before(end)), Some(end));
        }
    }

    /// The batch to publish next; with a note also if there is nothing else to say.
    fn batch(&mut self, note: Option<Note>) -> Option<Batch> {
        if self.upto.is_none() && note.is_none() {
            return None;
        }
        let upto = self.upto.take().unwrap_or(self.head).max(self.head);
        self.ready_bytes = 0;
        let entries = std::mem::take(&mut self.ready).into();
        Some(Batch { epoch: self.epoch, after: self.head, upto, entries, note })
    }

    /// The batch is appended: the LSN to acknowledge, if a transaction ended in it.
    fn published(&mut self, batch: &Batch) -> Option<u64> {
        self.head = batch.upto;
        self.end.take()
    }
}

/// Whether nobody says it again when a stream begins: a seeding that ended is not repeated, nor are rules taken twice.
fn said_once(note: &Note) -> bool {
    matches!(note, Note::SeedEnd { .. } | Note::Outdated(_))
}

fn entry_bytes(entry: &Entry) -> usize {
    match entry {
        Entry::Event(event) => event.data.len() + event.topic.as_str().len() + size_of::<Entry>(),
        Entry::ClearTable { .. } => size_of::<Entry>(),
    }
}

/// An entry of a transaction that is too large to mark its last ones. Where transactions interleave none is marked
/// anyway.
fn partial(mut entry: Entry) -> Entry {
    let marked = |commit: &Commit| commit.lsn.is_some();
    match &mut entry {
        Entry::Event(event) => event.partial = event.commit.as_deref().is_some_and(marked),
        Entry::ClearTable { partial, commit, .. } => *partial = marked(commit),
    }
    entry
}

/// Takes every batch into the hub until the backbone is closed.
///
/// # Errors
/// Current values outgrew their memory; the node must end.
pub async fn ingest<B: Backbone>(
    backbone: Arc<B>,
    hub: Arc<Hub>,
    health: Arc<Health>,
    kind: SourceKind,
) -> Result<(), StateFull> {
    let (replayed, unit) = match kind {
        SourceKind::Wal => ("log", "bytes"),
        SourceKind::Outbox => ("outbox", "ticks"),
    };
    while let Ok(batch) = backbone.next().await {
        // What others lack is not forgotten for what is new.
        poll_fn(|cx| hub.poll_room(cx)).await;
        hub.ingest(&batch, Instant::now())?;
        if hub.follows() {
            continue;
        }
        let status = hub.status();
        if status.settled && !status.replaying {
            health.well(Part::State);
        } else {
            let (head, until) = (status.head, status.replay_until);
            let left = until.major.saturating_sub(head.major);
            health.unwell(
                Part::State,
                match status.replaying {
                    true => format!("replaying the {replayed}: {left} {unit} left, from {head} to {until}"),
                    false => format!("reading current values{}, at {head}", of(&hub.outdated())),
                },
            );
        }
    }
    Ok(())
}

/// ` of` these tables, where it is not all of them.
fn of(tables: &[Arc<str>]) -> String {
    if tables.is_empty() { String::new() } else { format!(" of {}", tables.join(", ")) }
}

#[cfg(test)]
mod tests;
