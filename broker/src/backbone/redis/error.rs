//! Why a call did not do what it was asked, by what the caller can do about it.

use redis::{ErrorKind, ServerErrorKind};

use super::Place;
use super::dial::{Kind, Server};
use crate::event::Fence;

/// Why a call did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedisError {
    /// Redis is not there, or not able to: try the same again after a pause.
    #[error("{0}")]
    Away(String),
    /// A later leader was here. Whoever gets this leads no more.
    #[error(
        "another broker leads: Redis holds its fence {theirs}, and ours is {ours}; this one stops appending"
    )]
    Fenced {
        /// What was claimed here.
        ours: Fence,
        /// What Redis holds.
        theirs: Fence,
    },
    /// The log is not where the caller believed. `None`: Redis holds nothing, or not all that belongs to it.
    #[error("{}", moved(.0.as_ref()))]
    Moved(Option<Place>),
    /// An operator has to act. The message says how.
    #[error("{0}")]
    Unsuitable(String),
}

fn moved(place: Option<&Place>) -> String {
    match place {
        Some(Place { epoch, head }) => {
            format!(
                "the log in Redis ends at {head} of the epoch {epoch}, not where it was left; it goes on from there"
            )
        }
        None => {
            "Redis holds no log: it was emptied, or restarted without its data; the leader fills it again"
                .into()
        }
    }
}

impl RedisError {
    /// A fault of the program that calls; no operator made it.
    pub(super) fn fault(what: &str) -> Self {
        Self::Unsuitable(format!("{what}: this is a fault of walcast, please report it"))
    }

    /// What stands under this source's keys is not what a broker of this version writes.
    pub(super) fn foreign(what: &str) -> Self {
        Self::Unsuitable(format!(
            "{what}: a broker of another version, or another program, writes under the same keys; let all brokers be \
             of one version, or delete the keys, and the leader fills them again"
        ))
    }

    /// By what the library or the server says.
    pub(super) fn of(at: &Server, error: &redis::RedisError) -> Self {
        let said = words(error);
        let text = said.to_ascii_lowercase();
        // A script says of its user by text alone what a command says by a code.
        let forbidden = text.contains("noperm") || text.contains("user executing the script");
        let code = error.code().unwrap_or_default();
        let stranger =
            error.kind() == ErrorKind::AuthenticationFailed || matches!(code, "NOAUTH" | "WRONGPASS");
        match (at.kind, error.kind()) {
            (Kind::Sentinel, _) if stranger || forbidden => Self::Unsuitable(format!(
                "{at} does not let us ask ({said}): correct sentinel_user and sentinel_password in redis.url, and \
                 grant the right that docs/operations.md names"
            )),
            _ if forbidden => Self::Unsuitable(format!(
                "{at} does not let this user do what the broker needs ({said}): grant it the rights that \
                 docs/operations.md lists"
            )),
            (_, ErrorKind::AuthenticationFailed) => Self::Unsuitable(format!(
                "{at} does not take the user or password of redis.url: correct them"
            )),
            _ if stranger => Self::Unsuitable(format!(
                "{at} asks for a password ({code}): give one in redis.url, as user:password@ before the host"
            )),
            _ if code == "WRONGTYPE" => {
                Self::foreign(&format!("a key of walcast in {at} is of another type"))
            }
            (
                Kind::Member,
                ErrorKind::Server(
                    ServerErrorKind::Moved
                    | ServerErrorKind::Ask
                    | ServerErrorKind::TryAgain
                    | ServerErrorKind::ClusterDown,
                ),
            ) => Self::Away(format!(
                "{at}: the slot of this source moves, or its cluster is not whole ({said}); it is tried again"
            )),
            (
                _,
                ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot),
            ) => Self::Unsuitable(format!(
                "{at} is a member of a cluster and does not hold the keys of this source ({said}): write redis.url \
                     as redis-cluster://"
            )),
            _ if text.contains("unknown command") && text.contains("sentinel") => Self::Unsuitable(format!(
                "{at} is no sentinel: give the port of one in redis.url, mostly 26379, or use a redis:// URL"
            )),
            _ if text.contains("db index is out of range") => Self::Unsuitable(format!(
                "{at} has no database of that number (out of range): correct the end of redis.url"
            )),
            _ if text.contains("unknown command") => Self::Unsuitable(format!(
                "{at} lacks a command that the broker needs ({said}): give a Redis of version 6.2 or newer that has it"
            )),
            _ if code == "OOM" => {
                Self::Away(format!("{at} has used up its maxmemory: raise it; the append is tried again"))
            }
            _ if error.is_timeout() => Self::Away(format!("{at} did not answer in time; it is tried again")),
            _ => Self::Away(format!("{at}: {said}; it is tried again")),
        }
    }

    /// Whether a connection on which this was said is of no more use, for another server may have taken the place of
    /// this one.
    pub(super) fn elsewhere(error: &redis::RedisError) -> bool {
        let said = words(error);
        let code = error.code().unwrap_or_default();
        let gone = ["READONLY", "MASTERDOWN", "LOADING", "MOVED", "UNBLOCKED", "CLUSTERDOWN", "NOREPLICAS"];
        // What the server did not say itself came of the connection. Scripts of Redis 6 quote what they were told.
        code.is_empty()
            || gone.contains(&code)
            || said.contains("-READONLY ")
            || said.contains("-NOREPLICAS ")
    }
}

