//! Everything that needs real servers and sockets, in one binary.
#![allow(clippy::unwrap_used)] // A test that fails should say where.

mod broker;
mod client;
mod commands;
mod crowd;
mod database;
mod decode;
mod delivery;
mod drain;
mod edge;
mod epochs;
mod failover;
mod fuzz;
mod governor;
mod http;
#[path = "../judge/mod.rs"]
mod judge;
mod kill;
mod lease;
mod liveness;
mod memory;
mod messages;
mod order;
mod plain;
mod postgres;
mod process;
mod protocol;
mod proxy;
mod readiness;
mod refusals;
mod reload;
mod restart;
mod rows;
mod sabotage;
mod seed;
mod seeding;
mod server;
mod serving;
mod sql;
mod state;
mod stop;
mod streams;
mod support;
mod takeover;
mod wal_retention;
