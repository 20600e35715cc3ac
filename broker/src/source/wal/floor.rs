//! The floor: the persistent slot, moved up behind the window of events that a restart is to find again.
//!
//! Nobody ever streams from it. It is moved on the companion session, and only while our own walsender holds
//! the live slot, so a broker that lost the lease moves nothing. An advance reads the WAL again from where the
//! slot's `restart_lsn` is, so the pause before the next one grows with the time that the last one took, unless
//! the live slot's `restart_lsn` shows that WAL can be freed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{PgLsn, Type};
use tokio_util::task::AbortOnDropHandle;
use walcast_wire::Position;

use super::connect::literal;
use super::retention::Pressure;
use super::slots::{NO_STANDBYS, Parameter, STANDBYS_CONFIRMED, Slots};
use super::standby;
use crate::facts::Copy;
use crate::health::Part;
use crate::hub::Hub;
use crate::postgres::{Session, describe};

/// Between two looks, and so the shortest pause between two advances.
const PAUSE: Duration = Duration::from_secs(1);
/// The same where WAL must be let go.
const PAUSE_URGENT: Duration = Duration::from_millis(50);
/// The floor moves when it gains this much WAL. A move is written down, which is WAL itself: an idle server
/// would never come to rest.
const STEP_BYTES: u64 = 8 << 20;
/// Advances that free no WAL may take at most one part in so many of the time.
const SHARE: u32 = 20;
/// More WAL than this is not kept once the server is quiet,
const KEPT_BYTES_MAX: u64 = 32 << 20;
/// which it is when it wrote no more than this
const QUIET_BYTES: u64 = 1 << 20;
/// for so long.
const QUIET: Duration = Duration::from_secs(5);

/// What the mover needs to know.
#[derive(Debug)]
pub(super) struct Floor {
    pub(super) slots: Slots,
    /// What is acknowledged.
    pub(super) acknowledged: watch::Receiver<u64>,
    /// The end of the log when the stream began.
    pub(super) replay_until: u64,
    /// What it holds is to be there again after a restart,
    pub(super) hub: Arc<Hub>,
    /// as far as this much WAL goes.
    pub(super) wal_bytes: u64,
    /// How urgently WAL has to be let go.
    pub(super) pressure: watch::Receiver<Pressure>,
    /// What standbys have of the floor, where they can have it.
    pub(super) standbys: Option<standby::Seen>,
}

