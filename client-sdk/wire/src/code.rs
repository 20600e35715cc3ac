//! Stable codes: what went wrong, and what the client does next.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The `code` member of a problem document and of a WebSocket `error` frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// A topic or pattern breaks the rules of topics.
    BadTopic,
    /// No cursor of this protocol version.
    BadCursor,
    /// A query parameter is unknown, repeated, malformed or out of range.
    BadParameter,
    /// The body is not the JSON that this call takes.
    BadBody,
    /// A WebSocket frame is not one that clients send.
    BadFrame,
    /// The current values of the topics asked for exceed what one answer may hold.
    TooBroad,
    /// No token came, or none that this broker knows.
    Unauthorized,
    /// The token is known and may not do this.
    Forbidden,
    /// The broker no longer holds the events after this cursor.
    CursorExpired,
    /// The cursor belongs to another number line.
    EpochChanged,
    /// Events after this cursor never reached this broker.
    Gap,
    /// The topic has no current value.
    NotFound,
    /// No such path: perhaps another port, or what stands before a broker.
    NoSuchPath,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The body exceeds the limit.
    BodyTooLarge,
    /// The request head exceeds the limit.
    HeadTooLarge,
    /// The same idempotency key came with another body.
    IdempotencyConflict,
    /// Postgres refused what was published.
    Rejected,
    /// Too many connections, topics or subscriptions; retry later.
    Overloaded,
    /// Starting, standing by, draining, or without Postgres; retry later.
    Unavailable,
    /// A fault of the broker; the log has the details.
    Internal,
}

impl ProblemCode {
    /// The HTTP status that goes with the code.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::BadTopic
            | Self::BadCursor
            | Self::BadParameter
            | Self::BadBody
            | Self::BadFrame
            | Self::TooBroad => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound | Self::NoSuchPath => 404,
            Self::MethodNotAllowed => 405,
            Self::CursorExpired | Self::EpochChanged | Self::Gap => 410,
            Self::BodyTooLarge => 413,
            Self::IdempotencyConflict | Self::Rejected => 422,
            Self::Overloaded => 429,
            Self::HeadTooLarge => 431,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }

    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::BadTopic,
        Self::BadCursor,
        Self::BadParameter,
        Self::BadBody,
        Self::BadFrame,
        Self::TooBroad,
        Self::Unauthorized,
        Self::Forbidden,
        Self::CursorExpired,
        Self::EpochChanged,
        Self::Gap,
        Self::NotFound,
        Self::NoSuchPath,
        Self::MethodNotAllowed,
        Self::BodyTooLarge,
        Self::HeadTooLarge,
        Self::IdempotencyConflict,
        Self::Rejected,
        Self::Overloaded,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The `title` of the problem document: the code, for people.
    #[must_use]
    pub fn title(self) -> String {
        let mut title = self.as_str().replace('_', " ");
        title[..1].make_ascii_uppercase();
        title
    }

    /// The code as written on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadTopic => "bad_topic",
            Self::BadCursor => "bad_cursor",
            Self::BadParameter => "bad_parameter",
            Self::BadBody => "bad_body",
            Self::BadFrame => "bad_frame",
            Self::TooBroad => "too_broad",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::CursorExpired => "cursor_expired",
            Self::EpochChanged => "epoch_changed",
            Self::Gap => "gap",
            Self::NotFound => "not_found",
            Self::NoSuchPath => "no_such_path",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::BodyTooLarge => "body_too_large",
            Self::HeadTooLarge => "head_too_large",
            Self::IdempotencyConflict => "idempotency_conflict",
            Self::Rejected => "rejected",
            Self::Overloaded => "overloaded",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// WebSocket close codes that walcast sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// The broker drains; reconnect with the cursor after the delay given in the reason (RFC 6455: 1001).
    GoingAway,
    /// The client broke the protocol; do not repeat (1002).
    Protocol,
    /// The client's message exceeds the limit; do not repeat (1009).
    TooBig,
    /// A fault of the broker; reconnect with the cursor (1011).
    Internal,
    /// The client read too slowly for the write deadline; reconnect with the cursor (4008).
    SlowConsumer,
}

impl CloseCode {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::GoingAway => 1001,
            Self::Protocol => 1002,
            Self::TooBig => 1009,
            Self::Internal => 1011,
            Self::SlowConsumer => 4008,
        }
    }

    /// Whether the client comes back by itself.
    #[must_use]
    pub const fn reconnect(self) -> bool {
        matches!(self, Self::GoingAway | Self::Internal | Self::SlowConsumer)
    }
}
