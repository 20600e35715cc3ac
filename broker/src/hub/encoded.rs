//! An event as bytes, made once and shared by every transport and every subscriber.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use walcast_wire::{Cursor, Epoch, Op, Position, Topic};

use super::merge::merge;
use crate::event::{Commit, Event};

/// Room for the header of a WebSocket frame, which stands before its text and ends here.
const HEADER_BYTES_MAX: usize = 10;
/// What stands before the event object in the text of a WebSocket frame.
const TEXT_PREFIX: &str = r#"{"event":"#;
/// What stands before the cursor in the event object.
const CURSOR_PREFIX: &str = r#"{"cursor":""#;
/// Bookkeeping that an event costs beside its bytes: list entries, reference counts, allocation headers.
const OVERHEAD_BYTES: usize = 192;

/// An encoded event.
#[derive(Debug)]
pub struct Encoded {
    cursor: Cursor,
    topic: Topic,
    /// Room, header, text.
    frame: Bytes,
    /// Where the header begins.
    header: u8,
    data: (u32, u32),
    /// Order among events of one position.
    pub(super) index: u32,
}

impl Encoded {
    /// Where it lies.
    #[must_use]
    pub fn position(&self) -> Position {
        self.cursor.position
    }

    /// What to present to go on after it.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Where it was published.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.topic
    }

    /// As a WebSocket frame of its own: `{"event":{…}}` behind a header. A server's frames are unmasked, so this
    /// one is everybody's.
    #[must_use]
    pub fn websocket_frame(&self) -> &[u8] {
        self.frame.get(usize::from(self.header)..).unwrap_or_default()
    }

    /// The event object.
    #[must_use]
    pub fn json(&self) -> Bytes {
        self.frame.slice(HEADER_BYTES_MAX + TEXT_PREFIX.len()..self.frame.len() - 1)
    }

    /// The value of `data` alone.
    #[must_use]
    pub fn data(&self) -> Bytes {
        self.frame.slice(self.data.0 as usize..self.data.1 as usize)
    }

    /// Memory that keeping it costs.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        self.frame.len() + self.topic.as_str().len() + OVERHEAD_BYTES
    }
}

/// Why bytes are no encoded event.
#[derive(Debug, thiserror::Error)]
pub enum NotEncoded {
    /// They are no event object.
    #[error("no event: {0}")]
    Json(#[from] serde_json::Error),
    /// Its cursor or its topic are not of the form that all nodes of this version write.
    #[error("its {0} is not one")]
    Word(&'static str),
}

impl Encoded {
    /// Takes an event object as another node has encoded it; its bytes are told on untouched.
    ///
    /// # Errors
    /// See [`NotEncoded`].
    pub fn read(json: &[u8]) -> Result<Self, NotEncoded> {
        #[derive(Deserialize)]
        struct Known<'a> {
            #[serde(borrow)]
            cursor: Cow<'a, str>,
            #[serde(borrow)]
            topic: Cow<'a, str>,
            #[serde(borrow)]
            data: &'a RawValue,
        }
        let known: Known<'_> = serde_json::from_slice(json)?;
        let cursor = known.cursor.parse().map_err(|_| NotEncoded::Word("cursor"))?;
        let topic = Topic::new(&known.topic).map_err(|_| NotEncoded::Word("topic"))?;
        let before = HEADER_BYTES_MAX + TEXT_PREFIX.len();
        // What was read borrows from `json`, so its place there is the difference of two addresses.
        let start = before + (known.data.get().as_ptr().addr() - json.as_ptr().addr());
        let end = start + known.data.get().len();
        let mut out = Vec::with_capacity(before + json.len() + 1);
        out.extend_from_slice(&[0; HEADER_BYTES_MAX]);
        out.extend_from_slice(TEXT_PREFIX.as_bytes());
        out.extend_from_slice(json);
        out.push(b'}');
        let header = write_header(&mut out);
        let frame = Bytes::from(out);
        Ok(Self { cursor, topic, frame, header, data: (clamp(start), clamp(end)), index: 0 })
    }
}

#[derive(Deserialize)]
struct Names {
    #[serde(default)]
    unchanged: Vec<Arc<str>>,
}

impl Encoded {
    /// The same with unsent columns taken from `known`; `None` if that changes nothing.
    pub(super) fn filled(&self, known: &[u8]) -> Option<Self> {
        let unchanged: Vec<Arc<str>> = serde_json::from_slice::<Names>(&self.json()).ok()?.unchanged;
        let mut text = Vec::new();
        write_names("unchanged", &unchanged, &mut text);
        let (start, end) = (self.data.0 as usize, self.data.1 as usize);
        let rest = self.frame.get(end..)?;
        let at = rest.windows(text.len().max(1)).position(|window| window == text)?;
        let (data, still) = merge(&self.data(), &unchanged, known)?;
        let mut out = Vec::with_capacity(self.frame.len() + data.len());
        out.extend_from_slice(self.frame.get(..start)?);
        out.extend_from_slice(&data);
        out.extend_from_slice(rest.get(..at)?);
        write_names("unchanged", &still, &mut out);
        out.extend_from_slice(rest.get(at + text.len()..)?);
        let end = u32::try_from(start + data.len()).ok()?;
        let (cursor, topic, index) = (self.cursor, self.topic.clone(), self.index);
        let header = write_header(&mut out);
        Some(Self { cursor, topic, frame: Bytes::from(out), header, data: (self.data.0, end), index })
    }
}

/// Encodes events of one epoch; remembers the text of the last transaction, since events come in runs.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    epoch: Epoch,
    commit: Option<Arc<Commit>>,
    commit_text: String,
}

