//! Endpoints: requests that existing clients send anyway, answered by the broker as the configuration says.
//!
//! Pure: which request asks for which topic, when its value answers, and what the answer is. How a request is held
//! is [`transport`](crate::transport)'s business.
//!
//! - `config`: one `[[endpoint]]`; `path`: its path
//! - `answer`: JSON made of CEL expressions

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tracing::{error, warn};
use walcast_wire::topic::TOPIC_BYTES_MAX;
use walcast_wire::{Topic, TopicPattern, encode_segment};

use crate::expression::Expression;
use crate::template::Template;

mod answer;
mod config;
mod path;
#[cfg(test)]
mod tests;

use answer::{Known, Members, Subject};
use path::Path;

pub use config::{Admits, AnswerConfig, EndpointConfig, Of};

/// All endpoints, compiled.
#[derive(Debug, Default)]
pub struct Endpoints {
    endpoints: Vec<Arc<Endpoint>>,
}

/// What answers a request of one method and one path.
#[derive(Debug)]
pub struct Endpoint {
    method: Box<str>,
    path: Path,
    /// For messages.
    name: Box<str>,
    topic: Template,
    fields: Vec<Field>,
    ready: Option<Expression>,
    response: Option<Members>,
    missing: Option<Fixed>,
    invalid: Option<Fixed>,
    /// What went wrong while it answered is logged once for each key.
    told: [AtomicBool; 2],
    reads: Vec<Box<str>>,
    /// What of the topic answers.
    pub of: Of,
    /// How long a request is held.
    pub hold: Duration,
    /// The longest silence of a request that is held.
    pub keepalive: Duration,
    /// Who may ask.
    pub admits: Admits,
}

/// Where in a request a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// A member of the body: of a JSON object, or of a form. Members of members are told in order.
    Body(Vec<Box<str>>),
    /// A parameter of the query.
    Query(Box<str>),
    /// The segment of the path that stands for the name with this number.
    Path(usize),
    /// A header, in lower case.
    Header(Box<str>),
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body(names) => write!(f, "`{}` of the body", names.join(".")),
            Self::Query(name) => write!(f, "the parameter `{name}`"),
            Self::Path(number) => write!(f, "segment {} of the path that may vary", number + 1),
            Self::Header(name) => write!(f, "the header `{name}`"),
        }
    }
}

/// An answer other than the one that is waited for.
#[derive(Debug)]
struct Fixed {
    status: u16,
    body: Members,
}

/// An answer, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// JSON.
    pub body: Bytes,
}

/// What a value or an event is to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not what it waits for.
    Waits,
    /// Its answer.
    Answer(Answer),
    /// It would be the answer, but the answer cannot be made of it; the log says why.
    Broken,
}

/// Which endpoint a request is for.
#[derive(Debug)]
pub enum Found<'e, 'p> {
    /// None.
    None,
    /// One, but only with another method; with all that would do.
    WrongMethod(String),
    /// This one; with the segments of the path that stand for names, as they were sent.
    Endpoint(&'e Arc<Endpoint>, Vec<&'p str>),
}

/// An endpoint cannot be used. `Display` names it, the key, the cause and the remedy, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {cause}; {remedy}", self.at())]
pub struct EndpointError {
    /// Its method,
    pub method: String,
    /// and path.
    pub path: String,
    /// The key that is at fault.
    pub key: String,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl EndpointError {
    /// Which endpoint, and which of its keys.
    #[must_use]
    pub fn at(&self) -> String {
        format!("[[endpoint]] {} {:?}, key `{}`", self.method, self.path, self.key)
    }
}

impl Endpoints {
    /// Compiles them.
    ///
    /// # Errors
    /// The first that cannot be used, or whose path another has.
    pub fn new(configs: &[EndpointConfig]) -> Result<Self, EndpointError> {
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::with_capacity(configs.len());
        for config in configs {
            let new = Endpoint::new(config)?;
            let same = |old: &&Arc<Endpoint>| old.method == new.method && old.path.overlaps(&new.path);
            if let Some(old) = endpoints.iter().find(same) {
                let cause = format!("a request may be for {}, too", old.name);
                return Err(fail(config, "path", cause, "give each request one endpoint".into()));
            }
            endpoints.push(Arc::new(new));
        }
        Ok(Self { endpoints })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().map(|endpoint| &**endpoint)
    }

