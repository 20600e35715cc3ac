//! HTTP: what waiters speak.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The public listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port of the HTTP API.
    pub listen: SocketAddr,
    /// Listen beyond loopback although there is no authentication yet.
    pub insecure: bool,
    /// Connections at a time; also bounded by the limit on open files.
    pub connections_max: usize,
    /// Topics and patterns of one request or WebSocket.
    pub topics_max: usize,
    /// How long a wait is held that does not say.
    #[serde(with = "humantime_serde")]
    pub wait_default: Duration,
    /// The longest wait.
    #[serde(with = "humantime_serde")]
    pub wait_max: Duration,
    /// A stream is silent for at most this long. Proxies cut silent connections, many after 60 s.
    #[serde(with = "humantime_serde")]
    pub heartbeat: Duration,
    /// A WebSocket that does not answer a ping within this is closed.
    #[serde(with = "humantime_serde")]
    pub pong_timeout: Duration,
    /// A request head arrives within this; an idle connection is closed after it.
    #[serde(with = "humantime_serde")]
    pub head_timeout: Duration,
    /// A client that takes nothing for this long, with something to take, is cut; it comes back with its cursor.
    #[serde(with = "humantime_serde")]
    pub write_timeout: Duration,
    /// Current values in one answer, in bytes.
    #[serde(deserialize_with = "crate::units::bytes")]
    pub state_answer_bytes_max: u64,
    /// Body of a publish, in bytes.
    #[serde(deserialize_with = "crate::units::bytes")]
    pub body_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8480)),
            insecure: false,
            connections_max: 10_000,
            topics_max: 100,
            wait_default: Duration::from_secs(50),
            wait_max: Duration::from_secs(300),
            heartbeat: Duration::from_secs(25),
            pong_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(15),
            write_timeout: Duration::from_secs(15),
            state_answer_bytes_max: 8 << 20,
            body_bytes_max: 64 << 10,
        }
    }
}
