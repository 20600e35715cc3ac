//! Who may do what: tokens, and what their holders are granted. Pure: it reads no file and knows no HTTP.
//!
//! Of a token only its SHA-256 is known. That will do without salt or stretching, for tokens are made by
//! [`Token::new`] and hold 256 random bits.
//!
//! Where there is neither a key, nor a role, nor a file of keys, nobody is asked who they are. Else what is not granted is
//! refused, and stays so while the process runs: a file that is empty for a moment must not let everybody in.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use walcast_wire::{TopicError, TopicPattern, encode_segment};

mod lines;
mod token;

pub use lines::{BadLine, read_lines};
pub use token::Token;

/// What stands in a pattern for who somebody is.
const SUB: &str = "{sub}";

/// `[auth]`: where keys come from, beside `[[key]]`, and what browsers may do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A file with a key a line: who it is, SHA-256 of the token, roles separated by commas.
    pub keys_file: Option<PathBuf>,
    /// The cookie that a browser may send its token in.
    pub cookie: String,
    /// Pages of these origins may, such as `https://app.example`.
    pub origins: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { keys_file: None, cookie: "walcast_token".into(), origins: Vec::new() }
    }
}

/// `[[role]]`: what its holders may do. Patterns may hold `{sub}`, which is who they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleConfig {
    /// What keys call it.
    pub name: String,
    /// Wait for events of these topics, and read their current values.
    #[serde(default)]
    pub subscribe: Vec<String>,
    /// Publish to these.
    #[serde(default)]
    pub publish: Vec<String>,
    /// See who waits for these.
    #[serde(default)]
    pub waiters: Vec<String>,
    /// See metrics, and why a broker is not ready.
    #[serde(default)]
    pub admin: bool,
}

/// `[[key]]`: who somebody is, and by which token that is known.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// Who it is.
    pub sub: String,
    /// SHA-256 of the token: 64 hexadecimal digits.
    pub sha256: String,
    /// What it may do.
    pub roles: Vec<String>,
}

/// A role or key that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Two roles have one name.
    #[error("two roles are named `{0}`; give them different names")]
    RoleTwice(String),
    /// Keys could not name it.
    #[error("a role is named `{0}`; give it letters, digits, `-`, `_` and `.`")]
    RoleName(String),
    /// Something stands in braces that is not known.
    #[error("role `{role}`: `{pattern}`: in braces there may be {SUB} alone; correct it")]
    Braces {
        /// The role.
        role: String,
        /// As it was written.
        pattern: String,
    },
    /// It could never do anything.
    #[error("the key of `{0}` has no role; give it one, or remove it")]
    Roleless(String),
    /// A pattern breaks the rules of topics.
    #[error("role `{role}`: `{pattern}`: {error}; write a topic, or a pattern such as `vm/*`")]
    Pattern {
        /// The role.
        role: String,
        /// As it was written.
        pattern: String,
        /// What is wrong with it.
        error: TopicError,
    },
    /// The digest is none.
    #[error("the key of `{0}`: sha256 is not 64 hexadecimal digits; `walcast token` prints them")]
    Digest(String),
    /// A key without a name would be a different topic for each pattern.
    #[error("a key has an empty `sub`; say who it is")]
    Nameless,
    /// There is no such role.
    #[error("the key of `{sub}`: there is no role `{role}`; add a [[role]] of that name, or correct it")]
    NoRole {
        /// Whose key.
        sub: String,
        /// The role that it names.
        role: String,
    },
    /// One token would be two people.
    #[error("the keys of `{0}` and `{1}` have the same sha256; give each a token of its own")]
    Twice(String, String),
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wait for events, or read current values.
    Subscribe,
    /// Publish.
    Publish,
    /// See who waits.
    Waiters,
}

/// Somebody is known and may not do this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{sub}` may not {} `{topic}`", match .action {
    Action::Subscribe => "subscribe to",
    Action::Publish => "publish to",
    Action::Waiters => "see who waits for",
})]
pub struct Denied {
    /// Who.
    pub sub: String,
    /// What.
    pub action: Action,
    /// Which topic or pattern.
    pub topic: TopicPattern,
}

/// What a key's holder may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Grants {
    subscribe: Vec<TopicPattern>,
    publish: Vec<TopicPattern>,
    waiters: Vec<TopicPattern>,
    admin: bool,
}

/// Somebody who was let in. Kept for as long as a connection, and asked again and again whether it still holds.
pub struct Key {
    digest: [u8; 32],
    sub: String,
    grants: Grants,
    revoked: AtomicBool,
}

impl Key {
    /// Who it is.
    #[must_use]
    pub fn sub(&self) -> &str {
        &self.sub
    }

    /// Whether all of `topics` are granted.
    ///
    /// # Errors
    /// The first that is not.
    pub fn may(&self, action: Action, topics: &[TopicPattern]) -> Result<(), Denied> {
        let granted = match action {
            Action::Subscribe => &self.grants.subscribe,
            Action::Publish => &self.grants.publish,
            Action::Waiters => &self.grants.waiters,
        };
        match topics.iter().find(|topic| !granted.iter().any(|granted| granted.covers(topic))) {
            None => Ok(()),
            Some(topic) => Err(Denied { sub: self.sub.clone(), action, topic: topic.clone() }),
        }
    }

    /// Whether metrics and the like may be seen.
    #[must_use]
    pub fn administers(&self) -> bool {
        self.grants.admin
    }

    /// It was taken back, or what it grants has changed: its holder has to come again.
    #[must_use]
    pub fn revoked(&self) -> bool {
        self.revoked.load(Ordering::Relaxed)
    }

