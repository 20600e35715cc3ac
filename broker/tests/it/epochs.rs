//! The epoch changes when the number line does, and only then; what is lost is made anew, once, and every client
//! is told.

use std::time::Duration;

use serde_json::json;
use walcast::cli::local;
use walcast::config::Config;
use walcast::node::Node;
use walcast_client::wire::ResetReason;
use walcast_client::{After, Message, Transport};

use crate::broker::{Broker, Follower, connect, prepare, run, until, value_of, within};
use crate::plain::Answer;
use crate::proxy::Proxy;
use crate::server::{self, Server};

const VMS: &str = "CREATE TABLE vms (host text PRIMARY KEY, pin int); INSERT INTO vms VALUES ('a', 1)";
const RULE: &str = "[[table]]\nname = 'public.vms'\ntopic = 'vm/{host}'\nstate = true";
/// Counts new generations, whoever writes them.
pub(crate) const COUNTED: &str = "CREATE TABLE generations (generation uuid);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO public.generations VALUES (NEW.generation); RETURN NULL; END $$;
    CREATE TRIGGER note AFTER UPDATE OF generation ON walcast.source FOR EACH ROW EXECUTE FUNCTION note()";

pub(crate) fn quick(config: &mut Config) {
    config.source.lease = Duration::from_secs(1);
    config.source.shutdown_pause = Duration::from_millis(50);
}

async fn epoch(broker: &Broker) -> String {
    broker.readiness().await.1["epoch"].as_str().unwrap().to_owned()
}

/// A client of each kind, who waits with a cursor of now.
pub(crate) struct Waiters {
    poll: tokio::net::TcpStream,
    streams: Vec<Follower>,
}

impl Waiters {
    pub(crate) async fn park(broker: &Broker) -> Self {
        broker.catch_up().await;
        let cursor = broker.http.get("/v1/events?topic=vm/*&wait=0&after=now").await.cursor();
        let poll = broker.http.begin(&format!("/v1/events?topic=vm/*&wait=60&after={cursor}"), "").await;
        let mut streams = Vec::new();
        for transport in [Transport::Sse, Transport::WebSocket] {
            streams.push(broker.follow(transport, &["vm/*"]).await);
        }
        Self { poll, streams }
    }

    /// Each is told, on the connection on which it waits; then each gets the rows of `vms` as they are now.
    pub(crate) async fn told(mut self, broker: &Broker, reason: ResetReason, values: &[(&str, i64)]) {
        let answer = within("the long-poll is told", Answer::read(&mut self.poll)).await;
        let problem = answer.problem();
        assert_eq!((problem.status, json!(problem.code.as_str())), (410, json!(reason)), "{answer:?}");
        broker.ready().await;
        let resume = problem.resume.unwrap();
        let answer = broker.http.get(&format!("/v1/events?topic=vm/*&after={resume}&wait=0")).await;
        let mut found = answer.events();
        let mut expected: Vec<String> = values
            .iter()
            .map(|(host, pin)| format!("vm/{host} {}", json!({"host": host, "pin": pin})))
            .collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        for mut stream in self.streams {
            let mut found = Vec::new();
            let reset = loop {
                match within("a stream is told", stream.0.next()).await {
                    Ok(Some(Message::Subscribed { .. })) => {}
                    Ok(Some(Message::Reset(reset))) => break reset,
                    other => panic!("no reset but {other:?}"),
                }
            };
            assert_eq!(reset.reason, reason);
            while found.len() < expected.len() {
                let event = stream.next().await;
                found.push(format!("{} {}", event.topic, event.data));
            }
            found.sort();
            assert_eq!(found, expected);
        }
    }
}

/// One new generation since the last time.
async fn once(broker: &Broker, what: &str) {
    let count = "WITH gone AS (DELETE FROM generations RETURNING 1) SELECT count(*) FROM gone";
    let row = broker.sql.query_one(count, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 1, "{what}");
}

/// Drops the slot and makes it again, faster than anybody looks.
fn remade(name: &str) -> String {
    format!(
        "SELECT pg_drop_replication_slot('{name}'); SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
    )
}

