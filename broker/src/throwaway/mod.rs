//! A Postgres server of our own that leaves nothing behind: for `walcast dev`, `walcast demo` and tests. Beside it, a
//! [Redis](redis::Server) of the same kind.
//!
//! It is built from binaries that the machine already has, in a fresh temporary directory, as an
//! unprivileged user when we are root (Postgres refuses root). A small watchdog shell holds the reading end
//! of a pipe from us. When the pipe closes, because [`Throwaway`] was dropped or because our process ended
//! in whatever way, it stops the server and removes the directory; there is no second clean-up path.
//!
//! All calls block; from async code use `spawn_blocking`. It must never touch a server that it did not
//! start, nor listen beyond loopback.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;

use parking_lot::Mutex;
use rand::RngExt;

use self::binaries::find_binaries;
use self::sandbox::{User, make_dir, unprivileged, unprivileged_user, watchdog};
use crate::postgres::describe;

mod binaries;
pub mod redis;
mod sandbox;
#[cfg(test)]
mod tests;

/// The longest path of a Unix socket on Linux, without its final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// How long a start or a stop may take, in seconds.
const PG_CTL_SECONDS: &str = "60";
/// Other processes may take a port between our choice and the server's start.
const START_TRIES: u32 = 8;
/// Lines of the server's log in an error.
const LOG_TAIL_LINES: usize = 12;

/// What kind of server to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lowest major version accepted; the WAL source needs 14.
    pub version_min: u32,
    /// Where `initdb`, `postgres` and `pg_ctl` are; `None` searches the machine.
    pub bin_dir: Option<PathBuf>,
    /// Where to make the directory; `None` means the system's place for temporary files.
    pub parent: Option<PathBuf>,
    /// The port on loopback; 0 takes a free one.
    pub port: u16,
    /// Off saves most of a commit's time and loses data if the machine crashes.
    pub fsync: bool,
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_replication_slots`.
    pub max_replication_slots: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_slot_wal_keep_size`, in MB.
    pub max_slot_wal_keep_size_mb: u32,
    /// Further settings, as in `postgresql.conf`; they win over all above.
    pub settings: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version_min: 14,
            bin_dir: None,
            parent: None,
            port: 0,
            fsync: true,
            max_connections: 100,
            max_replication_slots: 10,
            max_wal_senders: 10,
            max_slot_wal_keep_size_mb: 4096,
            settings: Vec::new(),
        }
    }
}

impl Options {
    /// For tests: no fsync, and room for many databases with a slot each. `WALCAST_TEST_POSTGRES` names the
    /// directory of the programs, to run them against another version than the machine's.
    #[must_use]
    pub fn for_tests() -> Self {
        Self {
            bin_dir: std::env::var_os("WALCAST_TEST_POSTGRES").map(PathBuf::from),
            fsync: false,
            max_connections: 300,
            max_replication_slots: 400,
            max_wal_senders: 100,
            ..Self::default()
        }
    }

    /// Adds a setting, as in `postgresql.conf`.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// How the server is told to stop; the words are those of `pg_ctl stop -m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Rolls back what is open and says goodbye.
    Fast,
    /// As a crash: the next start recovers.
    Immediate,
}

/// Why there is no throwaway server.
#[derive(Debug, thiserror::Error)]
pub enum ThrowawayError {
    /// The machine has no Postgres server binaries of a fitting version.
    #[error(
        "no Postgres server of version {version_min} or later found (looked in {searched}); install one, \
         for example `apt-get install postgresql`, or put its bin directory on PATH"
    )]
    NoBinaries {
        /// The lowest version that would do.
        version_min: u32,
        /// Directories, with the version where there is one.
        searched: String,
    },
    /// The machine has no Redis.
    #[error(
        "there is no redis-server on PATH; run scripts/setup, or install one, for example `apt-get install redis-server`"
    )]
    NoRedis,
    /// We are root, which Postgres refuses, and found nobody else to run it as.
    #[error("Postgres does not run as root, and there is neither a user `postgres` nor `nobody`; add one")]
    NoUser,
    /// The file system refused.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program of Postgres failed.
    #[error("{program} failed: {detail}")]
    Program {
        /// Which.
        program: &'static str,
        /// What it said, and the end of the server's log.
        detail: String,
    },
    /// The server refused a statement.
    #[error("throwaway Postgres: {0}")]
    Sql(String),
}

