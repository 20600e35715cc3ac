//! Reads state tables exactly as one snapshot sees them, so that their current values are known before
//! anything changes.
//!
//! Values are fetched as the type's own output writes them, which is what the stream carries: a seeded row
//! is equal, byte for byte, to the streamed one. Which streamed transactions the rows contain follows from
//! `pg_current_snapshot()`, by transaction id and never by LSN.
//!
//! It runs on a session that nobody else uses meanwhile. It writes nothing, and dropping its future rolls the
//! transaction back. It holds ACCESS SHARE locks until the end: they stop no reader and no writer, but
//! ALTER TABLE, and whatever queues behind that, waits.

use std::fmt::Write as _;
use std::num::NonZeroU64;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::TryStreamExt;
use tokio::sync::mpsc::{self, error::SendError};
use tokio::time::{Instant, sleep_until};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{
    Client, GenericClient, IsolationLevel, SimpleQueryMessage, SimpleQueryRow, Transaction,
};

use super::types::{self, TypeMap};
use crate::event::{Cell, Changes, Column, Relation, Row, SeedRows, Snapshot};
use crate::postgres::{RENDERING, describe};
use crate::value::ValueKind;

/// How fast to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Transactions that were yielded before others could see them: the snapshot waits until it contains them.
    pub yielded: Vec<u32>,
    /// Text of values per second, averaged over the run; keeps a large table from crowding out the
    /// application's reads.
    pub bytes_per_second: NonZeroU64,
}

impl Default for Config {
    fn default() -> Self {
        Self { yielded: Vec::new(), bytes_per_second: NonZeroU64::MIN.saturating_add((64 << 20) - 1) }
    }
}

/// A table to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedTable {
    /// Schema and name, joined by a dot, unquoted.
    pub name: Arc<str>,
    /// The columns that anybody wants; those of the replica identity come with them. `None`: all.
    pub columns: Option<Vec<String>>,
}

/// Seeding failed; nothing of the transaction stays behind.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// A rule names what is not there.
    #[error("state table {0}: the database has no such table; create it, or correct the rule")]
    Missing(Arc<str>),
    /// A view or the like.
    #[error(
        "state table {0}: it is no table, and only tables have changes in the WAL; name the table itself"
    )]
    NotATable(Arc<str>),
    /// The role lacks SELECT on the table or USAGE on its schema.
    #[error("state table {table}: the role may not read it; run: {remedy}")]
    Denied {
        /// The table.
        table: Arc<str>,
        /// SQL for its owner.
        remedy: String,
    },
    /// Policies would hide rows without a word.
    #[error("state table {table}: row-level security hides rows from the role; run: {remedy}")]
    RowSecurity {
        /// The table.
        table: Arc<str>,
        /// SQL for a superuser.
        remedy: String,
    },
    /// Somebody holds an exclusive lock for long.
    #[error(
        "state table {0}: locked exclusively for more than {LOCK_TIMEOUT}; find who holds it in pg_locks"
    )]
    Locked(Arc<str>),
    /// A transaction was delivered, by `delivery = "fast"`, that others cannot see yet.
    #[error(
        "state tables: transaction {0} was delivered but is not visible yet: is a synchronous standby missing?"
    )]
    NotVisible(u32),
    /// Anything else the server said about one table.
    #[error("state table {table}: {}", describe(.error))]
    Table {
        /// The table.
        table: Arc<str>,
        /// The server's or the connection's word.
        error: tokio_postgres::Error,
    },
    /// The server's answer is not what we know.
    #[error("reading state tables: pg_current_snapshot() answered {0:?}; is this Postgres 14 or later?")]
    Snapshot(String),
    /// Anything else.
    #[error("reading state tables: {}", describe(.0))]
    Session(#[from] tokio_postgres::Error),
}

impl SeedError {
    /// Whether trying again is of no use until an operator acted.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::NotATable(_) | Self::Denied { .. } | Self::RowSecurity { .. })
    }

    fn of_table(table: &Arc<str>, error: tokio_postgres::Error) -> Self {
        let table = Arc::clone(table);
        if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
            Self::Locked(table)
        } else {
            Self::Table { table, error }
        }
    }
}

