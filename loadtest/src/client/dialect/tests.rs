//! What servers say, whole and in pieces, and what is to be heard in it.

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
    format!(r#"{{"cursor":"{CURSOR}","topic":"lt/7","op":"message","data":{{"seq": {seq}}},"xid":{seq}}}"#)
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

    let push = |kind: &str, last: String| format!("*3\r\n${}\r\n{kind}\r\n$4\r\nlt/7\r\n{last}", kind.len());
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

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";

/// Who is cut off before the end of a block is sent it again, and must not have it twice.
#[test]
fn a_block_of_lines_counts_once_it_is_whole() {
    let head = [HEAD, format!("id: {CURSOR}\ndata: {}\n", event(7)).as_bytes()].concat();
    let sse = Dialect::Sse(Sse::new("/".into(), None));
    let cut = hear(sse.clone(), &[&head]).unwrap();
    assert_eq!((cut.seqs, cut.cursor), (vec![], None));
    let whole = hear(sse, &[&head, b"\n"]).unwrap();
    assert_eq!((whole.seqs, whole.cursor.as_deref()), (vec![7], Some(CURSOR)));
}

#[test]
fn every_frame_that_moves_a_client_is_heeded() {
    let event = event(7);
    for (said, seqs) in [
        (format!(r#"{{"event":{event}}}"#), vec![7]),
        (format!(r#"{{"events":[{event},{event}]}}"#), vec![7, 7]),
        (format!(r#"{{"subscribed":{{"topics":["lt/7"],"cursor":"{CURSOR}"}}}}"#), vec![]),
        (format!(r#"{{"bookmark":{{"cursor":"{CURSOR}"}}}}"#), vec![]),
        (format!(r#"{{"reset":{{"reason":"gap","resume":"{CURSOR}"}}}}"#), vec![]),
    ] {
        let bytes = [SWITCH, &frame(0x81, said.as_bytes())].concat();
        let heard = hear(Dialect::Ws(Ws::new("/".into())), &[&bytes]).unwrap();
        assert_eq!((heard.seqs, heard.cursor.as_deref()), (seqs, Some(CURSOR)), "{said}");
    }
}

/// A server that has gone mad must not take our memory with it.
#[test]
fn what_is_not_whole_is_kept_up_to_a_limit() {
    let line = vec![b'x'; 1 << 20];
    // A line without an end, a message of ever more frames, an answer that says it is huge.
    let part = frame(0x01, &line);
    let huge = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n";
    for (dialect, said) in [
        (Dialect::Sse(Sse::new("/".into(), None)), pieces(HEAD, &line)),
        (Dialect::Ws(Ws::new("/".into())), pieces(SWITCH, &part)),
        (poll("a"), pieces(huge, &line)),
    ] {
        let fault = hear(dialect, &said).unwrap_err().to_string();
        assert!(fault.contains("16 MiB"), "{fault}");
    }
}

/// A head, and more than may be kept.
fn pieces<'a>(head: &'a [u8], piece: &'a [u8]) -> Vec<&'a [u8]> {
    std::iter::once(head).chain(std::iter::repeat_n(piece, 17)).collect()
}
