//! Moving from LISTEN and NOTIFY to walcast, and back: what carries `walcast.notify`, a `pg_notify` that stands before the
//! one of Postgres, and `walcast shadow`, which says where the two differ.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_postgres::Client as Sql;
use walcast::cli::setup::{Carrier, Report, SetupError, SetupOptions, setup};
use walcast::cli::teardown::{TeardownOptions, teardown};
use walcast::postgres::Listener;
use walcast_client::Transport;

use crate::broker::{Broker, Follower, MARK, Way, run, value_of};
use crate::process::{Running, walcast};
use crate::server::{self, Server};
use crate::wait::within;

const CHANNEL: &str = "Old jobs";

/// As the broker was set up.
fn options(broker: &Broker) -> SetupOptions {
    SetupOptions {
        kind: broker.config.source.kind,
        history_age: broker.config.history.age,
        source: broker.config.source.slot.clone(),
        publication: broker.config.source.publication.clone(),
        ..SetupOptions::default()
    }
}

async fn set_up(broker: &Broker, options: &SetupOptions) -> Result<Report, SetupError> {
    setup(&mut broker.session().await, options).await
}

async fn carry_by(broker: &Broker, carrier: Carrier) -> Report {
    set_up(broker, &SetupOptions { carrier: Some(carrier), ..options(broker) }).await.unwrap()
}

/// Both ways to hear.
struct Both {
    listener: Listener,
    follower: Follower,
}

impl Both {
    async fn on(broker: &Broker) -> Self {
        let listener = Listener::connect(&server::target(&broker.url), "test", CHANNEL).await.unwrap();
        let follower = broker.follow(Transport::Sse, &["Old%20jobs", MARK]).await;
        Self { listener, follower }
    }

    /// What came to each up to now, in order.
    async fn heard(&mut self, broker: &Broker) -> [Vec<String>; 2] {
        broker.run(&format!("SELECT pg_catalog.pg_notify('{CHANNEL}', 'so far')")).await;
        let mut notified = Vec::new();
        loop {
            let notice = within("a notification", self.listener.next()).await.unwrap();
            if notice.payload == "so far" {
                break;
            }
            notified.push(notice.payload);
        }
        let events = broker.rest(&mut self.follower).await;
        [notified, events.iter().map(|event| event.data.as_str().unwrap().to_owned()).collect()]
    }
}

#[tokio::test]
async fn each_carrier_carries_where_it_says() {
    for way in [Way::Wal, Way::Outbox] {
        let broker = way.start("moving_carrier", "", "").await;
        let mut both = Both::on(&broker).await;
        // It stays open all the time, and has its plans from before.
        let old = broker.session().await;
        let mut check = async |change: Option<Carrier>, expected: [bool; 2]| {
            if let Some(carrier) = change {
                let report = carry_by(&broker, carrier).await;
                assert!(report.steps[0].contains("from now on walcast.notify is carried by "), "{report:?}");
                assert!(!carry_by(&broker, carrier).await.changed());
            }
            for session in [&old, &broker.session().await] {
                run(
                    session,
                    &format!(
                        "BEGIN; SELECT walcast.notify('{CHANNEL}', 'undone'); ROLLBACK;
                         BEGIN; SAVEPOINT s; SELECT walcast.notify('{CHANNEL}', 'half'); ROLLBACK TO s;
                         SELECT walcast.notify('{CHANNEL}', 'kept'), walcast.notify('{CHANNEL}', 'kept'); COMMIT;
                         SELECT walcast.notify('{CHANNEL}', NULL)"
                    ),
                )
                .await;
            }
            let heard = both.heard(&broker).await;
            let all = || ["kept", "", "kept", ""].map(str::to_owned).to_vec();
            let expected = expected.map(|carried| if carried { all() } else { Vec::new() });
            assert_eq!(heard, expected, "{way:?} {change:?}");
        };
        check(None, [false, true]).await;
        check(Some(Carrier::Both), [true, true]).await;
        check(Some(Carrier::Notify), [true, false]).await;
        check(Some(Carrier::Walcast), [false, true]).await;
        check(Some(Carrier::Notify), [true, false]).await;
        check(Some(Carrier::Both), [true, true]).await;
        // What says nothing of the carrier leaves it.
        assert!(!set_up(&broker, &options(&broker)).await.unwrap().changed());
        assert_eq!(value_of(&broker.sql, "SELECT carrier FROM walcast.settings").await, "both");
        // Where pg_notify carries, its limits hold.
        let long = |payload: &str| format!("SELECT walcast.notify('{CHANNEL}', repeat('{payload}', 8000))");
        let error = old.batch_execute(&long("x")).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "22023");
        let refused = broker.sql.batch_execute("UPDATE walcast.settings SET carrier = 'pigeon'").await;
        assert_eq!(refused.unwrap_err().code().unwrap().code(), "23514");
    }
}

