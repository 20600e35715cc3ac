//! Two brokers behind HAProxy, by `examples/haproxy.cfg` as it stands there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_postgres::Client as Sql;
use walcast::throwaway::redis::Server as Redis;
use walcast_client::wire::Cursor;
use walcast_client::{After, Client, Error, EventsRequest, Message, Subscription, Transport};

use crate::broker::{connect, patterns, prepare, run, until, value, within};
use crate::harness::balancer::Balancer;
use crate::plain::Plain;
use crate::proxy::Proxy;
use crate::server;
use crate::serving::{self, Process};

const TABLE: &str = "CREATE TABLE vms (host text PRIMARY KEY, pin int); INSERT INTO vms VALUES ('a', 0)";
const RULE: &str = "[[table]]\nname = 'public.vms'\ntopic = 'vm/{host}'";
/// Of each transport.
const CLIENTS: usize = 4;
/// Events before a broker goes, and as many after it.
const EVENTS: i64 = 20;

/// A database and a Redis for two brokers.
struct Place {
    name: String,
    redis: Redis,
    sql: Sql,
    url: String,
}

impl Place {
    async fn new(name: &str) -> Self {
        let url = server::create(name).await;
        prepare(&url, name, TABLE, RULE).await;
        let redis = tokio::task::spawn_blocking(|| Redis::start().unwrap()).await.unwrap();
        Self { name: name.to_owned(), redis, sql: connect(&url).await, url }
    }

    async fn broker(&self, number: u32, redis: &str, args: &[&str]) -> Process {
        let rest = format!("[redis]\nurl = '{redis}'\n{RULE}");
        let text = serving::settings(&self.url, &self.name, "lease = '1s'", &rest);
        let process = Process::start_with(&format!("{}_{number}", self.name), &text, args).await;
        process.ready().await;
        process
    }

    /// The first leads.
    async fn brokers(&self) -> [Process; 2] {
        let redis = self.redis.url();
        [self.broker(1, &redis, &[]).await, self.broker(2, &redis, &[]).await]
    }

    async fn change(&self, pins: impl IntoIterator<Item = i64>) {
        for pin in pins {
            run(&self.sql, &format!("UPDATE vms SET pin = {pin}")).await;
        }
    }
}

/// Where all begin.
async fn here(client: &Client) -> Cursor {
    let mut now = EventsRequest::new(patterns(&["vm/a"])).after(After::Now);
    now.wait = Some(Duration::ZERO);
    client.poll(&now).await.unwrap().cursor
}

async fn subscriptions(process: &Process) -> u64 {
    let (_, body) = process.readiness().await;
    serde_json::from_str::<serde_json::Value>(&body).unwrap()["subscriptions"].as_u64().unwrap()
}

/// Follows as an application does, coming back with its cursor after each cut, until `last` came.
async fn follow(client: Client, transport: Transport, start: Cursor, last: i64) -> Vec<(Cursor, i64)> {
    let request = EventsRequest::new(patterns(&["vm/a"])).after(After::Cursor(start));
    let mut place = Subscription::new(request);
    let mut seen = Vec::new();
    loop {
        let cut: Result<Option<Duration>, Error> = async {
            let mut stream = client.resume(transport, place.clone()).await?;
            loop {
                let message = stream.next().await;
                place = stream.subscription().clone();
                match message? {
                    Some(Message::Event(event)) => {
                        let event = value(&event);
                        seen.push((event.cursor, event.data["pin"].as_i64().unwrap()));
                        if event.data["pin"] == last {
                            return Ok(None);
                        }
                    }
                    Some(Message::Reset(reset)) => panic!("{transport}: {reset:?}"),
                    Some(Message::Bye { retry }) => return Ok(retry),
                    Some(_) => {}
                    None => return Ok(None),
                }
            }
        }
        .await;
        if seen.last().is_some_and(|(_, pin)| *pin == last) {
            return seen;
        }
        let pause = match cut {
            Ok(pause) => pause,
            Err(Error::Problem { retry_after, .. }) if retry_after.is_some() => retry_after,
            Err(error) => {
                assert!(error.is_unavailable(), "{transport}: {error}");
                None
            }
        };
        tokio::time::sleep(pause.unwrap_or(Duration::from_millis(100))).await;
    }
}

