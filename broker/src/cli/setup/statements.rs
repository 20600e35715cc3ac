//! The texts of the SQL statements. Names and values are quoted here and nowhere else.

use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use refinery::Migration;

use super::{PublishedTable, moving};
use crate::source::wal::rebuild::LOCK;
pub(crate) use crate::source::wal::rebuild::{OPEN_TRANSACTIONS, create_slot};

/// Where it is noted what was applied: inside the schema, so that it goes with it.
pub(crate) const HISTORY: &str = "walcast.refinery_schema_history";

const CREATE_SCHEMA: &str = "CREATE SCHEMA IF NOT EXISTS walcast";

/// As refinery would create it.
const CREATE_HISTORY: &str = "CREATE TABLE IF NOT EXISTS walcast.refinery_schema_history (\
     version int4 PRIMARY KEY, name varchar(255), applied_on varchar(255), checksum varchar(255))";

/// Whoever `pg_locks AS l` and `pg_stat_activity AS a` speak of, for people; NULL for a prepared transaction. Of another
/// role's session it says what may be seen.
pub(crate) const HOLDER: &str = "'pid ' || l.pid || coalesce(' (' || nullif(concat_ws(', ', a.usename,
    nullif(a.application_name, ''), 'open for ' || date_trunc('second', now() - a.xact_start)), '') || ')', '')";

pub(crate) const SESSION_END: &str = "SELECT pg_advisory_unlock(hashtext('walcast setup'));
     RESET search_path; RESET statement_timeout; RESET idle_in_transaction_session_timeout; RESET lock_timeout";

/// A name, as it is written in SQL.
pub(crate) fn ident(name: &str) -> String {
    escape_identifier(name)
}

/// A text constant.
pub(crate) fn literal(text: &str) -> String {
    // The escaping function puts a blank before an E'…' constant.
    escape_literal(text).trim_start().to_owned()
}

/// Nothing of the server's or the role's defaults may cut a step short, nor redirect a name.
pub(crate) fn session(lock_timeout: Duration) -> String {
    format!(
        "SET search_path = pg_catalog; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0;
         SET lock_timeout = {}; {LOCK}",
        lock_timeout.as_millis().min(i32::MAX as u128)
    )
}

/// The same for one transaction, which may be all that there is of a session behind a pooler.
pub(crate) fn transaction(lock_timeout: Duration) -> [String; 5] {
    [
        "SET LOCAL search_path = pg_catalog".into(),
        "SET LOCAL statement_timeout = 0".into(),
        "SET LOCAL idle_in_transaction_session_timeout = 0".into(),
        self::lock_timeout(lock_timeout),
        "SELECT pg_advisory_xact_lock(hashtext('walcast setup'))".into(),
    ]
}

/// From here to the end of the transaction.
pub(crate) fn lock_timeout(limit: Duration) -> String {
    format!("SET LOCAL lock_timeout = {}", limit.as_millis().min(i32::MAX as u128))
}

