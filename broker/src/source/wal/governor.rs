//! The governor: looks at both slots every few seconds, tells what it sees, and lets WAL go before the server
//! takes it.
//!
//! It works on the companion session, beside the floor's mover, and only for as long as our own walsender holds
//! the live slot. What may be kept runs out in two steps: first the floor gives up its window (`Pressure::Shrink`),
//! and where that cannot help, since somebody's transaction holds the log, both slots go. It never drops
//! a slot that could still be moved.

use std::collections::BTreeMap;

use metrics::gauge;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, PgLsn, Type};
use tokio_util::task::AbortOnDropHandle;

use super::floor::ask_for_record;
use super::retention::{LOOK, Positions, Pressure, advice, cause, losing, next_look};
use super::slots::{STANDBYS_CONFIRMED, Slots};
use super::standby;
use crate::facts::{Copy, SlotFacts, SourceFacts, TransactionFacts};
use crate::health::Part;
use crate::postgres::{Session, describe};
use crate::telemetry as names;

/// The slots, as they are called in metrics and facts.
const SLOTS: [&str; 2] = ["floor", "live"];
/// What is told of each.
const SLOT_GAUGES: [&str; 8] = [
    names::SLOT_STATUS,
    names::SLOT_RETAINED_BYTES,
    names::SLOT_RETAINED_SECONDS,
    names::SLOT_LAG_BYTES,
    names::SLOT_LAG_SECONDS,
    names::SLOT_SAFE_BYTES,
    names::SLOT_CATALOG_XMIN_AGE,
    names::SLOT_FAILOVER,
];

/// What the governor needs to know.
#[derive(Debug)]
pub(super) struct Governor {
    pub(super) slots: Slots,
    /// Told to the floor's mover, and to the stream, which ends when the slots were given up.
    pub(super) pressure: watch::Sender<Pressure>,
    /// What standbys have of the floor, where they can have it.
    pub(super) standbys: Option<standby::Seen>,
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
struct Memory {
    positions: Positions,
    /// The oldest transaction, and since when it is seen.
    oldest: Option<(String, Instant)>,
    asked: Option<Asked>,
}

/// A record of running transactions was asked for. Once the stream has passed it, WAL from before `from` is kept
/// only for transactions that ran at that time.
#[derive(Clone, Copy, Debug)]
struct Asked {
    at: Instant,
    from: u64,
    upto: u64,
}

/// One look.
#[derive(Debug, Default)]
struct Sight {
    facts: SourceFacts,
    lsn: u64,
    freeze_age: i64,
    /// Of the live slot, if it is ours.
    restart: u64,
    confirmed: u64,
    ours: bool,
    /// Since the floor was used last, from Postgres 18 on.
    floor_rests: Option<f64>,
    /// Names the oldest transaction.
    oldest: Option<String>,
}

impl Governor {
    /// Governs until the handle is dropped, or the slots were given up.
    pub(super) fn spawn(self) -> AbortOnDropHandle<()> {
        AbortOnDropHandle::new(tokio::spawn(self.run()))
    }

    async fn run(self) {
        let mut memory = Memory::default();
        // Dropped wherever this ends.
        let _blind = Blind(&self);
        loop {
            let pause = match self.look(&mut memory).await {
                Ok(facts) if facts.pressure == Pressure::GiveUp.as_str() => return,
                Ok(facts) => next_look(&facts, memory.positions.rate()),
                Err(error) => {
                    // The floor's mover meets the same and tells of it.
                    tracing::debug!(slot = self.slots.floor, "the slots cannot be looked at: {error}");
                    LOOK
                }
            };
            sleep(pause).await;
        }
    }

