//! Our own client over a link that fails in every way: it hands out each event once, in order, and none is missing.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::net::TcpListener;
use walcast::event::Effect;
use walcast::{hub, transport::Config};
use walcast_client::{After, Client, Transport, Update};
use walcast_wire::{Cursor, Op, TopicPattern};

use crate::edge::{EPOCH, Edge, message, state};
use crate::fleet_faults::soak;
use crate::proxy::Proxy;
use crate::wait::{LIMIT, within_limit};

const CLIENTS: usize = 100;
const EVERY: Duration = Duration::from_millis(20);
/// Half a minute of them; under soak, five.
const COMMITS: u64 = 1_500;
const COMMITS_SOAK: u64 = 15_000;
const END: &str = "vm/end";

/// Cursor, topic and data.
type Told = (Cursor, String, String);

/// What a follower was told, up to the last event.
struct Report {
    who: String,
    pattern: TopicPattern,
    values: Vec<Told>,
    events: Vec<Told>,
}

async fn follow(
    client: Client,
    who: String,
    pattern: &'static str,
    after: After,
    by: Option<Transport>,
) -> Report {
    let mut subscribe = client.subscribe([pattern, END]).after(after).spread(Duration::from_millis(20));
    if let Some(transport) = by {
        subscribe = subscribe.transport(transport);
    }
    let mut updates = subscribe.stream();
    let mut report =
        Report { who, pattern: pattern.parse().unwrap(), values: Vec::new(), events: Vec::new() };
    loop {
        let update = updates.next().await.expect("it goes on");
        match update.unwrap_or_else(|error| panic!("{}: {error}", report.who)) {
            Update::Event(event) => {
                let told = (event.cursor, event.topic.to_string(), event.data.to_string());
                match event.op {
                    Op::Snapshot => {
                        assert!(report.events.is_empty(), "{}: a value amid events", report.who);
                        report.values.push(told);
                    }
                    _ => report.events.push(told),
                }
                if event.topic.as_str() == END {
                    return report;
                }
            }
            Update::Reset(reset) => panic!("{}: nothing was lost: {reset:?}", report.who),
        }
    }
}

impl Report {
    /// Compares with everything that was published.
    fn check(&self, truth: &[Told]) {
        let wanted = |told: &&Told| told.1 == END || self.pattern.matches(&told.1.parse().unwrap());
        let truth: Vec<&Told> = truth.iter().filter(wanted).collect();
        let before = truth.len().checked_sub(self.events.len());
        let before = before.unwrap_or_else(|| panic!("{}: more than there was", self.who));
        for (told, wanted) in self.events.iter().zip(&truth[before..]) {
            assert_eq!(&told, wanted, "{}: lost, repeated or out of order", self.who);
        }
        // What came before the first event is what the values say, each topic once.
        let mut picture = BTreeMap::new();
        for (cursor, topic, data) in truth[..before].iter().copied() {
            picture.insert(topic, (cursor, data));
        }
        let values: BTreeMap<_, _> =
            self.values.iter().map(|(cursor, topic, data)| (topic, (cursor, data))).collect();
        assert_eq!(values.len(), self.values.len(), "{}: a value twice", self.who);
        assert_eq!(values, picture, "{}: other values than there were", self.who);
    }
}

#[tokio::test]
async fn nothing_is_lost_repeated_or_reordered_over_a_link_that_fails() {
    let config = Config { heartbeat: Duration::from_millis(500), ..Config::default() };
    let edge = Edge::with(config, hub::Config::default()).await;
    let proxy = Proxy::start(edge.address.port()).await;
    let mut hosts = vec![format!("http://{}", proxy.address)];
    for _ in 0..2 {
        hosts.push(format!(
            "http://{}",
            TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
        ));
    }
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let start = After::Cursor(edge.send("log/start", "0"));

    let mut followers = Vec::new();
    for i in 0..CLIENTS {
        let limit = Duration::from_secs(2);
        let builder = Client::builder().hosts(&hosts).connect_timeout(limit).silence_timeout(limit);
        let by = [None, Some(Transport::WebSocket), Some(Transport::Sse), Some(Transport::Poll)][i % 4];
        // Those that begin with current values see nothing but rows, all of which have one.
        let (pattern, after) = [("**", start), ("vm/*", After::Current), ("log/*", start)][i % 3];
        let who = format!("follower {i} of {pattern} by {by:?}");
        followers.push(tokio::spawn(follow(builder.build().unwrap(), who, pattern, after, by)));
    }

    let mut truth = Vec::new();
    let mut commit = |events: Vec<(u64, &str, String)>| {
        let lsn = edge
            .commit(
                events
                    .iter()
                    .map(|(ordinal, topic, data)| {
                        let event = match topic.starts_with("vm/") {
                            true => state(topic, data, Op::Update, Effect::Put),
                            false => message(topic, data),
                        };
                        (*ordinal, event)
                    })
                    .collect(),
            )
            .position
            .major
            - 2;
        for (ordinal, topic, data) in events {
            let cursor = Cursor::new(EPOCH, walcast_wire::Position::new(lsn, ordinal));
            truth.push((cursor, topic.to_owned(), data));
        }
    };
    let mut tick = tokio::time::interval(EVERY);
    for n in 0..if soak() { COMMITS_SOAK } else { COMMITS } {
        tick.tick().await;
        let vm = format!("vm/{}", n % 7);
        let data = n.to_string();
        match n % 3 {
            0 => commit(vec![(1, "log/a", data)]),
            // Events that share a cursor.
            1 => commit(vec![(1, &vm, data.clone()), (1, "log/b", data.clone()), (2, "log/a", data)]),
            _ => commit(vec![(1, &vm, data)]),
        }
        // Somewhere in the next bytes of whichever connection brings them.
        if n % 4 == 0 {
            proxy.reset_after(random.random_range(0..200_000));
        }
        match n % 150 {
            50 if random.random_bool(0.5) => proxy.blackhole(),
            50 => proxy.slow(random.random_range(10_000..1_000_000)),
            80 => {
                proxy.heal();
                proxy.slow(0);
            }
            _ => {}
        }
    }
    proxy.heal();
    proxy.slow(0);
    commit(vec![(1, END, "0".to_owned())]);

    for follower in followers {
        within_limit(LIMIT * 2, "the last event", follower).await.unwrap().check(&truth);
    }
    println!("{} events to each of {CLIENTS}; {} connections were reset", truth.len(), proxy.resets());
    assert!(proxy.resets() > 0);
}
