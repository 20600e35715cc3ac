//! What the catalog says of the tables that have rules, whichever way they are read.

use std::sync::Arc;

use serde::Deserialize;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::failure::{Failure, NOT_GRANTED};
use super::{Config, SourceError};
use crate::postgres::describe;
use crate::router::{Identity, PartitionFacts, TableFacts, TableKind, UniqueKey};

/// By what the changes of tables reach the broker.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Publishing<'a> {
    /// The publication of this name.
    Publication(&'a str),
    /// Triggers that setup made.
    Triggers,
}

/// What the rules are to be compared with before anything is published.
///
/// # Errors
/// The catalog cannot be read.
pub async fn read(client: &Client, tables: &[Arc<str>]) -> Result<Vec<TableFacts>, SourceError> {
    let read = facts(client, tables, Publishing::Triggers)
        .await
        .map_err(|failure| failure.into_error(false, &Config::default()))?;
    Ok(read
        .into_iter()
        .map(|facts| TableFacts { published: None, column_list: None, by_trigger: false, ..facts })
        .collect())
}

/// What the rules are to be compared with.
pub(crate) async fn facts(
    client: &Client,
    tables: &[Arc<str>],
    publishing: Publishing<'_>,
) -> Result<Vec<TableFacts>, Failure> {
    let names: Vec<&str> = tables.iter().map(|name| &**name).collect();
    let version = client.query_typed_one("SELECT current_setting('server_version_num')::int4", &[]).await;
    let version: i32 = version.and_then(|row| row.try_get(0)).map_err(failed)?;
    let (published, publication) = match publishing {
        Publishing::Publication(name) => {
            let schemas = if version >= 150_000 { WHOLE_SCHEMAS } else { NO_SCHEMAS };
            (format!("{schemas} {IN_PUBLICATION}"), name)
        }
        Publishing::Triggers => (WITH_TRIGGERS.to_owned(), ""),
    };
    let sql = format!("WITH {WANTED}, {published} {SELECT}");
    let rows = client
        .query_typed(&sql, &[(&names, Type::TEXT_ARRAY), (&publication, Type::TEXT)])
        .await
        .map_err(failed)?;
    rows.iter()
        .map(|row| {
            let text: &str = row.try_get(0).map_err(failed)?;
            let found: Found = serde_json::from_str(text)
                .map_err(|error| Failure::again(format!("the catalog cannot be read: {error}")))?;
            Ok(TableFacts { by_trigger: matches!(publishing, Publishing::Triggers), ..found.into() })
        })
        .collect()
}

pub(crate) fn failed(error: tokio_postgres::Error) -> Failure {
    match error.code() {
        // The catalog itself is readable by all.
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Failure::needs_operator(NOT_GRANTED),
        _ => Failure::again(format!("reading the catalog: {}", describe(&error))),
    }
}

/// A row of [`SELECT`], as JSON.
#[derive(Debug, Deserialize)]
struct Found {
    name: String,
    relkind: String,
    persistence: String,
    root: Option<String>,
    identity: FoundIdentity,
    columns: Vec<String>,
    unique_keys: Vec<FoundKey>,
    published: bool,
    column_list: Option<Vec<String>>,
    partitions: Vec<FoundPartition>,
}

#[derive(Debug, Deserialize)]
struct FoundIdentity {
    kind: String,
    columns: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct FoundKey {
    index: String,
    columns: Vec<String>,
    not_null: bool,
    immediate: bool,
}

#[derive(Debug, Deserialize)]
struct FoundPartition {
    name: String,
    identity: FoundIdentity,
}

/// Schemas that a publication has as a whole, which is possible from Postgres 15 on.
const WHOLE_SCHEMAS: &str =
    "whole_schema AS (SELECT pnpubid AS pub, pnnspid AS schema FROM pg_publication_namespace),";
const NO_SCHEMAS: &str = "whole_schema AS (SELECT NULL::oid AS pub, NULL::oid AS schema WHERE false),";

/// Behind [`WHOLE_SCHEMAS`] or its like. What is published is read from the catalog itself: from Postgres 18 on the view
/// `pg_publication_tables` waits for whoever has locked a table. A row may name a table that is left out, from 19 on.
const IN_PUBLICATION: &str = "
    listed AS (
        SELECT r.prpubid AS pub, r.prrelid AS rel, coalesce((to_jsonb(r)->>'prexcept')::bool, false) AS less
        FROM pg_publication_rel r
    ), published AS (
        SELECT w.oid, EXISTS (
            SELECT FROM pg_publication p WHERE p.pubname = $2 AND (
                p.puballtables AND NOT EXISTS (SELECT FROM listed l WHERE l.pub = p.oid AND l.rel = w.oid AND l.less)
                OR EXISTS (SELECT FROM listed l WHERE l.pub = p.oid AND l.rel = w.oid AND NOT l.less)
                OR EXISTS (SELECT FROM whole_schema n WHERE n.pub = p.oid AND n.schema = w.relnamespace))
            ) AS published, (
            SELECT json_agg(a.attname ORDER BY a.attnum)
            FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
            CROSS JOIN jsonb_array_elements_text(nullif(to_jsonb(r)->'prattrs', 'null')) AS number
            JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = number::int2
            WHERE p.pubname = $2 AND r.prrelid = w.oid) AS columns
        FROM wanted w
    )";

/// The trigger of rows has one argument, in JSON: `columns`, the columns that it sends, or null for all, `key`, those
/// of the replica identity, and `full`, whether that is all of them.
const WITH_TRIGGERS: &str = "
    written AS (
        SELECT t.tgrelid AS oid, pg_catalog.convert_from(
            pg_catalog.substr(t.tgargs, 1, pg_catalog.length(t.tgargs) - 1), 'UTF8')::pg_catalog.jsonb AS args
        FROM pg_trigger t
        WHERE t.tgname = '0_walcast_rows' AND NOT t.tgisinternal AND t.tgenabled = 'A' AND t.tgnargs = 1 AND $2 = ''
    ), published AS (
        SELECT w.oid, true AS published, nullif(x.args->'columns', 'null')::json AS columns
        FROM wanted w JOIN written x ON x.oid = w.oid JOIN identity i ON i.oid = w.oid
        WHERE (x.args->>'full')::bool = (w.relreplident = 'f')
          AND (w.relreplident = 'f' OR x.args->'key' @> (i.identity->'columns')::jsonb
               AND x.args->'key' <@ (i.identity->'columns')::jsonb)
    )";

const WANTED: &str = "wanted AS (
        SELECT c.*, n.nspname || '.' || c.relname AS name
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname || '.' || c.relname = ANY ($1::text[])
    ), leaf AS (
        SELECT w.oid AS root, t.relid AS oid FROM wanted w, pg_partition_tree(w.oid) t
        WHERE w.relkind = 'p' AND t.isleaf AND t.relid <> w.oid
    ), identity AS (
        SELECT c.oid, json_build_object('kind', c.relreplident, 'columns', coalesce((
            SELECT json_agg(a.attname ORDER BY a.attnum)
            FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
            WHERE i.indrelid = c.oid AND i.indisvalid
              AND CASE c.relreplident WHEN 'd' THEN i.indisprimary AND i.indimmediate WHEN 'i' THEN i.indisreplident
                  ELSE false END
        ), '[]')) AS identity
        FROM pg_class c WHERE c.oid IN (SELECT oid FROM wanted UNION SELECT oid FROM leaf)
    )";

