//! What is measured: operations on prepared ground, each repeated as often as who measures asks for.
//!
//! Times and instruction counts are taken of the same cases. A case checks its own result, so that none can
//! become fast by doing nothing.

mod hub;
mod pgoutput;
mod router;

/// The product's own, so that what it costs to allocate is counted as there.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// An operation, ready to be repeated.
pub(crate) type Operation = Box<dyn FnMut()>;

/// A named operation.
pub(crate) struct Case {
    /// Group and name.
    pub(crate) name: &'static str,
    /// Prepares the ground.
    pub(crate) make: fn() -> Operation,
}

/// All cases, by group.
pub(crate) const ALL: [Case; 8] = [
    Case { name: "hub/10", make: || hub::wake(10) },
    Case { name: "hub/1000", make: || hub::wake(1_000) },
    Case { name: "hub/100000", make: || hub::wake(100_000) },
    Case { name: "pgoutput/insert", make: || pgoutput::read(pgoutput::INSERT) },
    Case { name: "pgoutput/update", make: || pgoutput::read(pgoutput::UPDATE) },
    Case { name: "pgoutput/message", make: || pgoutput::read(pgoutput::MESSAGE) },
    Case { name: "router/row", make: || router::route(pgoutput::UPDATE) },
    Case { name: "router/message", make: || router::route(pgoutput::MESSAGE) },
];
