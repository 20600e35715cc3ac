//! Whether the floor slot and what names the number line are as they were, and the way back if they are not: a
//! new generation, then a new slot.
//!
//! The generation is written first, so that no cursor of before can pass for one of after, and once for each slot
//! however many attempts that takes. All of it runs on a session of its own, under the lock that `walcast setup` takes, so that of several brokers one does it and the
//! others find it done. A slot that is not ours is never touched, nor one that another broker streams beside.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{PgLsn, Type};
use tokio_util::task::AbortOnDropHandle;
use walcast_wire::Position;

use super::catalog::Slot;
use super::connect::literal;
use crate::postgres::{Companion, Session, Target, describe};
use crate::source::Config;
use crate::source::failure::{Failure, Kind, NOT_GRANTED};
use crate::telemetry::{LABEL_REASON, REBUILDS_TOTAL};

/// Between two looks while the stream runs.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a rebuild may wait for another's.
const LOCK_TIMEOUT: &str = "10s";
/// How long the new slot may wait for each transaction that is open: at first, and at most. It keeps WAL meanwhile.
const OPEN_WAIT_SECONDS: (u64, u64) = (1, 8);
/// Noted instead of a publication while a generation has no slot yet, and so names no cursor.
const NO_SLOT_YET: u32 = 0;
/// From this version on a standby can keep a copy of the slot.
const FAILOVER_VERSION: i32 = 170_000;
/// From this version on decoding is turned off with the last logical slot, unless `wal_level` asks for it.
const DYNAMIC_VERSION: i32 = 190_000;

/// Who holds a transaction id, the oldest first. Readable by every role.
pub(crate) const OPEN_TRANSACTIONS: &str = "SELECT string_agg(holder, ', ') FROM (
     SELECT coalesce('pid ' || l.pid || coalesce(' (' || nullif(concat_ws(', ', a.usename,
                nullif(a.application_name, ''), 'open for ' || date_trunc('second', now() - a.xact_start)), '')
            || ')', ''), 'prepared transaction ' || coalesce(p.gid, l.transactionid::text)) AS holder
     FROM pg_locks l
     LEFT JOIN pg_stat_activity a ON a.pid = l.pid
     LEFT JOIN pg_prepared_xacts p ON l.pid IS NULL AND p.transaction = l.transactionid
     WHERE l.locktype = 'transactionid' AND l.granted AND l.mode = 'ExclusiveLock'
         AND l.pid IS DISTINCT FROM pg_backend_pid()
     ORDER BY a.xact_start NULLS FIRST LIMIT 5) AS holders";

/// Taken by whoever makes or removes slots and schema: a session at a time.
pub(crate) const LOCK: &str = "SELECT pg_advisory_lock(hashtext('walcast setup'))";

/// The statement that makes a floor slot; `failover` exists from Postgres 17 on.
pub(crate) fn create_slot(slot: &str, failover: bool) -> String {
    let failover = if failover { ", failover => true" } else { "" };
    let slot = literal(slot);
    format!("SELECT pg_create_logical_replication_slot({}, 'pgoutput', false{failover})", slot.trim_start())
}

/// Why a number line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Missing,
    Invalidated,
    Publication,
    Moved,
    LogWentBack,
}

impl Reason {
    /// As a label.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Invalidated => "invalidated",
            Self::Publication => "publication",
            Self::Moved => "moved",
            Self::LogWentBack => "log_went_back",
        }
    }

    /// In words, of a slot.
    const fn what(self) -> &'static str {
        match self {
            Self::Missing => {
                "it did not exist on this server; it was dropped, or the server is a promoted standby"
            }
            Self::Invalidated => {
                "Postgres had invalidated it, in most cases for keeping more WAL than max_slot_wal_keep_size"
            }
            Self::Publication => "its publication was made anew, or is another one",
            Self::Moved => {
                "somebody else moved it up, or dropped it and made it again; what it passed is not known"
            }
            Self::LogWentBack => {
                "the server's log ends before what was read already; it was restored from a backup, perhaps"
            }
        }
    }
}

