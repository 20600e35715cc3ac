//! The write-ahead log as a source.

pub mod config;

pub use config::Config;
