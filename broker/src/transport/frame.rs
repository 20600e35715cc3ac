//! WebSocket messages as clients send them: masked frames, in parts or whole, put together within a bound.
//!
//! Headers are read by the WebSocket library; only what holds a message together is here, since a parked
//! connection must hold no buffer.

use std::io::Cursor;

use bytes::Bytes;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

/// The largest message from a client.
pub(super) const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// What a client said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Text(String),
    Binary,
    Ping(Vec<u8>),
    Pong,
    /// With what the client gave as its code.
    Close(Option<CloseCode>),
}

/// Why it cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    TooBig,
    Protocol,
}

/// A message whose end has not come.
#[derive(Debug)]
struct Part {
    text: bool,
    bytes: Vec<u8>,
}

/// Puts messages together.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    part: Option<Box<Part>>,
}

impl Inbox {
    /// Reads a message off `bytes`; how many of them are used, and the message if it is whole. `None`: the
    /// next frame is not whole.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Option<(usize, Option<Message>)>, Broken> {
        let mut cursor = Cursor::new(bytes);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| Broken::Protocol)?;
        let Some((header, length)) = parsed else { return Ok(None) };
        let held = self.part.as_ref().map_or(0, |part| part.bytes.len());
        let length = usize::try_from(length).map_err(|_| Broken::TooBig)?;
        let reserved = header.rsv1 || header.rsv2 || header.rsv3;
        let (Some(mask), false) = (header.mask, reserved) else { return Err(Broken::Protocol) };
        match header.opcode {
            OpCode::Control(_) if length > 125 || !header.is_final => return Err(Broken::Protocol),
            OpCode::Data(_) if length > MESSAGE_BYTES_MAX - held => return Err(Broken::TooBig),
            _ => {}
        }
        let start = usize::try_from(cursor.position()).map_err(|_| Broken::TooBig)?;
        let Some(masked) = bytes.get(start..start + length) else { return Ok(None) };
        let payload: Vec<u8> = masked.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b).collect();
        let message = match header.opcode {
            OpCode::Control(Control::Ping) => Some(Message::Ping(payload)),
            OpCode::Control(Control::Pong) => Some(Message::Pong),
            OpCode::Control(Control::Close) => Some(Message::Close(close_code(&payload)?)),
            OpCode::Data(kind) => self.take(kind, payload, header.is_final)?,
            OpCode::Control(Control::Reserved(_)) => return Err(Broken::Protocol),
        };
        Ok(Some((start + length, message)))
    }

    fn take(&mut self, kind: Data, payload: Vec<u8>, last: bool) -> Result<Option<Message>, Broken> {
        let part = match (kind, self.part.take()) {
            (Data::Text | Data::Binary, None) => Part { text: kind == Data::Text, bytes: payload },
            (Data::Continue, Some(mut part)) => {
                part.bytes.extend(payload);
                *part
            }
            _ => return Err(Broken::Protocol),
        };
        if !last {
            self.part = Some(Box::new(part));
            return Ok(None);
        }
        if !part.text {
            return Ok(Some(Message::Binary));
        }
        String::from_utf8(part.bytes).map(|text| Some(Message::Text(text))).map_err(|_| Broken::Protocol)
    }
}

fn close_code(payload: &[u8]) -> Result<Option<CloseCode>, Broken> {
    match payload {
        [] => Ok(None),
        [a, b, reason @ ..] => {
            let code = CloseCode::from(u16::from_be_bytes([*a, *b]));
            let good = code.is_allowed() && std::str::from_utf8(reason).is_ok();
            good.then_some(Some(code)).ok_or(Broken::Protocol)
        }
        [_] => Err(Broken::Protocol),
    }
}

