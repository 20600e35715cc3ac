//! A service that keeps a picture of all VMs by following a pattern on a WebSocket.
//!
//! `cargo run -p walcast-examples --bin follow -- [PATTERN] [URL]`. The picture is complete from the first
//! moment, for current values come first, and a reset says when it has to be built anew.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use walcast_client::wire::Op;
use walcast_client::{Client, EventsRequest, Message, Subscription, Transport};

/// The newest row of each topic.
type Picture = BTreeMap<String, String>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let pattern = args.next().unwrap_or_else(|| "vm/*".to_owned());
    let url = args.next().unwrap_or_else(|| "http://127.0.0.1:8480".to_owned());
    let client = Client::new(&url)?;
    // It outlives connections: it knows from which cursor the next one goes on.
    let mut subscription = Subscription::new(EventsRequest::new([pattern.parse()?]));
    let mut picture = Picture::new();
    loop {
        let pause = match follow(&client, &mut subscription, &mut picture).await {
            Ok(pause) => pause,
            Err(error) if error.is_unavailable() => {
                println!("{error}");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let pause = pause.unwrap_or(Duration::from_secs(2));
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
    }
}

/// Follows over one connection until it ends; says when to come back, if the broker did.
async fn follow(
    client: &Client,
    subscription: &mut Subscription,
    picture: &mut Picture,
) -> Result<Option<Duration>, walcast_client::Error> {
    let mut stream = client.resume(Transport::WebSocket, subscription.clone()).await?;
    loop {
        let message = stream.next().await;
        *subscription = stream.subscription().clone();
        match message? {
            Some(Message::Event(event)) => {
                let topic = event.topic.to_string();
                match event.op {
                    Op::Delete | Op::Truncate => picture.remove(&topic),
                    _ => picture.insert(topic, event.data.to_string()),
                };
                println!("{} {} ({} known)", event.op.as_str(), event.topic, picture.len());
            }
            // What we know may be wrong. What follows tells of every row that there is.
            Some(Message::Reset(reset)) => {
                println!("reset: {}", reset.reason.code());
                picture.clear();
            }
            Some(Message::Bye { retry }) => return Ok(retry),
            Some(Message::Subscribed { .. }) => {}
            Some(Message::Refused { detail, .. }) => println!("refused: {detail}"),
            None => return Ok(None),
        }
    }
}
