//! What an endpoint answers: JSON objects whose members are CEL expressions.

use std::collections::BTreeMap;

use bytes::Bytes;
use cel::common::types::{CelBool, CelString};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use serde_json::value::RawValue;

use crate::expression::{self, Expression, Fault, describe, from_json, to_json};

/// What expressions may name.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub(super) names: &'static [&'static str],
    pub(super) example: &'static str,
    /// The members of `data` that they do.
    pub(super) reads: &'a mut Vec<Box<str>>,
}

impl expression::Names for Known<'_> {
    fn field(&mut self, name: &str, field: &str) -> bool {
        if name == "data" && !self.reads.iter().any(|known| **known == *field) {
            self.reads.push(field.into());
        }
        false
    }

    fn alone(&self, name: &str) -> Result<(), Fault> {
        if self.names.contains(&name) {
            return Ok(());
        }
        let known = match self.names {
            [] => "nothing is known of the request here: write a constant, a text with quotes of its own: 'like this'".to_owned(),
            names => format!("there is {}; a text has quotes of its own: '{name}'", names.join(", ")),
        };
        Err((format!("`{name}` is unknown"), known))
    }
}

impl Known<'_> {
    pub(super) fn compile(&mut self, text: &str) -> Result<Expression, Fault> {
        Expression::compile(text, self.example, self)
    }
}

/// What is evaluated: a value or an event, and where it was published.
pub(super) struct Subject<'a> {
    json: Option<&'a [u8]>,
    /// JSON holds more than an expression can: numbers of any size, any depth.
    data: Result<Option<Box<dyn Val + 'a>>, String>,
    topic: CelString<'a>,
    op: Option<CelString<'a>>,
}

impl<'a> Subject<'a> {
    /// A topic that has nothing.
    pub(super) fn nothing(topic: &'a str) -> Self {
        Self { json: None, data: Ok(None), topic: topic.into(), op: None }
    }

    /// `data` is JSON; `op` says what happened to it.
    pub(super) fn new(topic: &'a str, data: &'a [u8], op: Option<&'a str>) -> Self {
        let parsed = serde_json::from_slice(data);
        let parsed = parsed.map(|data| Some(from_json(data)));
        let parsed = parsed.map_err(|error| format!("no expression can hold `data`: {error}"));
        Self { json: Some(data), data: parsed, topic: topic.into(), op: op.map(Into::into) }
    }

    /// Whether it is as the expression says.
    ///
    /// # Errors
    /// The expression fails of it, or says neither yes nor no.
    pub(super) fn is(&self, ready: &Expression) -> Result<bool, String> {
        self.data.as_ref().map_err(Clone::clone)?;
        ready.evaluate(self, |outcome| match outcome {
            Ok(value) => match value.downcast_ref::<CelBool>() {
                Some(verdict) => Ok(*verdict.inner()),
                None => Err(format!("it is neither true nor false but of type {}", value.get_type().name())),
            },
            Err(error) => Err(describe(error)),
        })
    }
}

impl std::fmt::Debug for Subject<'_> {
    /// Without values.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").finish_non_exhaustive()
    }
}

impl VariableResolver for Subject<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        match variable {
            "data" => self.data.as_ref().ok()?.as_deref().map(CowVal::Borrowed),
            "topic" => Some(CowVal::Borrowed(&self.topic)),
            "op" => self.op.as_ref().map(|op| CowVal::Borrowed(op as &dyn Val)),
            _ => None,
        }
    }
}

/// A JSON object to be made.
#[derive(Debug)]
pub(super) struct Members {
    members: Vec<(Box<str>, Expression)>,
}

impl Members {
    /// Compiles each member.
    ///
    /// # Errors
    /// The member that cannot be, and why.
    pub(super) fn compile(
        members: &BTreeMap<String, String>,
        known: &mut Known<'_>,
    ) -> Result<Self, (String, Fault)> {
        let compile = |(name, text): (&String, &String)| match known.compile(text) {
            Ok(expression) => Ok((name.as_str().into(), expression)),
            Err(fault) => Err((name.clone(), fault)),
        };
        Ok(Self { members: members.iter().map(compile).collect::<Result<_, _>>()? })
    }

    /// The object.
    ///
    /// # Errors
    /// A member cannot be made; which, and why.
    pub(super) fn write(&self, subject: &Subject<'_>) -> Result<Bytes, String> {
        subject.data.as_ref().map_err(Clone::clone)?;
        let mut fields: Option<BTreeMap<String, &RawValue>> = None;
        let mut out = BTreeMap::new();
        for (name, expression) in &self.members {
            // What is only passed on keeps its form: a number its digits.
            let passed_on = expression.field_of("data").and_then(|field| {
                let read = || subject.json.and_then(|json| serde_json::from_slice(json).ok());
                fields.get_or_insert_with(|| read().unwrap_or_default()).get(field).copied()
            });
            let value = match passed_on {
                Some(raw) => raw.to_owned(),
                None => expression
                    .evaluate(subject, |outcome| match outcome {
                        Ok(value) => to_json(value)
                            .and_then(|value| serde_json::value::to_raw_value(&value).ok())
                            .ok_or_else(|| "it has no JSON form".to_owned()),
                        Err(error) => Err(describe(error)),
                    })
                    .map_err(|cause| format!("`{name}`: {cause}"))?,
            };
            out.insert(&**name, value);
        }
        serde_json::to_vec(&out).map(Bytes::from).map_err(|error| error.to_string())
    }
}