#[tokio::test]
async fn a_transaction_that_is_open_over_a_change_is_named() {
    let broker = Broker::start("moving_open", "", "").await;
    let mut both = Both::on(&broker).await;
    let app = broker.session().await;
    let pid = value_of(&app, "SELECT pg_backend_pid()").await;
    run(&app, &format!("BEGIN; SELECT walcast.notify('{CHANNEL}', 'before')")).await;
    let change = SetupOptions {
        carrier: Some(Carrier::Notify),
        lock_timeout: Duration::from_millis(200),
        ..options(&broker)
    };
    let report = set_up(&broker, &change).await.unwrap();
    let warning = report.warnings.iter().find(|warning| warning.contains("the old way")).unwrap();
    assert!(warning.contains(&format!("pid {pid} ")) && warning.contains("by the old carrier"), "{warning}");
    run(&app, "COMMIT").await;
    run(&app, &format!("SELECT walcast.notify('{CHANNEL}', 'after')")).await;
    assert_eq!(both.heard(&broker).await, [vec!["after".to_owned()], vec!["before".to_owned()]]);
}

const APPLICATION: &str = "
    CREATE TABLE jobs (id int PRIMARY KEY);
    CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_notify('Old jobs', 'job ' || NEW.id); RETURN NULL; END $$;
    CREATE TRIGGER tell AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION tell();
    CREATE FUNCTION own_path() RETURNS void LANGUAGE sql SET search_path = public AS
        $$ SELECT pg_notify('Old jobs', 'own path') $$;
    CREATE ROLE app LOGIN; CREATE ROLE other LOGIN; CREATE ROLE later LOGIN; GRANT INSERT ON jobs TO app;
    ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO other; ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO other";
const PATH: &str = "SET search_path = walcast_compat, pg_catalog, public";

