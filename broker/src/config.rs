//! The configuration: composes what each module owns, from a TOML file, then the environment, then flags.
//!
//! Strict: an unknown key, a wrong type or a value out of range ends the process before anything starts,
//! with a message that names where the value came from, the key, what was expected and the remedy. Nothing
//! is converted in silence, and no value is repeated in a message where it may hold a password.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use crate::backbone::redis;
use crate::endpoint::Endpoints;
use crate::{
    admin, auth, endpoint, hub, listen, node, pipeline, postgres, router, source, telemetry, transport,
};

mod limits;
#[cfg(test)]
mod tests;
mod variables;

use variables::Variable;

/// The file that is read where none is named, if it exists.
pub const FILE_DEFAULT: &str = "walcast.toml";
const DOCUMENT: &str = "docs/configuration.md";

/// Everything that can be set. Each section belongs to the module that obeys it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[postgres]`: the server.
    pub postgres: postgres::Config,
    /// `[source]`: by which way; slot, publication, delivery.
    pub source: source::Config,
    /// `[node]`: what this broker is there for, among others.
    pub node: node::NodeConfig,
    /// `[redis]`: where brokers meet, if there is more than one.
    pub redis: redis::Config,
    /// `[replay]`: what a restart can read again.
    pub replay: source::config::Replay,
    /// `[router]`: limits of one event.
    pub router: router::Config,
    /// `[pipeline]`: limits of one transaction.
    pub pipeline: pipeline::Config,
    /// `[history]`: what is kept in memory.
    pub history: hub::Config,
    /// `[http]`: the listener for clients.
    pub http: transport::Config,
    /// `[admin]`: the listener for operators.
    pub admin: admin::Config,
    /// `[tls]`: the certificate of both listeners.
    pub tls: listen::tls::Config,
    /// `[auth]`: where keys come from, and what browsers may do.
    pub auth: auth::Config,
    /// `[log]`: what the process tells.
    pub log: telemetry::Config,
    /// `[[table]]`: which tables are published, where. A reload changes this, roles and keys, and nothing else.
    pub table: Vec<router::RuleConfig>,
    /// `[[role]]`: what holders of keys may do.
    pub role: Vec<auth::RoleConfig>,
    /// `[[endpoint]]`: requests of existing clients, and what answers them.
    pub endpoint: Vec<endpoint::EndpointConfig>,
    /// `[[key]]`: who may come in; with those of `auth.keys_file`.
    pub key: Vec<auth::KeyConfig>,
}

/// The configuration cannot be used. `Display` says all in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {}{cause}; {remedy}", .key.as_ref().map(|key| format!("{key}: ")).unwrap_or_default())]
pub struct ConfigError {
    /// The file (with the line, where known), the variable or the flag.
    pub origin: String,
    /// Path of the key, such as `http.wait_max`.
    pub key: Option<String>,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl Config {
    /// The server, as the source reads it: only the log needs sessions that are ours alone.
    ///
    /// # Errors
    /// The connection string cannot be used; the message names the key.
    pub fn target(&self) -> Result<postgres::Target, postgres::DsnError> {
        let mut target = self.postgres.target(|name| std::env::var(name).ok())?;
        target.pooled = self.source.kind == source::SourceKind::Outbox;
        Ok(target)
    }

    /// Whether clients are asked who they are.
    #[must_use]
    pub fn asks(&self) -> bool {
        auth::asks(&self.key, &self.role, self.auth.keys_file.is_some())
    }

    /// Adds the keys of their own file, which only a broker needs to be able to read.
    ///
    /// # Errors
    /// It cannot be read, or a line is no key.
    pub fn read_keys(&mut self) -> Result<(), ConfigError> {
        let Some(path) = &self.auth.keys_file else { return Ok(()) };
        let wrong = |cause: String, remedy: &str| ConfigError {
            origin: path.display().to_string(),
            key: Some("auth.keys_file".into()),
            cause,
            remedy: remedy.into(),
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            wrong(format!("cannot be read: {error}"), "make it readable, or name another")
        })?;
        let keys = auth::read_lines(&text).map_err(|error| wrong(error.to_string(), "correct the line"))?;
        self.key.extend(keys);
        Ok(())
    }
}

impl ConfigError {
    /// What the process exits with.
    pub const EXIT_CODE: u8 = 64;
}

/// One value from outside the file.
#[derive(Clone, Debug)]
struct Setting {
    /// The variable or the flag, for messages.
    origin: String,
    /// Path of the key.
    key: String,
    value: String,
}

