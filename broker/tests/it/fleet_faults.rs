//! Brokers and their Redis fail again and again under load while clients move between them: nobody misses anything
//! without being told, and all are whole again soon.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use walcast::throwaway::redis::Server as Redis;

use crate::crowd::{Crowd, RULE, Size};
use crate::judge::{Terms, What, judge, summary};
use crate::server::Server;
use crate::serving::{self, Process};
use crate::wait::{until, within};

/// What fails.
#[derive(Clone, Copy, Debug)]
enum Fault {
    LeaderKilled,
    EdgeKilled,
    RedisRestartedEmpty,
    RedisStopped,
    Flushed,
    Trimmed,
    LeaderStopped,
}

const ALL: [Fault; 7] = [
    Fault::LeaderKilled,
    Fault::EdgeKilled,
    Fault::RedisRestartedEmpty,
    Fault::RedisStopped,
    Fault::Flushed,
    Fault::Trimmed,
    Fault::LeaderStopped,
];
/// So long Redis stands still,
const REDIS_STANDS: Duration = Duration::from_secs(10);
/// and a leader, whose lease is far shorter.
const LEADER_STANDS: Duration = Duration::from_secs(15);
const BROKERS: usize = 3;

pub(crate) fn soak() -> bool {
    std::env::var_os("WALCAST_SOAK").is_some_and(|soak| soak == "1")
}

struct Scene {
    _server: Server,
    redis: Redis,
    crowd: Crowd,
    text: String,
    brokers: Vec<Process>,
}

impl Scene {
    async fn begin(name: &str, size: Size) -> Self {
        let server = Server::tuned(&[]).await;
        let mut crowd = Crowd::prepare(&server, name).await;
        let redis = tokio::task::spawn_blocking(|| Redis::start().unwrap()).await.unwrap();
        let rest = format!("[redis]\nurl = '{}'\n{RULE}", redis.url());
        let text = serving::settings(&crowd.url, name, "lease = '1s'", &rest);
        let mut brokers = Vec::new();
        for _ in 0..BROKERS {
            let broker = Process::start(name, &text).await;
            broker.ready().await;
            brokers.push(broker);
        }
        crowd.among(brokers.iter().map(|broker| &broker.client));
        crowd.begin(size).await;
        crowd.progress(100).await;
        Self { _server: server, redis, crowd, text, brokers }
    }

    /// The place of the broker that leads.
    async fn leader(&self) -> usize {
        let deadline = Instant::now() + crate::wait::LIMIT;
        loop {
            for (place, broker) in self.brokers.iter().enumerate() {
                let (status, body) = broker.readiness().await;
                if status == 200 && !body.contains("\"lease\"") {
                    return place;
                }
            }
            if Instant::now() > deadline {
                panic!("nobody leads{}", self.what_brokers_say().await);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// For who reads the failure.
    async fn what_brokers_say(&self) -> String {
        let mut all = String::new();
        for broker in &self.brokers {
            let (status, body) = broker.readiness().await;
            let log = broker.log();
            let lines: Vec<&str> = log.lines().rev().take(40).collect();
            let end: Vec<&str> = lines.into_iter().rev().collect();
            all += &format!("\n\n{} {status} {body}\n{}", broker.http, end.join("\n"));
        }
        all
    }

    async fn redis_cli(&self, words: &[&str]) -> String {
        let mut command = tokio::process::Command::new("redis-cli");
        command.arg("-p").arg(self.redis.port().to_string()).args(words);
        let output = within("redis-cli", command.output()).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    async fn signal_redis(&self, signal: &str) {
        let pid = self.redis.pid().unwrap().to_string();
        let status = tokio::process::Command::new("kill").args([&format!("-{signal}"), &pid]).status();
        assert!(status.await.unwrap().success());
    }

    async fn kill(&mut self, place: usize) {
        self.brokers[place].signal("KILL");
        let new = Process::start(&self.crowd.name, &self.text).await;
        std::mem::replace(&mut self.brokers[place], new).ended().await;
        self.crowd.among(self.brokers.iter().map(|broker| &broker.client));
    }

    async fn play(&mut self, fault: Fault) {
        let leader = self.leader().await;
        match fault {
            Fault::LeaderKilled => self.kill(leader).await,
            Fault::EdgeKilled => self.kill((leader + 1) % BROKERS).await,
            Fault::RedisRestartedEmpty => self.redis.restart_empty().unwrap(),
            Fault::RedisStopped => {
                self.signal_redis("STOP").await;
                tokio::time::sleep(REDIS_STANDS).await;
                self.signal_redis("CONT").await;
            }
            Fault::Flushed => drop(self.redis_cli(&["FLUSHALL"]).await),
            Fault::Trimmed => {
                for key in self.redis_cli(&["--scan", "--pattern", "*:log"]).await.lines() {
                    self.redis_cli(&["XTRIM", key, "MAXLEN", "0"]).await;
                }
            }
            Fault::LeaderStopped => {
                self.brokers[leader].signal("STOP");
                tokio::time::sleep(LEADER_STANDS).await;
                self.brokers[leader].signal("CONT");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_unsaid_while_all_of_it_fails() {
    let size = Size { writers: 8, followers: 300, stays: 400, pause: Duration::from_millis(100) };
    let mut scene = Scene::begin("fleet_faults", size).await;
    let rounds = if soak() { 300 } else { 8 };
    let seed =
        std::env::var("WALCAST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("faults by seed {seed}");
    let (mut random, start) = (StdRng::seed_from_u64(seed), Instant::now());
    // Each kind comes once in as many rounds as there are kinds.
    let mut faults: Vec<Fault> = Vec::new();
    for round in 0..rounds {
        if faults.is_empty() {
            faults = ALL.to_vec();
        }
        let fault = faults.swap_remove(random.random_range(0..faults.len()));
        println!("{:>6.1} s: {fault:?}", start.elapsed().as_secs_f64());
        scene.play(fault).await;
        if round % 3 != 2 {
            scene.crowd.progress(random.random_range(100..2_000)).await;
        }
    }
    let last = Instant::now();
    for broker in &scene.brokers {
        broker.ready().await;
    }
    until("somebody leads", async || scene.leader().await < BROKERS).await;
    println!("{rounds} faults; all brokers are well {:?} after the last", last.elapsed());
    let Scene { _server, redis, crowd, brokers, .. } = scene;
    println!("{} events delivered", crowd.delivered());
    let (truth, histories, terms) = crowd.end(10 * crate::wait::LIMIT).await;
    println!("all clients have everything {:?} after the last fault", last.elapsed());
    let resets = histories.iter().flat_map(|history| &history.entries);
    let resets = resets.filter(|entry| matches!(entry.what, What::Reset(_))).count();
    println!("{resets} resets told to {} clients", histories.len());
    let violations = judge(&truth, &histories, &Terms { resets: true, ..terms });
    assert!(violations.is_empty(), "{}", summary(&violations));
    drop((brokers, redis));
}