    /// Which of them a request is for. `path` is as it was sent, without the query.
    #[must_use]
    pub fn find<'e, 'p>(&'e self, method: &str, path: &'p str) -> Found<'e, 'p> {
        // Also where a name could stand for it.
        if path == "/v1" || path.starts_with("/v1/") {
            return Found::None;
        }
        let mut others = Vec::new();
        for endpoint in &self.endpoints {
            match endpoint.path.values(path) {
                Some(values) if *endpoint.method == *method => return Found::Endpoint(endpoint, values),
                Some(_) => others.push(&*endpoint.method),
                None => {}
            }
        }
        if others.is_empty() { Found::None } else { Found::WrongMethod(others.join(", ")) }
    }
}

impl Endpoint {
    fn new(config: &EndpointConfig) -> Result<Self, EndpointError> {
        let error = |key: &str, (cause, remedy): (String, String)| fail(config, key, cause, remedy);
        if !matches!(config.method.as_str(), "GET" | "POST" | "PUT" | "PATCH") {
            let remedy = "write GET, POST, PUT or PATCH, in capitals".into();
            return Err(error("method", (format!("`{}` is not answered", config.method), remedy)));
        }
        let path = Path::parse(&config.path)
            .map_err(|cause| error("path", (cause, "write a path such as /vm_startup".into())))?;
        let topic =
            Template::parse(&config.topic, "write a field of the request in braces: vm/{body.hostname}")
                .map_err(|fault| error("topic", fault))?;
        let fields = topic.names().iter().map(|name| field(name, &path, &config.method));
        let fields = fields.collect::<Result<_, _>>().map_err(|fault| error("topic", fault))?;
        let range = |key, time: Duration, low: u64, high: u64, remedy: &str| {
            let fits = (Duration::from_secs(low)..=Duration::from_secs(high)).contains(&time);
            let cause = || format!("{} is out of range", humantime::format_duration(time));
            if fits { Ok(()) } else { Err(error(key, (cause(), remedy.into()))) }
        };
        range("hold", config.hold, 1, 30 * 24 * 60 * 60, "choose a value from 1s to 30days")?;
        range("keepalive", config.keepalive, 1, 30, "choose a value from 1s to 30s")?;
        let names: &[&str] = match config.of {
            Of::State => &["data", "topic"],
            Of::Events => &["data", "topic", "op"],
        };
        let mut reads = Vec::new();
        let mut known = Known { names, example: "data.pin != null", reads: &mut reads };
        let ready = config.ready.as_deref().map(|text| known.compile(text)).transpose();
        let ready = ready.map_err(|fault| error("ready", fault))?;
        let mut known = Known { names, example: "data.pin, or 'a constant'", reads: &mut reads };
        let response =
            config.response.as_ref().map(|members| Members::compile(members, &mut known)).transpose();
        let response = response.map_err(|(name, fault)| error(&format!("response.{name}"), fault))?;
        if config.of == Of::Events && config.missing.is_some() {
            let cause = "only a current value can be missing".into();
            return Err(error("missing", (cause, "remove it, or write of = \"state\"".into())));
        }
        let fixed = |key: &str, answer: &Option<AnswerConfig>, names| {
            let Some(answer) = answer else { return Ok(None) };
            if !(400..=599).contains(&answer.status) {
                // A client must not take it for what it waits for.
                let cause = format!("{} does not say that something is wrong", answer.status);
                return Err(error(&format!("{key}.status"), (cause, "choose one from 400 to 599".into())));
            }
            let mut known = Known { names, example: "'VM not found.'", reads: &mut Vec::new() };
            let body = Members::compile(&answer.body, &mut known)
                .map_err(|(name, fault)| error(&format!("{key}.body.{name}"), fault))?;
            Ok(Some(Fixed { status: answer.status, body }))
        };
        Ok(Self {
            missing: fixed("missing", &config.missing, &["topic"])?,
            invalid: fixed("invalid", &config.invalid, &[])?,
            name: format!("{} {}", config.method, config.path).into(),
            method: config.method.as_str().into(),
            path,
            topic,
            fields,
            reads,
            ready,
            response,
            told: Default::default(),
            of: config.of,
            hold: config.hold,
            keepalive: config.keepalive,
            admits: config.auth,
        })
    }

    /// The members of `data` that its expressions name.
    #[must_use]
    pub fn reads(&self) -> &[Box<str>] {
        &self.reads
    }

    /// What it is for, in messages: its method and path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The topics that it may ask for.
    #[must_use]
    pub fn topics(&self) -> Option<TopicPattern> {
        self.topic.pattern()
    }

    /// What is wrong with it, if nothing that is kept can ever be its answer.
    #[must_use]
    pub fn keeps_nothing(&self) -> EndpointError {
        let (method, path) = self.name.split_once(' ').unwrap_or_default();
        EndpointError {
            method: method.to_owned(),
            path: path.to_owned(),
            key: "topic".to_owned(),
            cause: "no rule keeps current values of such topics, so nothing would ever be ready".to_owned(),
            remedy: "add a [[table]] with that topic and state = true, or write of = \"events\"".to_owned(),
        }
    }

