//! A server as a child of ours that listens on an address of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use rand::RngExt as _;

use super::process::{Dir, Process};
use crate::Error;

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked whether it does.
const LOOK: Duration = Duration::from_millis(10);

/// A running server whose clients connect to it.
#[derive(Debug)]
pub struct Listening {
    process: Process,
    address: SocketAddr,
}

impl Listening {
    /// Starts `command`, which makes a server listen on `address`, and waits until it does.
    ///
    /// # Errors
    /// It cannot be started, it ended, or nobody listens there for long.
    pub async fn start(
        name: &'static str,
        dir: Dir,
        command: &Command,
        address: SocketAddr,
    ) -> Result<Self, Error> {
        let process = Process::start(name, dir, command)?;
        let listening = async {
            let mut tick = tokio::time::interval(LOOK);
            loop {
                tick.tick().await;
                process.check()?;
                if tokio::net::TcpStream::connect(address).await.is_ok() {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(PATIENCE, listening).await.unwrap_or_else(|_| {
            let words = process.last_words();
            Err(Error::failed(format!("{name} does not listen on {address} after {PATIENCE:?}: {words}")))
        })?;
        Ok(Self { process, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id; its workers are its children.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// An address on loopback below the ports that the kernel gives to clients, of which we need all.
///
/// # Errors
/// None is free.
pub fn free_address() -> Result<SocketAddr, Error> {
    let mut last = String::new();
    for _ in 0..100 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::rng().random_range(15_000..32_000)));
        match TcpListener::bind(address) {
            Ok(_) => return Ok(address),
            Err(error) => last = error.to_string(),
        }
    }
    Err(Error::failed(format!("no free port on 127.0.0.1: {last}")))
}
