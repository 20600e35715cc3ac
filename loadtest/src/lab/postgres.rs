//! The database: in a throwaway server, or in a database of our own on a server that we were given.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::config::Host;
use walcast::cli::{local, settings};
use walcast::postgres::Session;
use walcast::throwaway::{Options, StopMode, Throwaway};

use super::usage;
use crate::Error;

/// LISTEN needs a session for each client.
const CONNECTIONS_MAX: u32 = 600;
/// Sessions left for all else.
const CONNECTIONS_RESERVE: usize = 60;

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
    /// A database of our own on a server that is there; not made yet, so that it can be removed whatever comes
    /// between.
    #[must_use]
    pub fn on(given: &str, name: &str) -> Self {
        let url = with_database(given, name);
        Self { url, name: name.to_owned(), server: None, given: Some(given.to_owned()) }
    }

    /// Makes the database.
    ///
    /// # Errors
    /// The server cannot be reached, or the role may not make a database.
    pub async fn make(&self) -> Result<(), Error> {
        let at = match (&self.given, &self.server) {
            (Some(given), _) => given.clone(),
            (None, Some(server)) => server.url("postgres"),
            (None, None) => return Ok(()),
        };
        let session = self.session_at(&at).await?;
        let made = session.batch_execute(&format!("create database {}", self.name)).await;
        made.map_err(Error::sql(
            "cannot make a database of its own on the server; give a role that may: ALTER ROLE … CREATEDB",
        ))?;
        session.close().await;
        Ok(())
    }

    /// Starts a throwaway server, and makes a database there.
    ///
    /// # Errors
    /// No server can be started.
    pub async fn start(name: &str, fsync: bool) -> Result<Self, Error> {
        let options = Options { fsync, max_connections: CONNECTIONS_MAX, ..Options::default() };
        // As a server of some size is configured: checkpoints of small ones would disturb all figures.
        let options = options.set("max_wal_size", "4GB").set("checkpoint_timeout", "30min");
        let server = local::throwaway(options).await.map_err(|error| Error::missing(error.to_string()))?;
        let server = Arc::new(server);
        let url = with_database(&server.url("postgres"), name);
        let postgres = Self { url, name: name.to_owned(), server: Some(server), given: None };
        postgres.make().await?;
        Ok(postgres)
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
        self.session_at(&self.url).await
    }

    /// The same in another database of the server.
    pub(super) async fn session_at(&self, url: &str) -> Result<Session, Error> {
        let connected = settings::connect_as(&local::config(url, 0), &self.application_name()).await;
        connected.map_err(|failure| Error::missing(failure.to_string()))
    }

    /// Tells our sessions from others, those of other runs among them.
    #[must_use]
    pub fn application_name(&self) -> String {
        format!("walcast-loadtest {}", self.name)
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

    /// Stops the server, if it is ours.
    ///
    /// # Errors
    /// It does not stop.
    pub async fn stop(&self) -> Result<(), Error> {
        let Some(server) = &self.server else { return Ok(()) };
        let server = Arc::clone(server);
        match tokio::task::spawn_blocking(move || server.stop(StopMode::Immediate)).await {
            Ok(done) => done.map_err(Error::of("stop Postgres")),
            Err(error) => Err(Error::failed(error.to_string())),
        }
    }
}

/// Where a connection string leads, for people; without what is secret.
#[must_use]
pub fn place(url: &str) -> String {
    let Ok(config) = url.parse::<tokio_postgres::Config>() else { return "the given address".to_owned() };
    let ports = config.get_ports();
    let port = |at: usize| ports.get(at).or(ports.first()).copied().unwrap_or(5432);
    let hosts = config.get_hosts().iter().enumerate().map(|(at, host)| match host {
        Host::Tcp(name) => format!("{name}:{}", port(at)),
        Host::Unix(dir) => format!("{}:{}", dir.display(), port(at)),
    });
    match hosts.collect::<Vec<_>>() {
        hosts if hosts.is_empty() => "the default address".to_owned(),
        hosts => hosts.join(", "),
    }
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
    fn a_place_tells_no_password() {
        assert_eq!(place("postgres://me:secret@db.example/x"), "db.example:5432");
        assert_eq!(place("host=a,b port=1,2 password=secret"), "a:1, b:2");
        assert_eq!(place("dbname=x"), "the default address");
        assert_eq!(place("postgres://me:secret@:no"), "the given address");
    }

    #[test]
    fn another_database() {
        let check = |url: &str, expected: &str| assert_eq!(with_database(url, "x"), expected);
        check("postgres://u:p@h:5/db?sslmode=disable", "postgres://u:p@h:5/x?sslmode=disable");
        check("postgresql://h", "postgresql://h/x");
        check("postgresql://?host=/run", "postgresql:///x?host=/run");
        check("host=h dbname=db", "host=h dbname=db dbname=x");
    }
}
