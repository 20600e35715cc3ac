//! The write-ahead log as a source.

pub mod assemble;
pub mod config;
#[cfg(test)]
mod encode;
pub mod pgoutput;
pub mod replication;
pub mod seed;
pub mod types;

pub use config::Config;
