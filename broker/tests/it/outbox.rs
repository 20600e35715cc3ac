//! What only the outbox can get wrong: who may make ticks, what is let go of, and what a transaction that stays open
//! holds up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_postgres::Client as Sql;
use tokio_util::task::AbortOnDropHandle;
use walcast_client::{After, EventsRequest, Message, Transport};

use crate::broker::{MARK, Way, config, connect, patterns, run, until, value, value_of, within};
use crate::serving::{self, Process};
use crate::wait::{LIMIT, until_limit};

/// So often, or so much, unless `WALCAST_SOAK=1` asks for more.
fn amount(few: u64, many: u64) -> u64 {
    if std::env::var_os("WALCAST_SOAK").is_some_and(|soak| soak == "1") { many } else { few }
}

/// Numbers that look random; the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

const WRITERS: u64 = 8;
/// Rows that all write to, so that each sees what others did.
const ROWS: u64 = 40;
const COUNTERS: &str = "CREATE TABLE counters (id int PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 20);
    INSERT INTO counters SELECT i, 0 FROM generate_series(1, 40) i";

/// When which count of which row was committed.
type Committed = Arc<Mutex<BTreeMap<(u64, u64), Instant>>>;

/// Counts rows up, publishing each step, in transactions that pause and sometimes roll back, until so many are done.
async fn write(sql: Sql, writer: u64, steps: u64, committed: Committed) {
    const STEP: &str = "WITH step AS (UPDATE counters SET n = n + 1 WHERE id = $1 RETURNING n)
        SELECT n, walcast.publish('count/' || $1::text, to_jsonb(n))::text FROM step";
    let step = sql.prepare_typed(STEP, &[tokio_postgres::types::Type::INT4]).await.unwrap();
    let mut numbers = Numbers(writer + 1);
    let mut done = 0;
    while done < steps {
        // In one order, or they would wait for each other for ever.
        let mut rows: Vec<u64> = (0..=numbers.below(25)).map(|_| numbers.below(ROWS) + 1).collect();
        rows.sort_unstable();
        rows.dedup();
        // An id that is older than what is to be seen.
        run(&sql, "BEGIN; SELECT walcast.publish('begin', '0')").await;
        let mut counted = Vec::new();
        for row in rows {
            let found = sql.query_one(&step, &[&i32::try_from(row).unwrap()]).await.unwrap();
            counted.push((row, u64::try_from(found.get::<_, i64>(0)).unwrap()));
            if numbers.below(20) == 0 {
                tokio::time::sleep(Duration::from_millis(numbers.below(4))).await;
            }
        }
        if numbers.below(10) == 0 {
            run(&sql, "ROLLBACK").await;
            continue;
        }
        run(&sql, "COMMIT").await;
        let now = Instant::now();
        done += counted.len() as u64;
        committed.lock().extend(counted.into_iter().map(|step| (step, now)));
    }
}

