//! From nothing to a running stream: copy the floor slot, name the number line, start.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;
use walcast_wire::{Epoch, Position};

use super::Config;
use super::replication::{Connection, ReplicationError, Stream, StreamOptions};
use crate::event::Start;
use crate::postgres::{Companion, ConnectError, ConnectErrorKind, Target, describe};
use crate::source::{Retry, SourceError};

/// Pause before what needs an operator is tried again, once the broker has been running.
const AFTER_REFUSAL: Duration = Duration::from_secs(5);
/// What the plugin is asked for; part of the epoch, since it decides which records are numbered.
const PLUGIN: [(&str, &str); 2] = [("proto_version", "1"), ("messages", "true")];

/// A role that setup has given nothing.
pub(super) const NOT_GRANTED: &str =
    "the role may not read the schema walcast: run `walcast setup --broker-role ROLE`, or grant it by hand";

/// A stream that runs.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) stream: Stream,
    pub(super) start: Start,
    /// Proves messages to be ours.
    pub(super) key: String,
    /// The process of our walsender.
    pub(super) walsender: i32,
}

/// Connects. `silence_max` as in [`StreamOptions`]; what is published already, on the same number line, is not
/// sent again.
pub(super) async fn connect(
    target: &Target,
    companion: &Companion,
    config: &Config,
    silence_max: Duration,
    published: Option<(Epoch, u64)>,
) -> Result<Connected, Failure> {
    let Schema { key, generation, quiet_from } = read_schema(companion, config).await?;
    let mut connection = Connection::connect(target, "walcast", config.lease).await?;
    let floor = copy_slot(&mut connection, config).await?;
    // Runs no SQL, and so cannot fail in a way that drops the temporary slot.
    let system = connection.query("IDENTIFY_SYSTEM").await?;
    let field = |i: usize| system.first().and_then(|row| row.get(i)).and_then(Option::as_deref);
    let (identifier, timeline) = (field(0).unwrap_or_default(), field(1).unwrap_or_default());
    let replay_until = field(2).and_then(parse_lsn).unwrap_or(floor);
    let mut parts = vec!["wal", identifier, timeline, &config.slot, &generation, &config.publication];
    parts.extend(PLUGIN.iter().flat_map(|(name, value)| [*name, *value]));
    let epoch = Epoch::of(parts);
    let published = published.filter(|(line, _)| *line == epoch).map_or(0, |(_, upto)| upto);
    // Never ahead of the server's log: that would be told as such, not skipped.
    let from = floor.max(published.min(replay_until));
    let walsender = connection.pid();
    let mut plugin: Vec<(String, String)> =
        PLUGIN.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let quoted = format!("\"{}\"", config.publication.replace('"', "\"\""));
    plugin.push(("publication_names".to_owned(), quoted));
    let options = StreamOptions {
        slot: config.live_slot(),
        start_lsn: from,
        plugin,
        status_every: config.lease / 3,
        silence_max,
    };
    let stream = connection.start(&options).await?;
    let quiet_from = quiet_from.unwrap_or(Position::before(from)).min(Position::before(from));
    let start = Start { epoch, from, quiet_from, replay_until };
    Ok(Connected { stream, start, key, walsender })
}

/// What is written down in the schema.
struct Schema {
    key: String,
    generation: String,
    /// Nothing was published between here and the slot.
    quiet_from: Option<Position>,
}

async fn read_schema(companion: &Companion, config: &Config) -> Result<Schema, Failure> {
    const QUERY: &str = "SELECT k.key::text, s.generation::text, s.quiet_lsn, s.quiet_ordinal FROM walcast.key k \
         LEFT JOIN walcast.source s ON s.slot = $1 LIMIT 1";
    let session = companion.lock().await?;
    let row = session.query_opt(QUERY, &[&config.slot]).await.map_err(|error| match error.code() {
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Failure::needs_operator(NOT_GRANTED),
        Some(code) if [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_SCHEMA].contains(code) => {
            Failure::needs_operator("this database has no schema walcast: run `walcast setup`")
        }
        _ => Failure::again(format!("reading the schema walcast: {}", describe(&error))),
    })?;
    let text = |i: usize| row.as_ref().and_then(|row| row.try_get::<_, Option<String>>(i).ok().flatten());
    let quiet_from = || {
        let row = row.as_ref()?;
        let lsn: PgLsn = row.try_get::<_, Option<PgLsn>>(2).ok()??;
        let ordinal: i64 = row.try_get::<_, Option<i64>>(3).ok()??;
        Some(Position::new(lsn.into(), ordinal.cast_unsigned()))
    };
    match (text(0), text(1)) {
        (Some(key), Some(generation)) => Ok(Schema { key, generation, quiet_from: quiet_from() }),
        (None, _) => Err(Failure::needs_operator("the table walcast.key is empty: run `walcast setup`")),
        (_, None) => Err(Failure::needs_operator(format!(
            "the slot {0} has no row in walcast.source: run `walcast setup` with `source.slot = \"{0}\"`",
            config.slot
        ))),
    }
}

