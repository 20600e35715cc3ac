//! A table rule: one `[[table]]` of `walcast.toml`.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

use super::condition::Condition;
use super::notice::Notices;
use crate::template::Template;

/// One `[[table]]`: which table is published, where, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// Schema and table, joined by a dot, unquoted: `public.vms`. Partitions publish as their root.
    pub name: String,
    /// The topic of a row; column names in braces: `vm/{hostname}`.
    pub topic: String,
    /// All that the broker keeps and sends of a row, in this order. Absent: every column.
    #[serde(default)]
    pub columns: Option<Vec<String>>,
    /// Whether each topic keeps the row as its current value.
    #[serde(default)]
    pub state: bool,
    /// A CEL expression over `data`, the row, and `old`, the row before; only rows for which it is true
    /// are published, and on a state rule only they are members.
    #[serde(default)]
    pub when: Option<String>,
    /// Whether the publication names the columns, so that others never leave Postgres (15 and later). Then
    /// an UPDATE of the application fails if the replica identity grows beyond them.
    #[serde(default)]
    pub column_list: bool,
}

/// A rule cannot be used. `Display` names the rule, the key, the cause and the remedy, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct RuleError {
    /// The rule's `name`.
    pub table: String,
    /// The key of the rule that is at fault.
    pub key: &'static str,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl RuleError {
    /// Whether changes of the table do not arrive, or not whole, while this is so.
    #[must_use]
    pub fn misses_events(&self) -> bool {
        matches!(self.key, "name" | "columns")
    }
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[[table]] {:?}, key `{}`: {}; {}", self.table, self.key, self.cause, self.remedy)
    }
}

/// A rule, ready for use.
#[derive(Debug)]
pub(super) struct Rule {
    /// As it was written, to tell whether a reload changes it.
    pub(super) config: RuleConfig,
    pub(super) table: Arc<str>,
    pub(super) template: Template,
    pub(super) columns: Option<Box<[Arc<str>]>>,
    pub(super) state: bool,
    pub(super) when: Option<Condition>,
    pub(super) column_list: bool,
    pub(super) notices: Notices,
}

impl Rule {
    pub(super) fn new(config: &RuleConfig) -> Result<Self, RuleError> {
        let error =
            |key, cause: String, remedy: String| RuleError { table: config.name.clone(), key, cause, remedy };
        check_name(&config.name).map_err(|cause| {
            error("name", cause.into(), "write schema and table, unquoted: public.vms".into())
        })?;
        let template = Template::parse(&config.topic, "write a column's name in braces: vm/{hostname}")
            .map_err(|(cause, remedy)| error("topic", cause, remedy))?;
        if config.state && template.ambiguous() {
            return Err(error(
                "topic",
                format!("different rows of a state table could share a topic of `{}`", config.topic),
                "put a `/` between the placeholders".into(),
            ));
        }
        let mut seen = HashSet::new();
        for column in config.columns.iter().flatten() {
            if column.is_empty() || !seen.insert(column) {
                return Err(error(
                    "columns",
                    format!("column {column:?} is empty or named twice"),
                    "name each column once".into(),
                ));
            }
        }
        let when = match &config.when {
            None => None,
            Some(text) => {
                Some(Condition::compile(text).map_err(|(cause, remedy)| error("when", cause, remedy))?)
            }
        };
        Ok(Self {
            config: config.clone(),
            table: config.name.as_str().into(),
            template,
            columns: config
                .columns
                .as_ref()
                .map(|names| names.iter().map(|name| name.as_str().into()).collect()),
            state: config.state,
            when,
            column_list: config.column_list,
            notices: Notices::default(),
        })
    }

    /// Whether everything that `old` told of current values is still true.
    pub(super) fn keeps(&self, old: &Self) -> bool {
        let columns =
            |rule: &Self| rule.columns.as_ref().map(|names| names.iter().cloned().collect::<HashSet<_>>());
        let same = |of: fn(&RuleConfig) -> (&str, Option<&str>)| of(&self.config) == of(&old.config);
        self.state && same(|rule| (&rule.topic, rule.when.as_deref())) && columns(self) == columns(old)
    }

    /// The columns that it names, for topic, data or condition, each once; `None` if it publishes all.
    pub(super) fn reads(&self) -> Option<Vec<Arc<str>>> {
        self.columns.as_ref()?;
        let mut names: Vec<Arc<str>> = Vec::new();
        for (_, name) in self.named() {
            if !names.contains(name) {
                names.push(Arc::clone(name));
            }
        }
        Some(names)
    }

    /// Every mention of a column, with the key that mentions it.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, &Arc<str>)> {
        let columns = self.columns.iter().flatten().map(|name| ("columns", name));
        let topic = self.template.names().iter().map(|name| ("topic", name));
        let when = self.when.iter().flat_map(|when| when.columns()).map(|name| ("when", name));
        columns.chain(topic).chain(when)
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    match name.split_once('.') {
        None => Err("the schema is missing"),
        Some(("", _) | (_, "")) => Err("schema or table is empty"),
        Some(_) if name.contains('"') => Err("the name is quoted"),
        Some(_) if name.chars().any(char::is_control) => Err("the name holds a control character"),
        Some(_) => Ok(()),
    }
}
