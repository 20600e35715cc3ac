//! The SQL functions, `setup` and `teardown`.

mod functions;
mod outbox;
mod setup;
mod teardown;
mod triggers;
