//! What the server says of itself and of the tables, before anything starts.

use std::sync::Arc;

use tokio_postgres::Client;

use super::table;
use crate::postgres::Companion;
use crate::router::TableFacts;
use crate::source::failure::Failure;
use crate::source::tables::{self, Publishing, failed};
use crate::source::{Config, SourceError, SourceKind};

/// The oldest server that tells transaction ids of 64 bits.
const VERSION_MIN: i32 = 130_000;

/// Makes sure that the outbox is there and written to, then reads what the rules are to be compared with; tables that
/// do not exist are absent.
///
/// # Errors
/// What is missing, with the remedy; [`Retry::After`](crate::source::Retry::After) where it may come by itself.
pub async fn read(
    companion: &Companion,
    config: &Config,
    names: &[Arc<str>],
) -> Result<Vec<TableFacts>, SourceError> {
    let read = async {
        let session = companion.lock().await?;
        if let Some(problem) = look(&session).await.map_err(failed)?.problem() {
            return Err(Failure::needs_operator(problem));
        }
        let carry = table::standing(&session, &config.slot).await?.carry;
        if carry != SourceKind::Outbox.as_str() {
            return Err(Failure::needs_operator(format!(
                "what is published goes another way (walcast.settings.carry is `{carry}`), and does not come here: run \
                 `walcast setup --source outbox`, or set source.kind = \"{carry}\""
            )));
        }
        tables::facts(&session, names, Publishing::Triggers).await
    };
    read.await.map_err(|failure: Failure| failure.into_error(false, config))
}

/// The end of the newest tick: what was written before it was made is told before this.
///
/// # Errors
/// The server cannot be asked.
pub async fn end(companion: &Companion, config: &Config) -> Result<u64, SourceError> {
    let read = async {
        let session = companion.lock().await?;
        Ok(table::standing(&session, &config.slot).await?.last + 1)
    };
    read.await.map_err(|failure: Failure| failure.into_error(true, config))
}

/// What there is of all that the broker needs.
#[derive(Clone, Debug)]
struct Server {
    version_num: i32,
    version: String,
    standby: bool,
    encoding: String,
    database: String,
    outbox: bool,
}

async fn look(client: &Client) -> Result<Server, tokio_postgres::Error> {
    const SQL: &str = "
        SELECT current_setting('server_version_num')::int4, current_setting('server_version'), pg_is_in_recovery(),
               current_setting('server_encoding'), current_database()::text, to_regclass('walcast.outbox') IS NOT NULL";
    let row = client.query_typed_one(SQL, &[]).await?;
    Ok(Server {
        version_num: row.try_get(0)?,
        version: row.try_get(1)?,
        standby: row.try_get(2)?,
        encoding: row.try_get(3)?,
        database: row.try_get(4)?,
        outbox: row.try_get(5)?,
    })
}

impl Server {
    /// The first thing that an operator has to put right, and how.
    fn problem(&self) -> Option<String> {
        let database = &self.database;
        if self.version_num < VERSION_MIN {
            return Some(format!(
                "the server is Postgres {}; the outbox needs 13 or later: upgrade it",
                self.version
            ));
        }
        if self.standby {
            return Some(
                "the server is a standby, and the broker writes to the outbox: name the primary in `postgres.url`"
                    .to_owned(),
            );
        }
        if self.encoding != "UTF8" {
            return Some(format!(
                "the encoding of the database {database} is {}, but topics and events are UTF-8: move to a database \
                 created with ENCODING 'UTF8'",
                self.encoding
            ));
        }
        (!self.outbox)
            .then(|| format!("the database {database} has no outbox: run `walcast setup --source outbox`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_problem_is_named_with_its_remedy() {
        let good = Server {
            version_num: 130_000,
            version: "13.0".into(),
            standby: false,
            encoding: "UTF8".into(),
            database: "app".into(),
            outbox: true,
        };
        let check = |change: &dyn Fn(&mut Server), expected: &[&str]| {
            let mut server = good.clone();
            change(&mut server);
            let problem = server.problem().unwrap_or_default();
            assert_eq!(problem.is_empty(), expected.is_empty(), "{problem}");
            assert!(expected.iter().all(|part| problem.contains(part)), "{problem}");
        };
        check(&|_| (), &[]);
        check(
            &|server| (server.version_num, server.version) = (120_009, "12.9".into()),
            &["12.9", "13 or later"],
        );
        check(&|server| server.standby = true, &["standby", "postgres.url"]);
        check(&|server| server.encoding = "LATIN1".into(), &["LATIN1", "ENCODING 'UTF8'"]);
        check(&|server| server.outbox = false, &["database app", "walcast setup --source outbox"]);
    }
}
