//! The SQL functions, `setup` and `teardown`.

mod functions;
mod server;
mod setup;
mod teardown;
