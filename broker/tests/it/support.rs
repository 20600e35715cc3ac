//! A throwaway Postgres for one test that changes its server, and waiting on conditions.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use walcast::postgres::Target;
use walcast::throwaway::{Options, StopMode, Throwaway};

/// Far more than anything needs; only a broken test waits this long.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A server of one's own.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    server: Arc<Throwaway>,
    pub(crate) directory: PathBuf,
    pub(crate) port: u16,
}

impl Server {
    /// `hba` are the lines of `pg_hba.conf` behind those that trust `postgres`; `files` are made in the
    /// server's data directory before the settings are in force.
    pub(crate) fn start(hba: &str, files: &[(&str, &str)], settings: &[(&str, &str)]) -> Self {
        let server = Arc::new(Throwaway::start(&Options::for_tests()).unwrap());
        let this = Self { directory: server.data_dir(), port: server.port(), server };
        for (name, content) in files {
            this.file(name, content);
        }
        let trusted =
            "local all,replication postgres trust\nhost all,replication postgres 127.0.0.1/32 trust";
        this.file("pg_hba.conf", &format!("{trusted}\n{hba}\n"));
        for (name, value) in settings {
            this.sql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        }
        this.server.restart(StopMode::Fast).unwrap();
        this
    }

    /// Restarts the server with other settings.
    pub(crate) async fn change(&self, settings: &[(&str, &str)]) {
        for (name, value) in settings {
            self.sql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        }
        let server = Arc::clone(&self.server);
        tokio::task::spawn_blocking(move || server.restart(StopMode::Fast).unwrap()).await.unwrap();
    }

    /// With these settings, and everybody trusted.
    pub(crate) async fn tuned(settings: &[(&str, &str)]) -> Self {
        let set = |options: Options, (name, value): &(&str, &str)| options.set(name, value);
        let options = settings.iter().fold(Options::for_tests(), set);
        let started = tokio::task::spawn_blocking(move || Throwaway::start(&options).unwrap());
        let server = Arc::new(started.await.unwrap());
        Self { directory: server.data_dir(), port: server.port(), server }
    }

    /// Stops the server as `pg_ctl stop -m fast` does, and says how long that took.
    pub(crate) async fn stop(&self) -> Duration {
        let server = Arc::clone(&self.server);
        let stop = move || {
            let start = Instant::now();
            server.stop(StopMode::Fast).unwrap();
            start.elapsed()
        };
        tokio::task::spawn_blocking(stop).await.unwrap()
    }

    /// Stops the server as a crash would.
    pub(crate) async fn crash(&self) {
        let server = Arc::clone(&self.server);
        tokio::task::spawn_blocking(move || server.stop(StopMode::Immediate).unwrap()).await.unwrap();
    }

    /// The programs of its version.
    pub(crate) fn bin_dir(&self) -> PathBuf {
        self.server.bin_dir().to_owned()
    }

    /// Starts it again, on the same data and port.
    pub(crate) async fn start_again(&self) {
        let server = Arc::clone(&self.server);
        tokio::task::spawn_blocking(move || server.start_again().unwrap()).await.unwrap();
    }

    /// Creates a database and says where it is.
    pub(crate) async fn create_database(&self, name: &str) -> String {
        let (server, name) = (Arc::clone(&self.server), name.to_owned());
        tokio::task::spawn_blocking(move || server.create_database(&name).unwrap()).await.unwrap()
    }

    /// Makes a file in the server's directory, readable by the server alone.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let owner = fs::metadata(&self.directory).unwrap();
        chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
        path
    }

    /// Runs SQL as the superuser.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let mut psql = Command::new(self.server.bin_dir().join("psql"));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &self.server.url("postgres"), "-c", sql]);
        let output = psql.output().unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// As the superuser.
    pub(crate) fn target(&self) -> Target {
        target(&format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port))
    }
}

pub(crate) fn target(text: &str) -> Target {
    Target::parse(text, |_| None).unwrap()
}

/// Asks until the answer is yes.
pub(crate) async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !check() {
        assert!(Instant::now() < end, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
