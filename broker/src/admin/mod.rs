//! The second listener: health and metrics, for operators alone.

pub mod config;

pub use config::Config;