    async fn look(&self, memory: &mut Memory) -> Result<SourceFacts, String> {
        let mut session = self.slots.companion.lock().await.map_err(|error| error.to_string())?;
        let now = Instant::now();
        memory.positions.push(wal_end(&session).await.map_err(|error| describe(&error))?, now);
        let mut sight = self.see(&session, memory, now).await.map_err(|error| describe(&error))?;
        let was = *self.pressure.borrow();
        let held = memory.is_held(&sight);
        if let Some(open) = &mut sight.facts.oldest_transaction {
            open.holds_wal = held;
        }
        let mut pressure =
            if sight.ours { was.judge(&sight.facts, memory.positions.rate(), held) } else { Pressure::None };
        if pressure == Pressure::GiveUp {
            // Told before, for the stream may end before the answer comes.
            tracing::error!(slot = self.slots.floor, "both slots are given up{}", cause(&sight.facts));
            if let Err(error) = self.drop_floor(&session).await {
                tracing::warn!(
                    slot = self.slots.floor,
                    "the floor slot cannot be dropped: {}",
                    describe(&error)
                );
                pressure = Pressure::Shrink;
            }
        }
        if was == Pressure::None && pressure == Pressure::Shrink {
            tracing::warn!(
                slot = self.slots.floor,
                "little WAL may still be kept: the window shrinks{}",
                cause(&sight.facts)
            );
        }
        sight.facts.pressure = pressure.as_str();
        self.tell(&sight, pressure);
        self.pressure.send_if_modified(|old| std::mem::replace(old, pressure) != pressure);
        if pressure == Pressure::Shrink && memory.asks(&sight, now) {
            let written = ask_for_record(&mut session, &self.slots.mark).await;
            let upto = wal_end(&session).await.map_err(|error| describe(&error))?;
            // One that was not written proves nothing about who holds the log.
            memory.asked = written.then_some(Asked { at: now, from: sight.lsn, upto }).or(memory.asked);
        }
        if sight.ours && rests_too_long(&sight) {
            self.touch_floor(&session).await.map_err(|error| describe(&error))?;
        }
        Ok(sight.facts)
    }

    async fn see(
        &self,
        session: &Session,
        memory: &mut Memory,
        now: Instant,
    ) -> Result<Sight, tokio_postgres::Error> {
        // Columns of later versions are read through jsonb, where absent ones are null. Of walsenders our own role's are
        // shown whole; one that is `potential` becomes `sync` when a standby goes.
        const SLOTS: &str = "
            SELECT s.slot_name::text AS name, s.wal_status, s.safe_wal_size AS safe, s.restart_lsn AS restart,
                   s.confirmed_flush_lsn AS confirmed, age(s.catalog_xmin)::int8 AS xmin_age, s.active_pid AS pid,
                   (to_jsonb(s)->>'failover')::bool AS failover, (to_jsonb(s)->>'synced')::bool AS synced,
                   extract(epoch FROM now() - (to_jsonb(s)->>'inactive_since')::timestamptz)::float8 AS rests,
                   (SELECT r.sync_state <> 'async' FROM pg_catalog.pg_stat_replication r WHERE r.pid = s.active_pid)
                       AS synchronous,
                   pg_size_bytes(current_setting('max_slot_wal_keep_size')) AS keep,
                   extract(epoch FROM current_setting('idle_replication_slot_timeout', true)::interval)::float8
                       AS idle_timeout,
                   current_setting('autovacuum_freeze_max_age')::int8 AS freeze_age
            FROM pg_catalog.pg_replication_slots s WHERE s.slot_name IN ($1, $2)";
        // Process and transaction id are for all to see, the rest for `pg_monitor` and one's own role.
        const OLDEST: &str = "
            SELECT a.pid, NULL AS gid, a.usename::text AS usename, a.datname::text AS datname, a.application_name,
                   extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds,
                   extract(epoch FROM clock_timestamp() - a.query_start)::float8 AS query_seconds,
                   a.backend_xid::text AS xid, age(a.backend_xid) AS age
            FROM pg_catalog.pg_stat_activity a WHERE a.backend_xid IS NOT NULL
            UNION ALL
            SELECT NULL, p.gid, p.owner::text, p.database::text, NULL,
                   extract(epoch FROM clock_timestamp() - p.prepared)::float8, NULL,
                   p.transaction::text, age(p.transaction)
            FROM pg_catalog.pg_prepared_xacts p
            ORDER BY age DESC LIMIT 1";
        let oldest = session.query_typed_opt(OLDEST, &[]).await?;
        let lsn = wal_end(session).await?;
        let rows = session
            .query_typed(SLOTS, &[(&self.slots.floor, Type::TEXT), (&self.slots.live, Type::TEXT)])
            .await?;
        let mut sight = Sight { lsn, ..Sight::default() };
        let mut slots = BTreeMap::new();
        for row in &rows {
            let name: String = row.try_get("name")?;
            let position = |column| row.try_get::<_, Option<PgLsn>>(column).map(|lsn| lsn.map(u64::from));
            let (restart, confirmed) = (position("restart")?, position("confirmed")?);
            let keep: i64 = row.try_get("keep")?;
            sight.facts.wal_keep_bytes_max = u64::try_from(keep).ok();
            sight.facts.idle_slot_timeout_seconds =
                some(row, "idle_timeout")?.filter(|seconds| *seconds > 0.0);
            sight.freeze_age = row.try_get("freeze_age")?;
            let behind = |position: Option<u64>| {
                let position = position.unwrap_or(lsn);
                (lsn.saturating_sub(position), memory.positions.age(position, now).as_secs())
            };
            let (retained, lag) = (behind(restart), behind(confirmed));
            let facts = SlotFacts {
                wal_status: some(row, "wal_status")?.unwrap_or_default(),
                safe_bytes: some(row, "safe")?,
                retained_bytes: retained.0,
                retained_seconds: retained.1,
                lag_bytes: lag.0,
                lag_seconds: lag.1,
                catalog_xmin_age: some(row, "xmin_age")?,
                failover: some(row, "failover")?,
                synced: some(row, "synced")?,
                name,
            };
            if facts.name == self.slots.live {
                sight.ours = some::<i32>(row, "pid")? == Some(self.slots.walsender);
                sight.facts.synchronous = sight.ours && some(row, "synchronous")?.unwrap_or(false);
                (sight.restart, sight.confirmed) = (restart.unwrap_or(lsn), confirmed.unwrap_or(lsn));
                slots.insert("live", facts);
            } else {
                sight.floor_rests = some(row, "rests")?;
                slots.insert("floor", facts);
            }
        }
        sight.facts.slots = slots;
        sight.facts.standbys = self.standbys.as_ref().map_or_else(Vec::new, |seen| seen.borrow().clone());
        let seconds = |row: &Row, column| {
            some::<f64>(row, column).map(|seconds| seconds.map(|seconds| seconds.max(0.0) as u64))
        };
        if let Some(row) = oldest {
            let (pid, prepared) = (some::<i32>(&row, "pid")?, some::<String>(&row, "gid")?);
            let identity = format!("{pid:?} {}", row.try_get::<_, String>("xid")?);
            let since = memory.oldest_since(identity.clone(), now);
            sight.oldest = Some(identity);
            sight.facts.oldest_transaction = Some(TransactionFacts {
                pid,
                prepared,
                user: some(&row, "usename")?,
                database: some(&row, "datname")?,
                application: some(&row, "application_name")?,
                seconds: seconds(&row, "seconds")?.unwrap_or(now.duration_since(since).as_secs()),
                query_seconds: seconds(&row, "query_seconds")?,
                holds_wal: false,
            });
        } else {
            memory.oldest = None;
        }
        Ok(sight)
    }