/// What a rebuild that needs several attempts remembers.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// Why it began: what is found later is its own doing.
    reason: Option<Reason>,
    /// How often the slot could not be made.
    refused: u32,
}

/// What a look finds.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    /// Proves messages to be ours.
    pub(super) key: String,
    pub(super) generation: String,
    /// Tells one server from another, and from itself before a restart.
    pub(super) server_start: String,
    version: i32,
    wal_level: String,
    /// The publication that the slot was made for, if that was noted.
    noted: Option<u32>,
    publication: Option<u32>,
    slot: Option<Slot>,
    /// Where the slot is,
    confirmed: Option<u64>,
    /// and how far a broker has ever moved it, or was about to.
    moved_upto: Option<u64>,
    /// Somebody streams.
    held: bool,
    /// Nothing was published from the first to the second, as the broker that moved the slot there wrote down.
    quiet: Option<(Position, u64)>,
    /// The broker that asked for the lease last.
    pub(super) asked_by: Option<String>,
}

impl Standing {
    /// From where on nothing was published up to a slot at `lsn`. A slot that somebody else moved further has
    /// passed what nobody knows.
    pub(super) fn quiet_before(&self, lsn: u64) -> Option<Position> {
        self.quiet.filter(|(_, upto)| lsn <= *upto).map(|(from, _)| from)
    }

    /// Whether standbys of this server can copy slots.
    pub(super) const fn has_failover_slots(&self) -> bool {
        self.version >= FAILOVER_VERSION
    }

    /// Why slot and generation have to be made anew, if so.
    fn reason(&self) -> Option<Reason> {
        match &self.slot {
            None => Some(Reason::Missing),
            Some(slot) if slot.lost => Some(Reason::Invalidated),
            Some(_) if self.noted.is_some() && self.noted != self.publication => Some(Reason::Publication),
            Some(_) if self.confirmed.is_some_and(|lsn| self.is_beyond(lsn)) => Some(Reason::Moved),
            Some(_) => None,
        }
    }

    /// Whether no broker has moved the slot so far.
    pub(super) fn is_beyond(&self, lsn: u64) -> bool {
        self.moved_upto.is_some_and(|upto| lsn > upto)
    }

    /// Why a stream that began on `self` cannot go on, now that this was found.
    fn ended(&self, found: &Self, config: &Config) -> Option<Failure> {
        if found.publication.is_none() {
            return Some(no_publication(config));
        }
        let slot = &config.slot;
        if let Some(reason) = found.reason() {
            return Some(Failure::again(format!("the slot {slot} cannot be kept: {}", reason.what())));
        }
        let other = found.generation != self.generation;
        other.then(|| Failure::again(format!("the slot {slot} was made anew by somebody else")))
    }
}

fn no_publication(config: &Config) -> Failure {
    Failure::needs_operator(format!(
        "the publication {} does not exist: run `walcast setup`; clients are told to start anew then",
        config.publication
    ))
}

/// Looks at slot, publication and generation, and makes anew what cannot go on.
pub(super) async fn ensure(
    target: &Target,
    companion: &Companion,
    config: &Config,
    attempts: &mut Attempts,
) -> Result<Standing, Failure> {
    let standing = {
        let session = companion.lock().await?;
        let standing = look(&session, config).await?;
        let unknown = standing.noted.is_none() || standing.moved_upto.is_none();
        if unknown && standing.publication.is_some() && standing.reason().is_none() {
            note(&session, config).await?;
            look(&session, config).await?
        } else {
            standing
        }
    };
    if standing.publication.is_none() {
        return Err(no_publication(config));
    }
    if standing.reason().is_none() {
        return Ok(standing);
    }
    if standing.held {
        return Err(held(config));
    }
    rebuild(target, config, attempts).await
}

/// Somebody has the live slot.
pub(super) fn held(config: &Config) -> Failure {
    let message = format!(
        "the slot {} is held: another broker runs on this source, or the last one's connection has not ended yet",
        config.live_slot()
    );
    Failure { kind: Kind::Held, message }
}

