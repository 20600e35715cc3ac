//! A standby's own place in the log, near where others have told everything: who takes over from there need not read all
//! that the floor keeps.
//!
//! It is a temporary copy of the floor on the companion session, and goes with it. It is moved on while the broker
//! follows, never beyond what its hub holds. Without one, or a Redis, a new leader begins at the floor.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::{PgLsn, Type};
use uuid::Uuid;
use walcast_wire::{Epoch, Position};

use super::connect::literal;
use crate::hub::Hub;
use crate::postgres::{Companion, describe};
use crate::source::Config;

/// Between two moves.
const MOVE_EVERY: Duration = Duration::from_secs(3);
/// A move reads the log: this much takes about a tenth of a second, and the session has other work.
const MOVE_BYTES_MAX: u64 = 64 << 20;
/// Another broker is not waited for so long that a place would be worth it.
const PATIENCE: Duration = Duration::from_secs(30);

/// See the module.
#[derive(Debug)]
pub(super) struct Warm {
    companion: Arc<Companion>,
    hub: Arc<Hub>,
    floor: String,
    own: String,
    /// Why there is none, said once.
    told: bool,
}

impl Warm {
    pub(super) fn new(config: &Config, companion: Arc<Companion>, hub: Arc<Hub>) -> Self {
        let id = Uuid::new_v4().simple().to_string();
        let own = format!("{}_standby_{}", config.slot, &id[..8]);
        Self { companion, hub, floor: config.slot.clone(), own, told: false }
    }

    /// Keeps the place for as long as it is polled. Cancel safe.
    pub(super) async fn keep(&mut self) -> std::convert::Infallible {
        loop {
            let pause = match self.hub.head().filter(|_| self.hub.follows()) {
                None => MOVE_EVERY,
                Some(head) => match tokio::time::timeout(PATIENCE, self.move_to(head.position.major)).await {
                    Ok(Ok(true)) => Duration::ZERO,
                    Ok(Ok(false)) => MOVE_EVERY,
                    Ok(Err(why)) => self.tell(&why),
                    Err(_) => self.tell("the server does not answer"),
                },
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn tell(&mut self, why: &str) -> Duration {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                slot = self.own,
                "no place near the end of the log, so taking over would read all that the floor keeps: {why}; is a \
                 replication slot free (max_replication_slots)?"
            );
        }
        MOVE_EVERY
    }

    /// One move, made where there is nothing to move; whether there is more to do.
    async fn move_to(&self, target: u64) -> Result<bool, String> {
        const WHERE: &str = "SELECT confirmed_flush_lsn FROM pg_catalog.pg_replication_slots \
                             WHERE slot_name = $1 AND active_pid = pg_catalog.pg_backend_pid()";
        let session = self.companion.lock().await.map_err(|error| error.to_string())?;
        let said = |error: tokio_postgres::Error| describe(&error);
        let row = session.query_typed_opt(WHERE, &[(&self.own, Type::TEXT)]).await.map_err(said)?;
        let Some(row) = row else {
            let (floor, own) = (literal(&self.floor), literal(&self.own));
            let copy = format!("SELECT pg_catalog.pg_copy_logical_replication_slot({floor}, {own}, true)");
            session.batch_execute(&copy).await.map_err(said)?;
            return Ok(true);
        };
        let at = u64::from(row.try_get::<_, PgLsn>(0).map_err(said)?);
        let next = target.min(at.saturating_add(MOVE_BYTES_MAX));
        if next <= at {
            return Ok(false);
        }
        const MOVE: &str = "SELECT pg_catalog.pg_replication_slot_advance($1, $2)::text";
        let next = PgLsn::from(next);
        let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&self.own, Type::TEXT), (&next, Type::PG_LSN)];
        session.query_typed_opt(MOVE, &params).await.map_err(said)?;
        Ok(target > u64::from(next))
    }

    /// The place to begin at on this line, if it is there, nearer than the floor, and the hub goes on from it.
    pub(super) async fn place(&self, epoch: Epoch) -> Option<String> {
        const NEARER: &str = "SELECT own.confirmed_flush_lsn
                              FROM pg_catalog.pg_replication_slots own, pg_catalog.pg_replication_slots floor
                              WHERE own.slot_name = $1 AND floor.slot_name = $2
                                AND own.confirmed_flush_lsn > floor.confirmed_flush_lsn
                                AND own.active_pid = pg_catalog.pg_backend_pid()";
        let head = self.hub.head().filter(|head| self.hub.follows() && head.epoch == epoch)?;
        let session = self.companion.lock().await.ok()?;
        let params = [
            (&self.own as &(dyn tokio_postgres::types::ToSql + Sync), Type::TEXT),
            (&self.floor, Type::TEXT),
        ];
        let row = session.query_typed_opt(NEARER, &params).await.ok()??;
        let at = u64::from(row.try_get::<_, PgLsn>(0).ok()?);
        (Position::before(at) <= head.position).then(|| self.own.clone())
    }

    /// A leader needs none, and it would keep WAL.
    pub(super) async fn drop_it(&self) {
        const DROP: &str = "SELECT pg_catalog.pg_drop_replication_slot(slot_name)::text
                            FROM pg_catalog.pg_replication_slots
                            WHERE slot_name = $1 AND active_pid = pg_catalog.pg_backend_pid()";
        if let Ok(session) = self.companion.lock().await
            && let Err(error) = session.query_typed_opt(DROP, &[(&self.own, Type::TEXT)]).await
        {
            tracing::warn!(
                slot = self.own,
                "the place of a standby stays until its session ends: {}",
                describe(&error)
            );
        }
    }
}
