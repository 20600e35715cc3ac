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
//! - [`postgres`]: connection strings, TLS, the companion session
//! - [`source`]: reads changes, tells what is visible, seeds
//! - [`router`]: rules, topics, payloads; pure
//! - [`backbone`]: carries batches to every node
//! - [`hub`]: history, current values, subscriptions; no input or output
//! - [`transport`]: plain HTTP, one dialect per file
//! - [`admin`]: health and metrics; [`telemetry`]: logs, names of metrics
//! - [`pipeline`]: the two loops; [`node`]: where the parts meet; [`config`]: their settings
//! - [`cli`]: the commands

pub mod backbone;
pub mod event;
pub mod hub;
pub mod router;
pub mod source;
pub mod value;
