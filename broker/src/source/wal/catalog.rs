//! What the server says of itself and of the tables, before anything starts.

use std::sync::Arc;

use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, Type};

use crate::postgres::Companion;
use crate::router::TableFacts;
use crate::source::failure::Failure;
use crate::source::server::{self, Server};
use crate::source::tables::{self, Publishing, failed};
use crate::source::{Config, SourceError, SourceKind};

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
    names: &[Arc<str>],
) -> Result<Catalog, SourceError> {
    let read = async {
        let session = companion.lock().await?;
        let publication = check_server(&session, config).await?;
        let published = Publishing::Publication(&config.publication);
        Ok(Catalog { publication, tables: tables::facts(&session, names, published).await? })
    };
    read.await.map_err(|failure: Failure| failure.into_error(false, config))
}

/// What there is of all that the broker needs.
#[derive(Clone, Debug)]
struct Found {
    server: Server,
    schema: bool,
    /// By which way publishers send.
    carry: Option<String>,
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
        let Some(row) = client.query_typed_opt(SQL, &[(&name, Type::TEXT)]).await? else { return Ok(None) };
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
        let row = companion.lock().await?.query_typed_one(SQL, &[]).await;
        let lsn: PgLsn = row.and_then(|row| row.try_get(0)).map_err(failed)?;
        Ok(lsn.into())
    };
    read.await.map_err(|failure: Failure| failure.into_error(true, &Config::default()))
}

/// What the publication leaves out.
async fn check_server(client: &Client, config: &Config) -> Result<Option<String>, Failure> {
    let found = look(client, config).await.map_err(failed)?;
    match found.problem(config) {
        Some(problem) => Err(Failure::needs_operator(problem)),
        None => Ok(found.left_out(config)),
    }
}

async fn look(client: &Client, config: &Config) -> Result<Found, tokio_postgres::Error> {
    const SCHEMA: &str = "SELECT to_regclass('walcast.source') IS NOT NULL";
    const SLOT: &str = "
        SELECT wal_status IS NOT DISTINCT FROM 'lost', plugin::text, database::text
        FROM pg_replication_slots WHERE slot_name = $1";
    const CARRY: &str = "SELECT carry FROM walcast.settings";
    let server = Server::look(client).await?;
    let schema: bool = client.query_typed_one(SCHEMA, &[]).await?.try_get(0)?;
    let carry = if schema { Some(client.query_typed_one(CARRY, &[]).await?.try_get(0)?) } else { None };
    let slot_row = client.query_typed_opt(SLOT, &[(&config.slot, Type::TEXT)]).await?;
    let slot = |row: tokio_postgres::Row| {
        Ok(Slot { lost: row.try_get(0)?, plugin: row.try_get(1)?, database: row.try_get(2)? })
    };
    Ok(Found {
        server,
        schema,
        carry,
        publication: Publication::look(client, &config.publication).await?,
        slot: slot_row.map(slot).transpose()?,
    })
}

impl Found {
    /// What its publication leaves out, and the remedy.
    fn left_out(&self, config: &Config) -> Option<String> {
        self.publication.as_ref().and_then(|found| found.problem(&config.publication))
    }

    /// The first thing that an operator has to put right, and how.
    fn problem(&self, config: &Config) -> Option<String> {
        let (database, publication, slot) = (&self.server.database, &config.publication, &config.slot);
        if let Some(problem) = self.server.problems(SourceKind::Wal).into_iter().next() {
            return Some(problem);
        }
        if !self.schema {
            return Some(format!("the database {database} has no schema walcast: run `walcast setup`"));
        }
        let other_way = self.carry.as_ref().and_then(|carry| server::other_way(SourceKind::Wal, carry));
        if other_way.is_some() {
            return other_way;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_problem_is_named_with_its_remedy() {
        let slot = Slot { lost: false, plugin: Some("pgoutput".into()), database: Some("app".into()) };
        let publication =
            Publication { all_tables: false, via_root: true, left_out: Vec::new(), filtered: None };
        let server = Server {
            version_num: 140_000,
            version: "14.0".into(),
            wal_level: "logical".into(),
            standby: false,
            encoding: "UTF8".into(),
            database: "app".into(),
        };
        let good = Found {
            server,
            schema: true,
            carry: Some("wal".into()),
            publication: Some(publication.clone()),
            slot: Some(slot.clone()),
        };
        let check = |change: &dyn Fn(&mut Found), expected: &[&str]| {
            let mut found = good.clone();
            change(&mut found);
            let config = Config::default();
            let problem = found.problem(&config).or_else(|| found.left_out(&config)).unwrap_or_default();
            assert_eq!(problem.is_empty(), expected.is_empty(), "{problem}");
            assert!(
                !problem.contains('\n') && expected.iter().all(|part| problem.contains(part)),
                "{problem}"
            );
        };
        let with_slot = |change: &dyn Fn(&mut Slot), expected: &[&str]| {
            let mut slot = slot.clone();
            change(&mut slot);
            check(&|found| found.slot = Some(slot.clone()), expected);
        };
        check(&|_| (), &[]);
        check(&|found| found.server.standby = true, &["standby"]);
        check(&|found| found.schema = false, &["database app", "walcast setup"]);
        check(&|found| found.carry = Some("outbox".into()), &["`outbox`", "source.kind = \"outbox\""]);
        check(&|found| found.publication = None, &["publication walcast", "walcast setup"]);
        let with_publication = |change: &dyn Fn(&mut Publication), expected: &[&str]| {
            let mut publication = publication.clone();
            change(&mut publication);
            check(&|found| found.publication = Some(publication.clone()), expected);
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
        check(&|found| found.slot = None, &[]);
        with_slot(&|slot| slot.lost = true, &[]);
        with_slot(&|slot| slot.plugin = Some("wal2json".into()), &["wal2json", "`source.slot`"]);
        with_slot(&|slot| slot.database = Some("other".into()), &["database other", "`source.slot`"]);
        with_slot(&|slot| (slot.plugin, slot.database) = (None, None), &["physical", "`source.slot`"]);
    }
}
