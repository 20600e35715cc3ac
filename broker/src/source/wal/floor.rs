//! The floor: the persistent slot, moved up behind what is acknowledged.
//!
//! Nobody ever streams from it. It is moved on the companion session, and only while our own walsender holds
//! the live slot, so a broker that lost the lease moves nothing. An advance reads the WAL again from where the
//! slot's `restart_lsn` is, so the pause before the next one grows with the time that the last one took.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_postgres::types::PgLsn;
use tokio_util::task::AbortOnDropHandle;

use crate::health::{Health, Part};
use crate::postgres::{Companion, describe};

/// The shortest pause between two advances.
const PAUSE: Duration = Duration::from_secs(1);
/// An advance may take at most one part in so many of the time.
const SHARE: u32 = 20;

/// What the mover needs to know.
#[derive(Debug)]
pub(super) struct Floor {
    pub(super) companion: Arc<Companion>,
    pub(super) health: Arc<Health>,
    pub(super) slot: String,
    pub(super) live: String,
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
        let mut told = false;
        loop {
            let start = Instant::now();
            match self.advance().await {
                Ok(()) if told => {
                    told = false;
                    self.health.well(Part::Floor);
                }
                Ok(()) => {}
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
            sleep(PAUSE.max(start.elapsed() * SHARE)).await;
        }
    }

    /// Moves the floor to what is acknowledged. Repeated also without anything new: `restart_lsn` follows only
    /// once an advance has passed a record of running transactions, which may come later.
    async fn advance(&mut self) -> Result<(), String> {
        const ADVANCE: &str = "
            SELECT pg_catalog.pg_replication_slot_advance(f.slot_name, $3)
            FROM pg_catalog.pg_replication_slots l, pg_catalog.pg_replication_slots f
            WHERE l.slot_name = $1 AND l.active_pid = $2 AND f.slot_name = $4
              AND (f.confirmed_flush_lsn < $3
                   OR (f.confirmed_flush_lsn = $3 AND f.restart_lsn < l.restart_lsn))";
        let target = *self.target.borrow_and_update();
        if target == 0 {
            return Ok(());
        }
        let session = self.companion.lock().await.map_err(|error| error.to_string())?;
        let target = PgLsn::from(target);
        let moved = session.execute(ADVANCE, &[&self.live, &self.walsender, &target, &self.slot]).await;
        moved.map(|_| ()).map_err(|error| describe(&error))
    }
}
