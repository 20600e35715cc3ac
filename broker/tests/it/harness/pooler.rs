//! A real PgBouncer in transaction mode in front of a server, with fewer server sessions than clients.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::UnixStream;
use tokio_postgres::{Client, NoTls};
use walcast::postgres::Target;

use super::process::program;
use super::server::{ADMIN, Server, target};
use super::wait::until;

/// Sessions that it opens to the server, for each database and role.
pub(crate) const SERVER_SESSIONS: usize = 2;
/// It listens on a socket in a directory of its own, so the number only names that.
const PORT: u16 = 6432;
/// Ends it when our end of standard input closes, however we end.
const SCRIPT: &str = r#""$0" pgbouncer.ini & read -r _; kill -KILL $!"#;

/// It lives as long as this, and its files as long as the server's.
pub(crate) struct Pooler {
    directory: PathBuf,
    // Its standard input is the pipe.
    shell: Child,
}

impl Pooler {
    /// In front of `server`, for the roles that it has now. `more` are lines of its settings.
    pub(crate) async fn start(server: &Server, more: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = server.directory.join(format!("pooler-{number}"));
        fs::create_dir(&directory).unwrap();
        // It refuses to run as root, as Postgres does.
        let owner = fs::metadata(&server.directory).unwrap();
        chown(&directory, Some(owner.uid()), Some(owner.gid())).unwrap();
        let roles = server.sql("SELECT format('\"%s\" \"\"', rolname) FROM pg_roles");
        fs::write(directory.join("roles"), format!("{roles}\n")).unwrap();
        fs::write(directory.join("pgbouncer.ini"), settings(&directory, server.port, more)).unwrap();
        let log = fs::File::create(directory.join("log")).unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SCRIPT]).arg(program("pgbouncer")).current_dir(&directory).process_group(0);
        shell.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        if owner.uid() != fs::metadata("/proc/self").unwrap().uid() {
            shell.uid(owner.uid()).gid(owner.gid());
        }
        let this = Self { shell: shell.spawn().unwrap(), directory };
        let socket = this.directory.join(format!(".s.PGSQL.{PORT}"));
        until("the pooler listens", async || {
            let said = fs::read_to_string(this.directory.join("log")).unwrap();
            assert!(!said.contains("FATAL"), "{said}");
            UnixStream::connect(&socket).await.is_ok()
        })
        .await;
        this
    }

    /// The connection string of a database, as the superuser.
    pub(crate) fn dsn(&self, database: &str) -> String {
        self.dsn_as(database, ADMIN)
    }

    /// The same as `user`.
    pub(crate) fn dsn_as(&self, database: &str, user: &str) -> String {
        format!("host={} port={PORT} user={user} dbname={database}", self.directory.display())
    }

    /// The same as the broker takes it where a pooler may be in between.
    pub(crate) fn target(&self, database: &str) -> Target {
        Target { pooled: true, ..target(&self.dsn(database)) }
    }

    /// What its server sessions for the superuser keep after all that was done on them: settings, prepared
    /// statements, locks, temporary tables. To be called while nobody uses them.
    pub(crate) async fn left_behind(&self, database: &str) -> Vec<String> {
        // Those that it sets itself, for each client anew, are no trace.
        const LEFT: &str = "SELECT pg_backend_pid()::text, '' UNION ALL
            SELECT 'setting', name || ' = ' || setting FROM pg_settings WHERE source = 'session' AND name NOT IN
                ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings')
            UNION ALL SELECT 'statement', name || ': ' || statement FROM pg_prepared_statements
            UNION ALL SELECT 'lock', mode FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'
            UNION ALL SELECT 'table', relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()";
        let (mut clients, mut pids, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..SERVER_SESSIONS {
            let client = self.connect(database).await;
            // An open transaction keeps its session: the next client gets the other.
            client.batch_execute("BEGIN").await.unwrap();
            for row in client.query_typed(LEFT, &[]).await.unwrap() {
                let (kind, what): (String, String) = (row.get(0), row.get(1));
                match kind.parse::<i32>() {
                    Ok(pid) => pids.push(pid),
                    Err(_) => left.push(format!("{kind} {what}")),
                }
            }
            clients.push(client);
        }
        pids.dedup();
        assert_eq!(pids.len(), SERVER_SESSIONS, "each was looked at");
        for client in clients {
            client.batch_execute("ROLLBACK").await.unwrap();
        }
        left
    }

    async fn connect(&self, database: &str) -> Client {
        let config: tokio_postgres::Config = self.dsn(database).parse().unwrap();
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // The script ends by itself then.
        let _ = self.shell.wait();
    }
}

fn settings(directory: &Path, server: u16, more: &str) -> String {
    let here = directory.display();
    format!(
        "[databases]
* = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr =
listen_port = {PORT}
unix_socket_dir = {here}
auth_type = trust
auth_file = {here}/roles
pool_mode = transaction
default_pool_size = {SERVER_SESSIONS}
max_client_conn = 100
{more}
"
    )
}
