//! What is committed arrives, and nothing else: the whole way from SQL to each transport.

use std::time::Duration;

use tokio_postgres::types::ToSql;
use walcast_client::{After, Transport};

use crate::broker::{Broker, MARK, connect, line, run, value_of};
use crate::server::Server;

const VMS: &str =
    "CREATE TABLE vms (hostname text PRIMARY KEY, crdcommand text, pin int, status text, logs text)";
const RULE: &str = r#"
[[table]]
name = "public.vms"
topic = "vm/{hostname}"
columns = ["hostname", "crdcommand", "pin"]
state = true
"#;

#[tokio::test]
async fn an_assignment_wakes_its_vm_on_every_transport() {
    let broker = Broker::start("delivery_assignment", VMS, RULE).await;
    for transport in [Transport::Poll, Transport::Sse, Transport::WebSocket] {
        let mut vm = broker.follow(transport, &["vm/host-17"]).await;
        broker.run("INSERT INTO vms VALUES ('host-16', 'x', 1), ('host-17', 'start', 4711)").await;
        broker.run("DELETE FROM vms").await;
        assert_eq!(
            vm.lines(2).await,
            [
                r#"vm/host-17 insert {"crdcommand":"start","hostname":"host-17","pin":4711}"#,
                r#"vm/host-17 delete {"hostname":"host-17"}"#
            ]
        );
    }
}

#[tokio::test]
async fn a_vm_that_boots_late_gets_its_assignment_at_once() {
    let mut broker = Broker::start("delivery_late", VMS, RULE).await;
    broker.run("INSERT INTO vms VALUES ('host-17', 'start', 4711)").await;
    broker.catch_up().await;
    let late = broker.poll(&["vm/host-17"], After::Current).await;
    assert_eq!(late.iter().map(line).collect::<Vec<_>>(), [SNAPSHOT]);
    // Also when the broker came after the assignment: seeding reads it.
    broker.stop().await.unwrap();
    let sql = broker.session().await;
    let broker = Broker::on(&broker.name, broker.config, sql).await;
    let late = broker.poll(&["vm/host-17"], After::Current).await;
    assert_eq!(late.iter().map(line).collect::<Vec<_>>(), [SNAPSHOT]);
    assert_eq!(broker.readiness().await.0, 200);
}
const SNAPSHOT: &str = r#"vm/host-17 snapshot {"crdcommand":"start","hostname":"host-17","pin":4711}"#;

const LEDGER: &str = "CREATE TABLE ledger (id bigint PRIMARY KEY, writer int, n int)";
const LEDGER_RULE: &str = r#"
[[table]]
name = "public.ledger"
topic = "ledger/{writer}"
columns = ["id", "n"]
"#;

#[tokio::test]
async fn what_was_rolled_back_never_arrives_and_nothing_else_is_lost() {
    let broker = Broker::start("delivery_rollback", LEDGER, LEDGER_RULE).await;
    let mut followers = Vec::new();
    for transport in Transport::ALL {
        followers.push(broker.follow(transport, &["**"]).await);
    }
    let gone = "INSERT INTO ledger SELECT count(*) + 99, 9, 9 FROM ledger;
        SELECT walcast.publish('m', '\"gone\"');";
    broker.run(&format!("BEGIN; {gone} ROLLBACK")).await;
    let failed = format!("BEGIN; {gone} SELECT 1 / 0");
    broker.sql.batch_execute(&failed).await.unwrap_err();
    broker.run("ROLLBACK").await;
    broker
        .run(&format!(
            "BEGIN; SELECT walcast.publish('m', '1'); INSERT INTO ledger VALUES (1, 0, 1);
             SAVEPOINT a; {gone} SAVEPOINT b; {gone} UPDATE ledger SET n = 9; RELEASE b; ROLLBACK TO a;
             SELECT walcast.publish('m', '2');
             SAVEPOINT c; SAVEPOINT d; SELECT walcast.publish('m', '3'); {gone} ROLLBACK TO d;
             {gone} ROLLBACK TO d; SELECT walcast.publish('m', '4'); RELEASE c;
             SELECT walcast.publish('m', '5'); UPDATE ledger SET n = 2; SAVEPOINT e; DELETE FROM ledger; ROLLBACK TO e; COMMIT"
        ))
        .await;
    // As exception handlers in functions do it.
    broker
        .run(&format!(
            "DO $$ BEGIN
                PERFORM walcast.publish('m', '6');
                BEGIN {} RAISE 'no'; EXCEPTION WHEN raise_exception THEN PERFORM walcast.publish('m', '7'); END;
                BEGIN PERFORM walcast.publish('m', '8'); EXCEPTION WHEN raise_exception THEN NULL; END;
             END $$",
            gone.replace("SELECT walcast", "PERFORM walcast")
        ))
        .await;
    let expected = [
        "m message 1",
        r#"ledger/0 insert {"id":1,"n":1}"#,
        "m message 2",
        "m message 4",
        "m message 5",
        r#"ledger/0 update {"id":1,"n":2}"#,
        "m message 6",
        "m message 7",
        "m message 8",
    ];
    for mut follower in followers {
        assert_eq!(broker.rest_lines(&mut follower).await[..expected.len()], expected);
    }
}

