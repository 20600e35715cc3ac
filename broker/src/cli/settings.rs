//! The flags that name the configuration, shared by the commands that need it.

use std::path::PathBuf;

use crate::cli::exit::{self, Failure};
use crate::cli::setup::PublishedTable;
use crate::config::{Config, Loader};
use crate::postgres::{ConnectErrorKind, Session};
use crate::router::{Router, RuleError};
use crate::source::{SourceKind, tables};

/// Where the settings come from.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Settings {
    /// Configuration file; without it walcast.toml, where that exists
    #[arg(long, value_name = "FILE", env = "WALCAST_CONFIG")]
    pub config: Option<PathBuf>,
    /// Connection string, over `postgres.url`
    #[arg(long, value_name = "URL", hide_env_values = true, env = "WALCAST_DATABASE_URL")]
    pub database_url: Option<String>,
}

/// The flag that says by which way Postgres is read, for the commands for which that matters.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct SourceFlag {
    /// How events travel, over `source.kind`: wal (the write-ahead log) or outbox (a table)
    #[arg(long, value_name = "KIND")]
    pub source: Option<SourceKind>,
}

impl SourceFlag {
    /// Over file and environment.
    #[must_use]
    pub fn over(self, loader: Loader) -> Loader {
        match self.source {
            Some(kind) => loader.flag("--source", "source.kind", kind.as_str()),
            None => loader,
        }
    }
}

impl Settings {
    /// Reads file, environment and these flags.
    #[must_use]
    pub fn loader(&self) -> Loader {
        let loader = Loader::new(self.config.clone()).environment(std::env::vars_os());
        match &self.database_url {
            Some(url) => loader.flag("--database-url", "postgres.url", url.as_str()),
            None => loader,
        }
    }

    /// The configuration.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn load(&self) -> Result<Config, Failure> {
        Ok(self.loader().load()?)
    }
}

impl From<crate::config::ConfigError> for Failure {
    fn from(error: crate::config::ConfigError) -> Self {
        Self::new(exit::USAGE, error.to_string())
    }
}

/// A session for a command that does its work and ends.
///
/// # Errors
/// The settings are wrong, or the server is out of reach.
pub async fn connect(config: &Config) -> Result<Session, Failure> {
    connect_as(config, "walcast setup").await
}

/// As [`connect`], under another `application_name`.
///
/// # Errors
/// See [`connect`].
pub async fn connect_as(config: &Config, application_name: &str) -> Result<Session, Failure> {
    let target =
        config.target().map_err(|error| Failure::new(exit::USAGE, format!("postgres.url: {error}")))?;
    Session::connect(&target, application_name).await.map_err(|error| {
        let code = match error.kind {
            ConnectErrorKind::Configuration => exit::USAGE,
            _ => exit::UNAVAILABLE,
        };
        Failure::new(code, error.to_string())
    })
}

impl Failure {
    /// A line for each; `origin` is the file that holds the rules.
    pub(super) fn of_rules(origin: &str, errors: &[RuleError]) -> Self {
        let lines: Vec<_> = errors.iter().map(|error| format!("{origin}: {error}")).collect();
        Self::new(exit::USAGE, lines.join("\n"))
    }
}

fn router(config: &Config, origin: &str) -> Result<Router, Failure> {
    Router::new(&config.table, config.router.clone()).map_err(|error| Failure::of_rules(origin, &[error]))
}

/// Whether the rules fit the tables as they are.
///
/// # Errors
/// All that does not fit, or the catalog cannot be read.
pub async fn check_rules(session: &Session, config: &Config, origin: &str) -> Result<(), Failure> {
    let router = router(config, origin)?;
    let names: Vec<_> = router.tables().map(|table| table.name).collect();
    let facts = tables::read(session, &names).await;
    let facts = facts.map_err(|error| Failure::new(exit::UNAVAILABLE, error.to_string()))?;
    match router.check(&facts) {
        errors if errors.is_empty() => Ok(()),
        errors => Err(Failure::of_rules(origin, &errors)),
    }
}

/// What the rules publish, as setup needs it.
///
/// # Errors
/// A rule cannot be used.
pub fn published_tables(config: &Config, origin: &str) -> Result<Vec<PublishedTable>, Failure> {
    let router = router(config, origin)?;
    let table = |rule: crate::router::TableRule| {
        let (schema, name) = rule.name.split_once('.').unwrap_or(("public", &rule.name));
        // Triggers cannot make a statement fail, so they always keep out what the rule does not need.
        let columns = rule.columns.filter(|_| rule.column_list || config.source.kind == SourceKind::Outbox);
        PublishedTable {
            schema: schema.to_owned(),
            name: name.to_owned(),
            columns: columns.map(|names| names.iter().map(|name| name.to_string()).collect()),
            state: rule.state,
        }
    };
    Ok(router.tables().map(table).collect())
}
