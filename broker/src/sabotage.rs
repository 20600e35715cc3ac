//! Faults put in on purpose, by which the tests show that they would see them.
//!
//! Only builds with debug assertions have them, and only where `WALCAST_SABOTAGE` names one; in all others the
//! question is answered at compile time, and nothing of this is left. They stand where the fault would stand, so
//! each is one condition at one place. Nobody's data must ever pass through a build that has them switched on.

use std::sync::OnceLock;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// More is acknowledged than was published.
    AckAhead,
    /// Transactions are delivered before others can see them.
    NoGate,
    /// A waiter is registered behind its read, and misses what came in between.
    LateWaiter,
    /// Positions are compared as text.
    TextOrder,
    /// The log is kept from behind the oldest event that is held, not from behind the newest that is gone.
    FloorAtOldest,
}

/// All of them, as the variable names them.
pub const FAULTS: [(&str, Fault); 5] = [
    ("ack-ahead", Fault::AckAhead),
    ("no-gate", Fault::NoGate),
    ("late-waiter", Fault::LateWaiter),
    ("text-order", Fault::TextOrder),
    ("floor-at-oldest", Fault::FloorAtOldest),
];

/// Whether this goes wrong.
#[must_use]
pub fn sabotaged(fault: Fault) -> bool {
    cfg!(debug_assertions) && chosen() == Some(fault)
}

fn chosen() -> Option<Fault> {
    static CHOSEN: OnceLock<Option<Fault>> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("WALCAST_SABOTAGE").ok()?;
        let (_, fault) = FAULTS.iter().find(|(known, _)| *known == name)?;
        tracing::error!("sabotaged: {fault:?}; this broker is there to fail");
        Some(*fault)
    })
}