/// A running server, removed with all its data when dropped or when this process ends.
#[derive(Debug)]
pub struct Throwaway {
    bin_dir: PathBuf,
    version: u32,
    dir: PathBuf,
    user: Option<User>,
    port: u16,
    socket_dir: Option<PathBuf>,
    /// Its standard input is the pipe.
    watchdog: Mutex<Child>,
}

impl Throwaway {
    /// Makes a server and waits until it accepts connections. Takes a few seconds.
    ///
    /// # Errors
    /// No binaries, no unprivileged user, or the server did not start: the message ends with its log's tail.
    pub fn start(options: &Options) -> Result<Self, ThrowawayError> {
        let (bin_dir, version) = find_binaries(options)?;
        let user = unprivileged_user()?;
        let dir = make_dir(options.parent.as_deref(), user)?;
        let watchdog = match watchdog(Some(&bin_dir), &dir, "postmaster.pid", user) {
            Ok(child) => Mutex::new(child),
            Err(source) => {
                // Nothing is in it yet; the error that counts is the watchdog's.
                let _ = fs::remove_dir(&dir);
                return Err(ThrowawayError::Io { what: "start a watchdog for", path: dir, source });
            }
        };
        let fits = dir.as_os_str().len() + "/.s.PGSQL.65535".len() <= SOCKET_PATH_BYTES_MAX;
        let socket_dir = fits.then(|| dir.clone());
        let mut server = Self { bin_dir, version, dir, user, port: 0, socket_dir, watchdog };
        server.initialise(options)?;
        let mut tries = 1;
        loop {
            server.port = if options.port == 0 { free_port()? } else { options.port };
            server.write(
                "port.conf",
                &format!("port = {port}\nlisten_addresses = '127.0.0.1'\n", port = server.port),
            )?;
            match server.start_again() {
                Ok(()) => return Ok(server),
                Err(ThrowawayError::Program { detail, .. })
                    if options.port == 0
                        && tries < START_TRIES
                        && detail.contains("Address already in use") =>
                {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn initialise(&self, options: &Options) -> Result<(), ThrowawayError> {
        let mut initdb = self.command("initdb");
        initdb.arg("-D").arg(self.data_dir());
        // Its own data need no flush: a crash of the machine leaves nothing worth having.
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
        self.run("initdb", initdb)?;

        let on = |on: bool| if on { "on" } else { "off" };
        let socket_dir = self.socket_dir.as_deref().unwrap_or(Path::new(""));
        let own = [
            ("wal_level", "logical".to_owned()),
            ("fsync", on(options.fsync).to_owned()),
            ("full_page_writes", on(options.fsync).to_owned()),
            ("max_connections", options.max_connections.to_string()),
            ("max_replication_slots", options.max_replication_slots.to_string()),
            ("max_wal_senders", options.max_wal_senders.to_string()),
            ("max_slot_wal_keep_size", format!("{}MB", options.max_slot_wal_keep_size_mb)),
            ("unix_socket_directories", socket_dir.display().to_string()),
            ("logging_collector", "off".to_owned()),
        ];
        let mut text = String::from("\n");
        let extra = options.settings.iter().map(|(key, value)| (key.as_str(), value));
        for (key, value) in own.iter().map(|(key, value)| (*key, value)).chain(extra) {
            let _ = writeln!(text, "{key} = '{}'", value.replace('\\', "\\\\").replace('\'', "''"));
        }
        // Last, so that it wins.
        let _ = writeln!(text, "include '{}'", self.dir.join("port.conf").display());
        let path = self.data_dir().join("postgresql.conf");
        let failed = |source| ThrowawayError::Io { what: "write", path: path.clone(), source };
        let mut file = fs::OpenOptions::new().append(true).open(&path).map_err(failed)?;
        io::Write::write_all(&mut file, text.as_bytes()).map_err(failed)
    }

    /// A connection string for the database `name`, over TCP, as superuser.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        let mut url = format!("postgres://postgres@127.0.0.1:{}/", self.port);
        for byte in name.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
                url.push(char::from(byte));
            } else {
                let _ = write!(url, "%{byte:02X}");
            }
        }
        url
    }

    /// Creates a database and answers its connection string.
    ///
    /// # Errors
    /// What the server says, for example that it exists.
    pub fn create_database(&self, name: &str) -> Result<String, ThrowawayError> {
        self.execute("postgres", &format!("create database \"{}\"", name.replace('"', "\"\"")))?;
        Ok(self.url(name))
    }

    /// Runs statements as superuser in the database `name`, on a connection of their own.
    ///
    /// # Errors
    /// What the server says.
    pub fn execute(&self, name: &str, sql: &str) -> Result<(), ThrowawayError> {
        let work = || -> Result<(), ThrowawayError> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| ThrowawayError::Sql(error.to_string()))?;
            runtime
                .block_on(batch(&self.url(name), sql))
                .map_err(|error| ThrowawayError::Sql(describe(&error)))
        };
        // A thread of its own, since a runtime cannot be entered from within another.
        thread::scope(|scope| scope.spawn(work).join())
            .unwrap_or_else(|_| Err(ThrowawayError::Sql("the statement's thread panicked".to_owned())))
    }

    /// Stops the server and keeps its data.
    ///
    /// # Errors
    /// It did not stop within a minute, or was not running.
    pub fn stop(&self, mode: StopMode) -> Result<(), ThrowawayError> {
        let mode = match mode {
            StopMode::Fast => "fast",
            StopMode::Immediate => "immediate",
        };
        let mut pg_ctl = self.pg_ctl("stop");
        pg_ctl.args(["-m", mode]);
        self.run("pg_ctl stop", pg_ctl)
    }

    /// Starts a stopped server on the same data and port.
    ///
    /// # Errors
    /// It did not accept connections within a minute; the message ends with its log's tail.
    pub fn start_again(&self) -> Result<(), ThrowawayError> {
        let mut pg_ctl = self.pg_ctl("start");
        pg_ctl.arg("-l").arg(self.log_path());
        self.run("pg_ctl start", pg_ctl)
    }

    /// [`stop`](Self::stop), then [`start_again`](Self::start_again).
    ///
    /// # Errors
    /// As theirs.
    pub fn restart(&self, mode: StopMode) -> Result<(), ThrowawayError> {
        self.stop(mode)?;
        self.start_again()
    }

    /// The server's data.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// What the server says.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The programs that it runs.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// The directory of the Unix socket; `None` if its path would be too long for one.
    #[must_use]
    pub fn socket_dir(&self) -> Option<&Path> {
        self.socket_dir.as_deref()
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The major version.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ThrowawayError> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(|source| ThrowawayError::Io { what: "write", path, source })
    }

    fn pg_ctl(&self, verb: &str) -> Command {
        let mut command = self.command("pg_ctl");
        command.arg(verb).arg("-D").arg(self.data_dir()).args(["-w", "-t", PG_CTL_SECONDS]);
        command
    }

    fn command(&self, program: &str) -> Command {
        unprivileged(&self.bin_dir.join(program), &self.dir, self.user)
    }

    fn run(&self, program: &'static str, mut command: Command) -> Result<(), ThrowawayError> {
        let failed = |detail| ThrowawayError::Program { program, detail };
        let output = command.output().map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(LOG_TAIL_LINES).collect();
        let lines = said.lines().map(str::trim).chain(tail.into_iter().rev());
        Err(failed(lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ")))
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        let child = self.watchdog.get_mut();
        drop(child.stdin.take());
        if let Err(error) = child.wait() {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot tell whether the throwaway Postgres went");
        }
    }
}

/// A port below the range from which the kernel picks ports of outgoing connections, so that a restart
/// finds it still free.
fn free_port() -> Result<u16, ThrowawayError> {
    let mut last = io::Error::other("no try");
    for _ in 0..100 {
        let port = rand::rng().random_range(15_000..32_000);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(ThrowawayError::Io { what: "find a free port on", path: "127.0.0.1".into(), source: last })
}

async fn batch(url: &str, sql: &str) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    let work = async {
        let done = client.batch_execute(sql).await;
        drop(client);
        done
    };
    // The connection ends once the client is gone; what the statement said matters more than how.
    let (done, _) = tokio::join!(work, connection);
    done
}
