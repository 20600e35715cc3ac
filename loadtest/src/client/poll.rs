//! A client that waits by long-poll: an answer, and at once the next question with its cursor.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use memchr::{memchr, memmem};

use super::http::{self, Body};
use super::{Ear, Fault};
use crate::verify::Finds;

/// The client's state.
#[derive(Clone, Debug)]
pub struct Poll {
    topic: String,
    /// How long a question may be held.
    wait: Duration,
    after: Option<String>,
    host: Option<SocketAddr>,
    finds: Finds,
}

impl Poll {
    /// Waits for `topic`, from now on or after a cursor.
    #[must_use]
    pub fn new(topic: &str, wait: Duration, after: Option<String>) -> Self {
        Self { topic: topic.to_owned(), wait, after, host: None, finds: Finds::default() }
    }

    pub(super) fn hello(&mut self, host: SocketAddr, out: &mut Vec<u8>) {
        self.host = Some(host);
        self.ask(self.after.as_deref(), out);
    }

    fn ask(&self, after: Option<&str>, out: &mut Vec<u8>) {
        // Writing to a Vec does not fail.
        let _ = write!(out, "GET /v1/events?topic={}&wait={}s", self.topic, self.wait.as_secs());
        if let Some(after) = after {
            let _ = write!(out, "&after={after}");
        }
        out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
        if let Some(host) = self.host {
            let _ = write!(out, "{host}");
        }
        out.extend_from_slice(b"\r\n\r\n");
    }

    pub(super) fn take(&mut self, bytes: &[u8], ear: &mut Ear<'_>) -> Result<usize, Fault> {
        let mut at = 0;
        loop {
            match self.answer(&bytes[at..], ear)? {
                0 => return Ok(at),
                length => at += length,
            }
        }
    }

    /// Takes one answer; how long it was, or 0 if it is not whole.
    fn answer(&mut self, bytes: &[u8], ear: &mut Ear<'_>) -> Result<usize, Fault> {
        let Some(head) = http::head(bytes)? else { return Ok(0) };
        let Body::Length(length) = head.body else {
            return Err(Fault::unexpected("an answer to a long-poll has no length", bytes));
        };
        let Some(body) = bytes.get(head.length..head.length + length) else { return Ok(0) };
        match head.status {
            200 => {
                let (cursor, from) = member(body, br#""cursor":""#)
                    .ok_or_else(|| Fault::unexpected("an answer without a cursor", body))?;
                ear.cursor(cursor);
                ear.messages(&self.finds, &body[from..]);
            }
            410 => {
                ear.reset();
                let (resume, _) = member(body, br#""resume":""#)
                    .ok_or_else(|| Fault::unexpected("a reset without a cursor", body))?;
                ear.cursor(resume);
            }
            _ => return Err(Fault::unexpected("long-poll refused", bytes)),
        }
        let mut reply = std::mem::take(ear.reply());
        self.ask(ear.known_cursor(), &mut reply);
        *ear.reply() = reply;
        Ok(head.length + length)
    }
}

/// The text behind the first `key`, and where it ends.
fn member<'a>(body: &'a [u8], key: &[u8]) -> Option<(&'a [u8], usize)> {
    let start = memmem::find(body, key)? + key.len();
    let end = start + memchr(b'"', &body[start..])?;
    Some((&body[start..end], end))
}