async fn nothing_is_lost_while_one_transaction_stays_open(way: Way) {
    // The pooler is the same whatever comes through.
    let steps = amount(if way == Way::Pooled { 10_000 } else { 50_000 }, 1_000_000) / WRITERS;
    let broker = way.start("outbox_open", COUNTERS, "").await;
    let late = broker.session().await;
    run(&late, "BEGIN; SELECT walcast.publish('late', to_jsonb(i)) FROM generate_series(1, 3000) i").await;
    let mut follower = broker.follow(Transport::WebSocket, &["count/*", "late", MARK]).await;
    let committed = Committed::default();
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let sql = broker.session().await;
        writers.push(tokio::spawn(write(sql, writer, steps, Arc::clone(&committed))));
    }
    let mut at: BTreeMap<u64, u64> = BTreeMap::new();
    let mut delays = Vec::new();
    let (mut lates, mut open) = (0, true);
    let closed = AtomicBool::new(false);
    let begun = Instant::now();
    loop {
        let event = follower.next().await;
        let n = event.data.as_u64();
        match (event.topic.as_str(), n) {
            ("late", Some(n)) => {
                assert!(closed.load(Ordering::Relaxed), "before it was committed");
                lates += 1;
                assert_eq!(n, lates);
            }
            (MARK, _) => {
                if event.data == "end" {
                    break;
                }
            }
            (topic, Some(n)) => {
                let row = topic.trim_start_matches("count/").parse().unwrap();
                let last = at.entry(row).or_default();
                // Whoever counted it up had seen the count before.
                assert_eq!(n, *last + 1, "{topic}");
                *last = n;
                if open && let Some(then) = committed.lock().remove(&(row, n)) {
                    delays.push(then.elapsed());
                }
            }
            other => panic!("{other:?}"),
        }
        // For 15 s, or for as long as the writers write, whichever is longer.
        let done = writers.iter().all(tokio::task::JoinHandle::is_finished);
        if open && done && begun.elapsed() > Duration::from_millis(amount(0, 15_000)) {
            open = false;
            closed.store(true, Ordering::Relaxed);
            run(&late, "COMMIT").await;
            run(&broker.sql, &format!("SELECT walcast.publish('{MARK}', '\"end\"')")).await;
        } else if open && done {
            // Something has to come, to look again.
            run(&broker.sql, &format!("SELECT walcast.publish('{MARK}', '0')")).await;
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(lates, 3000);
    let table = value_of(&broker.sql, "SELECT json_object_agg(id, n) FROM counters WHERE n > 0").await;
    let table: BTreeMap<u64, u64> = serde_json::from_str(&table).unwrap();
    assert_eq!(at, table, "the last count of each row is its final one, and nothing was rolled back");
    delays.sort_unstable();
    let part = |part: usize| delays.get(delays.len() * part / 100).copied().unwrap_or_default();
    println!(
        "{way:?}: {} events in {:?}; beside an open transaction p50 {:?}, p99 {:?}",
        table.values().sum::<u64>(),
        begun.elapsed(),
        part(50),
        part(99)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_one_stays_open() {
    nothing_is_lost_while_one_transaction_stays_open(Way::Outbox).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_one_stays_open_behind_a_pooler() {
    nothing_is_lost_while_one_transaction_stays_open(Way::Pooled).await;
}

/// Bytes, rows and dead rows of all that grows.
const SIZE: &str = "SELECT json_build_array(sum(pg_total_relation_size(c.oid)),
        (SELECT count(*) FROM walcast.outbox), sum(pg_stat_get_dead_tuples(c.oid)))
    FROM pg_class c WHERE c.oid::regclass::text ~ '^walcast.(outbox|tick)_[0-7]$'";

#[tokio::test]
async fn what_nobody_needs_is_let_go_of_and_leaves_no_dead_rows() {
    let broker = Way::Outbox
        .start_with("outbox_trim", "", "", |config| config.history.age = Duration::from_secs(1))
        .await;
    broker.run("UPDATE walcast.settings SET lane_seconds = 1").await;
    let size = async || -> [i64; 3] { serde_json::from_str(&value_of(&broker.sql, SIZE).await).unwrap() };
    let [empty, ..] = size().await;
    let events = amount(20_000, 1_000_000);
    let mut largest = 0;
    for _ in 0..10 {
        let some = events / 10;
        let sql = format!(
            "SELECT walcast.publish('m', to_jsonb(repeat('x', 100))) FROM generate_series(1, {some})"
        );
        broker.run(&sql).await;
        broker.run(&format!("BEGIN; {sql} LIMIT 100; ROLLBACK")).await;
        broker.catch_up().await;
        largest = largest.max(size().await[0]);
    }
    // No longer than it keeps history, a turn of the lanes, and the pause between two trims.
    until_limit(LIMIT * 3, "the outbox is empty", async || {
        broker.run("SELECT pg_stat_clear_snapshot()").await;
        let [_, rows, dead] = size().await;
        rows == 0 && dead == 0
    })
    .await;
    let [left, ..] = size().await;
    println!("{events} events: {empty} bytes at first, {largest} at most, {left} in the end");
    // Ticks stay for longer, and they are small.
    assert!(left < empty + (1 << 20), "{left} bytes are left of {largest}");
    let gauge = async |name: &str| {
        broker.metric(&format!("walcast_outbox_{name}{{source=\"outbox_trim_outbox\"}}")).await
    };
    until("it is known that no row is left", async || gauge("lanes").await == 0.0).await;
    assert!(gauge("bytes").await >= empty as f64 && gauge("looked_timestamp_seconds").await > 1.7e9);
}

#[tokio::test]
async fn a_cursor_from_before_a_silence_outlives_a_restart() {
    let broker = Way::Outbox
        .start_with("outbox_quiet", "", "", |config| config.history.age = Duration::from_secs(1))
        .await;
    broker.run("UPDATE walcast.settings SET lane_seconds = 1").await;
    broker.run("SELECT walcast.publish('m', '1')").await;
    broker.catch_up().await;
    let place = broker.place().await;
    let kept = "SELECT kept FROM walcast.outbox_reader";
    let last = value_of(&broker.sql, "SELECT max(id) FROM walcast.tick").await;
    until("all of it is let go of", async || value_of(&broker.sql, kept).await == last).await;
    let broker = broker.restart().await;
    assert!(broker.poll(&["m"], After::Cursor(place)).await.is_empty(), "nothing was missed");
    let mut follower = broker.follow_after(Transport::Sse, &["m"], After::Cursor(place)).await;
    broker.run("SELECT walcast.publish('m', '2')").await;
    assert_eq!(follower.lines(1).await, ["m message 2"]);
}

/// Cursors and data.
type Told = Arc<Mutex<Vec<(String, String)>>>;

/// Reads what a broker tells on `m`, until `end`; again and again while it stands by.
async fn collect(url: String, told: Told) {
    let client = walcast_client::Client::new(&url).unwrap();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    loop {
        tick.tick().await;
        let request = EventsRequest::new(patterns(&["m"])).after(After::Earliest);
        let Ok(mut stream) = client.open(Transport::WebSocket, request).await else { continue };
        while let Ok(Some(message)) = stream.next().await {
            let Message::Event(event) = message else { continue };
            let event = value(&event);
            let data = event.data.to_string();
            let end = data == END;
            told.lock().push((event.cursor.to_string(), data));
            if end {
                return;
            }
        }
    }
}
const END: &str = "\"end\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_stopped_and_goes_on_tells_nothing_else() {
    let name = "outbox_stopped";
    let url = crate::server::create(name).await;
    let text = serving::settings(&url, name, "kind = 'outbox'\nlease = '1s'", "");
    let mut config = config(&url, name, "");
    config.source.kind = walcast::source::SourceKind::Outbox;
    walcast::cli::local::set_up(&config, false).await.unwrap();
    let sql = connect(&url).await;
    let first = Process::start("outbox_stopped_a", &text).await;
    first.ready().await;
    let second = Process::start("outbox_stopped_b", &text).await;
    second.unready("another broker").await;
    let holder = async || value_of(&sql, "SELECT holder FROM walcast.outbox_reader").await;
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn({
        let (sql, stop) = (connect(&url).await, Arc::clone(&stop));
        async move {
            let mut n = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                run(&sql, &format!("SELECT walcast.publish('m', '{n}')")).await;
            }
            n
        }
    });
    let told = [Told::default(), Told::default()];
    let readers = [(&first, &told[0]), (&second, &told[1])]
        .map(|(broker, told)| AbortOnDropHandle::new(tokio::spawn(collect(broker.url(), Arc::clone(told)))));
    let mut brokers = [(first, Arc::clone(&told[0])), (second, Arc::clone(&told[1]))];
    for _ in 0..amount(2, 20) {
        let led = holder().await;
        let [(old, _), (new, told)] = &brokers;
        let before = told.lock().len();
        old.signal("STOP");
        until("the other leads", async || holder().await != led).await;
        new.ready().await;
        until("its clients are told", async || told.lock().len() > before).await;
        old.signal("CONT");
        old.unready("another broker").await;
        brokers.reverse();
    }
    stop.store(true, Ordering::Relaxed);
    let written = writing.await.unwrap();
    run(&sql, &format!("SELECT walcast.publish('m', '{END}')")).await;
    let whole = Told::default();
    within("the end", collect(brokers[0].0.url(), Arc::clone(&whole))).await;
    let whole = std::mem::take(&mut *whole.lock());
    let expected: Vec<_> = (1..=written).map(|n| n.to_string()).chain([END.to_owned()]).collect();
    assert_eq!(
        whole.iter().map(|(_, data)| data.clone()).collect::<Vec<_>>(),
        expected,
        "nothing lost, nothing twice"
    );
    // Each told part of it, and wherever it told the same, at the same cursor.
    let places: BTreeMap<&String, &String> = whole.iter().map(|(cursor, data)| (data, cursor)).collect();
    drop(readers);
    for told in told {
        let told = told.lock();
        assert!(!told.is_empty());
        for (cursor, data) in &*told {
            assert_eq!(places[data], cursor, "{data}");
        }
    }
    for (broker, _) in brokers {
        broker.stop().await;
    }
}

#[tokio::test]
async fn a_table_from_another_server_begins_anew() {
    let mut broker = Way::Outbox.start("outbox_restored", "", "").await;
    broker.run("SELECT walcast.publish('m', '1')").await;
    broker.catch_up().await;
    let place = broker.place().await;
    broker.stop().await.unwrap();
    // As a dump of a server that had seen more transactions would have it.
    broker
        .run("UPDATE walcast.tick SET snapshot = '99000000:99000000:' WHERE id = (SELECT max(id) FROM walcast.tick)")
        .await;
    let broker = broker.start_again().await;
    assert_ne!(broker.place().await.epoch, place.epoch);
    let mut follower = broker.follow(Transport::Sse, &["m"]).await;
    broker.run("SELECT walcast.publish('m', '2')").await;
    assert_eq!(follower.lines(1).await, ["m message 2"]);
}

#[tokio::test]
async fn a_lease_is_one_brokers_and_only_who_holds_it_makes_ticks() {
    let mut broker = Way::Outbox.start("outbox_lease", "", "").await;
    broker.stop().await.unwrap();
    let sql = &broker.sql;
    let lead = async |holder: u32, seconds: f64| {
        let holder = format!("'00000000-0000-0000-0000-00000000000{holder}'");
        value_of(sql, &format!("SELECT token FROM walcast.outbox_lead({holder}, {seconds})")).await
    };
    let look = async |token: &str| {
        let last = "(SELECT t.{} FROM walcast.tick t ORDER BY t.id DESC LIMIT 1)";
        let of = |column: &str| last.replace("{}", column);
        let call = format!(
            "SELECT done FROM walcast.outbox_look({token}, {}, {}, true, 10, 1000) LIMIT 1",
            of("id"),
            of("snapshot")
        );
        value_of(sql, &call).await
    };
    // It was given back, so nobody has to wait.
    let first = lead(1, 600.0).await;
    assert_ne!(first, "");
    assert_eq!((lead(1, 600.0).await, lead(2, 600.0).await), (first.clone(), String::new()));
    assert_eq!(look(&first).await, "tick");
    // Its time is over: still its own, but another's for the asking.
    broker.run("UPDATE walcast.outbox_reader SET leads_until = clock_timestamp()").await;
    assert_eq!(look(&first).await, "lost");
    let second = lead(2, 600.0).await;
    assert!(second.parse::<i64>().unwrap() > first.parse::<i64>().unwrap());
    assert_eq!((look(&first).await.as_str(), look(&second).await.as_str()), ("lost", "tick"));
    let trim = format!("SELECT holding FROM walcast.outbox_trim({first}, 1, 2, 0)");
    assert_eq!(value_of(sql, &trim).await, "", "who lost the lease lets go of nothing");
    // Of two that look at the same time, the second finds the tick made.
    let stale = format!("SELECT done FROM walcast.outbox_look({second}, 1, '1:1:', true, 10, 1000) LIMIT 1");
    assert_eq!(value_of(sql, &stale).await, "lost");
    // A leader that goes on reading when it should have stopped may find lanes emptied, and must not take that for all.
    let rows = |token: &str, base: i64| {
        format!("SELECT count(*) FROM walcast.outbox_rows({token}, {base}, '1:1:', '1:1:', 0, 0, 10, 1000)")
    };
    assert_eq!(value_of(sql, &rows(&second, 1)).await, "0");
    for (token, base) in [(&first, 1), (&second, 0)] {
        let error = sql.batch_execute(&rows(token, base)).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "55000");
    }
    // Nothing is to be trusted of a look that sees no more than the one before.
    let old = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {}", rows(&second, 1));
    assert_eq!(sql.batch_execute(&old).await.unwrap_err().code().unwrap().code(), "25000");
}

