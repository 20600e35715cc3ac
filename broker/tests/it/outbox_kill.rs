//! Broker and Postgres are killed again and again while the outbox is written to and read, and nobody misses anything.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use walcast_client::{After, Client, EventsRequest, Message, Transport};

use crate::broker::{config, connect, patterns, value};
use crate::server::Server;
use crate::serving::{self, Process};
use crate::wait::{LIMIT, until, until_limit, within_limit};

const COUNTERS: &str = "CREATE TABLE counters (id int PRIMARY KEY, n bigint NOT NULL);
    INSERT INTO counters SELECT i, 0 FROM generate_series(0, 7) i";
const RULE: &str = "[[table]]\nname = 'public.counters'\ntopic = 'row/{id}'\n";

/// Counts up, each step a message and a row's change, over whatever connection there is. Rows of neighbours are waited
/// for, so that writers see each other.
async fn write(url: String, writer: u64, stop: Arc<AtomicBool>) {
    let mut step = writer;
    while !stop.load(Ordering::Relaxed) {
        let Ok((sql, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
        while !stop.load(Ordering::Relaxed) {
            step += 1;
            let end = if step.is_multiple_of(7) { "ROLLBACK" } else { "COMMIT" };
            let transaction = format!(
                "BEGIN; SELECT walcast.publish('begin', '0');
                 WITH step AS (UPDATE counters SET n = n + 1 WHERE id = {} RETURNING id, n)
                 SELECT walcast.publish('said/' || id, to_jsonb(n)) FROM step; {end}",
                step % 8
            );
            if sql.batch_execute(&transaction).await.is_err() {
                break;
            }
        }
    }
}

/// What a follower was told: the last count on each topic.
type Counts = BTreeMap<String, u64>;

/// Follows from the beginning to the end, over whatever broker there is, by its cursor.
async fn follow(
    transport: Transport,
    broker: watch::Receiver<Client>,
    events: Arc<AtomicU64>,
    end: watch::Receiver<Option<Counts>>,
) {
    let (mut after, mut counts, mut seen) = (After::Earliest, Counts::new(), HashMap::new());
    let done = |counts: &Counts| end.borrow().as_ref() == Some(counts);
    while !done(&counts) {
        let client = broker.borrow().clone();
        let request = EventsRequest::new(patterns(&["row/*", "said/*"])).after(after);
        let Ok(mut stream) = client.open(transport, request).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while !done(&counts) {
            // A broker that was killed may leave a connection that says nothing.
            let Ok(next) = tokio::time::timeout(Duration::from_secs(2), stream.next()).await else { break };
            match next {
                Ok(Some(Message::Event(event))) => {
                    let event = value(&event);
                    after = After::Cursor(event.cursor);
                    events.fetch_add(1, Ordering::Relaxed);
                    let n = event.data["n"].as_u64().or(event.data.as_u64()).unwrap();
                    let topic = event.topic.to_string();
                    // What comes twice is the same.
                    if let Some(earlier) = seen.insert((event.cursor.to_string(), topic.clone()), n) {
                        assert_eq!(earlier, n, "{topic}");
                        continue;
                    }
                    let last = counts.entry(topic.clone()).or_default();
                    assert_eq!(n, *last + 1, "{topic}");
                    *last = n;
                }
                Ok(Some(Message::Reset(reset))) => panic!("{reset:?}"),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_over_kills_of_broker_and_postgres() {
    let name = "outbox_kill";
    let soak = std::env::var_os("WALCAST_SOAK").is_some_and(|soak| soak == "1");
    let rounds = if soak { 200 } else { 6 };
    let server = Server::tuned(&[("wal_level", "replica")]).await;
    let url = server.create_database(name).await;
    connect(&url).await.batch_execute(COUNTERS).await.unwrap();
    let mut config = config(&url, name, RULE);
    config.source.kind = walcast::source::SourceKind::Outbox;
    walcast::cli::local::set_up(&config, false).await.unwrap();
    let text = serving::settings(&url, name, "kind = 'outbox'\nlease = '1s'", RULE);
    let mut broker = Process::start(name, &text).await;
    broker.ready().await;
    let (here, there) = watch::channel(broker.client.clone());
    let (finish, finished) = watch::channel(None::<Counts>);
    let (events, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let writers: Vec<_> =
        (0..6).map(|writer| tokio::spawn(write(url.clone(), writer * 1000, Arc::clone(&stop)))).collect();
    let followers: Vec<_> = Transport::ALL
        .into_iter()
        .map(|transport| {
            tokio::spawn(follow(transport, there.clone(), Arc::clone(&events), finished.clone()))
        })
        .collect();
    let begun = Instant::now();
    for round in 0..rounds {
        if round % 4 != 3 {
            let before = events.load(Ordering::Relaxed);
            until_limit(LIMIT * 5, "events come", async || {
                assert!(followers.iter().all(|follower| !follower.is_finished()), "a follower failed");
                events.load(Ordering::Relaxed) > before + 100 + round * 37 % 300
            })
            .await;
        }
        if round % 5 == 4 {
            server.crash().await;
            server.start_again().await;
        } else {
            broker.signal("KILL");
            let new = Process::start(name, &text).await;
            std::mem::replace(&mut broker, new).ended().await;
            here.send_replace(broker.client.clone());
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let rows = connect(&url).await;
    let rows = rows.query("SELECT id, n FROM counters WHERE n > 0", &[]).await.unwrap();
    let mut truth = Counts::new();
    for row in rows {
        let (id, n): (i32, i64) = (row.get(0), row.get(1));
        for kind in ["row", "said"] {
            truth.insert(format!("{kind}/{id}"), u64::try_from(n).unwrap());
        }
    }
    println!(
        "{rounds} rounds in {:?}, {} events told, counts {:?}",
        begun.elapsed(),
        events.load(Ordering::Relaxed),
        truth.values().sum::<u64>()
    );
    finish.send_replace(Some(truth));
    for follower in followers {
        // One that waits for more has everything, or lost it.
        within_limit(LIMIT * 5, "every follower has everything", follower).await.unwrap();
    }
    until("the broker is well in the end", async || broker.readiness().await.0 == 200).await;
}
