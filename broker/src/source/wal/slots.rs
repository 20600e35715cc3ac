//! The two slots of a connection, and what those need who look after them.

use std::sync::Arc;

use tokio_postgres::types::{ToSql, Type};

use crate::health::Health;
use crate::postgres::Companion;
use crate::source::Config;

/// A subquery: `lsn` is what all standbys of `synchronized_standby_slots` have (null: none is listed), `gone` names
/// those that are not connected.
pub(super) const STANDBYS_CONFIRMED: &str = r#"(
    SELECT min(coalesce(p.restart_lsn, '0/0')) AS lsn,
           string_agg(n.name, ', ') FILTER (WHERE p.active_pid IS NULL) AS gone
    FROM regexp_split_to_table(current_setting('synchronized_standby_slots', true), '[\s",]+') AS n(name)
    LEFT JOIN pg_catalog.pg_replication_slots p
        ON p.slot_name = n.name AND p.slot_type = 'physical' AND p.wal_status <> 'lost'
    WHERE n.name <> '')"#;

/// The same where the server knows no such setting.
pub(super) const NO_STANDBYS: &str = "(SELECT NULL::pg_lsn AS lsn, NULL::text AS gone)";

/// Shared by the floor's mover and the governor. Both act only while `live` is held by `walsender`.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    pub(super) companion: Arc<Companion>,
    pub(super) health: Arc<Health>,
    /// The floor.
    pub(super) floor: String,
    pub(super) live: String,
    pub(super) mark: String,
    /// The process of our own walsender.
    pub(super) walsender: i32,
}

/// A value, and which type the statement is to take it for.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

impl Slots {
    pub(super) fn new(
        config: &Config,
        companion: &Arc<Companion>,
        health: &Arc<Health>,
        walsender: i32,
    ) -> Self {
        Self {
            companion: Arc::clone(companion),
            health: Arc::clone(health),
            floor: config.slot.clone(),
            live: config.live_slot(),
            mark: config.mark_slot(),
            walsender,
        }
    }

    /// What every statement that acts only while `live` is ours begins with, `$1` to `$3`: `live`, the walsender's
    /// process and the floor. Then `more`.
    pub(super) fn parameters<'a>(&'a self, more: &[Parameter<'a>]) -> Vec<Parameter<'a>> {
        let ours: [Parameter<'a>; 3] =
            [(&self.live, Type::TEXT), (&self.walsender, Type::INT4), (&self.floor, Type::TEXT)];
        ours.iter().chain(more).cloned().collect()
    }
}
