//! A table as a source, for servers whose log cannot be read, or that are reached through a transaction pooler.
//!
//! - [`tick`]: which rows are told when, and their positions; pure
//! - [`record`]: what triggers wrote of changed rows; pure
//! - [`table`]: the statements
//! - [`reader`]: the task that reads, keeps the lease and lets go of rows
//! - [`catalog`]: whether the database is set up for it
//!
//! Every statement is a transaction of its own, and nothing of it outlives that. Who leads says a row with the server's
//! time; that two cannot both make a tick says the number of the newest one in it.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;
use walcast_wire::{Epoch, Position};

use super::failure::Failure;
use super::seeding::{Order, Seeding};
use super::{Config, Source, SourceError, known, quiet_from, seed};
use crate::event::{Changes, Fence, SeedEnd, Start};
use crate::health::{Health, Part};
use crate::hub::Hub;
use crate::postgres::{Session, Target};
use crate::router::TableRule;

pub mod catalog;
mod reader;
mod record;
mod table;
mod tick;

use reader::{Gauges, Kept, Lease, Reader, answer};
use record::Records;
use table::{Held, Standing};
use tick::Tick;

/// Pages that were read ahead.
const PAGES: usize = 2;
/// How long giving the lease back may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// Of the eight lanes one is written to, the one before may still be, and the next one will be.
const LANES_IDLE: u64 = 5;
/// Between two looks at whether somebody else still leads.
const LOOK: Duration = Duration::from_millis(250);

/// The outbox of one database.
#[derive(Debug)]
pub struct Outbox {
    config: Config,
    target: Target,
    health: Arc<Health>,
    hub: Arc<Hub>,
    /// Who we are to other brokers.
    holder: String,
    /// We have asked for the lease, or had it: not again.
    asked: bool,
    seeding: Seeding,
    live: Option<Live>,
    /// The number line that was read last, and how far it was yielded.
    line: Option<(Epoch, u64)>,
    /// On which number line everything up to where is published.
    published: Option<(Epoch, u64)>,
}

/// A reader that runs.
#[derive(Debug)]
struct Live {
    ready: VecDeque<Changes>,
    pages: mpsc::Receiver<Vec<Changes>>,
    /// Asks for a tick.
    ask: mpsc::Sender<oneshot::Sender<u64>>,
    stop: CancellationToken,
    task: AbortOnDropHandle<Failure>,
}

impl Outbox {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(config: Config, target: Target, health: Arc<Health>, hub: Arc<Hub>) -> Self {
        Self {
            config,
            target,
            seeding: Seeding::new(Arc::clone(&health)),
            health,
            hub,
            holder: Uuid::new_v4().to_string(),
            asked: false,
            live: None,
            line: None,
            published: None,
        }
    }

    async fn connect(&mut self) -> Result<Live, Failure> {
        let session = Session::connect(&self.target, "walcast outbox").await?;
        let lease = self.lead(&session).await?;
        let standing = answer(table::standing(&session, &self.config.slot)).await?;
        let epoch = epoch(&standing, &self.config)?;
        self.check_line(&session, &lease, &standing, epoch).await?;
        self.check_lanes(standing.lane_seconds);
        let published = known(&self.hub, self.published);
        let published = published.filter(|(line, _)| *line == epoch).map_or(0, |(_, upto)| upto);
        let first = standing.kept.max(published.saturating_sub(1)).min(standing.last);
        let last = answer(table::ticks(&session, first)).await?.into_iter().next();
        let last = last.filter(|tick| tick.id == first).ok_or_else(|| {
            Failure::needs_operator(format!(
                "tick {first} is gone from walcast.tick: run `walcast teardown`, then setup"
            ))
        })?;
        let from = last.end();
        let noted = Position::new(standing.quiet_tick, standing.quiet_ordinal);
        let quiet_from = quiet_from(Some(noted), first == standing.kept, from);
        let fence = Fence { timeline: standing.timeline.parse().unwrap_or_default(), lsn: lease.lsn };
        let start = Start { epoch, from, quiet_from, replay_until: standing.last + 1, fence };
        // Another number line, or a part of this one that was never seen: all values are read anew.
        let unseen =
            |known: Option<(Epoch, u64)>| known.is_none_or(|(line, upto)| line != epoch || from > upto);
        if unseen(self.line) || unseen(self.published) || self.hub.follows() {
            self.line = Some((epoch, from));
            self.published = self.line;
            self.seeding.all_due();
        }
        tracing::info!(
            from = %Position::before(from),
            %epoch,
            ticks = standing.last - last.id,
            holder = self.holder,
            "reading the outbox"
        );
        let (out, pages) = mpsc::channel(PAGES);
        let (ask, asked) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let reader = Reader {
            gauges: Gauges::of(&self.config.slot),
            session,
            lease,
            poll_max: self.config.poll_max,
            hub: Arc::clone(&self.hub),
            epoch,
            last,
            replay_until: standing.last,
            kept: Kept { tick: standing.kept, quiet_from: noted },
            trimmed: None,
            holding: true,
            records: Records::default(),
            asked,
            out,
            stop: stop.clone(),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(reader.run()));
        Ok(Live { ready: [Changes::Start(start)].into(), pages, ask, stop, task })
    }

