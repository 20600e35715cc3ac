//! What the tests stand on: a database with the table of `walcast dev`, a broker on it, and programs that run.

use std::ffi::OsStr;
use std::fs::File;
use std::future::ready;
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio_postgres::{Client as Sql, NoTls};
use walcast::cli::local;
use walcast::config::Config;
use walcast::node::Node;
use walcast::throwaway::{Options, Throwaway};

/// Longer than anything takes that works.
const LIMIT: Duration = Duration::from_secs(60);
/// As `walcast dev` has them.
const TABLE: &str = "CREATE TABLE vms (
    hostname text PRIMARY KEY, email text, crdcommand text, pin int, status text, logs text)";
pub(crate) const RULE: &str = r#"
name    = "public.vms"
topic   = "vm/{hostname}"
columns = ["hostname", "crdcommand", "pin"]
state   = true
"#;

/// Fails where something takes too long.
#[track_caller]
pub(crate) fn within<T>(what: &str, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let at = std::panic::Location::caller();
    async move {
        tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{at}: not in time: {what}"))
    }
}

/// Asks again and again.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    within(what, async move {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
}

/// A file of an example.
pub(crate) fn file(name: &str) -> String {
    format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// An empty directory of the test's own.
pub(crate) fn directory(name: &str) -> String {
    let path = format!("{}/examples-{name}", env!("CARGO_TARGET_TMPDIR"));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Debian installs it where only root looks.
pub(crate) fn haproxy() -> &'static str {
    let places = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"];
    places.into_iter().find(|path| Path::new(path).exists()).unwrap_or("haproxy")
}

/// Nobody listens there now.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// All tests share it, each with a database of its own. It goes with this process.
async fn server() -> &'static Throwaway {
    static SERVER: OnceLock<Throwaway> = OnceLock::new();
    let start = || SERVER.get_or_init(|| Throwaway::start(&Options::for_tests()).unwrap());
    tokio::task::spawn_blocking(start).await.unwrap()
}

/// A database and its broker.
pub(crate) struct Place {
    /// The connection string.
    pub(crate) database: String,
    pub(crate) sql: Sql,
    config: Config,
    node: Option<Node>,
}

impl Place {
    /// `name` is unique among the tests. The table is empty.
    pub(crate) async fn new(name: &'static str) -> Self {
        Self::of(name, |_| ()).await
    }

    /// With other settings.
    pub(crate) async fn of(name: &'static str, change: impl FnOnce(&mut Config)) -> Self {
        let server = server().await;
        let database = tokio::task::spawn_blocking(|| server.create_database(name).unwrap()).await.unwrap();
        let (sql, connection) = tokio_postgres::connect(&database, NoTls).await.unwrap();
        tokio::spawn(connection);
        sql.batch_execute(TABLE).await.unwrap();
        let mut config = local::config(&database, 0);
        config.table = vec![toml::from_str(RULE).unwrap()];
        // Slots belong to the whole server.
        (config.source.slot, config.source.publication) = (name.into(), name.into());
        change(&mut config);
        local::set_up(&config, false).await.unwrap();
        let mut this = Self { database, sql, config, node: None };
        this.start().await;
        this
    }

    /// Starts the broker, after a stop where it was before.
    pub(crate) async fn start(&mut self) {
        let node = local::start(self.config.clone()).await.unwrap();
        self.config.http.listen = node.http;
        self.node = Some(node);
    }

    /// Stops the broker.
    pub(crate) async fn stop(&mut self) {
        let node = self.node.take().unwrap();
        within("the broker ends", node.join(ready(()))).await.unwrap();
    }

    /// Where the broker listens.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.config.http.listen)
    }

    pub(crate) fn port(&self) -> u16 {
        self.config.http.listen.port()
    }

    pub(crate) async fn execute(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap();
    }

    /// Until somebody waits at the broker for this topic.
    pub(crate) async fn somebody_waits(&self, topic: &str) {
        let url = format!("{}/v1/waiters?topic={topic}", self.url());
        until(&format!("somebody waits for {topic}"), async || {
            !curl(&[&url]).await.contains("\"waiting\":0")
        })
        .await;
    }
}

/// What curl prints.
pub(crate) async fn curl(args: &[&str]) -> String {
    let output = Command::new("curl").args(["-s", "--max-time", "60"]).args(args).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A program and what it prints. It is killed when dropped.
pub(crate) struct Program {
    name: String,
    lines: Lines<BufReader<ChildStdout>>,
    pub(crate) child: Child,
}

impl Program {
    pub(crate) fn start<A: AsRef<OsStr>>(path: &str, args: impl IntoIterator<Item = A>) -> Self {
        let mut command = Command::new(path);
        command.args(args);
        Self::run(command)
    }

    pub(crate) fn run(mut command: Command) -> Self {
        // What it complains of is for who looks into a failure.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, SeqCst);
        let log = format!("{}/examples-{number}.log", env!("CARGO_TARGET_TMPDIR"));
        let name = format!("{:?} 2>{log}", command.as_std());
        command.stderr(File::create(log).unwrap());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { name, lines, child }
    }

    /// The next line; `None` once it has ended.
    pub(crate) async fn line(&mut self) -> Option<String> {
        within(&format!("a line of {}", self.name), self.lines.next_line()).await.unwrap()
    }

    #[track_caller]
    pub(crate) fn says(&mut self, expected: &str) -> impl Future<Output = ()> {
        let at = std::panic::Location::caller();
        async move {
            let line = self.line().await;
            assert_eq!(line.as_deref(), Some(expected), "{}, asked at {at}", self.name);
        }
    }

    /// All lines that are left, of a program that ends well.
    pub(crate) async fn ends(mut self) -> Vec<String> {
        let mut lines = Vec::new();
        while let Some(line) = self.line().await {
            lines.push(line);
        }
        let status = within("it ends", self.child.wait()).await.unwrap();
        assert!(status.success(), "{}: {status}, {lines:?}", self.name);
        lines
    }
}
