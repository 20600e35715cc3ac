//! What the server says of itself and of the tables, before anything starts.

use std::sync::Arc;

use serde::Deserialize;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;

use super::Config;
use super::connect::{Failure, NOT_GRANTED};
use crate::postgres::{Companion, describe};
use crate::router::{Identity, PartitionFacts, TableFacts, TableKind, UniqueKey};
use crate::source::SourceError;

/// The oldest server whose pgoutput sends messages.
const VERSION_MIN: i32 = 140_000;

/// What the rules are to be compared with.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// What the publication leaves out, with the remedy; `None`: nothing.
    pub publication: Option<String>,
    /// The tables with rules; those that do not exist are absent.
    pub tables: Vec<TableFacts>,
}

/// Makes sure that server, schema and publication are there and that the slot is nobody else's, then reads what the
/// rules are to be compared with.
///
/// # Errors
/// What is missing, with the remedy; [`Retry::After`](crate::source::Retry::After) where it may come by itself.
pub async fn read(
    companion: &Companion,
    config: &Config,
    tables: &[Arc<str>],
) -> Result<Catalog, SourceError> {
    let read = async {
        let session = companion.lock().await?;
        let publication = check_server(&session, config).await?;
        Ok(Catalog { publication, tables: facts(&session, tables, &config.publication).await? })
    };
    read.await.map_err(|failure: Failure| failure.into_error(false, config))
}

/// What the rules are to be compared with before anything is published.
///
/// # Errors
/// The catalog cannot be read.
pub async fn read_tables(client: &Client, tables: &[Arc<str>]) -> Result<Vec<TableFacts>, SourceError> {
    let read =
        facts(client, tables, "").await.map_err(|failure| failure.into_error(false, &Config::default()))?;
    Ok(read.into_iter().map(|facts| TableFacts { published: None, ..facts }).collect())
}

/// What there is of all that the broker needs.
#[derive(Clone, Debug)]
struct Server {
    version_num: i32,
    version: String,
    wal_level: String,
    standby: bool,
    encoding: String,
    database: String,
    schema: bool,
    publication: Option<Publication>,
    slot: Option<Slot>,
}

/// What a publication sends of the tables that it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publication {
    /// It is FOR ALL TABLES.
    pub(crate) all_tables: bool,
    /// Partitions go under their root's name.
    pub(crate) via_root: bool,
    /// Kinds of change that it leaves out, as SQL names them.
    pub(crate) left_out: Vec<String>,
    /// The first of its tables that has a row filter, as SQL writes it.
    pub(crate) filtered: Option<String>,
}

impl Publication {
    /// Looks at it; `None`: it does not exist. For setup, and for a broker that runs: what a publication leaves out
    /// is missing without a word.
    pub(crate) async fn look(client: &Client, name: &str) -> Result<Option<Self>, tokio_postgres::Error> {
        // Filters, which 14 does not know, are read through jsonb, where absent columns are null.
        const SQL: &str = "
            SELECT p.puballtables, p.pubviaroot, array_remove(ARRAY[
                       CASE WHEN NOT p.pubinsert THEN 'insert' END, CASE WHEN NOT p.pubupdate THEN 'update' END,
                       CASE WHEN NOT p.pubdelete THEN 'delete' END, CASE WHEN NOT p.pubtruncate THEN 'truncate' END],
                       NULL),
                   (SELECT min(r.prrelid::regclass::text) FROM pg_publication_rel r
                    WHERE r.prpubid = p.oid AND to_jsonb(r)->>'prqual' IS NOT NULL)
            FROM pg_publication p WHERE p.pubname = $1";
        let Some(row) = client.query_opt(SQL, &[&name]).await? else { return Ok(None) };
        Ok(Some(Self {
            all_tables: row.try_get(0)?,
            via_root: row.try_get(1)?,
            left_out: row.try_get(2)?,
            filtered: row.try_get(3)?,
        }))
    }

