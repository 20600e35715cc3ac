//! Leaves a server that was given as it was: no session of ours, no slot, no database.
//!
//! A slot that is left keeps the server's log for ever, and fills its disk. So every step is tried, whatever became
//! of the one before, and what could not be removed is named with the statements that remove it. It must never touch
//! what another run, or anybody else, has there: all of ours bears the run's name.

use std::path::Path;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use walcast::postgres::Session;

use super::broker;
use super::postgres::Postgres;
use super::process;
use crate::Error;

/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a session may take to end that was told to, in milliseconds.
const SESSION_END_MS: i64 = 10_000;
/// How often it is tried to drop a slot that somebody still holds, and the time between.
const SLOT_TRIES: u32 = 20;
const BETWEEN: Duration = Duration::from_millis(500);
/// The same of a database, for which the server itself waits a few seconds.
const DATABASE_TRIES: u32 = 2;

/// Removes all that this run made on the server.
///
/// # Errors
/// All that failed, and how to remove what is left.
pub(super) async fn clear(binary: &Path, postgres: &Postgres, given: &str) -> Result<(), Error> {
    let mut failures = Vec::new();
    let mut tell = |done: Result<(), Error>| failures.extend(done.err().map(|error| error.message));
    // Else they would go on: a statement does not end with its client.
    tell(within("end our sessions", end_sessions(postgres, given)).await);
    match within("look for our database", is_there(postgres, given)).await {
        Ok(false) => {}
        found => {
            tell(found.map(|_| ()));
            tell(within("take down what was set up", take_down(binary, postgres)).await);
            tell(within("drop our slots", drop_slots(postgres)).await);
            tell(within("drop our database", drop_database(postgres, given)).await);
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    let left = within("look for what is left", left(postgres, given)).await;
    let remedy = remedy(postgres.name(), left.ok());
    Err(Error::failed(format!("the given server is not as it was: {}; {remedy}", failures.join("; "))))
}

async fn within<T>(what: &str, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = || Error::failed(format!("cannot {what}: not done after {PATIENCE:?}"));
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(late()))
}

async fn end_sessions(postgres: &Postgres, given: &str) -> Result<(), Error> {
    let session = postgres.session_at(given).await?;
    let sql = "select pg_terminate_backend(pid, $2) from pg_stat_activity
               where application_name = $1 and pid <> pg_backend_pid()";
    let ended = session.query(sql, &[&postgres.application_name(), &SESSION_END_MS]).await;
    ended.map_err(Error::sql("cannot end our sessions"))?;
    session.close().await;
    Ok(())
}

async fn is_there(postgres: &Postgres, given: &str) -> Result<bool, Error> {
    let session = postgres.session_at(given).await?;
    let found = session.query("select from pg_database where datname = $1", &[&postgres.name()]).await;
    let there = !found.map_err(Error::sql("cannot look for our database"))?.is_empty();
    session.close().await;
    Ok(there)
}

/// By the broker's own command, with a file that names no more than it needs.
async fn take_down(binary: &Path, postgres: &Postgres) -> Result<(), Error> {
    let dir = process::make_dir()?;
    let file = dir.join("walcast.toml");
    let name = postgres.name();
    let text = format!("[source]\nslot = '{name}'\npublication = '{name}'\n");
    std::fs::write(&file, text).map_err(Error::of("cannot write a configuration"))?;
    broker::take_down(binary, postgres, &file).await
}

/// Those that setup does not know, and those that could not be taken down.
async fn drop_slots(postgres: &Postgres) -> Result<(), Error> {
    let session = postgres.session().await?;
    for slot in slots(&session, postgres.name()).await? {
        let sql = format!("select pg_drop_replication_slot('{slot}')");
        let failed = format!("cannot drop the slot {slot}");
        tries(&session, &sql, SLOT_TRIES).await.map_err(Error::sql(&failed))?;
    }
    session.close().await;
    Ok(())
}

async fn drop_database(postgres: &Postgres, given: &str) -> Result<(), Error> {
    let session = postgres.session_at(given).await?;
    let name = postgres.name();
    let failed = format!("cannot drop the database {name}");
    let dropped = tries(&session, &format!("drop database if exists {name}"), DATABASE_TRIES).await;
    session.close().await;
    dropped.map_err(Error::sql(&failed))
}

/// Whoever holds it is about to end: a server notices late that a client is gone.
async fn tries(session: &Session, sql: &str, times: u32) -> Result<(), tokio_postgres::Error> {
    for _ in 1..times {
        if session.batch_execute(sql).await.is_ok() {
            return Ok(());
        }
        sleep(BETWEEN).await;
    }
    session.batch_execute(sql).await
}

async fn slots(session: &Session, name: &str) -> Result<Vec<String>, Error> {
    let sql = "select slot_name::text from pg_replication_slots where database = $1 order by 1";
    let rows = session.query(sql, &[&name]).await.map_err(Error::sql("cannot look for our slots"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The slots, and whether the database is there.
async fn left(postgres: &Postgres, given: &str) -> Result<(Vec<String>, bool), Error> {
    let session = postgres.session_at(given).await?;
    let slots = slots(&session, postgres.name()).await?;
    session.close().await;
    Ok((slots, is_there(postgres, given).await?))
}

/// What to do about what is left; `None`: nobody could look.
fn remedy(name: &str, left: Option<(Vec<String>, bool)>) -> String {
    let Some((slots, database)) = left else {
        return format!(
            "there may be slots left whose names begin with {name}, which hold back the server's log, and the \
             database {name}: drop them by hand"
        );
    };
    let slots = slots.into_iter().map(|slot| format!("SELECT pg_drop_replication_slot('{slot}');"));
    let database = database.then(|| format!("DROP DATABASE {name};"));
    let statements: Vec<String> = slots.chain(database).collect();
    match statements.is_empty() {
        true => "nothing is left there".to_owned(),
        false => format!("remove what is left by hand: {}", statements.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_names_what_is_left() {
        let check = |left, parts: &[&str]| {
            let text = remedy("lt", left);
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        };
        let slots = || vec!["lt".to_owned(), "lt_peer".to_owned()];
        check(
            Some((slots(), true)),
            &["replication_slot('lt')", "replication_slot('lt_peer')", "DROP DATABASE lt;"],
        );
        check(Some((Vec::new(), true)), &["by hand: DROP DATABASE lt;"]);
        check(Some((Vec::new(), false)), &["nothing is left"]);
        check(None, &["begin with lt", "database lt"]);
    }
}
