//! The SQL functions, `setup` and `teardown`.

mod functions;
mod setup;
mod teardown;
