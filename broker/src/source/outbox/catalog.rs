//! What the server says of itself and of the tables, before anything starts.

use std::sync::Arc;

use tokio_postgres::Client;

use super::table;
use crate::postgres::Companion;
use crate::router::TableFacts;
use crate::source::failure::Failure;
use crate::source::server::{self, Server};
use crate::source::tables::{self, Publishing, failed};
use crate::source::{Config, SourceError, SourceKind};

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
        if let Some(problem) = problem(&session).await.map_err(failed)? {
            return Err(Failure::needs_operator(problem));
        }
        let carry = table::standing(&session, &config.slot).await?.carry;
        if let Some(problem) = server::other_way(SourceKind::Outbox, &carry) {
            return Err(Failure::needs_operator(problem));
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

/// The first thing that an operator has to put right, and how.
async fn problem(client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    let server = Server::look(client).await?;
    if let Some(problem) = server.problems(SourceKind::Outbox).into_iter().next() {
        return Ok(Some(problem));
    }
    let row = client.query_typed_one("SELECT to_regclass('walcast.outbox') IS NOT NULL", &[]).await?;
    let there: bool = row.try_get(0)?;
    let database = server.database;
    Ok((!there)
        .then(|| format!("the database {database} has no outbox: run `walcast setup --source outbox`")))
}