#[tokio::test]
async fn the_compat_schema_moves_publishers_that_are_not_changed() {
    let server = Server::tuned(&[]).await;
    let mut broker = Broker::start_at(&server, "moving", APPLICATION, "", |_| ()).await;
    let mut both = Both::on(&broker).await;
    let wanted = SetupOptions { compat: true, publishers: vec!["app".into()], ..options(&broker) };
    let report = set_up(&broker, &wanted).await.unwrap();
    let heads: Vec<_> = report.steps.iter().map(|step| step.split(':').next().unwrap()).collect();
    assert_eq!(heads, ["schema walcast_compat", "grants to app"]);
    assert!(!set_up(&broker, &wanted).await.unwrap().changed());
    let session = async |role: &str| server.connect("moving", role, "test").await;
    let publish = async |app: &Sql, id: u8| {
        let sql = format!("INSERT INTO jobs VALUES ({id}); SELECT pg_notify('{CHANNEL}', 'plain {id}')");
        run(app, &sql).await;
    };
    let told = |id: u8| vec![format!("job {id}"), format!("plain {id}")];

    let before = session("app").await;
    publish(&before, 1).await;
    assert_eq!(both.heard(&broker).await, [told(1), vec![]], "nothing moves before its search path says so");

    for role in ["app", "other", "later"] {
        broker.run(&format!("ALTER ROLE {role} {PATH}")).await;
    }
    let app = session("app").await;
    publish(&app, 2).await;
    run(&app, &format!("BEGIN; SELECT pg_notify('{CHANNEL}', 'undone'); ROLLBACK")).await;
    assert_eq!(both.heard(&broker).await, [vec![], told(2)]);
    // What it cannot catch.
    run(
        &app,
        &format!(
            "SELECT own_path(); SELECT pg_catalog.pg_notify('{CHANNEL}', 'qualified'); NOTIFY \"{CHANNEL}\", 'statement'"
        ),
    )
    .await;
    let missed = ["own path", "qualified", "statement"].map(str::to_owned).to_vec();
    assert_eq!(both.heard(&broker).await, [missed, vec![]]);

    // Whoever is no publisher goes on as before, whatever the path says, until it is one.
    let other = session("other").await;
    run(&other, &format!("SELECT pg_notify('{CHANNEL}', 'other')")).await;
    assert_eq!(both.heard(&broker).await, [vec!["other".to_owned()], vec![]]);
    let denied = other.batch_execute("SELECT walcast_compat.pg_notify('a', 'b')").await.unwrap_err();
    assert_eq!(denied.code().unwrap().code(), "42501");
    let later = SetupOptions { publishers: vec!["later".into()], ..options(&broker) };
    set_up(&broker, &later).await.unwrap();
    run(&session("later").await, &format!("SELECT pg_notify('{CHANNEL}', 'later')")).await;
    assert_eq!(both.heard(&broker).await, [vec![], vec!["later".to_owned()]]);

    // Back: by the carrier, in the same session; by the path, in the next one; and by teardown.
    carry_by(&broker, Carrier::Notify).await;
    publish(&app, 3).await;
    assert_eq!(both.heard(&broker).await, [told(3), vec![]]);
    carry_by(&broker, Carrier::Both).await;
    publish(&app, 4).await;
    assert_eq!(both.heard(&broker).await, [told(4), told(4)]);
    broker.run("ALTER ROLE app RESET search_path").await;
    publish(&session("app").await, 5).await;
    assert_eq!(both.heard(&broker).await, [told(5), vec![]]);
    broker.stop().await.unwrap();
    tear_down(&broker).await;
    publish(&app, 6).await;
    for payload in told(6) {
        assert_eq!(within("a notification", both.listener.next()).await.unwrap().payload, payload);
    }
}

async fn tear_down(broker: &Broker) -> Vec<String> {
    let down = TeardownOptions {
        kind: broker.config.source.kind,
        source: broker.config.source.slot.clone(),
        publication: broker.config.source.publication.clone(),
        ..TeardownOptions::default()
    };
    teardown(&mut broker.session().await, &down).await.unwrap().steps
}

#[tokio::test]
async fn teardown_takes_the_compat_schema_and_no_other() {
    let server = Server::tuned(&[]).await;
    let url = server.create_database("moving").await;
    let sql = server.connect("moving", "postgres", "test").await;
    run(&sql, "CREATE SCHEMA walcast_compat; CREATE TABLE walcast_compat.theirs ()").await;
    let theirs = server.dump("moving");
    let mut broker = Broker::on("moving", crate::broker::prepare(&url, "moving", "", "").await, sql).await;
    let wanted = SetupOptions { compat: true, ..options(&broker) };
    let error = set_up(&broker, &wanted).await.unwrap_err().to_string();
    assert!(error.contains("schema walcast_compat that setup did not make"), "{error}");
    broker.stop().await.unwrap();
    tear_down(&broker).await;
    assert_eq!(server.dump("moving"), theirs);

    broker.run("DROP SCHEMA walcast_compat CASCADE").await;
    let before = server.dump("moving");
    set_up(&broker, &wanted).await.unwrap();
    assert!(server.dump("moving").contains("CREATE SCHEMA walcast_compat"));
    assert!(tear_down(&broker).await.contains(&"schema walcast_compat: dropped".to_owned()));
    assert_eq!(server.dump("moving"), before);
}

/// `walcast shadow` on the channel, once it listens.
async fn shadow(broker: &Broker, more: &[&str]) -> Running {
    let url = format!("http://{}", broker.http.address);
    let args = ["shadow", "--channel", CHANNEL, "--database-url", &broker.url, "--url", &url];
    let mut running = Running::start(walcast(&[&args[..], more].concat()));
    running.until("listening on \"Old jobs\" and following Old%20jobs").await;
    running
}

