//! The examples do what they say: run as programs, against a broker like that of `walcast dev`.
#![allow(clippy::unwrap_used)] // A test that fails should say where.

mod browser;
mod endpoint;
mod faults;
mod fleet;
mod place;
mod programs;
mod python;
mod services;
