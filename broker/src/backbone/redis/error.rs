//! Why a call did not do what it was asked, by what the caller can do about it.

use redis::{ErrorKind, ServerErrorKind};

use super::Place;
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

    /// By what the library or the server says. `at` names the server.
    pub(super) fn of(at: &str, error: &redis::RedisError) -> Self {
        let said = words(error);
        let text = said.to_ascii_lowercase();
        // A script says of its user by text alone what a command says by a code.
        let forbidden = text.contains("noperm") || text.contains("user executing the script");
        let code = error.code().unwrap_or_default();
        match error.kind() {
            _ if forbidden => Self::Unsuitable(format!(
                "Redis at {at} does not let this user do what the broker needs ({said}): grant it the rights that \
                 docs/operations.md lists"
            )),
            ErrorKind::AuthenticationFailed => Self::Unsuitable(format!(
                "Redis at {at} does not take the user or password of redis.url: correct them"
            )),
            _ if matches!(code, "NOAUTH" | "WRONGPASS") => Self::Unsuitable(format!(
                "Redis at {at} asks for a password ({code}): give one in redis.url, as redis://user:password@host"
            )),
            _ if code == "WRONGTYPE" => {
                Self::foreign(&format!("a key of walcast in Redis at {at} is of another type"))
            }
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::CrossSlot) => {
                Self::Unsuitable(format!(
                    "Redis at {at} is a member of a cluster and does not hold the keys of this source ({said}): give \
                     a Redis that is no cluster"
                ))
            }
            _ if text.contains("unknown command") => Self::Unsuitable(format!(
                "Redis at {at} lacks a command that the broker needs ({said}): give a Redis of version 6.2 or newer \
                 that has it"
            )),
            _ if code == "OOM" => Self::Away(format!(
                "Redis at {at} has used up its maxmemory: raise it; the append is tried again"
            )),
            _ if error.is_timeout() => {
                Self::Away(format!("Redis at {at} did not answer in time; it is tried again"))
            }
            _ => Self::Away(format!("Redis at {at}: {said}; it is tried again")),
        }
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
