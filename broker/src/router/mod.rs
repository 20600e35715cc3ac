//! Rules: from raw changes to topics and payloads. Pure.

use serde::Deserialize;

pub mod rule;

pub use rule::RuleConfig;

/// Limits of routing.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The largest `data` of one event, in bytes of JSON.
    #[serde(deserialize_with = "crate::units::bytes")]
    pub event_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { event_bytes_max: 1 << 20 }
    }
}
