//! What the server must be and have before anything is made. Every problem is found in one run, and each
//! is one line with its remedy.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::statements::ident;
use super::{SetupError, SetupOptions};

/// Before 14, pgoutput sends no messages.
const VERSION_MIN: i32 = 140_000;

pub(super) const STANDBY: &str = "the server is a standby (in recovery); connect to the primary";

/// Why a database of this encoding cannot be used.
pub(super) fn encoding_problem(encoding: &str) -> Option<String> {
    (encoding != "UTF8").then(|| {
        format!(
            "the database's encoding is {encoding}, but topics and events are UTF-8; \
             move to a database created with ENCODING 'UTF8'"
        )
    })
}

/// What was found of the server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// As `server_version_num`.
    pub(super) version: i32,
    in_recovery: bool,
    wal_level: String,
    encoding: String,
    keep_size: String,
    slots_max: i32,
    slots_used: i64,
    /// The floor and live slots that exist already.
    slots_ours: i64,
    senders_max: i32,
    senders_used: i64,
    idle_slot_timeout: Option<String>,
}

impl Server {
    pub(super) async fn read(client: &Client, options: &SetupOptions) -> Result<Self, SetupError> {
        let failed = |error| SetupError::from_postgres("looking at the server", &error);
        let sql = "SELECT current_setting('server_version_num')::int4";
        let version: i32 = client.query_typed_one(sql, &[]).await.map_err(failed)?.get(0);
        if version < VERSION_MIN {
            return Err(SetupError::Server(vec![format!(
                "the server is Postgres {}, but only 14 and later send messages to logical decoding; upgrade it",
                version / 10_000
            )]));
        }
        let live = format!("{}_live", options.source);
        let sql = "SELECT pg_is_in_recovery(), current_setting('wal_level'), getdatabaseencoding()::text,
                current_setting('max_slot_wal_keep_size'), current_setting('max_replication_slots')::int4,
                (SELECT count(*) FROM pg_replication_slots),
                (SELECT count(*) FROM pg_replication_slots WHERE slot_name IN ($1, $2)),
                current_setting('max_wal_senders')::int4, (SELECT count(*) FROM pg_stat_replication),
                nullif(current_setting('idle_replication_slot_timeout', true), '0')";
        let row = client
            .query_typed_one(sql, &[(&options.source, Type::TEXT), (&live, Type::TEXT)])
            .await
            .map_err(failed)?;
        Ok(Self {
            version,
            in_recovery: row.get(0),
            wal_level: row.get(1),
            encoding: row.get(2),
            keep_size: row.get(3),
            slots_max: row.get(4),
            slots_used: row.get(5),
            slots_ours: row.get(6),
            senders_max: row.get(7),
            senders_used: row.get(8),
            idle_slot_timeout: row.get(9),
        })
    }

    /// # Errors
    /// All reasons why the server cannot carry a broker.
    pub(super) fn refuse(&self, options: &SetupOptions) -> Result<(), SetupError> {
        let problems = self.problems(options);
        if problems.is_empty() { Ok(()) } else { Err(SetupError::Server(problems)) }
    }

    fn problems(&self, options: &SetupOptions) -> Vec<String> {
        if self.in_recovery {
            // Whatever else is wrong with it does not matter.
            return vec![STANDBY.into()];
        }
        let mut problems = Vec::new();
        // From 19 on a server at `replica` turns logical when the first logical slot is created.
        if self.wal_level != "logical" && !(self.version >= 190_000 && self.wal_level == "replica") {
            problems.push(format!(
                "wal_level is {}, but the WAL must carry logical changes; \
                 ALTER SYSTEM SET wal_level = 'logical' and restart the server; where that cannot be had, \
                 `walcast setup --source outbox` (docs/outbox.md)",
                self.wal_level
            ));
        }
        problems.extend(encoding_problem(&self.encoding));
        if self.keep_size == "-1" && !options.accept_unbounded_wal {
            problems.push(
                "max_slot_wal_keep_size is -1, so while no broker runs its slot keeps WAL until the disk is \
                 full; ALTER SYSTEM SET max_slot_wal_keep_size = '10GB' and reload, or pass \
                 --accept-unbounded-wal"
                    .into(),
            );
        }
        // The floor slot and its live copy.
        let (free, missing) = (i64::from(self.slots_max) - self.slots_used, 2 - self.slots_ours);
        if free < missing {
            problems.push(format!(
                "walcast needs {missing} more replication slots, but {} of {} are in use; raise \
                 max_replication_slots and restart the server, or drop unused slots",
                self.slots_used, self.slots_max
            ));
        }
        // A live slot belongs to a walsender that is counted already.
        if i64::from(self.senders_max) <= self.senders_used && self.slots_ours < 2 {
            problems.push(format!(
                "walcast needs one walsender, but {} of {} are in use; raise max_wal_senders and restart the server",
                self.senders_used, self.senders_max
            ));
        }
        problems
    }

