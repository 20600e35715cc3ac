//! SIGHUP: rules change while everything flows, or stay as they are and say why.

use std::time::Duration;

use serde_json::json;
use walcast::config::Config;
use walcast_client::{After, EventsRequest, Message, Transport};

use crate::broker::{Broker, Follower, connect, patterns, prepare, run, until, value_of, within};
use crate::plain::get;
use crate::server::{self, Server};
use crate::serving::{self, Process};

const TABLES: &str =
    "CREATE TABLE a (id int PRIMARY KEY, data text); CREATE TABLE b (id int PRIMARY KEY, data text);
                      CREATE TABLE c (id int PRIMARY KEY, data text)";
const A: &str = "[[table]]\nname = 'public.a'\ntopic = 'a/{id}'\n";
const B: &str = "[[table]]\nname = 'public.b'\ntopic = 'b/{id}'\n";
const B_STATE: &str = "[[table]]\nname = 'public.b'\ntopic = 'b/{id}'\nstate = true\n";

async fn state(process: &Process, topic: &str) -> u16 {
    get(&process.http, &format!("/v1/state/{topic}")).await.0
}

#[tokio::test]
async fn rules_are_read_again() {
    let name = "reload_rules";
    let url = server::create(name).await;
    prepare(&url, name, TABLES, &format!("{A}{B}")).await;
    let sql = connect(&url).await;
    run(&sql, "INSERT INTO b SELECT n, 'old' FROM generate_series(1, 3000) n").await;
    let text = |rules: &str| serving::settings(&url, name, "lease = '1s'", rules);
    let process = Process::start(name, &text(A)).await;
    process.ready().await;
    let mut now = EventsRequest::new(patterns(&["**"])).after(After::Now);
    now.wait = Some(Duration::ZERO);
    let cursor = process.client.poll(&now).await.unwrap().cursor;
    let request = EventsRequest::new(patterns(&["**"])).after(After::Cursor(cursor));
    let mut all = Follower(process.client.open(Transport::WebSocket, request).await.unwrap());
    run(&sql, "INSERT INTO a VALUES (1, 'x'); INSERT INTO b VALUES (-1, 'unseen')").await;
    assert_eq!(all.next().await.topic.as_str(), "a/1");

    // What is wrong changes nothing, and is told until it is put right.
    let wrong = [
        "[[table]\n".to_owned(),
        "[[table]]\nname = 'public.absent'\ntopic = 'x'\n".to_owned(),
        format!("{A}[[table]]\nname = 'public.c'\ntopic = 'c/{{id}}'\n"), // not in the publication
        format!("{A}{}", A.replace("a/", "b/")),
    ];
    for rules in wrong {
        process.rewrite(&text(A));
        process.signal("HUP");
        until("the rules are well", async || !process.readiness().await.1.contains("\"rules\"")).await;
        process.rewrite(&text(&rules));
        process.signal("HUP");
        until("the refusal is told", async || {
            let (status, body) = process.readiness().await;
            assert_eq!(status, 200, "{body}");
            body.contains("\"rules\":\"the new rules were not taken")
        })
        .await;
    }
    run(&sql, "INSERT INTO a VALUES (2, 'x')").await;
    assert_eq!(all.next().await.topic.as_str(), "a/2");

    // Another template, and a new rule: as soon as one speaks, so does the other.
    process.rewrite(&text(&format!("{}{B}", A.replace("a/", "new/"))));
    process.signal("HUP");
    let mut id = 10;
    loop {
        id += 1;
        run(&sql, &format!("INSERT INTO a VALUES ({id}, 'x')")).await;
        if all.next().await.topic.as_str() == format!("new/{id}") {
            break;
        }
    }
    assert_eq!(process.readiness().await.0, 200);
    run(&sql, "UPDATE b SET data = 'y' WHERE id = -1").await;
    assert_eq!(all.next().await.topic.as_str(), "b/-1");
    assert_eq!(state(&process, "b/7").await, 404);

    // A rule that keeps values: what the table held before is there, and what changes meanwhile is, too.
    let writing = tokio::spawn({
        let sql = connect(&url).await;
        async move {
            for id in 1..=300 {
                run(
                    &sql,
                    &format!(
                        "UPDATE b SET data = 'new' WHERE id = {id}; DELETE FROM b WHERE id = {id} + 1000"
                    ),
                )
                .await;
            }
        }
    });
    process.rewrite(&text(&format!("{A}{B_STATE}")));
    process.signal("HUP");
    until("values are kept", async || state(&process, "b/3000").await == 200).await;
    writing.await.unwrap();
    run(&sql, "SELECT walcast.publish('mark', 'null')").await;
    while all.next().await.topic.as_str() != "mark" {}
    process.ready().await;
    let request = EventsRequest::new(patterns(&["b/*"]));
    let found = process.client.poll(&request).await.unwrap();
    let mut found: Vec<serde_json::Value> =
        found.events.iter().map(|event| serde_json::from_str(event.data.get()).unwrap()).collect();
    found.sort_by_key(|row| row["id"].as_i64());
    let table = value_of(&sql, "SELECT json_agg(b ORDER BY id) FROM b").await;
    assert_eq!(json!(found), serde_json::from_str::<serde_json::Value>(&table).unwrap());

    // The rule goes, and its values with it.
    process.rewrite(&text(A));
    process.signal("HUP");
    until("they are forgotten", async || state(&process, "b/7").await == 404).await;
    until("readiness comes back", async || process.readiness().await.0 == 200).await;
}

