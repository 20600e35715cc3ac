//! An accepted socket: ends a peer that takes nothing, keeps nothing while it waits, and says goodbye so that
//! the last answer arrives.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

use super::tls::Stream;
use super::{HEAD_BYTES_MAX, House, refusal};

/// How long a closed connection is read from, so that bytes under way do not reset it.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes taken from the kernel at a time.
const READ_BYTES: usize = HEAD_BYTES_MAX;
/// Pieces given to the kernel at a time.
const SLICES: usize = 64;

/// The stream of one connection, the slot it occupies, and what has been read of it and not been used yet.
#[derive(Debug)]
pub struct Socket {
    /// Present until drop.
    stream: Option<Stream>,
    house: Arc<House>,
    slot: Option<OwnedSemaphorePermit>,
    /// Runs while the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Read, and to be used before anything else; without memory while it is empty.
    ahead: Vec<u8>,
    written: u64,
    refusals: Option<Box<Refusals>>,
    /// The peer closed its side, or the connection is broken: no goodbye.
    ended: bool,
}

/// Puts problem documents in the place of answers of hyper's own.
#[derive(Debug, Default)]
struct Refusals {
    rest: Option<Bytes>,
}

/// What the kernel may hold for one connection that takes nothing; it takes the double for its own bookkeeping. By
/// itself it would let this grow to 4 MB, and ten thousand stalled readers would take 40 GB. Enough for 4 MB/s over a
/// link of 100 ms.
const SEND_BYTES: usize = 208 << 10;

/// What every accepted socket inherits from its listener: no delay for small writes, a bound for what waits in the
/// kernel, and an end for peers that vanished.
pub(super) fn tune(listener: &TcpListener) {
    let socket = socket2::SockRef::from(listener);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    // A failure leaves the kernel's defaults, which are slower but not wrong.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_send_buffer_size(SEND_BYTES);
    let _ = socket.set_tcp_keepalive(&keepalive);
    let _ = socket.set_tcp_user_timeout(Some(Duration::from_secs(30)));
}

impl Socket {
    pub(super) fn new(stream: Stream, house: Arc<House>, slot: OwnedSemaphorePermit) -> Self {
        Self {
            stream: Some(stream),
            house,
            slot: Some(slot),
            stalled: None,
            ahead: Vec::new(),
            written: 0,
            refusals: None,
            ended: false,
        }
    }

    /// Bytes that the peer's side has taken so far, to tell a slow peer from a dead one.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// What has been read and not been used.
    #[must_use]
    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// Uses the first `length` bytes of [`Self::ahead`].
    pub fn used(&mut self, length: usize) {
        if length >= self.ahead.len() {
            self.ahead = Vec::new();
        } else {
            self.ahead.drain(..length);
            // What a large body took is not kept for as long as its request waits.
            self.ahead.shrink_to(HEAD_BYTES_MAX);
        }
    }

    /// Puts `bytes` before what has been read.
    pub fn put_back(&mut self, bytes: &[u8]) {
        self.ahead.splice(..0, bytes.iter().copied());
    }

