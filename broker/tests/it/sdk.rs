//! What the client library offers beside the brokers' own API: publishing in the caller's transaction, and following the
//! channels in Redis.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use walcast::throwaway::redis::Server as Redis;
use walcast_client::publisher::{self, EVENT_BYTES_MAX, Message, PublishError};
use walcast_client::wire::Cursor;
use walcast_client::{Event, EventsRequest, RedisSubscriber, RedisUpdates, Transport, Update};

use crate::broker::{Broker, MARK, connect, patterns, value, value_of, within};
use crate::proxy::Proxy;
use crate::redis_group::say;
use crate::server;
use crate::wait::until;

const TOPICS: [&str; 3] = ["vm/*", "jobs/**", "end"];
/// How often the way to Redis is cut.
const CUTS: u64 = 8;

/// What is too large for a broker that is set as it comes.
fn large() -> String {
    "x".repeat(EVENT_BYTES_MAX)
}

async fn pool(url: &str) -> sqlx::PgPool {
    let options = sqlx::postgres::PgPoolOptions::new().max_connections(1);
    within("a pool", options.connect(url)).await.unwrap()
}

#[tokio::test]
async fn what_is_published_comes_with_the_commit_and_goes_with_the_rollback() {
    let broker = Broker::start("sdk_publish", "", "").await;
    let mut follower = broker.follow(Transport::Poll, &["sdk/*", "my%20channel", MARK]).await;
    let mut session = broker.session().await;

    let tx = session.transaction().await.unwrap();
    publisher::publish(&tx, "sdk/no", &1).await.unwrap();
    tx.rollback().await.unwrap();
    let tx = session.transaction().await.unwrap();
    publisher::publish(&tx, "sdk/a", &json!({"n": 1, "of": ["ü\n", null]})).await.unwrap();
    for refused in [
        publisher::publish(&tx, "sdk/no", &large()).await,
        publisher::publish(&tx, "sdk/no", "\0").await,
        publisher::publish(&tx, "sdk//no", &1).await,
        publisher::notify(&tx, "no", &large()).await,
        publisher::notify(&tx, "", "").await,
    ] {
        assert!(refused.unwrap_err().nothing_was_sent());
    }
    publisher::notify(&tx, "my channel", "x").await.unwrap();
    tx.commit().await.unwrap();
    publisher::publish(&session, "sdk/b", &2).await.unwrap();
    let limit = EVENT_BYTES_MAX - 2;
    publisher::send(&session, &Message::new("sdk/full", &large()[..limit]).unwrap()).await.unwrap();
    assert_eq!(
        value_of(
            &session,
            "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT walcast%'"
        )
        .await,
        "0"
    );

    let pool = pool(&broker.url).await;
    let mut tx = pool.begin().await.unwrap();
    publisher::sqlx::publish(&mut *tx, "sdk/no", &1).await.unwrap();
    tx.rollback().await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    publisher::sqlx::publish(&mut *tx, "sdk/c", &3).await.unwrap();
    let refused = publisher::sqlx::publish(&mut *tx, "sdk/no", &large()).await;
    assert!(matches!(refused, Err(PublishError::TooLarge { .. })), "{refused:?}");
    publisher::sqlx::notify(&mut *tx, "my channel", "y").await.unwrap();
    let names = sqlx::query("SELECT * FROM pg_prepared_statements WHERE statement LIKE 'SELECT walcast%'")
        .persistent(false);
    assert_eq!(names.fetch_all(&mut *tx).await.unwrap().len(), 0);
    tx.commit().await.unwrap();

    let events = broker.rest(&mut follower).await;
    let told: Vec<_> = events.iter().map(|event| (event.topic.as_str(), event.data.clone())).collect();
    let expected = [
        ("sdk/a", json!({"n": 1, "of": ["ü\n", null]})),
        ("my%20channel", json!("x")),
        ("sdk/b", json!(2)),
        // As large as it may be, it is delivered whole.
        ("sdk/full", json!(large()[..limit])),
        ("sdk/c", json!(3)),
        ("my%20channel", json!("y")),
    ];
    assert!(told == expected, "{:?}", told.iter().map(|(topic, _)| topic).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_cannot_publish_is_told_what_to_do() {
    let url = server::create("sdk_bare").await;
    let bare = connect(&url).await;
    let pool = pool(&url).await;
    for error in [
        publisher::publish(&bare, "a", &1).await.unwrap_err(),
        publisher::sqlx::publish(&pool, "a", &1).await.unwrap_err(),
    ] {
        assert!(matches!(&error, PublishError::NotSetUp { .. }), "{error:?}");
        assert!(error.to_string().contains("run `walcast setup`"), "{error}");
    }
    let broker = Broker::start("sdk_rights", "CREATE ROLE sdk_stranger LOGIN", "").await;
    let stranger = server::connect("sdk_rights", "sdk_stranger").await;
    let error = publisher::notify(&stranger, "a", "").await.unwrap_err();
    assert!(matches!(&error, PublishError::NotAllowed { .. }), "{error:?}");
    drop(stranger);
    // What nobody can know before is told by its code.
    let deep = serde_json::value::RawValue::from_string("[".repeat(100_000) + &"]".repeat(100_000)).unwrap();
    let error = publisher::publish(&broker.sql, "a", &deep).await.unwrap_err();
    assert!(
        matches!(&error, PublishError::Database { code: Some(code), .. } if code == "54001"),
        "{error:?}"
    );
}

/// A broker that publishes on the channels of a Redis, and a way to that Redis that can be cut.
struct Place {
    broker: Broker,
    redis: Arc<Redis>,
    proxy: Proxy,
}

impl Place {
    async fn start(name: &str) -> Self {
        let redis = tokio::task::spawn_blocking(|| Arc::new(Redis::start().unwrap())).await.unwrap();
        let url = redis.url();
        let table = "CREATE TABLE vms (host text PRIMARY KEY); INSERT INTO vms VALUES ('a'), ('b'), ('c')";
        let rule = "[[table]]\nname = 'public.vms'\ntopic = 'vm/{host}'\nstate = true";
        let broker = Broker::start_with(name, table, rule, |config| {
            (config.redis.url, config.redis.pubsub) = (Some(url), true);
        })
        .await;
        let proxy = Proxy::start(redis.port()).await;
        Self { broker, redis, proxy }
    }

    fn url(&self) -> String {
        format!("redis://{}", self.proxy.address)
    }

    fn over_redis_rs(&self) -> RedisSubscriber {
        RedisSubscriber::new(redis::Client::open(self.url()).unwrap(), &*self.broker.name, TOPICS)
    }

    fn over_fred(&self) -> RedisSubscriber {
        let config = fred::types::config::Config::from_url(&self.url()).unwrap();
        RedisSubscriber::fred(config, &*self.broker.name, TOPICS)
    }

    /// How many connections listen.
    async fn listeners(&self) -> usize {
        say::<String>(self.redis.port(), "CLIENT LIST TYPE pubsub").await.lines().count()
    }

    /// Writes a transaction whose events share cursors, and one that publishes.
    async fn write(&self, round: usize) {
        let from = if round.is_multiple_of(2) { "host, host || 'x'" } else { "host, left(host, 1)" };
        let (_, to) = from.split_once(", ").unwrap();
        let texts = format!(
            "SELECT walcast.publish('jobs/' || n, to_jsonb({round})) FROM generate_series(1, 3) AS n"
        );
        self.broker.run(&format!("UPDATE vms SET host = {to}; {texts}")).await;
        self.broker.run(&format!("SELECT walcast.publish('other/deep/er', '{round}')")).await;
    }
}

/// Where it is and what it is.
fn told(event: &Event) -> String {
    let event = value(event);
    format!("{} {} {}", event.cursor, event.topic, event.data)
}

async fn next(updates: &mut RedisUpdates) -> String {
    match within("an update", updates.next()).await.unwrap().unwrap() {
        Update::Event(event) => told(&event),
        Update::Reset(reset) => panic!("{reset:?}"),
    }
}

/// What there is behind a place, as a broker tells it to whoever asks for it now.
async fn all_after(place: &Place, start: Cursor) -> Vec<String> {
    let mut request = EventsRequest::new(patterns(&TOPICS)).after(start.into());
    (request.limit, request.wait) = (Some(1000), Some(Duration::ZERO));
    let mut all = Vec::new();
    loop {
        let reply = place.broker.client.poll(&request).await.unwrap();
        if reply.events.is_empty() {
            return all;
        }
        all.extend(reply.events.iter().map(told));
        request.after = reply.cursor.into();
    }
}

/// Cuts the way to Redis again and again.
async fn over_cuts(place: &Place, subscriber: RedisSubscriber) {
    let start = place.broker.place().await;
    let mut updates = subscriber.repair(place.broker.client.clone()).after(start).stream();
    let write = async {
        let mut round = 0;
        for cut in 0..CUTS {
            until("it listens", async || place.listeners().await > 0).await;
            place.proxy.reset_after(2_500);
            until("it is cut", async || {
                round += 1;
                place.write(round).await;
                place.proxy.resets() > cut
            })
            .await;
        }
        place.broker.run("SELECT walcast.publish('end', '0')").await;
    };
    let read = async {
        let mut all = Vec::new();
        while all.last().is_none_or(|event: &String| !event.contains(" end ")) {
            all.push(next(&mut updates).await);
        }
        all
    };
    let ((), all) = tokio::join!(write, read);
    assert_eq!(all, all_after(place, start).await);
    // Brokers are asked for no longer than it takes.
    tokio::select! {
        event = updates.next() => panic!("{event:?}"),
        () = place.broker.until_waiting(0) => {}
    }
    drop(updates);
    until("nobody listens any more", async || place.listeners().await == 0).await;
}

/// Listens without brokers.
async fn alone(place: &Place, subscriber: RedisSubscriber) {
    let mut updates = subscriber.stream();
    let write = async {
        until("it listens", async || place.listeners().await > 0).await;
        let start = place.broker.place().await;
        place.write(1).await;
        place.broker.run("SELECT walcast.publish('vm/deep/er', '1'), walcast.publish('end', '0')").await;
        start
    };
    let read = async {
        let mut all = Vec::new();
        while all.last().is_none_or(|event: &String| !event.contains(" end ")) {
            all.push(next(&mut updates).await);
        }
        all
    };
    let (start, all) = tokio::join!(write, read);
    assert_eq!(all, all_after(place, start).await);
}

#[tokio::test]
async fn a_cut_loses_and_repeats_nothing_with_repair() {
    let place = Place::start("sdk_cuts").await;
    alone(&place, place.over_redis_rs()).await;
    over_cuts(&place, place.over_redis_rs()).await;
}

#[tokio::test]
async fn a_cut_loses_and_repeats_nothing_over_fred_either() {
    let place = Place::start("sdk_fred").await;
    alone(&place, place.over_fred()).await;
    over_cuts(&place, place.over_fred()).await;
}
