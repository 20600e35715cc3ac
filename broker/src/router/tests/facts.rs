//! The rules against the catalog.

use super::super::{Identity, PartitionFacts, TableFacts, TableKind, UniqueKey};
use super::*;

fn columns(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn unique(index: &str, names: &[&str]) -> UniqueKey {
    UniqueKey { index: index.into(), columns: columns(names), not_null: true, immediate: true }
}

/// A table with primary key `id` and a unique column `host`.
fn vms() -> TableFacts {
    TableFacts {
        name: "public.vms".into(),
        kind: TableKind::Table,
        columns: columns(&["id", "host", "status"]),
        identity: Identity::Default(columns(&["id"])),
        unique_keys: vec![unique("vms_pkey", &["id"]), unique("vms_host", &["host"])],
        published: Some(true),
        column_list: None,
        by_trigger: false,
        partitions: Vec::new(),
    }
}

/// The complaint about a rule is one that holds all of `parts`, or there is none.
#[track_caller]
fn check(rest: &str, facts: &TableFacts, parts: &[&str]) {
    let errors = router(&format!("name = 'public.vms'\n{rest}")).check(std::slice::from_ref(facts));
    match (errors.as_slice(), parts) {
        ([], []) => {}
        ([error], [_, ..]) => {
            let text = error.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
        _ => panic!("{errors:?}"),
    }
}

const BY_ID: &str = "topic = 'vm/{id}'";
const BY_HOST: &str = "topic = 'vm/{host}'";
const STATE_BY_HOST: &str = "topic = 'vm/{host}'\nstate = true";

#[test]
fn what_exists() {
    check(BY_ID, &vms(), &[]);
    check(BY_HOST, &vms(), &[]);
    check(BY_ID, &TableFacts { name: "public.other".into(), ..vms() }, &["does not exist"]);
    check("topic = 'vm/{hots}'", &vms(), &["`topic`", "no column \"hots\"", "id, host, status"]);
    check("topic = 'a'\ncolumns = ['pin']", &vms(), &["`columns`", "\"pin\""]);
    check("topic = 'a'\nwhen = 'data.up'", &vms(), &["`when`", "\"up\""]);
    check(BY_ID, &TableFacts { published: Some(false), ..vms() }, &["walcast setup"]);
    check(BY_ID, &TableFacts { published: None, ..vms() }, &[]);
    let narrow = TableFacts { column_list: Some(columns(&["id", "host"])), ..vms() };
    let listed = "topic = 'vm/{id}'\ncolumn_list = true\ncolumns = ";
    check(BY_ID, &narrow, &["sends only id, host", "walcast setup"]);
    check(&format!("{listed}['host']"), &narrow, &[]);
    check(&format!("{listed}['status']"), &narrow, &["not \"status\"", "walcast setup"]);
}

#[test]
fn kinds() {
    let kind = |kind| TableFacts { kind, ..vms() };
    check(BY_ID, &kind(TableKind::Partitioned), &[]);
    check(BY_ID, &kind(TableKind::Partition("public.all".into())), &["partition", "name public.all"]);
    check(BY_ID, &kind(TableKind::NotLogged), &["ALTER TABLE public.vms SET LOGGED"]);
    check(BY_ID, &kind(TableKind::Other("a view".into())), &["it is a view"]);
}

#[test]
fn identities() {
    let identity = |identity, unique_keys| TableFacts { identity, unique_keys, ..vms() };
    check(BY_ID, &identity(Identity::Full, vec![]), &[]);
    check(BY_ID, &identity(Identity::Index(columns(&["host"])), vec![]), &[]);
    for none in [Identity::Default(vec![]), Identity::Index(vec![]), Identity::Nothing] {
        let full = "primary key, or ALTER TABLE public.vms REPLICA IDENTITY FULL";
        check(BY_ID, &identity(none.clone(), vec![]), &["UPDATE and DELETE fail", full]);
        let using = "ALTER TABLE public.vms REPLICA IDENTITY USING INDEX \"Vms-host\"";
        check(BY_ID, &identity(none.clone(), vec![unique("Vms-host", &["host"])]), &[using]);
        let nullable = UniqueKey { not_null: false, ..unique("k", &["host"]) };
        let deferred = UniqueKey { immediate: false, ..unique("k", &["host"]) };
        check(BY_ID, &identity(none, vec![nullable, deferred]), &[full]);
    }
}

#[test]
fn partitions_agree_with_their_root() {
    let leaf = |identity| TableFacts {
        kind: TableKind::Partitioned,
        partitions: vec![PartitionFacts { name: "public.vms_1".into(), identity }],
        ..vms()
    };
    check(BY_ID, &leaf(Identity::Default(columns(&["id"]))), &[]);
    check(BY_ID, &leaf(Identity::Index(columns(&["id"]))), &[]);
    check(BY_ID, &leaf(Identity::Nothing), &["public.vms_1", "REPLICA IDENTITY FULL"]);
    check(BY_ID, &leaf(Identity::Full), &["public.vms_1"]);
}

#[test]
fn state_topics_are_unique_and_known_of_old_rows() {
    check("topic = 'vm/{id}'\nstate = true", &vms(), &[]);
    check(
        "topic = 'vm/{status}'\nstate = true",
        &vms(),
        &["no unique index", "UNIQUE INDEX ON public.vms (status)"],
    );
    check("topic = 'vms'\nstate = true", &vms(), &["no unique index", "primary key"]);
    check(STATE_BY_HOST, &vms(), &["host is not in", "REPLICA IDENTITY USING INDEX vms_host"]);
    check("topic = '{id}/{host}'\nstate = true", &vms(), &["host is not in", "REPLICA IDENTITY FULL"]);
    let full = TableFacts { identity: Identity::Full, ..vms() };
    check(STATE_BY_HOST, &full, &[]);
    check("topic = '{id}/{status}'\nstate = true", &full, &[]);
    let by_index = TableFacts { identity: Identity::Index(columns(&["host"])), ..vms() };
    check(STATE_BY_HOST, &by_index, &[]);
    // NULLs have no topic, so they cannot collide; a deferred check lets rows collide for a while.
    let nullable = UniqueKey { not_null: false, ..unique("k", &["host"]) };
    check(STATE_BY_HOST, &TableFacts { unique_keys: vec![nullable], ..full.clone() }, &[]);
    let deferred = UniqueKey { immediate: false, ..unique("k", &["host"]) };
    check(STATE_BY_HOST, &TableFacts { unique_keys: vec![deferred], ..full }, &["no unique index"]);
    let nullable = UniqueKey { not_null: false, ..unique("k", &["host"]) };
    check(STATE_BY_HOST, &TableFacts { unique_keys: vec![nullable], ..vms() }, &["REPLICA IDENTITY FULL"]);
}

#[test]
fn conditions_on_old_columns_need_them() {
    let when = "topic = 'vm/{id}'\nwhen = 'old.status != data.status'";
    check(when, &vms(), &["`when`", "old.status", "REPLICA IDENTITY FULL"]);
    check(when, &TableFacts { identity: Identity::Full, ..vms() }, &[]);
    check("topic = 'a'\nwhen = 'old.id != data.id'", &vms(), &[]);
}

#[test]
fn every_rule_is_checked() {
    let rules = ["public.a", "public.b"].map(|name| rule(&format!("name = '{name}'\ntopic = 'x'")));
    assert_eq!(Router::new(&rules, Config::default()).unwrap().check(&[]).len(), 2);
}
