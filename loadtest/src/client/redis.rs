//! A client that waits by Redis's SUBSCRIBE.

use std::io::Write as _;

use memchr::memmem;

use super::{Ear, Fault};
use crate::verify::Finds;

/// The client's state.
#[derive(Clone, Debug)]
pub struct Redis {
    channel: String,
    finds: Finds,
}

impl Redis {
    /// Subscribes to `channel`.
    #[must_use]
    pub fn new(channel: &str) -> Self {
        Self { channel: channel.to_owned(), finds: Finds::default() }
    }

    pub(super) fn hello(&self, out: &mut Vec<u8>) {
        // Writing to a Vec does not fail.
        let _ = write!(out, "SUBSCRIBE {}\r\n", self.channel);
    }

    pub(super) fn take(&mut self, bytes: &[u8], ear: &mut Ear<'_>) -> Result<usize, Fault> {
        let mut at = 0;
        // Each push is an array of three: its kind, the channel, and a message or a count.
        while let Some((b"*3", after)) = line(bytes, at)? {
            let Some((kind, after)) = item(bytes, after)? else { break };
            let Some((_, after)) = item(bytes, after)? else { break };
            let Some((message, after)) = item(bytes, after)? else { break };
            at = after;
            match kind {
                b"message" => ear.messages(&self.finds, message),
                b"subscribe" => ear.ready(),
                _ => return Err(Fault::unexpected("not a push of Redis", kind)),
            }
        }
        Ok(at)
    }
}

/// The line at `at` and where it ends, once it is whole. An error of the server is one here.
fn line(bytes: &[u8], at: usize) -> Result<Option<(&[u8], usize)>, Fault> {
    let Some(rest) = bytes.get(at..) else { return Ok(None) };
    let Some(end) = memmem::find(rest, b"\r\n") else { return Ok(None) };
    match rest.first() {
        Some(b'*' | b'$' | b':') => Ok(Some((&rest[..end], at + end + 2))),
        _ => Err(Fault::unexpected("Redis says", rest)),
    }
}

/// A string or a number.
fn item(bytes: &[u8], at: usize) -> Result<Option<(&[u8], usize)>, Fault> {
    let Some((head, after)) = line(bytes, at)? else { return Ok(None) };
    let Some(length) = head.strip_prefix(b"$") else { return Ok(Some((head, after))) };
    let length: usize = std::str::from_utf8(length)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| Fault::unexpected("not a length of Redis", head))?;
    let end = after.saturating_add(length);
    if bytes.len() < end.saturating_add(2) {
        return Ok(None);
    }
    Ok(Some((&bytes[after..end], end + 2)))
}
