//! A Postgres server of a test's own, for slots, roles and settings are the server's, not a database's.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use tokio_postgres::{Client, NoTls};
use walcast::cli::setup::{Report, SetupError, SetupOptions, setup};
use walcast::throwaway::{Options, Throwaway};

/// The superuser of every such server.
pub(super) const ADMIN: &str = "postgres";

pub(super) struct Server(Throwaway);

impl Server {
    /// As setup wants it, but for `settings` such as `("wal_level", "replica")`.
    pub(super) async fn start(settings: &[(&str, &str)]) -> Self {
        let mut options = Options::for_tests().set("shared_buffers", "16MB");
        for (key, value) in settings {
            options = options.set(key, value);
        }
        Self(tokio::task::spawn_blocking(move || Throwaway::start(&options).unwrap()).await.unwrap())
    }

    /// A client program of this server, pointed at it.
    pub(super) fn program(&self, name: &str, user: &str) -> Command {
        let mut command = Command::new(self.0.bin_dir().join(name));
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.0.port().to_string());
        command.env("PGUSER", user).env("PGDATABASE", "postgres").stdin(Stdio::null());
        command
    }

    /// Runs a script as a person would.
    pub(super) fn psql(&self, user: &str, script: &str) {
        let mut command = self.program("psql", user);
        command.args(["-qX", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut psql = command.spawn().unwrap();
        psql.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        stdout(&psql.wait_with_output().unwrap());
    }

    /// The schema as `pg_dump` shows it.
    pub(super) fn dump(&self) -> String {
        let output = self.program("pg_dump", ADMIN).arg("--schema-only").output().unwrap();
        // A random token in two lines, from recent minor versions on.
        let lasting = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
        stdout(&output).lines().filter(lasting).collect::<Vec<_>>().join("\n")
    }

    pub(super) async fn connect(&self, database: &str, user: &str, application: &str) -> Client {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.0.port())
            .user(user)
            .dbname(database)
            .application_name(application);
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    pub(super) async fn connect_as(&self, user: &str, application: &str) -> Client {
        self.connect("postgres", user, application).await
    }

    pub(super) async fn admin(&self) -> Client {
        self.connect_as(ADMIN, "test").await
    }

    /// `setup` with these options, by the superuser.
    pub(super) async fn set_up(&self, options: &SetupOptions) -> Result<Report, SetupError> {
        setup(&mut self.admin().await, options).await
    }
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}
