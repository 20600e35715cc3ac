//! Setting up where events travel through a table: all in one transaction, with no more rights than the database's
//! owner has, and through a transaction pooler as well.
//!
//! It must never switch publishers over before there is a first tick, which is where a broker begins to read.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::plan::{Action, Current, Step, Who};
use super::tries::{Refused, Tries};
use super::triggers::{self, Wanted};
use super::{Report, STATEMENTS, SetupError, SetupOptions, checks, locks, moving, plan, statements};
use crate::source::SourceKind;
use crate::source::server::Server;

/// Lanes that hold what [`SetupOptions::history_age`] asks for, of those that take turns.
const LANES_KEPT: u64 = 4;
const LANE_SECONDS: std::ops::RangeInclusive<u64> = 10..=648_000;

/// What a broker calls; what these do is in the migration.
pub(super) const FUNCTIONS: &[&str] = &[
    "walcast.outbox_start(text)",
    "walcast.outbox_ticks(bigint, integer)",
    "walcast.outbox_rows(bigint, bigint, pg_snapshot, pg_snapshot, bigint, bigint, integer, bigint)",
    "walcast.outbox_ask(uuid)",
    "walcast.outbox_lead(uuid, double precision)",
    "walcast.outbox_leave(bigint)",
    "walcast.outbox_look(bigint, bigint, pg_snapshot, boolean, integer, bigint)",
    "walcast.outbox_trim(bigint, bigint, bigint, bigint)",
    "walcast.outbox_renew(text, bigint, boolean)",
];

/// What there is of the outbox, in a database of either kind.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// By what published messages travel.
    carry: String,
    lane_seconds: i32,
    /// There is a tick from which on it is read.
    begun: bool,
    /// What the rules need.
    wanted: Vec<Wanted>,
    triggers: triggers::Found,
}

impl Found {
    /// A database that knows nothing of walcast.
    pub(super) fn nothing() -> Self {
        Self {
            carry: SourceKind::Wal.as_str().into(),
            lane_seconds: 0,
            begun: false,
            wanted: Vec::new(),
            triggers: triggers::Found::default(),
        }
    }

    pub(super) async fn read(client: &Client, options: &SetupOptions) -> Result<Self, tokio_postgres::Error> {
        let mut found = Self { triggers: triggers::Found::read(client).await?, ..Self::nothing() };
        let sql = "SELECT to_regclass('walcast.outbox_reader') IS NOT NULL";
        let schema: bool = client.query_typed_one(sql, &[]).await?.try_get(0)?;
        if schema {
            let sql = "SELECT carry, lane_seconds FROM walcast.settings";
            if let Some(row) = client.query_typed_opt(sql, &[]).await? {
                (found.carry, found.lane_seconds) = (row.try_get(0)?, row.try_get(1)?);
            }
        }
        if schema && options.kind == SourceKind::Outbox {
            // What a broker asks, so that its role may look, too.
            let sql = "SELECT walcast.outbox_start($1) IS NOT NULL";
            let row = client.query_typed_one(sql, &[(&options.source, Type::TEXT)]).await?;
            found.begun = row.try_get(0)?;
        }
        if options.kind == SourceKind::Outbox {
            for table in &options.tables {
                found.wanted.push(Wanted::read(client, table).await?);
            }
        }
        Ok(found)
    }

    /// Whether publishers send by another way than they are to.
    pub(super) fn switches(&self, options: &SetupOptions) -> bool {
        self.carry != options.kind.as_str()
    }

    /// The tables that are published.
    pub(super) fn tables(&self) -> Vec<String> {
        self.triggers.tables().map(|(schema, name)| format!("{schema}.{name}")).collect()
    }

    /// What is missing once schema, generation and grants are there.
    pub(super) fn steps(&self, options: &SetupOptions) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut step = |what: String, failed: String, sql: Vec<String>, switches: bool| {
            let action = Action::Transaction(sql);
            steps.push(Step { who: Who::Owner, what, failed, action, switches });
        };
        let outbox = options.kind == SourceKind::Outbox;
        if outbox && !self.begun {
            let sql = vec!["SELECT walcast.outbox_begin()".to_owned()];
            step("outbox: first tick made".into(), "outbox: no first tick made".into(), sql, false);
        }
        // Triggers do nothing while messages travel by the log, so they come before what makes them work, and go after.
        let triggers = triggers::plan(&self.wanted, &self.triggers);
        let triggers = triggers.map(|(what, sql)| (what, "triggers: not changed".to_owned(), sql, false));
        let settings = self
            .settings(options)
            .map(|(what, sql)| (what, "settings: not changed".to_owned(), sql, self.switches(options)));
        for (what, failed, sql, switches) in
            if outbox { [triggers, settings] } else { [settings, triggers] }.into_iter().flatten()
        {
            step(what, failed, sql, switches);
        }
        steps
    }

    fn settings(&self, options: &SetupOptions) -> Option<(String, Vec<String>)> {
        let kind = options.kind.as_str();
        let seconds = lane_seconds(options.history_age);
        let lanes = options.kind == SourceKind::Outbox && i64::from(self.lane_seconds) != i64::from(seconds);
        if !self.switches(options) && !lanes {
            return None;
        }
        let mut sql = format!("UPDATE walcast.settings SET carry = {}", statements::literal(kind));
        let mut what = match options.kind {
            SourceKind::Wal => "settings: from now on publishers send through the write-ahead log".to_owned(),
            SourceKind::Outbox if self.switches(options) => {
                "settings: from now on publishers send through the outbox".to_owned()
            }
            SourceKind::Outbox => "settings".to_owned(),
        };
        if lanes {
            sql.push_str(&format!(", lane_seconds = {seconds}"));
            what.push_str(&format!(", in lanes of {seconds} s"));
        }
        Some((what, vec![sql]))
    }
}

