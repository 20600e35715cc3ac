//! Reads the table: one task, one session, one statement at a time.
//!
//! First the ticks that are there, many at a time; then it looks, soon again while something comes and seldom while
//! nothing does, and makes a tick of what it finds. Between two statements it keeps the lease, and lets go of rows
//! that nobody needs. Whoever waits for its changes need not be quick: while they do not take them it goes on leading.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics::{Gauge, gauge};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use walcast_wire::{Epoch, Position};

use super::record::{RecordError, Records};
use super::table::{self, Line, Look, Page, lost};
use super::tick::{Numbering, Tick, Written, by_tick};
use crate::event::{ChangeKind, Changes};
use crate::hub::Hub;
use crate::postgres::{Session, describe};
use crate::source::failure::{Failure, Kind};
use crate::source::types;
use crate::telemetry;

/// The pause between two looks while something comes.
const PAUSE_MIN: Duration = Duration::from_millis(2);
/// Between two times that rows are let go of: while there are any, and otherwise.
const TRIM: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));
/// A statement that takes longer is told of,
const ANSWER_LATE: Duration = Duration::from_secs(5);
/// and none takes so long on a link that works.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// How long giving the lease back may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// Who leads, by the row in the table.
#[derive(Debug)]
pub(super) struct Lease {
    /// Who we are.
    pub(super) holder: String,
    /// What we hold.
    pub(super) token: i64,
    /// Who had asked for the lease when we got it.
    pub(super) asked_by: Option<String>,
    /// Where the server's log ended then.
    pub(super) lsn: u64,
    /// For how long.
    pub(super) time: Duration,
    /// Since when.
    pub(super) since: Instant,
}

impl Lease {
    /// When it is to be kept for longer.
    fn due(&self) -> Instant {
        self.since + self.time / 3
    }
}

/// What was let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Up to this tick.
    pub(super) tick: u64,
    /// Nothing was published from here to the next.
    pub(super) quiet_from: Position,
}

/// What is measured of one source.
#[derive(Debug)]
pub(super) struct Gauges {
    looked: Gauge,
    lanes: Gauge,
    bytes: Gauge,
}

impl Gauges {
    /// Of the source of this name.
    pub(super) fn of(source: &str) -> Self {
        let gauge = |name: &'static str| gauge!(name, telemetry::LABEL_SOURCE => source.to_owned());
        Self {
            looked: gauge(telemetry::OUTBOX_LOOKED),
            lanes: gauge(telemetry::OUTBOX_LANES),
            bytes: gauge(telemetry::OUTBOX_BYTES),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) gauges: Gauges,
    pub(super) session: Session,
    pub(super) lease: Lease,
    pub(super) poll_max: Duration,
    pub(super) hub: Arc<Hub>,
    pub(super) epoch: Epoch,
    /// The tick that was told last.
    pub(super) last: Tick,
    /// The newest that was there at the begin.
    pub(super) replay_until: u64,
    pub(super) kept: Kept,
    pub(super) trimmed: Option<Instant>,
    /// Rows were left then.
    pub(super) holding: bool,
    pub(super) records: Records,
    /// Asks for a tick, and to be told where it ends.
    pub(super) asked: mpsc::Receiver<oneshot::Sender<u64>>,
    pub(super) out: mpsc::Sender<Vec<Changes>>,
    pub(super) stop: CancellationToken,
}

impl Reader {
    /// Until it cannot go on, or is told to stop, which gives the lease back.
    pub(super) async fn run(mut self) -> Failure {
        let stop = self.stop.clone();
        let Some(ended) = stop.run_until_cancelled(self.read()).await else {
            let left = timeout(GOODBYE, table::leave(&self.session, self.lease.token)).await;
            if let Ok(Err(failure)) = left {
                tracing::debug!("the lease is not given back: {}", failure.message);
            }
            self.session.close().await;
            return Failure::again("stopped");
        };
        match ended {
            Ok(never) => match never {},
            Err(failure) => failure,
        }
    }