/// Where the configuration comes from. Kept, so that it can be read again.
#[derive(Clone, Debug, Default)]
pub struct Loader {
    file: Option<PathBuf>,
    database_url: Option<String>,
    environment: Vec<Setting>,
    /// A variable that was meant for us, but that nothing reads.
    unknown: Option<ConfigError>,
    flags: Vec<Setting>,
}

/// What was read at one time.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// All of it.
    pub config: Config,
    /// What was set, wherever.
    settings: Table,
}

impl Loaded {
    /// Whether anybody set this key.
    #[must_use]
    pub fn sets(&self, section: &str, key: &str) -> bool {
        self.settings.get(section).and_then(Value::as_table).is_some_and(|keys| keys.contains_key(key))
    }

    /// What needs a restart and is set otherwise than in `before`: keys such as `http.listen`, and `[[endpoint]]`.
    #[must_use]
    pub fn changed_since(&self, before: &Self) -> Vec<String> {
        let value = |settings: &Table, (section, key): (&str, &str)| {
            settings.get(section).and_then(Value::as_table).and_then(|keys| keys.get(key)).cloned()
        };
        let settings = [&self.settings, &before.settings].into_iter().flatten();
        let sections = settings.filter_map(|(section, keys)| Some((section.as_str(), keys.as_table()?)));
        let keys: BTreeSet<_> = sections
            .flat_map(|(section, keys)| keys.keys().map(move |key| (section, key.as_str())))
            .collect();
        let changed = |key: &(&str, &str)| value(&self.settings, *key) != value(&before.settings, *key);
        let keys = keys.into_iter().filter(changed).map(|(section, key)| format!("{section}.{key}"));
        let endpoints = self.settings.get("endpoint") != before.settings.get("endpoint");
        keys.chain(endpoints.then(|| "[[endpoint]]".into())).collect()
    }
}

impl Loader {
    /// Reads `file`; without one, [`FILE_DEFAULT`] where it exists.
    #[must_use]
    pub fn new(file: Option<PathBuf>) -> Self {
        let mut loader = Self { file, ..Self::default() };
        loader.settle();
        loader
    }

    /// Looks whether [`FILE_DEFAULT`] is there, where no file was named. Once it was, it has to be: a file that was
    /// moved away is not a file without rules.
    pub fn settle(&mut self) {
        if self.file.is_none() && Path::new(FILE_DEFAULT).try_exists().unwrap_or(true) {
            self.file = Some(FILE_DEFAULT.into());
        }
    }

