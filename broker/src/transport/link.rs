//! Frames of a WebSocket, on a socket: whole messages in, and out what the hub encoded, without copies.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame as RawFrame};
use walcast_wire::{CloseCode, ServerFrame};

use super::frame::{Broken, Inbox, MESSAGE_BYTES_MAX, Message, encode};
use super::problem::Refusal;
use super::session::units;
use crate::hub::{CurrentValues, Encoded};
use crate::listen::Socket;

/// For the closing handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Frames without an event are of any data type.
pub(super) type Frame = ServerFrame<()>;

/// Why the connection ends.
pub(super) enum End {
    /// The peer is gone; there is nobody to tell.
    Gone,
    /// With this code and reason.
    Close(CloseCode, String),
}

impl From<Broken> for End {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::TooBig => {
                Self::Close(CloseCode::TooBig, format!("a message has at most {MESSAGE_BYTES_MAX} bytes"))
            }
            Broken::Protocol => {
                Self::Close(CloseCode::Protocol, "the frame breaks the WebSocket protocol".to_owned())
            }
        }
    }
}

/// A frame to be sent.
pub(super) enum Piece {
    /// Everybody's.
    Shared(Arc<Encoded>),
    Own(Bytes),
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Shared(event) => event.websocket_frame(),
            Self::Own(bytes) => bytes,
        }
    }
}

/// Frames, on a socket.
pub(super) struct Link<'a> {
    pub(super) socket: &'a mut Socket,
    inbox: Inbox,
}

impl<'a> Link<'a> {
    pub(super) fn new(socket: &'a mut Socket) -> Self {
        Self { socket, inbox: Inbox::default() }
    }

    /// The next message; `None` when the peer is gone.
    pub(super) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, Broken>> {
        loop {
            match self.inbox.read(self.socket.ahead()) {
                Err(broken) => return Poll::Ready(Err(broken)),
                Ok(Some((used, message))) => {
                    self.socket.used(used);
                    if let Some(message) = message {
                        return Poll::Ready(Ok(Some(message)));
                    }
                }
                Ok(None) => {
                    if !std::task::ready!(self.socket.poll_fill(cx)) {
                        return Poll::Ready(Ok(None));
                    }
                }
            }
        }
    }

    /// Sends frames, as many at a time as the kernel takes. A peer that takes nothing for too long is gone.
    pub(super) async fn send(&mut self, pieces: &[Piece]) -> Result<(), End> {
        self.socket.send(pieces).await.map_err(|_| End::Gone)
    }

    pub(super) async fn own(&mut self, frame: RawFrame) -> Result<(), End> {
        self.send(&[Piece::Own(encode(frame))]).await
    }

    pub(super) async fn frame(&mut self, frame: &Frame) -> Result<(), End> {
        self.own(text(frame)).await
    }

    pub(super) async fn error(&mut self, refusal: Refusal) -> Result<(), End> {
        self.frame(&Frame::Error { code: refusal.code, detail: refusal.detail }).await
    }

    /// Sends events; those that share a cursor in one message, so that a cut cannot part them.
    pub(super) async fn events(&mut self, events: Vec<Arc<Encoded>>) -> Result<(), End> {
        let alone = |unit: &[Arc<Encoded>]| unit.len() == 1;
        let pieces: Vec<Piece> = if units(&events).all(alone) {
            events.into_iter().map(Piece::Shared).collect()
        } else {
            let piece = |unit: &[Arc<Encoded>]| match unit {
                [single] => Piece::Shared(Arc::clone(single)),
                several => Piece::Own(encode(together(several))),
            };
            units(&events).map(piece).collect()
        };
        self.send(&pieces).await
    }

    /// Sends up to so many of the values; whether more may be left.
    pub(super) async fn values(&mut self, values: &mut CurrentValues, most: usize) -> Result<bool, End> {
        let pieces: Vec<Piece> = values.take(most).map(Piece::Shared).collect();
        if pieces.is_empty() {
            return Ok(false);
        }
        self.send(&pieces).await.map(|()| true)
    }

    /// The closing handshake, as far as the peer takes part in it.
    pub(super) async fn close(&mut self, code: CloseCode, reason: String) {
        let frame = CloseFrame { code: code.code().into(), reason: reason.into() };
        let handshake = async {
            if self.own(RawFrame::close(Some(frame))).await.is_ok() {
                // Until the peer has said the same; what it said before is of no interest any more.
                while let Ok(Some(message)) = poll_fn(|cx| self.poll_message(cx)).await {
                    if matches!(message, Message::Close(_)) {
                        break;
                    }
                }
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, handshake).await;
    }
}

fn text(frame: &Frame) -> RawFrame {
    // Plain data with string keys: serialising it cannot fail.
    RawFrame::message(serde_json::to_vec(frame).unwrap_or_default(), OpCode::Data(Data::Text), true)
}

/// One message of events that share a cursor.
fn together(events: &[Arc<Encoded>]) -> RawFrame {
    let mut message = b"{\"events\":[".to_vec();
    for (i, event) in events.iter().enumerate() {
        if i > 0 {
            message.push(b',');
        }
        message.extend_from_slice(&event.json());
    }
    message.extend_from_slice(b"]}");
    RawFrame::message(message, OpCode::Data(Data::Text), true)
}
