//! A service that listens to Redis directly, and asks brokers for what Redis did not tell.
//!
//! `cargo run -p walcast-examples --bin redis-subscriber -- PATTERN SOURCE REDIS_URL BROKER_URL`, for brokers with
//! `redis.pubsub = true`.

use std::error::Error;

use walcast_client::{Client, RedisSubscriber, Update};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [pattern, source, redis, broker] = args.as_slice() else {
        return Err("usage: redis-subscriber PATTERN SOURCE REDIS_URL BROKER_URL".into());
    };
    let redis = redis::Client::open(redis.as_str())?;
    // Without `repair` a cut is told as a reset, and what was published during it is gone.
    let mut updates = RedisSubscriber::new(redis, source, [pattern]).repair(Client::new(broker)?).stream();
    while let Some(update) = updates.next().await {
        match update? {
            Update::Event(event) => println!("{} {} {}", event.op.as_str(), event.topic, event.data),
            Update::Reset(reset) => println!("reset: {}", reset.reason.code()),
        }
    }
    Ok(())
}
