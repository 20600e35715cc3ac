//! The write-ahead log as a source: one replication connection that streams from a temporary copy of the
//! floor slot.
//!
//! - [`lease`]: waits until nobody else leads, and hands over to whom was told to
//! - [`connect`]: copies the slot, names the number line, starts; `replication` speaks the protocol
//! - [`rebuild`]: makes slot and generation anew where the number line ended
//! - [`pgoutput`] decodes, [`assemble`] makes parts of transactions
//! - `patience`: how long the server may be silent
//! - [`gate`]: only what others can see is yielded
//! - [`seed`]: current values of state tables, and from where on they are exact
//! - [`floor`]: moves the persistent slot up behind the window that a restart reads again
//! - [`governor`]: looks at both slots, and lets WAL go in time; [`retention`]: what its figures mean
//! - [`standby`]: asks standbys whether they have the floor, too
//!
//! The live slot is acknowledged promptly, always: a server cannot stop while a walsender's client holds its
//! flush position back.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use walcast_wire::Epoch;

use super::failure::{Failure, Kind};
use super::seeding::Seeding;
use super::types::{self, TypeRow};
use super::{Config, Source, SourceError, known};
use crate::event::{Changes, Commit};
use crate::health::Health;
use crate::hub::Hub;
use crate::postgres::{Closed, Companion, Session, SessionState, Target, describe};
use crate::router::TableRule;
use crate::sabotage::{Fault, sabotaged};

pub mod assemble;
pub mod catalog;
mod connect;
#[doc(hidden)]
pub mod encode;
mod floor;
mod gate;
mod governor;
mod lease;
mod patience;
pub mod pgoutput;
pub(crate) mod rebuild;
pub mod replication;
mod retention;
pub mod seed;
mod slots;
mod standby;
mod warm;

pub use super::config::{Delivery, Replay};

use assemble::{Assembler, Output};
use connect::Connected;
use floor::Floor;
use gate::Gate;
use governor::Governor;
use lease::{Handover, Lease};
use patience::Patience;
use replication::{Frame, Stream};
use retention::Pressure;
use slots::Slots;
use warm::Warm;

/// Transactions that are remembered because they may not be visible yet.
const YIELDED_MAX: usize = 4096;
/// None stays invisible for so long, and ids come round: an old one would look new.
const YIELDED_AGE_MAX: Duration = Duration::from_secs(3600);
/// One attempt to connect may take so long, all hosts and all questions included.
const CONNECT_MAX: Duration = Duration::from_secs(60);

/// The WAL of one database.
#[derive(Debug)]
pub struct Wal {
    config: Config,
    replay: Replay,
    hub: Arc<Hub>,
    target: Target,
    companion: Arc<Companion>,
    health: Arc<Health>,
    seeding: Seeding,
    live: Option<Live>,
    lease: Lease,
    warm: Warm,
    /// A rebuild of the slot that is not done yet.
    attempts: rebuild::Attempts,
    /// The log from before the stream's begin is being read: since when, from where, to where.
    replaying: Option<(Instant, u64, u64)>,
    /// The number line that was streamed last, and how far it was yielded.
    line: Option<(Epoch, u64)>,
    /// On which number line everything up to where is published.
    published: Option<(Epoch, u64)>,
    patience: Patience,
    /// Without a gate: the newest transactions yielded, which others may not see yet.
    yielded: VecDeque<(u32, Instant)>,
}

type Lookup = Pin<Box<dyn Future<Output = Result<Vec<TypeRow>, Failure>> + Send>>;

/// A running stream and what belongs to it.
struct Live {
    stream: Stream,
    assembler: Assembler,
    gate: Option<Gate>,
    /// Begun, not yet known to be visible.
    waiting: Option<Arc<Commit>>,
    /// The catalog is being asked for types. Kept here for the same reason as the gate's look: whoever gives up
    /// waiting does not ask again.
    lookup: Option<Lookup>,
    ready: VecDeque<Changes>,
    acknowledged: watch::Sender<u64>,
    watch: Watch,
    since: Instant,
    _floor: AbortOnDropHandle<()>,
    _governor: AbortOnDropHandle<()>,
    _standbys: Option<AbortOnDropHandle<()>>,
}

