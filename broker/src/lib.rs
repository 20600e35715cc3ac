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
//! - [`transport`]: HTTP
//! - [`admin`]: health and metrics; [`telemetry`]: logs, names of metrics
//! - [`pipeline`]: the two loops; [`node`]: where the parts meet; [`config`]: their settings
//! - [`cli`]: the commands; [`throwaway`]: a Postgres server of our own for them and for tests

pub mod backbone;
pub mod event;
pub mod hub;
pub mod router;
pub mod source;
pub mod throwaway;
pub mod value;