/// Enough for what is kept to lie in a few lanes.
fn lane_seconds(age: Duration) -> u32 {
    let age = age.as_secs() + u64::from(age.subsec_nanos() > 0);
    let seconds = age.div_ceil(LANES_KEPT).clamp(*LANE_SECONDS.start(), *LANE_SECONDS.end());
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Looks, refuses what would not work, and takes the missing steps, all in one transaction, which is tried until it has
/// its locks. What was done, and what has to go on for a while where publishers were switched over.
///
/// # Errors
/// See [`SetupError`]. Nothing was changed then.
pub(super) async fn setup(
    client: &mut Client,
    options: &SetupOptions,
) -> Result<(Report, Option<&'static str>), SetupError> {
    let tries = Tries::new(options.lock_timeout);
    loop {
        match try_setup(client, options, &tries).await {
            Err(Refused::Locked(_)) if tries.again().await => {}
            ended => return Ok(ended?),
        }
    }
}

async fn try_setup(
    client: &mut Client,
    options: &SetupOptions,
    tries: &Tries,
) -> Result<(Report, Option<&'static str>), Refused> {
    let mut report = Report::default();
    let failed = |error| SetupError::from_postgres("setting up", &error);
    let transaction = client.transaction().await.map_err(failed)?;
    let (current, warnings) = look(transaction.client(), options, tries.left()).await?;
    report.warnings = warnings;
    tries.limit(transaction.client()).await.map_err(failed)?;
    for step in plan::plan(options, &current) {
        let Action::Transaction(sql) = &step.action else { continue };
        for statement in sql {
            if let Err(error) = transaction.batch_execute(statement).await {
                transaction.rollback().await.map_err(failed)?;
                return Err(locks::refusal(client, &step.failed, statement, &error, STATEMENTS).await);
            }
        }
        report.steps.push(step.what);
    }
    transaction.commit().await.map_err(failed)?;
    Ok((report, current.switches_publishers(options)))
}

/// What is missing.
///
/// # Errors
/// See [`SetupError`].
pub(super) async fn missing_steps(
    client: &mut Client,
    options: &SetupOptions,
) -> Result<Vec<Step>, SetupError> {
    let failed = |error| SetupError::from_postgres("looking at what is set up", &error);
    let transaction = client.transaction().await.map_err(failed)?;
    let (current, _) = look(transaction.client(), options, options.lock_timeout).await?;
    transaction.rollback().await.map_err(failed)?;
    Ok(plan::plan(options, &current))
}

/// What there is, and what the operator should know.
async fn look(
    client: &Client,
    options: &SetupOptions,
    lock_timeout: Duration,
) -> Result<(Current, Vec<String>), SetupError> {
    begin(client, lock_timeout).await?;
    let version = version(client).await?;
    moving::refuse(client, options).await?;
    checks::roles(client, options).await?;
    checks::tables(client, options, version).await?;
    let current = Current::read(client, options, version).await?;
    checks::wanted(options, &current.outbox.tables())?;
    let warnings = left_over(client, options).await?;
    Ok((current, warnings))
}

/// Makes a transaction independent of defaults, and the only one that sets up or tears down.
pub(in crate::cli) async fn begin(client: &Client, lock_timeout: Duration) -> Result<(), SetupError> {
    for setting in statements::transaction(lock_timeout) {
        client.batch_execute(&setting).await.map_err(|error| super::not_alone(&error))?;
    }
    Ok(())
}

/// The server's version, if it can carry an outbox.
async fn version(client: &Client) -> Result<i32, SetupError> {
    let server = Server::look(client).await;
    let server = server.map_err(|error| SetupError::from_postgres("looking at the server", &error))?;
    let problems = server.problems(SourceKind::Outbox);
    if problems.is_empty() { Ok(server.version_num) } else { Err(SetupError::Server(problems)) }
}

/// What an earlier set-up for the log left. A slot that nobody reads keeps WAL.
async fn left_over(client: &Client, options: &SetupOptions) -> Result<Vec<String>, SetupError> {
    let sql = "SELECT EXISTS (SELECT FROM pg_replication_slots
            WHERE slot_name = $1 AND slot_type = 'logical' AND database = current_database()),
        EXISTS (SELECT FROM pg_publication WHERE pubname = $2)";
    let names = [(&options.source as _, Type::TEXT), (&options.publication as _, Type::TEXT)];
    let row = client.query_typed_one(sql, &names).await;
    let row = row.map_err(|error| SetupError::from_postgres("looking for slots", &error))?;
    let (source, publication) = (&options.source, &options.publication);
    let mut warnings = Vec::new();
    if row.get(0) {
        warnings.push(format!(
            "slot {source} is left alone, and keeps WAL although the outbox does not need it; once no broker reads \
             it any more: {}",
            statements::drop_slot(source)
        ));
    }
    if row.get(1) {
        warnings.push(format!(
            "publication {publication} is left alone, although the outbox does not need it; once no broker reads \
             it any more: DROP PUBLICATION {}",
            statements::ident(publication)
        ));
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_lies_in_a_few_lanes() {
        let check = |age: &str, expected| {
            assert_eq!(lane_seconds(humantime::parse_duration(age).unwrap()), expected, "{age}");
        };
        check("1s", 10);
        check("10m", 150);
        check("601s", 151);
        check("600s 1ms", 151);
        check("30days", 648_000);
    }
}