/// A frame as a server sends it.
pub(super) fn encode(frame: Frame) -> Bytes {
    let mut wire = Vec::with_capacity(frame.len());
    // Writing to a Vec does not fail.
    let _ = frame.format(&mut wire);
    wire.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;

    use super::*;

    /// A frame as a client sends it.
    fn masked(opcode: OpCode, payload: &[u8], last: bool) -> Vec<u8> {
        let mask = [1, 2, 3, 250];
        let header = FrameHeader { is_final: last, opcode, mask: Some(mask), ..FrameHeader::default() };
        let mut wire = Vec::new();
        header.format(payload.len() as u64, &mut wire).unwrap();
        wire.extend(payload.iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b));
        wire
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<Message>, Broken> {
        let (mut inbox, mut at, mut found) = (Inbox::default(), 0, Vec::new());
        while let Some((used, message)) = inbox.read(&bytes[at..])? {
            at += used;
            found.extend(message);
        }
        Ok(found)
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        let check = |bytes: Vec<u8>, expected: Broken| assert_eq!(read_all(&bytes), Err(expected));
        let text = |payload: &[u8], last| masked(OpCode::Data(Data::Text), payload, last);
        let more = |payload: &[u8], last| masked(OpCode::Data(Data::Continue), payload, last);
        check(vec![0x81, 1, b'a'], Broken::Protocol);
        check(vec![0xC1, 0x80, 0, 0, 0, 0], Broken::Protocol);
        check(vec![0x83, 0x80, 0, 0, 0, 0], Broken::Protocol);
        check(more(b"a", true), Broken::Protocol);
        check([text(b"a", false), text(b"b", true)].concat(), Broken::Protocol);
        check(text(b"\xFF", true), Broken::Protocol);
        check(masked(OpCode::Control(Control::Ping), &[0; 126], true), Broken::Protocol);
        check(masked(OpCode::Control(Control::Ping), b"", false), Broken::Protocol);
        check(masked(OpCode::Control(Control::Close), &[3], true), Broken::Protocol);
        check(masked(OpCode::Control(Control::Close), &[3, 0xED], true), Broken::Protocol);
        check(text(&[b'a'; MESSAGE_BYTES_MAX + 1], true), Broken::TooBig);
        let half = [b'a'; MESSAGE_BYTES_MAX / 2 + 1];
        check([text(&half, false), more(&half, true)].concat(), Broken::TooBig);
        // It is refused by its header alone, before its bytes have come.
        check(vec![0x81, 0xFF, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0], Broken::TooBig);
    }

    #[test]
    fn a_goodbye_has_the_clients_code() {
        let close =
            |payload: &[u8]| read_all(&masked(OpCode::Control(Control::Close), payload, true)).unwrap();
        assert_eq!(close(&[3, 0xE8]), [Message::Close(Some(CloseCode::Normal))]);
        assert_eq!(close(&[]), [Message::Close(None)]);
    }

    #[test]
    fn a_close_frame_is_what_clients_expect() {
        let frame = CloseFrame { code: CloseCode::Away, reason: "bye".into() };
        assert_eq!(&encode(Frame::close(Some(frame)))[..], b"\x88\x05\x03\xE9bye");
    }

    proptest! {
        #[test]
        fn messages_survive_any_cut(
            texts in prop::collection::vec("\\PC{0,40}", 0..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
            split in any::<prop::sample::Index>(),
        ) {
            let mut wire = Vec::new();
            for text in &texts {
                // In two parts, with a ping between.
                let (a, b) = text.as_bytes().split_at(split.index(text.len() + 1));
                wire.extend(masked(OpCode::Data(Data::Text), a, false));
                wire.extend(masked(OpCode::Control(Control::Ping), b"x", true));
                wire.extend(masked(OpCode::Data(Data::Continue), b, true));
            }
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
            ends.sort_unstable();
            ends.push(wire.len());
            let (mut inbox, mut at, mut found) = (Inbox::default(), 0, Vec::new());
            for end in ends {
                while let Some((used, message)) = inbox.read(&wire[at..end]).unwrap() {
                    at += used;
                    found.extend(message);
                }
            }
            prop_assert_eq!(at, wire.len());
            let expected: Vec<Message> = texts
                .into_iter()
                .flat_map(|text| [Message::Ping(b"x".to_vec()), Message::Text(text)])
                .collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read_all(&bytes);
        }
    }
}
