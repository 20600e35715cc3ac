//! Redis as a child: no persistence, as many clients as are needed.

use std::process::Command;

use super::listening::{Listening, free_address};
use super::process::make_dir;
use crate::Error;

/// What to do where it is not installed.
#[must_use]
pub fn missing() -> Option<Error> {
    let message = "redis-server is not on PATH; run scripts/setup --bench";
    (!super::installed("redis-server")).then(|| Error::missing(message))
}

/// Starts it for so many clients.
///
/// # Errors
/// It is not installed, or does not start.
pub async fn start(clients: usize) -> Result<Listening, Error> {
    if let Some(error) = missing() {
        return Err(error);
    }
    let (dir, address) = (make_dir()?, free_address()?);
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]);
    command.args(["--port", &address.port().to_string(), "--maxclients", &(clients + 100).to_string()]);
    command.arg("--dir").arg(&*dir);
    Listening::start("redis-server", dir, &command, address).await
}
