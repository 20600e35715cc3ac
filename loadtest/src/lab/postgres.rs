//! The database: in a throwaway server, or in a database of our own on a server that we were given.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use walcast::cli::{local, settings};
use walcast::postgres::Session;
use walcast::throwaway::{Options, StopMode, Throwaway};

use super::usage;
use crate::Error;

/// LISTEN needs a session for each client.
const CONNECTIONS_MAX: u32 = 600;
/// Sessions left for all else.
const CONNECTIONS_RESERVE: usize = 60;
/// Tells our sessions from others.
pub const APPLICATION_NAME: &str = "walcast-loadtest";

/// A database.
#[derive(Debug)]
pub struct Postgres {
    url: String,
    /// Names the slot and the publication too.
    name: String,
    /// `None`: the server was there.
    server: Option<Arc<Throwaway>>,
    /// A URL of the server from which our database was made.
    given: Option<String>,
}

impl Postgres {
    /// Starts a throwaway server, or makes a database of our own on a server that is there.
    ///
    /// # Errors
    /// No server can be started, or the role may not make a database.
    pub async fn start(given: Option<&str>, fsync: bool) -> Result<Self, Error> {
        let name = format!("loadtest_{:08x}", rand::random::<u32>());
        if let Some(given) = given {
            let session = session(given).await?;
            let made = session.batch_execute(&format!("create database {name}")).await;
            made.map_err(Error::sql(
                "cannot make a database of its own on the given server; give a role that may: \
                 ALTER ROLE … CREATEDB",
            ))?;
            session.close().await;
            let url = with_database(given, &name);
            return Ok(Self { url, name, server: None, given: Some(given.to_owned()) });
        }
        let options = Options { fsync, max_connections: CONNECTIONS_MAX, ..Options::default() };
        // As a server of some size is configured: checkpoints of small ones would disturb all figures.
        let options = options.set("max_wal_size", "4GB").set("checkpoint_timeout", "30min");
        let server = local::throwaway(options).await.map_err(|error| Error::missing(error.to_string()))?;
        let server = Arc::new(server);
        let url = with_database(&server.url("postgres"), &name);
        let session = session(&server.url("postgres")).await?;
        let made = session.batch_execute(&format!("create database {name}")).await;
        made.map_err(Error::sql("throwaway Postgres"))?;
        session.close().await;
        Ok(Self { url, name, server: Some(server), given: None })
    }

    /// How to reach the database.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The name of the database, of the slot and of the publication.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The server, if it is ours.
    #[must_use]
    pub fn server(&self) -> Option<&Throwaway> {
        self.server.as_deref()
    }

    /// A session as superuser, or as the role that was given.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn session(&self) -> Result<Session, Error> {
        session(&self.url).await
    }

    /// The process id of the server, if it is ours.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let file = fs::read_to_string(self.server.as_ref()?.data_dir().join("postmaster.pid")).ok()?;
        file.lines().next()?.trim().parse().ok()
    }

    /// CPU of the server's processes, if it is ours.
    #[must_use]
    pub fn cpu(&self) -> Option<Duration> {
        self.pid().map(usage::cpu)
    }

    /// Its version.
    ///
    /// # Errors
    /// The server went away.
    pub async fn version(&self) -> Result<String, Error> {
        let session = self.session().await?;
        let row = session.query_one("select split_part(version(), ' ', 2)", &[]).await;
        let version = row.map_err(Error::sql("ask for the server's version"))?.get(0);
        session.close().await;
        Ok(version)
    }

    /// How many sessions LISTEN may take.
    ///
    /// # Errors
    /// The server went away.
    pub async fn listeners_max(&self) -> Result<usize, Error> {
        let session = self.session().await?;
        let sql = "select current_setting('max_connections')::int
                        - (select count(*)::int from pg_stat_activity where backend_type = 'client backend')";
        let row = session.query_one(sql, &[]).await.map_err(Error::sql("count connections"))?;
        session.close().await;
        Ok(usize::try_from(row.get::<_, i32>(0)).unwrap_or(0).saturating_sub(CONNECTIONS_RESERVE))
    }

    /// Removes what was made on a server that was given.
    ///
    /// # Errors
    /// The server went away, or somebody else uses the database.
    pub async fn end(&self) -> Result<(), Error> {
        if let Some(server) = &self.server {
            let server = Arc::clone(server);
            let stopped = tokio::task::spawn_blocking(move || server.stop(StopMode::Immediate)).await;
            return match stopped {
                Ok(done) => done.map_err(Error::of("stop Postgres")),
                Err(error) => Err(Error::failed(error.to_string())),
            };
        }
        let Some(given) = &self.given else { return Ok(()) };
        let session = session(given).await?;
        let dropped = session.batch_execute(&format!("drop database {}", self.name)).await;
        session.close().await;
        dropped.map_err(Error::sql(&format!("cannot remove the database {}; drop it by hand", self.name)))
    }
}

async fn session(url: &str) -> Result<Session, Error> {
    let connected = settings::connect_as(&local::config(url, 0), APPLICATION_NAME).await;
    connected.map_err(|failure| Error::missing(failure.to_string()))
}

/// The same connection string for another database.
fn with_database(url: &str, name: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // Of repeated keys the last holds.
        return format!("{url} dbname={name}");
    };
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    let authority = place.split('/').next().unwrap_or_default();
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{scheme}://{authority}/{name}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_database() {
        let check = |url: &str, expected: &str| assert_eq!(with_database(url, "x"), expected);
        check("postgres://u:p@h:5/db?sslmode=disable", "postgres://u:p@h:5/x?sslmode=disable");
        check("postgresql://h", "postgresql://h/x");
        check("postgresql://?host=/run", "postgresql:///x?host=/run");
        check("host=h dbname=db", "host=h dbname=db dbname=x");
    }
}
