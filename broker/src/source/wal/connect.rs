//! From nothing to a running stream: copy the floor slot, name the number line, start.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use walcast_wire::Epoch;

use super::lease::WALSENDER;
use super::rebuild::{self, Standing};
use super::replication::{Connection, ReplicationError, Stream, StreamOptions};
use super::warm::Warm;
use crate::event::{Fence, Start};
use crate::postgres::{Companion, Target};
use crate::source::Config;
use crate::source::failure::{Failure, Kind};
use crate::source::quiet_from;

/// What the plugin is asked for; part of the epoch, since it decides which records are numbered.
const PLUGIN: [(&str, &str); 2] = [("proto_version", "1"), ("messages", "true")];

/// A stream that runs.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) stream: Stream,
    pub(super) start: Start,
    /// What it relies on.
    pub(super) standing: Standing,
    /// The process of our walsender.
    pub(super) walsender: i32,
    /// The broker that asked for the lease last, before we had it.
    pub(super) asked_by: Option<String>,
}

/// Connects. `silence_max` as in [`StreamOptions`]; what is published already, on the same number line, is not
/// sent again.
pub(super) async fn connect(
    target: &Target,
    companion: &Companion,
    config: &Config,
    silence_max: Duration,
    published: Option<(Epoch, u64)>,
    attempts: &mut rebuild::Attempts,
    warm: &Warm,
) -> Result<Connected, Failure> {
    let standing = rebuild::ensure(target, companion, config, attempts).await?;
    let mut connection = Connection::connect(target, WALSENDER, config.lease).await?;
    // Runs no SQL, and so cannot fail in a way that drops a temporary slot.
    let line = async |connection: &mut Connection| -> Result<_, Failure> {
        let system = connection.query("IDENTIFY_SYSTEM").await?;
        let mut row =
            system.into_iter().next().unwrap_or_default().into_iter().map(Option::unwrap_or_default);
        let mut field = || row.next().unwrap_or_default();
        Ok((field(), field(), parse_lsn(&field())))
    };
    let (identifier, timeline, _) = line(&mut connection).await?;
    let epoch = epoch(&identifier, &timeline, &standing.generation, config, &PLUGIN);
    let place = warm.place(epoch).await;
    let (floor, server_start) = copy_slot(&mut connection, companion, config, place.as_deref()).await?;
    if server_start != standing.server_start {
        companion.cut();
        return Err(two_servers());
    }
    if place.is_none() && standing.is_beyond(floor) {
        return Err(Failure::again("the slot was moved by somebody else just now: looking again"));
    }
    // Once more, since only now nobody else leads.
    let log_end = line(&mut connection).await?.2;
    let replay_until = log_end.unwrap_or(floor);
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
    let quiet_from = quiet_from(standing.quiet_before(floor), from == floor, from);
    let fence = Fence { timeline: timeline.parse().unwrap_or_default(), lsn: replay_until };
    let start = Start { epoch, from, quiet_from, replay_until, fence };
    let asked_by = standing.asked_by.clone();
    Ok(Connected { stream, start, standing, walsender, asked_by })
}

/// Hosts of one connection string are servers of their own.
pub(super) fn two_servers() -> Failure {
    Failure::again(
        "two sessions reached two different servers, or one was restarted meanwhile: connecting all again",
    )
}

/// The name of the number line: of all that decides which number a record has, and of nothing else.
fn epoch(
    identifier: &str,
    timeline: &str,
    generation: &str,
    config: &Config,
    plugin: &[(&str, &str)],
) -> Epoch {
    let mut parts = vec!["wal", identifier, timeline, &config.slot, generation, &config.publication];
    parts.extend(plugin.iter().flat_map(|(name, value)| [*name, *value]));
    Epoch::of(parts)
}

/// Makes the live slot, a temporary copy of the floor, and says where it begins and on which server. Its fixed
/// name is the lease: a second copy fails.
async fn copy_slot(
    connection: &mut Connection,
    companion: &Companion,
    config: &Config,
    place: Option<&str>,
) -> Result<(u64, String), Failure> {
    let sql = format!(
        "SELECT lsn, pg_catalog.pg_postmaster_start_time()::text \
         FROM pg_catalog.pg_copy_logical_replication_slot({}, {}, true)",
        literal(place.unwrap_or(&config.slot)),
        literal(&config.live_slot())
    );
    let slot = &config.slot;
    let rows = connection.query(&sql).await.map_err(|error| {
        let ReplicationError::Server(server) = &error else { return error.into() };
        let text = server.to_string();
        let code = &server.code;
        if *code == SqlState::DUPLICATE_OBJECT {
            return rebuild::held(config);
        }
        if *code == SqlState::UNDEFINED_OBJECT {
            // It was there a moment ago, on the companion's server: the next attempt looks again.
            companion.cut();
            return Failure::again(format!("the slot {slot} does not exist ({text})"));
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
            return Failure::again(format!("the slot {slot} cannot be used: {text}"));
        }
        error.into()
    })?;
    let field = |i: usize| rows.first().and_then(|row| row.get(i)).and_then(Option::as_deref);
    let lsn = field(0).and_then(parse_lsn);
    let lsn = lsn.ok_or_else(|| Failure::again(format!("the copy of slot {slot} has no position")))?;
    Ok((lsn, field(1).unwrap_or_default().to_owned()))
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

impl From<ReplicationError> for Failure {
    fn from(error: ReplicationError) -> Self {
        let kind = match &error {
            ReplicationError::Shutdown(_) => Kind::Shutdown,
            ReplicationError::Silent(_) => Kind::Silent,
            // The publication is younger than what is read, and nobody had noted that it would be.
            ReplicationError::Server(server) if server.code == SqlState::UNDEFINED_OBJECT => {
                return Self::needs_operator(format!(
                    "{server}: if it exists now, drop the slot, and the broker makes it anew"
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
    fn the_epoch_changes_with_the_number_line() {
        let (config, plugin) = (Config::default(), [("proto_version", "1"), ("messages", "true")]);
        let line = epoch("7", "1", "g", &config, &plugin);
        assert_eq!(line, epoch("7", "1", "g", &Config::default(), &plugin));
        let faster = Config { lease: Duration::from_secs(1), ..Config::default() };
        assert_eq!(line, epoch("7", "1", "g", &faster, &plugin), "how it is read changes nothing");
        let slot = Config { slot: "other".into(), ..Config::default() };
        let publication = Config { publication: "other".into(), ..Config::default() };
        for other in [
            epoch("8", "1", "g", &config, &plugin),
            epoch("7", "2", "g", &config, &plugin),
            epoch("7", "1", "h", &config, &plugin),
            epoch("7", "1", "g", &slot, &plugin),
            epoch("7", "1", "g", &publication, &plugin),
            epoch("7", "1", "g", &config, &[("proto_version", "2"), ("messages", "true")]),
            epoch("7", "1", "g", &config, &[("proto_version", "1"), ("messages", "false")]),
        ] {
            assert_ne!(line, other);
        }
    }

    #[test]
    fn a_server_that_says_goodbye_is_left_alone() {
        let told = Failure::from(ReplicationError::Shutdown("terminating".into()));
        assert_eq!(told.kind, Kind::Shutdown);
    }
}
