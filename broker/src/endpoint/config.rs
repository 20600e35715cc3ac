//! `[[endpoint]]`: what an operator writes.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

/// One `[[endpoint]]`: a request that an existing client sends anyway, and what answers it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointConfig {
    /// The method.
    #[serde(default = "post")]
    pub method: String,
    /// The path; a segment may be a name in braces: `/vms/{hostname}/startup`.
    pub path: String,
    /// The topic to wait for; fields of the request in braces: `vm/{body.hostname}`.
    pub topic: String,
    /// What of the topic answers.
    #[serde(default)]
    pub of: Of,
    /// A CEL expression over `data`: the request is held until it is true. Absent: until there is anything.
    #[serde(default)]
    pub ready: Option<String>,
    /// The members of the answer, each a CEL expression over `data` and `topic`. Absent: `data` as it is.
    #[serde(default)]
    pub response: Option<BTreeMap<String, String>>,
    /// Answers where the topic has no value. Absent: the request is held until it has one.
    #[serde(default)]
    pub missing: Option<AnswerConfig>,
    /// Answers a request that does not name a topic. Absent: a problem document.
    #[serde(default)]
    pub invalid: Option<AnswerConfig>,
    /// How long a request is held.
    #[serde(default = "hold", with = "humantime_serde")]
    pub hold: Duration,
    /// A request that is held hears a blank this often, so that no proxy in between takes it for dead.
    #[serde(default = "keepalive", with = "humantime_serde")]
    pub keepalive: Duration,
    /// Who may ask.
    #[serde(default)]
    pub auth: Admits,
}

/// An answer other than the one that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerConfig {
    /// The HTTP status, from 400 to 599.
    pub status: u16,
    /// The members of the body, each a CEL expression; of `missing` it may use `topic`.
    #[serde(default)]
    pub body: BTreeMap<String, String>,
}

/// What of a topic answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Of {
    /// Its current value, as soon as it is as `ready` says.
    #[default]
    State,
    /// The first event from the request on that is.
    Events,
}

/// Who may ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admits {
    /// Whoever has a token that grants the topic; everybody, where nobody is asked for one.
    #[default]
    Bearer,
    /// Everybody, whatever the keys.
    None,
}

fn post() -> String {
    "POST".into()
}

fn hold() -> Duration {
    Duration::from_secs(7 * 24 * 60 * 60)
}

fn keepalive() -> Duration {
    Duration::from_secs(20)
}
