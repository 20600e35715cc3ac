//! The client against servers that answer canned bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod calls;
mod fake;
mod follow;
mod large;
mod log;
mod slow;
#[cfg(feature = "tls")]
mod tls;
mod transports;
