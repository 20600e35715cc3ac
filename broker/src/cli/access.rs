//! How commands reach a broker: its address, a token, whom to trust.

use std::path::PathBuf;
use std::time::Duration;

use walcast_client::Client;

use super::exit::{self, Failure};

/// Where a broker listens by default.
const URL: &str = "http://127.0.0.1:8480";

/// Flags of every command that is a client.
#[derive(Clone, Debug, clap::Args)]
pub struct Access {
    /// Base URL of the broker.
    #[arg(long, env = "WALCAST_URL", default_value = URL)]
    url: String,
    /// File with the token to show; or the token itself in the variable WALCAST_TOKEN.
    // As an argument it would stand in every list of processes.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with the certificates to trust, instead of the system's.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl Access {
    /// No more than an address.
    #[cfg(test)]
    pub(super) fn to(url: impl Into<String>) -> Self {
        Self { url: url.into(), token_file: None, ca_file: None }
    }

    /// A client that asks each broker once.
    ///
    /// # Errors
    /// A file cannot be read, or what it holds not be used.
    pub fn client(&self) -> Result<Client, Failure> {
        let mut builder = Client::builder().hosts([&self.url]).patience(Duration::ZERO);
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| {
                Failure::new(exit::USAGE, format!("{} cannot be read: {error}", path.display()))
            })
        };
        let token = match &self.token_file {
            Some(path) => Some(String::from_utf8(read(path)?).map_err(|_| {
                Failure::new(exit::USAGE, format!("{} holds no text, and so no token", path.display()))
            })?),
            None => std::env::var("WALCAST_TOKEN").ok().filter(|token| !token.is_empty()),
        };
        if let Some(token) = token {
            builder = builder.token(token.trim());
        }
        if let Some(path) = &self.ca_file {
            builder = builder.root_certificates(read(path)?);
        }
        Ok(builder.build()?)
    }
}
