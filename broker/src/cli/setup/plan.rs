//! From what exists to what is wanted: the list of steps. [`plan`] is pure; setup takes the steps, and
//! `--print-sql` prints them.

use std::collections::{BTreeMap, BTreeSet};

use refinery::Migration;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::statements::{self, Grant};
use super::{SetupError, SetupOptions, grants, migrations, moving, outbox};
use crate::source::SourceKind;
use crate::source::wal::catalog;

/// Who has the right to take a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// CREATE on the database, owner of the published tables.
    Owner,
    /// The broker's role: REPLICATION, and what the owner grants it.
    Broker,
}

/// One thing to do.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) who: Who,
    /// For people: what it did.
    pub(super) what: String,
    /// For people, where it failed: what it did not do.
    pub(super) failed: String,
    pub(super) action: Action,
    /// Publishers send another way once it is taken.
    pub(super) switches: bool,
}

/// How it is done.
#[derive(Clone, Debug)]
pub(super) enum Action {
    /// These statements, in one transaction.
    Transaction(Vec<String>),
    /// Outside a transaction: drop the floor slot that Postgres invalidated.
    DropLostSlot,
    /// Outside a transaction: create the floor slot.
    CreateSlot {
        /// Of the server, if it is known.
        version: Option<i32>,
    },
}

/// The floor slot as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Missing,
    Usable,
    /// Invalidated: it will never yield anything again.
    Lost,
}

/// A publication as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Publication {
    /// It publishes every kind of change, partitions as their root.
    pub(super) options_right: bool,
    /// Tables, each with its column list; `None` for whole rows.
    pub(super) tables: BTreeMap<(String, String), Option<BTreeSet<String>>>,
}

/// What exists of all that setup makes.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) version: Option<i32>,
    pub(super) pending: Vec<Migration>,
    pub(super) publication: Option<Publication>,
    /// Roles that setup granted what a broker needs.
    pub(super) brokers: Vec<String>,
    pub(super) granted: Vec<Grant>,
    pub(super) generation: bool,
    pub(super) slot: Slot,
    pub(super) outbox: outbox::Found,
    pub(super) moving: moving::Found,
}

impl Current {
    /// A database that knows nothing of walcast.
    pub(super) fn fresh() -> Self {
        Self {
            version: None,
            pending: all_migrations(),
            publication: None,
            brokers: Vec::new(),
            granted: Vec::new(),
            generation: false,
            slot: Slot::Missing,
            outbox: outbox::Found::nothing(),
            moving: moving::Found::nothing(),
        }
    }

    /// The tables of the publication.
    pub(super) fn published(&self) -> Vec<String> {
        let publication = self.publication.iter().flat_map(|publication| publication.tables.keys());
        publication.map(|(schema, name)| format!("{schema}.{name}")).collect()
    }

    pub(super) fn needs_slot(&self) -> bool {
        self.slot != Slot::Usable
    }

