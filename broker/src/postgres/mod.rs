//! Connections to Postgres: where it is, how far to trust it, and the sessions that are kept there.
//!
//! Two kinds of session share everything up to the first message: SQL sessions ([`Session`]) speak through
//! `tokio_postgres`, the replication session (in `source::wal`) speaks for itself, since that crate knows no
//! replication. So hosts, passwords, TLS and time limits behave the same in both.
//!
//! A password is never in a message, a log or a `Debug` form, and it is read anew for every connection where
//! it comes from a file.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub mod companion;
pub mod connect;
pub mod dsn;
mod dsn_syntax;
pub mod error;
pub mod listener;
mod overheard;
pub mod password;
pub mod session;
pub mod socket;
pub mod tls;

pub use companion::{Busy, Companion, Guard, LASTING};
pub use connect::Attempts;
pub use dsn::{DsnError, Target};
pub use error::{ConnectError, ConnectErrorKind, ServerError, describe, is_shutdown};
pub use listener::{Listener, Notice};
pub use password::Secret;
pub use session::{Closed, Session, SessionState};
pub use socket::Socket;

/// `[postgres]` in the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A connection string as libpq reads them, `postgresql://…` or `key=value …`. What it leaves out comes
    /// from the `PG*` environment variables, then from libpq's defaults.
    pub url: Option<Secret>,
    /// A file that holds the password alone. Read at every connect, so a changed password needs no restart.
    pub password_file: Option<PathBuf>,
    /// Time limit for one attempt to reach one address, up to and including authentication. The connection
    /// string's own `connect_timeout` goes before it.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { url: None, password_file: None, connect_timeout: Duration::from_secs(10) }
    }
}

impl Config {
    /// Where to connect to. `environment` looks a variable up.
    ///
    /// # Errors
    /// The connection string cannot be used; the message names the key.
    pub fn target(&self, environment: impl Fn(&str) -> Option<String>) -> Result<Target, DsnError> {
        let text = self.url.as_ref().map_or("", Secret::expose);
        let mut target = Target::parse(text, environment)?;
        target.password_file.clone_from(&self.password_file);
        target.connect_timeout.get_or_insert(self.connect_timeout);
        Ok(target)
    }
}

/// What every session sets that no pooler may share, so that the defaults of a server, database or role cannot
/// change what we read or end what we keep.
const SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "0"),
    ("lock_timeout", "30s"),
    ("idle_in_transaction_session_timeout", "0"),
    // A read-only, deferrable default would make a publish fail, or a snapshot wait without end.
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
];

/// Settings that fix the text form of values. They are the same for the replication session and for the one
/// that seeds, or a seeded value would differ from the streamed one.
pub const RENDERING: &[(&str, &str)] = &[
    ("TimeZone", "UTC"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
    ("lc_monetary", "C"),
    // Names of tables, types and functions (`regclass` and the like) come with their schema.
    ("search_path", "pg_catalog"),
    ("quote_all_identifiers", "off"),
];

/// Run once after connecting: what kind of server this is (`on`/`off` read-only, `t`/`f` standby), one of the
/// settings of the startup, and settings that older servers do not know. Where the former did not arrive, the latter
/// are left alone: it may be somebody else's session tomorrow.
const AFTER_CONNECT: &str = "SELECT pg_catalog.current_setting('transaction_read_only'), \
     pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('search_path'), \
     pg_catalog.count(pg_catalog.set_config(name, '0', false)) \
     FROM pg_catalog.pg_settings WHERE name IN ('idle_session_timeout', 'transaction_timeout') \
     AND pg_catalog.current_setting('search_path') = 'pg_catalog'";

/// The same where a pooler may be in between: it sets nothing.
const AFTER_CONNECT_POOLED: &str =
    "SELECT pg_catalog.current_setting('transaction_read_only'), pg_catalog.pg_is_in_recovery()";

/// What is asked first on every session; [`connect::check_server`] takes the answer.
#[must_use]
pub const fn after_connect(pooled: bool) -> &'static str {
    if pooled { AFTER_CONNECT_POOLED } else { AFTER_CONNECT }
}

/// The `options` of the startup message: the connection string's own, ours, then `extra`.
#[must_use]
pub fn startup_options(own: Option<&str>, extra: &[(&str, &str)]) -> String {
    let mut options = own.unwrap_or_default().to_owned();
    for (name, value) in SETTINGS.iter().chain(RENDERING).chain(extra) {
        if !options.is_empty() {
            options.push(' ');
        }
        options.push_str("-c ");
        options.push_str(name);
        options.push('=');
        for character in value.chars() {
            // The server splits at white space; a backslash keeps the next character.
            if character.is_whitespace() || character == '\\' {
                options.push('\\');
            }
            options.push(character);
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_settings_go_after_the_strings_own() {
        let options =
            startup_options(Some("-c geqo=off -c TimeZone=CET"), &[("wal_sender_timeout", "5000ms")]);
        assert!(options.starts_with("-c geqo=off -c TimeZone=CET -c statement_timeout=0 "), "{options}");
        assert!(options.contains(r"-c default_transaction_isolation=read\ committed "), "{options}");
        assert!(options.ends_with("-c wal_sender_timeout=5000ms"), "{options}");
    }

    #[test]
    fn a_configuration_hides_its_password() {
        let config: Config =
            toml::from_str("url = 'postgres://me:swordfish@db/app'\nconnect_timeout = '3s'").unwrap();
        assert!(!format!("{config:?}").contains("swordfish"));
        let target = config.target(|_| None).unwrap();
        assert!(!format!("{target:?}").contains("swordfish"));
        assert_eq!(target.connect_timeout, Some(Duration::from_secs(3)));
    }

    #[test]
    fn the_strings_own_time_limit_goes_first() {
        let config = Config { url: Some("host=db user=me connect_timeout=7".into()), ..Config::default() };
        let target = config.target(|_| None).unwrap();
        assert_eq!(target.connect_timeout, Some(Duration::from_secs(7)));
    }
}
