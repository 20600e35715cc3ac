//! The bytes of a replication stream: frames out of a buffer, status messages into one. No sockets, no clock.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::message::backend::{
    COMMAND_COMPLETE_TAG, COPY_DATA_TAG, COPY_DONE_TAG, ERROR_RESPONSE_TAG, Message, NOTICE_RESPONSE_TAG,
    PARAMETER_STATUS_TAG,
};

use super::ReplicationError;
use crate::postgres::ServerError;

/// Tag and length.
pub(super) const HEADER_BYTES: usize = 5;

/// No message of a server is longer: Postgres allocates at most 1 GiB, and frames it.
pub(super) const MESSAGE_BYTES_MAX: usize = (1 << 30) + (1 << 20);

/// Microseconds from 1970 to 2000, where Postgres's clock starts.
const EPOCH_OFFSET_US: i64 = 946_684_800_000_000;

const XLOG_DATA: u8 = b'w';
const KEEPALIVE: u8 = b'k';
const STATUS: u8 = b'r';

/// What the stream yields, in the server's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Output of the decoding plugin.
    Data {
        /// Where in the WAL it comes from; zero for some plugin messages.
        start_lsn: u64,
        /// The end of the WAL, as the server knew it.
        wal_end: u64,
        /// The plugin's message.
        body: Bytes,
    },
    /// Nothing to send up to here.
    Keepalive {
        /// The end of what was decoded.
        wal_end: u64,
    },
}

/// One message of the server while it streams.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Frame {
        frame: Frame,
        reply: bool,
    },
    /// A notice or a changed parameter.
    Ignored,
    /// The server ends the stream in order.
    Ended,
    Error(ServerError),
}

/// The whole length of the first message, once its header is there.
pub(super) fn message_len(buffer: &[u8]) -> Result<Option<usize>, ReplicationError> {
    let Some((header, _)) = buffer.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let [tag, length @ ..] = *header;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
        return Err(broken(&format!("message {:?} claims a length of {length} bytes", char::from(tag))));
    }
    Ok(Some(length + 1))
}

/// Takes the first message off the buffer, without copying it, if it is there as a whole.
pub(super) fn take(buffer: &mut BytesMut) -> Result<Option<Incoming>, ReplicationError> {
    let Some(length) = message_len(buffer)? else { return Ok(None) };
    if buffer.len() < length {
        return Ok(None);
    }
    let mut message = buffer.split_to(length);
    let tag = message[0];
    match tag {
        COPY_DATA_TAG => {
            message.advance(HEADER_BYTES);
            copy_data(message.freeze()).map(Some)
        }
        COPY_DONE_TAG | COMMAND_COMPLETE_TAG => Ok(Some(Incoming::Ended)),
        NOTICE_RESPONSE_TAG | PARAMETER_STATUS_TAG => Ok(Some(Incoming::Ignored)),
        ERROR_RESPONSE_TAG => match Message::parse(&mut message) {
            Ok(Some(Message::ErrorResponse(body))) => {
                Ok(Some(Incoming::Error(ServerError::read(body.fields()))))
            }
            _ => Err(broken("an error message cannot be read")),
        },
        other => Err(broken(&format!("message {:?} does not belong into a stream", char::from(other)))),
    }
}

fn copy_data(mut data: Bytes) -> Result<Incoming, ReplicationError> {
    let short = || broken("a frame is too short");
    let kind = data.try_get_u8().map_err(|_| short())?;
    match kind {
        XLOG_DATA => {
            let start_lsn = data.try_get_u64().map_err(|_| short())?;
            let wal_end = data.try_get_u64().map_err(|_| short())?;
            let _server_time = data.try_get_u64().map_err(|_| short())?;
            Ok(Incoming::Frame { frame: Frame::Data { start_lsn, wal_end, body: data }, reply: false })
        }
        KEEPALIVE => {
            let wal_end = data.try_get_u64().map_err(|_| short())?;
            let _server_time = data.try_get_u64().map_err(|_| short())?;
            let reply = data.try_get_u8().map_err(|_| short())? != 0;
            Ok(Incoming::Frame { frame: Frame::Keepalive { wal_end }, reply })
        }
        other => Err(broken(&format!("frame {:?} is unknown", char::from(other)))),
    }
}

/// Appends a standby status update that acknowledges everything up to `lsn` as written, flushed and applied.
/// `now_us` is microseconds since 1970.
pub(super) fn put_status(out: &mut BytesMut, lsn: u64, now_us: i64, request_reply: bool) {
    out.put_u8(COPY_DATA_TAG);
    out.put_u32(4 + 1 + 4 * 8 + 1);
    out.put_u8(STATUS);
    for _ in 0..3 {
        out.put_u64(lsn);
    }
    out.put_i64(now_us.saturating_sub(EPOCH_OFFSET_US));
    out.put_u8(u8::from(request_reply));
}