/// A file that is gone is no file without rules, also where no flag names it.
#[tokio::test]
async fn a_file_that_is_gone_takes_no_rules_away() {
    let name = "reload_gone";
    let url = server::create(name).await;
    prepare(&url, name, TABLES, &format!("{A}state = true")).await;
    run(&connect(&url).await, "INSERT INTO a VALUES (1, 'x')").await;
    let text = |more: &str| serving::settings(&url, name, more, &format!("{A}state = true"));
    let mut process = Process::beside(name, &text("")).await;
    process.ready().await;
    until("the value is there", async || state(&process, "a/1").await == 200).await;

    let away = format!("{}.away", process.file);
    std::fs::rename(&process.file, &away).unwrap();
    process.signal("HUP");
    let refusal = "the new rules were not taken: walcast.toml: cannot be read";
    until("the refusal is told", async || process.readiness().await.1.contains(refusal)).await;
    process.said("SIGHUP: the old rules stay").await;
    assert_eq!(state(&process, "a/1").await, 200);

    // Back, and with it a setting that only a restart brings into force.
    std::fs::rename(&away, &process.file).unwrap();
    process.rewrite(&text("lease = '9s'"));
    process.signal("HUP");
    process.said("SIGHUP: source.lease changed since the start, which needs a restart").await;
    process.said("SIGHUP: new rules taken rules=1").await;
    assert_eq!(state(&process, "a/1").await, 200);
    process.stop().await.succeeded();
}

/// What a process says goes to logs, which are read line by line.
#[tokio::test]
async fn several_faults_are_one_line() {
    let name = "reload_faults";
    let url = server::create(name).await;
    prepare(&url, name, TABLES, A).await;
    let text = |rules: &str| serving::settings(&url, name, "", rules);
    let process = Process::start(name, &text(A)).await;
    process.ready().await;
    let absent = |table: &str| format!("[[table]]\nname = 'public.{table}'\ntopic = 'x/{{id}}'\n");
    process.rewrite(&text(&format!("{A}{}{}", absent("absent"), absent("missing"))));
    process.signal("HUP");
    until("the refusal is told", async || process.readiness().await.1.contains("public.missing")).await;
    let ended = process.stop().await;
    let told: Vec<_> = ended.err.lines().filter(|line| line.contains("public.missing")).collect();
    assert_eq!(told.len(), 1, "{ended:?}");
    assert!(told[0].contains("ERROR") && told[0].contains("public.absent"), "{ended:?}");
}

