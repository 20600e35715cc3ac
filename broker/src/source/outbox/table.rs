//! The statements: what the broker asks of the functions in the schema, each in one round trip that leaves nothing
//! behind, so that a transaction pooler may be in between.

use serde::Deserialize;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::tick::{Tick, Written};
use crate::postgres::{describe, is_shutdown};
use crate::source::failure::{Failure, Kind, NOT_GRANTED};

/// Rows of one page at most,
const ROWS_MAX: i32 = 2_000;
/// which ends earlier when their data, as stored, holds so much.
const BYTES_MAX: i64 = 4 << 20;
/// Ticks that are read at a time.
pub(super) const TICKS_MAX: i32 = 200;

/// What has to be known before anything is read.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Standing {
    /// Which server,
    pub(super) system: String,
    /// on which branch of its history,
    pub(super) timeline: String,
    /// and which of its databases.
    pub(super) database: String,
    /// `None`: setup was not run for this source.
    pub(super) generation: Option<String>,
    pub(super) carry: String,
    /// Of transactions for which nobody asked for another.
    isolation: String,
    pub(super) lane_seconds: u64,
    /// The next transaction id.
    pub(super) xmax: String,
    /// Rows up to this tick may be gone.
    pub(super) kept: u64,
    /// Nothing was published between this position and the tick behind `kept`.
    pub(super) quiet_tick: u64,
    pub(super) quiet_ordinal: u64,
    /// The newest tick.
    pub(super) last: u64,
}

/// A row of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it is published; of a row's change, its table.
    pub(super) topic: String,
    /// Pairs as in the first line of a message.
    pub(super) options: String,
    /// JSON.
    pub(super) data: String,
}

/// Some rows, in the order of their ids.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) rows: Vec<Written<Line>>,
    /// The id of the last one.
    pub(super) upto: i64,
    /// There may be others behind it.
    pub(super) more: bool,
}

/// What a look brought.
#[derive(Debug)]
pub(super) enum Look {
    /// Somebody else leads.
    Lost,
    /// Nothing has become visible.
    Quiet,
    /// The next tick, and its first rows.
    Made(Tick, Page),
}

/// Reads what [`Standing`] says.
pub(super) async fn standing(client: &Client, source: &str) -> Result<Standing, Failure> {
    const SQL: &str = "SELECT walcast.outbox_start($1)";
    let row = client.query_typed_one(SQL, &[(&source, Type::TEXT)]).await.map_err(failed)?;
    let text: Option<&str> = row.try_get(0).map_err(failed)?;
    let text = text.ok_or_else(|| {
        Failure::needs_operator("the outbox was not set up: run `walcast setup --source outbox`")
    })?;
    let standing: Standing = serde_json::from_str(text).map_err(|error| {
        Failure::needs_operator(format!("walcast.outbox_start: {error}; run `walcast setup` of this version"))
    })?;
    // Each statement of a look has to see more than the one before.
    if standing.isolation != "read committed" {
        return Err(Failure::needs_operator(format!(
            "transactions of the broker's role are {}: ALTER ROLE … SET default_transaction_isolation = 'read committed'",
            standing.isolation
        )));
    }
    Ok(standing)
}

/// What somebody who leads holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) token: i64,
    /// Who asked for the lease last.
    pub(super) asked_by: Option<String>,
    /// Where the server's log ended when it was got.
    pub(super) lsn: u64,
}

/// Takes the lease or keeps it; `None` where somebody else leads.
pub(super) async fn lead(client: &Client, holder: &str, seconds: f64) -> Result<Option<Held>, Failure> {
    // While the lease's row is locked: whoever gets it later finds the log further on.
    const SQL: &str = "SELECT token, asked, (pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint
                       FROM walcast.outbox_lead($1::text::uuid, $2)";
    let params: [(&(dyn ToSql + Sync), Type); 2] = [(&holder, Type::TEXT), (&seconds, Type::FLOAT8)];
    let row = client.query_typed_one(SQL, &params).await.map_err(failed)?;
    let token: Option<i64> = row.try_get(0).map_err(failed)?;
    let asked_by = row.try_get(1).map_err(failed)?;
    let lsn: i64 = row.try_get(2).map_err(failed)?;
    Ok(token.map(|token| Held { token, asked_by, lsn: lsn.cast_unsigned() }))
}