/// A new generation for a log that went back: the slot itself is as old as the log, and goes on.
pub(super) async fn renew(target: &Target, config: &Config, generation: &str) -> Result<(), Failure> {
    let session = locked_session(target).await?;
    if look(&session, config).await?.generation == generation {
        renew_on(&session, config, Reason::LogWentBack).await?;
    }
    session.close().await;
    Ok(())
}

/// A new generation for a slot that stays.
async fn renew_on(client: &Client, config: &Config, reason: Reason) -> Result<(), Failure> {
    const SQL: &str = "UPDATE walcast.source SET generation = DEFAULT, created_at = DEFAULT,
            quiet_lsn = DEFAULT, quiet_ordinal = DEFAULT, quiet_upto = DEFAULT,
            moved_upto = (SELECT f.confirmed_flush_lsn FROM pg_replication_slots f WHERE f.slot_name = $1)
        WHERE slot = $1";
    let written = client.execute_typed(SQL, &[(&config.slot, Type::TEXT)]).await;
    written.map_err(|error| failed(config, reason, "writing a new generation", &error))?;
    tell(config, reason);
    Ok(())
}

async fn rebuild(target: &Target, config: &Config, attempts: &mut Attempts) -> Result<Standing, Failure> {
    let session = locked_session(target).await?;
    let standing = look(&session, config).await?;
    let Some(mut reason) = standing.reason() else {
        // Somebody else was faster.
        *attempts = Attempts::default();
        return Ok(standing);
    };
    if standing.held {
        return Err(held(config));
    }
    if reason == Reason::Moved {
        renew_on(&session, config, reason).await?;
        let standing = look(&session, config).await?;
        session.close().await;
        return Ok(standing);
    }
    if standing.noted == Some(NO_SLOT_YET) {
        reason = attempts.reason.unwrap_or(reason);
    } else {
        new_generation(&session, config, reason).await?;
        *attempts = Attempts { reason: Some(reason), refused: 0 };
    }
    let failed = |doing: &str, error: &tokio_postgres::Error| failed(config, reason, doing, error);
    let (first, most) = OPEN_WAIT_SECONDS;
    let wait = (first << attempts.refused.min(16)).min(most);
    let limit = session.batch_execute(&format!("SET lock_timeout = '{wait}s'")).await;
    limit.map_err(|error| failed("limiting its wait", &error))?;
    if standing.slot.is_some() {
        if standing.version >= DYNAMIC_VERSION && standing.wal_level != "logical" {
            // Temporary, to be the one logical slot between the old and the new.
            let bridge = literal(&config.mark_slot());
            let sql = format!("SELECT pg_create_logical_replication_slot({bridge}, 'pgoutput', true)");
            if let Err(error) = session.batch_execute(&sql).await {
                return Err(refused(&session, config, reason, attempts, &error).await);
            }
        }
        let sql = format!("SELECT pg_drop_replication_slot({})", literal(&config.slot));
        session.batch_execute(&sql).await.map_err(|error| failed("dropping it", &error))?;
    }
    let sql = create_slot(&config.slot, standing.version >= FAILOVER_VERSION);
    if let Err(error) = session.batch_execute(&sql).await {
        return Err(refused(&session, config, reason, attempts, &error).await);
    }
    // Last: until then a rebuild that broke off is begun again.
    note(&session, config).await?;
    let standing = look(&session, config).await?;
    *attempts = Attempts::default();
    session.close().await;
    tell(config, reason);
    Ok(standing)
}

/// Counted and said once for each new number line.
fn tell(config: &Config, reason: Reason) {
    metrics::counter!(REBUILDS_TOTAL, LABEL_REASON => reason.as_str()).increment(1);
    let stays = matches!(reason, Reason::LogWentBack | Reason::Moved);
    let made = if stays { "begins a new generation" } else { "was made anew" };
    tracing::warn!(
        reason = reason.as_str(),
        "the slot {} {made}: {}. Cursors of before end: clients are told epoch_changed and begin anew, current \
         values are read anew, and what was committed since the broker last read may not be delivered",
        config.slot,
        reason.what()
    );
}