impl Floor {
    /// Moves the floor until the handle is dropped.
    pub(super) fn spawn(self) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(self.run()))
    }

    async fn run(mut self) {
        let mut pace = Pace::new(Instant::now());
        let mut told = false;
        let mut replay_until = Some(self.replay_until);
        loop {
            match self.advance(&mut pace).await {
                Ok(()) => {
                    told = false;
                    self.slots.health.well(Part::Floor);
                }
                Err(error) => {
                    // A session that ended is the stream's to judge; it comes back with the next attempt.
                    if !told {
                        tracing::warn!(slot = self.slots.floor, "the floor slot cannot be moved: {error}");
                    }
                    told = true;
                    let slot = &self.slots.floor;
                    let advice =
                        "WAL is kept meanwhile; check the role's privileges and pg_replication_slots";
                    self.slots
                        .health
                        .unwell(Part::Floor, format!("slot {slot} cannot be moved: {error}; {advice}"));
                }
            }
            rest(&mut self.pressure, &mut self.acknowledged, &mut replay_until).await;
        }
    }

    /// Up to where the log is not needed again, and from where on nothing was published before that.
    fn target(&mut self) -> Target {
        let acknowledged = *self.acknowledged.borrow_and_update();
        let window = self.hub.window();
        let replay_from = window.map_or(0, |window| window.replay_from).min(acknowledged);
        let urgent = *self.pressure.borrow() != Pressure::None;
        let wal_bytes = if urgent { 0 } else { self.wal_bytes };
        let lsn = replay_from.max(acknowledged.saturating_sub(wal_bytes));
        // Above the window events are given up, and so is every cursor below.
        let quiet_from = window.map(|window| window.quiet_from).filter(|_| lsn <= replay_from);
        let quiet_from = quiet_from.unwrap_or(Position::before(lsn));
        let passing = |seen: &standby::Seen| seen.borrow().iter().any(|one| one.copy == Copy::Passing);
        let sought = self.standbys.as_ref().is_some_and(passing);
        let withdrawn = window.map_or(0, |window| window.withdrawn);
        let waits = window.is_some_and(|window| window.waits);
        Target { lsn, quiet_from, withdrawn, waits, held: lsn < acknowledged, urgent, sought }
    }

    /// Moves the floor up behind the window. Repeated also without anything new where there is no window:
    /// `restart_lsn` follows only once an advance has passed a record of running transactions, which may come later.
    async fn advance(&mut self, pace: &mut Pace) -> Result<(), String> {
        let standbys = if self.standbys.is_some() { STANDBYS_CONFIRMED } else { NO_STANDBYS };
        let look = format!(
            "SELECT f.confirmed_flush_lsn, f.restart_lsn, l.restart_lsn,
                   CASE WHEN (to_jsonb(f)->>'failover')::bool THEN s.lsn END, s.gone
            FROM {standbys} AS s, pg_catalog.pg_replication_slots l, pg_catalog.pg_replication_slots f
            WHERE l.slot_name = $1 AND l.active_pid = $2 AND f.slot_name = $3"
        );
        // Before the slot moves: a broker that ends in between leaves a word that is true of the old place, too. It
        // outlives every crash that the slot's new place outlives. `moved_upto` never falls: what another broker was
        // about to do may still come.
        const WRITE: &str = "
            UPDATE walcast.source s SET quiet_lsn = $4, quiet_ordinal = $5, quiet_upto = $6,
                moved_upto = greatest(s.moved_upto, $6)
            FROM (SELECT pg_catalog.set_config('synchronous_commit', 'local', true) AS name) AS durable
            WHERE s.slot = $3 AND durable.name IS NOT NULL AND EXISTS (
                SELECT FROM pg_catalog.pg_replication_slots l WHERE l.slot_name = $1 AND l.active_pid = $2)";
        const MOVE: &str = "
            SELECT pg_catalog.pg_replication_slot_advance(f.slot_name, $4)
            FROM pg_catalog.pg_replication_slots l, pg_catalog.pg_replication_slots f
            WHERE l.slot_name = $1 AND l.active_pid = $2 AND f.slot_name = $3 AND f.confirmed_flush_lsn <= $4";
        // A quiet server would write nothing for long. No event, for it is not ours, nor transactional.
        const GO_ON: &str = "SELECT pg_catalog.pg_logical_emit_message(false, 'walcast', '')";
        let target = self.target();
        if target.lsn == 0 || *self.pressure.borrow() == Pressure::GiveUp {
            return Ok(());
        }
        let mut session = self.slots.companion.lock().await.map_err(|error| error.to_string())?;
        let failed = |error: tokio_postgres::Error| describe(&error);
        let row = session.query_typed_opt(&look, &self.slots.parameters(&[])).await.map_err(failed)?;
        let Some(row) = row else { return Ok(()) };
        let lsn = |column: usize| row.try_get::<_, Option<PgLsn>>(column).map_err(failed);
        let (Some(confirmed), Some(floor), Some(live_restart)) = (lsn(0)?, lsn(1)?, lsn(2)?) else {
            return Ok(());
        };
        let seen =
            Seen { confirmed: confirmed.into(), restart: floor.into(), live_restart: live_restart.into() };
        let start = Instant::now();
        let goal = match lsn(3)?.map(u64::from) {
            Some(confirmed) => target.up_to(confirmed),
            None => target,
        };
        let gone: Option<String> = row.try_get(4).map_err(failed)?;
        if target.waits {
            session.execute_typed(GO_ON, &[]).await.map_err(failed)?;
        }
        if pace.moves(&goal, &seen, start) {
            let (quiet, ordinal) =
                (PgLsn::from(goal.quiet_from.major), goal.quiet_from.ordinal.cast_signed());
            let to = PgLsn::from(goal.lsn);
            let write: [Parameter<'_>; 3] =
                [(&quiet, Type::PG_LSN), (&ordinal, Type::INT8), (&to, Type::PG_LSN)];
            if session.execute_typed(WRITE, &self.slots.parameters(&write)).await.map_err(failed)? == 0 {
                return Ok(());
            }
            session
                .execute_typed(MOVE, &self.slots.parameters(&[(&to, Type::PG_LSN)]))
                .await
                .map_err(failed)?;
            pace.moved(&seen, start.elapsed(), Instant::now());
        } else if let Some(gone) = gone.filter(|_| pace.moves(&target, &seen, start)) {
            return Err(format!(
                "synchronized_standby_slots has standbys that are not connected, and nothing moves a failover slot past \
                 what they have: bring them back, or take their slots ({gone}) out of that setting"
            ));
        }
        if !target.held && pace.asks(target.lsn, seen.live_restart, start) {
            ask_for_record(&mut session, &self.slots.mark).await;
        }
        Ok(())
    }
}

