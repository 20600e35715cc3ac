//! Throwaway servers: one that all tests of this binary share, each with databases of its own, and one for a test
//! that changes settings, crashes its server, or needs slots and roles to itself. They go when the process ends.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};
use walcast::cli::setup::{Report, SetupError, SetupOptions, setup};
use walcast::postgres::Target;
use walcast::throwaway::{Options, StopMode, Throwaway};

/// The superuser of every server.
pub(crate) const ADMIN: &str = "postgres";

/// A server of the test's own, stopped when the last copy is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    server: Arc<Throwaway>,
    pub(crate) directory: PathBuf,
    pub(crate) port: u16,
}

/// Calls of [`Throwaway`] take their time.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

impl Server {
    fn make(options: &Options) -> Self {
        let server = Throwaway::start(options).unwrap();
        Self { directory: server.data_dir(), port: server.port(), server: Arc::new(server) }
    }

    /// With these settings, and everybody trusted.
    pub(crate) async fn tuned(settings: &[(&str, &str)]) -> Self {
        Self::of(Options::for_tests(), settings).await
    }

    /// The same, of this kind.
    pub(crate) async fn of(options: Options, settings: &[(&str, &str)]) -> Self {
        let options = settings.iter().fold(options, |options, (name, value)| options.set(name, value));
        blocking(move || Self::make(&options)).await
    }

    /// `hba` are the lines of `pg_hba.conf` behind those that trust `postgres`; `files` are made in the
    /// server's data directory before the settings are in force.
    pub(crate) async fn start(hba: &str, files: &[(&str, &str)], settings: &[(&str, &str)]) -> Self {
        let this = Self::tuned(&[]).await;
        for (name, content) in files {
            this.file(name, content);
        }
        let trusted =
            "local all,replication postgres trust\nhost all,replication postgres 127.0.0.1/32 trust";
        this.file("pg_hba.conf", &format!("{trusted}\n{hba}\n"));
        this.change(settings).await;
        this
    }

    /// Restarts the server with other settings.
    pub(crate) async fn change(&self, settings: &[(&str, &str)]) {
        for (name, value) in settings {
            self.sql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        }
        let server = Arc::clone(&self.server);
        blocking(move || server.restart(StopMode::Fast).unwrap()).await;
    }

    /// Stops the server as `pg_ctl stop -m fast` does, and says how long that took.
    pub(crate) async fn stop(&self) -> Duration {
        let server = Arc::clone(&self.server);
        blocking(move || {
            let start = Instant::now();
            server.stop(StopMode::Fast).unwrap();
            start.elapsed()
        })
        .await
    }

    /// Stops the server as a crash would.
    pub(crate) async fn crash(&self) {
        let server = Arc::clone(&self.server);
        blocking(move || server.stop(StopMode::Immediate).unwrap()).await;
    }

    /// Starts it again, on the same data and port.
    pub(crate) async fn start_again(&self) {
        let server = Arc::clone(&self.server);
        blocking(move || server.start_again().unwrap()).await;
    }

    /// The connection string of a database, as the superuser.
    pub(crate) fn url(&self, database: &str) -> String {
        self.server.url(database)
    }

    /// The superuser's connection, as the broker takes it.
    pub(crate) fn target(&self) -> Target {
        target(&format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port))
    }

    /// Creates a database and says where it is.
    pub(crate) async fn create_database(&self, name: &str) -> String {
        let (server, name) = (Arc::clone(&self.server), name.to_owned());
        blocking(move || server.create_database(&name).unwrap()).await
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

    /// The programs of its version.
    pub(crate) fn bin_dir(&self) -> PathBuf {
        self.server.bin_dir().to_owned()
    }

    /// A client program of its version, pointed at a database.
    pub(crate) fn program(&self, name: &str, user: &str, database: &str) -> Command {
        let mut command = Command::new(self.bin_dir().join(name));
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string());
        command.env("PGUSER", user).env("PGDATABASE", database).stdin(Stdio::null());
        command
    }

    /// Runs SQL as the superuser.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let mut psql = self.program("psql", ADMIN, "postgres");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        succeeded(sql, &psql.output().unwrap()).trim().to_owned()
    }

    /// Runs a script as a person would, and says what it printed.
    pub(crate) fn script(&self, user: &str, database: &str, script: &str) -> String {
        let mut psql = self.program("psql", user, database);
        psql.args(["-qXAt", "-v", "ON_ERROR_STOP=1", "-f", "-"]);
        let mut psql =
            psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        psql.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        succeeded(&format!("psql as {user}"), &psql.wait_with_output().unwrap())
    }

    /// The schema of a database as `pg_dump` shows it.
    pub(crate) fn dump(&self, database: &str) -> String {
        let output = self.program("pg_dump", ADMIN, database).arg("--schema-only").output().unwrap();
        let text = succeeded("pg_dump", &output);
        // A random token in two lines, from recent minor versions on.
        let lasting = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
        text.lines().filter(lasting).collect::<Vec<_>>().join("\n")
    }

    /// A session in `database`, as `user`.
    pub(crate) async fn connect(&self, database: &str, user: &str, application: &str) -> Client {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user(user).dbname(database).application_name(application);
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// The same in the database that every server has.
    pub(crate) async fn connect_as(&self, user: &str, application: &str) -> Client {
        self.connect("postgres", user, application).await
    }

    /// The same as the superuser.
    pub(crate) async fn admin(&self) -> Client {
        self.connect_as(ADMIN, "test").await
    }

    /// `setup` with these options, by the superuser.
    pub(crate) async fn set_up(&self, options: &SetupOptions) -> Result<Report, SetupError> {
        setup(&mut self.admin().await, options).await
    }
}

fn succeeded(what: &str, output: &Output) -> String {
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn target(text: &str) -> Target {
    Target::parse(text, |_| None).unwrap()
}

/// The server that all tests share.
async fn shared() -> Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    blocking(|| {
        SHARED
            .get_or_init(|| Server::make(&Options::for_tests().set("max_prepared_transactions", "10")))
            .clone()
    })
    .await
}

/// Creates a database in the shared server and says where it is.
pub(crate) async fn create(name: &str) -> String {
    shared().await.create_database(name).await
}

/// The connection string of a database in the shared server, as a superuser.
pub(crate) async fn url(name: &str) -> String {
    shared().await.url(name)
}

/// A session in a database of the shared server, as `user`.
pub(crate) async fn connect(database: &str, user: &str) -> Client {
    shared().await.connect(database, user, "test").await
}

/// Runs a script in a database of the shared server, as `user`, and says what it printed.
pub(crate) async fn script(user: &str, database: &str, script: &str) -> String {
    let (user, database, script) = (user.to_owned(), database.to_owned(), script.to_owned());
    let server = shared().await;
    blocking(move || server.script(&user, &database, &script)).await
}

/// The schema of a database in the shared server.
pub(crate) async fn dump(database: &str) -> String {
    let (server, database) = (shared().await, database.to_owned());
    blocking(move || server.dump(&database)).await
}