    /// Writes down what was seen.
    fn tell(&self, sight: &Sight, pressure: Pressure) {
        let facts = &sight.facts;
        let source = |name| gauge!(name, names::LABEL_SOURCE => self.slots.floor.clone());
        source(names::SLOT_PRESSURE).set(f64::from(pressure as u8));
        source(names::SLOT_KEEP_BYTES_MAX).set(facts.wal_keep_bytes_max.map_or(-1.0, |bytes| bytes as f64));
        let lacking = facts.standbys.iter().filter(|standby| standby.copy != Copy::Lasting).count();
        source(names::STANDBYS_UNSYNCED).set(lacking as f64);
        let seconds = facts.oldest_transaction.as_ref().map_or(0, |open| open.seconds);
        source(names::OLDEST_TRANSACTION_SECONDS).set(seconds as f64);
        for which in SLOTS {
            let set = |name, value| self.set(name, which, value);
            let Some(slot) = facts.slots.get(which) else {
                SLOT_GAUGES.iter().for_each(|name| set(name, f64::NAN));
                continue;
            };
            let status = ["reserved", "extended", "unreserved"];
            let status = status.iter().position(|status| **status == slot.wal_status).unwrap_or(status.len());
            set(names::SLOT_STATUS, status as f64);
            set(names::SLOT_RETAINED_BYTES, slot.retained_bytes as f64);
            set(names::SLOT_RETAINED_SECONDS, slot.retained_seconds as f64);
            set(names::SLOT_LAG_BYTES, slot.lag_bytes as f64);
            set(names::SLOT_LAG_SECONDS, slot.lag_seconds as f64);
            let known = [
                (names::SLOT_SAFE_BYTES, slot.safe_bytes),
                (names::SLOT_CATALOG_XMIN_AGE, slot.catalog_xmin_age),
                (names::SLOT_FAILOVER, slot.failover.map(i64::from)),
            ];
            for (name, value) in known {
                if let Some(value) = value {
                    set(name, value as f64);
                }
            }
        }
        let problems = [(Part::Slot, losing(facts)), (Part::Retention, advice(facts, sight.freeze_age))];
        for (part, problem) in problems {
            match problem {
                Some(problem) => _ = self.slots.health.unwell(part, problem),
                None => self.slots.health.well(part),
            }
        }
        self.slots.health.saw(facts.clone(), std::time::Instant::now());
    }

    /// A gauge of one of the slots.
    fn set(&self, name: &'static str, which: &'static str, value: f64) {
        gauge!(name, names::LABEL_SOURCE => self.slots.floor.clone(), names::LABEL_SLOT => which).set(value);
    }