pub(crate) fn table(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// `ONLY`: descendants by inheritance have rules of their own; partitions come with their root anyway.
fn published(table_: &PublishedTable) -> String {
    let mut text = format!("ONLY {}", table(&table_.schema, &table_.name));
    if let Some(columns) = &table_.columns {
        let columns: Vec<_> = columns.iter().map(|column| ident(column)).collect();
        text.push_str(&format!(" ({})", columns.join(", ")));
    }
    text
}

pub(crate) fn create_publication(publication: &str, tables: &[PublishedTable]) -> String {
    let list: Vec<_> = tables.iter().map(published).collect();
    let tables = if list.is_empty() { String::new() } else { format!("FOR TABLE {} ", list.join(", ")) };
    format!("CREATE PUBLICATION {} {tables}WITH (publish_via_partition_root = true)", ident(publication))
}

pub(crate) fn reset_publication_options(publication: &str) -> String {
    format!(
        "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate', \
         publish_via_partition_root = true)",
        ident(publication)
    )
}

pub(crate) fn add_table(publication: &str, table: &PublishedTable) -> String {
    format!("ALTER PUBLICATION {} ADD TABLE {}", ident(publication), published(table))
}

pub(crate) fn drop_table(publication: &str, schema: &str, name: &str) -> String {
    format!("ALTER PUBLICATION {} DROP TABLE ONLY {}", ident(publication), table(schema, name))
}

pub(crate) fn new_generation(source: &str, publication: &str) -> String {
    format!(
        "INSERT INTO walcast.source (slot, publication_oid) \
         VALUES ({}, (SELECT oid FROM pg_publication WHERE pubname = {})) ON CONFLICT (slot) DO UPDATE \
         SET generation = DEFAULT, created_at = DEFAULT, publication_oid = EXCLUDED.publication_oid, \
         quiet_lsn = DEFAULT, quiet_ordinal = DEFAULT, quiet_upto = DEFAULT, moved_upto = DEFAULT",
        literal(source),
        literal(publication)
    )
}

/// The schema, and these migrations, each noted as refinery notes it.
pub(crate) fn migrate(migrations: &[Migration]) -> Vec<String> {
    let mut sql = vec![CREATE_SCHEMA.to_owned(), CREATE_HISTORY.to_owned()];
    for migration in migrations {
        sql.push(migration.sql().unwrap_or_default().trim_end().trim_end_matches(';').to_owned());
        sql.push(format!(
            "INSERT INTO {HISTORY} (version, name, applied_on, checksum) VALUES ({}, {}, \
             to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), '{}')",
            migration.version(),
            literal(migration.name()),
            migration.checksum()
        ));
    }
    sql
}

/// A text between dollar signs, which need no escapes.
pub(crate) fn dollar_quoted(text: &str) -> String {
    let mut tag = String::from("$rows$");
    while text.contains(&tag) {
        tag.insert(tag.len() - 1, '_');
    }
    format!("{tag}{text}{tag}")
}

pub(crate) fn drop_slot(name: &str) -> String {
    format!("SELECT pg_drop_replication_slot({})", literal(name))
}

/// One privilege for one role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) privilege: &'static str,
    /// `TABLE`, `SCHEMA` or `FUNCTION`.
    pub(crate) kind: &'static str,
    /// Quoted.
    pub(crate) object: String,
    pub(crate) role: String,
}

impl Grant {
    /// Whether the object is of none of our schemas, so that it stays when these go.
    pub(crate) fn foreign(&self) -> bool {
        ["walcast", moving::SCHEMA].iter().all(|schema| {
            let rest = self.object.strip_prefix(schema);
            rest.is_none_or(|rest| !rest.is_empty() && !rest.starts_with('.'))
        })
    }

    /// A query that tells whether the role has the privilege, by whatever way; the object exists.
    pub(crate) fn check(&self) -> String {
        let (function, regtype) = match self.kind {
            "SCHEMA" => ("has_schema_privilege", "regnamespace"),
            "TABLE" => ("has_table_privilege", "regclass"),
            _ => ("has_function_privilege", "regprocedure"),
        };
        format!(
            "SELECT {function}({}::name, {}::{regtype}, {})",
            literal(&self.role),
            literal(&self.object),
            literal(self.privilege)
        )
    }

    /// The statements; a grant outside our schema is noted, for teardown.
    pub(crate) fn statements(&self) -> Vec<String> {
        let Self { privilege, kind, object, role } = self;
        let mut sql = vec![format!("GRANT {privilege} ON {kind} {object} TO {}", ident(role))];
        if self.foreign() {
            sql.push(format!(
                "INSERT INTO walcast.granted (privilege, kind, object, role) VALUES ({}, {}, {}, {}) \
                 ON CONFLICT DO NOTHING",
                literal(privilege),
                literal(kind),
                literal(object),
                literal(role)
            ));
        }
        sql
    }
}
