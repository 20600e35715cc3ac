//! Connections to Postgres: where it is.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Text that may hold a password. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// `[postgres]` in the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A connection string as libpq reads them.
    pub url: Option<Secret>,
    /// A file that holds the password alone.
    pub password_file: Option<PathBuf>,
    /// Time limit for one attempt to reach one address.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { url: None, password_file: None, connect_timeout: Duration::from_secs(10) }
    }
}