    /// Reads more into [`Self::ahead`]; `false` when the peer has closed its side or is gone.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut scratch = [MaybeUninit::uninit(); READ_BYTES];
        let mut buf = ReadBuf::uninit(&mut scratch);
        match ready!(self.poll_inner(cx, |stream, cx| stream.poll_read(cx, &mut buf))) {
            Ok(()) if !buf.filled().is_empty() => {
                self.ahead.extend_from_slice(buf.filled());
                Poll::Ready(true)
            }
            _ => {
                self.ended = true;
                Poll::Ready(false)
            }
        }
    }

    /// As [`Self::poll_fill`]. Cancel safe.
    pub async fn fill(&mut self) -> bool {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Completes when the peer is gone. What it sends meanwhile is kept, up to the size of a head; behind that
    /// its end is not seen. Cancel safe.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.ahead.len() < HEAD_BYTES_MAX {
            if !ready!(self.poll_fill(cx)) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    /// Writes all pieces, under the write deadline, as many at a time as the kernel takes.
    ///
    /// # Errors
    /// The peer is gone, or took nothing for too long.
    pub async fn send<T: AsRef<[u8]>>(&mut self, pieces: &[T]) -> io::Result<()> {
        let (mut first, mut offset) = (0, 0);
        poll_fn(|cx| {
            while first < pieces.len() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let batch = &pieces[first..pieces.len().min(first + SLICES)];
                for (slice, piece) in slices.iter_mut().zip(batch) {
                    *slice = IoSlice::new(piece.as_ref());
                }
                slices[0].advance(offset);
                let slices = &slices[..batch.len()];
                let write =
                    |stream: Pin<&mut Stream>, cx: &mut Context<'_>| stream.poll_write_vectored(cx, slices);
                let mut taken = match ready!(self.poll_progress(cx, write))? {
                    0 if slices.iter().any(|slice| !slice.is_empty()) => {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    written => written + offset,
                };
                for piece in batch {
                    let length = piece.as_ref().len();
                    if taken < length {
                        break;
                    }
                    taken -= length;
                    first += 1;
                }
                offset = taken;
            }
            // Of a stream that encrypts, some may still be on this side.
            self.poll_progress(cx, |stream, cx| stream.poll_flush(cx).map_ok(|()| 0)).map_ok(drop)
        })
        .await
    }

    /// From now on answers of hyper's own are replaced by problem documents.
    pub(super) fn replace_refusals(&mut self) {
        self.refusals = Some(Box::default());
    }

    fn poll_inner<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut Stream>, &mut Context<'_>) -> Poll<io::Result<T>>,
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
        write: impl FnOnce(Pin<&mut Stream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match self.poll_inner(cx, write) {
            Poll::Ready(Ok(written)) => {
                self.stalled = None;
                self.written += written as u64;
                Poll::Ready(Ok(written))
            }
            Poll::Ready(Err(error)) => {
                self.ended = true;
                Poll::Ready(Err(error))
            }
            Poll::Pending => {
                let deadline = self.house.limits.write_timeout;
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
        let refusals = self.refusals.as_mut()?;
        if refusals.rest.is_none() {
            refusals.rest = Some(refusal::replace(head)?.into());
        }
        while let Some(rest) = self.rest().cloned().filter(Buf::has_remaining) {
            match self.poll_progress(cx, |stream, cx| stream.poll_write(cx, &rest)) {
                Poll::Ready(Ok(written)) => {
                    if let Some(rest) = self.rest() {
                        rest.advance(written);
                    }
                }
                unfinished => return Some(unfinished),
            }
        }
        self.replace_refusals();
        Some(Poll::Ready(Ok(length)))
    }

    fn rest(&mut self) -> Option<&mut Bytes> {
        self.refusals.as_mut().and_then(|refusals| refusals.rest.as_mut())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let length = buf.remaining().min(self.ahead.len());
            buf.put_slice(&self.ahead[..length]);
            self.used(length);
            return Poll::Ready(Ok(()));
        }
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
        self.poll_progress(cx, |stream, cx| stream.poll_flush(cx).map_ok(|()| 0)).map_ok(drop)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_inner(cx, |stream, cx| stream.poll_shutdown(cx))
    }
}

impl Drop for Socket {
    /// Closing a socket with unread bytes resets it, and the reset destroys the answer that the peer has
    /// not read yet. So our side closes first, and the rest is read for a moment.
    fn drop(&mut self) {
        let house = Arc::clone(&self.house);
        let (Some(mut stream), Ok(runtime)) = (self.stream.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        if self.ended || house.kill.is_cancelled() {
            return;
        }
        let slot = self.slot.take();
        let kill = house.kill.clone();
        let goodbye = async move {
            let _slot = slot;
            let _ = stream.shutdown().await;
            poll_fn(|cx| {
                loop {
                    // On the stack: thousands may go at once.
                    let mut scratch = [MaybeUninit::uninit(); 1024];
                    let mut buf = ReadBuf::uninit(&mut scratch);
                    match ready!(Pin::new(&mut stream).poll_read(cx, &mut buf)) {
                        Ok(()) if !buf.filled().is_empty() => {}
                        _ => return Poll::Ready(()),
                    }
                }
            })
            .await;
        };
        house.tasks.spawn_on(
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpStream;
    use tokio::sync::Semaphore;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::super::Limits;
    use super::*;

    #[tokio::test]
    async fn the_kernel_holds_little_for_who_reads_nothing() {
        let listener = crate::listen::bind(([127, 0, 0, 1], 0).into()).unwrap();
        tune(&listener);
        let _peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let bytes = socket2::SockRef::from(&stream).send_buffer_size().unwrap();
        assert!(bytes <= 2 * SEND_BYTES, "{bytes}");
        let mut written = 0;
        while let Ok(more) = stream.try_write(&[0; 64 << 10]) {
            written += more;
        }
        assert!(written < 4 * SEND_BYTES, "{written}");
    }

    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let limits = Limits {
            connections_max: 1,
            head_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
        };
        let (drain, kill) = (CancellationToken::new(), CancellationToken::new());
        let house = Arc::new(House { limits, drain, tasks: TaskTracker::new(), kill });
        let slot = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        (Socket::new(Stream::Plain(listener.accept().await.unwrap().0), house, slot), peer)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn all_pieces_arrive_in_order(sizes in prop::collection::vec(prop_oneof![4 => 0..300_usize, 1 => 0..300_000_usize], 0..200)) {
            let pieces: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(i, size)| vec![i as u8; *size]).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let received = runtime.block_on(async {
                let (mut socket, mut peer) = pair().await;
                let read = async {
                    let mut received = Vec::new();
                    peer.read_to_end(&mut received).await.unwrap();
                    received
                };
                let write = async {
                    socket.send(&pieces).await.unwrap();
                    socket.shutdown().await.unwrap();
                };
                tokio::join!(write, read).1
            });
            prop_assert!(received == pieces.concat());
        }

        #[test]
        fn what_is_read_ahead_is_used_once(script in prop::collection::vec((any::<bool>(), 0..9_usize), 0..30)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (mut socket, mut peer) = pair().await;
                let (mut model, mut next) = (VecDeque::new(), 0_u8);
                for (fill, length) in script {
                    if fill && length > 0 {
                        let bytes: Vec<u8> = (0..length).map(|_| { next = next.wrapping_add(1); next }).collect();
                        peer.write_all(&bytes).await.unwrap();
                        model.extend(bytes);
                        while socket.ahead().len() < model.len() {
                            assert!(socket.fill().await);
                        }
                    } else {
                        socket.used(length);
                        model.drain(..length.min(model.len()));
                    }
                    assert_eq!(socket.ahead(), model.make_contiguous());
                }
                drop(peer);
                assert!(!socket.fill().await);
            });
        }
    }
}
