//! `walcast setup`: makes the schema, the grants, and the publication and the floor slot, or the outbox's triggers.
//!
//! It looks first, refuses what would not work, and then takes the missing steps, so a second run finds
//! nothing to do. The steps that it takes are the steps that `--print-sql` prints: there is one plan. It
//! must never publish more than the rules name, and never create a slot without having written its
//! generation.

mod checks;
mod grants;
pub(super) mod locks;
pub(super) mod moving;
pub(super) mod outbox;
mod plan;
mod preconditions;
mod print;
pub(crate) mod statements;
mod switch;
pub(super) mod tries;
mod triggers;

use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

pub use self::moving::Carrier;
use self::plan::{Action, Current, Step};
use self::preconditions::Server;
pub(super) use self::preconditions::replication_denied;
pub use self::print::Audience;
use self::print::Dba;
use self::tries::{Refused, Tries};
use super::exit::{self, Failure};
use crate::postgres::describe;
use crate::source::SourceKind;

#[allow(missing_docs, reason = "made by a macro")]
mod embedded {
    refinery::embed_migrations!("../migrations");
}
use self::embedded::migrations;

/// Flags of `walcast setup`.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(after_help = "Examples:
  walcast setup
  walcast setup --broker-role walcast --publisher app
  walcast setup --carrier both --compat    # moving over from LISTEN/NOTIFY
  walcast setup --source outbox        # without logical replication, or through a pooler
  walcast setup --print-sql            # every statement, grouped by who runs it
  walcast setup --print-sql=owner | psql -U owner mydb

Exit codes: 0 set up, 64 a rule or the configuration is wrong, 69 the server does not fit or cannot be reached,
1 anything else.")]
pub struct SetupArgs {
    /// Role as which the broker will connect; it is granted what it needs
    #[arg(long, value_name = "ROLE")]
    pub broker_role: Option<String>,
    /// Role that may call walcast.publish and walcast.notify; repeat for several
    #[arg(long, value_name = "ROLE")]
    pub publisher: Vec<String>,
    /// Accept a server whose max_slot_wal_keep_size is -1: while no broker runs, WAL fills its disk
    #[arg(long)]
    pub accept_unbounded_wal: bool,
    /// Without a configuration file: take all tables out of the publication, since no rule names one
    #[arg(long)]
    pub no_tables: bool,
    /// What carries walcast.notify from now on; without it, what did before, at first walcast
    #[arg(long)]
    pub carrier: Option<Carrier>,
    /// Make the schema walcast_compat, whose pg_notify calls walcast.notify, for a search_path
    #[arg(long)]
    pub compat: bool,
    /// Print the statements for psql instead of running them: all, or those of dba, owner or broker
    #[arg(long, value_name = "WHO", num_args = 0..=1, require_equals = true, default_missing_value = "all")]
    pub print_sql: Option<Audience>,
    /// How long to wait for a lock, and for open transactions when the slot is created or publishers are switched over
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub lock_timeout: Duration,
    /// Report as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// A table that the rules publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedTable {
    /// Its schema, unquoted.
    pub schema: String,
    /// Its name, unquoted. A partitioned table is named by its root.
    pub name: String,
    /// What is published of a row: a column list for the publication (Postgres 15 on), or what triggers send. `None`:
    /// whole rows, which for a publication is safer.
    pub columns: Option<Vec<String>>,
    /// Whether the broker reads it to seed current values.
    pub state: bool,
}

