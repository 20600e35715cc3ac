//! A VM that waits for its assignment by long-poll: one request after another, each from the last cursor.
//!
//! `cargo run -p walcast-examples --bin vm -- host-17 [URL]`, against `walcast dev` or any broker with a state
//! rule whose topic is `vm/{hostname}`. It is what a loop around any HTTP client does.

use std::error::Error;
use std::time::Duration;

use serde_json::Value;
use walcast_client::wire::Op;
use walcast_client::{After, Client, Event, EventsRequest};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let hostname = args.next().ok_or("usage: vm HOSTNAME [URL]")?;
    let url = args.next().unwrap_or_else(|| "http://127.0.0.1:8480".to_owned());
    let client = Client::new(&url)?;
    // Without a cursor the current assignment comes first, if there is one: nothing to look up, no race.
    let mut request = EventsRequest::new([format!("vm/{hostname}").parse()?]);
    request.client = Some(hostname);
    loop {
        match client.poll(&request).await {
            Ok(reply) => {
                for event in &reply.events {
                    act(event)?;
                }
                // After the events, so that a crash in between brings them again rather than never.
                request.after = After::Cursor(reply.cursor);
            }
            Err(walcast_client::Error::Problem { problem, retry_after }) => {
                if let Some(cursor) = problem.resume {
                    // Events may be missing. From here on the newest value comes again, which is all we need.
                    request.after = After::Cursor(cursor);
                } else if matches!(problem.status, 429 | 503) {
                    pause(retry_after).await;
                } else {
                    return Err(problem.detail.into());
                }
            }
            Err(error) if error.is_unavailable() => {
                println!("{error}");
                pause(None).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Does what the row asks for. A value may come twice (once as an event, once as `snapshot` after a restart of
/// ours), so acting on it has to be harmless the second time.
fn act(event: &Event) -> Result<(), serde_json::Error> {
    if matches!(event.op, Op::Delete | Op::Truncate) {
        println!("free");
        return Ok(());
    }
    let row: Value = serde_json::from_str(event.data.get())?;
    println!("run {} (pin {})", row["crdcommand"], row["pin"]);
    Ok(())
}

/// A thousand VMs that come back at the same moment are a flood: each waits a random time.
async fn pause(at_least: Option<Duration>) {
    let random = Duration::from_secs(2).mul_f64(rand::random_range(0.2..1.0));
    tokio::time::sleep(at_least.unwrap_or_default() + random).await;
}
