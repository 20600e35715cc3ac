//! Redis as a child: no persistence, as many clients as are needed.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tokio::net::TcpStream;

use super::broker::free_address;
use super::process::{Process, make_dir};
use crate::Error;

const PATIENCE: Duration = Duration::from_secs(20);

/// A running Redis.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    address: SocketAddr,
}

impl Redis {
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
    pub async fn start(clients: usize) -> Result<Self, Error> {
        if let Some(error) = Self::missing() {
            return Err(error);
        }
        let (dir, address) = (make_dir()?, free_address()?);
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command.args(["--port", &address.port().to_string(), "--maxclients", &(clients + 100).to_string()]);
        command.arg("--dir").arg(&*dir);
        let process = Process::start("redis-server", dir, &command)?;
        let redis = Self { process, address };
        super::until_listening(address, &redis.process, PATIENCE).await?;
        Ok(redis)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// A connection.
    ///
    /// # Errors
    /// It went away.
    pub async fn connect(&self) -> Result<TcpStream, Error> {
        TcpStream::connect(self.address).await.map_err(Error::of("connect to Redis"))
    }
}