#[tokio::test]
async fn a_slot_that_goes_while_the_broker_runs_is_made_anew() {
    let name = "epochs_running";
    let broker = Broker::start_with(name, VMS, RULE, quick).await;
    broker.run(COUNTED).await;
    let ways = [
        ("dropped", format!("SELECT pg_drop_replication_slot('{name}')")),
        (
            "publication",
            format!(
                "DROP PUBLICATION {name}; CREATE PUBLICATION {name} FOR TABLE vms WITH (publish_via_partition_root)"
            ),
        ),
        ("by another", "UPDATE walcast.source SET generation = DEFAULT".to_owned()),
        // Last: where the slot stays, it is read again from there.
        ("made again", remade(name)),
        ("moved", format!("SELECT pg_replication_slot_advance('{name}', pg_current_wal_lsn())")),
    ];
    for (pin, (what, sql)) in (2..).zip(ways) {
        let (before, waiters) = (epoch(&broker).await, Waiters::park(&broker).await);
        let old = broker.http.get("/v1/events?topic=vm/*&wait=0&after=now").await.cursor();
        // What is written in between is in the values, if not among the events.
        broker.run(&sql).await;
        broker.run(&format!("UPDATE vms SET pin = {pin}")).await;
        until("another epoch", async || ![before.as_str(), ""].contains(&epoch(&broker).await.as_str()))
            .await;
        // The update may still have come on the old line.
        let Waiters { mut poll, streams } = waiters;
        let answer = within("the long-poll is answered", Answer::read(&mut poll)).await;
        assert!([200, 410].contains(&answer.status), "{what}: {answer:?}");
        for mut stream in streams {
            let reset = loop {
                match within("a stream is told", stream.0.next()).await {
                    Ok(Some(Message::Event(_) | Message::Subscribed { .. })) => {}
                    Ok(Some(Message::Reset(reset))) => break reset,
                    other => panic!("{what}: {other:?}"),
                }
            };
            assert_eq!(reset.reason, ResetReason::EpochChanged, "{what}");
            assert_eq!(stream.next().await.data["pin"], pin, "{what}");
        }
        let late = broker.http.get(&format!("/v1/events?topic=vm/*&wait=0&after={old}")).await;
        assert_eq!((late.status, late.problem().code.as_str()), (410, "epoch_changed"), "{what}");
        broker.ready().await;
        once(&broker, what).await;
    }
    assert!(broker.metric("walcast_rebuilds_total{reason=\"missing\"}").await >= 1.0);
    let mut follower = broker.follow(Transport::WebSocket, &["vm/*"]).await;
    broker.run("UPDATE vms SET pin = 9").await;
    assert_eq!(follower.next().await.data["pin"], 9);
}

#[tokio::test]
async fn an_invalidated_slot_is_made_anew_once_nothing_is_in_its_way() {
    let server = Server::tuned(&[("max_slot_wal_keep_size", "1MB"), ("max_wal_size", "32MB")]).await;
    let broker = Broker::start_at(&server, "epochs_lost", VMS, RULE, quick).await;
    broker.run(COUNTED).await;
    let waiters = Waiters::park(&broker).await;
    // Somebody's open transaction keeps the slot from moving, and the new one from being made.
    let mut idler = broker.session().await;
    let open = idler.transaction().await.unwrap();
    open.batch_execute("SET application_name = 'idler'; SELECT pg_current_xact_id()").await.unwrap();
    let status = "SELECT max(wal_status) FROM pg_replication_slots WHERE slot_name = 'epochs_lost'";
    until("the slot is lost", async || {
        for sql in [
            "SELECT pg_logical_emit_message(false, 'fill', repeat('x', 1000)), pg_switch_wal()",
            "CHECKPOINT",
        ] {
            broker.run(sql).await;
        }
        !["reserved", "extended", "unreserved"].contains(&value_of(&broker.sql, status).await.as_str())
    })
    .await;
    let named = "waits for transactions that are open: pid";
    until("what is in the way is named", async || broker.node().problems().contains(named)).await;
    assert!(broker.node().problems().contains("idler"), "{}", broker.node().problems());
    assert_eq!(broker.readiness().await.0, 503);
    open.batch_execute("UPDATE vms SET pin = 2").await.unwrap();
    open.commit().await.unwrap();
    waiters.told(&broker, ResetReason::EpochChanged, &[("a", 2)]).await;
    assert_eq!(value_of(&broker.sql, status).await, "reserved");
    once(&broker, "however often it was tried").await;
}

#[tokio::test]
async fn of_two_brokers_that_start_one_makes_the_slot() {
    let name = "epochs_starting";
    let mut broker = Broker::start_with(name, VMS, RULE, quick).await;
    broker.run(COUNTED).await;
    let old = broker.http.get("/v1/events?topic=vm/*&wait=0&after=now").await.cursor();
    broker.stop().await.unwrap();
    broker.run(&format!("SELECT pg_drop_replication_slot('{name}')")).await;
    let nodes = [Node::start(broker.config.clone()).unwrap(), Node::start(broker.config.clone()).unwrap()];
    until("one is ready", async || nodes.iter().any(Node::ready)).await;
    once(&broker, "two at once").await;
    let ready = nodes.iter().find(|node| node.ready()).unwrap();
    let http = crate::plain::Plain { address: ready.http };
    let late = http.get(&format!("/v1/events?topic=vm/*&wait=0&after={old}")).await;
    assert_eq!((late.status, late.problem().code.as_str()), (410, "epoch_changed"));
    for node in nodes {
        // The other one may have given up already.
        let _ = within("it stops", node.join(std::future::ready(()))).await;
    }
}

