//! Who is let in, and what for.

use super::*;

fn role(name: &str, subscribe: &[&str], publish: &[&str]) -> RoleConfig {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    RoleConfig {
        name: name.into(),
        subscribe: texts(subscribe),
        publish: texts(publish),
        ..RoleConfig::default()
    }
}

fn key(sub: &str, token: &str, roles: &[&str]) -> KeyConfig {
    let roles = roles.iter().map(|role| (*role).to_owned()).collect();
    KeyConfig { sub: sub.into(), sha256: Token::sha256_of(token.as_bytes()), roles }
}

fn topics(texts: &[&str]) -> Vec<TopicPattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn one_rule_gives_each_its_own_topic_and_nothing_else() {
    let roles = [role("vm", &["vm/{sub}", "all/{sub}/**"], &[])];
    let keys = Keys::new(&[key("a", "ta", &["vm"]), key("b/*", "tb", &["vm"])], &roles, false).unwrap();
    assert!(!keys.open() && keys.anybody().is_none());
    assert!(keys.find(b"tc").is_none() && keys.find(b"").is_none());
    let a = keys.find(b"ta").unwrap();
    assert_eq!(a.sub(), "a");
    let may = |key: &Key, texts: &[&str]| key.may(Action::Subscribe, &topics(texts)).is_ok();
    assert!(may(&a, &["vm/a", "all/a/x", "all/a/**"]) && may(&a, &[]));
    for other in ["vm/b", "vm/*", "vm/**", "**", "all/*/x", "all/a", "vm/a/x"] {
        assert!(!may(&a, &["vm/a", other]), "{other}");
    }
    assert_eq!(
        a.may(Action::Publish, &topics(&["vm/a"])).unwrap_err().to_string(),
        "`a` may not publish to `vm/a`"
    );
    assert!(!a.administers());
    // Whatever somebody is called, it is one segment.
    let b = keys.find(b"tb").unwrap();
    assert!(may(&b, &["vm/b%2F%2A"]) && !may(&b, &["vm/b/x"]) && !may(&b, &["vm/b/*"]));
}

#[test]
fn roles_add_up() {
    let admin =
        RoleConfig { name: "ops".into(), admin: true, waiters: vec!["**".into()], ..Default::default() };
    let roles = [role("read", &["a"], &[]), role("write", &[], &["a", "b/*"]), admin];
    let keys = Keys::new(&[key("x", "t", &["read", "write", "ops"])], &roles, false).unwrap();
    let key = keys.find(b"t").unwrap();
    assert!(key.administers());
    key.may(Action::Subscribe, &topics(&["a"])).unwrap();
    key.may(Action::Publish, &topics(&["a", "b/c"])).unwrap();
    key.may(Action::Waiters, &topics(&["**"])).unwrap();
    key.may(Action::Subscribe, &topics(&["b/c"])).unwrap_err();
}

#[test]
fn without_keys_nobody_is_asked() {
    let keys = Keys::new(&[], &[], false).unwrap();
    let anybody = keys.anybody().unwrap();
    assert!(keys.open() && anybody.administers());
    anybody.may(Action::Publish, &topics(&["**"])).unwrap();
}

#[test]
fn who_asks_once_goes_on_to_ask() {
    let roles = [role("r", &["r"], &[])];
    for (roles, asked) in [(&roles[..], false), (&[], true)] {
        let keys = Keys::new(&[], roles, asked).unwrap();
        assert!(!keys.open() && keys.find(b"1").is_none(), "a role or a file of keys is meant for somebody");
    }
    let old = Keys::new(&[key("a", "1", &["r"])], &roles, false).unwrap();
    let a = old.find(b"1").unwrap();
    let none = Keys::new(&[], &[], false).unwrap().after(&old);
    assert!(a.revoked() && !none.open() && none.anybody().is_none() && none.find(b"1").is_none());
}

