//! The rules of the house, checked on the text of the repository: layers, module heads, file lengths, words
//! that must not land, names of metrics, links between documents.
//!
//! It reads text, not types: a path that a macro builds is not seen. Each rule is a pure function from text
//! to complaints, tried below on text that breaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules of the broker crate by layer. A module imports from layers below its own, and from its own layer
/// only where [`edges`] are not concerned.
const LAYERS: &[(u8, &[&str])] = &[
    (
        1,
        &[
            "event",
            "value",
            "units",
            "expression",
            "template",
            "telemetry",
            "health",
            "facts",
            "postgres",
            "listen",
            "sabotage",
        ],
    ),
    (2, &["router", "endpoint", "auth", "hub"]),
    (EDGES, &["source", "backbone", "transport", "admin"]),
    (4, &["pipeline"]),
    (TOP, &["config", "node", "cli", "throwaway", "main", "lib"]),
];
/// Each of these faces one outside world, and none knows another.
const EDGES: u8 = 3;
/// Where everything may be imported, and what nothing below may import.
const TOP: u8 = 5;

/// What a layer up to this one must not name: sockets, files and SQL stay outside the core.
const CORE: u8 = 2;
const CORE_BANS: &[&str] =
    &["std::fs", "std::process", "tokio::net", "tokio::fs", "tokio_postgres", "axum", "hyper"];
/// Layer 1 modules that talk to the outside by purpose.
const CORE_EXEMPT: &[&str] = &["postgres", "telemetry", "listen"];

/// Tells the server the time, as its protocol asks for, and nobody reads it.
const CLOCK_EXEMPT: &[&str] = &["source/wal/replication/task.rs"];

const LINES_MAX: usize = 600;
const LINES_MEDIAN_MAX: usize = 220;
const DOCUMENT_LINES_MAX: &[(&str, usize)] = &[("README.md", 150), ("ARCHITECTURE.md", 200)];

fn layer(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(_, modules)| modules.contains(&module)).map(|(layer, _)| *layer)
}

// ---- rules -------------------------------------------------------------------------------------------

/// Imports that the layer table forbids. `file` is relative to the crate's `src`.
fn imports(file: &str, text: &str) -> Vec<String> {
    let parts: Vec<&str> = file.trim_end_matches(".rs").trim_end_matches("/mod").split('/').collect();
    let module = parts[0];
    let Some(own) = layer(module) else {
        return vec![format!("module `{module}` has no layer: give it one in tests/tidy.rs")];
    };
    let mut complaints = BTreeSet::new();
    for path in paths(&without_tests(&code(text))) {
        let mut names: Vec<&str> = path.split("::").collect();
        let climbs = names.iter().take_while(|name| **name == "super").count();
        if climbs == parts.len() && module != "lib" && module != "main" {
            names.drain(..climbs);
            names.insert(0, "crate");
        }
        if names[0] == "walcast_client" && module != "cli" {
            complaints.insert(format!("`{path}`: only cli uses the client"));
        }
        let ban = CORE_BANS.iter().find(|ban| path == **ban || path.starts_with(&format!("{ban}::")));
        if own <= CORE && !CORE_EXEMPT.contains(&module) && ban.is_some() {
            complaints.insert(format!("`{path}`: the core opens no sockets or files and speaks no SQL"));
        }
        let (Some(&"crate"), Some(&target)) = (names.first(), names.get(1)) else { continue };
        // Anything of the crate root that is no module of the table belongs to lib.rs.
        let other = layer(target).unwrap_or(TOP);
        if target != module && (other > own || own == EDGES && other == EDGES) {
            complaints.insert(format!("`{path}`: {module} (layer {own}) imports {target} (layer {other})"));
        }
    }
    complaints.into_iter().collect()
}

/// A module says first what it is for.
fn head(text: &str) -> Vec<String> {
    let head = text.lines().next().unwrap_or_default();
    let complaint = "starts without `//!`: what it is, why, what it must never do";
    if head.starts_with("//! ") { vec![] } else { vec![complaint.to_owned()] }
}

/// Words that mark unfinished work. Spelled in halves, so that this file passes.
fn words(text: &str) -> Vec<String> {
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("#[ig", "nore"),
    ];
    words.iter().filter(|word| text.contains(*word)).map(|word| format!("holds `{word}`")).collect()
}

/// Literal metric names where only constants of `telemetry` are allowed.
fn metrics_used(file: &str, text: &str) -> Vec<String> {
    let code = without_tests(&code(text));
    let literal = ["counter!", "gauge!", "histogram!"].iter().any(|macro_name| {
        code.match_indices(macro_name).any(|(at, _)| {
            code[at + macro_name.len()..].trim_start_matches(['(', ' ', '\n']).starts_with('"')
        })
    });
    if literal && file != "telemetry.rs" {
        vec!["names a metric by a literal: declare it once in telemetry.rs".to_owned()]
    } else {
        vec![]
    }
}