/// Names come with their schema whatever `search_path` is, for behind a pooler it is not ours.
const SELECT: &str = "
    SELECT json_build_object(
        'name', w.name, 'relkind', w.relkind, 'persistence', w.relpersistence,
        'root', (SELECT format('%I.%I', n.nspname, r.relname)
                 FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace
                 WHERE w.relispartition AND r.oid = pg_partition_root(w.oid)),
        'identity', (SELECT identity FROM identity i WHERE i.oid = w.oid),
        'columns', coalesce((
            SELECT json_agg(a.attname ORDER BY a.attnum) FROM pg_attribute a
            WHERE a.attrelid = w.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), '[]'),
        'unique_keys', coalesce((
            SELECT json_agg(json_build_object(
                'index', x.relname, 'immediate', i.indimmediate,
                'columns', (SELECT json_agg(a.attname) FROM pg_attribute a
                            WHERE a.attrelid = w.oid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])),
                'not_null', (SELECT bool_and(a.attnotnull) FROM pg_attribute a
                             WHERE a.attrelid = w.oid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]))))
            FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
            WHERE i.indrelid = w.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
              AND i.indexprs IS NULL), '[]'),
        'published', coalesce((SELECT p.published FROM published p WHERE p.oid = w.oid), false),
        'column_list', (SELECT p.columns FROM published p WHERE p.oid = w.oid),
        'partitions', coalesce((
            SELECT json_agg(json_build_object('name', format('%I.%I', n.nspname, c.relname), 'identity', i.identity))
            FROM leaf l JOIN identity i ON i.oid = l.oid JOIN pg_class c ON c.oid = l.oid
                JOIN pg_namespace n ON n.oid = c.relnamespace WHERE l.root = w.oid), '[]')
    )::text FROM wanted w";

impl From<Found> for TableFacts {
    fn from(found: Found) -> Self {
        let kind = match (found.relkind.as_str(), found.root) {
            (_, Some(root)) => TableKind::Partition(root),
            ("r", None) if found.persistence != "p" => TableKind::NotLogged,
            ("r", None) => TableKind::Table,
            ("p", None) => TableKind::Partitioned,
            ("v", None) => TableKind::Other("a view".to_owned()),
            ("m", None) => TableKind::Other("a materialized view".to_owned()),
            ("f", None) => TableKind::Other("a foreign table".to_owned()),
            (other, None) => TableKind::Other(format!("a relation of kind {other}")),
        };
        Self {
            name: found.name,
            kind,
            columns: found.columns,
            identity: found.identity.into(),
            unique_keys: found.unique_keys.into_iter().map(Into::into).collect(),
            published: Some(found.published),
            column_list: found.column_list,
            by_trigger: false,
            partitions: found.partitions.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<FoundIdentity> for Identity {
    fn from(found: FoundIdentity) -> Self {
        match found.kind.as_str() {
            "d" => Self::Default(found.columns),
            "i" => Self::Index(found.columns),
            "f" => Self::Full,
            _ => Self::Nothing,
        }
    }
}

impl From<FoundKey> for UniqueKey {
    fn from(FoundKey { index, columns, not_null, immediate }: FoundKey) -> Self {
        Self { index, columns, not_null, immediate }
    }
}

impl From<FoundPartition> for PartitionFacts {
    fn from(found: FoundPartition) -> Self {
        Self { name: found.name, identity: found.identity.into() }
    }
}