    /// Waits until nobody else leads.
    async fn lead(&mut self, session: &Session) -> Result<Lease, Failure> {
        let (holder, time) = (self.holder.clone(), self.config.lease);
        let mut told = false;
        loop {
            let since = Instant::now();
            if let Some(held) = answer(table::lead(session, &holder, time.as_secs_f64())).await? {
                let Held { token, asked_by, lsn } = held;
                self.asked = true;
                if told {
                    self.health.unwell(Part::Stream, "taking the lead");
                }
                self.health.well(Part::Lease);
                return Ok(Lease { holder, token, asked_by, lsn, time, since });
            }
            let standing_by = "another broker leads (walcast.outbox_reader says until when); this one takes over when it ends";
            self.health.well(Part::Stream);
            self.health.unwell(Part::Lease, standing_by);
            if !told {
                tracing::info!("{standing_by}");
            }
            told = true;
            // Once, so that two cannot drive each other out for ever.
            if self.config.takeover && !std::mem::replace(&mut self.asked, true) {
                answer(table::ask(session, &holder)).await?;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                closed = session.closed() => return Err(Failure::of_closed("outbox", &closed)),
            }
        }
    }

    /// A lane is emptied between two of its turns. It has to be long enough until the next for its rows to be of no
    /// use.
    fn check_lanes(&self, lane_seconds: u64) {
        let age = self.hub.config().age;
        if Duration::from_secs(lane_seconds * LANES_IDLE) >= age {
            return self.health.well(Part::Retention);
        }
        let problem = format!(
            "history.age is {}, but rows of the outbox would have to go after {} s, so it is never emptied: run `walcast setup`, \
             which fits walcast.settings.lane_seconds to it",
            humantime::format_duration(age),
            lane_seconds * LANES_IDLE
        );
        tracing::warn!("{problem}");
        self.health.unwell(Part::Retention, problem);
    }

    /// Whether the table goes on where it was left.
    async fn check_line(
        &self,
        session: &Session,
        lease: &Lease,
        standing: &Standing,
        epoch: Epoch,
    ) -> Result<(), Failure> {
        let newest = answer(table::ticks(session, standing.last)).await?.pop();
        let ids = newest.map_or(0, |tick: Tick| tick.snapshot.xmax);
        let next: u64 = standing.xmax.parse().unwrap_or(u64::MAX);
        let end = Position::before(standing.last + 1);
        let (why, discard) = match self.line {
            _ if ids > next => {
                (format!("its ticks know transaction {ids}, this server is only at {next}"), true)
            }
            Some((line, upto)) if line == epoch && upto > standing.last + 1 => {
                (format!("it ends at {end}, but {} was read already", Position::before(upto)), false)
            }
            _ => return Ok(()),
        };
        answer(table::renew(session, &self.config.slot, lease.token, discard)).await?;
        Err(Failure::again(format!(
            "the outbox is not the one that was read: {why}; it begins anew under another epoch"
        )))
    }

    /// One step on; `None`: nothing to yield yet. Cancel safe: what is under way is kept in `self`, but for an attempt
    /// to connect.
    async fn step(&mut self) -> Result<Option<Changes>, Failure> {
        if self.live.is_none() {
            self.live = Some(self.connect().await?);
        }
        self.start_seeding();
        let Some(live) = &mut self.live else { return Ok(None) };
        if let Some(changes) = live.ready.pop_front() {
            if let Some((_, upto)) = &mut self.line {
                *upto = end(&changes).unwrap_or(*upto).max(*upto);
            }
            return Ok(Some(changes));
        }
        let reading = self.seeding.lets_go_on();
        tokio::select! {
            // By chance: neither a large table nor a busy stream holds the other up.
            piece = self.seeding.next() => match piece {
                Ok(piece) => Ok(Some(piece)),
                Err(failure) => self.seeding.failed(failure).map(|()| None),
            },
            page = live.pages.recv(), if reading => match page {
                Some(page) => {
                    live.ready.extend(page);
                    Ok(None)
                }
                None => Err(ended(&mut live.task).await),
            },
        }
    }