    /// What is missing of what the broker relies on, and the remedy.
    fn problem(&self, name: &str) -> Option<String> {
        let quoted = postgres_protocol::escape::escape_identifier(name);
        if !self.via_root {
            return Some(format!(
                "the publication {name} sends partitions under their own names: \
                 ALTER PUBLICATION {quoted} SET (publish_via_partition_root = true)"
            ));
        }
        if !self.left_out.is_empty() {
            return Some(format!(
                "the publication {name} leaves out every {}: \
                 ALTER PUBLICATION {quoted} SET (publish = 'insert, update, delete, truncate')",
                self.left_out.join(" and ")
            ));
        }
        self.filtered.as_ref().map(|table| {
            format!(
                "the publication {name} filters the rows of {table}, and those that it holds back are missing: write \
                 the condition as the rule's `when`, then ALTER PUBLICATION {quoted} DROP TABLE {table}, and run \
                 `walcast setup`"
            )
        })
    }
}

/// A slot of the floor's name.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// Postgres invalidated it.
    pub(super) lost: bool,
    /// `None`: a physical slot.
    pub(super) plugin: Option<String>,
    pub(super) database: Option<String>,
}

/// The end of the log.
///
/// # Errors
/// The server cannot be asked.
pub async fn log_end(companion: &Companion) -> Result<u64, SourceError> {
    const SQL: &str = "SELECT pg_current_wal_insert_lsn()";
    let read = async {
        let row = companion.lock().await?.query_one(SQL, &[]).await;
        let lsn: PgLsn = row.and_then(|row| row.try_get(0)).map_err(failed)?;
        Ok(lsn.into())
    };
    read.await.map_err(|failure: Failure| failure.into_error(true, &Config::default()))
}

/// What the publication leaves out.
async fn check_server(client: &Client, config: &Config) -> Result<Option<String>, Failure> {
    let server = look(client, config).await.map_err(failed)?;
    match server.problem(config) {
        Some(problem) => Err(Failure::needs_operator(problem)),
        None => Ok(server.left_out(config)),
    }
}

async fn look(client: &Client, config: &Config) -> Result<Server, tokio_postgres::Error> {
    const SERVER: &str = "
        SELECT current_setting('server_version_num')::int4, current_setting('server_version'),
               current_setting('wal_level'), pg_is_in_recovery(), current_setting('server_encoding'),
               current_database()::text, to_regclass('walcast.source') IS NOT NULL";
    const SLOT: &str = "
        SELECT wal_status IS NOT DISTINCT FROM 'lost', plugin::text, database::text
        FROM pg_replication_slots WHERE slot_name = $1";
    let row = client.query_one(SERVER, &[]).await?;
    let slot_row = client.query_opt(SLOT, &[&config.slot]).await?;
    let slot = |row: tokio_postgres::Row| {
        Ok(Slot { lost: row.try_get(0)?, plugin: row.try_get(1)?, database: row.try_get(2)? })
    };
    Ok(Server {
        version_num: row.try_get(0)?,
        version: row.try_get(1)?,
        wal_level: row.try_get(2)?,
        standby: row.try_get(3)?,
        encoding: row.try_get(4)?,
        database: row.try_get(5)?,
        schema: row.try_get(6)?,
        publication: Publication::look(client, &config.publication).await?,
        slot: slot_row.map(slot).transpose()?,
    })
}

impl Server {
    /// What its publication leaves out, and the remedy.
    fn left_out(&self, config: &Config) -> Option<String> {
        self.publication.as_ref().and_then(|found| found.problem(&config.publication))
    }

