//! `walcast serve` as a child, set up afresh, with the settings that a scenario needs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use walcast::source::SourceKind;

use super::listening::free_address;
use super::postgres::Postgres;
use super::process::{Dir, Process, make_dir};
use super::{http, usage};
use crate::Error;

/// How long it may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest there is between two beats of a stream.
const HEARTBEAT_MAX: Duration = Duration::from_secs(600);
/// Connections beyond the clients'.
const CONNECTIONS_RESERVE: usize = 100;

/// What scenarios set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Clients that will connect.
    pub clients: usize,
    /// `source.kind`: by which way events travel.
    pub source: SourceKind,
    /// `source.delivery = "fast"`: without the visibility gate.
    pub fast: bool,
    /// `history.age`, if not the default.
    pub history_age: Option<Duration>,
    /// `history.bytes`, if not the default.
    pub history_bytes: Option<u64>,
    /// `http.heartbeat`, if not the default.
    pub heartbeat: Option<Duration>,
    /// Run before it is set up: the tables that the rules name.
    pub ddl: String,
    /// The rest of the configuration file: `[[table]]` rules, other sections.
    pub rules: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            clients: 10_000,
            source: SourceKind::default(),
            fast: false,
            history_age: None,
            history_bytes: None,
            heartbeat: None,
            ddl: String::new(),
            rules: String::new(),
        }
    }
}

impl Settings {
    /// For so many clients; all else as it is by default.
    #[must_use]
    pub fn clients(clients: usize) -> Self {
        Self { clients, ..Self::default() }
    }

    /// Streams beat so seldom that what is measured is something else.
    #[must_use]
    pub fn without_beats(self) -> Self {
        Self { heartbeat: Some(HEARTBEAT_MAX), ..self }
    }

    fn file(&self, name: &str, http: SocketAddr, admin: SocketAddr) -> String {
        let mut text = format!(
            "log.level = 'warn'\n[source]\nkind = '{}'\nslot = '{name}'\npublication = '{name}'\ndelivery = '{}'\n\
             [admin]\nlisten = '{admin}'\n[http]\nlisten = '{http}'\nconnections_max = {}\n",
            self.source.as_str(),
            if self.fast { "fast" } else { "visible" },
            self.clients + CONNECTIONS_RESERVE,
        );
        if let Some(every) = self.heartbeat {
            text += &format!("heartbeat = '{}s'\n", every.as_secs());
        }
        text += "[history]\n";
        if let Some(age) = self.history_age {
            text += &format!("age = '{}ms'\n", age.as_millis());
        }
        if let Some(bytes) = self.history_bytes {
            text += &format!("bytes = {bytes}\n");
        }
        text + &self.rules
    }
}

/// A running broker.
#[derive(Debug)]
pub struct Broker {
    process: Process,
    http: SocketAddr,
    admin: SocketAddr,
}

impl Broker {
    /// Sets up, starts and waits until it is ready. An earlier broker on this database must have ended.
    ///
    /// # Errors
    /// The database does not fit, or the broker is not ready in time; the message ends with what it said.
    pub async fn start(binary: &Path, postgres: &Postgres, settings: &Settings) -> Result<Self, Error> {
        let broker = Prepared::new(binary, postgres, settings)?;
        let session = postgres.session().await?;
        if !settings.ddl.is_empty() {
            session.batch_execute(&settings.ddl).await.map_err(Error::sql("prepare tables"))?;
        }
        session.close().await;
        take_down(binary, postgres, &broker.file).await?;
        let mut setup = command(binary, postgres.url(), &broker.file, "setup");
        setup.args(["--accept-unbounded-wal", "--source", settings.source.as_str()]);
        run(&mut setup).await?;
        let broker = broker.serve()?;
        broker.ready().await?;
        Ok(broker)
    }

    /// Starts on what an earlier broker set up and left, where that has come to, and does not wait.
    ///
    /// # Errors
    /// No process can be made.
    pub fn resume(binary: &Path, postgres: &Postgres, settings: &Settings) -> Result<Self, Error> {
        Prepared::new(binary, postgres, settings)?.serve()
    }

