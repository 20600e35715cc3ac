//! `walcast teardown`: takes back all that setup made, whether a broker runs or not.
//!
//! Slots go first, where there are any, since a forgotten slot is what fills disks. Afterwards the database's schema is as it was
//! before setup. It must never end a session that is not a broker's, nor drop an object of somebody else's
//! along with ours.

use std::io::Write;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::setup::statements::{self, ident};
use super::setup::tries::{Refused, Tries};
use super::setup::{Report, SetupError, begin, end, locks, moving, outbox};
use crate::source::SourceKind;

mod rights;

/// Between two looks at slots that are still held.
const POLL: Duration = Duration::from_millis(50);

/// The slots of a source.
const SLOTS: &str = "SELECT s.slot_name::text, s.active_pid, coalesce(a.application_name, ''), s.temporary
    FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
    WHERE s.slot_type = 'logical' AND s.database = current_database()
        AND (s.slot_name::text IN ($1, $1 || '_live') OR starts_with(s.slot_name::text, $1 || '_standby_'))
    ORDER BY s.slot_name";

/// The tables with triggers of ours, and what drops those. What is on a partition goes with that of its root.
const TRIGGERS: &str = "
    SELECT n.nspname || '.' || c.relname,
        string_agg(format('DROP TRIGGER %I ON %I.%I', t.tgname, n.nspname, c.relname), '; ' ORDER BY t.tgname)
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_proc AS p ON p.oid = t.tgfoid
    WHERE p.pronamespace = to_regnamespace('walcast') AND starts_with(p.proname::text, 'rows_') AND t.tgparentid = 0
    GROUP BY n.nspname, c.relname ORDER BY 1";

/// Flags of `walcast teardown`.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(after_help = "Examples:
  walcast teardown
  walcast teardown --json --wait 1m

It needs REPLICATION while there is a slot, and the owner of what setup made; it looks before it removes anything.