#[tokio::test]
async fn a_transaction_ends_where_last_says() {
    let small = |config: &mut walcast::config::Config| config.pipeline.atomic_events_max = 6;
    let broker = Broker::start_with("delivery_last", LEDGER, LEDGER_RULE, small).await;
    let mut all = broker.follow(Transport::WebSocket, &["a", "b", "ledger/*", MARK]).await;
    let mut check = async |sql: &str, expected: &[(&str, bool, bool)]| {
        broker.run(&format!("BEGIN; {sql}; COMMIT")).await;
        let events = broker.rest(&mut all).await;
        let seen: Vec<_> =
            events.iter().map(|event| (event.topic.as_str(), event.last, event.partial)).collect();
        assert_eq!(seen, expected, "{sql}");
    };
    let a = "SELECT walcast.publish('a', '1')";
    let b = "SELECT walcast.publish('b', '1')";
    let row = "INSERT INTO ledger SELECT coalesce(max(id), 0) + 1, 1, 1 FROM ledger";
    check(a, &[("a", true, false)]).await;
    check(
        &format!("{a}; {b}; {a}; {row}; {a}; {row}"),
        &[
            ("a", false, false),
            ("b", true, false),
            ("a", false, false),
            ("ledger/1", false, false),
            ("a", true, false),
            ("ledger/1", true, false),
        ],
    )
    .await;
    let partial = ["a", "b", "a", "ledger/1", "a", "a", "b"].map(|topic| (topic, false, true));
    check(&format!("{a}; {b}; {a}; {row}; {a}; {a}; {b}"), &partial).await;
    let many = format!("{a} FROM generate_series(1, 20)");
    check(&many, &[("a", false, true); 20]).await;
    check(b, &[("b", true, false)]).await;
}

#[tokio::test]
async fn what_is_delivered_can_be_read() {
    const WRITERS: usize = 8;
    const TRIES: usize = 1250;
    let broker = Broker::start("delivery_visible", LEDGER, LEDGER_RULE).await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (writes, reads) = (broker.session().await, broker.session().await);
        let mut follower = broker.follow(Transport::ALL[writer % 3], &[&format!("ledger/{writer}")]).await;
        tasks.spawn(async move {
            let insert = writes.prepare("INSERT INTO ledger VALUES ($1, $2, 0)").await.unwrap();
            let read = reads.prepare("SELECT FROM ledger WHERE id = $1").await.unwrap();
            let mut missed = 0;
            for n in 0..TRIES {
                let id = (n * WRITERS + writer) as i64;
                let writer = writer as i32;
                let row: [&(dyn ToSql + Sync); 2] = [&id, &writer];
                let (written, found) = tokio::join!(writes.execute(&insert, &row), async {
                    let event = follower.next().await;
                    assert_eq!(event.data["id"], id);
                    reads.query_opt(&read, &[&id]).await.unwrap().is_some()
                });
                written.unwrap();
                missed += usize::from(!found);
            }
            missed
        });
    }
    let missed: usize = tasks.join_all().await.into_iter().sum();
    assert_eq!(missed, 0, "of {}", WRITERS * TRIES);
}

