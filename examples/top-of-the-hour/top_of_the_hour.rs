//! Thousands of bots that wait for the same moment, and do not all act in it: each takes its own within some seconds.
//!
//! `cargo run --release -p walcast-examples --bin top-of-the-hour -- [--bots 3000] [--spread 20]`, against
//! `walcast dev`. They are subscriptions of one process here; a fleet has one in each machine.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use walcast_client::{After, Client, EventsRequest, Subscribe, Update};

const TOPIC: &str = "hour";
const BARS: usize = 20;

/// One publication, and when who is woken by it.
#[derive(Parser)]
struct Args {
    /// How many wait
    #[arg(long, default_value_t = 3000)]
    bots: usize,
    /// Seconds over which they spread themselves
    #[arg(long, default_value_t = 20.0)]
    spread: f64,
    #[arg(default_value = "http://127.0.0.1:8480")]
    url: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let Args { bots, spread, url } = Args::parse();
    // A connection each.
    rlimit::increase_nofile_limit(u64::MAX)?;
    let client = Client::new(&url)?;
    let mut now = EventsRequest::new([TOPIC.parse()?]);
    (now.after, now.wait) = (After::Now, Some(Duration::ZERO));
    let place = client.poll(&now).await?.cursor;
    let all_listen = Arc::new(Barrier::new(bots + 1));
    let all_woke = Arc::new(Barrier::new(bots));
    let mut tasks = JoinSet::new();
    for _ in 0..bots {
        // From a place before the publication: even who connects late misses nothing.
        let what = client.subscribe([TOPIC]).after(place).spread(Duration::from_secs_f64(spread));
        tasks.spawn(bot(what, Arc::clone(&all_listen), Arc::clone(&all_woke)));
    }
    all_listen.wait().await;
    println!("{bots} bots wait");
    let start = Instant::now();
    client.publish(TOPIC, "it is full").await?;
    let (mut bars, mut twice, mut last) = ([0; BARS], 0, 0.0_f64);
    while let Some(ended) = tasks.join_next().await {
        let (woken, again) = ended??;
        let late = woken.duration_since(start).as_secs_f64();
        bars[((late / spread * BARS as f64) as usize).min(BARS - 1)] += 1;
        twice += usize::from(again);
        last = last.max(late);
    }
    for (number, count) in bars.iter().enumerate() {
        let from = spread * number as f64 / BARS as f64;
        println!("{from:6.2} s {count:5} {}", "#".repeat(count * 200 / bots));
    }
    println!("{} bots woke, {twice} of them twice, the last after {last:.1} s", bars.iter().sum::<usize>());
    Ok(())
}

/// Says when it woke, and whether it was woken again before all others were.
async fn bot(
    what: Subscribe,
    all_listen: Arc<Barrier>,
    all_woke: Arc<Barrier>,
) -> Result<(Instant, bool), String> {
    let mut updates = what.stream();
    // It connects when it is asked.
    while updates.connections() == 0 {
        if let Ok(early) = timeout(Duration::from_millis(50), updates.next()).await {
            return Err(format!("{early:?}, before anything was published"));
        }
    }
    all_listen.wait().await;
    match updates.next().await {
        Some(Ok(Update::Event(_))) => {}
        other => return Err(format!("{other:?}")),
    }
    let woken = Instant::now();
    tokio::select! {
        _ = all_woke.wait() => Ok((woken, false)),
        _ = updates.next() => Ok((woken, true)),
    }
}
