//! A client that waits by WebSocket. It never asks for compression, and says nothing but pongs.

use std::io::Write as _;
use std::net::SocketAddr;

use memchr::memmem;
use walcast_wire::Cursor;

use super::dialect::keep;
use super::http;
use super::{Ear, Fault};
use crate::verify::Finds;

/// Sixteen bytes in base64; nobody needs them to be secret.
const KEY: &str = "d2FsY2FzdC1sb2FkdGVzdA==";

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;

/// The client's state.
#[derive(Clone, Debug)]
pub struct Ws {
    path: String,
    open: bool,
    /// What came of a message in several frames.
    parts: Vec<u8>,
    finds: Finds,
}

impl Ws {
    /// Opens `path`.
    #[must_use]
    pub fn new(path: String) -> Self {
        Self { path, open: false, parts: Vec::new(), finds: Finds::default() }
    }

    pub(super) fn hello(&self, host: SocketAddr, out: &mut Vec<u8>) {
        // Writing to a Vec does not fail.
        let _ = write!(
            out,
            "GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n",
            self.path
        );
    }

    pub(super) fn take(&mut self, bytes: &[u8], ear: &mut Ear<'_>) -> Result<usize, Fault> {
        let mut at = 0;
        if !self.open {
            let Some(head) = http::head(bytes)? else { return Ok(0) };
            if head.status != 101 {
                return Err(Fault::unexpected("WebSocket refused", bytes));
            }
            self.open = true;
            ear.ready();
            at = head.length;
        }
        while let Some(frame) = frame(&bytes[at..]) {
            at += frame.whole;
            match frame.opcode {
                TEXT | CONTINUATION if !frame.last || !self.parts.is_empty() => {
                    keep(&mut self.parts, frame.payload)?;
                    if frame.last {
                        let whole = std::mem::take(&mut self.parts);
                        self.text(&whole, ear)?;
                    }
                }
                TEXT => self.text(frame.payload, ear)?,
                PING => pong(frame.payload, ear.reply()),
                CLOSE => {
                    let reason = frame.payload.get(2..).unwrap_or_default();
                    return Err(Fault::unexpected("the server closed the WebSocket", reason));
                }
                _ => {}
            }
        }
        Ok(at)
    }

    fn text(&self, text: &[u8], ear: &mut Ear<'_>) -> Result<(), Fault> {
        const EVENT: &[u8] = br#"{"event":{"cursor":""#;
        let starts = |key: &[u8]| text.starts_with(key);
        if let Some(rest) = text.strip_prefix(EVENT) {
            ear.messages(&self.finds, rest);
            cursor(Some(rest), ear);
        } else if starts(br#"{"events":"#) {
            ear.messages(&self.finds, text);
            // One for all of them.
            cursor(behind(text, br#""cursor":""#), ear);
        } else if starts(br#"{"subscribed":"#) || starts(br#"{"bookmark":"#) {
            cursor(behind(text, br#""cursor":""#), ear);
        } else if starts(br#"{"reset":"#) {
            ear.reset();
            cursor(behind(text, br#""resume":""#), ear);
        } else if text.starts_with(br#"{"error":"#) {
            return Err(Fault::unexpected("WebSocket", text));
        } else {
            // Other servers' messages.
            ear.messages(&self.finds, text);
        }
        Ok(())
    }
}

/// What follows the first `key`.
fn behind<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    memmem::find(text, key).and_then(|at| text.get(at + key.len()..))
}

/// Takes the cursor with which `text` begins.
fn cursor(text: Option<&[u8]>, ear: &mut Ear<'_>) {
    if let Some(cursor) = text.and_then(|text| text.get(..Cursor::WIDTH)) {
        ear.cursor(cursor);
    }
}

struct Frame<'a> {
    opcode: u8,
    last: bool,
    payload: &'a [u8],
    /// Bytes of it, header included.
    whole: usize,
}

/// The first frame, once it is whole. A server's frames are not masked.
fn frame(bytes: &[u8]) -> Option<Frame<'_>> {
    let [first, second, ..] = *bytes else { return None };
    let (header, length) = match second & 0x7F {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        short => (2, usize::from(short)),
    };
    let whole = length.checked_add(header)?;
    let payload = bytes.get(header..whole)?;
    Some(Frame { opcode: first & 0x0F, last: first & 0x80 != 0, payload, whole })
}

/// A client masks what it sends; a mask of zeros leaves it as it is.
fn pong(payload: &[u8], out: &mut Vec<u8>) {
    let payload = &payload[..payload.len().min(125)];
    out.extend_from_slice(&[0x8A, 0x80 | u8::try_from(payload.len()).unwrap_or(0), 0, 0, 0, 0]);
    out.extend_from_slice(payload);
}