#[tokio::test]
async fn without_the_privilege_the_remedy_is_told() {
    let name = "epochs_denied";
    let url = server::create(name).await;
    let mut config = prepare(&url, name, VMS, RULE).await;
    let sql = connect(&url).await;
    let grants = format!(
        "CREATE ROLE {name} LOGIN REPLICATION; GRANT USAGE ON SCHEMA walcast TO {name};
         GRANT SELECT ON ALL TABLES IN SCHEMA walcast, public TO {name};
         SELECT pg_drop_replication_slot('{name}')"
    );
    run(&sql, &grants).await;
    config.postgres.url = Some(url.replace("postgres@", &format!("{name}@")).as_str().into());
    let node = Node::start(config).unwrap();
    let error = within("it gives up", node.join(std::future::pending())).await.unwrap_err().to_string();
    for part in ["slot epochs_denied", "permission denied", "walcast setup --broker-role"] {
        assert!(error.contains(part), "{error}");
    }
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}'");
    assert_eq!(value_of(&sql, &slots).await, "0");
}

#[tokio::test]
async fn a_log_that_went_back_is_another_line() {
    let server = Server::tuned(&[]).await;
    let mut broker = Broker::start_at(&server, "epochs_back", VMS, RULE, quick).await;
    broker.run("UPDATE vms SET pin = 2").await;
    broker.catch_up().await;
    server.stop().await;
    let copy = server.directory.with_file_name("copy");
    duplicate(&server.directory, &copy).await;
    server.start_again().await;
    broker.ready().await;
    broker.sql = connect(&broker.url).await;
    broker.run("UPDATE vms SET pin = 3").await;
    let waiters = Waiters::park(&broker).await;
    server.stop().await;
    std::fs::remove_dir_all(&server.directory).unwrap();
    duplicate(&copy, &server.directory).await;
    server.start_again().await;
    waiters.told(&broker, ResetReason::EpochChanged, &[("a", 2)]).await;
}

/// Copies a server's directory, owners included.
async fn duplicate(from: &std::path::Path, to: &std::path::Path) {
    let copied = tokio::process::Command::new("cp").arg("-a").args([from, to]).status().await.unwrap();
    assert!(copied.success());
}

