//! `walcast teardown`.

use std::process::{Child, Stdio};
use std::time::Duration;

use tokio_postgres::Client;
use walcast::cli::setup::{SetupError, SetupOptions, setup as set_up};
use walcast::cli::teardown::{TeardownArgs, TeardownOptions, run, teardown};

use super::setup::table;
use crate::server::{ADMIN, Server};
use crate::wait::until;

/// A process that streams from a slot, as a broker does, and connects again when it is cut off.
struct Streaming(Child);

impl Streaming {
    async fn start(server: &Server, slot: &str, application: &str) -> Self {
        let mut command = server.program("pg_recvlogical", ADMIN, "postgres");
        command.args([
            "-d",
            &format!("dbname=postgres application_name={application}"),
            "--slot",
            slot,
            "--start",
        ]);
        command.args(["-o", "proto_version=1", "-o", "publication_names=walcast", "-f", "-"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let streaming = Self(child);
        let admin = server.admin().await;
        let sql = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)";
        until("it streams", async || admin.query_one(sql, &[&slot]).await.unwrap().get(0)).await;
        streaming
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn slots(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM pg_replication_slots", &[]).await.unwrap().get(0)
}

async fn tear_down(server: &Server, wait: Duration) -> Result<Vec<String>, SetupError> {
    let options = TeardownOptions { wait, ..TeardownOptions::default() };
    Ok(teardown(&mut server.admin().await, &options).await?.steps)
}

const PATIENT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_database_is_as_it_was() {
    let server = Server::tuned(&[]).await;
    let admin = server.admin().await;
    let schema = "CREATE ROLE owner; CREATE ROLE app; CREATE ROLE broker REPLICATION; CREATE ROLE gone;
        CREATE TABLE vms (id int PRIMARY KEY); ALTER TABLE vms OWNER TO owner; GRANT SELECT ON vms TO app;
        CREATE SCHEMA app; CREATE TABLE app.a (id int PRIMARY KEY); CREATE TABLE app.dropped (id int PRIMARY KEY);
        CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM walcast.publish('vm', to_jsonb(NEW)); RETURN NULL; END $$;
        CREATE TRIGGER tell AFTER INSERT ON vms FOR EACH ROW EXECUTE FUNCTION tell()";
    admin.batch_execute(schema).await.unwrap();
    let before = server.dump("postgres");
    let mut options = SetupOptions {
        broker_role: Some("broker".into()),
        publishers: vec!["app".into(), "gone".into()],
        tables: vec![table("public.vms", None), table("app.a", None)],
        ..SetupOptions::default()
    };
    server.set_up(&options).await.unwrap();
    let with_schema = server.dump("postgres");
    assert!(
        with_schema.contains("CREATE PUBLICATION walcast")
            && with_schema.contains("GRANT USAGE ON SCHEMA app")
    );
    // Twice, with more tables and roles, one of which goes away.
    options.tables.push(table("app.dropped", None));
    server.set_up(&options).await.unwrap();
    server.set_up(&options).await.unwrap();
    admin.batch_execute("DROP OWNED BY gone; DROP ROLE gone; INSERT INTO vms VALUES (1)").await.unwrap();

    assert!(!tear_down(&server, PATIENT).await.unwrap().is_empty());
    assert_eq!(server.dump("postgres"), before);
    assert_eq!(slots(&admin).await, 0);
    assert_eq!(tear_down(&server, PATIENT).await.unwrap(), Vec::<String>::new());
    // And up again.
    options.publishers.pop();
    server.set_up(&options).await.unwrap();
    admin.batch_execute("DROP TABLE app.dropped").await.unwrap();
    tear_down(&server, PATIENT).await.unwrap();
    admin.batch_execute("CREATE TABLE app.dropped (id int PRIMARY KEY)").await.unwrap();
    assert_eq!(server.dump("postgres"), before);
}

#[tokio::test]
async fn who_may_not_do_all_of_it_does_nothing() {
    let server = Server::tuned(&[]).await;
    let admin = server.admin().await;
    let schema = "CREATE ROLE owner LOGIN REPLICATION; GRANT CREATE ON DATABASE postgres TO owner;
        CREATE ROLE broker LOGIN REPLICATION; CREATE SCHEMA app; CREATE TABLE app.a (id int PRIMARY KEY);
        ALTER TABLE app.a OWNER TO owner; ALTER SCHEMA app OWNER TO owner";
    admin.batch_execute(schema).await.unwrap();
    let before = server.dump("postgres");
    let options = SetupOptions {
        broker_role: Some("broker".into()),
        tables: vec![table("app.a", None)],
        ..SetupOptions::default()
    };
    set_up(&mut server.connect_as("owner", "test").await, &options).await.unwrap();
    admin.batch_execute("ALTER ROLE owner NOREPLICATION").await.unwrap();
    let first = "SELECT pg_drop_replication_slot('walcast')";
    let refused = async |role: &str, parts: &[&str]| {
        let mut client = server.connect_as(role, "test").await;
        let error = teardown(&mut client, &TeardownOptions::default()).await.unwrap_err();
        assert!(matches!(error, SetupError::Denied(_)), "{error:?}");
        let error = error.to_string();
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains("--print-sql"), "{error}");
        assert!(error.contains("nothing was removed") && error.contains("superuser"), "{error}");
    };
    refused("owner", &["slot walcast needs REPLICATION", first]).await;
    let owned =
        ["publication walcast needs its owner, owner", "schema walcast needs its owner, owner", first];
    refused("broker", &owned).await;
    assert_eq!(slots(&admin).await, 1);
    // A table that went to somebody else, who alone can take back what was granted.
    admin.batch_execute("ALTER TABLE app.a OWNER TO postgres").await.unwrap();
    refused("owner", &["revoking SELECT ON TABLE", "needs its owner, postgres"]).await;
    admin.batch_execute("ALTER TABLE app.a OWNER TO owner").await.unwrap();

    // What is told to do helps.
    server.connect_as("broker", "test").await.batch_execute(first).await.unwrap();
    refused("broker", &["publication walcast needs its owner, owner", "or as owner"]).await;
    let mut owner = server.connect_as("owner", "test").await;
    teardown(&mut owner, &TeardownOptions::default()).await.unwrap();
    assert_eq!(server.dump("postgres"), before);
}

#[tokio::test]
async fn brokers_that_run_are_cut_off() {
    let server = Server::tuned(&[]).await;
    server.set_up(&SetupOptions::default()).await.unwrap();
    let admin = server.admin().await;
    let copy = "SELECT pg_copy_logical_replication_slot('walcast', 'walcast_live', false)";
    admin.batch_execute(copy).await.unwrap();
    let standby = server.connect_as(ADMIN, "walcast standby").await;
    let copy = "SELECT pg_copy_logical_replication_slot('walcast', 'walcast_standby_7', true)";
    standby.batch_execute(copy).await.unwrap();
    let other = "SELECT pg_copy_logical_replication_slot('walcast', 'walcasting', false)";
    admin.batch_execute(other).await.unwrap();
    let _broker = Streaming::start(&server, "walcast_live", "walcast").await;

    let steps = tear_down(&server, PATIENT).await.unwrap();
    assert_eq!(
        steps.iter().filter(|step| step.contains("session of a broker ended")).count(),
        2,
        "{steps:?}"
    );
    assert!(standby.batch_execute("SELECT 1").await.is_err());
    // Only the slot whose name is not ours is left.
    assert_eq!(slots(&admin).await, 1);
    admin.batch_execute("SELECT pg_drop_replication_slot('walcasting')").await.unwrap();
}

#[tokio::test]
async fn sessions_of_others_are_left_alone() {
    let server = Server::tuned(&[]).await;
    server.set_up(&SetupOptions::default()).await.unwrap();
    let _stranger = Streaming::start(&server, "walcast", "stranger").await;
    let error = tear_down(&server, PATIENT).await.unwrap_err();
    assert!(matches!(error, SetupError::Blocked(_)) && error.to_string().contains("\"stranger\""), "{error}");
    let admin = server.admin().await;
    let sql = "SELECT active FROM pg_replication_slots WHERE slot_name = 'walcast'";
    assert!(admin.query_one(sql, &[]).await.unwrap().get::<_, bool>(0));
}

#[tokio::test]
async fn what_the_application_built_on_it_is_not_dropped() {
    let server = Server::tuned(&[]).await;
    server.set_up(&SetupOptions::default()).await.unwrap();
    let admin = server.admin().await;
    admin.batch_execute("CREATE VIEW topics AS SELECT walcast.encode_segment('a b') AS topic").await.unwrap();
    let (mut client, options, mut out) = (server.admin().await, TeardownOptions::default(), Vec::new());
    let ended = run(&TeardownArgs::default(), &options, &mut client, &mut out).await;
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("view public.topics depends on function walcast.encode_segment"), "{error}");
    // What was removed before is said.
    assert_eq!(String::from_utf8(out).unwrap(), "slot walcast: dropped\n");
    admin.batch_execute("SELECT walcast.publish('a', '1'); DROP VIEW topics").await.unwrap();
    tear_down(&server, PATIENT).await.unwrap();
}
