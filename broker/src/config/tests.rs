//! What the configuration promises, and that its document says all of it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A file of this text for the length of a test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(text: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("walcast-config-{}-{number}.toml", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn load(text: &str, environment: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> Result<Config, String> {
    let file = TempFile::new(text);
    let variables = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let mut loader = Loader::new(Some(file.0.clone())).environment(variables);
    for (flag, key, value) in flags {
        loader = loader.flag(flag, key, *value);
    }
    let path = file.0.display().to_string();
    loader.load().map_err(|error| error.to_string().replace(&path, "walcast.toml"))
}

#[test]
fn later_sources_win() {
    let listen = |file: &str, environment: &[(&str, &str)], flags: &[(&str, &str, &str)]| {
        load(file, environment, flags).unwrap().http.listen.port()
    };
    let (file, variable) = ("[http]\nlisten = '127.0.0.1:1'", ("WALCAST_HTTP__LISTEN", "127.0.0.1:2"));
    let flag = ("--listen", "http.listen", "127.0.0.1:3");
    assert_eq!(listen("", &[], &[]), 8480);
    assert_eq!(listen(file, &[], &[]), 1);
    assert_eq!(listen(file, &[variable], &[]), 2);
    assert_eq!(listen(file, &[variable], &[flag]), 3);
}

#[test]
fn variables_are_text_unless_only_a_number_will_do() {
    let environment = [
        ("WALCAST_SOURCE__SLOT", "123"),
        ("WALCAST_HTTP__INSECURE", "true"),
        ("WALCAST_HTTP__CONNECTIONS_MAX", "77"),
        ("WALCAST_HISTORY__BYTES", "2MiB"),
        ("WALCAST_LOG", "debug"),
        ("WALCAST_PORT", "tcp://10.0.0.1:8480"),
        ("WALCAST_SERVICE_HOST", "10.0.0.1"),
    ];
    let config = load("", &environment, &[]).unwrap();
    assert_eq!(config.source.slot, "123");
    assert!(config.http.insecure);
    assert_eq!(config.http.connections_max, 77);
    assert_eq!(config.history.bytes, 2 << 20);
    assert_eq!(config.log.level, "debug");
}

#[test]
fn the_database_url_is_the_last_resort() {
    let url = |file: &str, environment: &[(&str, &str)]| {
        load(file, environment, &[]).unwrap().postgres.url.map(|url| url.expose().to_owned())
    };
    let fallback = ("DATABASE_URL", "postgres://fallback");
    assert_eq!(url("", &[]), None);
    assert_eq!(url("", &[("DATABASE_URL", "")]), None);
    assert_eq!(url("", &[fallback]).unwrap(), "postgres://fallback");
    assert_eq!(url("[postgres]\nurl = 'postgres://file'", &[fallback]).unwrap(), "postgres://file");
    let both = [fallback, ("WALCAST_POSTGRES__URL", "postgres://variable")];
    assert_eq!(url("", &both).unwrap(), "postgres://variable");
}

#[test]
fn mistakes_name_origin_key_cause_and_remedy() {
    let check = |file: &str, environment: &[(&str, &str)], expected: &[&str]| {
        let message = load(file, environment, &[]).map(|_| ()).expect_err(file);
        for part in expected {
            assert!(message.contains(part), "{message}\nlacks {part}");
        }
        assert!(!message.contains('\n') && !message.contains("swordfish"), "{message}");
    };
    check(
        "\n[http]\nwait_mx = '5m'",
        &[],
        &["walcast.toml, line 3: http", "`wait_mx`", "wait_max", "spelling"],
    );
    check("[htp]\n", &[], &["walcast.toml, line 1: ", "unknown field `htp`"]);
    check(
        "[http]\nwait_max = 50",
        &[],
        &["walcast.toml, line 2: http.wait_max: ", "integer `50`", "a duration such as \"50s\""],
    );
    check("[http]\nwait_max = '5 apples'", &[], &["http.wait_max: ", "a duration such as \"50s\""]);
    check("[http]\nconnections_max = 1.7", &[], &["line 2: http.connections_max: ", "1.7"]);
    check("[http]\ninsecure = 'yes'", &[], &["http.insecure: ", "a boolean"]);
    check("[http]\nlisten = 'here'", &[], &["http.listen: ", "socket address"]);
    check(
        "[http]\nwait_max = '2h'",
        &[],
        &["walcast.toml: http.wait_max: 2h is out of range", "from 1s to 1h"],
    );
    check("[http]\nwait_default = '6m'", &[], &["http.wait_default: 6m is out of range", "to 5m"]);
    check(
        "[http]\nlisten = '0.0.0.0:1'",
        &[],
        &["http.listen: 0.0.0.0:1", "nobody is asked", "[[key]]", "http.insecure = true"],
    );
    check("[admin]\nlisten = '[::]:1'", &[], &["admin.listen: [::]:1", "http.insecure = true"]);
    check("[history]\nbytes = '1GB'", &[], &["history.bytes: ", "\"1GB\"", "1GiB"]);
    check("[history]\nbytes = 1", &[], &["history.bytes: 1 is out of range"]);
    check("[source]\ndelivery = 'slow'", &[], &["source.delivery: ", "`visible`"]);
    check("[node]\nname = ''", &[], &["node.name: ", "128 characters"]);
    check("[source]\nslot = 'Wal-cast'", &[], &["source.slot: ", "lower-case"]);
    check("[log]\nlevel = 'loud!'", &[], &["log.level: ", "info"]);
    check("[[table]]\nname = 'public.vms'", &[], &["table", "missing field `topic`", "add it"]);
    check("[[table]]\nname='a.b'\ntopic='x'\nwen='1'", &[], &["line 4: table", "unknown field `wen`"]);
    check("[http\n", &[], &["walcast.toml, line 1: "]);
    check("[postgres]\nurl = postgres://me:swordfish@db", &[], &["walcast.toml, line 2: "]);
    check("[postgres]\nurl = ['postgres://me:swordfish@db']", &[], &["postgres.url: "]);
    check("", &[("WALCAST_HTTP__WAIT_MX", "5m")], &["WALCAST_HTTP__WAIT_MX: http.wait_mx: unknown field"]);
    check("", &[("WALCAST_HTTP__WAIT_MAX", "2h")], &["WALCAST_HTTP__WAIT_MAX: http.wait_max: 2h is out of"]);
    check("", &[("WALCAST_HTTP__CONNECTIONS_MAX", "many")], &["WALCAST_HTTP__CONNECTIONS_MAX: ", "\"many\""]);
    check("", &[("WALCAST_TABLE__NAME", "x")], &["WALCAST_TABLE__NAME: table.name: "]);
    check("[[table]]\nname='a.b'\ntopic='x'", &[("WALCAST_TABLE__NAME", "x")], &["in the file only"]);
    check("", &[("WALCAST_HTTP_LISTEN", "x")], &["WALCAST_HTTP_LISTEN: ", "write WALCAST_HTTP__LISTEN"]);
    check("", &[("WALCAST_A__B__C", "x")], &["WALCAST_A__B__C: a.b.c: ", "section.key"]);
}