    /// Where what publishers send goes another way from now on: what has to go on until the old way is over. Where the
    /// schema is yet to be made, there are none.
    pub(super) fn switches_publishers(&self, options: &SetupOptions) -> Option<&'static str> {
        let first = all_migrations().first().map(Migration::version);
        let new = self.pending.first().is_some_and(|pending| Some(pending.version()) == first);
        if new {
            None
        } else if self.outbox.switches(options) {
            Some("keep the old broker running")
        } else {
            self.moving.switches(options).then_some("let those go on who hear of it by the old carrier")
        }
    }

    fn wanted_grants(&self, options: &SetupOptions) -> Vec<Grant> {
        let mut wanted = grants::wanted(options, &self.brokers);
        wanted.extend(self.moving.grants(options, &self.brokers));
        wanted
    }

    /// Looks.
    pub(super) async fn read(
        client: &Client,
        options: &SetupOptions,
        version: i32,
    ) -> Result<Self, SetupError> {
        let failed = |error| SetupError::from_postgres("looking at what is set up", &error);
        let mut current = Self { version: Some(version), ..Self::fresh() };
        let has = "SELECT to_regclass('walcast.refinery_schema_history') IS NOT NULL";
        let migrated: bool = client.query_typed_one(has, &[]).await.map_err(failed)?.get(0);
        if migrated {
            let sql = "SELECT version, checksum FROM walcast.refinery_schema_history";
            let rows = client.query_typed(sql, &[]).await.map_err(failed)?;
            let applied = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            current.pending = pending(current.pending, applied)?;
        }
        let schema_complete = current.pending.is_empty();
        if schema_complete {
            let sql = "SELECT EXISTS (SELECT FROM walcast.source WHERE slot = $1)";
            current.generation =
                client.query_typed_one(sql, &[(&options.source, Type::TEXT)]).await.map_err(failed)?.get(0);
        }
        current.brokers = grants::read_brokers(client).await.map_err(failed)?;
        current.moving = moving::Found::read(client, schema_complete).await.map_err(failed)?;
        for grant in current.wanted_grants(options) {
            if (schema_complete || grant.foreign())
                && current.moving.has(&grant)
                && client.query_typed_one(&grant.check(), &[]).await.map_err(failed)?.get(0)
            {
                current.granted.push(grant);
            }
        }
        current.outbox = outbox::Found::read(client, options).await.map_err(failed)?;
        if options.kind == SourceKind::Wal {
            current.publication = read_publication(client, &options.publication, version).await?;
            current.slot = read_slot(client, &options.source).await?;
        }
        Ok(current)
    }
}

async fn read_publication(
    client: &Client,
    name: &str,
    version: i32,
) -> Result<Option<Publication>, SetupError> {
    let failed = |error| SetupError::from_postgres("reading the publication", &error);
    let Some(found) = catalog::Publication::look(client, name).await.map_err(failed)? else {
        return Ok(None);
    };
    let foreign = |how: &str| {
        Err(SetupError::Rules(vec![format!(
            "publication {name:?} {how}, so it is not one that setup made; name another in `publication`, \
             or drop it"
        )]))
    };
    if found.all_tables {
        return foreign("is FOR ALL TABLES");
    }
    if let Some(table) = &found.filtered {
        return foreign(&format!("has row filters (on {table})"));
    }
    let options_right = found.via_root && found.left_out.is_empty();
    let columns = if version >= 150_000 {
        let sql =
            "SELECT EXISTS (SELECT FROM pg_publication_namespace n JOIN pg_publication p ON p.oid = n.pnpubid
                WHERE p.pubname = $1)";
        let row = client.query_typed_one(sql, &[(&name, Type::TEXT)]).await.map_err(failed)?;
        if row.get(0) {
            return foreign("publishes whole schemas");
        }
        "(SELECT array_agg(a.attname::text) FROM pg_attribute a
            WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs))"
    } else {
        "NULL::text[]"
    };
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text, {columns} FROM pg_publication p
         JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1"
    );
    let rows = client.query_typed(&sql, &[(&name, Type::TEXT)]).await.map_err(failed)?;
    let tables = rows.iter().map(|row| {
        let columns = row.get::<_, Option<Vec<String>>>(2).map(|columns| columns.into_iter().collect());
        ((row.get(0), row.get(1)), columns)
    });
    Ok(Some(Publication { options_right, tables: tables.collect() }))
}

async fn read_slot(client: &Client, name: &str) -> Result<Slot, SetupError> {
    let sql = "SELECT plugin = 'pgoutput' AND database = current_database() AND NOT temporary,
            wal_status = 'lost', coalesce(plugin::text, 'physical'), coalesce(database::text, '')
        FROM pg_replication_slots WHERE slot_name = $1";
    let row = client.query_typed_opt(sql, &[(&name, Type::TEXT)]).await;
    let Some(row) = row.map_err(|error| SetupError::from_postgres("reading the slots", &error))? else {
        return Ok(Slot::Missing);
    };
    if row.get::<_, Option<bool>>(0) != Some(true) {
        return Err(SetupError::Server(vec![format!(
            "slot {name:?} is taken by another use (plugin {}, database {:?}); slot names are one per server: \
             choose another `source.slot`",
            row.get::<_, String>(2),
            row.get::<_, String>(3)
        )]));
    }
    Ok(if row.get::<_, Option<bool>>(1) == Some(true) { Slot::Lost } else { Slot::Usable })
}