    /// The first thing that an operator has to put right, and how.
    fn problem(&self, config: &Config) -> Option<String> {
        let (database, publication, slot) = (&self.database, &config.publication, &config.slot);
        if self.version_num < VERSION_MIN {
            return Some(format!(
                "the server is Postgres {}; reading the WAL needs 14 or later: upgrade it",
                self.version
            ));
        }
        if self.standby {
            return Some(
                "the server is a standby, and the broker reads from the primary: name it in `postgres.url`, or \
                 list both hosts with target_session_attrs=read-write"
                    .to_owned(),
            );
        }
        // From 19 on a server at `replica` turns logical when the first logical slot is created.
        if self.wal_level != "logical" && !(self.version_num >= 190_000 && self.wal_level == "replica") {
            return Some(format!(
                "the server's wal_level is `{}`: ALTER SYSTEM SET wal_level = logical, then restart it",
                self.wal_level
            ));
        }
        if self.encoding != "UTF8" {
            return Some(format!(
                "the encoding of the database {database} is {}, but topics and events are UTF-8: move to a database \
                 created with ENCODING 'UTF8'",
                self.encoding
            ));
        }
        if !self.schema {
            return Some(format!("the database {database} has no schema walcast: run `walcast setup`"));
        }
        if self.publication.is_none() {
            return Some(format!("the publication {publication} does not exist: run `walcast setup`"));
        }
        self.slot.as_ref().and_then(|found| found.foreign(slot, database))
    }
}

impl Slot {
    /// Whose else it is, if it is not the floor slot `slot` of this database.
    pub(super) fn foreign(&self, slot: &str, database: &str) -> Option<String> {
        let other = "slot names are one per server, so choose another `source.slot` and run `walcast setup`";
        match (&self.plugin, &self.database) {
            (Some(plugin), Some(owner)) if plugin == "pgoutput" && owner == database => None,
            (Some(plugin), Some(owner)) if owner == database => {
                Some(format!("the slot {slot} uses the plugin {plugin}, not pgoutput: {other}"))
            }
            (Some(_), Some(owner)) => {
                Some(format!("the slot {slot} belongs to the database {owner}, not to {database}: {other}"))
            }
            _ => Some(format!("the slot {slot} is a physical one, of a standby perhaps: {other}")),
        }
    }
}

fn failed(error: tokio_postgres::Error) -> Failure {
    match error.code() {
        // The catalog itself is readable by all.
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Failure::needs_operator(NOT_GRANTED),
        _ => Failure::again(format!("reading the catalog: {}", describe(&error))),
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
const WHOLE_SCHEMAS: &str = "SELECT pnpubid AS pub, pnnspid AS schema FROM pg_publication_namespace";
const NO_SCHEMAS: &str = "SELECT NULL::oid AS pub, NULL::oid AS schema WHERE false";

/// Behind [`WHOLE_SCHEMAS`] or its like. What is published is read from the catalog itself: from Postgres 18 on the view
/// `pg_publication_tables` waits for whoever has locked a table. A row may name a table that is left out, from 19 on.
const FACTS: &str = "
    ), listed AS (
        SELECT r.prpubid AS pub, r.prrelid AS rel, coalesce((to_jsonb(r)->>'prexcept')::bool, false) AS less
        FROM pg_publication_rel r
    ), wanted AS (
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
            SELECT FROM pg_publication p WHERE p.pubname = $2 AND (
                p.puballtables AND NOT EXISTS (SELECT FROM listed l WHERE l.pub = p.oid AND l.rel = w.oid AND l.less)
                OR EXISTS (SELECT FROM listed l WHERE l.pub = p.oid AND l.rel = w.oid AND NOT l.less)
                OR EXISTS (SELECT FROM whole_schema n WHERE n.pub = p.oid AND n.schema = w.relnamespace))),
        'column_list', (
            SELECT json_agg(a.attname ORDER BY a.attnum)
            FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
            CROSS JOIN jsonb_array_elements_text(nullif(to_jsonb(r)->'prattrs', 'null')) AS number
            JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = number::int2
            WHERE p.pubname = $2 AND r.prrelid = w.oid),
        'partitions', coalesce((
            SELECT json_agg(json_build_object('name', l.oid::regclass::text, 'identity', i.identity))
            FROM leaf l JOIN identity i ON i.oid = l.oid WHERE l.root = w.oid), '[]')
    )::text FROM wanted w";