pub(super) fn broken(what: &str) -> ReplicationError {
    ReplicationError::Protocol(what.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(tag: u8, body: &[u8]) -> BytesMut {
        let mut buffer = BytesMut::new();
        buffer.put_u8(tag);
        buffer.put_u32(u32::try_from(body.len() + 4).unwrap());
        buffer.put_slice(body);
        buffer
    }

    fn data(start_lsn: u64, wal_end: u64, body: &[u8]) -> Vec<u8> {
        let mut out = vec![XLOG_DATA];
        out.put_u64(start_lsn);
        out.put_u64(wal_end);
        out.put_u64(0);
        out.put_slice(body);
        out
    }

    fn keepalive(wal_end: u64, reply: u8) -> Vec<u8> {
        let mut out = vec![KEEPALIVE];
        out.put_u64(wal_end);
        out.put_u64(0);
        out.put_u8(reply);
        out
    }

    #[test]
    fn frames_are_read() {
        let check = |body: Vec<u8>, expected: Incoming| {
            assert_eq!(take(&mut message(COPY_DATA_TAG, &body)).unwrap(), Some(expected));
        };
        let body = Bytes::from_static(b"B...");
        let frame = Frame::Data { start_lsn: 7, wal_end: 9, body: body.clone() };
        check(data(7, 9, &body), Incoming::Frame { frame, reply: false });
        let frame = Frame::Keepalive { wal_end: u64::MAX };
        check(keepalive(u64::MAX, 1), Incoming::Frame { frame: frame.clone(), reply: true });
        check(keepalive(u64::MAX, 0), Incoming::Frame { frame, reply: false });
    }

    #[test]
    fn ends_are_told_apart() {
        let check = |tag: u8, body: &[u8], expected: Incoming| {
            assert_eq!(take(&mut message(tag, body)).unwrap(), Some(expected));
        };
        check(COPY_DONE_TAG, b"", Incoming::Ended);
        check(COMMAND_COMPLETE_TAG, b"COPY 0\0", Incoming::Ended);
        check(NOTICE_RESPONSE_TAG, b"\0", Incoming::Ignored);
        let body = b"SFATAL\0C57P01\0Mterminating\0\0";
        let Some(Incoming::Error(error)) = take(&mut message(ERROR_RESPONSE_TAG, body)).unwrap() else {
            panic!("not an error");
        };
        assert_eq!((error.code.code(), error.message.as_str()), ("57P01", "terminating"));
    }

    #[test]
    fn broken_messages_are_errors() {
        let check = |mut buffer: BytesMut| assert!(take(&mut buffer).is_err(), "{buffer:?}");
        check(message(COPY_DATA_TAG, b""));
        check(message(COPY_DATA_TAG, b"w1234"));
        check(message(COPY_DATA_TAG, b"k12345678"));
        check(message(COPY_DATA_TAG, b"x"));
        check(message(b'T', b""));
        check(BytesMut::from(&[COPY_DATA_TAG, 0, 0, 0, 3][..]));
        check(BytesMut::from(&[COPY_DATA_TAG, 0x7f, 0, 0, 0][..]));
        check(BytesMut::from(&[COPY_DATA_TAG, 0xff, 0xff, 0xff, 0xff][..]));
    }

    #[test]
    fn a_status_is_what_the_server_reads() {
        let mut out = BytesMut::new();
        put_status(&mut out, 0x0102, EPOCH_OFFSET_US + 5, true);
        assert_eq!(message_len(&out).unwrap(), Some(out.len()));
        assert_eq!((out[5], &out[6..14], &out[14..22]), (b'r', &[0, 0, 0, 0, 0, 0, 1, 2][..], &out[22..30]));
        assert_eq!((&out[30..38], out[38]), (&[0, 0, 0, 0, 0, 0, 0, 5][..], 1));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = take(&mut buffer) {}
        }

        #[test]
        fn no_body_panics(tag in proptest::sample::select(vec![b'd', b'E', b'N', b'c', b'C', b'S']),
                          body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut buffer = message(tag, &body);
            let _ = take(&mut buffer);
        }

        #[test]
        fn cuts_do_not_matter(bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..8),
                              cut in 1_usize..30) {
            let whole: Vec<u8> = bodies.iter().flat_map(|body| message(b'd', &data(1, 2, body)).to_vec()).collect();
            let (mut buffer, mut found) = (BytesMut::new(), Vec::new());
            for piece in whole.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(Incoming::Frame { frame: Frame::Data { body, .. }, .. }) = take(&mut buffer).unwrap() {
                    found.push(body.to_vec());
                }
            }
            prop_assert_eq!(found, bodies);
        }
    }
}