const LOCK_TIMEOUT: &str = "30s";
/// Rows per round trip, and at most in a piece,
const PIECE_ROWS_MAX: usize = 1_000;
/// which ends earlier when it holds this much text.
const PIECE_BYTES_MAX: usize = 1 << 20;

/// Reads `tables` and sends [`Changes::SeedBegin`] and pieces of rows; [`Changes::SeedEnd`], with this snapshot and
/// the settle point, is the caller's to send, since each source has its own way to find the latter. `forget` are
/// tables that are announced and not read, so that their values go. `None`: the receiver is gone.
///
/// `out` must be the seed's own channel: before the snapshot is taken, `SeedBegin` has been received, and
/// so every transaction that its receiver yielded earlier is contained. Cancel safe: the transaction is rolled back.
///
/// # Errors
/// A table cannot be read, or the session failed. What was sent so far is void without `SeedEnd`.
pub async fn read(
    client: &mut Client,
    tables: &[SeedTable],
    forget: &[Arc<str>],
    config: &Config,
    out: &mpsc::Sender<Changes>,
) -> Result<Option<Arc<Snapshot>>, SeedError> {
    match run(client, tables, forget, config, out).await {
        Err(Stop::Failed(error)) => Err(error),
        Ok(snapshot) => Ok(Some(snapshot)),
        Err(Stop::Unwanted) => Ok(None),
    }
}

/// Why reading stops early.
enum Stop {
    Failed(SeedError),
    Unwanted,
}

impl<E: Into<SeedError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The receiver is gone.
fn unwanted<T>(_: SendError<T>) -> Stop {
    Stop::Unwanted
}

async fn run(
    client: &mut Client,
    tables: &[SeedTable],
    forget: &[Arc<str>],
    config: &Config,
    out: &mpsc::Sender<Changes>,
) -> Result<Arc<Snapshot>, Stop> {
    let found = find(client, tables).await?;
    let names = found.iter().map(|found| &found.name).chain(forget).cloned().collect();
    out.send(Changes::SeedBegin(names)).await.map_err(unwanted)?;
    // All permits are free only once it was received.
    drop(out.reserve_many(out.max_capacity()).await.map_err(unwanted)?);

    wait_until_visible(client, &config.yielded).await?;
    let builder = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead);
    let transaction = builder.read_only(true).start().await?;
    transaction.batch_execute(&settings()).await?;
    for table in &found {
        // Before the snapshot: to one that is older than a rewriting ALTER TABLE, the table looks empty.
        let sql = format!("LOCK TABLE {} IN ACCESS SHARE MODE", table.from);
        transaction.batch_execute(&sql).await.map_err(|error| SeedError::of_table(&table.name, error))?;
    }
    let snapshot = Arc::new(current_snapshot(&transaction).await?);

    let mut reader = Reader {
        transaction: &transaction,
        types: TypeMap::default(),
        pace: Pace { due: Instant::now(), bytes_per_second: config.bytes_per_second },
        out,
        snapshot: Arc::clone(&snapshot),
    };
    for (table, wanted) in found.iter().zip(tables) {
        reader.read(table, wanted.columns.as_deref()).await?;
    }
    transaction.commit().await?;
    Ok(snapshot)
}

