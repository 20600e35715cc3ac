//! Bodies put together from shared bytes: large parts are referenced, small ones copied together.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, SizeHint};

/// Below this a copy is cheaper than one more slice in a vectored write.
const COPY_BELOW: usize = 1024;

/// Bytes in order, of known length.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    done: Vec<Bytes>,
    open: BytesMut,
    length: u64,
}

impl Pieces {
    pub(crate) fn copy(&mut self, bytes: &[u8]) {
        self.open.extend_from_slice(bytes);
        self.length += bytes.len() as u64;
    }

    pub(crate) fn share(&mut self, bytes: Bytes) {
        if bytes.len() < COPY_BELOW {
            return self.copy(&bytes);
        }
        self.length += bytes.len() as u64;
        self.seal();
        self.done.push(bytes);
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            self.done.push(self.open.split().freeze());
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Everything in `other` follows.
    pub(crate) fn append(&mut self, other: Self) {
        for piece in other.into_chunks() {
            self.share(piece);
        }
    }

    /// The pieces, in order.
    pub(crate) fn into_chunks(mut self) -> std::vec::IntoIter<Bytes> {
        self.seal();
        self.done.into_iter()
    }

    /// As the body of an answer.
    pub(crate) fn into_body(self) -> Whole {
        Whole { left: self.length, chunks: self.into_chunks() }
    }
}

/// A body whose length is known before it is written.
#[derive(Debug)]
pub(crate) struct Whole {
    chunks: std::vec::IntoIter<Bytes>,
    left: u64,
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = self.chunks.next();
        self.left -= chunk.as_ref().map_or(0, Bytes::len) as u64;
        Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_are_their_concatenation(parts in proptest::collection::vec((any::<bool>(), 0..3000_usize), 0..8)) {
            let (mut pieces, mut expected) = (Pieces::default(), Vec::new());
            for (i, (share, length)) in parts.into_iter().enumerate() {
                let part = vec![i as u8; length];
                expected.extend_from_slice(&part);
                if share { pieces.share(part.into()) } else { pieces.copy(&part) }
            }
            prop_assert_eq!(pieces.len(), expected.len() as u64);
            prop_assert_eq!(pieces.into_chunks().collect::<Vec<_>>().concat(), expected);
        }
    }
}
