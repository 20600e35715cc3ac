//! Whether the rules fit the database: a pure comparison with facts that setting up and starting read from
//! the catalog.

use super::Router;
use super::rule::{Rule, RuleError};

/// What the catalog says of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// Schema and table, joined by a dot, unquoted.
    pub name: String,
    /// What it is.
    pub kind: TableKind,
    /// The columns that logical replication sends (no dropped or generated ones).
    pub columns: Vec<String>,
    /// How old rows are identified.
    pub identity: Identity,
    /// Its unique indexes that are valid, cover all rows (no predicate), and are over plain columns.
    pub unique_keys: Vec<UniqueKey>,
    /// Whether our publication holds it, or has our triggers; `None` where that is yet to be arranged.
    pub published: Option<bool>,
    /// The columns that are sent of it, where any are named; `None`: whole rows.
    pub column_list: Option<Vec<String>>,
    /// It is our triggers that name them, and not the publication: they always name what the rule reads.
    pub by_trigger: bool,
    /// Of a partitioned table: its leaves, whose own replica identity decides.
    pub partitions: Vec<PartitionFacts>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// An ordinary, logged table.
    Table,
    /// The root of a partitioned table.
    Partitioned,
    /// A partition; names the root.
    Partition(String),
    /// An unlogged or temporary table.
    NotLogged,
    /// Anything else; says what, for example `a view`.
    Other(String),
}

/// A table's replica identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// DEFAULT: the primary key's columns; none without a primary key.
    Default(Vec<String>),
    /// USING INDEX: the index's columns; none if it was dropped.
    Index(Vec<String>),
    /// FULL: all columns.
    Full,
    /// NOTHING.
    Nothing,
}

/// A unique index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueKey {
    /// The index's name, without schema.
    pub index: String,
    /// Its key columns.
    pub columns: Vec<String>,
    /// Whether all of them are NOT NULL.
    pub not_null: bool,
    /// Whether it is checked at once; a deferrable constraint is not.
    pub immediate: bool,
}

/// A partition without partitions of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionFacts {
    /// Schema and table, joined by a dot, unquoted.
    pub name: String,
    /// How its old rows are identified.
    pub identity: Identity,
}

impl Identity {
    fn usable(&self) -> bool {
        match self {
            Self::Default(columns) | Self::Index(columns) => !columns.is_empty(),
            Self::Full => true,
            Self::Nothing => false,
        }
    }

    fn holds(&self, column: &str) -> bool {
        match self {
            Self::Default(columns) | Self::Index(columns) => columns.iter().any(|known| known == column),
            Self::Full => true,
            Self::Nothing => false,
        }
    }

    fn same_columns(&self, other: &Self) -> bool {
        let columns = |identity: &Self| match identity {
            Self::Default(columns) | Self::Index(columns) => {
                let mut columns = columns.clone();
                columns.sort_unstable();
                Some(columns)
            }
            Self::Full => None,
            Self::Nothing => Some(Vec::new()),
        };
        columns(self) == columns(other)
    }
}

impl Router {
    /// All that keeps the rules from working on these tables; a table that is not among them does not
    /// exist. Empty: they fit.
    #[must_use]
    pub fn check(&self, tables: &[TableFacts]) -> Vec<RuleError> {
        let mut errors = Vec::new();
        for rule in &self.rules {
            let mut checking = Checking { rule, errors: &mut errors };
            match tables.iter().find(|facts| facts.name == *rule.table) {
                Some(facts) => checking.table(facts),
                None => checking.error("name", "the table does not exist", "create it, or correct the name"),
            }
        }
        errors
    }
}

struct Checking<'a> {
    rule: &'a Rule,
    errors: &'a mut Vec<RuleError>,
}

