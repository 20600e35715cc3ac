//! Rules: from raw changes to topics and payloads.
//!
//! Pure: no socket, file or SQL, and no row is an error. What cannot be routed is counted by reason, and
//! logged once per rule and reason.
//!
//! - [`rule`]: one `[[table]]`; `topic` its topics, `condition` its `when`, `payload` its data
//! - [`routing`]: a transaction's changes become entries
//! - [`check`]: whether the rules fit the database's tables
//! - `binding`: where a rule's columns are in a relation; `row`, `cel_row`: what is known of a row
//! - `message`: the content of `walcast.publish`

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Deserialize;
use walcast_wire::TopicPattern;

mod binding;
mod bound;
mod cel_row;
pub mod check;
mod condition;
mod message;
mod notice;
mod payload;
pub mod routing;
mod row;
pub mod rule;
#[cfg(test)]
mod tests;
mod topic;

use binding::Binding;
use bound::Bound;
use notice::Notices;
use rule::Rule;

pub use check::{Identity, PartitionFacts, TableFacts, TableKind, UniqueKey};
pub use routing::Routing;
pub use rule::{RuleConfig, RuleError};

use crate::event::{Event, Outdated, Relation, Row, Seeded};

/// Limits of routing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The largest `data` of one event, in bytes of JSON. A larger row is sent as its key, a larger message
    /// as null; `omitted` says so.
    #[serde(deserialize_with = "crate::units::bytes")]
    pub event_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { event_bytes_max: 1 << 20 }
    }
}

/// All rules, compiled. Immutable: a reload makes a new one, which [`Routing::begin`] takes up.
#[derive(Debug)]
pub struct Router {
    rules: Vec<Rule>,
    by_table: HashMap<Arc<str>, usize>,
    config: Config,
    notices: Notices,
    /// How often events of a table turned out to be missing, of those of which any did.
    missed: BTreeMap<Arc<str>, u32>,
}

/// What setting up, seeding and monitoring need to know of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRule {
    /// Schema and table, joined by a dot.
    pub name: Arc<str>,
    /// Whether it is seeded.
    pub state: bool,
    /// Whether the publication is to name the columns.
    pub column_list: bool,
    /// The columns that the rule needs (the replica identity's come on top); `None`: all.
    pub columns: Option<Vec<Arc<str>>>,
}

impl Router {
    /// Compiles the rules.
    ///
    /// # Errors
    /// The first rule that cannot be used, or that names a table for the second time.
    pub fn new(rules: &[RuleConfig], config: Config) -> Result<Self, RuleError> {
        let mut by_table: HashMap<Arc<str>, usize> = HashMap::new();
        let mut compiled = Vec::with_capacity(rules.len());
        for (index, rule) in rules.iter().enumerate() {
            let new = Rule::new(rule)?;
            if let Some(first) = by_table.insert(Arc::clone(&new.table), index) {
                let same = rules.get(first).is_some_and(|first| first == rule);
                return Err(RuleError {
                    table: rule.name.clone(),
                    key: "name",
                    cause: match same {
                        true => "the table has the same rule twice".into(),
                        false => "the table has two rules that differ".into(),
                    },
                    remedy: "keep one [[table]] per table".into(),
                });
            }
            compiled.push(new);
        }
        Ok(Self { rules: compiled, by_table, config, notices: Notices::default(), missed: BTreeMap::new() })
    }

    /// These rules in place of those of `before`, whose tables that missed events keep being known as such.
    #[must_use]
    pub fn after(mut self, before: &Self) -> Self {
        self.missed.clone_from(&before.missed);
        self
    }

