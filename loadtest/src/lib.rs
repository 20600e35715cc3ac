//! Proves walcast on a database of your own.

pub mod report;