async fn facts(client: &Client, tables: &[Arc<str>], publication: &str) -> Result<Vec<TableFacts>, Failure> {
    let names: Vec<&str> = tables.iter().map(|name| &**name).collect();
    let version = client.query_one("SELECT current_setting('server_version_num')::int4", &[]).await;
    let version: i32 = version.and_then(|row| row.try_get(0)).map_err(failed)?;
    let schemas = if version >= 150_000 { WHOLE_SCHEMAS } else { NO_SCHEMAS };
    let facts = format!("WITH whole_schema AS ({schemas} {FACTS}");
    let rows = client.query(&facts, &[&names, &publication]).await.map_err(failed)?;
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
            column_list: found.column_list,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_problem_is_named_with_its_remedy() {
        let slot = Slot { lost: false, plugin: Some("pgoutput".into()), database: Some("app".into()) };
        let publication =
            Publication { all_tables: false, via_root: true, left_out: Vec::new(), filtered: None };
        let good = Server {
            version_num: 140_000,
            version: "14.0".into(),
            wal_level: "logical".into(),
            standby: false,
            encoding: "UTF8".into(),
            database: "app".into(),
            schema: true,
            publication: Some(publication.clone()),
            slot: Some(slot.clone()),
        };
        let check = |change: &dyn Fn(&mut Server), expected: &[&str]| {
            let mut server = good.clone();
            change(&mut server);
            let config = Config::default();
            let problem = server.problem(&config).or_else(|| server.left_out(&config)).unwrap_or_default();
            assert_eq!(problem.is_empty(), expected.is_empty(), "{problem}");
            assert!(
                !problem.contains('\n') && expected.iter().all(|part| problem.contains(part)),
                "{problem}"
            );
        };
        let with_slot = |change: &dyn Fn(&mut Slot), expected: &[&str]| {
            let mut slot = slot.clone();
            change(&mut slot);
            check(&|server| server.slot = Some(slot.clone()), expected);
        };
        check(&|_| (), &[]);
        check(
            &|server| (server.version_num, server.version) = (130_023, "13.23".into()),
            &["Postgres 13.23", "14 or later", "upgrade"],
        );
        check(&|server| server.standby = true, &["standby", "postgres.url"]);
        check(&|server| server.wal_level = "replica".into(), &["`replica`", "ALTER SYSTEM"]);
        check(&|server| (server.wal_level, server.version_num) = ("replica".into(), 190_000), &[]);
        check(&|server| server.encoding = "LATIN1".into(), &["LATIN1", "ENCODING 'UTF8'"]);
        check(&|server| server.schema = false, &["database app", "walcast setup"]);
        check(&|server| server.publication = None, &["publication walcast", "walcast setup"]);
        let with_publication = |change: &dyn Fn(&mut Publication), expected: &[&str]| {
            let mut publication = publication.clone();
            change(&mut publication);
            check(&|server| server.publication = Some(publication.clone()), expected);
        };
        with_publication(&|it| it.all_tables = true, &[]);
        with_publication(&|it| it.via_root = false, &["publish_via_partition_root = true"]);
        with_publication(
            &|it| it.left_out = vec!["delete".into(), "truncate".into()],
            &["every delete and truncate", "SET (publish = 'insert, update, delete, truncate')"],
        );
        with_publication(
            &|it| it.filtered = Some("public.vms".into()),
            &["rows of public.vms", "`when`", "DROP TABLE public.vms", "walcast setup"],
        );
        // The source makes these anew.
        check(&|server| server.slot = None, &[]);
        with_slot(&|slot| slot.lost = true, &[]);
        with_slot(&|slot| slot.plugin = Some("wal2json".into()), &["wal2json", "`source.slot`"]);
        with_slot(&|slot| slot.database = Some("other".into()), &["database other", "`source.slot`"]);
        with_slot(&|slot| (slot.plugin, slot.database) = (None, None), &["physical", "`source.slot`"]);
    }
}