/// Asks whoever leads to give the lease up.
pub(super) async fn ask(client: &Client, holder: &str) -> Result<(), Failure> {
    const SQL: &str = "SELECT walcast.outbox_ask($1::text::uuid)::text";
    client.query_typed_one(SQL, &[(&holder, Type::TEXT)]).await.map(drop).map_err(failed)
}

/// Gives the lease back.
pub(super) async fn leave(client: &Client, held: i64) -> Result<(), Failure> {
    const SQL: &str = "SELECT walcast.outbox_leave($1)::text";
    client.query_typed_one(SQL, &[(&held, Type::INT8)]).await.map(drop).map_err(failed)
}

/// Ticks from `first` on.
pub(super) async fn ticks(client: &Client, first: u64) -> Result<Vec<Tick>, Failure> {
    const SQL: &str = "SELECT id, snapshot, high_id, made_us FROM walcast.outbox_ticks($1, $2)";
    let first = first.cast_signed();
    let params: [(&(dyn ToSql + Sync), Type); 2] = [(&first, Type::INT8), (&TICKS_MAX, Type::INT4)];
    let rows = client.query_typed(SQL, &params).await.map_err(failed)?;
    rows.iter()
        .map(|row| {
            let id: i64 = row.try_get(0).map_err(failed)?;
            tick(id.cast_unsigned(), row, 1)
        })
        .collect()
}

/// What `upto` sees and `seen` does not, behind the row `after`.
pub(super) async fn rows(
    client: &Client,
    held: i64,
    seen: &Tick,
    upto: &Tick,
    after: i64,
) -> Result<Page, Failure> {
    const SQL: &str = "SELECT id, xid, topic, options, data, more
        FROM walcast.outbox_rows($1, $2, $3::text::pg_snapshot, $4::text::pg_snapshot, $5, $6, $7, $8)";
    let base = seen.id.cast_signed();
    let params: [(&(dyn ToSql + Sync), Type); 8] = [
        (&held, Type::INT8),
        (&base, Type::INT8),
        (&seen.text, Type::TEXT),
        (&upto.text, Type::TEXT),
        (&upto.high_id, Type::INT8),
        (&after, Type::INT8),
        (&ROWS_MAX, Type::INT4),
        (&BYTES_MAX, Type::INT8),
    ];
    let rows = client.query_typed(SQL, &params).await.map_err(failed)?;
    page(&rows)
}

/// Makes the next tick behind `last` if there is anything new, or if it is `forced`.
pub(super) async fn look(client: &Client, held: i64, last: &Tick, forced: bool) -> Result<Look, Failure> {
    const SQL: &str = "SELECT id, xid, topic, options, data, more, done, snapshot, high_id, made_us
        FROM walcast.outbox_look($1, $2, $3::text::pg_snapshot, $4, $5, $6)";
    let before = last.id.cast_signed();
    let params: [(&(dyn ToSql + Sync), Type); 6] = [
        (&held, Type::INT8),
        (&before, Type::INT8),
        (&last.text, Type::TEXT),
        (&forced, Type::BOOL),
        (&ROWS_MAX, Type::INT4),
        (&BYTES_MAX, Type::INT8),
    ];
    let rows = client.query_typed(SQL, &params).await.map_err(failed)?;
    let head = rows.first().ok_or_else(|| Failure::again("walcast.outbox_look: no answer"))?;
    match head.try_get(6).map_err(failed)? {
        "lost" => Ok(Look::Lost),
        "quiet" => Ok(Look::Quiet),
        _ => Ok(Look::Made(tick(last.id + 1, head, 7)?, page(rows.get(1..).unwrap_or_default())?)),
    }
}

