//! A client that waits by server-sent events.

use std::io::Write as _;
use std::net::SocketAddr;

use memchr::{memchr, memmem};

use super::dialect::keep;
use super::http::{self, Body};
use super::{Ear, Fault};
use crate::verify::Finds;

/// The client's state.
#[derive(Clone, Debug)]
pub struct Sse {
    path: String,
    last_event_id: Option<String>,
    state: State,
    /// The beginning of a line.
    line: Vec<u8>,
    block: Block,
    finds: Finds,
}

/// What came of a block of lines. It counts at the empty line behind it: who is cut off before gets it again.
#[derive(Clone, Debug, Default)]
struct Block {
    /// Empty: none came.
    id: Vec<u8>,
    messages: Vec<u32>,
    reset: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// Before the line with a chunk's size.
    Size,
    /// So much of a chunk is left.
    Chunk(usize),
    /// Before the line break behind a chunk.
    End,
    /// No chunks: all is text.
    Plain,
}

impl Sse {
    /// Asks for `path`, from now on or after an id.
    #[must_use]
    pub fn new(path: String, last_event_id: Option<String>) -> Self {
        Self {
            path,
            last_event_id,
            state: State::Head,
            line: Vec::new(),
            block: Block::default(),
            finds: Finds::default(),
        }
    }

    pub(super) fn hello(&self, host: SocketAddr, out: &mut Vec<u8>) {
        // Writing to a Vec does not fail.
        let _ = write!(out, "GET {} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n", self.path);
        if let Some(id) = &self.last_event_id {
            let _ = write!(out, "Last-Event-ID: {id}\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    pub(super) fn take(&mut self, bytes: &[u8], ear: &mut Ear<'_>) -> Result<usize, Fault> {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            match self.state {
                State::Head => {
                    let Some(head) = http::head(rest)? else { return Ok(at) };
                    if head.status != 200 {
                        return Err(Fault::unexpected("stream refused", rest));
                    }
                    self.state = if head.body == Body::Chunked { State::Size } else { State::Plain };
                    ear.ready();
                    at += head.length;
                }
                State::Size => {
                    let Some(end) = memmem::find(rest, b"\r\n") else { return Ok(at) };
                    let digits = rest[..end].split(|byte| *byte == b';').next().unwrap_or_default();
                    let size = std::str::from_utf8(digits).ok();
                    let size = size.and_then(|text| usize::from_str_radix(text.trim(), 16).ok());
                    match size {
                        None => return Err(Fault::unexpected("not a chunk's size", rest)),
                        Some(0) => return Err(Fault::new("the server ended the stream")),
                        Some(size) => self.state = State::Chunk(size),
                    }
                    at += end + 2;
                }
                State::Chunk(left) => {
                    let here = left.min(rest.len());
                    self.text(&rest[..here], ear)?;
                    at += here;
                    if here < left {
                        self.state = State::Chunk(left - here);
                        return Ok(at);
                    }
                    self.state = State::End;
                }
                State::End => {
                    if rest.len() < 2 {
                        return Ok(at);
                    }
                    self.state = State::Size;
                    at += 2;
                }
                State::Plain => {
                    self.text(rest, ear)?;
                    return Ok(bytes.len());
                }
            }
        }
    }

    /// Takes whole lines and keeps the rest.
    fn text(&mut self, mut text: &[u8], ear: &mut Ear<'_>) -> Result<(), Fault> {
        while let Some(end) = memchr(b'\n', text) {
            if self.line.is_empty() {
                self.block.line(&self.finds, &text[..end], ear);
            } else {
                self.line.extend_from_slice(&text[..end]);
                self.block.line(&self.finds, &self.line, ear);
                self.line = Vec::new();
            }
            text = &text[end + 1..];
        }
        keep(&mut self.line, text)
    }
}

impl Block {
    fn line(&mut self, finds: &Finds, line: &[u8], ear: &mut Ear<'_>) {
        if let Some(data) = line.strip_prefix(b"data:") {
            finds.all(data, |seq| self.messages.push(seq));
        } else if let Some(id) = line.strip_prefix(b"id:") {
            self.id.clear();
            self.id.extend_from_slice(id.trim_ascii());
        } else if line.starts_with(b"event: reset") {
            self.reset = true;
        } else if matches!(line, b"" | b"\r") {
            self.messages.drain(..).for_each(|seq| ear.message(seq));
            if std::mem::take(&mut self.reset) {
                ear.reset();
            }
            if !self.id.is_empty() {
                ear.cursor(&self.id);
                self.id.clear();
            }
        }
    }
}