#[tokio::test]
async fn a_prepared_transaction_arrives_when_it_commits() {
    let broker = Broker::start("delivery_prepared", LEDGER, LEDGER_RULE).await;
    let mut all = broker.follow(Transport::Sse, &["**"]).await;
    for (id, name) in [(1, "kept"), (2, "dropped")] {
        broker
            .run(&format!(
                "BEGIN; INSERT INTO ledger VALUES ({id}, 0, 0); SELECT walcast.publish('m', '\"{name}\"');
                 PREPARE TRANSACTION 'delivery_{name}'"
            ))
            .await;
    }
    let meanwhile = broker.rest_lines(&mut all).await;
    broker.run("ROLLBACK PREPARED 'delivery_dropped'").await;
    broker.run("COMMIT PREPARED 'delivery_kept'").await;
    let after = broker.rest_lines(&mut all).await;
    assert_eq!(meanwhile, [""; 0]);
    assert_eq!(after, [r#"ledger/0 insert {"id":1,"n":0}"#, r#"m message "kept""#]);
}

#[tokio::test]
async fn a_large_transaction_passes_while_others_publish() {
    const ROWS: u64 = 200_000;
    let broker = Broker::start("delivery_large", LEDGER, LEDGER_RULE).await;
    let mut small = broker.follow(Transport::WebSocket, &["small"]).await;
    let start = broker.http.get("/v1/events?topic=ledger/*&after=now&wait=0").await.cursor();
    let large = broker.session().await;
    run(&large, "BEGIN").await;
    let insert = format!("INSERT INTO ledger SELECT n, 0, n FROM generate_series(1, {ROWS}) n");
    let inserting = tokio::spawn(async move {
        run(&large, &insert).await;
        large
    });
    let mut published = 0;
    let mut publish = async || {
        published += 1;
        broker.run(&format!("SELECT walcast.publish('small', '{published}')")).await;
        assert_eq!(small.next().await.data, published);
    };
    // Delivered while the large one is open.
    while !inserting.is_finished() {
        publish().await;
    }
    let large = inserting.await.unwrap();
    publish().await;
    run(&large, "COMMIT").await;
    let after = async {
        let (mut cursor, mut seen) = (start, 0);
        while seen < ROWS {
            let target = format!("/v1/events?topic=ledger/*&limit=1000&after={cursor}");
            let page = broker.http.get(&target).await;
            cursor = page.cursor();
            for n in page.body.split("\"n\":").skip(1) {
                seen += 1;
                let digits: String = n.chars().take_while(char::is_ascii_digit).collect();
                assert_eq!(digits.parse(), Ok(seen));
            }
            assert!(page.body.contains("\"partial\":true") && !page.body.contains("\"last\":true"));
        }
    };
    let others = async {
        for _ in 0..20 {
            publish().await;
        }
    };
    tokio::join!(after, others);
}

#[tokio::test]
async fn what_is_delivered_outlives_a_crash_also_where_commits_do_not_wait_for_the_disk() {
    // Long between two writes of the log, so that each crash takes commits with it.
    let settings = [("synchronous_commit", "off"), ("wal_writer_delay", "300ms")];
    let server = Server::tuned(&settings).await;
    let ddl = "CREATE TABLE t (n bigint PRIMARY KEY)";
    let rule = "[[table]]\nname = 'public.t'\ntopic = 't'";
    let mut broker = Broker::start_at(&server, "delivery_crash", ddl, rule, |config| {
        config.source.shutdown_pause = Duration::from_millis(50);
    })
    .await;
    assert_eq!(value_of(&broker.sql, "SELECT current_setting('synchronous_commit')").await, "off");
    let mut follower = broker.follow(Transport::WebSocket, &["t"]).await;
    let mut n = 0_i64;
    for round in 0..3 {
        let sql = broker.session().await;
        let writer = tokio::spawn(async move {
            // Until the server is gone.
            while sql.execute("INSERT INTO t VALUES ($1)", &[&n]).await.is_ok() {
                n += 1;
            }
            n
        });
        let mut told = Vec::new();
        while told.len() < 50 {
            told.push(follower.next().await.data["n"].as_i64().unwrap());
        }
        server.crash().await;
        n = writer.await.unwrap() + 1;
        server.start_again().await;
        broker.sql = connect(&broker.url).await;
        // And what was under way, too.
        run(&broker.sql, &format!("INSERT INTO t VALUES ({n})")).await;
        while told.last() != Some(&n) {
            told.push(follower.next().await.data["n"].as_i64().unwrap());
        }
        n += 1;
        let rows = broker.sql.query("SELECT n FROM t ORDER BY n", &[]).await.unwrap();
        let rows: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        let from = rows.partition_point(|row| *row < told[0]);
        assert_eq!(told, rows[from..], "round {round}");
        println!(
            "{} of {n} inserts are gone with crashes, and nobody had heard of them",
            n - rows.len() as i64
        );
    }
}