/// A session that nobody shares, which holds the lock until it ends, in whatever way.
async fn locked_session(target: &Target) -> Result<Session, Failure> {
    let session = Session::connect(target, "walcast rebuild").await?;
    // What is written must not be undone by a crash that leaves the slot; no standby need have it.
    let sql = format!("SET lock_timeout = '{LOCK_TIMEOUT}'; SET synchronous_commit = local; {LOCK}");
    session.batch_execute(&sql).await.map_err(|error| match error.code() {
        Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => Failure::again(
            "the slot is to be made anew, but a walcast setup or teardown, or another broker, is at work on it",
        ),
        _ => Failure::again(format!("making the slot anew: {}", describe(&error))),
    })?;
    Ok(session)
}

async fn new_generation(client: &Client, config: &Config, reason: Reason) -> Result<(), Failure> {
    const SQL: &str =
        "UPDATE walcast.source SET generation = DEFAULT, created_at = DEFAULT, publication_oid = $2,
        quiet_lsn = DEFAULT, quiet_ordinal = DEFAULT, quiet_upto = DEFAULT, moved_upto = DEFAULT WHERE slot = $1";
    let written = client.execute_typed(SQL, &[(&config.slot, Type::TEXT), (&NO_SLOT_YET, Type::OID)]).await;
    written.map(|_| ()).map_err(|error| failed(config, reason, "writing a new generation", &error))
}

/// Writes down for which publication the slot is, and where it is, if nobody knows. Older brokers wrote the latter as
/// `quiet_upto` alone.
async fn note(client: &Client, config: &Config) -> Result<(), Failure> {
    const SQL: &str = "UPDATE walcast.source s SET publication_oid = p.oid,
            moved_upto = coalesce(s.moved_upto, s.quiet_upto, f.confirmed_flush_lsn)
        FROM pg_publication p, pg_replication_slots f
        WHERE s.slot = $1 AND p.pubname = $2 AND f.slot_name = $1";
    match client.execute_typed(SQL, &[(&config.slot, Type::TEXT), (&config.publication, Type::TEXT)]).await {
        Ok(_) => Ok(()),
        Err(error) => match error.code() {
            Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Err(Failure::needs_operator(format!(
                "the role may not write walcast.source ({}): run `walcast setup --broker-role ROLE`",
                describe(&error)
            ))),
            _ => Err(Failure::again(format!("noting publication and slot: {}", describe(&error)))),
        },
    }
}

/// What a failed step of the rebuild means.
fn failed(config: &Config, reason: Reason, doing: &str, error: &tokio_postgres::Error) -> Failure {
    let (slot, what, text) = (&config.slot, reason.what(), describe(error));
    let limits = [SqlState::INSUFFICIENT_PRIVILEGE, SqlState::CONFIGURATION_LIMIT_EXCEEDED];
    if error.code().is_some_and(|code| limits.contains(code)) {
        return Failure::needs_operator(format!(
            "the slot {slot} has to be made anew ({what}), but {doing} was refused: {text}. Run `walcast setup`, or \
             grant with `walcast setup --broker-role ROLE` and `ALTER ROLE … REPLICATION`, or raise \
             max_replication_slots"
        ));
    }
    Failure::again(format!("the slot {slot} has to be made anew ({what}); {doing}: {text}"))
}

/// A new slot waits until every transaction that was open when it began has ended. Says which are.
async fn refused(
    client: &Client,
    config: &Config,
    reason: Reason,
    attempts: &mut Attempts,
    error: &tokio_postgres::Error,
) -> Failure {
    attempts.refused = attempts.refused.saturating_add(1);
    if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) {
        return failed(config, reason, "creating it", error);
    }
    let holders = client.query_typed_one(OPEN_TRANSACTIONS, &[]).await;
    let holders = holders.ok().and_then(|row| row.try_get::<_, Option<String>>(0).ok().flatten());
    let holders = holders.as_deref().unwrap_or("transactions that ended meanwhile");
    Failure::again(format!(
        "the slot {} is being made anew ({}) and waits for transactions that are open: {holders}; end them, for \
         example by pg_terminate_backend(pid)",
        config.slot,
        reason.what()
    ))
}