/// What an error says, in one line.
fn words(error: &redis::RedisError) -> String {
    let said = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    };
    said.replace(['\r', '\n'], " ")
}

#[cfg(test)]
mod tests {
    use super::super::target::Host;
    use super::*;

    #[test]
    fn what_servers_say_is_for_an_operator_or_tried_again_there_or_elsewhere() {
        let check = |kind: Kind, said: &str, operator: bool, elsewhere: bool| {
            let host = Host { name: "h".into(), port: 1 };
            let value = redis::parse_redis_value(format!("-{said}\r\n").as_bytes()).unwrap();
            let redis::Value::ServerError(error) = value else { panic!("{value:?}") };
            let error = redis::RedisError::from(error);
            let found = RedisError::of(&Server { host, kind }, &error);
            let expected = if operator { "Unsuitable" } else { "Away" };
            assert!(
                format!("{found:?}").starts_with(expected) && found.to_string().contains("h:1"),
                "{found:?}"
            );
            assert_eq!(RedisError::elsewhere(&error), elsewhere, "{said}");
        };
        check(Kind::Member, "MOVED 5 10.0.0.1:7", false, true);
        check(Kind::Whole, "MOVED 5 10.0.0.1:7", true, true);
        check(Kind::Member, "ASK 5 10.0.0.1:7", false, false);
        check(Kind::Member, "TRYAGAIN Multiple keys request during rehashing of slot", false, false);
        check(Kind::Member, "CLUSTERDOWN The cluster is down", false, true);
        check(Kind::Member, "CROSSSLOT Keys in request don't hash to the same slot", true, false);
        check(Kind::Whole, "UNBLOCKED force unblock from blocking operation", false, true);
        check(Kind::Whole, "READONLY You can't write against a read only replica.", false, true);
        check(
            Kind::Whole,
            "ERR Error running script: @user_script:1: -READONLY You can't write",
            false,
            true,
        );
        check(Kind::Whole, "NOREPLICAS Not enough good replicas to write.", false, true);
        check(Kind::Whole, "LOADING Redis is loading the dataset in memory", false, true);
        check(Kind::Whole, "OOM command not allowed when used memory > 'maxmemory'.", false, false);
        check(Kind::Whole, "NOAUTH Authentication required.", true, false);
        check(Kind::Sentinel, "NOAUTH Authentication required.", true, false);
        check(Kind::Sentinel, "NOPERM this user has no permissions", true, false);
    }
}
