//! What the server says of itself and of the tables, before anything starts.

use std::sync::Arc;

use serde::Deserialize;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::Config;
use super::connect::Failure;
use crate::postgres::Companion;
use crate::router::{Identity, PartitionFacts, TableFacts, TableKind, UniqueKey};
use crate::source::SourceError;

/// The oldest server whose pgoutput sends messages.
const VERSION_MIN: i32 = 140_000;

/// Makes sure that server, schema, publication and slot are there, then reads what the rules are to be
/// compared with. A table that does not exist is absent from the answer.
///
/// # Errors
/// What is missing, with the remedy; [`Retry::After`](crate::source::Retry::After) where it may come by itself.
pub async fn read(
    companion: &Companion,
    config: &Config,
    tables: &[Arc<str>],
) -> Result<Vec<TableFacts>, SourceError> {
    let read = async {
        let session = companion.lock().await?;
        check_server(&session, config).await?;
        facts(&session, tables, &config.publication).await
    };
    read.await.map_err(|failure: Failure| failure.into_error(false))
}

async fn check_server(client: &Client, config: &Config) -> Result<(), Failure> {
    const QUERY: &str = "
        SELECT current_setting('server_version_num')::int4, current_setting('server_version'),
               current_setting('wal_level'), pg_is_in_recovery(), current_setting('server_encoding'),
               to_regclass('walcast.source') IS NOT NULL,
               (SELECT pubviaroot FROM pg_publication WHERE pubname = $1),
               (SELECT coalesce(wal_status, 'reserved') || ' ' || plugin || ' ' || database
                  FROM pg_replication_slots WHERE slot_name = $2),
               current_database()::text";
    let row = client.query_one(QUERY, &[&config.publication, &config.slot]).await.map_err(failed)?;
    let fail = |message: String| Err(Failure::needs_operator(message));
    let version: i32 = row.try_get(0).map_err(failed)?;
    if version < VERSION_MIN {
        let version: &str = row.try_get(1).map_err(failed)?;
        return fail(format!(
            "the server is Postgres {version}; reading the WAL needs 14 or later: upgrade it"
        ));
    }
    if row.try_get::<_, bool>(3).map_err(failed)? {
        return fail(
            "the server is a standby, and the broker reads from the primary: name it in `postgres.url`, or list \
             both hosts with target_session_attrs=read-write"
                .to_owned(),
        );
    }
    match row.try_get(2).map_err(failed)? {
        "logical" => {}
        other => {
            return fail(format!(
                "the server's wal_level is `{other}`: ALTER SYSTEM SET wal_level = logical, then restart it"
            ));
        }
    }
    match row.try_get(4).map_err(failed)? {
        "UTF8" => {}
        other => return fail(format!("the database's encoding is {other}; walcast needs UTF8")),
    }
    let database: &str = row.try_get(8).map_err(failed)?;
    if !row.try_get::<_, bool>(5).map_err(failed)? {
        return fail(format!("the database {database} has no schema walcast: run `walcast setup`"));
    }
    let publication = &config.publication;
    match row.try_get(6).map_err(failed)? {
        None => return fail(format!("the publication {publication} does not exist: run `walcast setup`")),
        Some(false) => {
            return fail(format!(
                "the publication {publication} sends partitions under their own names: \
                 ALTER PUBLICATION {publication} SET (publish_via_partition_root = true)"
            ));
        }
        Some(true) => {}
    }
    let slot = &config.slot;
    let Some(status) = row.try_get::<_, Option<String>>(7).map_err(failed)? else {
        return fail(format!("the slot {slot} does not exist: run `walcast setup`"));
    };
    let mut parts = status.splitn(3, ' ');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("lost"), ..) => fail(format!(
            "the slot {slot} was invalidated, for more WAL was written than max_slot_wal_keep_size while no broker \
             ran: run `walcast setup`, which makes it anew"
        )),
        (_, Some(plugin), _) if plugin != "pgoutput" => fail(format!(
            "the slot {slot} uses the plugin {plugin}, not pgoutput: choose another `source.slot`"
        )),
        (_, _, Some(other)) if other != database => fail(format!(
            "the slot {slot} belongs to the database {other}, not to {database}: slot names are cluster-wide, choose \
             another `source.slot`"
        )),
        _ => Ok(()),
    }
}

fn failed(error: tokio_postgres::Error) -> Failure {
    match error.as_db_error() {
        Some(db) if *db.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
            Failure::needs_operator(format!("reading the catalog: {}", db.message()))
        }
        Some(db) => Failure::again(format!("reading the catalog: {db}")),
        None => Failure::again(format!("reading the catalog: {error}")),
    }
}

/// A row of [`FACTS`], as JSON.
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

const FACTS: &str = "
    WITH wanted AS (
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
    )
    SELECT json_build_object(
        'name', w.name, 'relkind', w.relkind, 'persistence', w.relpersistence,
        'root', CASE WHEN w.relispartition THEN pg_partition_root(w.oid)::regclass::text END,
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
        'published', EXISTS (
            SELECT FROM pg_publication_tables p
            WHERE p.pubname = $2 AND p.schemaname || '.' || p.tablename = w.name),
        'partitions', coalesce((
            SELECT json_agg(json_build_object('name', l.oid::regclass::text, 'identity', i.identity))
            FROM leaf l JOIN identity i ON i.oid = l.oid WHERE l.root = w.oid), '[]')
    )::text FROM wanted w";

async fn facts(client: &Client, tables: &[Arc<str>], publication: &str) -> Result<Vec<TableFacts>, Failure> {
    let names: Vec<&str> = tables.iter().map(|name| &**name).collect();
    let rows = client.query(FACTS, &[&names, &publication]).await.map_err(failed)?;
    rows.iter()
        .map(|row| {
            let text: &str = row.try_get(0).map_err(failed)?;
            let found: Found = serde_json::from_str(text)
                .map_err(|error| Failure::again(format!("the catalog cannot be read: {error}")))?;
            Ok(found.into())
        })
        .collect()
}

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
