//! How connection strings are read, refused and shown.

use proptest::prelude::*;

use super::*;

fn target(text: &str) -> Target {
    Target::parse(text, |_| None).unwrap()
}

fn error(text: &str) -> String {
    Target::parse(text, |_| None).unwrap_err().to_string()
}

fn hosts(text: &str) -> String {
    target(text).addresses()
}

#[test]
fn both_notations_say_where() {
    let check = |text: &str, expected: &str| assert_eq!(hosts(text), expected, "{text}");
    check("postgres://me@db", "db:5432");
    check("postgresql://me@db:6000/app", "db:6000");
    check("postgresql://me@a,b:1,c/app", "a:5432, b:1, c:5432");
    check("postgresql://me@[::1]:7/app", "[::1]:7");
    check("postgresql://me@%2Frun%2Fpg/app", "/run/pg/.s.PGSQL.5432");
    check("postgresql:///app?host=/run/pg&user=me&port=9", "/run/pg/.s.PGSQL.9");
    check("host=db user=me", "db:5432");
    check("host = 'db' port=7 user=me", "db:7");
    check("host=a,b port=1,2 user=me", "a:1, b:2");
    check("host=a,b port=3 user=me", "a:3, b:3");
    check("hostaddr=10.0.0.1 user=me", "10.0.0.1:5432");
}

#[test]
fn credentials_and_database() {
    let check = |text: &str, user: &str, password: Option<&str>, database: &str| {
        let target = target(text);
        assert_eq!(target.user, user, "{text}");
        assert_eq!(target.password.as_ref().map(Secret::expose), password, "{text}");
        assert_eq!(target.database, database, "{text}");
    };
    check("postgres://me:p%40ss%2F@db/app", "me", Some("p@ss/"), "app");
    check("postgres://me@db", "me", None, "me");
    check("postgres://m%65:@db/a%20b", "me", None, "a b");
    check(r"user=me password='it\'s a \\' dbname=app host=db", "me", Some(r"it's a \"), "app");
    check(r"user=me password=a\ b host=db", "me", Some("a b"), "me");
    check("user=me password='' host=db", "me", None, "me");
    check("host=db user=me password=", "me", None, "me");
    check("postgres://me@db/app?password=x&dbname=other", "me", Some("x"), "other");
}

#[test]
fn modes_of_trust() {
    let check = |text: &str, expected: Mode| assert_eq!(target(text).tls.mode, expected, "{text}");
    check("host=db user=me", Mode::Prefer);
    check("host=db user=me sslmode=disable", Mode::Disable);
    check("host=db user=me sslmode=allow", Mode::Allow);
    check("postgres://me@db?sslmode=verify-ca", Mode::VerifyCa);
    check("postgres://me@db?sslmode=verify-full&sslrootcert=/ca.pem", Mode::VerifyFull);
    check("postgres://me@db?ssl=true", Mode::Require);
    check("postgres://me@db?sslrootcert=system", Mode::VerifyFull);
}

#[test]
fn several_hosts_want_the_primary() {
    let check = |text: &str, expected: Attributes| assert_eq!(target(text).attributes, expected, "{text}");
    check("host=a user=me", Attributes::Any);
    check("host=a,b user=me", Attributes::Primary);
    check("host=a,b user=me target_session_attrs=any", Attributes::Any);
    check("postgres://me@a,b?target_session_attrs=read-write", Attributes::ReadWrite);
}

#[test]
fn tcp_settings() {
    let target = target("host=db user=me keepalives_idle=5 keepalives_count=2 tcp_user_timeout=1500");
    assert_eq!(target.tcp_user_timeout, Duration::from_millis(1500));
    let keepalive = target.keepalive.unwrap();
    assert_eq!((keepalive.idle, keepalive.count), (Duration::from_secs(5), 2));
    assert_eq!(super::tests::target("host=db user=me keepalives=0").keepalive, None);
}

#[test]
fn the_environment_stands_in() {
    let environment = |name: &str| {
        let value = match name {
            "PGHOST" => "db",
            "PGUSER" => "me",
            "PGPASSWORD" => "secret",
            "HOME" => "/home/me",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let target = Target::parse("dbname=app user=you", environment).unwrap();
    assert_eq!((target.addresses().as_str(), target.user.as_str()), ("db:5432", "you"));
    assert_eq!(target.password, Some(Secret::from("secret")));
    assert_eq!(target.passfile, Some(PathBuf::from("/home/me/.pgpass")));
}

#[test]
fn bad_strings_name_the_key() {
    let check = |text: &str, expected: &str| {
        let message = error(text);
        assert!(message.contains(expected), "{text}: {message}");
    };
    check("host=db user=me colour=blue", "unknown key colour");
    check("postgres://me@db?pool_size=3", "unknown key pool_size");
    check("host=db user=me port=x", "port must be a number");
    check("postgres://me@db:99999", "port must be a number");
    check("host=db user=me sslmode=on", "sslmode must be one of disable, allow");
    check(
        "host=db user=me sslmode=require sslrootcert=system",
        "sslrootcert=system needs sslmode=verify-full",
    );
    check("host=db user=me sslcrl=/x", "sslcrl is not supported");
    check("host=db user=me replication=database", "replication is not supported");
    check("host=db user=me sslcert=/x", "sslcert and sslkey");
    check("host=db user=me connect_timeout=soon", "connect_timeout must be a number");
    check("host=db", "user is missing; add user=… to it");
    check("", "none is given, and no user to connect as; set DATABASE_URL, or `postgres.url`");
    check("host=a,b hostaddr=10.0.0.1 user=me", "hostaddr must have as many");
    check("host=a,b,c port=1,2 user=me", "port must have one entry");
    check("hostaddr=db user=me", "hostaddr must be an IP address");
    check("host='db user=me", "closing single quote");
    check("postgres://me@[::1/app", "lacks its ]");
    check("postgres://m%zz@db", "two hexadecimal digits");
}

#[test]
fn no_message_repeats_a_password() {
    let check = |text: &str| {
        let message = error(text);
        assert!(!message.contains("fish"), "{text}: {message}");
    };
    check("postgres://me:sword/fish@db/app");
    check("postgres://me:sword@fish@db/app");
    check("postgres://me:sword?fish@db/app");
    check("host=db user=me password=sword fish");
    check("host=db user=me password='swordfish");
    check("host=db user=me password=sword 2fish=x");
    check("postgres://me:sword%fish@db/app");
}

proptest! {
    #[test]
    fn no_string_panics(text in "(postgres://)?[a-z:@/?&=%' \\\\\\[\\],0-9é]{0,60}") {
        let _ = Target::parse(&text, |_| None);
    }

    #[test]
    fn any_password_survives_encoding(password in "[^\\x00]{1,20}") {
        let encoded: String = password.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let target = target(&format!("postgres://me:{encoded}@db/app"));
        prop_assert_eq!(target.password.as_ref().map(Secret::expose), Some(password.as_str()));
        let quoted = password.replace('\\', "\\\\").replace('\'', "\\'");
        let target = super::tests::target(&format!("host=db user=me password='{quoted}'"));
        prop_assert_eq!(target.password.as_ref().map(Secret::expose), Some(password.as_str()));
        let debug = format!("{target:?}");
        prop_assert!(debug.contains("password: Some([hidden])"));
    }
}
