//! The SQL functions, `setup` and `teardown`.

mod functions;
mod outbox;
mod setup;
mod switch;
mod teardown;
mod triggers;
