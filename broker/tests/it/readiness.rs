//! `/readyz` is green when clients are served as promised, and at no other time; `/livez` always.

use walcast::node::Node;

use crate::broker::{Broker, config, connect, prepare, run, until, value_of};
use crate::plain::{Plain, get};
use crate::server;

#[tokio::test]
async fn a_broker_without_a_server_is_live_but_not_ready() {
    // A port that nothing listens on, for the socket is bound but does not.
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    drop(socket);
    let node =
        Node::start(config(&format!("postgres://postgres@127.0.0.1:{port}/none"), "none", "")).unwrap();
    assert!(node.problems().contains("state: "), "the stream alone does not make it ready");
    let admin = node.admin.to_string();
    until("the reason is told", async || {
        let (status, body) = get(&admin, "/readyz").await;
        assert_eq!(status, 503, "{body}");
        body.contains("\"stream\":") && body.contains(&port.to_string())
    })
    .await;
    assert_eq!(get(&admin, "/livez").await.0, 200);
    let (status, body) = get(&admin, "/health").await;
    assert!(status == 404 && body.contains("no such path: /health; this listener has /livez"), "{body}");
    assert_eq!(get(&node.http.to_string(), "/v1/events?topic=t").await.0, 503);
    node.join(std::future::ready(())).await.unwrap();
}

#[tokio::test]
async fn a_broker_is_not_ready_before_it_knows_all_values() {
    let name = "readiness_seeding";
    let url = server::create(name).await;
    let rule = "[[table]]\nname = 'public.t'\ntopic = 't/{id}'\nstate = true";
    let config =
        prepare(&url, name, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)", rule).await;
    let locker = connect(&url).await;
    run(&locker, "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await;
    let node = Node::start(config.clone()).unwrap();
    let admin = node.admin.to_string();
    let reading = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND NOT granted";
    until("the reading waits", async || {
        assert_eq!(get(&admin, "/readyz").await.0, 503);
        value_of(&locker, reading).await == "1"
    })
    .await;
    until("it says what it waits for", async || {
        let (status, body) = get(&admin, "/readyz").await;
        status == 503 && body.contains("reading current values")
    })
    .await;
    assert_eq!(get(&admin, "/livez").await.0, 200);
    // It has a session of its own: the companion is free for everything else.
    let http = Plain { address: node.http };
    assert_eq!(http.post("", r#"{"topic": "a", "data": 1}"#).await.status, 200);
    run(&locker, "COMMIT").await;
    until("it is ready", async || get(&admin, "/readyz").await.0 == 200).await;
    assert_eq!(get(&node.http.to_string(), "/v1/state/t/1").await.0, 200);
    node.join(std::future::ready(())).await.unwrap();
    // Draining let go of everything.
    let broker = Broker::on(name, config, locker).await;
    assert_eq!(broker.readiness().await.0, 200);
}

#[tokio::test]
async fn what_the_publication_leaves_out_is_an_alarm() {
    let rule = "[[table]]\nname = 'public.t'\ntopic = 't/{id}'";
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, note text)";
    let broker = Broker::start("readiness_catalog", ddl, rule).await;
    let alter = async |what: &str| broker.run(&format!("ALTER PUBLICATION readiness_catalog {what}")).await;
    let alarm = async |expected: &[&str]| {
        until("the alarm is raised", async || {
            let (status, body) = broker.readiness().await;
            let reason = body["problems"]["catalog"].as_str().unwrap_or_default();
            status == 503 && expected.iter().all(|part| reason.contains(part))
        })
        .await;
    };
    alter("DROP TABLE t").await;
    alarm(&["public.t", "walcast setup"]).await;
    alter("ADD TABLE t").await;
    alter("SET (publish = 'insert, truncate')").await;
    alarm(&["every update and delete", "SET (publish = 'insert, update, delete, truncate')"]).await;
    alter("SET (publish = 'insert, update, delete, truncate')").await;
    // A reload asks the same at once.
    let refused = async |expected: &[&str]| {
        let error = broker.node().reloader().reload(&broker.config.table).await.unwrap_err().to_string();
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    };
    alter("SET TABLE t WHERE (id > 0)").await;
    refused(&["the rows of public.t", "`when`"]).await;
    alter("SET TABLE t (id)").await;
    refused(&["sends only id", "walcast setup"]).await;
    alter("SET TABLE t").await;
    broker.node().reloader().reload(&broker.config.table).await.unwrap();
    until("it is over", async || broker.readiness().await.0 == 200).await;
}
