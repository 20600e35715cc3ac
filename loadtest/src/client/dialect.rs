//! What clients of each kind say and understand, as bytes in and bytes out.

use std::fmt;
use std::net::SocketAddr;

use super::Inbox;
use super::poll::Poll;
use super::redis::Redis;
use super::sse::Sse;
use super::ws::Ws;
use crate::verify::{Finds, Receipt};

/// No message that we measure is larger.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Keeps what came of a message that is not whole.
pub(super) fn keep(part: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Fault> {
    if part.len() + bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Fault::new("a message is larger than 16 MiB"));
    }
    part.extend_from_slice(bytes);
    Ok(())
}

/// Why a client cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(String);

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// What a server said that is not what we asked for; its beginning.
    pub(crate) fn unexpected(what: &str, said: &[u8]) -> Self {
        let text = String::from_utf8_lossy(&said[..said.len().min(300)]);
        Self(format!("{what}: {}", text.split_whitespace().collect::<Vec<_>>().join(" ")))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<Fault> for crate::Error {
    fn from(fault: Fault) -> Self {
        Self::failed(fault.0)
    }
}

/// Takes down what a dialect hears in one read.
#[derive(Debug)]
pub struct Ear<'a> {
    inbox: &'a mut Inbox,
    at_us: u32,
    reply: Vec<u8>,
    ready: bool,
}

impl<'a> Ear<'a> {
    /// What is heard came at `at_us`.
    pub fn new(inbox: &'a mut Inbox, at_us: u32) -> Self {
        Self { inbox, at_us, reply: Vec::new(), ready: false }
    }

    /// What to answer, and whether the server said that the client waits.
    #[must_use]
    pub fn end(self) -> (Vec<u8>, bool) {
        (self.reply, self.ready)
    }

    /// Text of whole messages.
    pub(super) fn messages(&mut self, finds: &Finds, text: &[u8]) {
        finds.all(text, |seq| self.message(seq));
    }

    pub(super) fn message(&mut self, seq: u32) {
        self.inbox.receipts.push(Receipt { seq, at_us: self.at_us });
    }

    pub(super) fn ready(&mut self) {
        self.ready = true;
    }

    pub(super) fn reset(&mut self) {
        self.inbox.resets += 1;
    }

    pub(super) fn cursor(&mut self, cursor: &[u8]) {
        let kept = self.inbox.cursor.get_or_insert_default();
        kept.clear();
        kept.push_str(&String::from_utf8_lossy(cursor));
    }

    /// The newest cursor.
    pub(super) fn known_cursor(&self) -> Option<&str> {
        self.inbox.cursor.as_deref()
    }

    pub(super) fn reply(&mut self) -> &mut Vec<u8> {
        &mut self.reply
    }
}

/// How a client speaks.
#[derive(Clone, Debug)]
pub enum Dialect {
    /// Long-poll.
    Poll(Poll),
    /// Server-sent events.
    Sse(Sse),
    /// WebSocket.
    Ws(Ws),
    /// Redis's publish/subscribe.
    Redis(Redis),
}

impl Dialect {
    /// What a client says first.
    pub fn hello(&mut self, host: SocketAddr, out: &mut Vec<u8>) {
        match self {
            Self::Poll(poll) => poll.hello(host, out),
            Self::Sse(sse) => sse.hello(host, out),
            Self::Ws(ws) => ws.hello(host, out),
            Self::Redis(redis) => redis.hello(out),
        }
    }

    /// Takes what was read. `carry` keeps, between reads, what came of a message that is not whole.
    ///
    /// # Errors
    /// The server said what it should not.
    pub fn hear(&mut self, read: &[u8], carry: &mut Vec<u8>, ear: &mut Ear<'_>) -> Result<(), Fault> {
        if carry.is_empty() {
            let taken = self.take(read, ear)?;
            return keep(carry, &read[taken..]);
        }
        keep(carry, read)?;
        let taken = self.take(carry, ear)?;
        if taken == carry.len() {
            // Nothing is held while parked.
            *carry = Vec::new();
        } else {
            carry.drain(..taken);
        }
        Ok(())
    }

    /// Takes as much as is whole; how much that is.
    fn take(&mut self, bytes: &[u8], ear: &mut Ear<'_>) -> Result<usize, Fault> {
        match self {
            Self::Poll(poll) => poll.take(bytes, ear),
            Self::Sse(sse) => sse.take(bytes, ear),
            Self::Ws(ws) => ws.take(bytes, ear),
            Self::Redis(redis) => redis.take(bytes, ear),
        }
    }
}

#[cfg(test)]
mod tests;