/// Clients of all transports wait while one of two brokers goes; what each was given.
async fn while_one_goes(name: &str, goes: usize, signal: &str) {
    let place = Place::new(name).await;
    let brokers = place.brokers().await;
    let balancer = Balancer::before(name, [&brokers[0], &brokers[1]]).await;
    let start = here(&balancer.client()).await;
    let mut clients = JoinSet::new();
    for transport in Transport::ALL.repeat(CLIENTS) {
        clients.spawn(follow(balancer.client(), transport, start, 2 * EVENTS));
    }
    // Who has the fewest gets the next; it counts one who has just gone.
    until("they are spread over both", async || {
        let (one, two) = (subscriptions(&brokers[0]).await, subscriptions(&brokers[1]).await);
        one + two == clients.len() as u64 && one.min(two) >= 3
    })
    .await;
    place.change(1..=EVENTS).await;
    brokers[goes].signal(signal);
    place.change(EVENTS + 1..2 * EVENTS).await;
    until("a publish is answered", async || {
        let reply = balancer.plain().post("", r#"{"topic": "other", "data": 1}"#).await;
        // The broker may have gone with it, and whoever publishes is told so.
        assert!(matches!(reply.status, 200 | 202 | 502 | 503), "{reply:?}");
        reply.status < 300
    })
    .await;
    place.change([2 * EVENTS]).await;
    let mut served = 0;
    while let Some(seen) = within("everything at all of them", clients.join_next()).await {
        let seen = seen.unwrap();
        let pins: Vec<i64> = seen.iter().map(|(_, pin)| *pin).collect();
        assert_eq!(pins, (1..=2 * EVENTS).collect::<Vec<_>>(), "each once, in order");
        assert!(seen.is_sorted_by(|a, b| a.0.position < b.0.position), "{seen:?}");
        served += 1;
    }
    assert_eq!(served, Transport::ALL.len() * CLIENTS);
    balancer.until_it_is(["one", "two"][goes], "DOWN").await;
}

#[tokio::test]
async fn nobody_misses_anything_when_the_leader_is_killed() {
    while_one_goes("balancer_leader", 0, "KILL").await;
}

#[tokio::test]
async fn nobody_misses_anything_when_another_is_killed() {
    while_one_goes("balancer_other", 1, "KILL").await;
}

#[tokio::test]
async fn nobody_misses_anything_when_the_leader_drains() {
    while_one_goes("balancer_drains", 0, "TERM").await;
}

/// Opens streams through the balancer, until all of them wait.
async fn more(balancer: &Balancer, start: Cursor, number: usize) -> Vec<walcast_client::Stream> {
    let mut streams = Vec::new();
    for transport in [Transport::Sse, Transport::WebSocket].into_iter().cycle().take(number) {
        let request = EventsRequest::new(patterns(&["vm/a"])).after(After::Cursor(start));
        streams.push(balancer.client().open(transport, request).await.unwrap());
    }
    streams
}

#[tokio::test]
async fn one_that_is_not_ready_gets_no_new_clients_and_keeps_those_it_has() {
    let place = Place::new("balancer_unready").await;
    let link = Proxy::start(place.redis.port()).await;
    let one = place.broker(1, &place.redis.url(), &[]).await;
    let behind = format!("redis://{}", link.address);
    let two = place.broker(2, &behind, &["--role=edge"]).await;
    let balancer = Balancer::before("balancer_unready", [&one, &two]).await;
    let start = here(&balancer.client()).await;
    let _first = more(&balancer, start, 4).await;
    until("each has two", async || (subscriptions(&one).await, subscriptions(&two).await) == (2, 2)).await;

    link.blackhole();
    two.unready("following").await;
    balancer.until_it_is("two", "DOWN").await;
    let _second = more(&balancer, start, 4).await;
    until("the other has them", async || subscriptions(&one).await == 6).await;
    assert_eq!(subscriptions(&two).await, 2);

    link.heal();
    balancer.until_it_is("two", "UP").await;
    let third = more(&balancer, start, 1).await;
    until("it has the fewest", async || subscriptions(&two).await == 3).await;
    // Who hangs up is gone from the broker, too: a stream, and one who waits for an answer.
    drop(third);
    until("it is told", async || subscriptions(&two).await == 2).await;
    let poll = format!("/v1/events?topic=vm/a&after={start}&wait=5m");
    let poll = balancer.plain().begin(&poll, "").await;
    until("it waits", async || subscriptions(&two).await == 3).await;
    drop(poll);
    until("it is told", async || subscriptions(&two).await == 2).await;

    // None is ready, which clients are told as the brokers would tell it.
    let (one_ended, two_ended) = tokio::join!(one.stop(), two.stop());
    one_ended.succeeded();
    two_ended.succeeded();
    let error = balancer.client().poll(&EventsRequest::new(patterns(&["vm/a"]))).await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    for name in ["one", "two"] {
        balancer.until_it_is(name, "DOWN").await;
    }
    let answer = balancer.plain().get("/v1/events?topic=vm/a").await;
    assert_eq!((answer.status, answer.problem().code.as_str()), (503, "unavailable"), "{answer:?}");
    let seconds: u32 = answer.headers["retry-after"].parse().unwrap();
    assert!((1..=10).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn one_that_drains_gets_no_new_clients() {
    let place = Place::new("balancer_draining").await;
    let [leader, other] = place.brokers().await;
    let balancer = Balancer::before("balancer_draining", [&leader, &other]).await;
    let start = here(&balancer.client()).await;
    // Who reads nothing of much makes the drain last.
    let address = Plain { address: other.http.parse().unwrap() };
    let _stuck = address.begin("/v1/events?topic=much&after=now", "accept: text/event-stream\r\n").await;
    until("it waits", async || subscriptions(&other).await == 1).await;
    let much = "SELECT walcast.publish('much', to_jsonb(repeat('x', 100000))) FROM generate_series(1, 200)";
    run(&place.sql, much).await;
    other.signal("TERM");
    balancer.until_it_is("two", "DOWN").await;
    let _all = more(&balancer, start, 4).await;
    until("the leader has all", async || subscriptions(&leader).await == 4).await;
}

/// Says that it is ready, and takes every other request without an answer. How many it took.
async fn one_that_dies_at_each() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let taken = Arc::new(AtomicUsize::new(0));
    let counts = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counts = Arc::clone(&counts);
            tokio::spawn(async move {
                let (reader, mut writer) = stream.split();
                let mut lines = BufReader::new(reader).lines();
                let Ok(Some(first)) = lines.next_line().await else { return };
                if !first.contains("/readyz") {
                    counts.fetch_add(1, SeqCst);
                    return;
                }
                let _ = writer.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await;
            });
        }
    });
    (address, taken)
}

#[tokio::test]
async fn reading_is_repeated_and_publishing_is_not() {
    let (address, taken) = one_that_dies_at_each().await;
    let names = (&*address, &*address);
    let balancer = Balancer::start("balancer_dies", [names, names]).await;
    let answer = balancer.plain().get("/v1/events?topic=a").await;
    assert_eq!((answer.status, taken.swap(0, SeqCst)), (502, 4), "{answer:?}");
    assert_eq!(answer.problem().code.as_str(), "unavailable");
    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    let answer = balancer.plain().post("", r#"{"topic": "a", "data": 1}"#).await;
    assert_eq!((answer.status, taken.load(SeqCst)), (502, 1), "{answer:?}");
    assert_eq!(answer.problem().code.as_str(), "unavailable");
}