async fn wait_until_visible(client: &Client, yielded: &[u32]) -> Result<(), SeedError> {
    const PAUSE: Duration = Duration::from_millis(5);
    const PATIENCE: Duration = Duration::from_secs(5);
    if yielded.is_empty() {
        return Ok(());
    }
    let start = Instant::now();
    loop {
        let snapshot = current_snapshot(client).await?;
        match yielded.iter().find(|xid| !snapshot.contains(**xid)) {
            None => return Ok(()),
            // Others want the session, too.
            Some(xid) if start.elapsed() > PATIENCE => return Err(SeedError::NotVisible(*xid)),
            Some(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn current_snapshot(client: &impl GenericClient) -> Result<Snapshot, SeedError> {
    let row = client.query_typed_one("SELECT pg_catalog.pg_current_snapshot()::text", &[]).await?;
    let snapshot: String = row.try_get(0)?;
    Snapshot::parse(&snapshot).ok_or(SeedError::Snapshot(snapshot))
}

/// The transaction's own settings; the server's defaults may be hostile to a long read.
fn settings() -> String {
    let own = [
        ("lock_timeout", LOCK_TIMEOUT),
        ("statement_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        // An error instead of fewer rows, should a policy appear meanwhile.
        ("row_security", "off"),
    ];
    let mut sql = String::new();
    for (name, value) in RENDERING.iter().chain(&own) {
        let _ = write!(sql, "SET LOCAL {name} = '{value}';");
    }
    sql
}

/// A table as the catalog has it.
struct Found {
    name: Arc<str>,
    oid: u32,
    /// What stands behind FROM: quoted, and `ONLY` for a table whose children are tables of their own.
    from: String,
}

async fn find(client: &Client, tables: &[SeedTable]) -> Result<Vec<Found>, SeedError> {
    const QUERY: &str = "
        SELECT n.nspname || '.' || c.relname, c.oid, c.relkind::text,
               pg_catalog.format('%I.%I', n.nspname, c.relname),
               pg_catalog.quote_ident(n.nspname), pg_catalog.quote_ident(current_user),
               pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                   AND pg_catalog.has_table_privilege(c.oid, 'SELECT'),
               pg_catalog.row_security_active(c.oid)
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname || '.' || c.relname = ANY ($1::text[])";
    let names: Vec<&str> = tables.iter().map(|table| &*table.name).collect();
    let rows = client.query_typed(QUERY, &[(&names, Type::TEXT_ARRAY)]).await?;
    let mut found = Vec::with_capacity(tables.len());
    for table in tables {
        let name = Arc::clone(&table.name);
        let Some(row) = rows.iter().find(|row| row.try_get(0).is_ok_and(|text: &str| *text == *name)) else {
            return Err(SeedError::Missing(name));
        };
        let (quoted, schema, role): (&str, &str, &str) = (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
        let from = match row.try_get(2)? {
            "r" => format!("ONLY {quoted}"),
            "p" => quoted.to_owned(),
            _ => return Err(SeedError::NotATable(name)),
        };
        if !row.try_get::<_, bool>(6)? {
            let remedy =
                format!("GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT SELECT ON {quoted} TO {role};");
            return Err(SeedError::Denied { table: name, remedy });
        }
        if row.try_get(7)? {
            let remedy = format!("ALTER ROLE {role} BYPASSRLS;");
            return Err(SeedError::RowSecurity { table: name, remedy });
        }
        found.push(Found { name, oid: row.try_get(1)?, from });
    }
    Ok(found)
}

struct Reader<'a> {
    transaction: &'a Transaction<'a>,
    types: TypeMap,
    pace: Pace,
    out: &'a mpsc::Sender<Changes>,
    snapshot: Arc<Snapshot>,
}

impl Reader<'_> {
    async fn read(&mut self, table: &Found, wanted: Option<&[String]>) -> Result<(), Stop> {
        let failed = |error| SeedError::of_table(&table.name, error);
        let relation = Arc::new(self.describe(table, wanted).await.map_err(failed)?);
        let mut columns = String::new();
        for column in &relation.columns {
            let comma = if columns.is_empty() { "" } else { ", " };
            let _ = write!(columns, "{comma}\"{}\"", column.name.replace('"', "\"\""));
        }
        let declare =
            format!("DECLARE walcast_seed NO SCROLL CURSOR FOR SELECT {columns} FROM {}", table.from);
        self.transaction.batch_execute(&declare).await.map_err(failed)?;
        while self.read_piece(table, &relation).await? {}
        self.transaction.batch_execute("CLOSE walcast_seed").await.map_err(failed)?;
        Ok(())
    }

    /// One round trip; whether there may be more rows.
    async fn read_piece(&mut self, table: &Found, relation: &Arc<Relation>) -> Result<bool, Stop> {
        let failed = |error| SeedError::of_table(&table.name, error);
        // The simple protocol: values come as their type's output function writes them. A cast to text is
        // not the same (`true` for `t`, `10.0.0.1/32` for an address), nor is the binary form.
        let fetch = format!("FETCH {PIECE_ROWS_MAX} FROM walcast_seed");
        let stream = self.transaction.client().simple_query_raw(&fetch).await.map_err(failed)?;
        let mut stream = pin!(stream);
        let (mut rows, mut bytes, mut count) = (Vec::new(), 0, 0);
        while let Some(message) = stream.try_next().await.map_err(failed)? {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let (row, size) = cells(&row).map_err(failed)?;
            rows.push(row);
            bytes += size;
            count += 1;
            if bytes >= PIECE_BYTES_MAX {
                self.send(relation, std::mem::take(&mut rows), std::mem::take(&mut bytes)).await?;
            }
        }
        if !rows.is_empty() {
            self.send(relation, rows, bytes).await?;
        }
        Ok(count == PIECE_ROWS_MAX)
    }

    async fn send(&mut self, relation: &Arc<Relation>, rows: Vec<Row>, bytes: usize) -> Result<(), Stop> {
        let (snapshot, relation) = (Arc::clone(&self.snapshot), Arc::clone(relation));
        let piece = SeedRows { snapshot, relation, rows };
        self.out.send(Changes::Seed(piece)).await.map_err(unwanted)?;
        self.pace.spend(bytes).await;
        Ok(())
    }

    /// The table as the stream would describe it: in the same order, with the same key. Generated columns
    /// are not in the WAL.
    async fn describe(
        &mut self,
        table: &Found,
        wanted: Option<&[String]>,
    ) -> Result<Relation, tokio_postgres::Error> {
        const QUERY: &str = "
            SELECT a.attname::text, a.atttypid, c.relreplident = 'f' OR EXISTS (
                       SELECT FROM pg_catalog.pg_index i
                       WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                         AND CASE c.relreplident WHEN 'd' THEN i.indisprimary
                                                 WHEN 'i' THEN i.indisreplident ELSE false END
                         AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
            FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
            WHERE c.oid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
            ORDER BY a.attnum";
        let mut columns: Vec<(String, u32, bool)> = Vec::new();
        for row in self.transaction.query_typed(QUERY, &[(&table.oid, Type::OID)]).await? {
            let (name, key): (String, bool) = (row.try_get(0)?, row.try_get(2)?);
            if key || wanted.is_none_or(|wanted| wanted.contains(&name)) {
                columns.push((name, row.try_get(1)?, key));
            }
        }
        let unknown: Vec<u32> =
            columns.iter().map(|column| column.1).filter(|oid| self.types.kind(*oid).is_none()).collect();
        if !unknown.is_empty() {
            let answer = types::look_up(self.transaction.client(), &unknown).await?;
            self.types.learn(&unknown, &answer);
        }
        let columns = columns.into_iter().map(|(name, oid, key)| Column {
            name: name.into(),
            kind: self.types.kind(oid).unwrap_or(ValueKind::Text),
            key,
        });
        Ok(Relation { name: Arc::clone(&table.name), columns: columns.collect() })
    }
}

/// Copies a row into one allocation of which its cells are slices; also its size in bytes.
fn cells(row: &SimpleQueryRow) -> Result<(Row, usize), tokio_postgres::Error> {
    let values: Vec<Option<&str>> = (0..row.len()).map(|i| row.try_get(i)).collect::<Result<_, _>>()?;
    let size = values.iter().flatten().map(|text| text.len()).sum();
    let mut buffer = BytesMut::with_capacity(size);
    values.iter().flatten().for_each(|text| buffer.extend_from_slice(text.as_bytes()));
    let mut buffer = buffer.freeze();
    let cell =
        |value: &Option<&str>| value.map_or(Cell::Null, |text| Cell::Text(buffer.split_to(text.len())));
    Ok((values.iter().map(cell).collect(), size))
}

/// Spreads reading over time.
struct Pace {
    /// When what was read so far is paid for.
    due: Instant,
    bytes_per_second: NonZeroU64,
}

impl Pace {
    async fn spend(&mut self, bytes: usize) {
        self.due = self.due_after(bytes, Instant::now());
        sleep_until(self.due).await;
    }

    /// Time that passed unused is not saved up.
    fn due_after(&self, bytes: usize, now: Instant) -> Instant {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
        (self.due + cost).max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_is_paced() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let check = |due: f64, bytes: usize, now: f64, expected: f64| {
            let bytes_per_second = NonZeroU64::new(1_000).unwrap();
            let pace = Pace { due: at(due), bytes_per_second };
            assert_eq!(pace.due_after(bytes, at(now)), at(expected));
        };
        check(0.0, 500, 0.25, 0.5); // faster than allowed: waits
        check(0.0, 500, 0.75, 0.75); // slower: goes on at once,
        check(0.75, 500, 0.75, 1.25); // and may not hurry afterwards
    }
}
