//! Broker and Postgres are killed again and again under load, and nobody misses anything.

use std::time::{Duration, Instant};

use crate::crowd::{Crowd, RULE, Size};
use crate::server::Server;
use crate::serving::{self, Process};
use crate::wait::{LIMIT, until_limit};

/// Ten times as often with `WALCAST_SOAK=1`.
fn rounds(few: u64) -> u64 {
    if std::env::var_os("WALCAST_SOAK").is_some_and(|soak| soak == "1") { 10 * few } else { few }
}

/// A server and a broker of the test's own, and a crowd on them.
struct Scene {
    server: Server,
    crowd: Crowd,
    text: String,
    broker: Process,
}

impl Scene {
    async fn begin(name: &str, history: &str, size: Size) -> Self {
        let server = Server::tuned(&[]).await;
        let mut crowd = Crowd::prepare(&server, name).await;
        let text = serving::settings(&crowd.url, name, "", &format!("{history}\n{RULE}"));
        let broker = Process::start(name, &text).await;
        broker.ready().await;
        crowd.at(&broker.client);
        crowd.begin(size).await;
        crowd.progress(100).await;
        Self { server, crowd, text, broker }
    }

    /// Each fifth time the server crashes, else the broker is killed.
    async fn kill(&mut self, round: u64) {
        if round % 5 == 4 {
            self.server.crash().await;
            self.server.start_again().await;
        } else {
            self.broker.signal("KILL");
            let new = Process::start(&self.crowd.name, &self.text).await;
            std::mem::replace(&mut self.broker, new).ended().await;
            self.crowd.at(&self.broker.client);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_over_kills_of_broker_and_postgres() {
    let size = Size { writers: 8, followers: 200, stays: usize::MAX, pause: Duration::from_millis(100) };
    let mut scene = Scene::begin("kill", "", size).await;
    let (rounds, start) = (rounds(25), Instant::now());
    for round in 0..rounds {
        // Now while it works, now in the middle of coming back.
        if round % 4 != 3 {
            scene.crowd.progress(200 + round * 517 % 2_000).await;
        }
        scene.kill(round).await;
    }
    println!("{rounds} rounds in {:?}, {} events delivered", start.elapsed(), scene.crowd.delivered());
    // All of it is still there for one who was away from beginning to end.
    scene.crowd.follow(&["**"]);
    scene.crowd.acquitted(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_small_window_loses_is_told() {
    let size = Size { writers: 4, followers: 30, stays: usize::MAX, pause: Duration::from_millis(50) };
    let mut scene = Scene::begin("kill_window", "[history]\nevents = 200", size).await;
    let floor =
        "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = 'kill_window'";
    for round in 0..rounds(6) {
        let place = || scene.server.sql(floor).parse::<u64>().unwrap();
        let before = place();
        // One of the two skips more than the floor moves by at least.
        scene.server.sql("SELECT pg_switch_wal()");
        scene.server.sql("SELECT pg_logical_emit_message(false, 'fill', 'x')");
        scene.server.sql("SELECT pg_switch_wal()");
        scene.crowd.progress(300 + round * 517 % 1_500).await;
        if round % 3 == 0 {
            // It waits twenty times as long as its last move took, which on a busy machine is long.
            until_limit(LIMIT * 5, "the floor follows the window", async || place() > before).await;
        }
        scene.kill(round).await;
    }
    // Its cursor is too old by far.
    scene.crowd.follow(&["**"]);
    scene.crowd.acquitted(true).await;
}
