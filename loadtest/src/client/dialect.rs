//! What clients of each kind say and understand, as bytes in and bytes out.

use std::fmt;
use std::net::SocketAddr;

use super::Inbox;
use super::poll::Poll;
use super::redis::Redis;
use super::sse::Sse;
use super::ws::Ws;
use crate::verify::{Finds, Receipt};

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
        let Self { inbox, at_us, .. } = self;
        finds.all(text, |seq| inbox.receipts.push(Receipt { seq, at_us: *at_us }));
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
            carry.extend_from_slice(&read[taken..]);
            return Ok(());
        }
        carry.extend_from_slice(read);
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
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const CURSOR: &str = "10I3gsm--8GCJ-0-----13GQZ-------1";

    /// What a dialect made of bytes.
    #[derive(Debug, Default, PartialEq)]
    struct Heard {
        seqs: Vec<u32>,
        cursor: Option<String>,
        resets: u32,
        ready: bool,
        replies: Vec<u8>,
    }

    fn hear(mut dialect: Dialect, pieces: &[&[u8]]) -> Result<Heard, Fault> {
        dialect.hello(([127, 0, 0, 1], 80).into(), &mut Vec::new());
        let (mut inbox, mut carry, mut heard) = (Inbox::default(), Vec::new(), Heard::default());
        for piece in pieces {
            let mut ear = Ear::new(&mut inbox, 0);
            dialect.hear(piece, &mut carry, &mut ear)?;
            let (reply, ready) = ear.end();
            heard.replies.extend(reply);
            heard.ready |= ready;
        }
        assert!(carry.is_empty(), "all was whole: {carry:?}");
        heard.seqs = inbox.receipts.iter().map(|receipt| receipt.seq).collect();
        (heard.cursor, heard.resets) = (inbox.cursor, inbox.resets);
        Ok(heard)
    }

    fn event(seq: u32) -> String {
        format!(
            r#"{{"cursor":"{CURSOR}","topic":"lt/7","op":"message","data":{{"seq": {seq}}},"xid":{seq}}}"#
        )
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            short @ 0..126 => out.push(short as u8),
            middle @ 126..65_536 => {
                out.push(126);
                out.extend((middle as u16).to_be_bytes());
            }
            long => {
                out.push(127);
                out.extend((long as u64).to_be_bytes());
            }
        }
        out.extend(payload);
        out
    }

    fn poll(topic: &str) -> Dialect {
        Dialect::Poll(Poll::new(topic, Duration::from_secs(50), None))
    }

    fn chunk(text: &str) -> String {
        format!("{:x}\r\n{text}\r\n", text.len())
    }

    /// What a server of each kind says, and what is to be heard in it.
    fn said() -> Vec<(Dialect, Vec<u8>, Vec<u32>, u32)> {
        let page = |seqs: &[u32]| {
            let events: Vec<_> = seqs.iter().map(|seq| event(*seq)).collect();
            answer("200 OK", &format!(r#"{{"cursor":"{CURSOR}","events":[{}]}}"#, events.join(",")))
        };
        let reset = answer("410 Gone", &format!(r#"{{"code":"cursor_expired","resume":"{CURSOR}"}}"#));
        let pages = [page(&[1, 2]), page(&[]), reset, page(&[30])].concat();

        let block = |seq| format!("id: {CURSOR}\ndata: {}\n\n", event(seq));
        let lines = format!("retry: 1000\n\nid: {CURSOR}\n\n{}:\nid: {CURSOR}\n\n", block(1));
        let reset = format!("event: reset\nid: {CURSOR}\ndata: {{\"reason\":\"gap\"}}\n\n");
        let two = block(2) + &block(30);
        // A chunk may end anywhere.
        let (left, right) = two.split_at(two.len() - 9);
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let chunked = [head, &chunk(&lines), &chunk(&reset), &chunk(left), &chunk(right)].concat();
        let plain = ["HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", &lines, &reset, &two].concat();

        let text = |text: String| frame(0x81, text.as_bytes());
        let pad = "x".repeat(70_000);
        let (first, second) = (br#"{"event":{"cursor":"", "data":{"seq": 3"#, br"0}}}");
        let ws = [
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n".to_vec(),
            text(format!(r#"{{"subscribed":{{"topics":["lt/7"],"cursor":"{CURSOR}"}}}}"#)),
            text(format!(r#"{{"event":{}}}"#, event(1))),
            frame(0x89, b"are you there"),
            text(format!(r#"{{"reset":{{"reason":"gap","resume":"{CURSOR}"}}}}"#)),
            text(format!(r#"{{"events":[{{"data":{{"seq":2,"pad":"{pad}"}}}}]}}"#)),
            frame(0x01, first),
            frame(0x80, second),
        ]
        .concat();

        let push =
            |kind: &str, last: String| format!("*3\r\n${}\r\n{kind}\r\n$4\r\nlt/7\r\n{last}", kind.len());
        let message = |text: &str| push("message", format!("${}\r\n{text}\r\n", text.len()));
        let redis = [push("subscribe", ":1\r\n".into()), message(r#"{"seq": 1}"#), message(r#"{"seq":2}"#)];
        let redis = redis.concat() + &message(r#"{"seq":30}"#);

        let sse = || Dialect::Sse(Sse::new("/".into(), None));
        vec![
            (poll("lt/7"), pages.into_bytes(), vec![1, 2, 30], 1),
            (sse(), chunked.into_bytes(), vec![1, 2, 30], 1),
            (sse(), plain.into_bytes(), vec![1, 2, 30], 1),
            (Dialect::Ws(Ws::new("/".into())), ws, vec![1, 2, 30], 1),
            (Dialect::Redis(Redis::new("lt/7")), redis.into_bytes(), vec![1, 2, 30], 0),
        ]
    }

    #[test]
    fn what_servers_say_is_understood() {
        for (dialect, said, seqs, resets) in said() {
            let kind = format!("{dialect:?}");
            let heard = hear(dialect, &[&said]).unwrap();
            assert_eq!((heard.seqs, heard.resets), (seqs, resets), "{kind}");
            let (poll, redis) = (kind.starts_with("Poll"), kind.starts_with("Redis"));
            assert_eq!((heard.ready, heard.cursor.is_some()), (!poll, !redis), "{kind}");
            let replies = String::from_utf8_lossy(&heard.replies).into_owned();
            if poll {
                let asked = format!("GET /v1/events?topic=lt/7&wait=50s&after={CURSOR} HTTP/1.1\r\n");
                assert_eq!(replies.matches(&asked).count(), 4, "{replies}");
            }
            if kind.starts_with("Ws") {
                assert_eq!(heard.replies, [&[0x8A, 0x8D, 0, 0, 0, 0], &b"are you there"[..]].concat());
            }
        }
    }

    #[test]
    fn refusals_end_a_client() {
        let check = |dialect: Dialect, said: &[u8], named: &str| {
            let fault = hear(dialect, &[said]).unwrap_err().to_string();
            assert!(fault.contains(named), "{fault}");
        };
        let busy = answer("429 Too Many Requests", r#"{"code":"overloaded"}"#).into_bytes();
        check(poll("a"), &busy, "overloaded");
        check(Dialect::Sse(Sse::new("/".into(), None)), &busy, "overloaded");
        check(Dialect::Ws(Ws::new("/".into())), &busy, "overloaded");
        check(Dialect::Redis(Redis::new("a")), b"-ERR max number of clients reached\r\n", "max number");
        let end = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        check(Dialect::Sse(Sse::new("/".into(), None)), end, "ended the stream");
        let error = frame(0x81, br#"{"error":{"code":"bad_topic"}}"#);
        let error = [b"HTTP/1.1 101 x\r\n\r\n".to_vec(), error].concat();
        check(Dialect::Ws(Ws::new("/".into())), &error, "bad_topic");
    }

    proptest! {
        #[test]
        fn where_reads_end_makes_no_difference(cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12)) {
            for (dialect, said, ..) in said() {
                let whole = hear(dialect.clone(), &[&said]).unwrap();
                let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(said.len())).collect();
                places.extend([0, said.len()]);
                places.sort_unstable();
                let pieces: Vec<_> = places.windows(2).map(|ends| &said[ends[0]..ends[1]]).collect();
                prop_assert_eq!(hear(dialect, &pieces).unwrap(), whole);
            }
        }
    }
}
