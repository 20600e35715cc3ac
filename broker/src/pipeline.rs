//! The two loops: publish (source → router → backbone → ack) and ingest (backbone → hub).

use serde::Deserialize;

/// `[pipeline]` in the configuration.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Largest transaction, in events, whose last events are marked; larger ones carry `partial` throughout.
    pub atomic_events_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { atomic_events_max: 10_000 }
    }
}
