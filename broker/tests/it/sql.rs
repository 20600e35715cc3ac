//! The SQL functions, `setup` and `teardown`.

mod functions;
mod locks;
mod outbox;
mod setup;
mod switch;
mod teardown;
mod triggers;