impl std::fmt::Display for PublishedTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// What is to be set up.
#[derive(Clone, Debug)]
pub struct SetupOptions {
    /// By which way events travel.
    pub kind: SourceKind,
    /// How old events get that brokers keep; the outbox keeps them as long.
    pub history_age: Duration,
    /// Name of the source, which is the name of its floor slot.
    pub source: String,
    /// Name of the publication.
    pub publication: String,
    /// All that the rules publish.
    pub tables: Vec<PublishedTable>,
    /// Why nobody said what is to be published, where that is so. Then no table is taken out of the publication.
    pub rules_missing: Option<String>,
    /// The role as which the broker connects, if it is not the one that runs setup.
    pub broker_role: Option<String>,
    /// Roles that may publish.
    pub publishers: Vec<String>,
    /// Go on where a dead broker can fill the server's disk.
    pub accept_unbounded_wal: bool,
    /// What carries `walcast.notify`; `None`: what did before.
    pub carrier: Option<Carrier>,
    /// Whether there is to be a `pg_notify` that calls `walcast.notify`. One that is there stays.
    pub compat: bool,
    /// Limit for each lock, and for the transactions that creating a slot or switching publishers over waits for.
    pub lock_timeout: Duration,
}

impl Default for SetupOptions {
    fn default() -> Self {
        Self {
            kind: SourceKind::Wal,
            history_age: Duration::from_secs(600),
            source: "walcast".into(),
            publication: "walcast".into(),
            tables: Vec::new(),
            rules_missing: None,
            broker_role: None,
            publishers: Vec::new(),
            accept_unbounded_wal: false,
            carrier: None,
            compat: false,
            lock_timeout: Duration::from_secs(30),
        }
    }
}

/// What setup or teardown did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One line for each step taken; empty if there was nothing to do.
    pub steps: Vec<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

impl Report {
    /// Whether anything was done.
    #[must_use]
    pub fn changed(&self) -> bool {
        !self.steps.is_empty()
    }

    pub(super) fn write(&self, json: bool, nothing: &str, out: &mut impl Write) -> std::io::Result<()> {
        if json {
            serde_json::to_writer(&mut *out, self)?;
            return writeln!(out);
        }
        for step in &self.steps {
            writeln!(out, "{step}")?;
        }
        if !self.changed() {
            writeln!(out, "{nothing}")?;
        }
        self.warnings.iter().try_for_each(|warning| writeln!(out, "warning: {warning}"))
    }
}

/// Why setup or teardown stopped. Each line of the text names the thing, the cause and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A rule does not fit its table.
    #[error("{}", .0.join("\n"))]
    Rules(Vec<String>),
    /// The server, as it is configured, cannot carry a broker.
    #[error("{}", .0.join("\n"))]
    Server(Vec<String>),
    /// The role may not do this.
    #[error("{0}")]
    Denied(String),
    /// Somebody else's lock, transaction or session is in the way.
    #[error("{0}")]
    Blocked(String),
    /// Postgres refused, for a reason not foreseen here.
    #[error("{0}")]
    Postgres(String),
    /// The report could not be written.
    #[error("cannot write the report: {0}")]
    Output(#[from] std::io::Error),
}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        let code = match error {
            SetupError::Rules(_) => exit::USAGE,
            SetupError::Server(_) | SetupError::Blocked(_) => exit::UNAVAILABLE,
            SetupError::Denied(_) | SetupError::Postgres(_) | SetupError::Output(_) => exit::OTHER,
        };
        Self::new(code, error.to_string())
    }
}

impl SetupError {
    /// What `error` means while `doing` something.
    pub(super) fn from_postgres(doing: &str, error: &tokio_postgres::Error) -> Self {
        Self::from_refusal(doing, error, "")
    }

    /// The same; `who` says more of the role that is needed where a privilege is.
    fn from_refusal(doing: &str, error: &tokio_postgres::Error, who: &str) -> Self {
        let Some(db) = error.as_db_error() else {
            return Self::Postgres(format!(
                "{doing}: {}; check the connection and run the command again",
                describe(error)
            ));
        };
        let message = db.message();
        match *db.code() {
            SqlState::INSUFFICIENT_PRIVILEGE => {
                Self::Denied(format!("{doing}: {message}; run the command as a role that may{who}"))
            }
            SqlState::LOCK_NOT_AVAILABLE => Self::Blocked(format!(
                "{doing}: another session holds a lock; end it, or wait longer with --lock-timeout"
            )),
            _ => Self::Postgres(match db.hint() {
                Some(hint) => format!("{doing}: {message} ({hint})"),
                None => format!("{doing}: {message}"),
            }),
        }
    }
}