/// What orders, waits or expires by a clock that can be set. Times of day are for people, and come from Postgres.
fn clocks(file: &str, text: &str) -> Vec<String> {
    let timeless = ["hub", "pipeline", "source", "backbone"];
    let module = file.trim_end_matches(".rs").split('/').next().unwrap_or_default();
    let code = without_tests(&code(text));
    let named = tokens(&code).iter().any(|token| ["SystemTime", "UNIX_EPOCH"].contains(token));
    if timeless.contains(&module) && named && !CLOCK_EXEMPT.contains(&file) {
        vec!["names the clock of the day, which may be set: use `Instant`".to_owned()]
    } else {
        vec![]
    }
}

/// Metric names declared in `telemetry`: twice, or unknown to the document that lists them.
fn metrics_declared(telemetry: &str, document: Option<&str>) -> Vec<String> {
    let mut seen = BTreeMap::new();
    for name in telemetry.split('"').filter(|name| is_metric(name)) {
        *seen.entry(name).or_insert(0) += 1;
    }
    let twice =
        seen.iter().filter(|(_, count)| **count > 1).map(|(name, _)| format!("`{name}` declared twice"));
    let silent = seen
        .keys()
        .filter(|name| document.is_some_and(|text| !text.contains(&format!("`{name}`"))))
        .map(|name| format!("`{name}` is not documented"));
    twice.chain(silent).collect()
}

fn is_metric(text: &str) -> bool {
    text.len() > "walcast_".len()
        && text.starts_with("walcast_")
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Links of a Markdown document that lead to a file which `exists` denies.
fn links(text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut fenced = false;
    let mut complaints = Vec::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        for link in line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()) {
            let file = link.split('#').next().unwrap_or_default();
            if !fenced && !file.is_empty() && !file.contains(':') && !exists(file) {
                complaints.push(format!("`{link}` leads nowhere"));
            }
        }
    }
    complaints
}

// ---- reading Rust ------------------------------------------------------------------------------------

/// The text without comments, and with empty string and character literals.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let behind = &rest[next.len_utf8()..];
        let hashes = behind.bytes().take_while(|byte| *byte == b'#').count();
        let ident_before = out.ends_with(|last: char| last.is_alphanumeric() || last == '_');
        let taken = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if next == 'r' && !ident_before && behind[hashes..].starts_with('"') {
            out.push_str("\"\"");
            let end = format!("\"{}", "#".repeat(hashes));
            rest[2 + hashes..].find(&end).map_or(rest.len(), |at| 2 + hashes + at + end.len())
        } else if next == '"' {
            out.push_str("\"\"");
            literal_len(rest, '"')
        } else if next == '\'' && (behind.starts_with('\\') || rest.chars().nth(2) == Some('\'')) {
            out.push_str("''");
            literal_len(rest, '\'')
        } else {
            out.push(next);
            next.len_utf8()
        };
        rest = &rest[taken..];
    }
    out
}

fn literal_len(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, next) in text.char_indices().skip(1) {
        if next == quote && !escaped {
            return at + 1;
        }
        escaped = next == '\\' && !escaped;
    }
    text.len()
}

/// The code without its `#[cfg(test)]` modules; relies on rustfmt's closing brace at the line's start.
fn without_tests(code: &str) -> String {
    let mut lines = code.lines();
    let mut out = String::new();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]" {
            let head = lines.next().unwrap_or_default();
            if head.ends_with('{') {
                lines.by_ref().find(|line| *line == "}");
            }
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Every path of the code, with the braces of `use` multiplied out.
fn paths(code: &str) -> Vec<String> {
    let tokens = tokens(code);
    let mut out = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        at = path(&tokens, at, "", &mut out).max(at + 1);
    }
    out
}

/// Reads one path behind `prefix`; returns the index behind it.
fn path(tokens: &[&str], mut at: usize, prefix: &str, out: &mut Vec<String>) -> usize {
    let mut name = prefix.to_owned();
    loop {
        match tokens.get(at) {
            Some(&"{") if !name.is_empty() => {
                at += 1;
                while at < tokens.len() && tokens[at] != "}" {
                    at = path(tokens, at, &name, out).max(at + 1);
                }
                return at + 1;
            }
            Some(token) if token.starts_with(|first: char| first.is_alphabetic() || first == '_') => {
                name = if name.is_empty() { (*token).to_owned() } else { format!("{name}::{token}") };
                at += 1;
            }
            _ => break,
        }
        if tokens.get(at) != Some(&"::") {
            break;
        }
        at += 1;
    }
    if name != prefix {
        out.push(name);
    }
    at
}