fn all_migrations() -> Vec<Migration> {
    let mut migrations = migrations::runner().get_migrations().clone();
    migrations.sort_by_key(Migration::version);
    migrations
}

/// What is yet to be applied.
///
/// # Errors
/// What is applied is not what this version has, so it is that of another.
fn pending(
    mut ours: Vec<Migration>,
    mut applied: BTreeMap<i32, Option<String>>,
) -> Result<Vec<Migration>, SetupError> {
    let mut other = None;
    ours.retain(|migration| match applied.remove(&migration.version()) {
        None => true,
        Some(checksum) => {
            if checksum.is_some_and(|checksum| checksum != migration.checksum().to_string()) {
                other.get_or_insert(migration.version());
            }
            false
        }
    });
    match other.or(applied.keys().next_back().copied()) {
        None => Ok(ours),
        Some(version) => Err(SetupError::Server(vec![format!(
            "schema walcast: migration V{version} is not one of this version's, so this walcast is older than the one \
             that set up: use that one, or a later one; or the schema is of an unreleased version: run `walcast teardown`, \
             then setup"
        )])),
    }
}

/// What is missing, in an order in which each step finds what it needs: the publication exists before the
/// slot, for decoding looks it up as it was, and the generation before the slot, or a crash between the two
/// would leave a new number line under an old name. Publishers are switched over last, when all is there that is to
/// take what they send.
pub(super) fn plan(options: &SetupOptions, current: &Current) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut step = |who, (what, failed): (String, String), action| {
        steps.push(Step { who, what, failed, action, switches: false });
    };
    if !current.pending.is_empty() {
        let names: Vec<_> =
            current.pending.iter().map(|m| format!("V{} {}", m.version(), m.name())).collect();
        let what = format!("schema walcast: migration {}", names.join(", "));
        let failed = "schema walcast: not migrated".into();
        step(Who::Owner, (what, failed), Action::Transaction(statements::migrate(&current.pending)));
    }
    steps.extend(current.moving.schema_step(options));
    let mut step = |who, (what, failed): (String, String), action| {
        steps.push(Step { who, what, failed, action, switches: false });
    };
    let wal = options.kind == SourceKind::Wal;
    if wal && let Some((what, sql)) = publication_step(options, current.publication.as_ref()) {
        let not = if current.publication.is_some() { "changed" } else { "created" };
        let failed = format!("publication {}: not {not}", options.publication);
        step(Who::Owner, (what, failed), Action::Transaction(sql));
    }
    let mut by_role: BTreeMap<String, Vec<Grant>> = BTreeMap::new();
    for grant in current.wanted_grants(options).into_iter().filter(|grant| !current.granted.contains(grant)) {
        by_role.entry(grant.role.clone()).or_default().push(grant);
    }
    for (role, grants) in by_role {
        let names: Vec<_> = grants.iter().map(|g| format!("{} on {}", g.privilege, g.object)).collect();
        let sql = grants.iter().flat_map(Grant::statements).collect();
        let (what, failed) = (names.join(", "), format!("grants to {role}: not made"));
        step(Who::Owner, (format!("grants to {role}: {what}"), failed), Action::Transaction(sql));
    }
    let slot = &options.source;
    // What went by the other way is missing from this one, so no cursor from before is good any more.
    if !current.generation || wal && current.needs_slot() || current.outbox.switches(options) {
        let sql = vec![statements::new_generation(slot, &options.publication)];
        let what = format!("new generation of {} {slot}", if wal { "slot" } else { "source" });
        let failed = format!("{what}: not written");
        let who = if wal { Who::Broker } else { Who::Owner };
        step(who, (what, failed), Action::Transaction(sql));
    }
    if wal && current.slot == Slot::Lost {
        let what = format!("slot {slot}: dropped, Postgres had invalidated it");
        step(Who::Broker, (what, format!("slot {slot}: not dropped")), Action::DropLostSlot);
    }
    if wal && current.needs_slot() {
        let texts = (format!("slot {slot}: created"), format!("slot {slot}: not created"));
        step(Who::Broker, texts, Action::CreateSlot { version: current.version });
    }
    steps.extend(current.outbox.steps(options));
    steps.extend(current.moving.carrier_step(options));
    steps
}