    async fn read(&mut self) -> Result<Infallible, Failure> {
        self.replay().await?;
        let mut pause = PAUSE_MIN;
        let mut asked: Option<oneshot::Sender<u64>> = None;
        let mut late = false;
        loop {
            self.keep_lease().await?;
            self.trim().await?;
            // What is withdrawn waits for a position behind all that was told.
            let forced = asked.is_some() || self.hub.window().is_some_and(|window| window.waits);
            match answer(table::look(&self.session, self.lease.token, &self.last, forced)).await? {
                // If only its time had run out, for an answer that was long in coming, it is still to be had.
                Look::Lost if !late => {
                    self.renew_lease().await?;
                    late = true;
                    continue;
                }
                Look::Lost => return Err(lost()),
                Look::Quiet => {
                    self.tell(vec![Changes::Idle(self.last.end())]).await?;
                    // Slowly: what came once mostly comes again soon.
                    pause = (pause + pause / 4).min(self.poll_max);
                }
                Look::Made(tick, page) => {
                    metrics::counter!(telemetry::OUTBOX_TICKS_TOTAL).increment(1);
                    pause = if page.rows.is_empty() { pause } else { PAUSE_MIN };
                    self.tell_tick(tick, page).await?;
                }
            }
            late = false;
            self.gauges.looked.set(telemetry::unix_seconds());
            if let Some(asked) = asked.take() {
                // Nobody there any more: nobody needs it.
                let _ = asked.send(self.last.end());
            }
            let next = Instant::now() + pause;
            tokio::select! {
                () = sleep_until(next.min(self.lease.due())) => {}
                Some(sender) = self.asked.recv() => asked = Some(sender),
                closed = self.session.closed() => return Err(Failure::of_closed("outbox", &closed)),
            }
        }
    }

    /// Tells the ticks that are there.
    async fn replay(&mut self) -> Result<(), Failure> {
        while self.last.id < self.replay_until {
            self.keep_lease().await?;
            let mut ticks = answer(table::ticks(&self.session, self.last.id + 1)).await?;
            let next = |(tick, id): (&Tick, u64)| tick.id == id;
            if ticks.is_empty() || !ticks.iter().zip(self.last.id + 1..).all(next) {
                return Err(Failure::again(format!("the tick behind {} is missing", self.last.id)));
            }
            let mut together = ticks.len();
            while !ticks.is_empty() {
                self.keep_lease().await?;
                together = together.min(ticks.len());
                let Some(upto) = ticks.get(together - 1) else { break };
                let page = answer(table::rows(&self.session, self.lease.token, &self.last, upto, 0)).await?;
                if page.more && together > 1 {
                    together = together.div_ceil(2);
                    continue;
                }
                let rest = ticks.split_off(together);
                self.tell_ticks(std::mem::replace(&mut ticks, rest), page).await?;
            }
        }
        Ok(())
    }

    /// Tells ticks whose rows are one page, or a single one with its first page.
    async fn tell_ticks(&mut self, mut ticks: Vec<Tick>, page: Page) -> Result<(), Failure> {
        if !page.more {
            let rows = self.understand(page.rows).await?;
            let mut told = Vec::new();
            for (tick, rows) in ticks.iter().zip(by_tick(&ticks, rows)) {
                let mut numbering = Numbering::new(tick);
                let mut changes = numbering.take(rows);
                numbering.end(&mut changes);
                told.append(&mut changes);
            }
            self.tell(told).await?;
            self.last = ticks.pop().unwrap_or_else(|| self.last.clone());
        } else if let Some(tick) = ticks.pop() {
            self.tell_tick(tick, page).await?;
        }
        Ok(())
    }

    /// Tells a tick, of which this is the first page.
    async fn tell_tick(&mut self, tick: Tick, mut page: Page) -> Result<(), Failure> {
        let mut numbering = Numbering::new(&tick);
        loop {
            let rows = self.understand(page.rows).await?;
            let mut told = numbering.take(rows);
            if !page.more {
                numbering.end(&mut told);
                self.tell(told).await?;
                break;
            }
            self.tell(told).await?;
            self.keep_lease().await?;
            page = answer(table::rows(&self.session, self.lease.token, &self.last, &tick, page.upto)).await?;
        }
        self.last = tick;
        Ok(())
    }

    /// What the rows say. One that cannot be read says nothing, for nobody could ever go on behind it.
    async fn understand(
        &mut self,
        rows: Vec<Written<Line>>,
    ) -> Result<Vec<Written<Option<ChangeKind>>>, Failure> {
        metrics::counter!(telemetry::OUTBOX_ROWS_TOTAL).increment(rows.len() as u64);
        let mut understood = Vec::with_capacity(rows.len());
        for Written { xid, what: line } in rows {
            let what = match operation(&line.options) {
                None => Some(ChangeKind::Message { content: message(&line) }),
                Some(operation) => self.change(&line, operation).await?,
            };
            understood.push(Written { xid, what });
        }
        Ok(understood)
    }