    /// Takes `WALCAST_SECTION__KEY`, `WALCAST_LOG` and `DATABASE_URL` from these variables. Others are left alone,
    /// also those with our prefix that a command reads by itself, or that Kubernetes makes for a service named
    /// `walcast`. With our prefix and known to nobody is an error when all is read.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        for (name, value) in variables {
            let (Some(name), value) = (name.to_str(), value.to_string_lossy().into_owned()) else { continue };
            let key = match variables::read(name) {
                Variable::Sets(key) => key,
                Variable::Database if !value.is_empty() => {
                    self.database_url = Some(value);
                    continue;
                }
                Variable::Unknown(error) => {
                    self.unknown.get_or_insert(error);
                    continue;
                }
                Variable::Database | Variable::Foreign => continue,
            };
            self.environment.push(Setting { origin: name.to_owned(), key, value });
        }
        self
    }

    /// Sets `key`, a path such as `http.listen`, by the flag of this name, over file and environment.
    #[must_use]
    pub fn flag(mut self, flag: &str, key: &str, value: impl Into<String>) -> Self {
        self.flags.push(Setting { origin: flag.to_owned(), key: key.to_owned(), value: value.into() });
        self
    }

    /// Whether there is a file to read; without one there are no rules.
    #[must_use]
    pub fn found(&self) -> bool {
        self.file.is_some()
    }

    /// The file that is read, for messages about what it holds.
    #[must_use]
    pub fn file(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new(FILE_DEFAULT))
    }

    /// Reads everything, and checks every value that can be checked without a server.
    ///
    /// # Errors
    /// The first value that cannot be used.
    pub fn load(&self) -> Result<Config, ConfigError> {
        Ok(self.load_all()?.config)
    }

    /// The same, with what was set, so that two readings can be compared.
    ///
    /// # Errors
    /// See [`Loader::load`].
    pub fn load_all(&self) -> Result<Loaded, ConfigError> {
        if let Some(unknown) = &self.unknown {
            return Err(unknown.clone());
        }
        let file = self.file().display().to_string();
        let mut table = self.read(&file)?;
        let mut origins = BTreeMap::new();
        let mut config = Config::default();
        for setting in self.environment.iter().chain(&self.flags) {
            config = apply(&mut table, setting)?;
            origins.insert(setting.key.as_str(), setting.origin.as_str());
        }
        if self.environment.is_empty() && self.flags.is_empty() {
            config = parse(&table).map_err(|(key, cause)| error(file.clone(), key, cause))?;
        }
        if let (None, Some(url)) = (&config.postgres.url, &self.database_url) {
            config.postgres.url = Some(url.as_str().into());
        }
        Endpoints::new(&config.endpoint).map_err(|error| ConfigError {
            origin: file.clone(),
            key: Some(error.at()),
            cause: error.cause,
            remedy: error.remedy,
        })?;
        limits::check(&config).map_err(|broken| ConfigError {
            origin: origins.get(broken.key).map_or(file, |origin| (*origin).to_owned()),
            key: Some(broken.key.to_owned()),
            cause: broken.cause,
            remedy: broken.remedy,
        })?;
        Ok(Loaded { config, settings: table })
    }

    /// The file as a table that is known to hold only what a [`Config`] can hold.
    fn read(&self, file: &str) -> Result<Table, ConfigError> {
        let Some(path) = &self.file else { return Ok(Table::new()) };
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            origin: file.to_owned(),
            key: None,
            cause: format!("cannot be read: {error}"),
            remedy: "make it readable, or name another by --config".into(),
        })?;
        let at = |problem: &toml::de::Error| match problem.span() {
            Some(span) => {
                format!("{file}, line {}", text[..span.start.min(text.len())].matches('\n').count() + 1)
            }
            None => file.to_owned(),
        };
        // The message alone: the full form quotes the line, and a line may hold a password.
        let table: Table = text
            .parse()
            .map_err(|problem| error(at(&problem), None, problem.message().replace('\n', " ")))?;
        parse(&table).map_err(|(key, cause)| {
            // Reading the text itself tells the line, reading the table tells the key.
            let origin =
                toml::from_str::<Config>(&text).map_or_else(|problem| at(&problem), |_| file.to_owned());
            error(origin, key, cause)
        })?;
        Ok(table)
    }
}

/// The table as a configuration, or the key at fault and what is wrong with it.
fn parse(table: &Table) -> Result<Config, (Option<String>, String)> {
    Config::deserialize(table.clone()).map_err(|problem| {
        // The path of the key is only in the display form; without source text that is message and path.
        let shown = problem.to_string();
        let key = shown.rsplit_once("in `").map(|(_, key)| key.trim_end().trim_end_matches('`').to_owned());
        (key, problem.message().replace('\n', " "))
    })
}

/// Puts one value from outside the file into the table. What it must be, text or number, the key decides.
fn apply(table: &mut Table, setting: &Setting) -> Result<Config, ConfigError> {
    let fail = |cause: String| error(setting.origin.clone(), Some(setting.key.clone()), cause);
    let Some((section, key)) = setting.key.split_once('.').filter(|(_, key)| !key.contains('.')) else {
        return Err(fail("is not of the form section.key".into()));
    };
    let mut problem = String::new();
    for value in readings(&setting.value) {
        let mut tried = table.clone();
        let entry = tried.entry(section).or_insert_with(|| Value::Table(Table::new()));
        let Some(entry) = entry.as_table_mut() else {
            return Err(fail("can be set in the file only".into()));
        };
        entry.insert(key.to_owned(), value);
        match parse(&tried) {
            Ok(config) => {
                *table = tried;
                return Ok(config);
            }
            Err((_, cause)) => problem = cause,
        }
    }
    Err(fail(problem))
}

/// Text is text, unless only a number or a boolean will do.
fn readings(text: &str) -> Vec<Value> {
    let integer = text.parse().map(Value::Integer).ok();
    let boolean = text.parse().map(Value::Boolean).ok();
    [Some(Value::String(text.to_owned())), integer, boolean].into_iter().flatten().collect()
}

fn error(origin: String, key: Option<String>, mut cause: String) -> ConfigError {
    if cause.ends_with("expected a duration") {
        cause.push_str(" such as \"50s\" or \"1h 30m\"");
    }
    let remedy = if cause.starts_with("unknown field") {
        "correct its spelling or remove it"
    } else if cause.starts_with("missing field") {
        "add it"
    } else if key.is_some() {
        "correct it, or remove it for its default"
    } else {
        "correct the file"
    };
    ConfigError { origin, key, cause, remedy: format!("{remedy} (all keys are in {DOCUMENT})") }
}
