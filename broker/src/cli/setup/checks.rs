//! Whether the rules fit the tables. Publishing a table must never make the application's own UPDATE or
//! DELETE fail, so what would is refused here.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::{PublishedTable, SetupError, SetupOptions, statements};
use crate::source::SourceKind;

/// # Errors
/// Tables would no longer be published, for want of a file that names them.
pub(super) fn wanted(options: &SetupOptions, published: &[String]) -> Result<(), SetupError> {
    let (thing, loses) = match options.kind {
        SourceKind::Wal => (format!("publication {}", options.publication), "be dropped from it"),
        SourceKind::Outbox => ("triggers".to_owned(), "lose theirs"),
    };
    match &options.rules_missing {
        Some(why) if !published.is_empty() => Err(SetupError::Rules(vec![format!(
            "{thing}: nothing was changed, for {why}, and so {} would {loses}; name the file by --config FILE, or say \
             --no-tables if that is meant",
            published.join(", ")
        )])),
        _ => Ok(()),
    }
}

/// # Errors
/// A role that is to be granted something does not exist.
pub(super) async fn roles(client: &Client, options: &SetupOptions) -> Result<(), SetupError> {
    let mut problems = Vec::new();
    for role in options.publishers.iter().chain(&options.broker_role) {
        let sql = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)";
        let row = client.query_typed_one(sql, &[(role, Type::TEXT)]).await;
        if !row.map_err(|error| SetupError::from_postgres("looking for roles", &error))?.get::<_, bool>(0) {
            problems.push(format!(
                "role {role:?} does not exist; CREATE ROLE {} LOGIN, or name another",
                statements::ident(role)
            ));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(SetupError::Rules(problems)) }
}

/// # Errors
/// All tables of the rules that cannot be published, or not without harm.
pub(super) async fn tables(client: &Client, options: &SetupOptions, version: i32) -> Result<(), SetupError> {
    let mut problems = Vec::new();
    for table in &options.tables {
        let found = problem(client, table, options.kind, version).await;
        problems
            .extend(found.map_err(|error| SetupError::from_postgres(&format!("checking {table}"), &error))?);
    }
    if problems.is_empty() { Ok(()) } else { Err(SetupError::Rules(problems)) }
}

async fn problem(
    client: &Client,
    table: &PublishedTable,
    kind: SourceKind,
    version: i32,
) -> Result<Option<String>, tokio_postgres::Error> {
    let quoted = statements::table(&table.schema, &table.name);
    let sql = "SELECT c.oid, c.relkind::text, c.relpersistence::text,
            ARRAY(SELECT a.attname::text FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '')
        FROM pg_class c WHERE c.oid = to_regclass($1)";
    let Some(row) = client.query_typed_opt(sql, &[(&quoted, Type::TEXT)]).await? else {
        return Ok(Some(format!("table {table} does not exist; create it, or correct the rule's `name`")));
    };
    let (oid, relkind, persistence): (u32, String, String) = (row.get(0), row.get(1), row.get(2));
    if !matches!(relkind.as_str(), "r" | "p") {
        return Ok(Some(format!(
            "{table} is not a table (a view, perhaps), and only tables are published; name the table in the rule"
        )));
    }
    if persistence != "p" {
        return Ok(Some(format!(
            "table {table} is unlogged or temporary, so the WAL does not hold it; ALTER TABLE {quoted} SET LOGGED"
        )));
    }
    if let Some(list) = &table.columns {
        if kind == SourceKind::Wal && version < 150_000 {
            return Ok(Some(format!(
                "the rule of {table} has `column_list`, which Postgres knows from 15 on; leave it out: the \
                 broker keeps only the rule's columns anyway"
            )));
        }
        let existing: Vec<String> = row.get(3);
        if let Some(missing) = list.iter().find(|column| !existing.contains(column)) {
            return Ok(Some(format!(
                "table {table} has no column {missing:?} that could be published; correct the rule's `columns`"
            )));
        }
    }
    identity_problem(client, table, kind, oid).await
}

/// Rows are changed in the leaves, so theirs are the replica identities that count.
async fn identity_problem(
    client: &Client,
    table: &PublishedTable,
    kind: SourceKind,
    oid: u32,
) -> Result<Option<String>, tokio_postgres::Error> {
    let sql = "SELECT l.oid::regclass::text, l.relreplident::text, ARRAY(
            SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = l.oid AND NOT a.attisdropped
                AND CASE l.relreplident WHEN 'f' THEN a.attnum > 0 ELSE EXISTS (
                    SELECT FROM pg_index i WHERE i.indrelid = l.oid AND i.indisvalid AND i.indisunique
                        AND i.indimmediate AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                        AND CASE l.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END)
                END)
        FROM (SELECT $1::oid UNION SELECT relid FROM pg_partition_tree($1::oid::regclass)) AS t (relid)
        JOIN pg_class l ON l.oid = t.relid WHERE l.relkind = 'r'";
    for row in client.query_typed(sql, &[(&oid, Type::OID)]).await? {
        let (leaf, replident, identity): (String, String, Vec<String>) = (row.get(0), row.get(1), row.get(2));
        if identity.is_empty() {
            let so = match kind {
                SourceKind::Wal => "once it is published its UPDATE and DELETE fail for the application",
                SourceKind::Outbox => "nothing tells which of its rows an UPDATE or DELETE was of",
            };
            return Ok(Some(format!(
                "table {leaf} has no replica identity, so {so}; ALTER TABLE {leaf} ADD PRIMARY KEY (…), or ALTER TABLE {leaf} REPLICA \
                 IDENTITY FULL"
            )));
        }
        // Only a publication's columns stand in the way of the application.
        let Some(list) = table.columns.as_ref().filter(|_| kind == SourceKind::Wal) else { continue };
        if let Some(column) = identity.iter().find(|column| !list.contains(column)) {
            let full = if replident == "f" { " (REPLICA IDENTITY FULL: all columns)" } else { "" };
            return Ok(Some(format!(
                "column {column:?} is in the replica identity of {leaf}{full} but not in the rule's column list, \
                 so its UPDATE and DELETE would fail (42P10); add it to `columns`, or leave out `column_list`"
            )));
        }
    }
    Ok(None)
}
