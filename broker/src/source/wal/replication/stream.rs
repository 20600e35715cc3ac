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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const STATUS_BYTES: usize = 39;
    /// A keepalive that says that the log ends at 7 and asks for an answer.
    const REQUEST: [u8; 23] = *b"d\0\0\0\x16k\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\0\x01";

    /// A stream whose clock asks for nothing, and the server's end of it.
    async fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let options = StreamOptions {
            slot: String::new(),
            start_lsn: 1,
            plugin: Vec::new(),
            status_every: Duration::from_secs(3600),
            silence_max: Duration::from_secs(3600),
        };
        let stream = Stream::spawn(Socket::over(client), BytesMut::new(), &options);
        // The first goes out at once.
        assert_eq!(status(&mut server).await, 1);
        (stream, server)
    }

    /// What the next status acknowledges.
    async fn status(server: &mut TcpStream) -> u64 {
        let mut bytes = [0; STATUS_BYTES];
        let read = tokio::time::timeout(Duration::from_secs(30), server.read_exact(&mut bytes)).await;
        read.expect("a status").unwrap();
        u64::from_be_bytes(bytes[6..14].try_into().unwrap())
    }

    async fn until_told(server: &mut TcpStream, lsn: u64) {
        while status(server).await < lsn {}
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_last_acknowledgement_reaches_the_server_though_nothing_else_happens() {
        let (stream, mut server) = pair().await;
        for round in 1..=8 {
            for lsn in 0..100 {
                stream.ack(round * 1000 + lsn);
            }
            until_told(&mut server, round * 1000 + 99).await;
            // From right behind a status on, and from anywhere in the pause before the next.
            stream.ack(round * 1000 + 500);
            if round % 2 == 0 {
                until_told(&mut server, round * 1000 + 500).await;
            }
        }
        assert_eq!(stream.acknowledged(), 8500);
        stream.close().await;
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0, "the connection ends");
    }

    #[tokio::test]
    async fn a_request_is_answered_and_only_the_newest_keepalive_is_told() {
        let (mut stream, mut server) = pair().await;
        server.write_all(&[REQUEST, REQUEST, REQUEST].concat()).await.unwrap();
        assert_eq!(stream.next().await.unwrap(), Frame::Keepalive { wal_end: 7 });
        assert_eq!(status(&mut server).await, 1);
        stream.ack(7);
        until_told(&mut server, 7).await;
        drop(server);
        assert!(stream.next().await.is_err(), "the others said no more than the last");
    }
}