/// What may end a stream, beside itself. A task listens to all of it, so that each event asks one handle only.
struct Watch {
    companion: watch::Receiver<SessionState>,
    gate: Option<Arc<Session>>,
    ended: AbortOnDropHandle<Failure>,
}

/// What that task listens to.
struct Ends {
    companion: watch::Receiver<SessionState>,
    handover: Handover,
    gate: Option<Arc<Session>>,
    /// Ends when the slot has to be made anew.
    rebuilt: AbortOnDropHandle<Failure>,
    pressure: watch::Receiver<Pressure>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Wal {
    /// Connects to nothing yet.
    #[must_use]
    pub fn new(
        config: Config,
        replay: Replay,
        companion: Arc<Companion>,
        health: Arc<Health>,
        hub: Arc<Hub>,
    ) -> Self {
        Self {
            lease: Lease::new(&config, Arc::clone(&companion), Arc::clone(&health)),
            warm: Warm::new(&config, replay.wal_bytes, Arc::clone(&companion), Arc::clone(&hub)),
            attempts: rebuild::Attempts::default(),
            replaying: None,
            target: companion.target().clone(),
            config,
            replay,
            hub,
            companion,
            seeding: Seeding::new(Arc::clone(&health)),
            health,
            live: None,
            line: None,
            published: None,
            patience: Patience::default(),
            yielded: VecDeque::new(),
        }
    }

    async fn connect(&mut self) -> Result<Live, Failure> {
        let silence_max = self.patience.silence_max(self.config.lease);
        let Connected { stream, start, standing, walsender, asked_by } = connect::connect(
            &self.target,
            &self.companion,
            &self.config,
            silence_max,
            known(&self.hub, self.published),
            &mut self.attempts,
            &self.warm,
        )
        .await?;
        let gate = match self.config.delivery {
            Delivery::Visible => {
                let health = Arc::clone(&self.health);
                Some(Gate::connect(&self.target, &standing.server_start, self.config.lease, health).await?)
            }
            Delivery::Fast => None,
        };
        let (acknowledged, watched) = watch::channel(0);
        let (sender, pressure) = watch::channel(Pressure::None);
        let slots = Slots::new(&self.config, &self.companion, &self.health, walsender);
        let asked = standing.has_failover_slots().then(|| standby::watch(&self.target, &self.config.slot));
        let (standbys, seen) = asked.unzip();
        let governor = Governor { slots: slots.clone(), pressure: sender, standbys: seen.clone() };
        let floor = Floor {
            slots,
            acknowledged: watched,
            hub: Arc::clone(&self.hub),
            wal_bytes: self.replay.wal_bytes,
            pressure: pressure.clone(),
            replay_until: start.replay_until,
            standbys: seen,
        };
        let companion = self.companion.watch();
        if let Some((epoch, upto)) = self.line
            && epoch == start.epoch
            && start.replay_until < upto
        {
            rebuild::renew(&self.target, &self.config, &standing.generation).await?;
            return Err(Failure::again(format!(
                "the server's log ends at {}, but {} was read already: it begins anew under another epoch",
                walcast_wire::Position::before(start.replay_until),
                walcast_wire::Position::before(upto)
            )));
        }
        // Another number line, or a part of this one that was never seen: all values are read anew.
        // Compared with what is published, for that is how far the hub came; more may have been yielded.
        let unseen = |known: Option<(Epoch, u64)>| {
            known.is_none_or(|(epoch, upto)| epoch != start.epoch || start.from > upto)
        };
        if unseen(self.line) || unseen(self.published) || self.hub.follows() {
            if self.line.is_some_and(|(epoch, _)| epoch != start.epoch) {
                // Ids of another server, or of one that lost them, say nothing here.
                self.yielded.clear();
            }
            self.line = Some((start.epoch, start.from));
            self.published = self.line;
            self.seeding.all_due();
        }
        let gate_session = gate.as_ref().map(Gate::session);
        let handover = self.lease.won(walsender, gate_session.clone(), asked_by).await?;
        self.warm.drop_it().await;
        tracing::info!(
            slot = self.config.slot,
            from = %walcast_wire::Position::before(start.from),
            epoch = %start.epoch,
            replay_bytes = start.replay_until.saturating_sub(start.from),
            "streaming"
        );
        self.replaying = Some((Instant::now(), start.from, start.replay_until));
        Ok(Live {
            stream,
            assembler: Assembler::new(&standing.key),
            gate,
            waiting: None,
            lookup: None,
            ready: [Changes::Start(start)].into(),
            acknowledged,
            watch: Watch::over(Ends {
                companion,
                handover,
                gate: gate_session,
                rebuilt: rebuild::watch(Arc::clone(&self.companion), self.config.clone(), standing),
                pressure,
            }),
            since: Instant::now(),
            _floor: floor.spawn(),
            _governor: governor.spawn(),
            _standbys: standbys,
        })
    }

    /// One step on; `None`: nothing to yield yet. Cancel safe: what is under way is kept in `self`.
    async fn step(&mut self) -> Result<Option<Changes>, Failure> {
        let Some(live) = &mut self.live else {
            tokio::select! {
                biased;
                waited = self.lease.wait() => waited?,
                never = self.warm.keep() => match never {},
            }
            let connected = tokio::time::timeout(CONNECT_MAX, self.connect()).await;
            let late = || {
                let seconds = CONNECT_MAX.as_secs();
                let message = format!("connecting to Postgres was not done after {seconds} s");
                Failure { message, kind: Kind::Silent }
            };
            match connected.unwrap_or_else(|_| Err(late())) {
                Err(Failure { kind: Kind::Held, .. }) => self.lease.lost_the_race().await,
                connected => self.live = Some(connected?),
            }
            return Ok(None);
        };
        if let Some(changes) = live.ready.pop_front() {
            return Ok(Some(changes));
        }
        self.start_seeding();
        let Some(live) = &mut self.live else { return Ok(None) };
        if let Some(changes) = live.ready.pop_front() {
            return Ok(Some(changes));
        }
        let reading = self.seeding.lets_go_on();
        let either = async {
            // By chance: neither a large table nor a busy stream holds the other up.
            tokio::select! {
                piece = self.seeding.next() => Step::Piece(piece.map(Some)),
                changes = live_step(
                    &mut live.stream, &mut live.assembler, &mut live.gate, &mut live.waiting, &mut live.lookup,
                    &self.companion, self.config.lease,
                ), if reading => Step::Stream(changes),
            }
        };
        let step = tokio::select! {
            biased;
            // First: a server that stops must not wait for us.
            failure = live.watch.ended() => return Err(failure),
            step = either => step,
        };
        let changes = match step {
            Step::Piece(Err(failure)) => {
                self.seeding.failed(failure)?;
                return Ok(None);
            }
            Step::Piece(changes) | Step::Stream(changes) => changes?,
        };
        match &changes {
            Some(Changes::Transaction(part)) => {
                self.patience.heard(true, live.since.elapsed(), self.config.lease);
                if self.config.delivery == Delivery::Fast {
                    // More than can be between flush and visibility, for each holds a connection.
                    self.yielded.truncate(YIELDED_MAX - 1);
                    self.yielded.push_front((part.commit.xid, Instant::now()));
                }
                if let (Some((_, upto)), Some(end)) = (&mut self.line, part.end) {
                    *upto = end;
                    self.replayed(end);
                }
            }
            Some(Changes::Idle(lsn)) => {
                let (age, lease) = (live.since.elapsed(), self.config.lease);
                if let Some((_, upto)) = &mut self.line {
                    self.patience.heard(*lsn > *upto, age, lease);
                    *upto = (*upto).max(*lsn);
                }
                self.replayed(*lsn);
            }
            _ => {}
        }
        Ok(changes)
    }

    /// Starts to read current values if that is due.
    fn start_seeding(&mut self) {
        let Some(live) = &mut self.live else { return };
        let (target, yielded) = (&self.target, &mut self.yielded);
        let bytes_per_second = NonZeroU64::new(self.config.seed_bytes_per_second).unwrap_or(NonZeroU64::MIN);
        self.seeding.start(self.line.map(|(_, upto)| upto), &mut live.ready, |order| {
            yielded.retain(|(_, at)| at.elapsed() < YIELDED_AGE_MAX);
            let yielded = yielded.iter().map(|(xid, _)| *xid).collect();
            let config = seed::Config { yielded, bytes_per_second };
            let target = target.clone();
            AbortOnDropHandle::new(tokio::spawn(async move {
                let mut session = Session::connect(&target, "walcast seed").await?;
                seed::seed(&mut session, &order.tables, &order.forget, &config, &order.out).await?;
                Ok(())
            }))
        });
    }

    /// Says once that the log from before the stream's begin was read.
    fn replayed(&mut self, upto: u64) {
        if let Some((begin, from, until)) = self.replaying
            && upto >= until
        {
            self.replaying = None;
            let took_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(slot = self.config.slot, bytes = until.saturating_sub(from), took_ms, "replayed");
        }
    }

    /// The stream is over: lets go of everything and says what to do.
    fn fail(&mut self, mut failure: Failure) -> SourceError {
        let running = self.seeding.begun();
        // Dropping the stream ends the connection, which releases the lease.
        self.seeding.interrupt();
        if let Some(live) = self.live.take()
            && failure.kind == Kind::Passing
            && live.watch.sessions_were_shut_down()
        {
            failure.kind = Kind::Shutdown;
        }
        if failure.kind == Kind::Silent {
            self.patience.silent();
            // The same link, most likely; whoever waits on it would wait for ever.
            self.companion.cut();
        }
        failure.into_error(running, &self.config)
    }
}

/// What a step brought, and from where.
enum Step {
    Piece(Result<Option<Changes>, Failure>),
    Stream(Result<Option<Changes>, Failure>),
}

impl Ends {
    async fn first(mut self) -> Failure {
        tokio::select! {
            biased;
            closed = ended(&mut self.companion, self.gate.clone()) => closed,
            Ok(failure) = &mut self.rebuilt => failure,
            Ok(_) = self.pressure.wait_for(|pressure| *pressure == Pressure::GiveUp) => {
                let message = "both slots were given up, for they kept more WAL than max_slot_wal_keep_size allows";
                Failure::again(message)
            }
            asked = self.handover.asked() => asked,
        }
    }
}

impl Watch {
    fn over(ends: Ends) -> Self {
        let (companion, gate) = (ends.companion.clone(), ends.gate.clone());
        Self { companion, gate, ended: AbortOnDropHandle::new(tokio::spawn(ends.first())) }
    }

