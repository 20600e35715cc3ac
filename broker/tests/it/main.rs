//! Everything that needs real servers and sockets, in one binary.
#![allow(clippy::unwrap_used)] // A test that fails should say where.

mod broker;
mod client;
mod commands;
mod database;
mod decode;
mod delivery;
mod edge;
mod fuzz;
mod http;
mod messages;
mod order;
mod plain;
mod postgres;
mod process;
mod protocol;
mod refusals;
mod rows;
mod seed;
mod server;
mod sql;
mod state;
mod streams;
mod support;
