//! The examples on Redis and on sqlx.

use std::sync::Arc;
use std::time::Duration;

use walcast::config::Config;
use walcast::throwaway::redis::Server as Redis;

use crate::place::{Place, Program, file, until};

#[tokio::test]
async fn a_subscriber_of_redis_fills_in_what_redis_did_not_tell() {
    let redis = Arc::new(tokio::task::spawn_blocking(|| Redis::start().unwrap()).await.unwrap());
    // As its own file has it, on a server of ours.
    let text = std::fs::read_to_string(file("redis/walcast.toml")).unwrap();
    let settings: Config = toml::from_str(&text).unwrap();
    let source = settings.source.slot.clone();
    let place = Place::of("redis_example", |config| {
        (config.source, config.table) = (settings.source, settings.table);
        config.redis = settings.redis;
        config.redis.url = Some(redis.url());
    })
    .await;
    let args = ["vm/*", &source, &redis.url(), &place.url()].map(str::to_owned);
    let mut subscriber = Program::start(env!("CARGO_BIN_EXE_redis-subscriber"), args);
    let row = |op: &str, pin: i64| {
        format!(r#"{op} vm/host-1 {{"hostname":"host-1","crdcommand":null,"pin":{pin}}}"#)
    };
    place.execute("INSERT INTO vms (hostname, pin) VALUES ('host-1', 1)").await;
    // It begins when Redis has confirmed that it listens: before that it hears nothing.
    let mut pin = 1;
    let first = loop {
        pin += 1;
        place.execute(&format!("UPDATE vms SET pin = {pin}")).await;
        let line = subscriber.line();
        if let Ok(line) = tokio::time::timeout(Duration::from_millis(200), line).await {
            break line.unwrap();
        }
    };
    // From the first that it hears to the last of those, none is missing.
    let heard = (2..=pin).find(|heard| first == row("update", *heard)).unwrap_or_else(|| panic!("{first}"));
    for pin in heard + 1..=pin {
        subscriber.says(&row("update", pin)).await;
    }
    let mut update = async || {
        pin += 1;
        place.execute(&format!("UPDATE vms SET pin = {pin}")).await;
        subscriber.says(&row("update", pin)).await;
    };
    update().await;

    // Redis is away, and what happens meanwhile comes from the broker.
    redis.stop();
    update().await;
    let again = Arc::clone(&redis);
    tokio::task::spawn_blocking(move || again.start_again().unwrap()).await.unwrap();
    update().await;
    let mut asks = redis::Client::open(redis.url()).unwrap();
    let mut patterns = || redis::cmd("PUBSUB").arg("NUMPAT").query::<u64>(&mut asks);
    until("it listens again", async || patterns().is_ok_and(|count| count > 0)).await;
    update().await;
    tokio::task::spawn_blocking(move || drop(redis)).await.unwrap();
}

#[tokio::test]
async fn a_job_that_was_done_already_is_not_told_again() {
    let place = Place::new("sqlx_example").await;
    let mut service = Program::start(env!("CARGO_BIN_EXE_follow"), ["jobs/*", &place.url()]);
    place.somebody_waits("jobs/*").await;
    let finish = async |job: &str| {
        Program::start(env!("CARGO_BIN_EXE_sqlx-publisher"), [job, &place.database]).ends().await
    };
    assert_eq!(finish("7").await, ["job 7 is done"]);
    service.says("message jobs/7 (1 known)").await;
    assert_eq!(finish("7").await, ["job 7 was done already"]);
    assert_eq!(finish("8").await, ["job 8 is done"]);
    // Not 7 again.
    service.says("message jobs/8 (2 known)").await;
}