#[tokio::test]
async fn a_look_steps_over_what_is_still_open() {
    const ROWS: i64 = 30_000;
    let mut broker = Way::Outbox.start("outbox_look", "", "").await;
    broker.stop().await.unwrap();
    let late = broker.session().await;
    let many = format!(
        "BEGIN; SELECT count(walcast.publish('late', to_jsonb(i))) FROM generate_series(1, {ROWS}) i"
    );
    run(&late, &many).await;
    broker.run("SELECT walcast.outbox_lead('00000000-0000-0000-0000-000000000001', 600)").await;
    // What was done, and how many pages it touched.
    let look = async || {
        let last = "FROM walcast.tick AS t ORDER BY t.id DESC LIMIT 1";
        let call = format!(
            "walcast.outbox_look((SELECT token FROM walcast.outbox_reader), (SELECT t.id {last}),
             (SELECT t.snapshot {last}), false, 10, 1000)"
        );
        let plan = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT FROM {call}");
        let answer = broker.sql.simple_query(&plan).await.unwrap();
        let text = answer.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let plan: serde_json::Value = serde_json::from_str(text.unwrap()).unwrap();
        let plan = &plan[0]["Plan"];
        let pages = ["Shared Hit Blocks", "Shared Read Blocks"]
            .map(|key| plan[key].as_i64().unwrap())
            .iter()
            .sum::<i64>();
        (plan["Actual Rows"].as_f64().unwrap(), pages)
    };
    // The first ones plan. One row: nothing was found.
    for _ in 0..3 {
        look().await;
    }
    let (rows, pages) = look().await;
    assert!(rows < 2.0 && pages < ROWS / 50, "{rows} rows of {pages} pages, none newer than the open ones");
    broker.run("SELECT walcast.publish('m', '1')").await;
    let (rows, pages) = look().await;
    assert!(rows > 1.0 && pages < ROWS / 50, "{rows} rows of {pages} pages, newer than the open ones");
    // From now on it is known to have been open.
    broker.run("SELECT walcast.publish('m', '2')").await;
    let (rows, pages) = look().await;
    assert!(rows > 1.0 && pages < ROWS / 50, "{rows} rows of {pages} pages, beside the open ones");
}

