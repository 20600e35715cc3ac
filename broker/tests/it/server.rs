//! One throwaway Postgres for this binary; each test makes databases of its own in it. It goes when the
//! process ends.

use std::sync::OnceLock;

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