/// Where a step of setup lacks a privilege.
const STATEMENTS: &str = " (`walcast setup --print-sql` prints the statements of each role)";

/// Runs the command: sets up through `client`, or prints statements, for which no client is needed.
/// With one, only the missing statements are printed.
///
/// # Errors
/// See [`SetupError`].
pub async fn run(
    args: &SetupArgs,
    options: &SetupOptions,
    client: Option<&mut Client>,
    out: &mut impl Write,
) -> Result<(), SetupError> {
    if let Some(audience) = args.print_sql {
        let text = match client {
            None if options.kind == SourceKind::Outbox && !options.tables.is_empty() => {
                return Err(SetupError::Rules(vec![
                    "--print-sql: the triggers of the outbox depend on the tables as they are; name the database by \
                     --database-url, as the owner, or the broker's role"
                        .into(),
                ]));
            }
            None => {
                let steps = plan::plan(options, &Current::fresh());
                print::render(options, &steps, &Dba::unseen(options), audience)
            }
            Some(client) => {
                let (steps, problems) = match options.kind {
                    SourceKind::Outbox => (outbox::missing_steps(client, options).await?, Vec::new()),
                    SourceKind::Wal => missing_steps(client, options).await?,
                };
                let lacks = preconditions::role_lacks(client, options).await?;
                print::render(options, &steps, &Dba { problems: Some(problems), lacks }, audience)
            }
        };
        out.write_all(text.as_bytes())?;
        return Ok(());
    }
    let Some(client) = client else {
        return Err(SetupError::Postgres(
            "setup needs a connection to Postgres; pass --database-url or set WALCAST_DATABASE_URL".into(),
        ));
    };
    let mut report = Report::default();
    let ended = set_up(client, options, &mut report).await;
    // What is done is done, also where the rest could not be, and a warning that comes of it is not told again.
    if ended.is_ok() || report.changed() {
        report.write(args.json, "Nothing to do: everything is set up.", out)?;
    }
    ended
}

/// Sets up. Running it again changes nothing.
///
/// # Errors
/// See [`SetupError`]. Steps taken before the error stay; a later run goes on from there. What these were, and what is to
/// be known of them, only [`run`] tells then.
pub async fn setup(client: &mut Client, options: &SetupOptions) -> Result<Report, SetupError> {
    let mut report = Report::default();
    set_up(client, options, &mut report).await.map(|()| report)
}

async fn set_up(client: &mut Client, options: &SetupOptions, report: &mut Report) -> Result<(), SetupError> {
    if options.kind == SourceKind::Outbox {
        let switched;
        (*report, switched) = outbox::setup(client, options).await?;
        if let Some(meanwhile) = switched {
            switch::settle(client, options.lock_timeout, meanwhile, report).await;
        }
        return Ok(());
    }
    begin(client, options.lock_timeout).await?;
    let result = set_up_in_session(client, options, report).await;
    end(client).await;
    result
}

async fn set_up_in_session(
    client: &mut Client,
    options: &SetupOptions,
    report: &mut Report,
) -> Result<(), SetupError> {
    let server = Server::read(client, options).await?;
    server.refuse(options)?;
    moving::refuse(client, options).await?;
    checks::roles(client, options).await?;
    checks::tables(client, options, server.version()).await?;
    let current = Current::read(client, options, server.version()).await?;
    checks::wanted(options, &current.published())?;
    if current.needs_slot() {
        preconditions::may_replicate(client).await?;
    }
    report.warnings = server.warnings(options);
    for step in plan::plan(options, &current) {
        take(client, options, &step).await?;
        report.steps.push(step.what);
        // Before anything else, which may fail: a later run finds publishers switched over, and asks no more.
        if step.switches
            && let Some(meanwhile) = current.switches_publishers(options)
        {
            switch::settle(client, options.lock_timeout, meanwhile, report).await;
        }
    }
    if let Some(role) = &options.broker_role {
        report.warnings.extend(preconditions::role_may_replicate(client, role).await);
    }
    Ok(())
}