/// Makes the live slot, a temporary copy of the floor. Its fixed name is the lease: a second copy fails.
async fn copy_slot(connection: &mut Connection, config: &Config) -> Result<u64, Failure> {
    let sql = format!(
        "SELECT lsn FROM pg_catalog.pg_copy_logical_replication_slot({}, {}, true)",
        literal(&config.slot),
        literal(&config.live_slot())
    );
    let slot = &config.slot;
    let rows = connection.query(&sql).await.map_err(|error| {
        let ReplicationError::Server(server) = &error else { return error.into() };
        let text = server.to_string();
        let code = &server.code;
        if *code == SqlState::DUPLICATE_OBJECT {
            return Failure { kind: Kind::Held, ..Failure::again(format!(
                "the slot {} is held: another broker runs on this source, or the last one's connection has not \
                 ended yet",
                config.live_slot()
            )) };
        }
        if *code == SqlState::UNDEFINED_OBJECT {
            return Failure::needs_operator(format!("the slot {slot} does not exist: run `walcast setup`"));
        }
        if *code == SqlState::CONFIGURATION_LIMIT_EXCEEDED {
            return Failure::needs_operator(format!(
                "no replication slot is free: raise max_replication_slots, or drop an unused one ({text})"
            ));
        }
        if *code == SqlState::INSUFFICIENT_PRIVILEGE {
            return Failure::needs_operator(format!(
                "the role may not use replication slots: ALTER ROLE … REPLICATION (or your provider's grant) ({text})"
            ));
        }
        if *code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE {
            return Failure::needs_operator(format!(
                "the slot {slot} cannot be used: {text}; if it was invalidated, `walcast setup` replaces it"
            ));
        }
        error.into()
    })?;
    let lsn = rows.first().and_then(|row| row.first()).and_then(Option::as_deref).and_then(parse_lsn);
    lsn.ok_or_else(|| Failure::again(format!("the copy of slot {slot} has no position")))
}

/// Text as an SQL literal.
pub(super) fn literal(text: &str) -> String {
    postgres_protocol::escape::escape_literal(text)
}

/// `16/B374D848` as a number.
fn parse_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some(u64::from(u32::from_str_radix(high, 16).ok()?) << 32 | u64::from(u32::from_str_radix(low, 16).ok()?))
}

/// Why there is no stream, or no longer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) message: String,
    pub(super) kind: Kind,
}

/// What kind of failure it is, as far as the next attempt is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// May pass by itself.
    Passing,
    /// The server stops.
    Shutdown,
    /// The server was silent.
    Silent,
    /// The lease is somebody's.
    Held,
    /// An operator has to act.
    Operator,
}

impl Failure {
    pub(super) fn again(message: impl Into<String>) -> Self {
        Self { message: message.into(), kind: Kind::Passing }
    }

    pub(super) fn needs_operator(message: impl Into<String>) -> Self {
        Self { message: message.into(), kind: Kind::Operator }
    }

    /// What needs an operator ends a broker that has not begun, for whoever starts it is there to read why;
    /// one that runs goes on trying.
    pub(super) fn into_error(self, running: bool, config: &Config) -> SourceError {
        let retry = match self.kind {
            Kind::Passing | Kind::Silent | Kind::Held => Retry::After(Duration::ZERO),
            Kind::Shutdown => Retry::After(config.shutdown_pause),
            Kind::Operator if running => Retry::After(AFTER_REFUSAL),
            Kind::Operator => Retry::Never,
        };
        SourceError { message: self.message, retry }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let kind = match error.kind {
            ConnectErrorKind::Network | ConnectErrorKind::WrongServer | ConnectErrorKind::Server => {
                Kind::Passing
            }
            ConnectErrorKind::Shutdown => match &error.code {
                // Starting up, or recovering from a crash: it does not wait for us.
                Some(code) if *code == SqlState::CANNOT_CONNECT_NOW => Kind::Passing,
                _ => Kind::Shutdown,
            },
            _ => Kind::Operator,
        };
        Self { message: error.to_string(), kind }
    }
}

impl From<ReplicationError> for Failure {
    fn from(error: ReplicationError) -> Self {
        let kind = match &error {
            ReplicationError::Shutdown(_) => Kind::Shutdown,
            ReplicationError::Silent(_) => Kind::Silent,
            // The publication; it stays missing for what was written before it is made again.
            ReplicationError::Server(server) if server.code == SqlState::UNDEFINED_OBJECT => {
                return Self::needs_operator(format!(
                    "{server}: run `walcast teardown`, then `walcast setup`"
                ));
            }
            _ => Kind::Passing,
        };
        Self { message: error.to_string(), kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_parse() {
        assert_eq!(parse_lsn("16/B374D848"), Some(0x16_B374_D848));
        assert_eq!(parse_lsn("0/0"), Some(0));
        assert_eq!(parse_lsn("0"), None);
        assert_eq!(parse_lsn("0/1FFFFFFFF"), None);
    }

    #[test]
    fn only_a_broker_that_has_not_begun_gives_up() {
        let check = |running: bool, expected: Retry| {
            let error = Failure::needs_operator("x").into_error(running, &Config::default());
            assert_eq!(error.retry, expected);
        };
        check(false, Retry::Never);
        check(true, Retry::After(AFTER_REFUSAL));
    }
}
