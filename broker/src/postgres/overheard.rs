//! Listens in on what a server says, for its last words.
//!
//! A server that ends a session names the reason in one fatal error. `tokio_postgres` reports it only if nothing
//! else is under way; else it goes to the query and the session merely breaks. So the messages are followed on
//! their way in. Nothing is changed or kept back.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use postgres_protocol::message::backend::ERROR_RESPONSE_TAG;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::is_shutdown;
use super::socket::Socket;

/// Severity and code stand at the front of an error; this much of it is looked at.
const ERROR_BYTES: usize = 128;

/// The code of a shutdown, once it was heard.
pub(super) type LastWords = Arc<OnceLock<SqlState>>;

/// A socket that is listened in on.
#[derive(Debug)]
pub(super) struct Overheard {
    socket: Socket,
    scanner: Scanner,
    heard: LastWords,
}

impl Overheard {
    pub(super) fn new(socket: Socket) -> (Self, LastWords) {
        let heard = LastWords::default();
        (Self { socket, scanner: Scanner::default(), heard: Arc::clone(&heard) }, heard)
    }
}

impl AsyncRead for Overheard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(context, buffer);
        if polled.is_ready() {
            let new = buffer.filled().get(before..).unwrap_or_default();
            if let Some(code) = self.scanner.scan(new) {
                let _ = self.heard.set(code);
            }
        }
        polled
    }
}

impl AsyncWrite for Overheard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

impl TlsStream for Overheard {
    fn channel_binding(&self) -> ChannelBinding {
        match self.socket.end_point() {
            Some(hash) => ChannelBinding::tls_server_end_point(hash.to_vec()),
            None => ChannelBinding::none(),
        }
    }
}

/// Hands `tokio_postgres` a socket whose TLS is already up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Established;

impl TlsConnect<Overheard> for Established {
    type Stream = Overheard;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Overheard, Self::Error>>;

    fn connect(self, socket: Overheard) -> Self::Future {
        std::future::ready(Ok(socket))
    }
}

/// Follows the server's messages across reads.
#[derive(Debug, Default)]
struct Scanner {
    /// Of the message that has begun: its header, and the front of its body if it is an error.
    front: Vec<u8>,
    /// Bytes of its body still to come.
    body: usize,
}

impl Scanner {
    fn scan(&mut self, mut bytes: &[u8]) -> Option<SqlState> {
        const HEADER: usize = 5;
        let mut found = None;
        while !bytes.is_empty() {
            if self.body == 0 {
                let (header, rest) = bytes.split_at((HEADER - self.front.len()).min(bytes.len()));
                self.front.extend_from_slice(header);
                bytes = rest;
                let Some((_, length)) = self.front.split_first_chunk::<1>() else { continue };
                let Some(length) = length.first_chunk::<4>() else { continue };
                self.body = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(0).saturating_sub(4);
            }
            let (body, rest) = bytes.split_at(self.body.min(bytes.len()));
            if self.front.first() == Some(&ERROR_RESPONSE_TAG) {
                let room = (HEADER + ERROR_BYTES).saturating_sub(self.front.len());
                self.front.extend_from_slice(&body[..room.min(body.len())]);
            }
            self.body -= body.len();
            bytes = rest;
            if self.body == 0 {
                found = found.or_else(|| shutdown_code(&self.front));
                self.front.clear();
            }
        }
        found
    }
}

fn shutdown_code(message: &[u8]) -> Option<SqlState> {
    let (header, body) = message.split_first_chunk::<5>()?;
    if header[0] != ERROR_RESPONSE_TAG {
        return None;
    }
    let code = body.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"C"))?;
    let code = SqlState::from_code(std::str::from_utf8(code).ok()?);
    is_shutdown(&code).then_some(code)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![tag];
        message.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        message.extend(body);
        message
    }

    fn session(code: &str) -> Vec<u8> {
        let error = format!("SFATAL\0VFATAL\0C{code}\0Mgone\0{}\0\0", "x".repeat(300));
        let row = message(b'D', b"E\0\0\0\x10CC57P01\0");
        [row, message(b'1', b""), message(b'E', error.as_bytes())].concat()
    }

    #[test]
    fn the_code_is_found_however_it_is_cut() {
        let check = |code: &str, expected: Option<SqlState>| {
            for cut in 1..session(code).len() {
                let mut scanner = Scanner::default();
                let found = session(code).chunks(cut).find_map(|bytes| scanner.scan(bytes));
                assert_eq!(found, expected, "{code} cut at {cut}");
            }
        };
        check("57P01", Some(SqlState::ADMIN_SHUTDOWN));
        check("57P02", Some(SqlState::CRASH_SHUTDOWN));
        check("22012", None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let mut scanner = Scanner::default();
            for piece in pieces {
                let _ = scanner.scan(&piece);
            }
        }
    }
}