async fn look(client: &Client, config: &Config) -> Result<Standing, Failure> {
    // A statement of its own, before the other: where a broker moves the slot is written down before it moves, so
    // whatever is seen here is written there by then.
    const WHERE: &str = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1";
    const SQL: &str = "
        SELECT k.key, s.generation::text, pg_postmaster_start_time()::text,
               current_setting('server_version_num')::int4, current_setting('wal_level'), pg_is_in_recovery(),
               s.publication_oid, p.oid, current_database()::text, f.slot_name IS NOT NULL,
               f.wal_status IS NOT DISTINCT FROM 'lost', f.plugin::text, f.database::text, l.active_pid IS NOT NULL,
               s.quiet_lsn, s.quiet_ordinal, s.quiet_upto, s.takeover_by::text,
               greatest(s.moved_upto, s.quiet_upto)
        FROM (VALUES (1)) AS one
        LEFT JOIN walcast.key k ON true
        LEFT JOIN walcast.source s ON s.slot = $1
        LEFT JOIN pg_publication p ON p.pubname = $2
        LEFT JOIN pg_replication_slots f ON f.slot_name = $1
        LEFT JOIN pg_replication_slots l ON l.slot_name = $3
        LIMIT 1";
    let place = client.query_typed_opt(WHERE, &[(&config.slot, Type::TEXT)]).await.map_err(unreadable)?;
    let row = client
        .query_typed_one(
            SQL,
            &[
                (&config.slot, Type::TEXT),
                (&config.publication, Type::TEXT),
                (&config.live_slot(), Type::TEXT),
            ],
        )
        .await;
    let row = row.map_err(unreadable)?;
    let read = || -> Result<_, tokio_postgres::Error> {
        let (key, generation): (Option<String>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let (standby, exists): (bool, bool) = (row.try_get(5)?, row.try_get(9)?);
        let slot = Slot { lost: row.try_get(10)?, plugin: row.try_get(11)?, database: row.try_get(12)? };
        let quiet: (Option<PgLsn>, Option<i64>, Option<PgLsn>) =
            (row.try_get(14)?, row.try_get(15)?, row.try_get(16)?);
        let confirmed: Option<PgLsn> = place.map(|row| row.try_get(0)).transpose()?.flatten();
        let moved_upto: Option<PgLsn> = row.try_get(18)?;
        let quiet = match quiet {
            (Some(lsn), Some(ordinal), Some(upto)) => {
                Some((Position::new(lsn.into(), ordinal.cast_unsigned()), upto.into()))
            }
            _ => None,
        };
        let standing = Standing {
            key: key.clone().unwrap_or_default(),
            generation: generation.clone().unwrap_or_default(),
            server_start: row.try_get(2)?,
            version: row.try_get(3)?,
            wal_level: row.try_get(4)?,
            noted: row.try_get(6)?,
            publication: row.try_get(7)?,
            slot: exists.then_some(slot),
            confirmed: confirmed.map(u64::from),
            moved_upto: moved_upto.map(u64::from),
            held: row.try_get(13)?,
            quiet,
            asked_by: row.try_get(17)?,
        };
        Ok((standing, standby, key.is_some(), generation.is_some(), row.try_get::<_, String>(8)?))
    };
    let (standing, standby, key, generation, database) = read().map_err(unreadable)?;
    if standby {
        return Err(Failure::again("the server is a standby; the broker reads from the primary"));
    }
    if !key {
        return Err(Failure::needs_operator("the table walcast.key is empty: run `walcast setup`"));
    }
    if !generation {
        return Err(Failure::needs_operator(format!(
            "the slot {0} has no row in walcast.source: run `walcast setup` with `source.slot = \"{0}\"`",
            config.slot
        )));
    }
    match standing.slot.as_ref().and_then(|slot| slot.foreign(&config.slot, &database)) {
        Some(foreign) => Err(Failure::needs_operator(foreign)),
        None => Ok(standing),
    }
}

fn unreadable(error: tokio_postgres::Error) -> Failure {
    match error.code() {
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Failure::needs_operator(NOT_GRANTED),
        Some(code) if [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_SCHEMA].contains(code) => {
            Failure::needs_operator("this database has no schema walcast: run `walcast setup`")
        }
        Some(code) if *code == SqlState::UNDEFINED_COLUMN => Failure::needs_operator(
            "the schema walcast is of an older version: run `walcast setup`, which migrates it",
        ),
        _ => Failure::again(format!("reading the schema walcast: {}", describe(&error))),
    }
}

/// Looks again and again while the stream runs; ends when it cannot go on, with the reason. What cannot be looked
/// at is no reason.
pub(super) fn watch(
    companion: Arc<Companion>,
    config: Config,
    standing: Standing,
) -> AbortOnDropHandle<Failure> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            sleep(PAUSE).await;
            let Ok(session) = companion.lock().await else { continue };
            match look(&session, &config).await {
                Ok(found) => {
                    if let Some(failure) = standing.ended(&found, &config) {
                        return failure;
                    }
                }
                Err(failure) => tracing::debug!("looking at the slot: {}", failure.message),
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing() -> Standing {
        let slot = Slot { lost: false, plugin: Some("pgoutput".into()), database: Some("app".into()) };
        Standing {
            key: "k".into(),
            generation: "g".into(),
            server_start: "then".into(),
            version: 150_000,
            wal_level: "logical".into(),
            noted: Some(7),
            publication: Some(7),
            slot: Some(slot),
            confirmed: Some(100),
            moved_upto: Some(100),
            held: false,
            quiet: Some((Position::new(90, 2), 100)),
            asked_by: None,
        }
    }

    #[test]
    fn what_ends_a_number_line() {
        let check = |change: &dyn Fn(&mut Standing), expected: Option<Reason>, stream_ends: bool| {
            let (before, mut found) = (standing(), standing());
            change(&mut found);
            assert_eq!(found.reason(), expected, "{found:?}");
            assert_eq!(before.ended(&found, &Config::default()).is_some(), stream_ends, "{found:?}");
        };
        check(&|_| (), None, false);
        check(&|found| found.held = true, None, false);
        check(&|found| found.noted = None, None, false);
        check(&|found| found.slot = None, Some(Reason::Missing), true);
        let lose = |found: &mut Standing| found.slot.as_mut().unwrap().lost = true;
        check(&lose, Some(Reason::Invalidated), true);
        check(&|found| found.publication = Some(8), Some(Reason::Publication), true);
        check(&|found| found.publication = None, Some(Reason::Publication), true);
        check(&|found| found.generation = "h".into(), None, true);
        check(&|found| found.confirmed = Some(101), Some(Reason::Moved), true);
        check(&|found| found.confirmed = Some(99), None, false); // after a crash of the server
        check(&|found| found.moved_upto = Some(200), None, false); // about to be moved
        check(&|found| (found.confirmed, found.moved_upto) = (Some(200), Some(200)), None, false);
        check(&|found| found.moved_upto = None, None, false);
    }

    #[test]
    fn quiet_ends_where_somebody_else_moved_the_slot() {
        let check = |lsn: u64, expected: Option<Position>| {
            assert_eq!(standing().quiet_before(lsn), expected, "{lsn}");
        };
        check(95, Some(Position::new(90, 2))); // written down, then not moved
        check(100, Some(Position::new(90, 2)));
        check(101, None);
    }

    #[test]
    fn failover_is_asked_for_where_it_exists() {
        assert_eq!(
            create_slot("a", true),
            "SELECT pg_create_logical_replication_slot('a', 'pgoutput', false, failover => true)"
        );
        assert_eq!(
            create_slot("a", false),
            "SELECT pg_create_logical_replication_slot('a', 'pgoutput', false)"
        );
    }
}
