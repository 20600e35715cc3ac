//! The triggers that write the rows of published tables to the outbox: what they are to be, and what there is.
//!
//! Each table has a function of its own, for columns are named in it and not looked up for each row; what it does is
//! [`body`]'s. This must never drop or change what is not ours.

mod body;
mod limit;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde::Serialize;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use self::body::{Field, Shape};
use super::PublishedTable;
use super::statements::{self, dollar_quoted, ident, literal};
use crate::postgres::RENDERING;

/// A schema and a name in it, both unquoted.
type TableName = (String, String);

/// What tells a trigger from others: its name, function and kind, whether it fires always, its arguments.
type Trigger = (String, String, i16, bool, String);

/// Triggers fire in the order of their names. These come before the application's, for what one of those changes is told
/// behind the change that made it fire.
const ROWS: &str = "0_walcast_rows";
const TRUNCATE: &str = "0_walcast_truncate";

/// What the functions look by. It ends in the temporary schema, which is otherwise looked through first for types and
/// tables, and where anybody may make some; [`RENDERING`] is for sessions, in which nobody else is at work.
const SEARCH_PATH: &str = "pg_catalog, pg_temp";

/// The triggers of one table, as they are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    schema: String,
    name: String,
    /// What a row is made of, in order.
    fields: Vec<Field>,
    arguments: Arguments,
}

/// What a broker reads of a trigger to tell whether it still fits the rule and the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Arguments {
    /// The columns that are sent; `None`: all.
    columns: Option<Vec<String>>,
    /// Those of the replica identity.
    key: Vec<String>,
    /// The replica identity is the whole row.
    full: bool,
}

/// A trigger function as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Function {
    body: String,
    /// `name=value`.
    settings: BTreeSet<String>,
    definer: bool,
}

/// All triggers and functions as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// For each table.
    tables: BTreeMap<TableName, BTreeSet<Trigger>>,
    functions: BTreeMap<String, Function>,
}

/// Row triggers are cloned onto partitions; those have a parent.
const TRIGGERS: &str = "
    SELECT n.nspname::text, c.relname::text, t.tgname::text, p.proname::text, t.tgtype,
        t.tgenabled = 'A' AND NOT EXISTS (
            SELECT FROM pg_partition_tree(c.oid) AS l JOIN pg_trigger AS o ON o.tgrelid = l.relid
            WHERE o.tgname = t.tgname AND o.tgenabled <> 'A' AND l.relid <> c.oid AND t.tgtype & 1 = 1),
        CASE t.tgnargs WHEN 1 THEN convert_from(substr(t.tgargs, 1, length(t.tgargs) - 1), 'UTF8') ELSE '' END
    FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_proc AS p ON p.oid = t.tgfoid
    WHERE p.pronamespace = to_regnamespace('walcast') AND starts_with(p.proname::text, 'rows_') AND t.tgparentid = 0";

const FUNCTIONS: &str = "
    SELECT p.proname::text, p.prosrc, p.prosecdef, coalesce(p.proconfig, '{}')
    FROM pg_proc AS p WHERE p.pronamespace = to_regnamespace('walcast') AND starts_with(p.proname::text, 'rows_')";

