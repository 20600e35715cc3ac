//! Several brokers over one Redis: any cursor works on any of them, whoever leads, and whatever becomes of Redis.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Client as Sql;
use walcast::throwaway::redis::Server as Redis;
use walcast_client::{After, EventsRequest, Message, Subscription, Transport};

use crate::broker::{Follower, connect, patterns, prepare, run, until, value_of, within};
use crate::lease::{connections, until_moved, walsender};
use crate::plain::Plain;
use crate::redis_group::Watched;
use crate::server;
use crate::serving::{self, Process};
use crate::wait::{LIMIT, until_limit};

const TABLE: &str =
    "CREATE TABLE vms (host text PRIMARY KEY, pin int); INSERT INTO vms VALUES ('a', 0), ('b', 0)";
const RULE: &str = "[[table]]\nname = 'public.vms'\ntopic = 'vm/{host}'\nstate = true";
/// The next event comes through another broker so soon after its leader was killed.
const SOON: Duration = Duration::from_secs(3);

/// A database, a Redis, and the settings for brokers on both.
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) redis: Arc<Redis>,
    sql: Sql,
    pub(crate) text: String,
    pin: i64,
}

impl Place {
    pub(crate) async fn new(name: &str, source: &str) -> Self {
        let redis = tokio::task::spawn_blocking(|| Redis::start().unwrap()).await.unwrap();
        let url = redis.url();
        Self::over(name, source, Arc::new(redis), &url).await
    }

    /// The same over a Redis that the brokers find by this URL.
    async fn over(name: &str, source: &str, redis: Arc<Redis>, redis_url: &str) -> Self {
        let url = server::create(name).await;
        prepare(&url, name, TABLE, RULE).await;
        let rest = format!("[redis]\nurl = '{redis_url}'\n{RULE}");
        let text = serving::settings(&url, name, source, &rest);
        Self { name: name.to_owned(), redis, sql: connect(&url).await, text, pin: 0 }
    }

    async fn broker(&self, args: &[&str]) -> Process {
        let process = Process::start_with(&self.name, &self.text, args).await;
        process.ready().await;
        process
    }

    /// Changes a row; what it is now.
    async fn change(&mut self) -> i64 {
        self.pin += 1;
        run(&self.sql, &format!("UPDATE vms SET pin = {} WHERE host = 'a'", self.pin)).await;
        self.pin
    }

    /// A change reaches this follower, and nothing else does before it.
    async fn reaches(&mut self, follower: &mut Follower) {
        let pin = self.change().await;
        assert_eq!(follower.next().await.data["pin"], pin);
    }

    /// How many keys hold what is carried.
    async fn carried(&self) -> usize {
        let keys = self.redis_cli(&["--scan"]).await;
        keys.lines().filter(|key| !key.contains(":node")).count()
    }

