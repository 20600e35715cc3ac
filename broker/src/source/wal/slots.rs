//! The two slots of a connection, and what those need who look after them.

use std::sync::Arc;

use super::Config;
use crate::health::Health;
use crate::postgres::Companion;

/// Shared by the floor's mover and the governor. Both act only while `live` is held by `walsender`.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    pub(super) companion: Arc<Companion>,
    pub(super) health: Arc<Health>,
    /// The floor.
    pub(super) floor: String,
    pub(super) live: String,
    pub(super) mark: String,
    /// The process of our own walsender.
    pub(super) walsender: i32,
}

impl Slots {
    pub(super) fn new(
        config: &Config,
        companion: &Arc<Companion>,
        health: &Arc<Health>,
        walsender: i32,
    ) -> Self {
        Self {
            companion: Arc::clone(companion),
            health: Arc::clone(health),
            floor: config.slot.clone(),
            live: config.live_slot(),
            mark: config.mark_slot(),
            walsender,
        }
    }
}