/// The replica identity of a partitioned table is that of its partitions: the rules' check has seen to it.
const TABLE: &str = "
    SELECT c.relreplident = 'f', ARRAY(
            SELECT a.attname::text FROM pg_attribute AS a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
        ARRAY(SELECT a.atttypid FROM pg_attribute AS a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
        ARRAY(SELECT a.attname::text FROM pg_attribute AS a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attlen < 0),
        ARRAY(SELECT a.attname::text FROM pg_attribute AS a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> ''),
        ARRAY(SELECT a.attname::text
            FROM pg_index AS i JOIN pg_attribute AS a
                ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
            WHERE i.indrelid = c.oid AND i.indisvalid
                AND CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate
                    WHEN 'i' THEN i.indisreplident ELSE false END
            ORDER BY a.attnum)
    FROM pg_class AS c WHERE c.oid = to_regclass($1)";

/// Who may execute a trigger function may put it on a table of his own.
const WITHHOLD: &str = "SELECT walcast.withhold('^rows_')";

impl Found {
    /// Looks.
    pub(super) async fn read(client: &Client) -> Result<Self, tokio_postgres::Error> {
        let mut found = Self::default();
        for row in client.query_typed(TRIGGERS, &[]).await? {
            let table = (row.try_get(0)?, row.try_get(1)?);
            let trigger =
                (row.try_get(2)?, row.try_get(3)?, row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
            found.tables.entry(table).or_default().insert(trigger);
        }
        for row in client.query_typed(FUNCTIONS, &[]).await? {
            let settings: Vec<String> = row.try_get(3)?;
            let function = Function {
                body: row.try_get(1)?,
                definer: row.try_get(2)?,
                settings: settings.into_iter().collect(),
            };
            found.functions.insert(row.try_get(0)?, function);
        }
        Ok(found)
    }

    /// The tables that have triggers.
    pub(super) fn tables(&self) -> impl Iterator<Item = &TableName> {
        self.tables.keys()
    }
}

impl Wanted {
    /// What a rule needs of its table as that is now.
    pub(super) async fn read(client: &Client, table: &PublishedTable) -> Result<Self, tokio_postgres::Error> {
        let quoted = statements::table(&table.schema, &table.name);
        let row = client.query_typed_one(TABLE, &[(&quoted, Type::TEXT)]).await?;
        let (full, all, types): (bool, Vec<String>, Vec<u32>) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let (long, generated, key): (Vec<String>, Vec<String>, Vec<String>) =
            (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?);
        let types: BTreeMap<_, _> = all.iter().cloned().zip(types).collect();
        let columns = table.columns.clone().map(|mut columns| {
            for column in &key {
                if !columns.contains(column) && !generated.contains(column) {
                    columns.push(column.clone());
                }
            }
            columns
        });
        let field = |name: String| Field {
            published: !generated.contains(&name),
            key: full || key.contains(&name),
            long: long.contains(&name),
            // A column that is not there fails when it is named, whatever its type.
            kind: types.get(&name).copied().unwrap_or_default(),
            name,
        };
        Ok(Self {
            schema: table.schema.clone(),
            name: table.name.clone(),
            fields: columns.clone().unwrap_or(all).into_iter().map(field).collect(),
            arguments: Arguments { columns, key, full },
        })
    }

    /// Unquoted; the same for every table of this name, whatever became of an earlier one.
    fn function(&self) -> String {
        let name = [self.schema.as_bytes(), b"\0", self.name.as_bytes()].concat();
        // FNV-1a: names must not change with the compiler's own hash.
        let hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("rows_{hash:016x}")
    }

    fn arguments(&self) -> String {
        // Maps of strings and flags: nothing that could fail.
        serde_json::to_string(&self.arguments).unwrap_or_default()
    }

    /// As [`Found::tables`] has them: AFTER each row of INSERT, UPDATE and DELETE, and AFTER a TRUNCATE.
    fn triggers(&self) -> BTreeSet<Trigger> {
        BTreeSet::from([
            (ROWS.to_owned(), self.function(), 29, true, self.arguments()),
            (TRUNCATE.to_owned(), self.function(), 32, true, String::new()),
        ])
    }

    fn as_function(&self) -> Function {
        let settings = settings().map(|(name, value)| format!("{name}={value}")).collect();
        Function { body: self.body(), settings, definer: true }
    }

    fn create_function(&self) -> String {
        let mut sql = format!(
            "CREATE OR REPLACE FUNCTION walcast.{}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER",
            self.function()
        );
        for (name, value) in settings() {
            // A path in quotes is one schema.
            let value = if name == "search_path" { value.to_owned() } else { literal(value) };
            let _ = write!(sql, "\n    SET {name} = {value}");
        }
        let _ = write!(sql, "\nAS {}", dollar_quoted(&self.body()));
        sql
    }

    /// Fires always: rows that come by replication are rows, too.
    fn create_triggers(&self) -> Vec<String> {
        let (table, function) = (statements::table(&self.schema, &self.name), self.function());
        let arguments = literal(&self.arguments());
        let (rows, truncate) = (ident(ROWS), ident(TRUNCATE));
        vec![
            format!(
                "CREATE TRIGGER {rows} AFTER INSERT OR UPDATE OR DELETE ON {table} \
                 FOR EACH ROW EXECUTE FUNCTION walcast.{function}({arguments})"
            ),
            format!(
                "CREATE TRIGGER {truncate} AFTER TRUNCATE ON {table} \
                 FOR EACH STATEMENT EXECUTE FUNCTION walcast.{function}()"
            ),
            format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {rows}"),
            format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {truncate}"),
        ]
    }

    fn body(&self) -> String {
        let topic = format!("{}.{}", self.schema, self.name);
        let Arguments { columns, key, full } = &self.arguments;
        Shape { topic: &topic, fields: &self.fields, key, full: *full, whole: columns.is_none() }.body()
    }
}

/// Those of a trigger function.
fn settings() -> impl Iterator<Item = (&'static str, &'static str)> {
    RENDERING.iter().map(|(name, value)| (*name, if *name == "search_path" { SEARCH_PATH } else { value }))
}

/// What is to be done about the triggers: in words, and the statements.
pub(super) fn plan(wanted: &[Wanted], found: &Found) -> Option<(String, Vec<String>)> {
    let (mut notes, mut sql) = (Vec::new(), Vec::new());
    let drop = |(schema, name): &TableName, sql: &mut Vec<String>| {
        let triggers = found.tables.get(&(schema.clone(), name.clone()));
        for (trigger, ..) in triggers.into_iter().flatten() {
            sql.push(format!("DROP TRIGGER {} ON {}", ident(trigger), statements::table(schema, name)));
        }
    };
    let is_wanted = |(schema, name): &TableName| {
        wanted.iter().any(|wanted| (&wanted.schema, &wanted.name) == (schema, name))
    };
    for table in found.tables.keys().filter(|table| !is_wanted(table)) {
        drop(table, &mut sql);
        notes.push(format!("{}.{} dropped", table.0, table.1));
    }
    let mut made = false;
    for wanted in wanted {
        let table = (wanted.schema.clone(), wanted.name.clone());
        let same_function = found.functions.get(&wanted.function()) == Some(&wanted.as_function());
        let there = found.tables.get(&table);
        let same_triggers = there == Some(&wanted.triggers());
        if !same_function {
            sql.push(wanted.create_function());
            made = true;
        }
        if !same_triggers {
            drop(&table, &mut sql);
            sql.extend(wanted.create_triggers());
        }
        if !same_function || !same_triggers {
            let done = if there.is_some() { "changed" } else { "created" };
            notes.push(format!("{}.{} {done}", table.0, table.1));
        }
    }
    let functions: BTreeSet<_> = wanted.iter().map(Wanted::function).collect();
    let left: Vec<_> = found.functions.keys().filter(|name| !functions.contains(*name)).collect();
    sql.extend(left.iter().map(|name| format!("DROP FUNCTION walcast.{}()", ident(name))));
    if notes.is_empty() && !left.is_empty() {
        notes.push("functions of dropped tables dropped".into());
    }
    if made {
        sql.push(WITHHOLD.to_owned());
    }
    (!sql.is_empty()).then(|| (format!("triggers: {}", notes.join(", ")), sql))
}