    pub(crate) async fn redis_cli(&self, words: &[&str]) -> String {
        let mut command = tokio::process::Command::new("redis-cli");
        command.arg("-p").arg(self.redis.port().to_string()).args(words);
        let output = within("redis-cli", command.output()).await.unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

async fn follow(process: &Process, after: After) -> Follower {
    let request = EventsRequest::new(patterns(&["vm/a"])).after(after);
    Follower(process.client.resume(Transport::WebSocket, Subscription::new(request)).await.unwrap())
}

async fn state(process: &Process) -> (u16, String) {
    let plain = Plain { address: process.http.parse().unwrap() };
    let reply = plain.get("/v1/state/vm/a?wait=10s").await;
    (reply.status, reply.body)
}

#[tokio::test]
async fn all_serve_and_one_leads() {
    let mut place = Place::new("fleet_serve", "lease = '1s'").await;
    let leader = place.broker(&[]).await;
    let other = place.broker(&[]).await;
    let edge = place.broker(&["--role=edge"]).await;
    let mut followers = [
        follow(&leader, After::Now).await,
        follow(&other, After::Now).await,
        follow(&edge, After::Now).await,
    ];
    for follower in &mut followers {
        place.reaches(follower).await;
        place.pin -= 1;
        run(&place.sql, "UPDATE vms SET pin = -1 WHERE host = 'a'").await;
        assert_eq!(follower.next().await.data["pin"], -1);
    }
    place.pin = 10;
    let pin = place.change().await;
    for broker in [&leader, &other, &edge] {
        until("the value", async || {
            state(broker).await == (200, format!("{{\"host\":\"a\",\"pin\":{pin}}}"))
        })
        .await;
    }
    until("three of the leader, one of who may lead, none of the edge", async || {
        connections(&place.sql, &place.name).await
            == "walcast,walcast companion,walcast companion,walcast gate"
    })
    .await;
}

#[tokio::test]
async fn current_values_are_there_at_once_at_who_follows() {
    let place = Place::new("fleet_values", "lease = '60s'").await;
    let _leader = place.broker(&[]).await;
    let edge = place.broker(&["--role=edge"]).await;
    run(&place.sql, "INSERT INTO vms SELECT 'n' || n, n FROM generate_series(1, 100) n").await;
    let plain = Plain { address: edge.http.parse().unwrap() };
    assert_eq!(plain.get("/v1/state/vm/n100?wait=60s").await.status, 200);
    for n in 1..100 {
        let reply = plain.get(&format!("/v1/state/vm/n{n}")).await;
        assert_eq!((reply.status, reply.body), (200, format!("{{\"host\":\"n{n}\",\"pin\":{n}}}")));
        let reply = plain.get(&format!("/v1/events?topic=vm/n{n}&topic=none&wait=0")).await;
        assert_eq!((reply.status, reply.json()["events"].as_array().map(Vec::len)), (200, Some(1)), "{n}");
    }
    // Nobody asks any more, and yet it is said when values could be asked for again.
    place.redis.stop();
    assert_eq!(plain.get("/v1/state/vm/unasked?wait=1s").await.status, 503);
    edge.unready("asking").await;
    place.redis.start_again().unwrap();
    edge.ready().await;
}

/// An existing client's request, held by a node that has to ask for values.
#[tokio::test]
async fn an_edge_answers_endpoints() {
    const ENDPOINT: &str = "
[[endpoint]]
path = '/up'
topic = 'vm/{body.host}'
ready = 'data.pin > 0'
response = { pin = 'data.pin' }
missing = { status = 404 }
keepalive = '1s'";
    let mut place = Place::new("fleet_endpoint", "lease = '60s'").await;
    place.text.push_str(ENDPOINT);
    let _leader = place.broker(&[]).await;
    let edge = place.broker(&["--role=edge"]).await;
    let plain = Plain { address: edge.http.parse().unwrap() };
    let ask = async |host: &str| {
        let body = format!("{{\"host\":\"{host}\"}}");
        let head =
            format!("POST /up HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}", body.len());
        plain.raw(format!("{head}\r\n\r\n{body}")).await
    };
    let waiting = async || {
        until("somebody waits", async || {
            let reply = plain.get("/v1/waiters?topic=vm/a").await;
            reply.body.contains("\"client\":\"a\"")
        })
        .await;
    };
    assert_eq!(ask("nobody").await.status, 404);
    for pin in 1..=3 {
        let change = async {
            waiting().await;
            // Nothing to go by, and then an assignment; both reach who has to ask each time.
            run(&place.sql, "UPDATE vms SET pin = -1 WHERE host = 'a'").await;
            run(&place.sql, &format!("UPDATE vms SET pin = {pin} WHERE host = 'a'")).await;
        };
        let (answer, ()) = futures_util::future::join(ask("a"), change).await;
        assert!(answer.status == 200 && answer.body.contains(&format!("{{\"pin\":{pin}}}")), "{answer:?}");
        // What is there is answered at once; then it is free again.
        assert_eq!(ask("a").await.json()["pin"], pin);
        run(&place.sql, "UPDATE vms SET pin = 0 WHERE host = 'a'").await;
        until("it is free", async || state(&edge).await.1.contains("\"pin\":0")).await;
    }
}

#[tokio::test]
async fn another_leads_when_the_leader_is_killed() {
    let mut place = Place::new("fleet_killed", "lease = '60s'").await;
    let leader = place.broker(&[]).await;
    let other = place.broker(&[]).await;
    let edge = place.broker(&["--role=edge"]).await;
    let (mut there, mut here) = (follow(&other, After::Now).await, follow(&edge, After::Now).await);
    place.reaches(&mut there).await;
    assert_eq!(here.next().await.data["pin"], place.pin);
    let old = walsender(&place.sql, &place.name).await;
    leader.signal("KILL");
    let start = Instant::now();
    place.reaches(&mut here).await;
    let took = start.elapsed();
    println!("told through an edge {took:?} after the leader was killed");
    assert!(took < SOON, "{took:?}");
    assert_eq!(there.next().await.data["pin"], place.pin);
    until_moved(&place.sql, &place.name, &old).await;
    until("values are known again", async || state(&edge).await.1.contains(&format!(":{}}}", place.pin)))
        .await;
}

/// All of the log behind the floor would have to be read again, but for the standby's own place in it.
#[tokio::test]
async fn who_takes_over_does_not_read_the_whole_window_again() {
    const PART_MB: u64 = 16;
    let parts = if crate::fleet_faults::soak() { 64 } else { 16 };
    let mut place = Place::new("fleet_window", "lease = '60s'").await;
    let leader = place.broker(&[]).await;
    let _standby = place.broker(&[]).await;
    let edge = place.broker(&["--role=edge"]).await;
    // History begins here, and with it what the floor keeps.
    place.reaches(&mut follow(&edge, After::Now).await).await;
    run(&place.sql, "CREATE TABLE other (t text); ALTER TABLE other ALTER t SET STORAGE PLAIN").await;
    for _ in 0..parts {
        let rows = (PART_MB << 20) / 8192;
        let fill = format!("INSERT INTO other SELECT repeat('x', 7900) FROM generate_series(1, {rows})");
        run(&place.sql, &fill).await;
    }
    let behind = "SELECT coalesce(max(pg_current_wal_lsn() - confirmed_flush_lsn), -1)::bigint FROM pg_replication_slots
         WHERE database = current_database() AND slot_name";
    let floor = format!("{behind} NOT LIKE '%standby%' AND NOT temporary");
    let standby = format!("{behind} LIKE '%standby%'");
    let bytes = async |query: &str| value_of(&place.sql, query).await.parse::<i64>().unwrap();
    until("the standby comes near", async || (0..64 << 20).contains(&bytes(&standby).await)).await;
    let window = bytes(&floor).await;
    assert!(window > i64::try_from((parts - 2) * (PART_MB << 20)).unwrap(), "{window}");
    let mut here = follow(&edge, After::Now).await;
    leader.signal("KILL");
    let start = Instant::now();
    place.reaches(&mut here).await;
    let took = start.elapsed();
    println!("told {took:?} after the leader was killed, with {} MB behind the floor", window >> 20);
    assert!(took < SOON, "{took:?}");
}

#[tokio::test]
async fn a_redis_that_lost_everything_is_filled_again() {
    let mut place = Place::new("fleet_lost", "lease = '1s'").await;
    let _leader = place.broker(&[]).await;
    let edge = place.broker(&["--role=edge"]).await;
    let mut follower = follow(&edge, After::Now).await;
    let pin = place.change().await;
    let first = follower.next().await;
    assert_eq!(first.data["pin"], pin);
    place.redis_cli(&["FLUSHALL"]).await;
    until("it is filled though nothing happens", async || place.carried().await == 3).await;
    until("values are known", async || state(&edge).await.1.contains(&format!(":{pin}}}"))).await;
    place
        .redis_cli(&["--raw", "EVAL", "return redis.call('DEL', redis.call('KEYS', '*:state')[1])", "0"])
        .await;
    until("lost values are filled in", async || place.carried().await == 3).await;
    place.reaches(&mut follower).await;
    place.redis.stop();
    let pin = place.change().await;
    place.redis.start_again().unwrap();
    assert_eq!(follower.next().await.data["pin"], pin);
    until("values are known again", async || state(&edge).await.1.contains(&format!(":{pin}}}"))).await;
    // A broker that comes now knows what was told before.
    let late = place.broker(&["--role=edge"]).await;
    let mut follower = follow(&late, After::Cursor(first.cursor)).await;
    assert_eq!(follower.next().await.data["pin"], pin - 1);
    assert_eq!(follower.next().await.data["pin"], pin);
}

#[tokio::test]
async fn a_failover_of_redis_keeps_nothing_from_anybody() {
    let group = Watched::start("fleet-sentinel").await;
    let redis = Arc::clone(&group.master);
    let mut place = Place::over("fleet_sentinel", "lease = '1s'", redis, &group.url(&[])).await;
    let leader = place.broker(&[]).await;
    let edge = place.broker(&["--role=edge"]).await;
    let mut follower = follow(&edge, After::Now).await;
    place.reaches(&mut follower).await;
    place.redis.stop();
    for _ in 0..3 {
        place.reaches(&mut follower).await;
    }
    until("values are known again", async || state(&edge).await.1.contains(&format!(":{}}}", place.pin)))
        .await;
    leader.ready().await;
    edge.ready().await;
}

#[tokio::test]
async fn a_leader_that_was_stopped_follows_when_it_goes_on() {
    let mut place = Place::new("fleet_stopped", "lease = '1s'").await;
    let leader = place.broker(&[]).await;
    let other = place.broker(&[]).await;
    let (mut here, mut there) = (follow(&other, After::Now).await, follow(&leader, After::Now).await);
    place.reaches(&mut there).await;
    assert_eq!(here.next().await.data["pin"], place.pin);
    let old = walsender(&place.sql, &place.name).await;
    leader.signal("STOP");
    until_moved(&place.sql, &place.name, &old).await;
    place.reaches(&mut here).await;
    leader.signal("CONT");
    assert_eq!(there.next().await.data["pin"], place.pin);
    place.reaches(&mut there).await;
    leader.ready().await;
}

#[tokio::test]
async fn rules_that_a_broker_took_while_it_followed_are_told_when_it_leads() {
    let mut place = Place::new("fleet_rules", "lease = '60s'").await;
    let leader = place.broker(&[]).await;
    let mut other = place.broker(&[]).await;
    let edge = place.broker(&["--role=edge"]).await;
    let mut follower = follow(&edge, After::Now).await;
    place.reaches(&mut follower).await;
    other.rewrite(&place.text.replace("state = true", "state = true\nwhen = 'data.pin < 0'"));
    other.signal("HUP");
    other.said("new rules taken").await;
    leader.signal("KILL");
    other.said("streaming").await;
    loop {
        // The log has to go on, for a cursor of before is told by its place.
        place.change().await;
        match within("a reset", follower.0.next()).await.unwrap().unwrap() {
            Message::Reset(_) => break,
            Message::Event(_) | Message::Subscribed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    until("it is no member any more", async || state(&edge).await.0 == 404).await;
}

#[tokio::test]
async fn who_follows_takes_over_from_near_the_end_of_the_log() {
    const FILL: &str =
        "SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1 << 20)) FROM generate_series(1, 100)";
    let mut place = Place::new("fleet_warm", "lease = '60s'").await;
    let leader = place.broker(&[]).await;
    let other = place.broker(&[]).await;
    let mut follower = follow(&other, After::Now).await;
    place.reaches(&mut follower).await;
    run(&place.sql, FILL).await;
    place.reaches(&mut follower).await;
    let behind = "SELECT coalesce(max(pg_current_wal_lsn() - confirmed_flush_lsn), 1e9) < 10e6 FROM pg_replication_slots \
                  WHERE slot_name LIKE 'fleet_warm_standby_%'";
    // On a busy machine a move takes its time, and the next waits several times as long.
    until_limit(4 * LIMIT, "the place of the standby is near the end", async || {
        value_of(&place.sql, behind).await == "true"
    })
    .await;
    leader.signal("KILL");
    place.reaches(&mut follower).await;
    until("a leader keeps no such place", async || {
        let kept = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'fleet_warm_standby_%'";
        value_of(&place.sql, kept).await == "0"
    })
    .await;
    other.signal("TERM");
    let (_, _, log) = other.ended().await;
    let (_, rest) = log.split_once("replay_bytes=").unwrap();
    let replayed: u64 = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
    assert!(replayed < 20 << 20, "{replayed} bytes were read again");
}