#[test]
fn a_named_file_must_exist() {
    let error = Loader::new(Some("/nonexistent/walcast.toml".into())).load().unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/walcast.toml: cannot be read: "), "{error}");
}

#[test]
fn what_a_restart_is_needed_for_is_named() {
    let read = |text: &str| {
        let file = TempFile::new(text);
        Loader::new(Some(file.0.clone())).flag("--log-level", "log.level", "warn").load_all().unwrap()
    };
    let rule = "[[table]]\nname = 'a.b'\ntopic = 'x'\n";
    let before = read("http.wait_max = '1m'\n[history]\nage = '5m'");
    let check = |text: &str, expected: &[&str]| assert_eq!(read(text).changed_since(&before), expected);
    check("http.wait_max = '1m'\n[history]\nage = '5m'", &[]);
    check(&format!("http.wait_max = '1m'\nhistory.age = '5m'\n{rule}"), &[]);
    check("http.wait_max = '2m'\n[source]\nslot = 'x'", &["history.age", "http.wait_max", "source.slot"]);
    let endpoint = "http.wait_max = '1m'\n[history]\nage = '5m'\n[[endpoint]]\npath = '/a'\ntopic = 'a'";
    check(endpoint, &["[[endpoint]]"]);
    // A flag goes before the file, so what the file says of its key changes nothing.
    check("http.wait_max = '1m'\n[history]\nage = '5m'\n[log]\nlevel = 'debug'", &[]);
}

#[test]
fn an_endpoint_that_cannot_be_used_is_told_with_all_else() {
    let file = TempFile::new("[[endpoint]]\npath = '/a'\ntopic = 'a/{body.b}'\nready = 'data.x =='");
    let error = Loader::new(Some(file.0.clone())).load().unwrap_err().to_string();
    let parts = ["[[endpoint]] POST \"/a\", key `ready`: no CEL expression", "write for example"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}

// ---- the document ------------------------------------------------------------------------------------

fn document() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md")).unwrap()
}

/// The cells between backticks, of each table row that begins with a key.
fn rows() -> Vec<(String, Vec<String>)> {
    let text = document();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(cells);
    rows.map(|cells: Vec<String>| (cells[0].trim_matches('`').to_owned(), cells)).collect()
}

/// Sections that may stand several times; in the file only.
const LISTS: &[&str] = &["table", "endpoint", "role", "key"];

/// The names that a section takes, asked of the section itself by a name that it cannot know.
fn names(probe: &str) -> Vec<String> {
    let table: Table = probe.parse().unwrap();
    let (_, cause) = parse(&table).unwrap_err();
    let expected = cause.split_once("expected ").unwrap().1;
    let names: Vec<String> = expected.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    assert!(!names.is_empty(), "{cause}");
    names
}

#[test]
fn every_key_is_documented_and_every_documented_key_exists() {
    let mut keys = BTreeSet::new();
    for section in names("probe = 1") {
        let probe = if LISTS.contains(&section.as_str()) {
            &format!("[[{section}]]\nprobe = 1")
        } else {
            &format!("[{section}]\nprobe = 1")
        };
        keys.extend(names(probe).into_iter().map(|key| format!("{section}.{key}")));
    }
    let documented: BTreeSet<String> = rows().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, documented);
}

#[test]
fn documented_defaults_and_variables_are_true() {
    let default = format!("{:#?}", Config::default());
    let mut checked = 0;
    for (key, cells) in rows() {
        let (section, name) = key.split_once('.').unwrap();
        if LISTS.contains(&section) {
            continue;
        }
        let variable = format!("`WALCAST_{}__{}`", section.to_uppercase(), name.to_uppercase());
        assert_eq!(cells[2], variable, "{key}");
        if cells[1] != "–" {
            let value = cells[1].trim_matches('`');
            let config = load(&format!("[{section}]\n{name} = {value}"), &[], &[]).unwrap();
            assert_eq!(format!("{config:#?}"), default, "{key}");
            let variable = variable.trim_matches('`');
            let config = load("", &[(variable, value.trim_matches('"'))], &[]).unwrap();
            assert_eq!(format!("{config:#?}"), default, "{variable}");
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} defaults found");
}

#[test]
fn examples_in_the_document_load() {
    let text = document();
    let examples: Vec<&str> =
        text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 4);
    for example in examples {
        load(example, &[], &[]).unwrap();
    }
}
