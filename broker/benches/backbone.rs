//! How much goes through Redis between two brokers, beside plain `XADD` on the same machine.
//!
//! A leader's hub is fed as fast as it takes batches; a second hub follows it. Everything is measured from the first
//! batch until the follower has the last event.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use walcast::backbone::Backbone as _;
use walcast::backbone::local::Local;
use walcast::backbone::redis::Config;
use walcast::event::{Batch, Commit, Entry, Event, Fence, Note};
use walcast::health::Health;
use walcast::hub::{self, Hub};
use walcast::pipeline;
use walcast::pipeline::fleet::{self, Carrier, Fleet};
use walcast::source::SourceKind;
use walcast::throwaway::redis::Server;
use walcast_wire::{Epoch, Op, Position, Topic};

const DATA_BYTES: usize = 200;
const EVENTS: u64 = 200_000;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    println!("events of {DATA_BYTES} bytes; {EVENTS} in each run but the first, which has a tenth\n");
    println!("{:<34} {:>12} {:>12} {:>10}", "", "events/s", "entries/s", "µs each");
    for (size, events) in [(1, EVENTS / 10), (1, EVENTS), (100, EVENTS), (1_000, EVENTS)] {
        let (took, entries) = runtime.block_on(run(size, events))?;
        let name = format!("to a follower, {size} in a batch");
        row(&name, events as f64 / took.as_secs_f64(), Some(entries as f64 / took.as_secs_f64()));
    }
    let server = Server::start()?;
    for pipelined in [1, 16, 100] {
        row(&format!("redis-benchmark XADD, {pipelined} at a time"), xadd(&server, pipelined)?, None);
    }
    Ok(())
}

fn row(name: &str, events: f64, entries: Option<f64>) {
    let entries = entries.map_or_else(|| "–".to_owned(), |entries| format!("{entries:.0}"));
    println!("{name:<34} {events:>12.0} {entries:>12} {:>10.1}", 1e6 / events);
}

/// How long it takes to tell so many events, and in how many entries of the stream they went.
async fn run(size: u64, events: u64) -> Outcome<(Duration, u64)> {
    let server = tokio::task::spawn_blocking(Server::start).await??;
    let redis = Config { url: Some(server.url()), ..Config::default() };
    let fleet = |hub: &Arc<Hub>| Fleet {
        redis: redis.clone(),
        source: "bench".into(),
        hub: Arc::clone(hub),
        health: Arc::new(Health::among_others(Duration::from_secs(60))),
        silence_max: Duration::from_secs(60),
    };
    let (local, leader) = (Arc::new(Local::default()), Hub::new(hub::Config::default()));
    let (carrier, lead, _) = Carrier::new(fleet(&leader));
    let follower = Hub::new(hub::Config::default());
    follower.follow_others();
    let (_always, follows) = watch::channel(true);
    let health = Arc::new(Health::new(Duration::from_secs(60)));
    let ingest = pipeline::ingest(Arc::clone(&local), Arc::clone(&leader), health, SourceKind::Wal);
    let _tasks = [
        AbortOnDropHandle::new(tokio::spawn(carrier.run())),
        AbortOnDropHandle::new(tokio::spawn(async move {
            // Nothing is ever too large for the hub here.
            let _ = ingest.await;
        })),
        AbortOnDropHandle::new(tokio::spawn({
            let fleet = fleet(&follower);
            async move {
                // The settings are good.
                let _ = fleet::follow(fleet, follows).await;
            }
        })),
    ];
    lead.take(Fence::new(1, 1)).await;
    let mut head = Position::before(100);
    let note = Note::Start { replay_until: head, quiet_from: head };
    let start = Batch { epoch: Epoch(1), after: head, upto: head, entries: Arc::from([]), note: Some(note) };
    local.publish(&start).await?;
    while follower.head().is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let topics: Vec<Topic> =
        (0..1_000).map(|n| Topic::new(&format!("vm/host-{n}"))).collect::<Result<_, _>>()?;
    let data = Bytes::from(format!("\"{}\"", "x".repeat(DATA_BYTES - 2)));
    let begun = Instant::now();
    let mut lsn = 100;
    for _ in 0..events / size {
        let entries = (0..size).map(|n| {
            let lsn = lsn + n;
            let commit = Arc::new(Commit { major: lsn, lsn: Some(lsn), xid: lsn as u32, time_us: 0 });
            Entry::Event(Event {
                position: Position::new(lsn, 1),
                topic: topics[lsn as usize % topics.len()].clone(),
                op: Op::Message,
                data: data.clone(),
                commit: Some(commit),
                unchanged: Box::default(),
                omitted: Box::default(),
                partial: false,
                state: None,
            })
        });
        let entries = entries.collect();
        lsn += size;
        let upto = Position::before(lsn);
        let batch = Batch { epoch: Epoch(1), after: head, upto, entries, note: None };
        head = upto;
        local.publish(&batch).await?;
    }
    let last = Position::new(lsn - 1, 1);
    while follower.head().is_none_or(|head| head.position < last) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok((begun.elapsed(), added(&server)?))
}

/// Entries that were ever added to the stream.
fn added(server: &Server) -> Outcome<u64> {
    let script = "local added = 0 for _, key in ipairs(redis.call('KEYS', '*:log')) do \
                  local info = redis.call('XINFO', 'STREAM', key) for at = 1, #info, 2 do \
                  if info[at] == 'entries-added' then added = added + info[at + 1] end end end return added";
    let port = server.port().to_string();
    let output = Command::new("redis-cli").args(["-p", &port, "--raw", "EVAL", script, "0"]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// Entries a second, each of one event.
fn xadd(server: &Server, pipelined: u32) -> Outcome<f64> {
    let (port, pipelined) = (server.port().to_string(), pipelined.to_string());
    let event = "x".repeat(DATA_BYTES + 100);
    let args = [
        "-p", &port, "-n", "100000", "-c", "1", "-P", &pipelined, "--csv", "XADD", "bench", "*", "events",
        &event,
    ];
    let output = Command::new("redis-benchmark").args(args).output()?;
    let text = String::from_utf8(output.stdout)?;
    let figure = text.lines().last().and_then(|last| last.split(',').nth(1)).unwrap_or_default();
    Ok(figure.trim_matches('"').parse()?)
}
