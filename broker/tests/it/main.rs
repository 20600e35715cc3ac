//! Everything that needs real servers and sockets, in one binary.
#![allow(clippy::unwrap_used)] // A test that fails should say where.
#![allow(clippy::disallowed_methods)] // Its own sessions go to the server itself, so statements may have names.

mod auth;
mod backbone;
mod balancer;
mod client;
mod client_faults;
mod commands;
mod decode;
mod delivery;
mod drain;
mod endpoints;
mod epochs;
mod failover;
mod fleet;
mod fleet_faults;
mod fuzz;
mod governor;
mod harness;
mod http;
#[path = "../judge/mod.rs"]
mod judge;
mod kill;
mod lease;
mod liveness;
mod memory;
mod messages;
mod moving;
mod newer;
mod nodes;
mod order;
mod outbox;
mod outbox_kill;
mod pooler;
mod postgres;
mod protocol;
mod readiness;
mod redis;
mod refusals;
mod reload;
mod restart;
mod rows;
mod sabotage;
mod sdk;
mod seed;
mod seeding;
mod source;
mod sql;
mod state;
mod stop;
mod streams;
mod takeover;
mod tls;
mod waiters;
mod wal_retention;

// Tests say `crate::broker`, wherever the harness keeps it.
use harness::{broker, crowd, database, edge, plain, process, proxy, redis_group, server, serving, wait};
