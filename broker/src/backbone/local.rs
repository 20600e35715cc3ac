//! The backbone of a single node: a short queue in memory.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Backbone, BackboneError};
use crate::event::Batch;

/// Batches that wait for ingestion. A batch is bounded in events and bytes, so this also bounds memory.
const BATCHES_MAX: usize = 4;

/// Carries batches from the publish loop to the ingest loop of one process.
#[derive(Debug, Default)]
pub struct Local {
    queue: Mutex<Queue>,
    appended: Notify,
    taken: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Batch>,
    closed: bool,
}

impl Backbone for Local {
    async fn publish(&self, batch: &Batch) -> Result<(), BackboneError> {
        loop {
            let taken = self.taken.notified();
            {
                let mut queue = self.queue.lock();
                if queue.closed {
                    return Err(BackboneError::Closed);
                }
                if queue.batches.len() < BATCHES_MAX {
                    queue.batches.push_back(batch.clone());
                    self.appended.notify_one();
                    return Ok(());
                }
            }
            taken.await;
        }
    }

    async fn next(&self) -> Result<Batch, BackboneError> {
        loop {
            let appended = self.appended.notified();
            {
                let mut queue = self.queue.lock();
                if let Some(batch) = queue.batches.pop_front() {
                    self.taken.notify_one();
                    return Ok(batch);
                }
                if queue.closed {
                    return Err(BackboneError::Closed);
                }
            }
            appended.await;
        }
    }

    fn close(&self) {
        self.queue.lock().closed = true;
        self.appended.notify_one();
        self.taken.notify_one();
    }
}
