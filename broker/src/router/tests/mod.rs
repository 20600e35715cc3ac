//! What routing promises, line by line.

mod changes;
mod conditions;
mod facts;
mod properties;
mod rules;

use std::sync::Arc;

use bytes::Bytes;

use super::{Config, Router, Routing, RuleConfig};
use crate::event::{
    Cell, Change, ChangeKind, Column, Commit, Effect, Entry, Event, OldRow, Outdated, Relation, Row,
};
use crate::value::ValueKind;

/// A rule as `walcast.toml` writes it, without `[[table]]`.
fn rule(toml: &str) -> RuleConfig {
    toml::from_str(toml).unwrap()
}

fn router(toml: &str) -> Arc<Router> {
    Arc::new(Router::new(&[rule(toml)], Config::default()).unwrap())
}

/// `public.vms`; `columns` as `name`, or `name!` in the replica identity, then `:kind`.
fn relation(columns: &[&str]) -> Arc<Relation> {
    let column = |text: &&str| {
        let (name, kind) = text.split_once(':').unwrap_or((text, "text"));
        let kind = match kind {
            "bool" => ValueKind::Bool,
            "int" => ValueKind::Integer,
            "float" => ValueKind::Float,
            "json" => ValueKind::Json,
            "timestamptz" => ValueKind::TimestampTz,
            "ints" => ValueKind::Array(Box::new(ValueKind::Integer), ','),
            _ => ValueKind::Text,
        };
        Column { name: name.trim_end_matches('!').into(), kind, key: name.ends_with('!') }
    };
    Arc::new(Relation { name: "public.vms".into(), columns: columns.iter().map(column).collect() })
}

/// `∅` is NULL, `…` an unchanged value, `✂` one that was too large.
fn row(cells: &[&str]) -> Row {
    let cell = |text: &&str| match *text {
        "∅" => Cell::Null,
        "…" => Cell::Unchanged,
        "✂" => Cell::Omitted,
        text => Cell::Text(Bytes::copy_from_slice(text.as_bytes())),
    };
    cells.iter().map(cell).collect()
}

fn insert(relation: &Arc<Relation>, new: &[&str]) -> ChangeKind {
    ChangeKind::Insert { relation: Arc::clone(relation), new: row(new) }
}

fn update(relation: &Arc<Relation>, old: Option<OldRow>, new: &[&str]) -> ChangeKind {
    ChangeKind::Update { relation: Arc::clone(relation), old, new: row(new) }
}

fn delete(relation: &Arc<Relation>, old: OldRow) -> ChangeKind {
    ChangeKind::Delete { relation: Arc::clone(relation), old }
}

fn key(cells: &[&str]) -> OldRow {
    OldRow::Key(row(cells))
}

fn whole(cells: &[&str]) -> OldRow {
    OldRow::Full(row(cells))
}

fn message(content: &str) -> ChangeKind {
    ChangeKind::Message { content: Bytes::copy_from_slice(content.as_bytes()) }
}

fn commit() -> Arc<Commit> {
    Arc::new(Commit { major: 100, lsn: Some(100), xid: 7, time_us: 1 })
}

/// Routes the changes as one transaction, ordinals from 1.
fn route(router: &Arc<Router>, changes: Vec<ChangeKind>) -> Vec<Entry> {
    let (mut routing, commit, mut out) = (Routing::new(Arc::clone(router)), commit(), Vec::new());
    routing.begin(router);
    // Another test of this process may have started logging.
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::default(), || {
        for (ordinal, kind) in (1..).zip(changes) {
            routing.route(&commit, &Change { ordinal, kind }, &mut out);
        }
    });
    out
}

/// One line per entry: `[effect] op topic data`, then what is unchanged (`~`) and omitted (`-`).
fn line(event: &Event) -> String {
    let effect = match event.state.as_ref().map(|state| state.effect) {
        None => "",
        Some(Effect::Put) => "put ",
        Some(Effect::PutIfPresent) => "put? ",
        Some(Effect::Clear) => "clear ",
    };
    let data = std::str::from_utf8(&event.data).unwrap();
    serde_json::from_str::<serde_json::Value>(data).unwrap();
    let names =
        |sign: &str, names: &[Arc<str>]| names.iter().map(|n| format!(" {sign}{n}")).collect::<String>();
    format!(
        "{effect}{} {} {data}{}{}",
        event.op.as_str(),
        event.topic,
        names("~", &event.unchanged),
        names("-", &event.omitted)
    )
}

fn lines(entries: &[Entry]) -> Vec<String> {
    let entry = |entry: &Entry| match entry {
        Entry::Event(event) => line(event),
        Entry::ClearTable { table, .. } => format!("clear table {table}"),
    };
    entries.iter().map(entry).collect()
}

/// What one change makes.
#[track_caller]
fn check(router: &Arc<Router>, change: ChangeKind, expected: &[&str]) {
    assert_eq!(lines(&route(router, vec![change])), expected);
}
