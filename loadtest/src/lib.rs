//! Proves walcast on a database of your own: scenarios with many clients, against walcast and its peers.
//!
//! ```text
//! args ─▶ run ─▶ scenario ─┬─▶ lab      what is started: Postgres, the broker, Redis, nginx; their memory, CPU
//!                          ├─▶ client   crowds of lean clients, one task each
//!                          ├─▶ publish  what wakes them
//!                          ├─▶ verify, latency  what they received, judged
//!                          └─▶ report   all of it as data
//! ```
//!
//! Everything is bounded in count and time and talks to loopback, or to the database it was given. What it
//! started it ends, by process id; in a database it was given it leaves nothing behind.
#![allow(clippy::disallowed_methods)] // Its sessions go to the server itself, so statements may have names.

pub mod args;
pub mod client;
pub mod error;
pub mod lab;
pub mod latency;
pub mod outputs;
pub mod publish;
pub mod report;
pub mod run;
pub mod scenario;
pub mod verify;

pub use error::Error;
