//! What the server must be and have before anything is made. Every problem is found in one run, and each
//! is one line with its remedy.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::statements::ident;
use super::{SetupError, SetupOptions};
use crate::source::{SourceKind, server};

/// What was found of the server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// What concerns the broker, too.
    server: server::Server,
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
        let server = server::Server::look(client).await.map_err(failed)?;
        if let Some(problem) = server.wrong_one(SourceKind::Wal) {
            return Err(SetupError::Server(vec![problem]));
        }
        let live = format!("{}_live", options.source);
        let sql = "SELECT current_setting('max_slot_wal_keep_size'), current_setting('max_replication_slots')::int4,
                (SELECT count(*) FROM pg_replication_slots),
                (SELECT count(*) FROM pg_replication_slots WHERE slot_name IN ($1, $2)),
                current_setting('max_wal_senders')::int4, (SELECT count(*) FROM pg_stat_replication),
                nullif(current_setting('idle_replication_slot_timeout', true), '0')";
        let row = client
            .query_typed_one(sql, &[(&options.source, Type::TEXT), (&live, Type::TEXT)])
            .await
            .map_err(failed)?;
        Ok(Self {
            server,
            keep_size: row.get(0),
            slots_max: row.get(1),
            slots_used: row.get(2),
            slots_ours: row.get(3),
            senders_max: row.get(4),
            senders_used: row.get(5),
            idle_slot_timeout: row.get(6),
        })
    }

    /// As `server_version_num`.
    pub(super) fn version(&self) -> i32 {
        self.server.version_num
    }

    /// # Errors
    /// All reasons why the server cannot carry a broker.
    pub(super) fn refuse(&self, options: &SetupOptions) -> Result<(), SetupError> {
        let problems = self.problems(options);
        if problems.is_empty() { Ok(()) } else { Err(SetupError::Server(problems)) }
    }

    /// The same as lines, each with its remedy.
    pub(super) fn problems(&self, options: &SetupOptions) -> Vec<String> {
        let mut problems = self.server.problems(SourceKind::Wal);
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
    denied_to(client, role).await?.then(|| {
        format!(
            "role {role} may not use replication yet; ALTER ROLE {} REPLICATION, or on a managed service grant \
             it the service's replication role",
            ident(role)
        )
    })
}

/// Whether the role may not use replication; `None`: this session cannot find out.
async fn denied_to(client: &mut Client, role: &str) -> Option<bool> {
    let transaction = client.transaction().await.ok()?;
    transaction.batch_execute(&format!("SET LOCAL ROLE {}", ident(role))).await.ok()?;
    let tried = transaction.batch_execute(PROBE).await;
    Some(tried.is_err_and(|error| error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)))
}

/// The attributes that the broker's role, which exists, lacks for this source.
///
/// # Errors
/// The role cannot be looked at.
pub(super) async fn role_lacks(
    client: &mut Client,
    options: &SetupOptions,
) -> Result<Vec<&'static str>, SetupError> {
    let Some(role) = &options.broker_role else { return Ok(Vec::new()) };
    let sql = "SELECT rolcanlogin, rolreplication OR rolsuper FROM pg_roles WHERE rolname = $1";
    let row = client.query_typed_one(sql, &[(role, Type::TEXT)]).await;
    let row = row.map_err(|error| SetupError::from_postgres("looking at the broker's role", &error))?;
    let (login, flag): (bool, bool) = (row.get(0), row.get(1));
    let mut lacks = Vec::new();
    if !login {
        lacks.push("LOGIN");
    }
    // A service's own role gives the right without the flag.
    if options.kind == SourceKind::Wal && !flag && denied_to(client, role).await.unwrap_or(true) {
        lacks.push("REPLICATION");
    }
    Ok(lacks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Server {
        Server {
            server: server::Server {
                version_num: 150_000,
                version: "15.0".into(),
                standby: false,
                wal_level: "logical".into(),
                encoding: "UTF8".into(),
                database: "app".into(),
            },
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
        check(Server { keep_size: "-1".into(), ..good() }, &["--accept-unbounded-wal"]);
        check(Server { slots_used: 9, ..good() }, &["max_replication_slots"]);
        check(Server { slots_used: 10, slots_ours: 2, senders_used: 10, ..good() }, &[]);
        check(Server { slots_used: 10, slots_ours: 1, ..good() }, &["1 more replication slots"]);
        check(Server { senders_used: 10, ..good() }, &["max_wal_senders"]);
        let mut latin = good();
        (latin.server.encoding, latin.keep_size) = ("LATIN1".into(), "-1".into());
        check(latin, &["LATIN1", "--accept-unbounded-wal"]);
    }
}