/// A transaction that is open already may have drawn ids, and still be beyond what a snapshot knows: that ends behind the
/// last one that is over.
#[tokio::test]
async fn the_first_page_of_many_rows_begins_with_what_was_written_before_the_last_tick() {
    let mut broker = Way::Outbox.start("outbox_first", "", "").await;
    broker.stop().await.unwrap();
    let (early, late) = (broker.session().await, broker.session().await);
    broker.run("SELECT walcast.outbox_lead('00000000-0000-0000-0000-000000000001', 600)").await;
    let look = async || {
        let last = "FROM walcast.tick AS t ORDER BY t.id DESC LIMIT 1";
        let call = format!(
            "SELECT coalesce(string_agg(r.data, ' ' ORDER BY r.id), '') FROM walcast.outbox_look(
                (SELECT token FROM walcast.outbox_reader), (SELECT t.id {last}), (SELECT t.snapshot {last}),
                false, 3, 100000) AS r"
        );
        value_of(&broker.sql, &call).await
    };
    look().await;
    run(&early, "BEGIN; SELECT pg_current_xact_id()").await;
    run(&late, "BEGIN; SELECT walcast.publish('m', '1')").await;
    run(&early, "SELECT walcast.publish('m', '2'); COMMIT").await;
    assert_eq!(look().await, "2");
    run(&late, "SELECT walcast.publish('m', to_jsonb(i)) FROM generate_series(3, 9) AS i; COMMIT").await;
    assert_eq!(look().await, "1 3 4");
}

