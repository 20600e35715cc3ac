//! An accepted socket: ends a peer that takes nothing, and says goodbye so that the last answer arrives.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

use super::{Connection, refusal, tune};

/// How long a closed connection is read from, so that bytes under way do not reset it.
const LINGER: Duration = Duration::from_secs(1);

/// The stream of one connection and the slot it occupies.
pub(super) struct Socket {
    /// Present until drop.
    stream: Option<TcpStream>,
    connection: Connection,
    write_timeout: Duration,
    /// Runs while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// What is written in place of an answer of hyper's own.
    replacement: Option<Bytes>,
    /// The peer closed its side, or the connection is broken: no goodbye.
    ended: bool,
    slot: Option<OwnedSemaphorePermit>,
}

impl Socket {
    pub(super) fn new(
        stream: TcpStream,
        connection: Connection,
        write_timeout: Duration,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        tune(&stream);
        Self {
            stream: Some(stream),
            connection,
            write_timeout,
            stalled: None,
            replacement: None,
            ended: false,
            slot: Some(slot),
        }
    }

    fn poll_inner<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut self.stream {
            Some(stream) => poll(Pin::new(stream), cx),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    /// Writes by `write`, under the deadline.
    fn poll_progress(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match self.poll_inner(cx, write) {
            Poll::Ready(Ok(written)) => {
                self.stalled = None;
                self.connection.written.fetch_add(written as u64, Ordering::Relaxed);
                Poll::Ready(Ok(written))
            }
            Poll::Ready(Err(error)) => {
                self.ended = true;
                Poll::Ready(Err(error))
            }
            Poll::Pending => {
                let deadline = self.write_timeout;
                let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(deadline)));
                ready!(stalled.as_mut().poll(cx));
                self.ended = true;
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    /// Writes the replacement, if `head` starts an answer that needs one; then all of `length` counts as
    /// written.
    fn poll_replacement(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
        length: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        if self.replacement.is_none() {
            self.replacement = Some(refusal::replace(head)?.into());
        }
        while let Some(rest) = self.replacement.clone().filter(Buf::has_remaining) {
            match self.poll_progress(cx, |stream, cx| stream.poll_write(cx, &rest)) {
                Poll::Ready(Ok(written)) => {
                    if let Some(rest) = &mut self.replacement {
                        rest.advance(written);
                    }
                }
                unfinished => return Some(unfinished),
            }
        }
        self.replacement = None;
        Some(Poll::Ready(Ok(length)))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(self.poll_inner(cx, |stream, cx| stream.poll_read(cx, buf)));
        self.ended |= read.is_err() || (buf.filled().len() == before && buf.remaining() > 0);
        Poll::Ready(read)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(poll) = self.poll_replacement(cx, buf, buf.len()) {
            return poll;
        }
        self.poll_progress(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let head = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &buf[..]);
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if let Some(poll) = self.poll_replacement(cx, head, length) {
            return poll;
        }
        self.poll_progress(cx, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_inner(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_inner(cx, |stream, cx| stream.poll_shutdown(cx))
    }
}

impl Drop for Socket {
    /// Closing a socket with unread bytes resets it, and the reset destroys the answer that the peer has
    /// not read yet. So our side closes first, and the rest is read for a moment.
    fn drop(&mut self) {
        let kill = self.connection.kill.clone();
        let (Some(mut stream), Ok(runtime)) = (self.stream.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        if self.ended || kill.is_cancelled() {
            return;
        }
        let slot = self.slot.take();
        let goodbye = async move {
            let _slot = slot;
            let mut scratch = [0; 1024];
            let _ = stream.shutdown().await;
            while stream.read(&mut scratch).await.is_ok_and(|read| read > 0) {}
        };
        self.connection.tasks.spawn_on(
            async move {
                tokio::select! {
                    () = kill.cancelled() => {}
                    _ = tokio::time::timeout(LINGER, goodbye) => {}
                }
            },
            &runtime,
        );
    }
}