/// What is missing, and what is wrong with the server.
async fn missing_steps(
    client: &mut Client,
    options: &SetupOptions,
) -> Result<(Vec<Step>, Vec<String>), SetupError> {
    begin(client, options.lock_timeout).await?;
    let steps = async {
        let server = Server::read(client, options).await?;
        checks::roles(client, options).await?;
        checks::tables(client, options, server.version()).await?;
        let current = Current::read(client, options, server.version()).await?;
        checks::wanted(options, &current.published())?;
        Ok((plan::plan(options, &current), server.problems(options)))
    }
    .await;
    end(client).await;
    steps
}

async fn take(client: &mut Client, options: &SetupOptions, step: &Step) -> Result<(), SetupError> {
    let doing = |error: &tokio_postgres::Error| SetupError::from_refusal(&step.failed, error, STATEMENTS);
    match &step.action {
        Action::Transaction(sql) => {
            let tries = Tries::new(options.lock_timeout);
            loop {
                match try_statements(client, &step.failed, sql, &tries).await {
                    Err(Refused::Locked(_)) if tries.again().await => {}
                    ended => return Ok(ended?),
                }
            }
        }
        Action::DropLostSlot => {
            client.batch_execute(&statements::drop_slot(&options.source)).await.map_err(|error| doing(&error))
        }
        Action::CreateSlot { version } => {
            let sql = statements::create_slot(&options.source, version.is_some_and(|v| v >= 170_000));
            match client.batch_execute(&sql).await {
                Ok(()) => Ok(()),
                Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                    Err(blocked_by_transactions(client, &step.failed).await)
                }
                Err(error) => Err(doing(&error)),
            }
        }
    }
}

/// Runs `sql` in one transaction.
async fn try_statements(
    client: &mut Client,
    failed: &str,
    sql: &[String],
    tries: &Tries,
) -> Result<(), Refused> {
    let doing = |error| SetupError::from_refusal(failed, &error, STATEMENTS);
    let transaction = client.transaction().await.map_err(doing)?;
    tries.limit(transaction.client()).await.map_err(doing)?;
    for statement in sql {
        if let Err(error) = transaction.batch_execute(statement).await {
            transaction.rollback().await.map_err(doing)?;
            return Err(locks::refusal(client, failed, statement, &error, STATEMENTS).await);
        }
    }
    Ok(transaction.commit().await.map_err(doing)?)
}

/// Slot creation waits until every transaction that was open when it began has ended. Says which are open.
async fn blocked_by_transactions(client: &Client, what: &str) -> SetupError {
    let holders = match client.query_typed_one(statements::OPEN_TRANSACTIONS, &[]).await {
        Ok(row) => {
            row.get::<_, Option<String>>(0).unwrap_or_else(|| "transactions that ended meanwhile".into())
        }
        Err(_) => "open transactions".into(),
    };
    SetupError::Blocked(format!(
        "{what}: it waits for transactions that are open: {holders}; end them, for example by \
         pg_terminate_backend(pid), or wait longer with --lock-timeout"
    ))
}

/// Makes the session independent of the server's defaults, and the only one that sets up or tears down.
pub(super) async fn begin(client: &Client, lock_timeout: Duration) -> Result<(), SetupError> {
    let settings = statements::session(lock_timeout);
    client.batch_execute(&settings).await.map_err(|error| not_alone(&error))
}

fn not_alone(error: &tokio_postgres::Error) -> SetupError {
    match error.code() {
        Some(&SqlState::LOCK_NOT_AVAILABLE) => SetupError::Blocked(
            "another walcast setup or teardown is at work in this database; wait for it to end".into(),
        ),
        _ => SetupError::from_postgres("preparing the session", error),
    }
}

/// Gives the session back as it was. If that fails the connection is gone, and with it the settings.
pub(super) async fn end(client: &Client) {
    let _ = client.batch_execute(statements::SESSION_END).await;
}