    /// What the topic is made of.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The topic that a request asks for, whose [`Self::fields`] have these values.
    ///
    /// # Errors
    /// Why there is none.
    pub fn topic(&self, values: &[String]) -> Result<Topic, String> {
        let value = |number: usize| match values.get(number).map(String::as_str) {
            None | Some("") => Err(format!("{} is empty", self.fields[number])),
            // The encoding never shortens.
            Some(value) if value.len() > TOPIC_BYTES_MAX => {
                Err(format!("{} is too long", self.fields[number]))
            }
            Some(value) => Ok(encode_segment(value)),
        };
        let text = self.topic.fill(value)?;
        Topic::new(&text).map_err(|error| format!("{text:?} is no topic: {error}"))
    }

    /// What this value of the topic is to a request.
    #[must_use]
    pub fn look(&self, topic: &Topic, data: &[u8], op: Option<&str>) -> Verdict {
        let subject = Subject::new(topic.as_str(), data, op);
        let ready = match &self.ready {
            Some(ready) => subject.is(ready),
            // What is gone is no answer, unless it is asked for.
            None => Ok(!matches!(op, Some("delete" | "truncate"))),
        };
        match ready {
            Ok(true) => {}
            Ok(false) => return Verdict::Waits,
            Err(cause) => {
                // A row may not have the field yet; whoever wrote the expression should know.
                if !self.told[0].swap(true, Ordering::Relaxed) {
                    warn!(
                        endpoint = &*self.name,
                        topic = topic.as_str(),
                        "`ready` fails, and counts as not ready: {cause}; correct it if this is not meant (logged once)"
                    );
                }
                return Verdict::Waits;
            }
        }
        let body = match &self.response {
            Some(members) => members.write(&subject),
            None => Ok(Bytes::copy_from_slice(data)),
        };
        match body {
            Ok(body) => Verdict::Answer(Answer { status: 200, body }),
            Err(cause) => {
                if !self.told[1].swap(true, Ordering::Relaxed) {
                    error!(
                        endpoint = &*self.name,
                        topic = topic.as_str(),
                        "requests fail, for `response` cannot be made: {cause}; correct it, or let `ready` wait for what it needs (logged once)"
                    );
                }
                Verdict::Broken
            }
        }
    }

    /// What answers where the topic has no value, if anything does.
    #[must_use]
    pub fn missing(&self, topic: &Topic) -> Option<Answer> {
        self.missing.as_ref().map(|fixed| fixed.answer(&Subject::nothing(topic.as_str())))
    }

    /// What answers a request that names no topic, if not a problem document.
    #[must_use]
    pub fn invalid(&self) -> Option<Answer> {
        self.invalid.as_ref().map(|fixed| fixed.answer(&Subject::nothing("")))
    }
}

impl Fixed {
    fn answer(&self, subject: &Subject<'_>) -> Answer {
        // An expression without `data` can still divide by zero.
        let body = self.body.write(subject).unwrap_or_else(|_| Bytes::from_static(b"{}"));
        Answer { status: self.status, body }
    }
}

/// Where the value stands that a placeholder names.
fn field(name: &str, path: &Path, method: &str) -> Result<Field, (String, String)> {
    let example = "write {body.name}, {query.name}, {path.name} or {header.name}".to_owned();
    let (source, rest) = match name.split_once('.') {
        Some((source, rest)) if !rest.is_empty() => (source, rest),
        _ => return Err((format!("`{{{name}}}` does not say where in the request it stands"), example)),
    };
    match source {
        "body" if method == "GET" => {
            Err(("a GET has no body".into(), "write {query.name}, {path.name} or {header.name}".into()))
        }
        "body" if rest.split('.').any(str::is_empty) => {
            Err((format!("`{{{name}}}` has an empty name"), example))
        }
        "body" => Ok(Field::Body(rest.split('.').map(Into::into).collect())),
        "query" => Ok(Field::Query(rest.into())),
        // A topic is shown to operators, and in the log.
        "header" if ["authorization", "cookie"].iter().any(|secret| rest.eq_ignore_ascii_case(secret)) => {
            Err((format!("`{rest}` holds a secret, and topics are none"), example))
        }
        "header" => Ok(Field::Header(rest.to_ascii_lowercase().into())),
        "path" => match path.names().position(|known| known == rest) {
            Some(number) => Ok(Field::Path(number)),
            None => Err((format!("the path has no `{{{rest}}}`"), "name one of its segments so".into())),
        },
        _ => Err((format!("`{source}` is no part of a request"), example)),
    }
}

fn fail(config: &EndpointConfig, key: &str, cause: String, remedy: String) -> EndpointError {
    EndpointError {
        method: config.method.clone(),
        path: config.path.clone(),
        key: key.to_owned(),
        cause,
        remedy,
    }
}
