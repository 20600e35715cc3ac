//! The words of walcast's protocol, shared by broker and clients.
//!
//! - [`topic`]: [`Topic`], [`TopicPattern`], and the percent-encoding that makes any text a segment
//! - [`position`]: [`Position`], [`Epoch`], [`Cursor`]: where in a source's number line something is
//! - [`frame`]: what travels over the three transports
//! - [`code`]: problem codes and WebSocket close codes, each saying what the client does next
//!
//! This crate does no input or output and depends on serde alone.

pub mod code;
pub mod frame;
pub mod position;
pub mod topic;

pub use code::{CloseCode, ProblemCode};
pub use frame::{ClientFrame, Event, EventsReply, Op, Problem, Reset, ResetReason, ServerFrame};
pub use position::{Cursor, CursorError, Epoch, Position};
pub use topic::{Topic, TopicError, TopicPattern, encode_segment};