impl Checking<'_> {
    fn error(&mut self, key: &'static str, cause: impl Into<String>, remedy: impl Into<String>) {
        let table = self.rule.table.to_string();
        self.errors.push(RuleError { table, key, cause: cause.into(), remedy: remedy.into() });
    }

    fn table(&mut self, facts: &TableFacts) {
        match &facts.kind {
            TableKind::Table | TableKind::Partitioned => {}
            TableKind::Partition(root) => {
                let cause = format!("it is a partition, and partitions publish as their root {root}");
                return self.error("name", cause, format!("name {root}"));
            }
            TableKind::NotLogged => {
                let remedy = format!("ALTER TABLE {} SET LOGGED, or remove the rule", quoted(&facts.name));
                return self.error("name", "the table is not in the write-ahead log", remedy);
            }
            TableKind::Other(what) => {
                return self.error("name", format!("it is {what}, not a table"), "name a table");
            }
        }
        if facts.published == Some(false) {
            let remedy = if self.rule.state {
                "run `walcast setup`; a broker that goes on running reads its values anew then"
            } else {
                "run `walcast setup`"
            };
            let cause = match facts.by_trigger {
                true => {
                    "the table has none of our triggers, or they are those of another rule or replica identity"
                }
                false => "the publication does not hold the table",
            };
            self.error("name", cause, remedy);
        }
        if let Some(list) = &facts.column_list {
            self.column_list(list, facts.by_trigger);
        }
        self.columns(facts);
        self.identity(facts);
        if self.rule.state {
            self.state(facts);
        }
    }

    fn columns(&mut self, facts: &TableFacts) {
        let rule = self.rule;
        for (key, column) in rule.named() {
            if !facts.columns.iter().any(|known| *known == **column) {
                let cause = format!("the table has no column {column:?}");
                self.error(key, cause, format!("it has: {}", facts.columns.join(", ")));
            }
        }
        for column in rule.when.iter().flat_map(|when| when.of_old()) {
            if facts.columns.iter().any(|known| *known == **column) && !facts.identity.holds(column) {
                let cause =
                    format!("Postgres does not send old.{column}, which is not in the replica identity");
                self.error("when", cause, full(&facts.name));
            }
        }
    }

    /// What the publication holds back would be missing without a word.
    fn column_list(&mut self, list: &[String], by_trigger: bool) {
        let rule = self.rule;
        let named = if rule.column_list || by_trigger { rule.reads() } else { None };
        let missing = match &named {
            None => Some("others".to_owned()),
            Some(named) => named
                .iter()
                .find(|column| !list.iter().any(|sent| *sent == ***column))
                .map(|column| format!("{column:?}")),
        };
        if let Some(missing) = missing {
            let sends = if by_trigger { "its trigger" } else { "the publication" };
            let cause = format!("{sends} sends only {}, and not {missing}", list.join(", "));
            self.error("columns", cause, "run `walcast setup`");
        }
    }

    /// Once published, a table whose old rows cannot be identified refuses UPDATE and DELETE, to everybody.
    fn identity(&mut self, facts: &TableFacts) {
        if !facts.identity.usable() {
            let remedy = match facts.unique_keys.iter().find(|key| key.not_null && key.immediate) {
                Some(key) => using_index(&facts.name, key),
                None => format!("add a primary key, or {}", full(&facts.name)),
            };
            let cause = match facts.by_trigger {
                true => {
                    "the table has no usable replica identity, so nobody could tell of which row a change is"
                }
                false => {
                    "the table has no usable replica identity, so publishing it would make UPDATE and DELETE fail"
                }
            };
            return self.error("name", cause, remedy);
        }
        for partition in &facts.partitions {
            if !partition.identity.same_columns(&facts.identity) {
                let cause =
                    format!("the replica identity of partition {} is not that of its root", partition.name);
                let remedy = format!(
                    "give both the same, for example by a primary key, or {} and {}",
                    full(&facts.name),
                    full(&partition.name)
                );
                self.error("name", cause, remedy);
            }
        }
    }

    /// Distinct rows must have distinct topics, at every moment, and the topic of an old row must be known.
    fn state(&mut self, facts: &TableFacts) {
        let topic = self.rule.template.names();
        let within = |key: &&UniqueKey| {
            key.immediate && key.columns.iter().all(|column| topic.iter().any(|known| **known == **column))
        };
        let names: Vec<&str> = topic.iter().map(|column| &**column).collect();
        let unique: Vec<&UniqueKey> = facts.unique_keys.iter().filter(within).collect();
        if unique.is_empty() {
            let cause = format!(
                "state = true, but no unique index says that ({}) differs in each row",
                names.join(", ")
            );
            let remedy = match names.as_slice() {
                [] => "name the columns of the primary key in the topic".to_owned(),
                _ => format!(
                    "CREATE UNIQUE INDEX ON {} ({}), or name the columns of the primary key in the topic",
                    quoted(&facts.name),
                    names.iter().map(|name| identifier(name)).collect::<Vec<_>>().join(", ")
                ),
            };
            return self.error("topic", cause, remedy);
        }
        let missing: Vec<&str> =
            names.iter().copied().filter(|column| !facts.identity.holds(column)).collect();
        if facts.identity.usable() && !missing.is_empty() {
            let cause = format!("state = true, but {} is not in the replica identity", missing.join(", "));
            let exact = unique.iter().find(|key| {
                key.not_null && names.iter().all(|name| key.columns.iter().any(|known| known == name))
            });
            let remedy = exact.map_or_else(|| full(&facts.name), |key| using_index(&facts.name, key));
            self.error("topic", cause, remedy);
        }
    }
}

fn full(table: &str) -> String {
    format!("ALTER TABLE {} REPLICA IDENTITY FULL", quoted(table))
}

fn using_index(table: &str, key: &UniqueKey) -> String {
    format!("ALTER TABLE {} REPLICA IDENTITY USING INDEX {}", quoted(table), identifier(&key.index))
}

/// Schema and table as SQL writes them.
fn quoted(table: &str) -> String {
    match table.split_once('.') {
        Some((schema, name)) => format!("{}.{}", identifier(schema), identifier(name)),
        None => identifier(table),
    }
}

fn identifier(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}