#[tokio::test]
async fn a_session_that_plans_by_an_old_snapshot_publishes_where_it_should() {
    let broker = Way::Outbox.start("outbox_plan", "", "").await;
    let old = broker.session().await;
    run(&old, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await;
    broker.run("UPDATE walcast.settings SET carry = 'wal'").await;
    broker.run("UPDATE walcast.settings SET carry = 'outbox', lane_seconds = 7").await;
    let mut follower = broker.follow(Transport::Sse, &["m", MARK]).await;
    // What it plans now it keeps.
    run(&old, "SELECT walcast.publish('m', '1'); COMMIT; SELECT walcast.publish('m', '2')").await;
    assert_eq!(broker.rest_lines(&mut follower).await, ["m message 1", "m message 2"]);
    // The same where the settings of before sent it elsewhere.
    let old = broker.session().await;
    run(&broker.sql, "UPDATE walcast.settings SET carry = 'wal'").await;
    run(&old, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await;
    run(&broker.sql, "UPDATE walcast.settings SET carry = 'outbox'").await;
    run(&old, "SELECT walcast.publish('m', '3'); COMMIT; SELECT walcast.publish('m', '4')").await;
    assert_eq!(broker.rest_lines(&mut follower).await, ["m message 3", "m message 4"]);
}

#[tokio::test]
async fn functions_that_run_as_their_owner_look_nowhere_else() {
    let broker = Way::Outbox.start("outbox_definer", "", "").await;
    // A type in pg_temp goes before pg_catalog's, unless pg_temp is named behind it.
    let open = "SELECT coalesce(string_agg(p.oid::regprocedure::text, ', '), '') FROM pg_proc p
        WHERE p.pronamespace = 'walcast'::regnamespace AND p.prosecdef
            AND p.proname NOT IN ('publish', 'notify', 'publish_once')
            AND NOT EXISTS (SELECT FROM unnest(p.proconfig) c WHERE c ~ '^search_path=.*pg_temp\"?$')";
    assert_eq!(value_of(&broker.sql, open).await, "");
    let public = "SELECT coalesce(string_agg(p.oid::regprocedure::text, ', '), '') FROM pg_proc p
        WHERE p.pronamespace = 'walcast'::regnamespace AND has_function_privilege('public', p.oid, 'EXECUTE')";
    assert_eq!(value_of(&broker.sql, public).await, "");
}

#[tokio::test]
async fn a_broker_of_the_other_kind_says_that_nothing_comes_its_way() {
    let mut broker = Way::Outbox.start("outbox_other", "", "").await;
    broker.stop().await.unwrap();
    let mut config = broker.config.clone();
    config.source.kind = walcast::source::SourceKind::Wal;
    let node = walcast::node::Node::start(config.clone()).unwrap();
    let error = within("it ends", node.join(std::future::pending())).await.unwrap_err().to_string();
    assert!(error.contains("walcast.settings.carry is `outbox`"), "{error}");
    // Nobody says by which way: it stays as it is.
    let settings =
        |kind: &str| format!("postgres.url = '{}'\n[source]\nslot = '{}'\n{kind}\n", broker.url, broker.name);
    let carry = async |kind: &str| {
        let path = crate::process::file("outbox_other", &settings(kind));
        crate::process::run(&["setup", "--config", &path, "--accept-unbounded-wal"]).await.succeeded();
        value_of(&broker.sql, "SELECT carry FROM walcast.settings").await
    };
    assert_eq!(carry("").await, "outbox");
    assert_eq!(carry("kind = 'wal'").await, "wal");
    assert_eq!(carry("").await, "wal");
}
