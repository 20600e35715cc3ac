//! A standby's own place in the log, near where others have told everything: who takes over from there need not read all
//! that the floor keeps.
//!
//! It is a temporary copy of the floor on the companion session, and goes with it. It is moved on while the broker
//! follows, never beyond what its hub holds. Without one, or a Redis, a new leader begins at the floor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::types::{PgLsn, ToSql, Type};
use uuid::Uuid;
use walcast_wire::{Epoch, Position};

use super::connect::literal;
use crate::hub::Hub;
use crate::postgres::{Companion, Session, describe};
use crate::source::Config;

/// Shortest pause between two moves,
const MOVE_EVERY: Duration = Duration::from_secs(3);
/// and how many times as long as the last one took: others wait for the session, too.
const PAUSE_FACTOR: u32 = 4;
/// A move reads the log: this much takes about a tenth of a second.
const MOVE_BYTES_MAX: u64 = 64 << 20;
/// A move that takes longer is cancelled, and with it the place goes.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause behind that.
const GIVE_UP: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Debug)]
pub(super) struct Warm {
    companion: Arc<Companion>,
    hub: Arc<Hub>,
    floor: String,
    own: String,
    /// What it may keep of the log.
    keep_bytes_max: u64,
    /// Why there is none, said once.
    told: bool,
}

impl Warm {
    pub(super) fn new(
        config: &Config,
        keep_bytes_max: u64,
        companion: Arc<Companion>,
        hub: Arc<Hub>,
    ) -> Self {
        let id = Uuid::new_v4().simple().to_string();
        let own = format!("{}_standby_{}", config.slot, &id[..8]);
        Self { companion, hub, floor: config.slot.clone(), own, keep_bytes_max, told: false }
    }

    /// Keeps the place for as long as it is polled. Cancel safe.
    pub(super) async fn keep(&mut self) -> std::convert::Infallible {
        loop {
            let begun = Instant::now();
            let pause = match self.hub.head().filter(|_| self.hub.follows()) {
                None => MOVE_EVERY,
                Some(head) => match self.move_to(head.position.major).await {
                    Ok(()) => MOVE_EVERY.max(begun.elapsed() * PAUSE_FACTOR),
                    Err(why) => self.tell(&why),
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
        GIVE_UP
    }

    /// One move towards `target`. The place is made where it would be nearer than the floor, and let go of where it is
    /// not, or keeps more of the log than the floor may.
    async fn move_to(&self, target: u64) -> Result<(), String> {
        const LOOK: &str = "
            SELECT floor.confirmed_flush_lsn, own.confirmed_flush_lsn,
                   own.wal_status = 'lost'
                       OR pg_catalog.pg_current_wal_lsn() OPERATOR(pg_catalog.-) own.restart_lsn > $3::float8::numeric
            FROM pg_catalog.pg_replication_slots floor
            LEFT JOIN pg_catalog.pg_replication_slots own
                ON own.slot_name = $2 AND own.active_pid = pg_catalog.pg_backend_pid()
            WHERE floor.slot_name = $1";
        const MOVE: &str = "SELECT pg_catalog.pg_replication_slot_advance($1, $2)::text";
        let session = self.companion.lock().await.map_err(|error| error.to_string())?;
        let said = |error: tokio_postgres::Error| describe(&error);
        // The difference of two places is a numeric, which compares with a double.
        let keep_max = self.keep_bytes_max as f64;
        let params: [(&(dyn ToSql + Sync), Type); 3] =
            [(&self.floor, Type::TEXT), (&self.own, Type::TEXT), (&keep_max, Type::FLOAT8)];
        let Some(row) = session.query_typed_opt(LOOK, &params).await.map_err(said)? else { return Ok(()) };
        let floor = row.try_get::<_, Option<PgLsn>>(0).map_err(said)?.map_or(0, u64::from);
        let own = row.try_get::<_, Option<PgLsn>>(1).map_err(said)?.map(u64::from);
        let too_much = row.try_get::<_, Option<bool>>(2).map_err(said)?.unwrap_or(false);
        let moving = async {
            match own {
                None if target > floor => {
                    let (floor, own) = (literal(&self.floor), literal(&self.own));
                    let copy =
                        format!("SELECT pg_catalog.pg_copy_logical_replication_slot({floor}, {own}, true)");
                    session.batch_execute(&copy).await.map_err(said)
                }
                Some(at) if too_much || at < floor => self.let_go(&session).await.map_err(said),
                Some(at) if target > at => {
                    let next = PgLsn::from(target.min(at.saturating_add(MOVE_BYTES_MAX)));
                    let params: [(&(dyn ToSql + Sync), Type); 2] =
                        [(&self.own, Type::TEXT), (&next, Type::PG_LSN)];
                    session.query_typed_opt(MOVE, &params).await.map(drop).map_err(said)
                }
                _ => Ok(()),
            }
        };
        let moved = tokio::time::timeout(PATIENCE, moving).await;
        let Ok(moved) = moved else {
            session.cancel(self.companion.target()).await;
            return Err(format!("a move took more than {} s", PATIENCE.as_secs()));
        };
        moved
    }

    async fn let_go(&self, session: &Session) -> Result<(), tokio_postgres::Error> {
        const DROP: &str = "SELECT pg_catalog.pg_drop_replication_slot(slot_name)::text
                            FROM pg_catalog.pg_replication_slots
                            WHERE slot_name = $1 AND active_pid = pg_catalog.pg_backend_pid()";
        session.query_typed_opt(DROP, &[(&self.own, Type::TEXT)]).await.map(drop)
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
        let params = [(&self.own as &(dyn ToSql + Sync), Type::TEXT), (&self.floor, Type::TEXT)];
        let row = session.query_typed_opt(NEARER, &params).await.ok()??;
        let at = u64::from(row.try_get::<_, PgLsn>(0).ok()?);
        (Position::before(at) <= head.position).then(|| self.own.clone())
    }

    /// A leader needs none, and it would keep WAL.
    pub(super) async fn drop_it(&self) {
        if let Ok(session) = self.companion.lock().await
            && let Err(error) = self.let_go(&session).await
        {
            tracing::warn!(
                slot = self.own,
                "the place of a standby stays until its session ends: {}",
                describe(&error)
            );
        }
    }
}