    /// Not to be called again once it has returned. Cancel safe.
    async fn ended(&mut self) -> Failure {
        (&mut self.ended)
            .await
            .unwrap_or_else(|error| Failure::again(format!("the watch over the stream: {error}")))
    }

    /// Whatever broke first: the server said on another session that it stops.
    fn sessions_were_shut_down(&self) -> bool {
        let shut_down = |state: &SessionState| matches!(state, SessionState::Closed(Closed::Shutdown(_)));
        shut_down(&self.companion.borrow())
            || self.gate.as_ref().is_some_and(|session| shut_down(&session.state()))
    }
}

/// A session that must live has ended.
async fn ended(companion: &mut watch::Receiver<SessionState>, gate: Option<Arc<Session>>) -> Failure {
    let shutdown = companion.wait_for(|state| matches!(state, SessionState::Closed(Closed::Shutdown(_))));
    let gate = async {
        match gate {
            Some(session) => session.closed().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        Ok(state) = shutdown => match &*state {
            SessionState::Closed(closed) => Failure::of_closed("companion", closed),
            _ => Failure::again("the companion session ended"),
        },
        closed = gate => Failure::of_closed("gate", &closed),
    }
}

/// The next changes of the stream that others can see.
async fn live_step(
    stream: &mut Stream,
    assembler: &mut Assembler,
    gate: &mut Option<Gate>,
    waiting: &mut Option<Arc<Commit>>,
    lookup: &mut Option<Lookup>,
    companion: &Arc<Companion>,
    answer_max: Duration,
) -> Result<Option<Changes>, Failure> {
    loop {
        if let (Some(gate), Some(commit)) = (gate.as_mut(), waiting.as_ref()) {
            gate.pass(commit.xid).await?;
        }
        *waiting = None;
        if !assembler.unknown_types().is_empty() {
            let asking = lookup.get_or_insert_with(|| {
                let gate = gate.as_ref().map(Gate::session);
                let unknown = assembler.unknown_types().to_vec();
                Box::pin(look_up(gate, Arc::clone(companion), unknown, answer_max))
            });
            let answer = asking.await;
            *lookup = None;
            assembler.learn(&answer?);
        }
        match stream.next().await? {
            Frame::Data { body, .. } => match assembler.push(body) {
                Ok(Some(Output::Begin(commit))) => *waiting = Some(commit),
                Ok(Some(Output::Part(part))) => return Ok(Some(Changes::Transaction(part))),
                Ok(None) => {}
                Err(error) => return Err(Failure::again(format!("the stream cannot be decoded: {error}"))),
            },
            Frame::Keepalive { .. } if assembler.in_transaction() => {}
            Frame::Keepalive { wal_end } => return Ok(Some(Changes::Idle(wal_end))),
        }
    }
}

/// What the catalog says of these types.
async fn look_up(
    gate: Option<Arc<Session>>,
    companion: Arc<Companion>,
    unknown: Vec<u32>,
    answer_max: Duration,
) -> Result<Vec<TypeRow>, Failure> {
    let answer = if let Some(session) = gate {
        // It has nothing to do now, while others may be in line for the companion.
        tokio::time::timeout(answer_max, types::look_up(&session, &unknown)).await
    } else {
        let session = companion.lock().await?;
        tokio::time::timeout(answer_max, types::look_up(&session, &unknown)).await
    };
    let Ok(answer) = answer else {
        let message = format!("the catalog of types was not read within {answer_max:?}");
        return Err(Failure { message, kind: Kind::Silent });
    };
    answer.map_err(|error| Failure::again(format!("reading the catalog of types: {}", describe(&error))))
}

impl Source for Wal {
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
            Some(live) => live.watch.ended().await,
            None => std::future::pending().await,
        };
        self.fail(failure)
    }

    async fn ack(&mut self, upto: u64) -> Result<(), SourceError> {
        let upto = if sabotaged(Fault::AckAhead) { upto + (1 << 20) } else { upto };
        self.published = self.line.map(|(epoch, _)| (epoch, upto));
        if let Some(live) = &self.live {
            live.stream.ack(upto);
            live.acknowledged.send_replace(upto);
        }
        Ok(())
    }

    fn keep_values_of(&mut self, all: Vec<TableRule>, changed: Vec<Arc<str>>) {
        self.seeding.rules_changed(all, changed);
    }

    async fn close(&mut self) {
        if let Some(live) = self.live.take() {
            live.stream.close().await;
        }
    }
}
