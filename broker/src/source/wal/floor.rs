//! The floor: the persistent slot, moved up behind what is acknowledged.
//!
//! Nobody ever streams from it. It is moved on the companion session, and only while our own walsender holds
//! the live slot, so a broker that lost the lease moves nothing. An advance reads the WAL again from where the
//! slot's `restart_lsn` is, so the pause before the next one grows with the time that the last one took, unless
//! the live slot's `restart_lsn` shows that WAL can be freed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_postgres::types::{PgLsn, ToSql};
use tokio_util::task::AbortOnDropHandle;

use super::connect::literal;
use crate::health::{Health, Part};
use crate::postgres::{Companion, Session, describe};

/// Between two looks, and so the shortest pause between two advances.
const PAUSE: Duration = Duration::from_secs(1);
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
    pub(super) companion: Arc<Companion>,
    pub(super) health: Arc<Health>,
    pub(super) slot: String,
    pub(super) live: String,
    pub(super) mark: String,
    /// The process of our own walsender.
    pub(super) walsender: i32,
    /// What is acknowledged.
    pub(super) target: watch::Receiver<u64>,
}

impl Floor {
    /// Moves the floor until the handle is dropped.
    pub(super) fn spawn(self) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(self.run()))
    }

    async fn run(mut self) {
        let mut pace = Pace::new(Instant::now());
        let mut told = false;
        loop {
            match self.advance(&mut pace).await {
                Ok(()) => {
                    told = false;
                    self.health.well(Part::Floor);
                }
                Err(error) => {
                    // A session that ended is the stream's to judge; it comes back with the next attempt.
                    if !told {
                        tracing::warn!(slot = self.slot, "the floor slot cannot be moved: {error}");
                    }
                    told = true;
                    let slot = &self.slot;
                    let advice =
                        "WAL is kept meanwhile; check the role's privileges and pg_replication_slots";
                    self.health
                        .unwell(Part::Floor, format!("slot {slot} cannot be moved: {error}; {advice}"));
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// Moves the floor to what is acknowledged. Repeated also without anything new: `restart_lsn` follows only
    /// once an advance has passed a record of running transactions, which may come later.
    async fn advance(&mut self, pace: &mut Pace) -> Result<(), String> {
        const ADVANCE: &str = "
            SELECT f.restart_lsn, l.restart_lsn, CASE
                WHEN f.confirmed_flush_lsn <= $3
                     AND (($5 AND f.confirmed_flush_lsn < $3)
                          OR (f.restart_lsn < l.restart_lsn
                              AND ($5 OR f.restart_lsn <> $6 OR l.restart_lsn <> $7)))
                THEN (pg_catalog.pg_replication_slot_advance(f.slot_name, $3)).end_lsn END
            FROM pg_catalog.pg_replication_slots l, pg_catalog.pg_replication_slots f
            WHERE l.slot_name = $1 AND l.active_pid = $2 AND f.slot_name = $4";
        let target = *self.target.borrow_and_update();
        if target == 0 {
            return Ok(());
        }
        let mut session = self.companion.lock().await.map_err(|error| error.to_string())?;
        let start = Instant::now();
        let rested = start >= pace.not_before;
        let (lsn, last) = (PgLsn::from(target), pace.last_restarts.map(PgLsn::from));
        let parameters: [&(dyn ToSql + Sync); 7] =
            [&self.live, &self.walsender, &lsn, &self.slot, &rested, &last[0], &last[1]];
        let Some(row) = session.query_opt(ADVANCE, &parameters).await.map_err(|error| describe(&error))?
        else {
            return Ok(());
        };
        let lsn = |column: usize| row.try_get::<_, Option<PgLsn>>(column).map_err(|error| describe(&error));
        let (Some(floor), Some(live), advanced) = (lsn(0)?, lsn(1)?, lsn(2)?) else { return Ok(()) };
        if advanced.is_some() {
            pace.not_before = Instant::now() + start.elapsed() * SHARE;
            pace.last_restarts = [floor.into(), live.into()];
        }
        if pace.asks(target, live.into(), start) {
            self.ask_for_record(&mut session).await;
        }
        Ok(())
    }

    /// Makes the server write a record of running transactions. Its background writer does so every 15 s, but
    /// sleeps long and often once nothing happens; making a logical slot does it at once, with no right that we lack.
    async fn ask_for_record(&self, session: &mut Session) {
        let slot = literal(&self.mark);
        let sql = format!(
            "SET LOCAL lock_timeout = '100ms';
             SELECT pg_catalog.pg_create_logical_replication_slot({slot}, 'pgoutput', true);
             SELECT pg_catalog.pg_drop_replication_slot({slot})"
        );
        let asked = async { session.transaction().await?.batch_execute(&sql).await };
        if let Err(error) = asked.await {
            // In most cases the record is written all the same; and if it is not, one comes later.
            tracing::debug!("asking for a record of running transactions: {}", describe(&error));
        }
    }
}

/// When to do what.
struct Pace {
    /// Advances wait until then: a pause that grows with what the last one cost.
    not_before: Instant,
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
        Self { not_before: now, last_restarts: [0; 2], quiet: (0, now), asked: 0 }
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
