//! `[admin]`: where operators connect.

use std::net::{Ipv4Addr, SocketAddr};

use serde::Deserialize;

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
