//! What carries batches from the leader to every node.

use crate::event::Batch;

pub mod local;
pub mod redis;

/// A batch could not be carried.
#[derive(Debug, thiserror::Error)]
pub enum BackboneError {
    /// The node is going away.
    #[error("the backbone is closed")]
    Closed,
}

/// Carries batches, in order, to all nodes, the leader's own included.
pub trait Backbone: Send + Sync {
    /// Returns once the batch is appended. One publish is in flight per source. If the future is dropped, the
    /// batch may be appended or not; it comes again, perhaps cut in another way.
    ///
    /// # Errors
    /// The batch is not appended; the same batch is to be tried again.
    fn publish(&self, batch: &Batch) -> impl Future<Output = Result<(), BackboneError>> + Send;

    /// The next batch. Cancel safe.
    ///
    /// # Errors
    /// There will be none.
    fn next(&self) -> impl Future<Output = Result<Batch, BackboneError>> + Send;

    /// No more batches: `next` yields what was appended, then [`BackboneError::Closed`].
    fn close(&self);
}