impl Encoder {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self { epoch, commit: None, commit_text: String::new() }
    }

    fn commit_text(&mut self, commit: Option<&Arc<Commit>>) -> &str {
        let Some(commit) = commit else { return "" };
        if !self.commit.as_ref().is_some_and(|known| Arc::ptr_eq(known, commit)) {
            self.commit = Some(Arc::clone(commit));
            self.commit_text.clear();
            let _ = write!(self.commit_text, r#","time":""#);
            write_time(commit.time_us, &mut self.commit_text);
            if let Some(lsn) = commit.lsn {
                let _ = write!(self.commit_text, r#"","lsn":"{:X}/{:X}"#, lsn >> 32, lsn & 0xFFFF_FFFF);
            }
            let _ = write!(self.commit_text, r#"","xid":{}"#, commit.xid);
        }
        &self.commit_text
    }

    /// Encodes a current value.
    pub(super) fn snapshot(&mut self, event: &Event) -> Encoded {
        self.encode(event, Op::Snapshot, false)
    }

    /// Encodes `event` as `op`.
    pub(super) fn encode(&mut self, event: &Event, op: Op, last: bool) -> Encoded {
        let cursor = Cursor::new(self.epoch, event.position);
        let commit = self.commit_text(event.commit.as_ref());
        let topic = event.topic.as_str();
        let mut out = Vec::with_capacity(224 + topic.len() + event.data.len());
        out.extend_from_slice(&[0; HEADER_BYTES_MAX]);
        out.extend_from_slice(TEXT_PREFIX.as_bytes());
        out.extend_from_slice(CURSOR_PREFIX.as_bytes());
        out.extend_from_slice(&cursor.encode());
        out.extend_from_slice(br#"","topic":"#);
        write_string(topic, &mut out);
        out.extend_from_slice(br#","op":""#);
        out.extend_from_slice(op.as_str().as_bytes());
        out.extend_from_slice(br#"","data":"#);
        let start = out.len();
        out.extend_from_slice(&event.data);
        let end = out.len();
        out.extend_from_slice(commit.as_bytes());
        if event.partial {
            out.extend_from_slice(br#","partial":true"#);
        } else if last {
            out.extend_from_slice(br#","last":true"#);
        }
        write_names("unchanged", &event.unchanged, &mut out);
        write_names("omitted", &event.omitted, &mut out);
        out.extend_from_slice(b"}}");
        let header = write_header(&mut out);
        out.shrink_to_fit();
        Encoded {
            cursor,
            topic: event.topic.clone(),
            frame: Bytes::from(out),
            header,
            data: (clamp(start), clamp(end)),
            index: 0,
        }
    }
}

/// Events are bounded far below 4 GiB; a longer one would have been cut by the router.
fn clamp(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Writes the header of an unmasked text frame before the text; where it begins (RFC 6455, section 5.2).
fn write_header(frame: &mut [u8]) -> u8 {
    const FINAL_TEXT: u8 = 0x81;
    let length = frame.len().saturating_sub(HEADER_BYTES_MAX);
    let wide = (length as u64).to_be_bytes();
    let (code, width) = match length {
        0..=125 => (wide[7], 0),
        126..=0xFFFF => (126, 2),
        _ => (127, 8),
    };
    let begin = HEADER_BYTES_MAX - 2 - width;
    if let Some(header) = frame.get_mut(begin..HEADER_BYTES_MAX) {
        header[..2].copy_from_slice(&[FINAL_TEXT, code]);
        header[2..].copy_from_slice(&wide[8 - width..]);
    }
    u8::try_from(begin).unwrap_or_default()
}

fn write_names(field: &str, names: &[Arc<str>], out: &mut Vec<u8>) {
    for (i, name) in names.iter().enumerate() {
        if i == 0 {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(field.as_bytes());
            out.extend_from_slice(b"\":[");
        } else {
            out.push(b',');
        }
        write_string(name, out);
    }
    if !names.is_empty() {
        out.push(b']');
    }
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    // Writing to a Vec does not fail.
    let _ = serde_json::to_writer(out, text);
}

/// RFC 3339 in UTC with microseconds. Days to a civil date by Howard Hinnant's `civil_from_days`.
fn write_time(time_us: i64, out: &mut String) {
    let (days, in_day_us) = (time_us.div_euclid(86_400_000_000), time_us.rem_euclid(86_400_000_000));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (seconds, us) = (in_day_us / 1_000_000, in_day_us % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{us:06}Z");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_event_is_the_wire_event() {
        let commit =
            Arc::new(Commit { major: 7, lsn: Some(0x16_B374_D848), xid: 9, time_us: 1_700_000_000_123_456 });
        let event = Event {
            position: Position::new(7, 3),
            topic: Topic::new("vm/a\"b").unwrap(),
            op: Op::Update,
            data: Bytes::from_static(br#"{"pin":1}"#),
            commit: Some(commit),
            unchanged: Box::from([Arc::from("logs")]),
            omitted: Box::from([]),
            partial: false,
            state: None,
        };
        let mut encoder = Encoder::new(Epoch(5));
        let encoded = encoder.encode(&event, event.op, true);
        let wire: walcast_wire::Event<serde_json::Value> = serde_json::from_slice(&encoded.json()).unwrap();
        assert_eq!(wire.cursor, Cursor::new(Epoch(5), Position::new(7, 3)));
        assert_eq!(wire.topic, event.topic);
        assert_eq!(wire.data, serde_json::json!({"pin": 1}));
        assert_eq!(wire.time.as_deref(), Some("2023-11-14T22:13:20.123456Z"));
        assert_eq!(wire.lsn.as_deref(), Some("16/B374D848"));
        assert_eq!((wire.xid, wire.last, wire.unchanged), (Some(9), true, vec!["logs".to_owned()]));
        assert_eq!(encoded.data(), event.data);
        let frame: walcast_wire::ServerFrame<serde_json::Value> =
            serde_json::from_slice(&encoded.websocket_frame()[4..]).unwrap();
        assert!(matches!(frame, walcast_wire::ServerFrame::Event(_)));

        let read = Encoded::read(&encoded.json()).unwrap();
        assert_eq!((read.websocket_frame(), read.data()), (encoded.websocket_frame(), encoded.data()));
        assert_eq!((read.cursor(), read.topic()), (encoded.cursor(), encoded.topic()));
        Encoded::read(&encoded.json()[1..]).unwrap_err();
        Encoded::read(br#"{"cursor":"1","topic":"a","data":1}"#).unwrap_err();

        let unlogged = Commit { major: 7, lsn: None, xid: 9, time_us: 0 };
        let event = Event { commit: Some(Arc::new(unlogged)), ..event };
        let encoded = encoder.encode(&event, event.op, false);
        let wire: walcast_wire::Event<serde_json::Value> = serde_json::from_slice(&encoded.json()).unwrap();
        assert_eq!((wire.lsn, wire.xid, wire.last), (None, Some(9), false));
        assert_eq!(wire.time.as_deref(), Some("1970-01-01T00:00:00.000000Z"));
    }

    #[test]
    fn headers_hold_the_length() {
        let check = |length: usize, expected: &[u8]| {
            let mut frame = vec![0; HEADER_BYTES_MAX + length];
            let begin = usize::from(write_header(&mut frame));
            assert_eq!(&frame[begin..HEADER_BYTES_MAX], expected, "{length}");
        };
        check(0, &[0x81, 0]);
        check(125, &[0x81, 125]);
        check(126, &[0x81, 126, 0, 126]);
        check(0xFFFF, &[0x81, 126, 0xFF, 0xFF]);
        check(0x1_0000, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn times() {
        let check = |time_us: i64, expected: &str| {
            let mut text = String::new();
            write_time(time_us, &mut text);
            assert_eq!(text, expected);
        };
        check(0, "1970-01-01T00:00:00.000000Z");
        check(-1, "1969-12-31T23:59:59.999999Z");
        check(951_782_400_000_000, "2000-02-29T00:00:00.000000Z");
        check(4_107_542_399_000_001, "2100-02-28T23:59:59.000001Z");
    }
}
