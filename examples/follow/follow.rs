//! A service that keeps a picture of all VMs by following a pattern.
//!
//! `cargo run -p walcast-examples --bin follow -- [PATTERN] [URL]`. The picture is complete from the first
//! moment, for current values come first, and a reset says when it has to be built anew.

use std::collections::BTreeMap;
use std::error::Error;

use walcast_client::wire::Op;
use walcast_client::{Client, Update};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // Brokers that cannot be reached are tried for ever; this is where it is told.
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut args = std::env::args().skip(1);
    let pattern = args.next().unwrap_or_else(|| "vm/*".to_owned());
    let url = args.next().unwrap_or_else(|| "http://127.0.0.1:8480".to_owned());
    // The newest row of each topic. It is in memory alone, and so its place is kept nowhere either: a `store` is
    // for who keeps what it learns.
    let mut picture = BTreeMap::new();
    let mut updates = Client::new(&url)?.subscribe([pattern]).stream();
    while let Some(update) = updates.next().await {
        match update? {
            Update::Event(event) => {
                let topic = event.topic.to_string();
                match event.op {
                    Op::Delete | Op::Truncate => picture.remove(&topic),
                    _ => picture.insert(topic, event.data),
                };
                println!("{} {} ({} known)", event.op.as_str(), event.topic, picture.len());
            }
            // What we know may be wrong. What follows tells of every row that there is.
            Update::Reset(reset) => {
                println!("reset: {}", reset.reason.code());
                picture.clear();
            }
        }
    }
    Ok(())
}
