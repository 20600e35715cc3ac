//! `[admin]`: where operators connect.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;

use crate::listen::Limits;

/// The listener for operators.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port.
    pub listen: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8481)) }
    }
}

impl Config {
    /// What the accept loop grants: operators and their scrapers are few.
    #[must_use]
    pub fn limits(&self) -> Limits {
        const TIMEOUT: Duration = Duration::from_secs(15);
        Limits { connections_max: 64, head_timeout: TIMEOUT, write_timeout: TIMEOUT }
    }
}
