//! What `when` may say, and what it makes of rows.

use super::super::condition::Condition;
use super::super::notice::Reason;
use super::*;

const TABLE: &[&str] = &[
    "host!",
    "status",
    "n:int",
    "f:float",
    "on:bool",
    "doc:json",
    "at:timestamptz",
    "list:ints",
    "odd name",
];
const ROW: &[&str] =
    &["a", "on", "7", "1.5", "t", r#"{"a":{"b":[1,"x"]},"n":null}"#, "2026-01-31 12:00:00+00", "{1,2}", "z"];

/// Whether an insert of [`ROW`] is published.
fn holds(when: &str) -> (bool, Arc<Router>) {
    let toml = format!("name = 'public.vms'\ntopic = 'vm/{{host}}'\nwhen = '''{when}'''");
    let r = router(&toml);
    (!route(&r, vec![insert(&relation(TABLE), ROW)]).is_empty(), r)
}

#[test]
fn values_have_the_type_of_their_json() {
    let check = |when: &str, expected: bool| {
        let (got, r) = holds(when);
        assert_eq!(got, expected, "{when}");
        assert!(!r.rules[0].notices.seen(Reason::WhenError), "{when}");
    };
    check("true", true);
    check("data.status == 'on'", true);
    check("data.status != 'on'", false);
    check("data['odd name'] == 'z'", true);
    check("data.n > 6 && data.n + 1 == 8 && data.n < 7.5", true);
    check("data.f == 1.5", true);
    check("data.on", true);
    check("data.doc.a.b[0] == 1 && data.doc.a.b[1] == 'x'", true);
    check("data.doc.a.b.exists(e, e == 'x')", true);
    check("data.doc.n == null", true);
    check("has(data.doc.a) && !has(data.doc.z)", true);
    check("data.at == '2026-01-31T12:00:00Z'", true);
    check("2 in data.list && size(data.list) == 2", true);
    check("data.status.matches('^o.$') && data.status.startsWith('o')", true);
    check("data.status in ['off', 'on']", true);
    check("type(data.n) == int && type(data.status) == string", true);
    check("has(old.n)", false);
    check("[data.n].all(data, data == 7)", true);
}

#[test]
fn large_integers_stay_integers() {
    let r = router("name = 'public.vms'\ntopic = 'vm/{host}'\nwhen = 'data.n > 9007199254740993'");
    let t = relation(&["host!", "n:int"]);
    check(
        &r,
        insert(&t, &["a", "9007199254740994"]),
        &[r#"insert vm/a {"host":"a","n":"9007199254740994"}"#],
    );
    check(&r, insert(&t, &["a", "9007199254740993"]), &[]);
}

#[test]
fn null_is_null() {
    let r = router("name = 'public.vms'\ntopic = 'vm/{host}'\nwhen = 'data.n == null'\ncolumns = []");
    let t = relation(&["host!", "n:int"]);
    check(&r, insert(&t, &["a", "∅"]), &["insert vm/a {}"]);
    check(&r, insert(&t, &["a", "1"]), &[]);
}

#[test]
fn what_is_not_a_bool_or_fails_does_not_hold() {
    let check = |when: &str, reason: Reason| {
        let (got, r) = holds(when);
        assert!(!got, "{when}");
        assert!(r.rules[0].notices.seen(reason), "{when}");
    };
    check("data.n", Reason::WhenNotBool);
    check("'true'", Reason::WhenNotBool);
    check("null", Reason::WhenNotBool);
    check("data.n / 0 == 1", Reason::WhenError);
    check("data.status > 1", Reason::WhenError);
    check("data.doc.z == 1", Reason::WhenError);
    check("data.status.matches('(')", Reason::WhenError);
    check("old.n == 1", Reason::WhenError);
}

#[test]
fn errors_are_told_without_values() {
    let check = |when: &str| {
        let relation = relation(&["host!", "s"]);
        let row = row(&["a", "hunter2"]);
        let view = super::super::row::RowView::whole(&relation, &row);
        let when = Condition::compile(when).unwrap();
        match when.evaluate(&relation, &[Some(1)], view, None) {
            super::super::condition::Verdict::Broken(_, detail) => {
                assert!(!detail.contains("hunter2"), "{detail}");
            }
            other => panic!("{other:?}"),
        }
    };
    check("data.s");
    check("data.s < 1");
    check("data.s.x == 1");
    check("{'a': 1}[data.s] == 1");
    check("int(data.s) == 1");
    check("'x'.matches('(' + data.s)");
    check("[1][data.s] == 1");
    check("data.s + 1 == 2");
}

#[test]
fn old_rows() {
    let events = "name = 'public.vms'\ntopic = 'vm/{host}'\ncolumns = ['n']\n";
    let r = router(&format!("{events}when = 'data.n != old.n'"));
    let t = relation(&["host!", "n:int"]);
    check(&r, update(&t, Some(whole(&["a", "1"])), &["a", "2"]), &[r#"update vm/a {"n":2}"#]);
    check(&r, update(&t, Some(whole(&["a", "2"])), &["a", "2"]), &[]);
    // Not sent: nothing may be hidden.
    check(&r, update(&t, None, &["a", "2"]), &[r#"update vm/a {"n":2}"#]);
    check(&r, update(&t, Some(key(&["b", "∅"])), &["a", "2"]), &[r#"update vm/a {"n":2}"#]);
    let r = router(&format!("{events}when = 'old.host == data.host'"));
    check(&r, update(&t, None, &["a", "2"]), &[r#"update vm/a {"n":2}"#]);
    check(&r, update(&t, Some(key(&["b", "∅"])), &["a", "2"]), &[]);
}

#[test]
fn events_are_delivered_if_the_condition_needs_what_was_not_sent() {
    let events = "name = 'public.vms'\ntopic = 'vm/{host}'\ncolumns = ['host']\n";
    let t = relation(&["host!", "s", "n:int"]);
    let r = router(&format!("{events}when = \"data.s == 'x' && data.n == 1\""));
    check(&r, update(&t, None, &["a", "…", "1"]), &[r#"update vm/a {"host":"a"}"#]);
    // Decided without it.
    check(&r, update(&t, None, &["a", "…", "2"]), &[]);
    check(&r, update(&t, Some(whole(&["a", "y", "1"])), &["a", "…", "1"]), &[]);
    check(&r, delete(&t, key(&["a", "∅", "∅"])), &[r#"delete vm/a {"host":"a"}"#]);
    check(&r, delete(&t, whole(&["a", "y", "1"])), &[]);
    let r = router(&format!("{events}when = 'has(data.s)'"));
    check(&r, update(&t, None, &["a", "…", "1"]), &[r#"update vm/a {"host":"a"}"#]);
    // A column that the row's description does not have.
    let r = router(&format!("{events}when = 'data.later'"));
    check(&r, insert(&t, &["a", "x", "1"]), &[r#"insert vm/a {"host":"a"}"#]);
}

#[test]
fn expressions_compile() {
    let check = |when: &str, expected: Result<&[&str], &str>| match (Condition::compile(when), expected) {
        (Ok(condition), Ok(columns)) => {
            assert_eq!(condition.columns().iter().map(|c| &**c).collect::<Vec<_>>(), columns, "{when}");
        }
        (Err((cause, remedy)), Err(part)) => {
            assert!(cause.contains(part), "{when}: {cause}");
            assert!(!cause.contains('\n') && !remedy.is_empty());
        }
        (got, _) => panic!("{when}: {got:?}"),
    };
    check("data.a == old.b || data['c d'] > data.a", Ok(&["a", "b", "c d"]));
    check("has(data.a) && data.b.c.exists(x, x.d == data.e)", Ok(&["a", "b", "e"]));
    check("[1].exists(old, old == 1)", Ok(&[]));
    check("data.a ? [data.b][0] == 1 : {'x': data.c}.x", Ok(&["a", "b", "c"]));
    check("data.a ==", Err("no CEL expression"));
    check("", Err("no CEL expression"));
    check("data == old", Err("`data` stands alone"));
    check("size(old) == 1", Err("`old` stands alone"));
    check("data[old.x] == 1", Err("`data` stands alone"));
    check("status == 'on'", Err("`status` is unknown"));
    check("data.s.foo()", Err("no function `foo`"));
    check("now() > data.at", Err("no function `now`"));
    check("data.?a.hasValue()", Err("no CEL expression"));
    check("optional.of(data.a).hasValue()", Err("no function `of`"));
    check("Foo{a: 1} == data.a", Err("no structures"));
}
