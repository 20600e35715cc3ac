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
//! - [`event`]: changes, events, batches; [`value`]: Postgres text to JSON; [`units`]: sizes in settings
//! - [`postgres`]: connection strings, TLS, the companion session
//! - [`source`]: reads changes, tells what is visible, seeds
//! - [`router`]: rules, topics, payloads; [`endpoint`]: requests of others' making, and what answers them; both pure
//! - [`expression`], [`template`]: CEL and topics with placeholders, for both
//! - [`auth`]: who may do what; pure
//! - [`backbone`]: carries batches to every node
//! - [`hub`]: history, current values, subscriptions; no input or output
//! - [`transport`]: plain HTTP, one dialect per file; [`listen`]: the accept loop of both listeners
//! - [`admin`]: health and metrics; [`telemetry`]: logs, names of metrics; [`health`]: what is unwell, in words;
//!   [`facts`]: figures of the source
//! - [`pipeline`]: the two loops; [`node`]: where the parts meet; [`config`]: their settings
//! - [`cli`]: the commands; `sabotage`: faults that tests put in, absent from release builds
//! - [`throwaway`]: a Postgres server of one's own, and a Redis, for trying things and for tests

pub mod admin;
pub mod auth;
pub mod backbone;
pub mod cli;
pub mod config;
pub mod endpoint;
pub mod event;
pub mod expression;
pub mod facts;
pub mod health;
pub mod hub;
pub mod listen;
pub mod node;
pub mod pipeline;
pub mod postgres;
pub mod router;
#[doc(hidden)]
pub mod sabotage;
pub mod source;
pub mod telemetry;
pub mod template;
pub mod throwaway;
pub mod transport;
pub mod units;
pub mod value;