    /// Somebody who may do everything: for where nobody is asked who they are.
    #[must_use]
    pub fn anybody() -> Arc<Self> {
        let all = || vec![TopicPattern::everything()];
        let grants = Grants { subscribe: all(), publish: all(), waiters: all(), admin: true };
        Arc::new(Self { digest: [0; 32], sub: "anybody".into(), grants, revoked: AtomicBool::new(false) })
    }
}

impl fmt::Debug for Key {
    /// Without the digest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("sub", &self.sub).finish_non_exhaustive()
    }
}

/// All keys.
#[derive(Debug)]
pub struct Keys {
    /// By the first half of the digest. Whoever guesses tokens learns nothing from how long this takes: what is looked
    /// up is a digest, which nobody can choose.
    keys: HashMap<u128, Vec<Arc<Key>>>,
    /// Nobody is asked.
    anybody: Option<Arc<Key>>,
}

impl Keys {
    /// Reads keys and their roles. `asked`: there is a file of keys, so everybody is asked for one even if it is empty.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn new(keys: &[KeyConfig], roles: &[RoleConfig], asked: bool) -> Result<Self, KeyError> {
        let mut by_name: HashMap<&str, &RoleConfig> = HashMap::new();
        for role in roles {
            // Also of a role that nobody has: else it would be found wrong only when somebody gets it.
            grants(role, "x")?;
            let fits = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
            if role.name.is_empty() || !role.name.chars().all(fits) {
                return Err(KeyError::RoleName(role.name.clone()));
            }
            if by_name.insert(&role.name, role).is_some() {
                return Err(KeyError::RoleTwice(role.name.clone()));
            }
        }
        let mut all: HashMap<u128, Vec<Arc<Key>>> = HashMap::new();
        for key in keys {
            let sub = key.sub.clone();
            if sub.is_empty() {
                return Err(KeyError::Nameless);
            }
            let digest = token::read_digest(&key.sha256).ok_or_else(|| KeyError::Digest(sub.clone()))?;
            if key.roles.is_empty() {
                return Err(KeyError::Roleless(sub));
            }
            let mut all_grants = Grants::default();
            for name in &key.roles {
                let role = by_name.get(name.as_str());
                let role = role.ok_or_else(|| KeyError::NoRole { sub: sub.clone(), role: name.clone() })?;
                let Grants { subscribe, publish, waiters, admin } = grants(role, &sub)?;
                all_grants.subscribe.extend(subscribe);
                all_grants.publish.extend(publish);
                all_grants.waiters.extend(waiters);
                all_grants.admin |= admin;
            }
            let same = all.entry(half(&digest)).or_default();
            if let Some(other) = same.iter().find(|other| other.digest == digest) {
                return Err(KeyError::Twice(other.sub.clone(), sub));
            }
            let revoked = AtomicBool::new(false);
            same.push(Arc::new(Key { digest, sub, grants: all_grants, revoked }));
        }
        let open = !asks(keys, roles, asked);
        let anybody = open.then(Key::anybody);
        Ok(Self { keys: all, anybody })
    }

    /// Whether nobody is asked who they are.
    #[must_use]
    pub fn open(&self) -> bool {
        self.anybody.is_some()
    }

    /// Who everybody is, where nobody is asked.
    #[must_use]
    pub fn anybody(&self) -> Option<Arc<Key>> {
        self.anybody.clone()
    }

    /// Whose token this is.
    #[must_use]
    pub fn find(&self, token: &[u8]) -> Option<Arc<Key>> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let same = self.keys.get(&half(&digest))?;
        same.iter().find(|key| bool::from(key.digest.ct_eq(&digest))).cloned()
    }

    /// These take the place of `old`: who holds a key that is gone, or grants something else now, is turned out. Where
    /// people were asked who they are, they go on to be.
    #[must_use]
    pub fn after(mut self, old: &Self) -> Self {
        if !old.open() {
            self.anybody = None;
        }
        for key in old.keys.values().flatten().chain(&old.anybody) {
            let same = |new: &&mut Arc<Key>| {
                new.digest == key.digest && new.sub == key.sub && new.grants == key.grants
            };
            let mut new =
                self.keys.get_mut(&half(&key.digest)).into_iter().flatten().chain(&mut self.anybody);
            match new.find(same) {
                Some(new) => *new = Arc::clone(key),
                None => key.revoked.store(true, Ordering::Relaxed),
            }
        }
        self
    }
}

/// Whether anybody is asked who they are; `file`: there is a file of keys, even if it is empty.
#[must_use]
pub fn asks(keys: &[KeyConfig], roles: &[RoleConfig], file: bool) -> bool {
    file || !keys.is_empty() || !roles.is_empty()
}

/// The token of a header `Authorization: Bearer …`.
#[must_use]
pub fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn half(digest: &[u8; 32]) -> u128 {
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    u128::from_be_bytes(half)
}

/// What a role grants to one who is `sub`.
fn grants(role: &RoleConfig, sub: &str) -> Result<Grants, KeyError> {
    let segment = encode_segment(sub);
    let read = |patterns: &[String]| -> Result<Vec<TopicPattern>, KeyError> {
        let read = |pattern: &String| {
            if pattern.replace(SUB, "").contains(['{', '}']) {
                return Err(KeyError::Braces { role: role.name.clone(), pattern: pattern.clone() });
            }
            TopicPattern::new(&pattern.replace(SUB, &segment)).map_err(|error| KeyError::Pattern {
                role: role.name.clone(),
                pattern: pattern.clone(),
                error,
            })
        };
        patterns.iter().map(read).collect()
    };
    Ok(Grants {
        subscribe: read(&role.subscribe)?,
        publish: read(&role.publish)?,
        waiters: read(&role.waiters)?,
        admin: role.admin,
    })
}

#[cfg(test)]
mod tests;
