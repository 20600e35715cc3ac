//! Postgres fails over to a real standby: those who wait are told on the connections on which they wait, and what
//! the standby never had is contradicted.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use walcast_client::wire::ResetReason;
use walcast_client::{After, Transport};

use crate::broker::{Broker, connect, prepare, run, until, value_of};
use crate::epochs::{Waiters, quick};
use crate::proxy::Proxy;
use crate::server::Server;

const VMS: &str =
    "CREATE TABLE vms (host text PRIMARY KEY, pin int); INSERT INTO vms VALUES ('a', 1), ('b', 1)";
const RULE: &str = "[[table]]\nname = 'public.vms'\ntopic = 'vm/{host}'\nstate = true";

/// A standby, in a directory that goes with its primary's.
pub(crate) struct Standby {
    bin: PathBuf,
    directory: PathBuf,
    owner: (u32, u32),
    port: u16,
}

impl Standby {
    pub(crate) fn port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    async fn run(&self, program: &'static str, args: Vec<String>) {
        let mut command = Command::new(self.bin.join(program));
        command.args(args).uid(self.owner.0).gid(self.owner.1).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).env("LC_ALL", "C");
        let status = tokio::task::spawn_blocking(move || command.status().unwrap()).await.unwrap();
        assert!(status.success(), "{program}: {status}");
    }

    pub(crate) async fn pg_ctl(&self, verb: &str, more: &[&str]) {
        let directory = self.directory.display().to_string();
        let args = ["-w", "-D", &directory, verb].into_iter().chain(more.iter().copied());
        self.run("pg_ctl", args.map(str::to_owned).collect()).await;
    }

    async fn start(&self) {
        let (log, port) = (format!("{}.log", self.directory.display()), format!("-p {}", self.port));
        self.pg_ctl("start", &["-l", &log, "-o", &port]).await;
    }

    /// Of this primary.
    async fn of(server: &Server, port: u16) -> Self {
        Self::copied(server, port, &[]).await
    }

    /// The same, with all that it takes to copy slots but for `sync_replication_slots`; its own slot is `slot`.
    pub(crate) async fn synced(server: &Server, port: u16, slot: &str) -> Self {
        server.sql("ALTER SYSTEM SET hot_standby_feedback = on");
        Self::copied(server, port, &["-C", "-S", slot]).await
    }

    async fn copied(server: &Server, port: u16, more: &[&str]) -> Self {
        let owner = fs::metadata(&server.directory).unwrap();
        let directory = server.directory.with_file_name("standby");
        let standby = Self { bin: server.bin_dir(), directory, owner: (owner.uid(), owner.gid()), port };
        let from = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", server.port);
        let to = standby.directory.display().to_string();
        let args = ["-d", &from, "-D", &to, "-R", "-X", "stream", "-c", "fast", "--no-sync"];
        let args = args.iter().chain(more).map(|arg| (*arg).to_owned());
        standby.run("pg_basebackup", args.collect()).await;
        standby.start().await;
        standby
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        let mut command = Command::new(self.bin.join("pg_ctl"));
        command.args(["stop", "-m", "immediate", "-D"]).arg(&self.directory);
        command.uid(self.owner.0).gid(self.owner.1).current_dir("/");
        // It may have stopped, or its directory be gone.
        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

#[tokio::test]
async fn a_promoted_standby_is_another_line_and_its_table_is_the_truth() {
    let server = Server::tuned(&[]).await;
    let port = Standby::port();
    let hosts = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{port}/failover?target_session_attrs=read-write",
        server.port
    );
    let broker = Broker::start_at(&server, "failover", VMS, RULE, |config| {
        quick(config);
        config.postgres.url = Some(hosts.as_str().into());
    })
    .await;
    let standby = Standby::of(&server, port).await;
    let there = connect(&format!("postgres://postgres@127.0.0.1:{port}/failover")).await;
    broker.run("UPDATE vms SET pin = 2 WHERE host = 'a'").await;
    let pin = "SELECT pin FROM vms WHERE host = 'a'";
    until("the standby has it", async || value_of(&there, pin).await == "2").await;

    // It falls behind, and clients see what it will never have.
    standby.pg_ctl("stop", &["-m", "fast"]).await;
    let mut follower = broker.follow(Transport::WebSocket, &["vm/*"]).await;
    broker.run("UPDATE vms SET pin = 3 WHERE host = 'a'; DELETE FROM vms WHERE host = 'b'; INSERT INTO vms VALUES ('ghost', 1)").await;
    let seen = follower.lines(3).await;
    assert!(seen[2].starts_with("vm/ghost insert"), "{seen:?}");
    let phantom = broker.http.get("/v1/events?topic=vm/*&wait=0&after=now").await.cursor();
    let waiters = Waiters::park(&broker).await;
    server.crash().await;
    until("the outage is told", async || broker.readiness().await.0 == 503).await;
    standby.start().await;
    standby.pg_ctl("promote", &[]).await;

    waiters.told(&broker, ResetReason::EpochChanged, &[("a", 2), ("b", 1)]).await;
    let late = broker.http.get(&format!("/v1/events?topic=vm/*&wait=0&after={phantom}")).await;
    assert_eq!((late.status, late.problem().code.as_str()), (410, "epoch_changed"));
    assert_eq!(broker.http.get("/v1/state/vm/ghost").await.status, 404);
    let there = connect(&format!("postgres://postgres@127.0.0.1:{port}/failover")).await;
    let mut follower = broker.follow_after(Transport::WebSocket, &["vm/*"], After::Now).await;
    run(&there, "UPDATE vms SET pin = 4 WHERE host = 'b'").await;
    assert_eq!(follower.next().await.data["pin"], 4);

    // The old primary comes back, as it was: nobody goes to it.
    let line = broker.readiness().await.1["epoch"].clone();
    server.start_again().await;
    run(&there, "UPDATE vms SET pin = 5 WHERE host = 'b'").await;
    assert_eq!(follower.next().await.data["pin"], 5);
    assert_eq!(broker.readiness().await.1["epoch"], line);
}

/// Behind a balancer, or while hosts change their roles, each session may reach another server.
#[tokio::test]
async fn a_gate_on_another_server_opens_for_nothing() {
    const DDL: &str = "CREATE TABLE vms (host text PRIMARY KEY)";
    let (server, other) = tokio::join!(Server::tuned(&[]), Server::tuned(&[]));
    let proxy = Proxy::start(server.port).await;
    let config = prepare(&server.create_database("failover_gate").await, "failover_gate", DDL, RULE).await;
    other.create_database("failover_gate").await;
    let sql = connect(config.postgres.url.as_ref().unwrap().expose()).await;
    let mut through = config.clone();
    let url = format!("postgres://postgres@{}/failover_gate?sslmode=disable", proxy.address);
    through.postgres.url = Some(url.as_str().into());
    proxy.divert(Some(("walcast gate", other.port)));
    let broker = Broker::begin("failover_gate", through, sql);
    until("it is told", async || broker.node().problems().contains("two different servers")).await;
    assert_eq!(broker.readiness().await.0, 503);
    proxy.divert(None);
    broker.ready().await;
}