/// What is left of rows and ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    /// Lanes that hold rows.
    pub(super) lanes: i32,
    /// What all lanes take on disk, with their indexes; `None`: somebody has a lock on one.
    pub(super) bytes: Option<i64>,
}

/// Nobody needs what the tick `kept` sees, and nothing was published between `quiet` and the tick behind it.
pub(super) async fn trim(client: &Client, held: i64, kept: u64, quiet: (u64, u64)) -> Result<Left, Failure> {
    const SQL: &str = "SELECT holding, bytes FROM walcast.outbox_trim($1, $2, $3, $4)";
    let (kept, quiet) = (kept.cast_signed(), (quiet.0.cast_signed(), quiet.1.cast_signed()));
    let params: [(&(dyn ToSql + Sync), Type); 4] =
        [(&held, Type::INT8), (&kept, Type::INT8), (&quiet.0, Type::INT8), (&quiet.1, Type::INT8)];
    let row = client.query_typed_one(SQL, &params).await.map_err(failed)?;
    let lanes: Option<i32> = row.try_get(0).map_err(failed)?;
    Ok(Left { lanes: lanes.ok_or_else(lost)?, bytes: row.try_get(1).map_err(failed)? })
}

/// Begins another number line; `discard`: also what is written, since another server numbered its transactions.
pub(super) async fn renew(client: &Client, source: &str, held: i64, discard: bool) -> Result<(), Failure> {
    const SQL: &str = "SELECT walcast.outbox_renew($1, $2, $3)";
    let params: [(&(dyn ToSql + Sync), Type); 3] =
        [(&source, Type::TEXT), (&held, Type::INT8), (&discard, Type::BOOL)];
    client.query_typed_one(SQL, &params).await.map(drop).map_err(failed)
}

fn tick(id: u64, row: &Row, from: usize) -> Result<Tick, Failure> {
    let text: &str = row.try_get(from).map_err(failed)?;
    let (high_id, made_us) = (row.try_get(from + 1).map_err(failed)?, row.try_get(from + 2).map_err(failed)?);
    Tick::new(id, text, high_id, made_us)
        .ok_or_else(|| Failure::again(format!("the snapshot of tick {id} cannot be read: {text:?}")))
}

fn page(rows: &[Row]) -> Result<Page, Failure> {
    let mut page = Page { rows: Vec::with_capacity(rows.len()), ..Page::default() };
    for row in rows {
        let read = || {
            let xid: i64 = row.try_get(1)?;
            let line = Line { topic: row.try_get(2)?, options: row.try_get(3)?, data: row.try_get(4)? };
            Ok((row.try_get(0)?, row.try_get(5)?, Written { xid: xid.cast_unsigned(), what: line }))
        };
        let row;
        (page.upto, page.more, row) = read().map_err(failed)?;
        page.rows.push(row);
    }
    Ok(page)
}

/// The lease went to another broker.
pub(super) fn lost() -> Failure {
    Failure { message: "another broker has the lease".to_owned(), kind: Kind::Held }
}

fn failed(error: tokio_postgres::Error) -> Failure {
    let denied = |code: &SqlState| *code == SqlState::INSUFFICIENT_PRIVILEGE;
    let missing = |code: &SqlState| {
        [SqlState::UNDEFINED_FUNCTION, SqlState::UNDEFINED_TABLE, SqlState::INVALID_SCHEMA_NAME]
            .contains(code)
    };
    match error.code() {
        Some(code) if denied(code) => Failure::needs_operator(NOT_GRANTED),
        Some(code) if missing(code) => Failure::needs_operator(format!(
            "the schema of this database is older than this walcast, or not there: {}; run `walcast setup --source outbox`",
            describe(&error)
        )),
        // Told by `walcast.outbox_rows`.
        Some(code) if *code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => lost(),
        Some(code) if is_shutdown(code) => Failure { message: describe(&error), kind: Kind::Shutdown },
        _ => Failure::again(format!("reading the outbox: {}", describe(&error))),
    }
}