fn publication_step(options: &SetupOptions, current: Option<&Publication>) -> Option<(String, Vec<String>)> {
    let name = &options.publication;
    let Some(current) = current else {
        let tables: Vec<_> = options.tables.iter().map(ToString::to_string).collect();
        let of = if tables.is_empty() { "no table".into() } else { tables.join(", ") };
        let sql = statements::create_publication(name, &options.tables);
        return Some((format!("publication {name}: created, of {of}"), vec![sql]));
    };
    let (mut notes, mut sql) = (Vec::new(), Vec::new());
    if !current.options_right {
        notes.push("options corrected".into());
        sql.push(statements::reset_publication_options(name));
    }
    for (schema, table) in current.tables.keys() {
        if !options.tables.iter().any(|wanted| (&wanted.schema, &wanted.name) == (schema, table)) {
            notes.push(format!("{schema}.{table} dropped"));
            sql.push(statements::drop_table(name, schema, table));
        }
    }
    for wanted in &options.tables {
        let columns = wanted.columns.as_ref().map(|columns| columns.iter().cloned().collect());
        match current.tables.get(&(wanted.schema.clone(), wanted.name.clone())) {
            Some(published) if *published == columns => {}
            Some(_) => {
                notes.push(format!("{wanted} changed its columns"));
                sql.push(statements::drop_table(name, &wanted.schema, &wanted.name));
                sql.push(statements::add_table(name, wanted));
            }
            None => {
                notes.push(format!("{wanted} added"));
                sql.push(statements::add_table(name, wanted));
            }
        }
    }
    (!sql.is_empty()).then(|| (format!("publication {name}: {}", notes.join(", ")), sql))
}

#[cfg(test)]
mod tests {
    use super::super::PublishedTable;
    use super::*;

    fn table(name: &str, columns: Option<&[&str]>) -> PublishedTable {
        let columns = columns.map(|columns| columns.iter().map(ToString::to_string).collect());
        PublishedTable { schema: "public".into(), name: name.into(), columns, state: false }
    }

    #[test]
    fn publication_follows_the_rules() {
        let existing = Publication {
            options_right: true,
            tables: BTreeMap::from([
                (("public".into(), "a".into()), None),
                (("public".into(), "b".into()), Some(BTreeSet::from(["x".into(), "y".into()]))),
            ]),
        };
        let check = |tables: Vec<PublishedTable>, expected: &[&str]| {
            let options = SetupOptions { tables, ..SetupOptions::default() };
            let sql = publication_step(&options, Some(&existing)).map(|(_, sql)| sql).unwrap_or_default();
            assert_eq!(sql, expected);
        };
        let drop_b = r#"ALTER PUBLICATION "walcast" DROP TABLE ONLY "public"."b""#;
        check(vec![table("a", None), table("b", Some(&["y", "x"]))], &[]);
        check(vec![table("a", None)], &[drop_b]);
        let add_b = r#"ALTER PUBLICATION "walcast" ADD TABLE ONLY "public"."b" ("x")"#;
        check(vec![table("a", None), table("b", Some(&["x"]))], &[drop_b, add_b]);
        let add_c = r#"ALTER PUBLICATION "walcast" ADD TABLE ONLY "public"."c""#;
        check(vec![table("a", None), table("b", Some(&["x", "y"])), table("c", None)], &[add_c]);
    }

    #[test]
    fn what_a_step_needs_comes_before_it() {
        let options = SetupOptions { broker_role: Some("b".into()), ..SetupOptions::default() };
        let what: Vec<_> = plan(&options, &Current::fresh()).into_iter().map(|step| step.what).collect();
        let heads: Vec<_> = what.iter().map(|text| text.split(':').next().unwrap_or_default()).collect();
        assert_eq!(
            heads,
            [
                "schema walcast",
                "publication walcast",
                "grants to b",
                "new generation of slot walcast",
                "slot walcast"
            ]
        );
    }
}
