//! walcast: a notification broker that replaces Postgres LISTEN/NOTIFY.
//!
//! ```text
//!  Postgres ──WAL──▶ source ──▶ router ──▶ backbone ──▶ hub ──▶ transport ──▶ waiters
//!              │       ▲ gate: is it visible yet?                 (long-poll, SSE, WebSocket)
//!              └───────┴── ack, once published
//! ```
//!
//! In the order in which an event passes through:
//!
//! - [`event`]: changes, events, batches; [`value`]: Postgres text to JSON
//! - [`source`]: reads changes, tells what is visible, seeds
//! - [`router`]: rules, topics, payloads; pure
//! - [`backbone`]: carries batches to every node
//! - [`hub`]: history, current values, subscriptions; no input or output
//! - [`health`]: what is unwell, in words
//! - [`throwaway`]: a Postgres server of one's own, for trying things and for tests

pub mod backbone;
pub mod event;
pub mod health;
pub mod hub;
pub mod router;
pub mod source;
pub mod throwaway;
pub mod value;
