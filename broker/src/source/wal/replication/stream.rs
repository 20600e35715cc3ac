//! The reading end of a stream: frames in order, acknowledgements back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::BytesMut;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::frame::Frame;
use super::task::Task;
use super::{Chunk, ReplicationError, StreamOptions};
use crate::postgres::Socket;

/// Bytes of frames that may wait to be read. One frame that is larger still passes, alone.
pub(super) const WAITING_BYTES_MAX: usize = 4 << 20;

/// Chunks that may wait to be read, for the case that each is tiny.
const WAITING_CHUNKS_MAX: usize = 256;

/// How far the reader has acknowledged; shared with the socket task.
#[derive(Debug)]
pub(super) struct Acknowledged {
    lsn: AtomicU64,
    /// The socket task will look by itself, soon: to wake it for each acknowledgement costs as much as an event.
    watched: AtomicBool,
    /// Rung when it rises and nobody looks.
    pub(super) risen: Notify,
}

impl Acknowledged {
    pub(super) fn get(&self) -> u64 {
        self.lsn.load(Ordering::SeqCst)
    }

    /// Only rises.
    fn rise(&self, lsn: u64) {
        // Either this sees that nobody looks, or who is about to stop looking sees this.
        if self.lsn.fetch_max(lsn, Ordering::SeqCst) < lsn && !self.watched.load(Ordering::SeqCst) {
            self.risen.notify_one();
        }
    }

    /// When the socket task looks again, which `soon` finds out; `None`: when it is rung.
    pub(super) fn watch(&self, soon: impl FnOnce() -> Option<Instant>) -> Option<Instant> {
        self.watched.store(false, Ordering::SeqCst);
        let soon = soon();
        self.watched.store(soon.is_some(), Ordering::SeqCst);
        soon
    }
}

/// What the socket task hands over.
#[derive(Debug)]
pub(super) enum Item {
    Chunk(Chunk, OwnedSemaphorePermit),
    End(ReplicationError),
}

/// A running stream. Dropping it ends the connection; [`Stream::close`] also waits for that.
#[derive(Debug)]
pub struct Stream {
    items: mpsc::Receiver<Item>,
    /// The chunk that is being read; its permit keeps its bytes counted.
    current: Option<(Chunk, OwnedSemaphorePermit)>,
    acknowledged: Arc<Acknowledged>,
    task: AbortOnDropHandle<()>,
    ended: Option<ReplicationError>,
}

impl Stream {
    pub(super) fn spawn(socket: Socket, buffer: BytesMut, options: &StreamOptions) -> Self {
        let (sender, items) = mpsc::channel(WAITING_CHUNKS_MAX);
        let lsn = AtomicU64::new(options.start_lsn);
        let acknowledged =
            Arc::new(Acknowledged { lsn, watched: AtomicBool::new(false), risen: Notify::new() });
        let room = Arc::new(Semaphore::new(WAITING_BYTES_MAX));
        let task = Task::new(socket, buffer, options, Arc::clone(&acknowledged), room);
        let task = AbortOnDropHandle::new(tokio::spawn(task.run(sender)));
        Self { items, current: None, acknowledged, task, ended: None }
    }

    /// The next frame. Cancel safe.
    ///
    /// # Errors
    /// The stream has ended, and why; every later call says the same.
    pub async fn next(&mut self) -> Result<Frame, ReplicationError> {
        loop {
            if let Some((chunk, _)) = &mut self.current {
                if let Some(frame) = chunk.frames.next() {
                    return Ok(frame);
                }
                self.current = None;
            }
            if let Some(ended) = &self.ended {
                return Err(ended.clone());
            }
            match self.items.recv().await {
                Some(Item::Chunk(chunk, permit)) => self.current = Some((chunk, permit)),
                Some(Item::End(error)) => self.ended = Some(error),
                None => self.ended = Some(ReplicationError::Lost("the stream was closed".into())),
            }
        }
    }

    /// Everything up to `lsn` need not be sent again. Only rises; the server is told soon.
    pub fn ack(&self, lsn: u64) {
        self.acknowledged.rise(lsn);
    }

    /// What has been acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.get()
    }

    /// Ends the connection, so that the server drops its temporary slot, and waits until the socket is closed.
    pub async fn close(self) {
        self.task.abort();
        // That it was aborted, or is done.
        let _ = self.task.await;
    }
}