    pub(super) fn warnings(&self, options: &SetupOptions) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.keep_size == "-1" {
            warnings.push(
                "max_slot_wal_keep_size is -1: while no broker runs, WAL grows until the disk is full".into(),
            );
        }
        if let Some(timeout) = &self.idle_slot_timeout {
            warnings.push(format!(
                "idle_replication_slot_timeout is {timeout}: a floor slot that rests longer is invalidated and \
                 clients lose their place; set it to 0 or well above the longest pause of the broker"
            ));
        }
        warnings.extend(options.tables.iter().filter(|table| table.columns.is_some()).map(|table| {
            format!(
                "{table} is published with a column list: if its replica identity ever leaves the list, the \
                 application's UPDATE and DELETE fail (42P10)"
            )
        }));
        warnings
    }
}

/// Asks the server itself: moving a slot that does not exist is refused for want of privilege before it is
/// refused for want of the slot. (Managed services grant replication by roles of their own, so the
/// catalog's flag says little.)
const PROBE: &str = "SELECT pg_replication_slot_advance('walcast_no_such_slot', '0/1')";

/// Whether the session's role may not use replication.
pub(in crate::cli) async fn replication_denied(client: &Client) -> bool {
    let tried = client.batch_execute(PROBE).await;
    tried.is_err_and(|error| error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE))
}

/// # Errors
/// The session's role may not use replication.
pub(super) async fn may_replicate(client: &Client) -> Result<(), SetupError> {
    if !replication_denied(client).await {
        return Ok(());
    }
    let row = client.query_typed_one("SELECT current_user::text", &[]).await;
    let role = row.map_or_else(|_| "<role>".into(), |row| row.get::<_, String>(0));
    Err(SetupError::Denied(format!(
        "role {role} may not create a replication slot; ALTER ROLE {} REPLICATION (on a managed service its \
         replication role: GRANT rds_replication TO …), or let a role that may run what \
         `walcast setup --print-sql=broker` prints",
        ident(&role)
    )))
}

/// A warning if the broker's role may not use replication, as far as this session can find out.
pub(super) async fn role_may_replicate(client: &mut Client, role: &str) -> Option<String> {
    let transaction = client.transaction().await.ok()?;
    transaction.batch_execute(&format!("SET LOCAL ROLE {}", ident(role))).await.ok()?;
    let denied = match transaction.batch_execute(PROBE).await {
        Err(error) => error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE),
        Ok(()) => false,
    };
    denied.then(|| {
        format!(
            "role {role} may not use replication yet; ALTER ROLE {} REPLICATION, or on a managed service grant \
             it the service's replication role",
            ident(role)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Server {
        Server {
            version: 150_000,
            in_recovery: false,
            wal_level: "logical".into(),
            encoding: "UTF8".into(),
            keep_size: "1GB".into(),
            slots_max: 10,
            slots_used: 8,
            slots_ours: 0,
            senders_max: 10,
            senders_used: 9,
            idle_slot_timeout: None,
        }
    }

    #[test]
    fn each_problem_is_named() {
        let check = |server: Server, expected: &[&str]| {
            let problems = server.problems(&SetupOptions::default());
            assert_eq!(problems.len(), expected.len(), "{problems:?}");
            for (problem, word) in problems.iter().zip(expected) {
                assert!(problem.contains(word), "{problem}");
            }
        };
        check(good(), &[]);
        check(Server { in_recovery: true, slots_used: 10, ..good() }, &["standby"]);
        check(Server { wal_level: "replica".into(), ..good() }, &["wal_level"]);
        check(Server { wal_level: "replica".into(), version: 190_000, ..good() }, &[]);
        check(Server { wal_level: "minimal".into(), version: 190_000, ..good() }, &["wal_level"]);
        check(Server { encoding: "LATIN1".into(), ..good() }, &["LATIN1"]);
        check(Server { keep_size: "-1".into(), ..good() }, &["--accept-unbounded-wal"]);
        check(Server { slots_used: 9, ..good() }, &["max_replication_slots"]);
        check(Server { slots_used: 10, slots_ours: 2, senders_used: 10, ..good() }, &[]);
        check(Server { slots_used: 10, slots_ours: 1, ..good() }, &["1 more replication slots"]);
        check(Server { senders_used: 10, ..good() }, &["max_wal_senders"]);
        check(
            Server { encoding: "LATIN1".into(), wal_level: "replica".into(), ..good() },
            &["wal_level", "LATIN1"],
        );
    }
}