/// Identifiers, `::` and single other characters.
fn tokens(code: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let ident = rest.find(|next: char| !next.is_alphanumeric() && next != '_').unwrap_or(rest.len());
        let taken = if rest.starts_with("::") { 2 } else { ident.max(first.len_utf8()) };
        out.push(&rest[..taken]);
        rest = rest[taken..].trim_start();
    }
    out
}

// ---- the repository ----------------------------------------------------------------------------------

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

/// Files with this extension, relative to the root, with their text.
fn files(extension: &str) -> Vec<(String, String)> {
    fn walk(directory: &Path, extension: &str, out: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("readable").map(|entry| entry.expect("readable")) {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                walk(&path, extension, out);
            } else if path.extension().is_some_and(|found| found == extension) {
                out.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), extension, &mut found);
    assert!(!found.is_empty(), "no .{extension} below {}", root().display());
    let relative =
        |path: &Path| path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
    found.iter().map(|path| (relative(path), fs::read_to_string(path).expect("UTF-8"))).collect()
}

/// Fails with every complaint of `rule` over `files`.
fn hold(files: &[(String, String)], rule: impl Fn(&str, &str) -> Vec<String>) {
    let complaints: Vec<String> = files
        .iter()
        .flat_map(|(file, text)| {
            rule(file, text).into_iter().map(move |complaint| format!("{file}: {complaint}"))
        })
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn layers_hold() {
    hold(&files("rs"), |file, text| match file.strip_prefix("broker/src/") {
        Some(file) if !file.ends_with("/tests.rs") => imports(file, text),
        _ => vec![],
    });
}

#[test]
fn the_wire_crate_depends_on_serde_only() {
    let dependencies = |file: &str| {
        let text = fs::read_to_string(root().join(file)).expect(file);
        let manifest: toml::Table = text.parse().expect(file);
        manifest["dependencies"].as_table().expect(file).keys().cloned().collect::<Vec<String>>()
    };
    assert_eq!(dependencies("client-sdk/wire/Cargo.toml"), ["serde"]);
    assert!(
        !dependencies("client-sdk/Cargo.toml").contains(&"walcast".to_owned()),
        "the client knows no broker"
    );
}

#[test]
fn every_file_has_a_head_and_no_unfinished_work() {
    hold(&files("rs"), |_, text| [head(text), words(text)].concat());
}

#[test]
fn files_stay_short() {
    let sources = files("rs");
    hold(&sources, |_, text| match text.lines().count() {
        lines if lines > LINES_MAX => vec![format!("{lines} lines, at most {LINES_MAX}: one idea per file")],
        _ => vec![],
    });
    let mut lengths: Vec<usize> = sources
        .iter()
        .filter(|(file, _)| file.starts_with("broker/src/"))
        .map(|(_, text)| without_tests(text).lines().count())
        .collect();
    lengths.sort_unstable();
    let median = lengths[lengths.len() / 2];
    assert!(median <= LINES_MEDIAN_MAX, "half of the files have over {LINES_MEDIAN_MAX} lines: {median}");
}

#[test]
fn documents_stay_short_and_their_links_lead_somewhere() {
    hold(&files("md"), |file, text| {
        let directory = root().join(file).parent().expect("a file has a directory").to_owned();
        let mut complaints = links(text, |link| directory.join(link).exists());
        let limit = DOCUMENT_LINES_MAX.iter().find(|(name, _)| *name == file);
        if let Some((_, limit)) = limit.filter(|(_, limit)| text.lines().count() > *limit) {
            complaints.push(format!("over {limit} lines"));
        }
        complaints
    });
}

#[test]
fn metrics_are_declared_once_and_documented() {
    let document = fs::read_to_string(root().join("docs/metrics.md")).ok();
    hold(&files("rs"), |file, text| match file.strip_prefix("broker/src/") {
        Some("telemetry.rs") => metrics_declared(text, document.as_deref()),
        Some(file) => metrics_used(file, text),
        None => vec![],
    });
}

#[test]
fn nothing_goes_by_a_clock_that_can_be_set() {
    hold(&files("rs"), |file, text| match file.strip_prefix("broker/src/") {
        Some(file) if !file.contains("/tests") => clocks(file, text),
        _ => vec![],
    });
}

// ---- the rules, broken -------------------------------------------------------------------------------

#[test]
fn forbidden_imports_are_seen() {
    let check = |file: &str, text: &str, expected: usize| {
        let complaints = imports(file, text);
        assert_eq!(complaints.len(), expected, "{file}: {text}\n{complaints:?}");
    };
    check("hub/mod.rs", "use crate::event::Batch;", 0);
    check("hub/mod.rs", "use crate::hub::history::History;", 0);
    check("hub/mod.rs", "use crate::source::Source;", 1);
    check("hub/mod.rs", "use crate::{event::{Batch, Event}, source::{self, Source}, transport};", 3);
    check("hub/mod.rs", "use super::transport::Session;", 1);
    check("hub/history.rs", "use super::transport::Session;", 0);
    check("hub/history.rs", "use super::super::transport::Session;", 1);
    check("hub/mod.rs", "fn f() -> crate::node::Node { crate::run() }", 2);
    check("hub/mod.rs", "use tokio::{net::TcpStream, sync::Notify};", 1);
    check(
        "hub/mod.rs",
        "//! [`crate::source::Source`]\nconst A: &str = \"crate::source\"; // crate::node",
        0,
    );
    check("hub/mod.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::source::X;\n}\n", 0);
    check("hub/mod.rs", "#[cfg(test)]\nmod tests {\n}\nuse crate::source::X;\n", 1);
    check("event.rs", "use crate::hub::Hub;", 1);
    check("postgres.rs", "use tokio_postgres::Client;", 0);
    check("transport/sse.rs", "use crate::hub::Hub;\nuse crate::transport::driver;", 0);
    check("transport/sse.rs", "use crate::backbone::Backbone;", 1);
    check("transport/sse.rs", "use walcast_client::Client;", 1);
    check("pipeline.rs", "use crate::{source::Source, backbone::Backbone, hub::Hub};", 0);
    check("pipeline.rs", "use crate::config::Config;", 1);
    check("node.rs", "use crate::{config::Config, pipeline, source::wal};", 0);
    check("cli/tail.rs", "use walcast_client::Client;", 0);
    check("gadget.rs", "", 1);
}

#[test]
fn missing_heads_and_unfinished_words_are_seen() {
    assert_eq!(head("//! What.\n"), Vec::<String>::new());
    assert_eq!(head("use std::fmt;\n//! What.").len(), 1);
    assert_eq!(words("all done"), Vec::<String>::new());
    assert_eq!(words(concat!("// TO", "DO later\n#[ig", "nore]")).len(), 2);
}

#[test]
fn stray_metrics_are_seen() {
    assert_eq!(metrics_used("hub/mod.rs", "counter!(telemetry::EVENTS).increment(1)"), Vec::<String>::new());
    assert_eq!(metrics_used("hub/mod.rs", "counter!(\n    \"walcast_x\").increment(1)").len(), 1);
    let twice = "const A: &str = \"walcast_a\";\nconst B: &str = \"walcast_a\";";
    assert_eq!(metrics_declared(twice, None).len(), 1);
    assert_eq!(
        metrics_declared("const A: &str = \"walcast_a\";", Some("`walcast_a`: …")),
        Vec::<String>::new()
    );
    assert_eq!(metrics_declared("const A: &str = \"walcast_a\";", Some("`walcast_ab`")).len(), 1);
}

#[test]
fn clocks_that_can_be_set_are_seen() {
    let check = |file: &str, text: &str, expected: usize| {
        assert_eq!(clocks(file, text).len(), expected, "{file}: {text}");
    };
    let now = "fn f() { std::time::SystemTime::now() }";
    for file in ["hub/mod.rs", "pipeline.rs", "source/wal/floor.rs", "backbone/local.rs"] {
        check(file, now, 1);
    }
    check("hub/history.rs", "use std::time::{Duration, UNIX_EPOCH};", 1);
    check("hub/mod.rs", "use std::time::Instant; // no SystemTime", 0);
    check("hub/mod.rs", "#[cfg(test)]\nmod tests {\n    use std::time::SystemTime;\n}\n", 0);
    check("telemetry.rs", now, 0);
    check("source/wal/replication/task.rs", now, 0);
}

#[test]
fn dead_links_are_seen() {
    let exists = |file: &str| file == "docs/there.md";
    let check = |text: &str, expected: usize| assert_eq!(links(text, exists).len(), expected, "{text}");
    check("[a](docs/there.md) [b](docs/there.md#part) [c](https://example.org/x) [d](#part)", 0);
    check("see [a](docs/gone.md)", 1);
    check("```\n[a](docs/gone.md)\n```", 0);
}

#[test]
fn literals_and_comments_are_not_code() {
    let check = |text: &str, expected: &str| assert_eq!(code(text), expected);
    check("a // b\nc", "a \nc");
    check("a /* b */ c", "a  c");
    check(r#"f("a\"b", 'x', '\'', &'a str)"#, r#"f("", '', '', &'a str)"#);
    check("r#\"a\"b\"# + r\"c\"", "\"\" + \"\"");
    check("for x in r", "for x in r");
    check("é + '…'", "é + ''");
}
