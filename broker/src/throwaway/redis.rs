//! A Redis of our own that leaves nothing behind, and keeps nothing while it runs but in memory.
//!
//! It goes with its handle or with this process, by the same watchdog as a throwaway Postgres. All calls block. It
//! must never listen beyond loopback.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;

use super::sandbox::{make_dir, unprivileged, watchdog};
use super::{LOG_TAIL_LINES, START_TRIES, ThrowawayError, free_port};

/// How long a start may take.
const START_MAX: Duration = Duration::from_secs(60);
const PID_FILE: &str = "pid";

/// A running Redis, removed when dropped or when this process ends.
#[derive(Debug)]
pub struct Server {
    dir: PathBuf,
    port: u16,
    settings: Vec<(String, String)>,
    running: Mutex<Option<Running>>,
    /// Its standard input is the pipe.
    watchdog: Mutex<Child>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// Writes down what the server says, and ends with it.
    log: JoinHandle<()>,
}

impl Server {
    /// Starts one, and waits until it accepts connections.
    ///
    /// # Errors
    /// There is no `redis-server`, or it did not start: the message ends with its log's tail.
    pub fn start() -> Result<Self, ThrowawayError> {
        Self::tuned(&[])
    }

    /// The same with these settings, as in `redis.conf`; they win over our own.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn tuned(settings: &[(&str, &str)]) -> Result<Self, ThrowawayError> {
        let dir = make_dir(None, None)?;
        let failed = |what| {
            let path = dir.clone();
            move |source| ThrowawayError::Io { what, path, source }
        };
        let watchdog = watchdog(None, &dir, PID_FILE, None).map_err(failed("start a watchdog for"))?;
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let made = fs::create_dir(dir.join("data")).map_err(failed("make the data directory in"));
        let mut server =
            Self { dir, port: 0, settings, running: Mutex::new(None), watchdog: Mutex::new(watchdog) };
        made?;
        let mut tries = 1;
        loop {
            server.port = free_port()?;
            match server.start_again() {
                Err(ThrowawayError::Program { detail, .. })
                    if tries < START_TRIES && detail.contains("Address already in use") =>
                {
                    tries += 1;
                }
                done => return done.map(|()| server),
            }
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The TCP port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it works, and where its log is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its process; `None` while it is stopped.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.running.lock().as_ref().map(|running| running.child.id())
    }

    /// Kills it, with all that it holds.
    pub fn stop(&self) {
        let Some(mut running) = self.running.lock().take() else { return };
        // It fails where the server is gone already, which is what was wanted.
        let _ = running.child.kill();
        let _ = running.child.wait();
        let _ = running.log.join();
    }

    /// Kills it and starts it without data, on the same port.
    ///
    /// # Errors
    /// As [`start_again`](Self::start_again).
    pub fn restart_empty(&self) -> Result<(), ThrowawayError> {
        self.stop();
        self.start_again()
    }

    /// Starts it after a [`stop`](Self::stop), empty and on the same port.
    ///
    /// # Errors
    /// It did not start.
    pub fn start_again(&self) -> Result<(), ThrowawayError> {
        let port = self.port.to_string();
        let own = [
            ("port", port.as_str()),
            ("bind", "127.0.0.1"),
            ("daemonize", "no"),
            ("dir", "data"),
            ("pidfile", PID_FILE),
            ("logfile", ""),
            ("save", ""),
            ("appendonly", "no"),
            ("maxmemory-policy", "noeviction"),
        ];
        let mut command = unprivileged(Path::new("redis-server"), &self.dir, None);
        let extra = self.settings.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        for (key, value) in own.into_iter().chain(extra) {
            command.arg(format!("--{key}")).arg(value);
        }
        let failed = |source| ThrowawayError::Io { what: "write", path: self.log_path(), source };
        let log = File::create(self.log_path()).map_err(failed)?;
        // What is wrong with its settings it says there.
        let errors = log.try_clone().map_err(failed)?;
        let spawned = command.stdout(Stdio::piped()).stderr(errors).spawn();
        let mut child = spawned.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ThrowawayError::NoRedis,
            _ => ThrowawayError::Io { what: "start redis-server in", path: self.dir.clone(), source },
        })?;
        let (sender, ready) = sync_channel(1);
        let said = child.stdout.take();
        let log = thread::spawn(move || write_down(said, log, &sender));
        *self.running.lock() = Some(Running { child, log });
        if ready.recv_timeout(START_MAX).is_ok() {
            return Ok(());
        }
        self.stop();
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(LOG_TAIL_LINES).collect();
        let detail = tail.into_iter().rev().map(str::trim).collect::<Vec<_>>().join(" | ");
        Err(ThrowawayError::Program { program: "redis-server", detail })
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        let child = self.watchdog.get_mut();
        drop(child.stdin.take());
        if let Err(error) = child.wait() {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot tell whether the throwaway Redis went");
        }
    }
}

/// Takes all that the server says, and tells when it is ready.
fn write_down(said: Option<ChildStdout>, mut log: File, ready: &SyncSender<()>) {
    for line in said.into_iter().flat_map(|said| BufReader::new(said).lines()).map_while(Result::ok) {
        let _ = writeln!(log, "{line}");
        if line.contains("Ready to accept connections") {
            let _ = ready.try_send(());
        }
    }
}