#[tokio::test]
async fn a_shadow_pairs_what_both_carry() {
    let broker = Broker::start("moving_pairs", "", "").await;
    carry_by(&broker, Carrier::Both).await;
    let running = shadow(&broker, &["--limit", "1000", "--json"]).await;
    for commit in 0..20 {
        let sql = format!(
            "SELECT walcast.notify('{CHANNEL}', {commit} || E' \"line\\n' || n % 50) FROM generate_series(1, 70) AS n"
        );
        broker.run(&sql).await;
    }
    let ended = running.end().await;
    let report: Value = serde_json::from_str(ended.succeeded()).unwrap();
    let summary =
        [&report["paired"], &report["differs"], &report["notify"]["missed"], &report["walcast"]["missed"]];
    assert_eq!(summary, [&json!(1000), &json!(false), &json!(0), &json!(0)], "{ended:?}");
    let second = report["notify"]["second"].as_u64().unwrap() + report["walcast"]["second"].as_u64().unwrap();
    assert_eq!(second, 1000, "{ended:?}");

    // For a while, in which nothing happens.
    let ended = shadow(&broker, &["--for", "50ms"]).await.end().await;
    assert!(ended.succeeded().contains("the same 0 (of them late 0), undecided 0"), "{ended:?}");
}

#[tokio::test]
async fn a_shadow_finds_what_one_of_them_did_not_carry() {
    let broker = Broker::start("moving_differs", "", "").await;
    carry_by(&broker, Carrier::Both).await;
    let mut running = shadow(&broker, &["--window", "1s", "--json"]).await;
    broker
        .run(&format!(
            "SELECT walcast.notify('{CHANNEL}', 'both');
             SELECT pg_catalog.pg_notify('{CHANNEL}', 'qualified');
             NOTIFY \"{CHANNEL}\", 'statement';
             SELECT walcast.publish('Old%20jobs', '{{\"only\": \"walcast\"}}')"
        ))
        .await;
    running.until(r#"missed by walcast: "qualified""#).await;
    running.until(r#"missed by walcast: "statement""#).await;
    running.until(r#"missed by NOTIFY: "{\"only\": \"walcast\"}""#).await;
    running.signal("INT");
    let ended = running.end().await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.err.contains("the two differ: walcast missed 2 of 3 that NOTIFY had"), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((&report["paired"], &report["differs"]), (&json!(1), &json!(true)), "{ended:?}");
    assert_eq!(report["walcast"]["examples"], json!(["qualified", "statement"]));
    assert_eq!(report["notify"]["examples"], json!(["{\"only\": \"walcast\"}"]));
}

#[tokio::test]
async fn a_shadow_tells_a_cut_from_a_difference() {
    let broker = Broker::start("moving_cut", "", "").await;
    carry_by(&broker, Carrier::Both).await;
    let mut running = shadow(&broker, &["--window", "1s"]).await;
    let app = broker.session().await;
    let admin = server::connect("postgres", "postgres").await;
    run(&admin, "ALTER DATABASE moving_cut ALLOW_CONNECTIONS false").await;
    run(
        &admin,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = 'moving_cut' AND application_name = 'walcast shadow'",
    )
    .await;
    running.until("the session that listens is cut off").await;
    run(&app, &format!("SELECT walcast.notify('{CHANNEL}', 'unheard')")).await;
    running.until(r#"missed by NOTIFY while it was cut off: "unheard""#).await;
    run(&admin, "ALTER DATABASE moving_cut ALLOW_CONNECTIONS true").await;
    running.until("listening again").await;
    run(&app, &format!("SELECT walcast.notify('{CHANNEL}', 'heard')")).await;
    // Missed by one of them, so the pair before it is complete.
    run(&app, &format!("SELECT pg_catalog.pg_notify('{CHANNEL}', 'around')")).await;
    running.until(r#"missed by walcast: "around""#).await;
    running.signal("INT");
    let ended = running.end().await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let line = |name: &str| {
        let line =
            ended.out.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{ended:?}"));
        line.split_whitespace().rev().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(ended.out.contains("the same 1 "), "{ended:?}");
    assert_eq!(line("missed while cut off"), ["0", "1"]);
    assert_eq!(line("cut off"), ["0", "1"]);
    assert_eq!(line("missed  "), ["1", "0"]);
}