    async fn change(&mut self, line: &Line, operation: &str) -> Result<Option<ChangeKind>, Failure> {
        loop {
            match self.records.change(&line.topic, operation, &line.data) {
                Ok(change) => return Ok(Some(change)),
                Err(RecordError::Types(unknown)) => {
                    let asked = types::look_up(&self.session, &unknown);
                    let failed =
                        |error| Failure::again(format!("reading the catalog of types: {}", describe(&error)));
                    let known = answer(async { asked.await.map_err(failed) }).await?;
                    self.records.learn(&unknown, &known);
                }
                Err(error) => {
                    metrics::counter!(telemetry::OUTBOX_UNREADABLE_TOTAL, telemetry::LABEL_TABLE => line.topic.clone())
                        .increment(1);
                    tracing::error!(
                        table = line.topic,
                        "a row of the outbox cannot be read, and is left out: {error}"
                    );
                    return Ok(None);
                }
            }
        }
    }

    /// Hands changes on. However long that takes, the lease is kept.
    async fn tell(&mut self, changes: Vec<Changes>) -> Result<(), Failure> {
        loop {
            tokio::select! {
                biased;
                permit = self.out.reserve() => {
                    let permit = permit.map_err(|_| Failure::again("nobody takes the changes"))?;
                    permit.send(changes);
                    return Ok(());
                }
                () = sleep_until(self.lease.due()) => {}
                closed = self.session.closed() => return Err(Failure::of_closed("outbox", &closed)),
            }
            self.keep_lease().await?;
        }
    }

    /// Keeps the lease if that is due.
    async fn keep_lease(&mut self) -> Result<(), Failure> {
        if Instant::now() < self.lease.due() { Ok(()) } else { self.renew_lease().await }
    }

    async fn renew_lease(&mut self) -> Result<(), Failure> {
        let since = Instant::now();
        let Lease { holder, time, token, asked_by, .. } = &self.lease;
        let held = answer(table::lead(&self.session, holder, time.as_secs_f64())).await?;
        // Another token: somebody led in between.
        let held = held.filter(|held| held.token == *token).ok_or_else(lost)?;
        if held.asked_by.is_some() && held.asked_by != *asked_by && held.asked_by.as_ref() != Some(holder) {
            answer(table::leave(&self.session, *token)).await?;
            let message =
                "another broker was told to take over, and leads from here on: stop this one".to_owned();
            return Err(Failure { message, kind: Kind::HandedOver });
        }
        self.lease.since = since;
        Ok(())
    }

    /// Lets go of what neither a restart nor anybody else needs, if that is due.
    async fn trim(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let ago = self.trimmed.map(|at| now.saturating_duration_since(at));
        let due = |after: Duration| ago.is_none_or(|ago| ago >= after);
        let line = self.hub.head().map(|head| head.epoch);
        let Some(window) = self.hub.window().filter(|_| line == Some(self.epoch)) else { return Ok(()) };
        let tick = window.replay_from.saturating_sub(1).min(self.last.id).max(self.kept.tick);
        let quiet_from = window.quiet_from.min(Position::before(tick + 1));
        let kept = Kept { tick, quiet_from };
        // What was withdrawn must not be read again, whenever the next broker comes.
        let withdrawn = window.withdrawn > self.kept.tick + 1;
        let soon = kept != self.kept || self.holding;
        if !(withdrawn || due(TRIM.1) || soon && due(TRIM.0)) {
            return Ok(());
        }
        let quiet = (quiet_from.major, quiet_from.ordinal);
        let left = answer(table::trim(&self.session, self.lease.token, tick, quiet)).await?;
        self.gauges.lanes.set(f64::from(left.lanes));
        if let Some(bytes) = left.bytes {
            self.gauges.bytes.set(bytes as f64);
        }
        (self.kept, self.trimmed, self.holding) = (kept, Some(now), left.lanes > 0);
        Ok(())
    }
}

/// No answer in time: the link is dead, or the server.
pub(super) async fn answer<T>(asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut asked = std::pin::pin!(asked);
    if let Ok(answer) = timeout(ANSWER_LATE, &mut asked).await {
        return answer;
    }
    tracing::warn!(
        "Postgres has not answered for {} s: is a transaction pooler in between, and all of its sessions taken?",
        ANSWER_LATE.as_secs()
    );
    timeout(ANSWER_MAX, asked).await.unwrap_or_else(|_| {
        let message = format!("the server did not answer within {} s", ANSWER_MAX.as_secs());
        Err(Failure { message, kind: Kind::Silent })
    })
}

/// What a trigger saw; `None`: a message.
fn operation(options: &str) -> Option<&str> {
    options.split(' ').find_map(|pair| pair.strip_prefix("op="))
}

/// A message as the log has it.
fn message(line: &Line) -> Bytes {
    [&*line.topic, &line.options, "\n", &line.data].concat().into()
}
