//! One throwaway Postgres for this binary; each test makes databases of its own in it. It goes when the
//! process ends.

use std::process::Stdio;
use std::sync::OnceLock;

use tokio::io::AsyncWriteExt;
use tokio_postgres::{Client, NoTls};
use walcast::throwaway::{Options, Throwaway};

fn server() -> &'static Throwaway {
    static SERVER: OnceLock<Throwaway> = OnceLock::new();
    SERVER.get_or_init(|| {
        Throwaway::start(&Options::for_tests().set("max_prepared_transactions", "10")).unwrap()
    })
}

/// A session in `database`, as `user`.
pub(crate) async fn connect(database: &str, user: &str) -> Client {
    let port = tokio::task::spawn_blocking(|| server().port()).await.unwrap();
    let config = format!("host=127.0.0.1 port={port} user={user} dbname={database}");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Creates a database.
pub(crate) async fn create(name: &str) {
    let name = name.to_owned();
    tokio::task::spawn_blocking(move || server().create_database(&name).unwrap()).await.unwrap();
}

/// The connection string of a database, as a superuser.
pub(crate) async fn url(name: &str) -> String {
    let name = name.to_owned();
    tokio::task::spawn_blocking(move || server().url(&name)).await.unwrap()
}

/// A client program of this server's version, run to its end on `database` as `user`, with `input`.
pub(crate) async fn program(name: &str, user: &str, database: &str, args: &[&str], input: &str) -> String {
    let (bin, port) =
        tokio::task::spawn_blocking(|| (server().bin_dir().to_owned(), server().port())).await.unwrap();
    let mut command = tokio::process::Command::new(bin.join(name));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", user, "-d", database]).args(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{name} as {user}: {}", text(output.stderr));
    text(output.stdout)
}

/// The schema of a database as `pg_dump` shows it.
pub(crate) async fn dump(database: &str) -> String {
    let text = program("pg_dump", "postgres", database, &["--schema-only"], "").await;
    // A random token in two lines, from recent minor versions on.
    let lasting = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
    text.lines().filter(lasting).collect::<Vec<_>>().join("\n")
}
