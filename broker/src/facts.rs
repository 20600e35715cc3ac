//! Figures of the source for operators: plain facts, which the source writes and the admin listener reads.
//!
//! Nothing here judges them; what is wrong is said in [`crate::health`].

use std::collections::BTreeMap;

use serde::Serialize;

/// The slots of one source, and what bears on them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SourceFacts {
    /// `floor` and `live`; one that does not exist is absent.
    pub slots: BTreeMap<&'static str, SlotFacts>,
    /// The server's `max_slot_wal_keep_size` in bytes; `None` without a limit.
    pub wal_keep_bytes_max: Option<u64>,
    /// The server's `idle_replication_slot_timeout`, from Postgres 18 on; `None` without one.
    pub idle_slot_timeout_seconds: Option<f64>,
    /// Whether the server takes the stream for a synchronous standby, so that commits wait for it.
    pub synchronous: bool,
    /// The standbys among the hosts of the connection string, from Postgres 17 on.
    pub standbys: Vec<StandbyFacts>,
    /// The oldest transaction that has written and is open.
    pub oldest_transaction: Option<TransactionFacts>,
    /// `none`, `shrink` (the window shrinks to let WAL go) or `give_up`.
    pub pressure: &'static str,
}

/// One slot.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SlotFacts {
    /// Its name.
    pub name: String,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: String,
    /// Bytes that may be written before it loses WAL; `None` without a limit. Below zero: more than it may.
    pub safe_bytes: Option<i64>,
    /// Bytes of WAL that it keeps,
    pub retained_bytes: u64,
    /// and how long ago the log ended there, as far as it was watched.
    pub retained_seconds: u64,
    /// Bytes of WAL behind what it has confirmed,
    pub lag_bytes: u64,
    /// and the same as time.
    pub lag_seconds: u64,
    /// Transactions since the oldest whose catalog rows it keeps.
    pub catalog_xmin_age: Option<i64>,
    /// Whether standbys may copy it; `None` before Postgres 17.
    pub failover: Option<bool>,
    /// Whether it is such a copy; `None` before Postgres 17.
    pub synced: Option<bool>,
}

/// A standby.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StandbyFacts {
    /// Host and port.
    pub host: String,
    /// Whether the floor is there, too.
    pub copy: Copy,
}

/// What a standby has of the floor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Copy {
    /// A copy that is there after a promotion.
    Lasting,
    /// A copy that a promotion would drop, for it keeps less than the floor.
    Passing,
    /// None.
    None,
    /// It does not say.
    Unknown(String),
}

/// An open transaction.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TransactionFacts {
    /// The process that runs it; `None` for a prepared one.
    pub pid: Option<i32>,
    /// The name of a prepared one.
    pub prepared: Option<String>,
    /// Its user,
    pub user: Option<String>,
    /// its database,
    pub database: Option<String>,
    /// and the program, as it names itself.
    pub application: Option<String>,
    /// Since it began. Others' transactions show that only to `pg_monitor`: without it, since it was seen first.
    pub seconds: u64,
    /// WAL is kept for it for certain; else that is not known.
    pub holds_wal: bool,
    /// Since its last statement began, where that may be seen.
    pub query_seconds: Option<u64>,
}