#[test]
fn what_cannot_be_used_is_named() {
    let check = |keys: &[KeyConfig], roles: &[RoleConfig], expected: &str| {
        let error = Keys::new(keys, roles, false).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    let vm = role("vm", &["vm/{sub}"], &[]);
    check(&[key("a", "t", &["wm"])], std::slice::from_ref(&vm), "there is no role `wm`");
    check(&[], &[vm.clone(), vm.clone()], "two roles are named `vm`");
    check(&[], &[role("bad", &["vm/#"], &[])], "role `bad`: `vm/#`");
    let r = [vm.clone()];
    check(&[key("a", "t", &["vm"]), key("b", "t", &["vm"])], &r, "`a` and `b`");
    check(&[key("", "t", &["vm"])], &r, "empty `sub`");
    check(&[key("a", "t", &[])], &r, "`a` has no role");
    let short = KeyConfig { sha256: "secret".into(), ..key("a", "t", &["vm"]) };
    check(&[short], &r, "not 64 hexadecimal digits");
    check(&[], &[role("bad", &["vm/{sbu}"], &[])], "role `bad`: `vm/{sbu}`");
    check(&[], &[role("", &["a"], &[])], "a role is named ``");
    check(&[], &[role("a,b", &["a"], &[])], "`a,b`");
}

#[test]
fn who_changed_is_turned_out_and_nobody_else() {
    let roles = [role("r", &["r/{sub}"], &[]), role("s", &["s"], &[])];
    let old =
        Keys::new(&[key("a", "1", &["r"]), key("b", "2", &["r"]), key("c", "3", &["r"])], &roles, false)
            .unwrap();
    let [a, b, c] = [&b"1"[..], b"2", b"3"].map(|token| old.find(token).unwrap());
    let new = Keys::new(&[key("a", "1", &["r"]), key("b", "2", &["s"])], &roles, false).unwrap().after(&old);
    assert_eq!([a.revoked(), b.revoked(), c.revoked()], [false, true, true]);
    assert!(Arc::ptr_eq(&a, &new.find(b"1").unwrap()), "a connection made now falls with those of before");
    assert!(!new.find(b"2").unwrap().revoked() && new.find(b"3").is_none());
    // The first key ends the time when everybody could do everything.
    let open = Keys::new(&[], &[], false).unwrap();
    let anybody = open.anybody().unwrap();
    let still = Keys::new(&[], &[], false).unwrap().after(&open);
    assert!(!anybody.revoked() && Arc::ptr_eq(&anybody, &still.anybody().unwrap()));
    let closed = Keys::new(&[key("a", "1", &["r"])], &roles, false).unwrap().after(&still);
    assert!(anybody.revoked() && !closed.open());
}

#[test]
fn tokens() {
    let (one, other) = (Token::new(), Token::new());
    assert_ne!(one.reveal(), other.reveal());
    assert!(one.reveal().starts_with("walcast_") && one.reveal().len() == 8 + 64);
    assert!(!format!("{one:?}").contains(&one.reveal()[8..]));
    let roles = [role("r", &["r"], &[])];
    let config = KeyConfig { sub: "x".into(), sha256: one.sha256().to_uppercase(), roles: vec!["r".into()] };
    let keys = Keys::new(&[config], &roles, false).unwrap();
    assert_eq!(keys.find(one.reveal().as_bytes()).unwrap().sub(), "x");
    // RFC 6234, the digest of "abc".
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(Token::sha256_of(b"abc"), abc);
}

#[test]
fn bearers() {
    let check = |header: &str, expected: Option<&str>| {
        assert_eq!(bearer(header.as_bytes()), expected.map(str::as_bytes), "{header}");
    };
    check("Bearer x", Some("x"));
    check("bearer  x ", Some("x"));
    check("Basic eDp5", None);
    check("Bearer", None);
    check("", None);
}

#[test]
fn lines_of_keys() {
    let digest = Token::sha256_of(b"t");
    let text = format!("# fleet\n\n  host-1 {digest} vm\nhost-2\t{digest}  vm,reader\r\n");
    let keys = read_lines(&text).unwrap();
    let seen: Vec<_> = keys.iter().map(|key| (key.sub.as_str(), key.roles.len())).collect();
    assert_eq!(seen, [("host-1", 1), ("host-2", 2)]);
    let check = |text: &str, line: usize, cause: &str| {
        let error = read_lines(text).unwrap_err();
        assert!(error.line == line && error.cause.contains(cause), "{error}");
        assert!(!error.to_string().contains("swordfish"), "{error}");
    };
    check("a b\n", 1, "missing");
    check(&format!("a {digest} vm\nb {digest} vm more\n"), 2, "more");
    check("a swordfish vm", 1, "hexadecimal");
    check(&format!("a {digest} vm,"), 1, "no name");
}