    /// The same rules, but to [`Self::outdated`] what was told of these tables no longer holds: events of theirs were
    /// missing.
    ///
    /// # Errors
    /// None that [`Self::new`] did not have.
    pub fn missing<'a>(&self, tables: impl IntoIterator<Item = &'a Arc<str>>) -> Result<Self, RuleError> {
        let rules: Vec<_> = self.rules.iter().map(|rule| rule.config.clone()).collect();
        let mut same = Self::new(&rules, self.config.clone())?.after(self);
        for table in tables {
            *same.missed.entry(Arc::clone(table)).or_default() += 1;
        }
        Ok(same)
    }

    /// The tables with rules, in the order of the rules.
    pub fn tables(&self) -> impl Iterator<Item = TableRule> {
        self.rules.iter().map(|rule| TableRule {
            name: Arc::clone(&rule.table),
            state: rule.state,
            column_list: rule.column_list,
            columns: rule.reads(),
        })
    }

    /// The tables whose current values are kept.
    pub fn state_tables(&self) -> impl Iterator<Item = TableRule> {
        self.tables().filter(|table| table.state)
    }

    /// Whether some rule may keep a current value of one of these topics, with this column where one is named.
    #[must_use]
    pub fn keeps(&self, topics: &TopicPattern, column: Option<&str>) -> bool {
        self.rules.iter().filter(|rule| rule.state).any(|rule| {
            let sends = |column: &str| rule.columns.iter().flatten().any(|name| **name == *column);
            let sent = column.is_none_or(|column| rule.columns.is_none() || sends(column));
            sent && rule.template.pattern().is_some_and(|pattern| pattern.overlaps(topics))
        })
    }

    /// What a seeding of these tables reads.
    #[must_use]
    pub fn seeded(&self, tables: &[Arc<str>]) -> Vec<Seeded> {
        let seeded = |table: &Arc<str>| {
            let topics = self.rule(table).and_then(|(_, rule)| rule.template.pattern());
            Seeded { table: Arc::clone(table), topics: topics.into_iter().collect() }
        };
        tables.iter().map(seeded).collect()
    }

    /// State tables whose values an older router's no longer are, since their rule is new, gone, or another; and all
    /// tables of which events were missing.
    #[must_use]
    pub fn outdated(&self, old: &Self) -> Vec<Outdated> {
        let missed = |table: &str| self.missed.get(table) > old.missed.get(table);
        let differs = |rule: &&Rule, other: &Self| {
            let other = other.rule(&rule.table);
            missed(&rule.table) || rule.state && other.is_none_or(|(_, other)| other.config != rule.config)
        };
        let new = self.rules.iter().filter(|rule| differs(rule, old));
        let gone = old.rules.iter().filter(|rule| differs(rule, self));
        let mut tables: Vec<_> = new.chain(gone).map(|rule| Arc::clone(&rule.table)).collect();
        tables.sort_unstable();
        tables.dedup();
        let outdated = |table: Arc<str>| {
            let rules = [old, self].map(|router| router.rule(&table).map(|(_, rule)| rule));
            let keeps = |old| rules[1].is_some_and(|new: &Rule| new.keeps(old));
            let withdrawn = missed(&table) || rules[0].is_some_and(|old| old.state && !keeps(old));
            let state = rules.into_iter().flatten().any(|rule| rule.state);
            let mut topics: Vec<_> =
                rules.into_iter().flatten().filter_map(|rule| rule.template.pattern()).collect();
            topics.dedup();
            Outdated { table, topics, withdrawn, state }
        };
        tables.into_iter().map(outdated).collect()
    }

    /// Current values, one per row that a state rule publishes. They carry no position and no commit.
    #[must_use]
    pub fn seed(&self, relation: &Relation, rows: &[Row]) -> Vec<Event> {
        let Some((number, rule)) = self.rule(&relation.name).filter(|(_, rule)| rule.state) else {
            return Vec::new();
        };
        let binding = Binding::new(number, rule, relation);
        let bound = Bound { rule, binding: &binding, relation, bytes_max: self.config.event_bytes_max };
        let mut scratch = Vec::new();
        rows.iter().filter_map(|row| bound.seed(row, &mut scratch)).collect()
    }

    fn rule(&self, table: &str) -> Option<(usize, &Rule)> {
        let index = *self.by_table.get(table)?;
        Some((index, self.rules.get(index)?))
    }
}