#[tokio::test]
async fn a_floor_that_was_moved_behind_the_brokers_back_is_another_line() {
    let server = Server::tuned(&[]).await;
    let proxy = Proxy::start(server.port).await;
    let behind = format!("postgres://postgres@{}/epochs_moved", proxy.address);
    let broker = Broker::start_at(&server, "epochs_moved", VMS, RULE, |config| {
        quick(config);
        config.postgres.url = Some(behind.as_str().into());
    })
    .await;
    let sql = connect(&broker.url).await;
    let (before, waiters) = (epoch(&broker).await, Waiters::park(&broker).await);
    proxy.blackhole();
    until("the live slot is gone", async || {
        value_of(&sql, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'epochs_moved_live'")
            .await
            == "0"
    })
    .await;
    run(&sql, "UPDATE vms SET pin = 2").await;
    run(&sql, "SELECT pg_replication_slot_advance('epochs_moved', pg_current_wal_lsn())").await;
    proxy.heal();
    waiters.told(&broker, ResetReason::EpochChanged, &[("a", 2)]).await;
    assert_ne!(epoch(&broker).await, before);
}

#[tokio::test]
async fn a_slot_that_is_another_one_after_a_restart_is_another_line() {
    let name = "epochs_restarted";
    let mut broker = Broker::start_with(name, VMS, RULE, quick).await;
    broker.run(COUNTED).await;
    let nothing = "SELECT".to_owned();
    let advance = format!("SELECT pg_replication_slot_advance('{name}', pg_current_wal_lsn())");
    for (what, sql, told) in [
        ("untouched", nothing.clone(), false),
        ("made again", remade(name), true),
        ("untouched after that", nothing, false),
        ("moved", advance, true),
    ] {
        broker.run("UPDATE vms SET pin = pin + 1").await;
        broker.catch_up().await;
        let old = broker.http.get("/v1/events?topic=vm/*&wait=0&after=now").await.cursor();
        let before = epoch(&broker).await;
        broker.stop().await.unwrap();
        broker.run("UPDATE vms SET pin = pin + 1").await;
        broker.run(&sql).await;
        let Broker { config, sql, .. } = broker;
        broker = Broker::on(name, config, sql).await;
        assert_eq!(epoch(&broker).await != before, told, "{what}");
        let late = broker.http.get(&format!("/v1/events?topic=vm/*&wait=0&after={old}")).await;
        if told {
            assert_eq!((late.status, late.problem().code.as_str()), (410, "epoch_changed"), "{what}");
            once(&broker, what).await;
        } else {
            assert_eq!(late.events().len(), 1, "{what}");
        }
    }
    assert_eq!(value_of(&broker.sql, "SELECT count(*) FROM generations").await, "0");
    assert!(broker.metric("walcast_rebuilds_total{reason=\"moved\"}").await >= 2.0);
}

/// Rules and the publication's tables may change: older transactions keep their cursors, also when they are read
/// again. Another publication or another name is another line.
#[tokio::test]
async fn what_changes_no_ordinal_resets_nobody() {
    const A: &str = "[[table]]\nname = 'public.a'\ntopic = 'a/{id}'\n";
    const B: &str = "[[table]]\nname = 'public.b'\ntopic = 'b/{id}'\n";
    const OTHER_A: &str = "[[table]]\nname = 'public.a'\ntopic = 'other/{id}'\nwhen = 'data.id != 5'\n";
    let name = "epochs_kept";
    let tables = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)";
    let mut broker = Broker::start_with(name, tables, A, quick).await;
    let rewind = |from: &str, to: &str| format!("SELECT pg_copy_logical_replication_slot('{from}', '{to}')");
    // To read again from here on.
    broker.run(&rewind(name, "epochs_kept_bookmark")).await;
    let (line, mut all) = (epoch(&broker).await, broker.follow(Transport::WebSocket, &["**"]).await);
    let transactions = async |broker: &Broker, first: i32| {
        for id in (first..first + 4).step_by(2) {
            let sql = "INSERT INTO b VALUES ($); INSERT INTO a VALUES ($); SELECT walcast.publish('m', '1');
                       INSERT INTO b VALUES (1000 + $); INSERT INTO a VALUES (1000 + $)";
            broker.run(&sql.replace('$', &id.to_string())).await;
        }
    };
    transactions(&broker, 1).await;
    let mut cursors = Vec::new();
    for _ in 0..6 {
        let event = all.next().await;
        cursors.push((event.cursor, event.data.to_string()));
    }

    broker.run(&format!("ALTER PUBLICATION {name} ADD TABLE b")).await;
    let rules = |text: &str| crate::broker::config("", name, text).table;
    broker.node().reloader().reload(&rules(&format!("{A}{B}"))).await.unwrap();
    assert_eq!(epoch(&broker).await, line, "a rule was added");
    transactions(&broker, 5).await;
    let mut topics = Vec::new();
    for _ in 0..10 {
        let event = all.next().await;
        topics.push(event.topic.to_string());
        if event.topic.as_str() != "a/5" {
            cursors.push((event.cursor, event.data.to_string()));
        }
    }
    assert_eq!(topics[..5], ["b/5", "a/5", "m", "b/1005", "a/1005"], "nobody was reset, and b is there");

    // Read again, by a broker that knows nothing, with other rules.
    broker.stop().await.unwrap();
    broker.run(&format!("SELECT pg_drop_replication_slot('{name}')")).await;
    broker.run(&rewind("epochs_kept_bookmark", name)).await;
    broker.config.table = rules(&format!("{OTHER_A}{B}"));
    let Broker { config, sql, .. } = broker;
    let mut broker = Broker::on(name, config, sql).await;
    assert_eq!(epoch(&broker).await, line, "templates and `when` number nothing");
    let mut again = broker.follow_after(Transport::WebSocket, &["**"], After::Cursor(cursors[0].0)).await;
    // All behind the first, but for a/5, which `when` leaves out now.
    for expected in &cursors[1..] {
        let event = again.next().await;
        assert_eq!((event.cursor, event.data.to_string()), *expected);
    }

    // The names are another matter.
    broker.stop().await.unwrap();
    let other = "CREATE PUBLICATION epochs_kept_2 FOR TABLE a, b WITH (publish_via_partition_root)";
    broker.run(other).await;
    broker.config.source.publication = "epochs_kept_2".into();
    let Broker { config, sql, .. } = broker;
    let mut broker = Broker::on(name, config, sql).await;
    let second = epoch(&broker).await;
    assert_ne!(second, line, "another publication");
    broker.stop().await.unwrap();
    broker.config.source.slot = "epochs_kept_3".into();
    local::set_up(&broker.config, false).await.unwrap();
    let Broker { config, sql, .. } = broker;
    let broker = Broker::on(name, config, sql).await;
    assert!(![line, second].contains(&epoch(&broker).await), "another source");
    for slot in [name, "epochs_kept_bookmark"] {
        broker.run(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    }
}
