//! Broker and Postgres are killed again and again under load, and nobody misses anything.

use std::time::{Duration, Instant};

use crate::crowd::{Crowd, RULE, Size};
use crate::serving::{self, Process};
use crate::support::Server;

/// `WALCAST_SOAK=1`: ten times as often.
fn rounds() -> u64 {
    if std::env::var_os("WALCAST_SOAK").is_some_and(|soak| soak == "1") { 250 } else { 25 }
}

const CROWD: Size = Size { writers: 8, followers: 200, pause: Duration::from_millis(100) };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_over_kills_of_broker_and_postgres() {
    let name = "kill";
    let server = Server::tuned(&[]).await;
    let mut crowd = Crowd::prepare(&server.create_database(name).await, name).await;
    let text = serving::file(&crowd.url, name, "", RULE);
    let mut broker = Process::start(name, &text).await;
    broker.ready().await;
    crowd.at(&broker.client);
    crowd.begin(CROWD).await;
    crowd.progress(100).await;
    let start = Instant::now();
    for round in 0..rounds() {
        // Now while it works, now in the middle of coming back.
        if round % 4 != 3 {
            crowd.progress(200 + round * 517 % 2_000).await;
        }
        if round % 5 == 4 {
            server.crash().await;
        } else {
            broker.signal("KILL");
            broker.ended().await;
            broker = Process::start(name, &text).await;
            crowd.at(&broker.client);
        }
    }
    println!("{} rounds in {:?}, {} events delivered", rounds(), start.elapsed(), crowd.delivered());
    crowd.judged().await;
}