/// Waits until the next look is due. One is due soon after what was there at the begin is published: else a broker that
/// never lives for long would never move the floor, and read more each time.
async fn rest(
    pressure: &mut watch::Receiver<Pressure>,
    acknowledged: &mut watch::Receiver<u64>,
    replay_until: &mut Option<u64>,
) {
    let urgent = *pressure.borrow_and_update() == Pressure::Shrink;
    let pause = if urgent { PAUSE_URGENT } else { PAUSE };
    let until = *replay_until;
    let replayed = async {
        match until {
            Some(until) if acknowledged.wait_for(|lsn| *lsn >= until).await.is_ok() => {}
            _ => std::future::pending().await,
        }
        // The hub is to have it, too.
        sleep(PAUSE_URGENT).await;
    };
    tokio::select! {
        () = sleep(pause) => {}
        Ok(()) = pressure.changed() => {}
        () = replayed => *replay_until = None,
    }
}

/// Makes the server write a record of running transactions. Its background writer does so every 15 s, but
/// sleeps long and often once nothing happens; making a logical slot does it at once, with no right that we lack. Whether
/// it did.
pub(super) async fn ask_for_record(session: &mut Session, mark: &str) -> bool {
    let slot = literal(mark);
    let sql = format!(
        "SET LOCAL lock_timeout = '100ms';
         SELECT pg_catalog.pg_create_logical_replication_slot({slot}, 'pgoutput', true);
         SELECT pg_catalog.pg_drop_replication_slot({slot})"
    );
    let asked = async { session.transaction().await?.batch_execute(&sql).await };
    let Err(error) = asked.await else { return true };
    // The record comes before the wait for the transactions that run; others' refusals come before the record.
    let written = error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE);
    tracing::debug!(written, "asking for a record of running transactions: {}", describe(&error));
    written
}

/// Where the floor is to be.
#[derive(Clone, Copy)]
struct Target {
    lsn: u64,
    /// Nothing was published between here and `lsn`.
    quiet_from: Position,
    /// The window keeps it below what is acknowledged.
    held: bool,
    /// Of what lies before this some no longer holds, and only the floor's place tells a restart.
    withdrawn: u64,
    /// More is to be withdrawn once the log goes on.
    waits: bool,
    /// WAL must be let go.
    urgent: bool,
    /// A standby can keep its copy only once the floor has moved.
    sought: bool,
}

impl Target {
    /// The same, but no further than this: an advance past what the listed standbys have waits for them without end,
    /// and everybody else for the session.
    fn up_to(self, lsn: u64) -> Self {
        if self.lsn <= lsn {
            return self;
        }
        Self { lsn, quiet_from: self.quiet_from.min(Position::before(lsn)), held: true, ..self }
    }

    /// A restart from where the slot is would tell again what no longer holds.
    fn misleads(&self, seen: &Seen) -> bool {
        seen.confirmed < self.withdrawn.min(self.lsn)
    }

    /// The least gain for which the floor moves.
    fn step(&self, seen: &Seen) -> u64 {
        if self.sought || self.misleads(seen) { 1 } else { STEP_BYTES }
    }
}

/// Where the slots are.
struct Seen {
    confirmed: u64,
    restart: u64,
    live_restart: u64,
}

