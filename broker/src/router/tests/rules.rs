//! Which rules are taken, and what is said of the others.

use walcast_wire::TopicPattern;

use super::super::TableRule;
use super::*;

const VMS: &str = "name = 'public.vms'\ntopic = 'vm/{host}'\n";

#[test]
fn rules_are_checked() {
    let check = |toml: &str, expected: Option<(&str, &str)>| {
        let error = Router::new(&[rule(toml)], Config::default()).err();
        let got = error.as_ref().map(|error| (error.key, error.cause.as_str()));
        assert_eq!(got.map(|(key, _)| key), expected.map(|(key, _)| key), "{toml}: {error:?}");
        if let (Some(error), Some((_, part))) = (error, expected) {
            let text = error.to_string();
            assert!(text.contains(part) && text.contains(&error.remedy), "{text}");
            assert!(!text.contains('\n'), "{text}");
        }
    };
    check(VMS, None);
    check(&format!("{VMS}columns = []"), None);
    check(&format!("{VMS}columns = ['a', 'a']"), Some(("columns", "twice")));
    check(&format!("{VMS}columns = ['']"), Some(("columns", "empty")));
    check(&format!("{VMS}when = 'data.'"), Some(("when", "CEL")));
    check("name = 'vms'\ntopic = 'a'", Some(("name", "schema is missing")));
    check("name = 'public.'\ntopic = 'a'", Some(("name", "empty")));
    check("name = '\"public\".vms'\ntopic = 'a'", Some(("name", "quoted")));
    check("name = 'public.vms'\ntopic = 'vm/{'", Some(("topic", "`}`")));
    check("name = 'public.vms'\ntopic = '{a}-{b}'", None);
    check("name = 'public.vms'\ntopic = '{a}-{b}'\nstate = true", Some(("topic", "share a topic")));
    check("name = 'public.vms'\ntopic = '{a}/{b}'\nstate = true", None);
}

#[test]
fn the_error_names_rule_key_cause_and_remedy() {
    let error = Router::new(&[rule("name = 'vms'\ntopic = 'a'")], Config::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "[[table]] \"vms\", key `name`: the schema is missing; write schema and table, unquoted: public.vms"
    );
}

#[test]
fn one_rule_per_table() {
    let check = |second: &str, part: &str| {
        let error = Router::new(&[rule(VMS), rule(second)], Config::default()).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    };
    check(VMS, "same rule twice");
    check("name = 'public.vms'\ntopic = 'other/{host}'", "two rules that differ");
}

#[test]
fn unknown_keys_are_refused() {
    assert!(toml::from_str::<RuleConfig>(&format!("{VMS}colums = []")).is_err());
    assert!(toml::from_str::<Config>("event_byte_max = 1").is_err());
    assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
}

#[test]
fn tables_tell_what_they_need() {
    let rules = [
        rule(&format!(
            "{VMS}columns = ['pin', 'host']\ncolumn_list = true\nstate = true\nwhen = 'data.up && has(old.pin)'"
        )),
        rule("name = 'public.logs'\ntopic = 'logs'"),
    ];
    let router = Router::new(&rules, Config::default()).unwrap();
    let tables: Vec<_> = router.tables().collect();
    assert_eq!(
        tables,
        [
            TableRule {
                name: "public.vms".into(),
                state: true,
                column_list: true,
                columns: Some(vec!["pin".into(), "host".into(), "up".into()]),
            },
            TableRule { name: "public.logs".into(), state: false, column_list: false, columns: None },
        ]
    );
    assert_eq!(router.state_tables().map(|table| table.name).collect::<Vec<_>>(), [Arc::from("public.vms")]);
}

#[test]
fn a_reload_names_the_state_tables_whose_values_are_no_longer_right() {
    let rule = |name: &str, topic: &str, state: bool| RuleConfig {
        name: name.to_owned(),
        topic: topic.to_owned(),
        columns: None,
        state,
        when: None,
        column_list: false,
    };
    let columns = |name, topic, columns: &[&str]| RuleConfig {
        columns: Some(columns.iter().map(ToString::to_string).collect()),
        ..rule(name, topic, true)
    };
    let router = |rules: &[RuleConfig]| Router::new(rules, Config::default()).unwrap();
    let old = router(&[
        rule("p.same", "a/{id}", true),
        rule("p.other", "b/{id}", true),
        rule("p.gone", "c/{id}", true),
        rule("p.plain", "d/{id}", false),
        rule("p.was_state", "e/{id}", true),
        columns("p.order", "g/{id}", &["id", "n"]),
        columns("p.columns", "h/{id}", &["id"]),
        RuleConfig { when: Some("data.n > 1".into()), ..rule("p.when", "i/{id}", true) },
    ]);
    let new = router(&[
        rule("p.same", "a/{id}", true),
        rule("p.other", "bb/{id}", true),
        rule("p.plain", "dd/{id}", false),
        rule("p.new", "f/{id}", true),
        rule("p.was_state", "e/{id}", false),
        columns("p.order", "g/{id}", &["n", "id"]),
        columns("p.columns", "h/{id}", &["id", "n"]),
        RuleConfig { when: Some("data.n > 2".into()), ..rule("p.when", "i/{id}", true) },
    ]);
    let mut told = Vec::new();
    for Outdated { table, topics, withdrawn, state } in new.outdated(&old) {
        assert!(state, "{table}");
        let topics: Vec<_> = topics.iter().map(TopicPattern::as_str).collect();
        told.push(format!("{table} {} {withdrawn}", topics.join(" ")));
    }
    assert_eq!(
        told,
        [
            "p.columns h/* true",
            "p.gone c/* true",
            "p.new f/* false",
            "p.order g/* false",
            "p.other b/* bb/* true",
            "p.was_state e/* true",
            "p.when i/* true"
        ]
    );
    // Events of one table were missing; rules that are read meanwhile do not hide that.
    let named = |new: &Router, old: &Router| {
        let outdated = new.outdated(old);
        assert!(outdated.iter().all(|it| it.withdrawn));
        outdated.into_iter().map(|it| it.table.to_string()).collect::<Vec<_>>()
    };
    let table = Arc::from("p.same");
    let again = new.missing([&table]).unwrap();
    assert_eq!(named(&again, &new), ["p.same"]);
    assert_eq!(named(&new.missing([]).unwrap().after(&again), &new), ["p.same"]);
    assert_eq!(named(&again.missing([&table]).unwrap(), &again), ["p.same"]);
    assert_eq!(named(&again.missing([]).unwrap(), &again), [] as [&str; 0]);
    // What keeps no values misses events, too.
    let plain = Arc::from("p.plain");
    let missed = new.missing([&plain]).unwrap().outdated(&new);
    assert_eq!(missed.len(), 1);
    assert_eq!((missed[0].withdrawn, missed[0].state, missed[0].topics[0].as_str()), (true, false, "dd/*"));
}