/// What was written while a table was not published no event tells: followers begin anew, with values read anew.
#[tokio::test]
async fn a_table_that_was_not_published_for_a_while_is_read_again() {
    let name = "reload_unpublished";
    let a_state = format!("{A}state = true\n");
    let c = "[[table]]\nname = 'public.c'\ntopic = 'c'\n";
    let broker = Broker::start(name, TABLES, &format!("{a_state}{B_STATE}{c}")).await;
    let mut plain = broker.follow(Transport::Sse, &["c"]).await;
    let mut follower = broker.follow(Transport::WebSocket, &["b/*"]).await;
    let mut other = broker.follow(Transport::WebSocket, &["a/*"]).await;
    broker.run("INSERT INTO b VALUES (1, 'x'), (2, 'x')").await;
    assert_eq!((follower.next().await.topic.as_str(), follower.next().await.topic.as_str()), ("b/1", "b/2"));
    broker.run(&format!("ALTER PUBLICATION {name} DROP TABLE b, c")).await;
    until("it is missed", async || broker.readiness().await.0 == 503).await;
    broker.run("UPDATE b SET data = 'y' WHERE id = 1; DELETE FROM b WHERE id = 2").await;
    broker.run("INSERT INTO c VALUES (1, 'missed')").await;
    broker.run(&format!("ALTER PUBLICATION {name} ADD TABLE b, c")).await;
    until("its values are those of the table", async || {
        broker.run("SELECT walcast.publish('other', 'null')").await;
        let found = broker.client.poll(&EventsRequest::new(patterns(&["b/*"]))).await;
        found.is_ok_and(|found| found.events.len() == 1 && found.events[0].data.get().contains("\"y\""))
    })
    .await;
    let reset = within("a reset", follower.0.next()).await;
    assert!(matches!(reset, Ok(Some(Message::Reset(_)))), "{reset:?}");
    let event = follower.next().await;
    assert_eq!((event.topic.as_str(), &event.data["data"]), ("b/1", &json!("y")));
    assert!(matches!(within("a reset", plain.0.next()).await, Ok(Some(Message::Reset(_)))), "nor values");
    broker.run("INSERT INTO a VALUES (1, 'x')").await;
    assert_eq!(other.next().await.topic.as_str(), "a/1", "other tables' followers are told nothing");
}

