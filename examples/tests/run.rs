//! The examples do what they say: run as programs, against a broker on a throwaway Postgres.
#![allow(clippy::unwrap_used)] // A test that fails should say where.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use walcast::cli::local;
use walcast::throwaway::{Options, Throwaway};

/// Longer than anything takes that works.
const LIMIT: Duration = Duration::from_secs(60);

const RULE: &str = r#"
name = "public.vms"
topic = "vm/{hostname}"
state = true
"#;

/// A program and what it prints. It is killed when dropped.
struct Program {
    name: &'static str,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Program {
    fn start(name: &'static str, path: &str, args: &[&str]) -> Self {
        let mut command = Command::new(path);
        let mut child = command.args(args).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { name, lines, _child: child }
    }

    async fn says(&mut self, expected: &str) {
        let line = tokio::time::timeout(LIMIT, self.lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("{}: nothing, instead of {expected:?}", self.name));
        assert_eq!(line.unwrap().as_deref(), Some(expected), "{}", self.name);
    }
}

#[tokio::test]
async fn every_example_follows_assignments() {
    let server = tokio::task::spawn_blocking(|| Throwaway::start(&Options::for_tests())).await.unwrap();
    let server = server.unwrap();
    let url = server.url("postgres");
    let (sql, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    sql.batch_execute("CREATE TABLE vms (hostname text PRIMARY KEY, crdcommand text, pin int)")
        .await
        .unwrap();
    let mut config = local::config(&url, 0);
    config.table = vec![toml::from_str(RULE).unwrap()];
    local::set_up(&config, false).await.unwrap();
    // Assigned before anybody waits.
    sql.batch_execute("INSERT INTO vms VALUES ('host-17', 'start', 1)").await.unwrap();
    let node = local::start(config).await.unwrap();
    let broker = format!("http://{}", node.http);

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/vm.sh");
    let mut vm = Program::start("vm", env!("CARGO_BIN_EXE_vm"), &["host-17", &broker]);
    let mut shell = Program::start("vm.sh", script, &["host-17", &broker]);
    let mut service = Program::start("follow", env!("CARGO_BIN_EXE_follow"), &["vm/*", &broker]);
    vm.says(r#"run "start" (pin 1)"#).await;
    shell.says(r#"run {"hostname":"host-17","crdcommand":"start","pin":1}"#).await;
    service.says("snapshot vm/host-17 (1 known)").await;

    sql.batch_execute("UPDATE vms SET pin = 2").await.unwrap();
    vm.says(r#"run "start" (pin 2)"#).await;
    shell.says(r#"run {"hostname":"host-17","crdcommand":"start","pin":2}"#).await;
    service.says("update vm/host-17 (1 known)").await;

    sql.batch_execute("DELETE FROM vms; INSERT INTO vms VALUES ('host-18', 'stop', 3)").await.unwrap();
    vm.says("free").await;
    shell.says("free").await;
    service.says("delete vm/host-17 (0 known)").await;
    service.says("insert vm/host-18 (1 known)").await;

    tokio::time::timeout(LIMIT, node.join(std::future::ready(()))).await.unwrap().unwrap();
    // Blocks until the server is gone.
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
}