    /// The live slot goes with its connection, which ends when the stream hears of it.
    async fn drop_floor(&self, session: &Session) -> Result<(), tokio_postgres::Error> {
        const DROP: &str = "
            SELECT pg_catalog.pg_drop_replication_slot(f.slot_name)
            FROM pg_catalog.pg_replication_slots l, pg_catalog.pg_replication_slots f
            WHERE l.slot_name = $1 AND l.active_pid = $2 AND f.slot_name = $3";
        session.execute_typed(DROP, &self.slots.parameters(&[])).await?;
        Ok(())
    }

    /// Moves the floor to where it is, which counts as use.
    async fn touch_floor(&self, session: &Session) -> Result<(), tokio_postgres::Error> {
        // Not while that would wait for a standby.
        let touch = format!(
            "SELECT (pg_catalog.pg_replication_slot_advance(f.slot_name, f.confirmed_flush_lsn)).end_lsn
            FROM {STANDBYS_CONFIRMED} AS s, pg_catalog.pg_replication_slots l, pg_catalog.pg_replication_slots f
            WHERE l.slot_name = $1 AND l.active_pid = $2 AND f.slot_name = $3
                AND (s.lsn IS NULL OR s.lsn >= f.confirmed_flush_lsn)"
        );
        session.execute_typed(&touch, &self.slots.parameters(&[])).await?;
        Ok(())
    }
}

/// Ends what was told, once nobody looks any more: figures of the past must not pass for those of now. That the slots
/// were given up stays true.
struct Blind<'a>(&'a Governor);

impl Drop for Blind<'_> {
    fn drop(&mut self) {
        let Governor { slots, pressure, standbys: _ } = self.0;
        for which in SLOTS {
            SLOT_GAUGES.iter().for_each(|name| self.0.set(name, which, f64::NAN));
        }
        let source = |name| gauge!(name, names::LABEL_SOURCE => slots.floor.clone());
        if *pressure.borrow() != Pressure::GiveUp {
            source(names::SLOT_PRESSURE).set(f64::NAN);
        }
        source(names::SLOT_KEEP_BYTES_MAX).set(f64::NAN);
        source(names::STANDBYS_UNSYNCED).set(f64::NAN);
        source(names::OLDEST_TRANSACTION_SECONDS).set(f64::NAN);
        [Part::Slot, Part::Retention].into_iter().for_each(|part| slots.health.well(part));
        slots.health.sees_nothing();
    }
}

impl Memory {
    /// Since when this one is the oldest that is open, as far as was seen.
    fn oldest_since(&mut self, identity: String, now: Instant) -> Instant {
        match &self.oldest {
            Some((known, since)) if *known == identity => *since,
            _ => self.oldest.insert((identity, now)).1,
        }
    }

    /// Whether a transaction is known to hold the log.
    fn is_held(&self, sight: &Sight) -> bool {
        let (Some(asked), Some((_, since))) = (self.asked, &self.oldest) else { return false };
        sight.oldest.is_some()
            && *since <= asked.at
            && sight.restart < asked.from
            && sight.confirmed >= asked.upto
    }

    /// Whether to ask for a record of running transactions, without which the live slot's `restart_lsn` stays. Not
    /// while the last one may still take effect; seldom while a transaction holds the log.
    fn asks(&self, sight: &Sight, now: Instant) -> bool {
        let Some(asked) = self.asked else { return true };
        let fresh = sight.facts.wal_keep_bytes_max.unwrap_or(u64::MAX) / 16;
        let pause = if self.is_held(sight) { LOOK } else { LOOK / 5 };
        let effective = sight.restart >= asked.from && sight.lsn.saturating_sub(asked.upto) >= fresh;
        effective || now.duration_since(asked.at) >= pause
    }
}

/// A slot that rests is invalidated; a third of the time leaves room for a server that is slow.
fn rests_too_long(sight: &Sight) -> bool {
    match (sight.facts.idle_slot_timeout_seconds, sight.floor_rests) {
        (Some(timeout), Some(rests)) => rests >= timeout / 3.0,
        _ => false,
    }
}

async fn wal_end(session: &Session) -> Result<u64, tokio_postgres::Error> {
    let row = session.query_typed_one("SELECT pg_catalog.pg_current_wal_lsn()", &[]).await?;
    row.try_get::<_, PgLsn>(0).map(u64::from)
}

fn some<'a, T: FromSql<'a>>(row: &'a Row, column: &str) -> Result<Option<T>, tokio_postgres::Error> {
    row.try_get(column)
}