    /// Starts to read current values if that is due.
    fn start_seeding(&mut self) {
        let Some(live) = &mut self.live else { return };
        let (target, ask) = (&self.target, &live.ask);
        let bytes_per_second = NonZeroU64::new(self.config.seed_bytes_per_second).unwrap_or(NonZeroU64::MIN);
        self.seeding.start(self.line.map(|(_, upto)| upto), &mut live.ready, |order| {
            let config = seed::Config { yielded: Vec::new(), bytes_per_second };
            AbortOnDropHandle::new(tokio::spawn(read_values(target.clone(), order, config, ask.clone())))
        });
    }

    /// The stream is over: lets go of everything and says what to do.
    fn fail(&mut self, failure: Failure) -> SourceError {
        self.live = None;
        self.seeding.interrupt();
        failure.into_error(self.seeding.begun(), &self.config)
    }
}

/// Where a tick ends with these.
fn end(changes: &Changes) -> Option<u64> {
    match changes {
        Changes::Transaction(part) => part.end,
        Changes::Idle(end) => Some(*end),
        _ => None,
    }
}

/// Not to be called again once it has returned. Cancel safe.
async fn ended(task: &mut AbortOnDropHandle<Failure>) -> Failure {
    task.await.unwrap_or_else(|error| Failure::again(format!("the reader of the outbox: {error}")))
}

/// Current values are exact from the first tick on that is made once they were read: it sees every transaction that
/// the values contain.
async fn read_values(
    target: Target,
    order: Order,
    config: seed::Config,
    ask: mpsc::Sender<oneshot::Sender<u64>>,
) -> Result<(), Failure> {
    let mut session = Session::connect(&target, "walcast seed").await?;
    let read = seed::read(&mut session, &order.tables, &order.forget, &config, &order.out).await?;
    let Some(snapshot) = read else { return Ok(()) };
    let gone = || Failure::again("the stream ended while current values were read");
    let (sender, made) = oneshot::channel();
    ask.send(sender).await.map_err(|_| gone())?;
    let settle = made.await.map_err(|_| gone())?;
    // Nobody there to take it: nobody needs it.
    let _ = order.out.send(Changes::SeedEnd(SeedEnd { snapshot, settle })).await;
    Ok(())
}

/// The name of the number line: of all that decides which tick has which number, and of nothing else.
fn epoch(standing: &Standing, config: &Config) -> Result<Epoch, Failure> {
    let Standing { system, timeline, database, generation, .. } = standing;
    let generation = generation.as_deref().ok_or_else(|| {
        let source = &config.slot;
        Failure::needs_operator(format!(
            "the source {source} was not set up: run `walcast setup --source outbox` with source.slot = {source:?}"
        ))
    })?;
    Ok(Epoch::of(["outbox", system, timeline, database, &config.slot, generation]))
}

impl Source for Outbox {
    async fn next(&mut self) -> Result<Changes, SourceError> {
        loop {
            match self.step().await {
                Ok(Some(changes)) => return Ok(changes),
                Ok(None) => {}
                Err(failure) => return Err(self.fail(failure)),
            }
        }
    }

    async fn ended(&mut self) -> SourceError {
        let failure = match &mut self.live {
            Some(live) => ended(&mut live.task).await,
            None => std::future::pending().await,
        };
        self.fail(failure)
    }

    async fn ack(&mut self, upto: u64) -> Result<(), SourceError> {
        self.published = self.line.map(|(epoch, _)| (epoch, upto));
        Ok(())
    }

    fn keep_values_of(&mut self, all: Vec<TableRule>, changed: Vec<Arc<str>>) {
        self.seeding.rules_changed(all, changed);
    }

    async fn close(&mut self) {
        let Some(mut live) = self.live.take() else { return };
        live.stop.cancel();
        // A server that does not answer keeps the lease until its time is over.
        let _ = tokio::time::timeout(GOODBYE, &mut live.task).await;
    }
}