Exit codes: 0 nothing is left, 64 wrong configuration, 69 in use or not reachable, 1 anything else.")]
pub struct TeardownArgs {
    /// How long to wait for running brokers to let go of their slots
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    pub wait: Duration,
    /// How long to wait for a lock
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub lock_timeout: Duration,
    /// Report as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// What is to be taken down.
#[derive(Clone, Debug)]
pub struct TeardownOptions {
    /// By which way events travel, as far as the configuration knows; what there is goes, whatever it is for.
    pub kind: SourceKind,
    /// Name of the source, with which the names of all its slots begin.
    pub source: String,
    /// Name of the publication.
    pub publication: String,
    /// Limit for brokers to let go of their slots.
    pub wait: Duration,
    /// Limit for each lock.
    pub lock_timeout: Duration,
}

impl Default for TeardownOptions {
    fn default() -> Self {
        Self {
            kind: SourceKind::Wal,
            source: "walcast".into(),
            publication: "walcast".into(),
            wait: Duration::from_secs(15),
            lock_timeout: Duration::from_secs(30),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// See [`SetupError`].
pub async fn run(
    args: &TeardownArgs,
    options: &TeardownOptions,
    client: &mut Client,
    out: &mut impl Write,
) -> Result<(), SetupError> {
    let mut report = Report::default();
    let ended = take_down(client, options, &mut report).await;
    // What is gone is gone, also where the rest could not be removed.
    if ended.is_ok() || report.changed() {
        report.write(args.json, "Nothing to do: nothing is set up.", out)?;
    }
    ended
}

/// Takes everything down. Running it again changes nothing.
///
/// # Errors
/// See [`SetupError`]. What was taken down before the error stays so; a later run goes on from there.
pub async fn teardown(client: &mut Client, options: &TeardownOptions) -> Result<Report, SetupError> {
    let mut report = Report::default();
    take_down(client, options, &mut report).await.map(|()| report)
}

async fn take_down(
    client: &mut Client,
    options: &TeardownOptions,
    report: &mut Report,
) -> Result<(), SetupError> {
    // Where there are no slots a transaction is enough, and behind a pooler that is all that there is of a session.
    let session = options.kind == SourceKind::Wal && any_slot(client, options).await?;
    if session {
        begin(client, options.lock_timeout).await?;
    }
    let result = take_down_in_session(client, options, report).await;
    if session {
        end(client).await;
    }
    result
}

async fn any_slot(client: &Client, options: &TeardownOptions) -> Result<bool, SetupError> {
    let slots = client.query_typed(SLOTS, &[(&options.source, Type::TEXT)]).await;
    slots
        .map(|slots| !slots.is_empty())
        .map_err(|error| SetupError::from_postgres("looking for slots", &error))
}

async fn take_down_in_session(
    client: &mut Client,
    options: &TeardownOptions,
    report: &mut Report,
) -> Result<(), SetupError> {
    rights::refuse(client, options).await?;
    remove_slots(client, options, report).await?;
    remove_objects(client, options, report).await?;
    // A broker that was alive may have made its slots anew. Without our schema it cannot do so again.
    remove_slots(client, options, report).await
}

/// Ends brokers' sessions and drops slots until none is left.
async fn remove_slots(
    client: &Client,
    options: &TeardownOptions,
    report: &mut Report,
) -> Result<(), SetupError> {
    let failed = |error| SetupError::from_postgres("looking for slots", &error);
    let deadline = Instant::now() + options.wait;
    loop {
        let slots = client.query_typed(SLOTS, &[(&options.source, Type::TEXT)]).await.map_err(failed)?;
        if slots.is_empty() {
            return Ok(());
        }
        let mut held = Vec::new();
        for slot in &slots {
            let (name, pid): (String, Option<i32>) = (slot.get(0), slot.get(1));
            let (application, temporary): (String, bool) = (slot.get(2), slot.get(3));
            match pid {
                Some(pid) => {
                    end_session(client, &name, pid, &application, report).await?;
                    held.push(format!("{name} by pid {pid} ({application})"));
                }
                None if temporary => held.push(format!("{name} by a session that is ending")),
                None => drop_slot(client, &name, report).await?,
            }
        }
        if !held.is_empty() {
            if Instant::now() >= deadline {
                return Err(SetupError::Blocked(format!(
                    "slots are still held after {}: {}; stop the brokers and run teardown again",
                    humantime::format_duration(options.wait),
                    held.join(", ")
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Asks a broker's session to end. Postgres may need to be asked more than once: one signal can be lost on a
/// walsender whose socket is full.
async fn end_session(
    client: &Client,
    slot: &str,
    pid: i32,
    application: &str,
    report: &mut Report,
) -> Result<(), SetupError> {
    if !application.starts_with("walcast") {
        return Err(SetupError::Blocked(format!(
            "slot {slot} is held by pid {pid}, whose application_name {application:?} is not a broker's; end \
             that session and run teardown again"
        )));
    }
    let doing = format!("ending the broker's session, pid {pid}");
    // Only while it still holds the slot: a pid can be reused.
    let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
        WHERE slot_name = $1 AND active_pid = $2";
    client
        .query_typed(sql, &[(&slot, Type::TEXT), (&pid, Type::INT4)])
        .await
        .map_err(|error| SetupError::from_postgres(&doing, &error))?;
    let step = format!("session of a broker ended: pid {pid}, slot {slot}");
    if !report.steps.contains(&step) {
        report.steps.push(step);
    }
    Ok(())
}

async fn drop_slot(client: &Client, name: &str, report: &mut Report) -> Result<(), SetupError> {
    match client.batch_execute(&statements::drop_slot(name)).await {
        Ok(()) => report.steps.push(format!("slot {name}: dropped")),
        // Taken, or gone, since we looked; the next look tells.
        Err(error)
            if matches!(error.code(), Some(&SqlState::OBJECT_IN_USE | &SqlState::UNDEFINED_OBJECT)) => {}
        Err(error) => return Err(SetupError::from_postgres(&format!("dropping slot {name}"), &error)),
    }
    Ok(())
}

/// Triggers, publication, grants and schema, in one transaction, which is tried until it has its locks.
async fn remove_objects(
    client: &mut Client,
    options: &TeardownOptions,
    report: &mut Report,
) -> Result<(), SetupError> {
    let tries = Tries::new(options.lock_timeout);
    loop {
        match try_to_remove(client, options, report, &tries).await {
            Err(Refused::Locked(_)) if tries.again().await => {}
            ended => return Ok(ended?),
        }
    }
}

async fn try_to_remove(
    client: &mut Client,
    options: &TeardownOptions,
    report: &mut Report,
    tries: &Tries,
) -> Result<(), Refused> {
    let failed = |error| SetupError::from_postgres("removing the schema walcast", &error);
    let refused = |doing: &str, error| Refused::new(&error, SetupError::from_postgres(doing, &error));
    let transaction = client.transaction().await.map_err(failed)?;
    outbox::begin(transaction.client(), tries.left()).await?;
    rights::refuse(transaction.client(), options).await?;
    tries.limit(transaction.client()).await.map_err(failed)?;
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1), to_regnamespace('walcast') IS NOT NULL,
            to_regclass('walcast.granted') IS NOT NULL, {}",
        moving::EXISTS
    );
    let found =
        transaction.query_typed_one(&sql, &[(&options.publication, Type::TEXT)]).await.map_err(failed)?;
    let (publication, schema, grants): (bool, bool, bool) = (found.get(0), found.get(1), found.get(2));
    let compat: bool = found.get(3);
    let mut steps = Vec::new();
    // First, for they call what is in the schema.
    for row in transaction.query_typed(TRIGGERS, &[]).await.map_err(failed)? {
        let (table, drop): (String, String) = (row.get(0), row.get(1));
        if let Err(error) = transaction.batch_execute(&drop).await {
            transaction.rollback().await.map_err(failed)?;
            let doing = format!("dropping triggers of {table}");
            return Err(locks::refusal(client, &doing, &drop, &error, "").await);
        }
        steps.push(format!("table {table}: triggers dropped"));
    }
    if publication {
        let name = &options.publication;
        let dropped = transaction.batch_execute(&format!("DROP PUBLICATION {}", ident(name))).await;
        dropped.map_err(|error| refused(&format!("dropping publication {name}"), error))?;
        steps.push(format!("publication {name}: dropped"));
    }
    if grants {
        let sql = "SELECT format('%s ON %s %s FROM %I', privilege, kind, object, role) FROM walcast.granted g
            WHERE EXISTS (SELECT FROM pg_roles r WHERE r.rolname = g.role)
                AND CASE kind WHEN 'SCHEMA' THEN to_regnamespace(object) IS NOT NULL
                    ELSE to_regclass(object) IS NOT NULL END";
        for row in transaction.query_typed(sql, &[]).await.map_err(failed)? {
            let grant: String = row.get(0);
            let revoked = transaction.batch_execute(&format!("REVOKE {grant}")).await;
            revoked.map_err(|error| refused(&format!("revoking {grant}"), error))?;
            steps.push(format!("revoked {grant}"));
        }
    }
    let leads = schema && leads(&transaction).await.map_err(failed)?;
    if schema {
        if let Err((statement, error)) = drop_schema(&transaction, compat).await {
            transaction.rollback().await.map_err(failed)?;
            return Err(match error.as_db_error() {
                Some(db) if *db.code() == SqlState::DEPENDENT_OBJECTS_STILL_EXIST => {
                    SetupError::Blocked(format!(
                        "other objects use the schema walcast, or lie in walcast_compat: {}; drop or change them and run teardown again",
                        db.detail().unwrap_or("unknown").replace('\n', "; ")
                    ))
                    .into()
                }
                _ => locks::refusal(client, "dropping the schema walcast", &statement, &error, "").await,
            });
        }
        if compat {
            steps.push(format!("schema {}: dropped", moving::SCHEMA));
        }
        steps.push("schema walcast: dropped".into());
    }
    transaction.commit().await.map_err(failed)?;
    report.steps.extend(steps);
    if leads {
        report.warnings.push(
            "a broker led the outbox, and was left without it: what it had not told yet is lost; stop the brokers".into(),
        );
    }
    Ok(())
}

/// Whether a broker leads the outbox, as far as its lease says. A pooler may be in between, so there is no session to
/// end: it finds out by itself.
async fn leads(transaction: &tokio_postgres::Transaction<'_>) -> Result<bool, tokio_postgres::Error> {
    let sql = "SELECT to_regclass('walcast.outbox_reader') IS NOT NULL";
    if !transaction.query_typed_one(sql, &[]).await?.try_get(0)? {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT FROM walcast.outbox_reader WHERE leads_until > clock_timestamp())";
    transaction.query_typed_one(sql, &[]).await?.try_get(0)
}

/// Names what is dropped instead of CASCADE, which would take along whatever of the application's uses it.
///
/// # Errors
/// The statement that was refused, and why.
async fn drop_schema(
    transaction: &tokio_postgres::Transaction<'_>,
    compat: bool,
) -> Result<(), (String, tokio_postgres::Error)> {
    for statement in moving::DROP.into_iter().filter(|_| compat) {
        transaction.batch_execute(statement).await.map_err(|error| (statement.to_owned(), error))?;
    }
    let sql = "SELECT 'DROP TABLE ' || string_agg(oid::regclass::text, ', ') FROM pg_class
            WHERE relnamespace = 'walcast'::regnamespace AND relkind IN ('r', 'p')
        UNION ALL SELECT 'DROP ROUTINE ' || string_agg(oid::regprocedure::text, ', ') FROM pg_proc
            WHERE pronamespace = 'walcast'::regnamespace
        UNION ALL SELECT 'DROP SCHEMA walcast'";
    let rows = transaction.query_typed(sql, &[]).await.map_err(|error| (sql.to_owned(), error))?;
    for statement in rows.iter().filter_map(|row| row.get::<_, Option<String>>(0)) {
        transaction.batch_execute(&statement).await.map_err(|error| (statement, error))?;
    }
    Ok(())
}
