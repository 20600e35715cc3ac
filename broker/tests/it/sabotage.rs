//! The judge catches brokers that were broken on purpose, and finds nothing where the same happens to a whole one.
#![cfg(debug_assertions)] // Other builds have no such faults.

use std::time::Duration;

use crate::broker::{LIMIT, connect, run, until, value_of};
use crate::crowd::{Crowd, RULE, Size, publish};
use crate::judge::{Law, summary};
use crate::server::Server;
use crate::serving::{self, Process};

const CROWD: Size = Size { writers: 2, followers: 6, stays: usize::MAX, pause: Duration::from_millis(20) };
/// Nobody answers, so a commit that waits for standbys is in the log and stays invisible.
const SERVER: &[(&str, &str)] = &[("synchronous_standby_names", "nobody"), ("synchronous_commit", "local")];
/// A broken broker may never get to the end.
const PATIENCE: Duration = Duration::from_secs(2);

/// A broker with one of these faults, or with none, and its crowd.
struct Trial<'a> {
    server: &'a Server,
    name: String,
    text: String,
    fault: &'a str,
    broker: Process,
    crowd: Crowd,
}

impl<'a> Trial<'a> {
    async fn new(server: &'a Server, scene: &str, fault: &'a str) -> Self {
        // Files bear it too, and both tests play the same scenes.
        let name = format!("{}_{scene}", if fault.is_empty() { "whole" } else { "sabotage" });
        let crowd = Crowd::prepare(server, &name).await;
        let text = serving::settings(&crowd.url, &name, "", RULE);
        let broker = Process::start_as(&name, &text, &[], &[("WALCAST_SABOTAGE", fault)]).await;
        broker.ready().await;
        crowd.at(&broker.client);
        Self { server, name, text, fault, broker, crowd }
    }

    async fn begin(&mut self) {
        self.crowd.begin(CROWD).await;
        self.crowd.progress(50).await;
    }

    async fn kill(&mut self) {
        self.broker.signal("KILL");
        let new = Process::start_as(&self.name, &self.text, &[], &[("WALCAST_SABOTAGE", self.fault)]).await;
        std::mem::replace(&mut self.broker, new).ended().await;
        self.crowd.at(&self.broker.client);
        self.broker.ready().await;
    }

    /// What the judge says, if anything is wrong by this law.
    async fn verdict(self, law: Law) -> bool {
        let patience = if self.fault.is_empty() { LIMIT } else { PATIENCE };
        let violations = self.crowd.judged(patience, false).await;
        println!("{} {:?}: {}", self.name, self.fault, summary(&violations));
        let caught = violations.iter().any(|violation| violation.law == law);
        assert!(caught || violations.is_empty(), "not {law:?}: {}", summary(&violations));
        caught
    }
}

/// The log passes a place from which on positions have one digit more.
async fn one_digit_more(server: &Server, fault: &str) -> bool {
    let mut it = Trial::new(server, "digit", fault).await;
    let switch_up_to = |lsn: u64| {
        let sql = "SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal()";
        while server.sql("SELECT pg_current_wal_lsn() - '0/0'").parse::<u64>().unwrap() < lsn {
            server.sql(sql);
        }
    };
    switch_up_to(0x0F00_0000);
    it.begin().await;
    switch_up_to(0x1000_0000);
    it.verdict(Law::Reliable).await
}

/// A commit stays invisible for a while.
async fn invisible(server: &Server, fault: &str) -> bool {
    let mut it = Trial::new(server, "invisible", fault).await;
    it.begin().await;
    let url = it.crowd.url.clone();
    let held = connect(&url).await;
    run(&held, "SET synchronous_commit = on").await;
    let pid = value_of(&held, "pg_backend_pid()").await;
    let held = tokio::spawn(async move { publish(&held, 9, 1).await });
    let state = format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}");
    until("the commit waits", async || server.sql(&state) == "SyncRep").await;
    if fault.is_empty() {
        // It goes on where it is held up, and on nobody's account.
        until("it is told", async || it.broker.readiness().await.1.contains("not visible")).await;
    } else {
        it.crowd.progress(50).await;
    }
    server.sql(&format!("SELECT pg_cancel_backend({pid})"));
    held.await.unwrap().unwrap();
    it.verdict(Law::Visible).await
}

/// One comes for whom there is something.
async fn coming_back(server: &Server, fault: &str) -> bool {
    let mut it = Trial::new(server, "coming_back", fault).await;
    it.begin().await;
    it.crowd.follow(&["**"]);
    it.verdict(Law::Reliable).await
}

/// The server crashes while much is written.
async fn crash(server: &Server, fault: &str) -> bool {
    let mut it = Trial::new(server, "crash", fault).await;
    it.begin().await;
    it.server.crash().await;
    it.server.start_again().await;
    it.crowd.progress(50).await;
    it.verdict(Law::Resumable).await
}

/// The floor moves up to the window, and the broker is killed.
async fn window(server: &Server, fault: &str) -> bool {
    let mut it = Trial::new(server, "window", fault).await;
    let floor = format!(
        "SELECT confirmed_flush_lsn - '0/0' FROM pg_replication_slots WHERE slot_name = '{}'",
        it.name
    );
    let place = || server.sql(&floor).parse::<u64>().unwrap();
    let before = place();
    // The floor has a way to go, and goes it at once: not before there is an event, for then it would be whole.
    it.crowd.begin_here().await;
    let first = connect(&it.crowd.url).await;
    it.broker.signal("STOP");
    server.sql("SELECT pg_switch_wal()");
    publish(&first, 9, 1).await.unwrap();
    it.broker.signal("CONT");
    it.begin().await;
    until("the floor moves", async || place() > before + (8 << 20)).await;
    it.kill().await;
    it.crowd.follow(&["**"]);
    it.verdict(Law::Reliable).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_judge_catches_each_deliberate_fault() {
    let server = Server::tuned(SERVER).await;
    assert!(one_digit_more(&server, "text-order").await, "positions compared as text");
    assert!(invisible(&server, "no-gate").await, "no gate");
    assert!(coming_back(&server, "late-waiter").await, "registered behind the read");
    assert!(crash(&server, "ack-ahead").await, "acknowledged too far");
    assert!(window(&server, "floor-at-oldest").await, "the floor behind the oldest event");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_broker_is_acquitted_of_the_same() {
    let server = Server::tuned(SERVER).await;
    assert!(!one_digit_more(&server, "").await);
    assert!(!invisible(&server, "").await);
    assert!(!coming_back(&server, "").await);
    assert!(!crash(&server, "").await);
    assert!(!window(&server, "").await);
}