    async fn ready(&self) -> Result<(), Error> {
        let ready = async {
            let mut tick = tokio::time::interval(Duration::from_millis(20));
            loop {
                tick.tick().await;
                self.process.check()?;
                if http::get(self.admin, "/readyz").await.is_ok_and(|(status, _)| status == 200) {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.unwrap_or_else(|_| {
            let words = self.process.last_words();
            Err(Error::failed(format!("the broker is not ready after {PATIENCE:?}: {words}")))
        })
    }

    /// An error if it has ended.
    ///
    /// # Errors
    /// It has.
    pub fn check(&self) -> Result<(), Error> {
        self.process.check()
    }

    /// Its listener for clients.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its CPU so far.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        usage::cpu(self.pid())
    }

    /// Its memory now.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        usage::memory_bytes(self.pid())
    }

    /// Subscriptions right now. (The metric of that name is a second old.)
    ///
    /// # Errors
    /// It does not answer.
    pub async fn subscriptions(&self) -> Result<u64, Error> {
        #[derive(serde::Deserialize)]
        struct Readiness {
            subscriptions: u64,
        }
        self.process.check()?;
        let failed = "ask the broker how many wait";
        let (_, text) = http::get(self.admin, "/readyz").await.map_err(Error::of(failed))?;
        let readiness: Readiness = serde_json::from_str(&text).map_err(Error::of(failed))?;
        Ok(readiness.subscriptions)
    }

    /// The LSN up to which everything has been delivered, as of now: the metric is up to a second old.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn head_lsn(&self) -> Result<u64, Error> {
        let (_, text) = http::get(self.admin, "/readyz").await.map_err(Error::of("ask for readiness"))?;
        let (_, rest) = text.split_once(r#""head":""#).unwrap_or_default();
        lsn(rest).ok_or_else(|| Error::failed(format!("no head in the broker's readiness: {text}")))
    }

    /// A metric's value, summed over its labels; 0 where it has none yet.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metric(&self, name: &str) -> Result<f64, Error> {
        self.process.check()?;
        let (_, text) = http::get(self.admin, "/metrics").await.map_err(Error::of("ask for metrics"))?;
        Ok(metric(&text, name))
    }
}

/// A configuration in a directory of its own.
struct Prepared {
    http: SocketAddr,
    admin: SocketAddr,
    dir: Dir,
    file: PathBuf,
    serve: Command,
}

impl Prepared {
    fn new(binary: &Path, postgres: &Postgres, settings: &Settings) -> Result<Self, Error> {
        let (http, admin) = (free_address()?, free_address()?);
        let dir = make_dir()?;
        let file = dir.join("walcast.toml");
        std::fs::write(&file, settings.file(postgres.name(), http, admin))
            .map_err(Error::of(&format!("cannot write {}", file.display())))?;
        let serve = command(binary, postgres.url(), &file, "serve");
        Ok(Self { http, admin, dir, file, serve })
    }

    /// From here on the directory goes with the process.
    fn serve(self) -> Result<Broker, Error> {
        let process = Process::start("walcast serve", self.dir, &self.serve)?;
        Ok(Broker { process, http: self.http, admin: self.admin })
    }
}

/// The LSN of a position that is written as `16/B374D848` and more.
fn lsn(position: &str) -> Option<u64> {
    let (high, rest) = position.split_once('/')?;
    let low: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    let half = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(half(high)? << 32 | half(&low)?)
}

fn metric(text: &str, name: &str) -> f64 {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with(['{', ' ']).then_some(())?;
        rest.rsplit_once(' ')?.1.parse::<f64>().ok()
    });
    values.sum()
}

/// Takes back what setup made; slots of a broker that is ending are waited for.
///
/// # Errors
/// The server went away, or the slots are still in use.
pub async fn take_down(binary: &Path, postgres: &Postgres, file: &Path) -> Result<(), Error> {
    run(&mut command(binary, postgres.url(), file, "teardown")).await
}

/// The command with nothing of this process's settings.
fn command(binary: &Path, url: &str, file: &Path, verb: &str) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("WALCAST_") || text == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    // By the environment, for it may hold a password.
    command.env("WALCAST_POSTGRES__URL", url).arg(verb).arg("--config").arg(file);
    command
}

async fn run(command: &mut Command) -> Result<(), Error> {
    let mut command = tokio::process::Command::from(std::mem::replace(command, Command::new("true")));
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let late = || Error::failed(format!("walcast has not done what it was started for after {PATIENCE:?}"));
    let ran = tokio::time::timeout(PATIENCE, running).await.map_err(|_| late())?;
    let output = ran.map_err(Error::of("cannot run walcast"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::missing(said.lines().map(str::trim).collect::<Vec<_>>().join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_begin_with_an_lsn() {
        assert_eq!(lsn("16/B374D848:3"), Some(0x16_B374_D848));
        assert_eq!((lsn("none"), lsn("/"), lsn("1/")), (None, None, None));
    }

    #[test]
    fn metrics_are_summed_by_name() {
        let text = "# TYPE a gauge\na 3\na_total 7\nb{x=\"1\"} 2\nb{x=\"2\"} 0.5\n";
        let check =
            |name: &str, expected: f64| assert!((metric(text, name) - expected).abs() < 1e-9, "{name}");
        check("a", 3.0);
        check("b", 2.5);
        check("c", 0.0);
    }
}
