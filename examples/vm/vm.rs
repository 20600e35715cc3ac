//! A VM that waits until it is assigned, works, and waits for the next assignment.
//!
//! `cargo run -p walcast-examples --bin vm -- host-17 [URL]...`, against `walcast dev`, or any broker with a state
//! rule whose topic is `vm/{hostname}`. Several URLs are brokers of one source.

use std::error::Error;

use serde::Deserialize;
use walcast_client::Client;

/// The columns of the row that we look at.
#[derive(Deserialize)]
struct Vm {
    crdcommand: Option<String>,
    pin: Option<i32>,
}

impl Vm {
    /// What there is to do, once all of it is set.
    fn assignment(&self) -> Option<(&str, i32)> {
        Some((self.crdcommand.as_deref()?, self.pin?))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // Brokers that cannot be reached are tried for ever; this is where it is told.
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut args = std::env::args().skip(1);
    let hostname = args.next().ok_or("usage: vm HOSTNAME [URL]...")?;
    let mut urls: Vec<String> = args.collect();
    if urls.is_empty() {
        urls.push("http://127.0.0.1:8480".to_owned());
    }
    let mut builder = Client::builder().hosts(urls);
    if let Ok(token) = std::env::var("WALCAST_TOKEN") {
        builder = builder.token(token);
    }
    let client = builder.build()?;
    let topic = format!("vm/{hostname}");
    // Kept in memory alone: a VM that is started anew gets its assignment again, and does what it says again.
    let mut done = None;
    loop {
        // The row as it is comes first, if there is one: nothing to look up before, and no race.
        let ready = |vm: &Vm| vm.assignment().is_some() && vm.pin != done;
        let vm = client.wait_for(&topic, ready).await?.data;
        if let Some((command, pin)) = vm.assignment() {
            println!("{command} (pin {pin})");
        }
        done = vm.pin;
    }
}