/// Who follows rows that are no members by the new rule is told so, also by a broker that was started after the rule
/// changed, and where nobody writes anything.
#[tokio::test]
async fn what_a_reload_withdrew_stays_withdrawn_over_a_restart() {
    let server = Server::tuned(&[]).await;
    let name = "reload_withdrawn";
    let mut broker = Broker::start_at(&server, name, TABLES, B_STATE, |_| ()).await;
    broker.run("INSERT INTO b VALUES (1, 'x'), (2, 'x')").await;
    broker.catch_up().await;
    let away = broker.http.get("/v1/events?topic=b/*&wait=0").await;
    assert_eq!(away.events().len(), 2);
    let lsn = value_of(&broker.sql, "SELECT pg_current_wal_insert_lsn()").await;
    let narrower = format!("{B_STATE}when = 'data.id > 1'\n");
    let rules = crate::broker::config("", name, &narrower).table;
    broker.node().reloader().reload(&rules).await.unwrap();
    let moved =
        format!("SELECT confirmed_flush_lsn >= '{lsn}' FROM pg_replication_slots WHERE slot_name = '{name}'");
    until("the floor follows", async || value_of(&broker.sql, &moved).await == "true").await;
    broker.config.table = rules;
    let broker = broker.restart().await;
    let back = broker.http.get(&format!("/v1/events?topic=b/*&after={}", away.cursor())).await;
    assert_eq!(back.status, 410, "{}", back.body);
    let resume = back.problem().resume.unwrap();
    let resumed = broker.http.get(&format!("/v1/events?topic=b/*&after={resume}")).await;
    assert_eq!(resumed.events(), [r#"b/2 {"data":"x","id":2}"#]);
}

/// A reading that breaks off with the stream is made up for when the stream is back.
#[tokio::test]
async fn values_that_could_not_be_read_are_read_later() {
    let name = "reload_interrupted";
    let quick = |config: &mut Config| config.source.shutdown_pause = Duration::from_millis(50);
    let broker = Broker::start_with(name, TABLES, A, quick).await;
    let c = "[[table]]\nname = 'public.c'\ntopic = 'c/{id}'\nstate = true\n";
    broker.run(&format!("INSERT INTO b VALUES (1, 'x'); ALTER PUBLICATION {name} ADD TABLE b, c")).await;
    broker.run("INSERT INTO c VALUES (1, 'x')").await;
    let rules = |text: &str| crate::broker::config("", name, &format!("{c}{text}")).table;
    let reloader = broker.node().reloader();
    reloader.reload(&rules(A)).await.unwrap();
    broker.catch_up().await;
    broker.ready().await;

    // The table is locked, so that the reading is under way for as long as the test wants.
    let locker = broker.session().await;
    run(&locker, "BEGIN; LOCK TABLE b IN ACCESS EXCLUSIVE MODE").await;
    reloader.reload(&rules(&format!("{A}{B_STATE}"))).await.unwrap();
    let reading = "SELECT count(*) FROM pg_locks WHERE relation = 'b'::regclass AND NOT granted";
    until("the reading waits", async || value_of(&locker, reading).await == "1").await;
    let mut follower = broker.follow(Transport::WebSocket, &["a/*"]).await;
    broker.run("INSERT INTO a VALUES (1, 'x')").await;
    assert_eq!(follower.next().await.topic.as_str(), "a/1", "others do not wait for it");
    // Whoever asks for other values is answered, also while they change.
    broker.run("UPDATE c SET data = 'y'; INSERT INTO c VALUES (2, 'y')").await;
    broker.catch_up().await;
    assert_eq!(broker.poll(&["c/*"], After::Current).await.len(), 2);
    let mut held = EventsRequest::new(patterns(&["b/1"])).after(After::Current);
    held.wait = Some(Duration::ZERO);
    assert!(broker.client.poll(&held).await.is_err(), "the value is not known");
    let (status, body) = broker.readiness().await;
    assert_eq!(status, 503, "{body}");
    assert!(body.to_string().contains("reading current values of public.b, at"), "{body}");
    let kill = "SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE database = current_database() AND active";
    assert_eq!(value_of(&locker, kill).await, "1");
    until("the stream is down", async || !broker.node().problems().is_empty()).await;
    run(&locker, "COMMIT").await;
    broker.ready().await;
    let values = broker.poll(&["b/1"], After::Current).await;
    assert_eq!(values.len(), 1);
}

/// Values that may not be read do not stop what needs none.
#[tokio::test]
async fn a_table_that_may_not_be_read_stops_nobody_else() {
    let name = "reload_denied";
    let url = server::create(name).await;
    let config = prepare(&url, name, TABLES, &format!("{A}{B}")).await;
    let sql = connect(&url).await;
    run(
        &sql,
        &format!(
            "CREATE ROLE {name} LOGIN REPLICATION; GRANT USAGE ON SCHEMA walcast TO {name};
        GRANT ALL ON ALL TABLES IN SCHEMA walcast TO {name}; INSERT INTO b VALUES (1, 'x')"
        ),
    )
    .await;
    let mut config = config;
    config.postgres.url = Some(url.replace("postgres@", &format!("{name}@")).as_str().into());
    config.table = crate::broker::config("", name, A).table;
    let broker = Broker::on(name, config, sql).await;
    let mut follower = broker.follow(Transport::WebSocket, &["a/*"]).await;
    let rules = crate::broker::config("", name, &format!("{A}{B_STATE}")).table;
    if let Err(error) = broker.node().reloader().reload(&rules).await {
        // Refusing at once is as good.
        assert!(error.to_string().contains("GRANT SELECT"), "{error}");
    } else {
        until("it is told", async || broker.node().problems().contains("GRANT SELECT ON public.b")).await;
        assert_eq!(broker.readiness().await.0, 503);
    }
    broker.run("INSERT INTO a VALUES (1, 'x')").await;
    assert_eq!(follower.next().await.topic.as_str(), "a/1");
    broker.run(&format!("GRANT SELECT ON b TO {name}")).await;
    broker.node().reloader().reload(&rules).await.unwrap();
    // The rules are taken between two transactions, a moment after they are accepted.
    until("the value is told", async || {
        let mut request = EventsRequest::new(patterns(&["b/1"])).after(After::Current);
        request.wait = Some(Duration::ZERO);
        broker.client.poll(&request).await.is_ok_and(|reply| reply.events.len() == 1)
    })
    .await;
    broker.ready().await;
}