/// When to do what.
struct Pace {
    /// Advances wait until then: a pause that grows with what the last one cost.
    not_before: Instant,
    /// The same where WAL must be let go: half of the time is left to others.
    soonest: Instant,
    /// Where `restart_lsn` of the floor and of the live slot were before the last advance. An advance that can free
    /// WAL does not wait for the pause, for it shortens the way of all later ones; but one that was in vain is not
    /// repeated without it.
    last_restarts: [u64; 2],
    /// Little was written from here on, since then.
    quiet: (u64, Instant),
    /// Where the live slot's `restart_lsn` was when a record was asked for last.
    asked: u64,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { not_before: now, soonest: now, last_restarts: [0; 2], quiet: (0, now), asked: 0 }
    }

    /// Whether to advance the floor.
    fn moves(&self, target: &Target, seen: &Seen, now: Instant) -> bool {
        let hurries = target.urgent || target.misleads(seen);
        let rested = now >= if hurries { self.soonest } else { self.not_before };
        let gain = target.lsn.saturating_sub(seen.confirmed);
        let follows = !target.held && target.lsn >= seen.confirmed && seen.restart < seen.live_restart;
        let news = self.last_restarts != [seen.restart, seen.live_restart];
        let step = target.step(seen);
        rested && gain >= step || follows && target.lsn - seen.restart >= step && (rested || news)
    }

    fn moved(&mut self, seen: &Seen, took: Duration, now: Instant) {
        (self.not_before, self.soonest) = (now + took * SHARE, now + took);
        self.last_restarts = [seen.restart, seen.live_restart];
    }

    /// Whether to ask for a record of running transactions: much WAL is kept although nobody writes any more, and
    /// asking was not in vain before.
    fn asks(&mut self, target: u64, live_restart: u64, now: Instant) -> bool {
        if target.saturating_sub(self.quiet.0) > QUIET_BYTES {
            self.quiet = (target, now);
        }
        let asks = target.saturating_sub(live_restart) > KEPT_BYTES_MAX
            && now.duration_since(self.quiet.1) >= QUIET
            && live_restart != self.asked;
        if asks {
            self.asked = live_restart;
        }
        asks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_look_is_due_soon_after_the_replay() {
        let (published, mut acknowledged) = watch::channel(99);
        let (sender, mut pressure) = watch::channel(Pressure::None);
        let mut replay_until = Some(100);
        sender.send_replace(Pressure::None);
        pressure.mark_changed();
        rest(&mut pressure, &mut acknowledged, &mut replay_until).await;
        assert_eq!(replay_until, Some(100), "not yet");
        published.send_replace(100);
        let woken = async {
            while replay_until.is_some() {
                rest(&mut pressure, &mut acknowledged, &mut replay_until).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), woken).await.expect("it is noticed");
    }

    #[test]
    fn what_no_longer_holds_moves_the_floor_at_once() {
        let mut pace = Pace::new(Instant::now());
        let now = Instant::now();
        let check = |pace: &Pace, confirmed: u64, withdrawn: u64, expected: bool| {
            let seen = Seen { confirmed, restart: 10, live_restart: 10 };
            let target = Target {
                lsn: 100,
                quiet_from: Position::before(100),
                withdrawn,
                waits: false,
                held: true,
                urgent: false,
                sought: false,
            };
            assert_eq!(pace.moves(&target, &seen, now), expected, "{confirmed} {withdrawn}");
        };
        for _ in 0..2 {
            check(&pace, 50, 0, false);
            check(&pace, 50, 50, false);
            check(&pace, 50, 51, true);
            // Not acknowledged yet: as far as may be.
            check(&pace, 99, 200, true);
            check(&pace, 100, 200, false);
            // Nor does it wait out the pause behind another move.
            let seen = Seen { confirmed: 1, restart: 10, live_restart: 10 };
            pace.moved(&seen, Duration::ZERO, now);
            pace.not_before = now + Duration::from_secs(60);
        }
    }

    #[test]
    fn a_record_is_asked_for_once_when_the_server_is_quiet() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut check = |target_mib: u64, restart_mib: u64, seconds: u64, expected: bool| {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(pace.asks(target_mib << 20, restart_mib << 20, now), expected, "after {seconds} s");
        };
        check(500, 1, 0, false);
        check(600, 1, 10, false); // written meanwhile
        check(600, 1, 14, false);
        check(600, 1, 15, true);
        check(600, 1, 60, false); // in vain
        check(600, 590, 61, false); // little is kept
        check(900, 590, 62, false);
        check(900, 590, 70, true);
    }
}
