//! Behind a connection pooler: the log cannot be read, which one line says, and what may be pooled leaves nothing behind.

use tokio::task::JoinSet;
use tokio_postgres::types::Type;
use walcast::postgres::{Companion, ConnectErrorKind, LASTING, Session};
use walcast::source::wal::replication::Connection;
use walcast::source::{self, types};

use crate::harness::pooler::{Pooler, SERVER_SESSIONS};
use crate::process::{file, run};
use crate::server::{Server, target};
use crate::serving::settings;

/// What the line names: what is wrong, and both ways out.
const LINE: [&str; 3] = ["is a connection pooler", "`postgres.url`", "source.kind = \"outbox\""];

/// Both commands refuse, and leave a session alone that may be somebody else's.
async fn refused(pooler: &Pooler, database: &str, why: &str) {
    let path = file("pooler", &settings(&pooler.dsn(database), "pooler", "", ""));
    let expected: Vec<&str> = LINE.into_iter().chain([why]).collect();
    for command in [&["serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"][..], &["setup"]] {
        run(&[command, &["--config", &path]].concat()).await.failed(69, &expected);
    }
}

async fn no_replication(pooler: &Pooler, database: &str, why: &str) {
    let lease = source::Config::default().lease;
    let error = Connection::connect(&target(&pooler.dsn(database)), "walcast/test", lease).await.unwrap_err();
    assert_eq!(error.kind, ConnectErrorKind::Pooler, "{error}");
    let text = error.to_string();
    assert!(LINE.into_iter().chain([why]).all(|part| text.contains(part)), "{text}");
}

#[tokio::test]
async fn the_log_is_not_read_through_a_pooler_and_one_line_says_so() {
    let server = Server::tuned(&[]).await;
    let strict = Pooler::start(&server, "").await;
    refused(&strict, "postgres", "unsupported startup parameter").await;
    no_replication(&strict, "postgres", "unsupported startup parameter").await;

    let forgiving = Pooler::start(&server, "ignore_startup_parameters = options").await;
    refused(&forgiving, "postgres", "search_path").await;
    no_replication(&forgiving, "postgres", "unsupported startup parameter").await;

    let deaf = "ignore_startup_parameters = options,extra_float_digits,replication";
    let deaf = Pooler::start(&server, deaf).await;
    refused(&deaf, "postgres", "search_path").await;
    no_replication(&deaf, "postgres", "search_path").await;
    // Where a default of the database hides that our settings were lost.
    server.create_database("hidden").await;
    server.sql("ALTER DATABASE hidden SET search_path = pg_catalog");
    no_replication(&deaf, "hidden", "ordinary").await;

    for (pooler, database) in [(&forgiving, "postgres"), (&deaf, "postgres")] {
        let left = pooler.left_behind(database).await;
        assert!(left.is_empty(), "{left:?}");
    }
    assert_eq!(server.sql("SELECT count(*) FROM pg_replication_slots"), "0");
}

#[tokio::test]
async fn what_may_be_pooled_works_on_any_session_and_leaves_nothing_behind() {
    let server = Server::tuned(&[]).await;
    let pooler = Pooler::start(&server, "").await;
    let target = pooler.target("postgres");
    server.sql("CREATE TYPE mood AS ENUM ('good'); CREATE TABLE t (id int8 PRIMARY KEY, mood mood)");

    // More clients than sessions, so that each finds itself on another than before.
    let mut clients = JoinSet::new();
    for client in 0..2 * SERVER_SESSIONS {
        let target = target.clone();
        clients.spawn(async move {
            let mut session = Session::connect(&target, "walcast/test").await.unwrap();
            for round in 0..20 {
                let id = i64::try_from(client * 1000 + round).unwrap();
                let transaction = session.transaction().await.unwrap();
                transaction.batch_execute("SET LOCAL lock_timeout = '7s'").await.unwrap();
                let sql = "INSERT INTO t VALUES ($1, $2::text::mood)";
                let values = [(&id as _, Type::INT8), (&"good" as _, Type::TEXT)];
                assert_eq!(transaction.execute_typed(sql, &values).await.unwrap(), 1);
                transaction.commit().await.unwrap();
                let found = types::look_up(&session, &[1007]).await.unwrap();
                assert_eq!(found.len(), 2, "{found:?}");
            }
            session.close().await;
        });
    }
    let companion = Companion::new(target.clone(), "walcast/companion", 1);
    for _ in 0..20 {
        let session = companion.lock().await.unwrap();
        let sql = format!("SELECT current_setting('synchronous_commit') FROM {LASTING}");
        let row = session.query_typed_one(&sql, &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "on");
    }
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    companion.close().await;
    assert_eq!(server.sql("SELECT count(*) FROM t"), (40 * SERVER_SESSIONS).to_string());
    let left = pooler.left_behind("postgres").await;
    assert!(left.is_empty(), "{left:?}");
}
