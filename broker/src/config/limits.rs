//! What no type can say of a value: its range, and how it agrees with others.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::Duration;

use super::Config;
use crate::auth;
use crate::node::Role;
use crate::units::{KIB, MIB};

/// A value that cannot be used.
pub(super) struct Broken {
    pub(super) key: &'static str,
    pub(super) cause: String,
    pub(super) remedy: String,
}

/// The first value out of range.
pub(super) fn check(config: &Config) -> Result<(), Broken> {
    let (http, history) = (&config.http, &config.history);
    connection_string(config)?;
    time("postgres.connect_timeout", config.postgres.connect_timeout, "100ms", "10m")?;
    name("source.slot", &config.source.slot)?;
    identifier("source.publication", &config.source.publication)?;
    time("source.lease", config.source.lease, "1s", "5m")?;
    size("source.seed_bytes_per_second", config.source.seed_bytes_per_second, KIB, u64::MAX)?;
    redis(config)?;
    node_name(config)?;
    size("history.asked_bytes", history.asked_bytes, MIB, u64::MAX)?;
    size("replay.wal_bytes", config.replay.wal_bytes, 0, u64::MAX)?;
    size("router.event_bytes_max", config.router.event_bytes_max, KIB, 64 * MIB)?;
    time("source.poll_max", config.source.poll_max, "2ms", "1s")?;
    size("pipeline.atomic_events_max", config.pipeline.atomic_events_max, 1, 1_000_000)?;
    size("pipeline.atomic_bytes_max", config.pipeline.atomic_bytes_max, KIB, 1024 * MIB)?;
    size("pipeline.batch_events_max", config.pipeline.batch_events_max, 1, 1_000_000)?;
    time("history.age", history.age, "1s", "30days")?;
    size("history.bytes", history.bytes, config.router.event_bytes_max as u64, u64::MAX)?;
    size("history.events", history.events, 1, u64::MAX)?;
    size("history.state_bytes", history.state_bytes, MIB, u64::MAX)?;
    size("history.subscriptions_max", history.subscriptions_max, 1, 10_000_000)?;
    size("history.topics_max", history.topics_max, 1, 100_000)?;
    size("http.connections_max", http.connections_max, 1, 10_000_000)?;
    size("http.topics_max", http.topics_max, 1, 100_000)?;
    time("http.wait_max", http.wait_max, "1s", "1h")?;
    time(
        "http.wait_default",
        http.wait_default,
        "0s",
        &humantime::format_duration(http.wait_max).to_string(),
    )?;
    time("http.heartbeat", http.heartbeat, "1s", "10m")?;
    time("http.pong_timeout", http.pong_timeout, "1s", "10m")?;
    time("http.head_timeout", http.head_timeout, "1s", "10m")?;
    time("http.write_timeout", http.write_timeout, "1s", "10m")?;
    size("http.state_answer_bytes_max", http.state_answer_bytes_max, KIB, 1024 * MIB)?;
    size("http.body_bytes_max", http.body_bytes_max, KIB, 64 * MIB)?;
    browsers(&config.auth)?;
    reachable("http.listen", http.listen, config)?;
    reachable("admin.listen", config.admin.listen, config)?;
    config.log.filter().map(drop).map_err(|cause| Broken {
        key: "log.level",
        cause,
        remedy: "write error, warn, info, debug, trace, or such as \"info,walcast::source=debug\"".into(),
    })
}

/// Other brokers are reached by Redis alone.
fn redis(config: &Config) -> Result<(), Broken> {
    if config.redis.url.is_none() && config.node.role != Role::Any {
        return Err(Broken {
            key: "node.role",
            cause: "a broker that does one thing alone needs others for the rest".into(),
            remedy: "set redis.url to the Redis where they meet, or leave the role out".into(),
        });
    }
    config.redis.check().map_err(|error| Broken {
        key: "redis.url",
        cause: error.to_string(),
        remedy: "docs/configuration.md has all forms".into(),
    })
}

/// It is for people, in answers.
fn node_name(config: &Config) -> Result<(), Broken> {
    let fits = |name: &str| (1..=128).contains(&name.chars().count()) && !name.contains(char::is_control);
    match &config.node.name {
        Some(name) if !fits(name) => {
            Err(unusable("node.name", name, "1 to 128 characters, none of them control characters"))
        }
        _ => Ok(()),
    }
}

/// Only how it is written: what it leaves out may come from elsewhere.
fn connection_string(config: &Config) -> Result<(), Broken> {
    if config.postgres.url.is_none() {
        return Ok(());
    }
    let target = config.postgres.target(|name| (name == "PGUSER").then(|| "anybody".to_owned()));
    target.map(drop).map_err(|error| Broken {
        key: "postgres.url",
        cause: error.to_string(),
        remedy: "write it as libpq does, such as postgresql://user@host/database".into(),
    })
}

fn range<T: PartialOrd>(
    key: &'static str,
    value: &T,
    (low, high): (&T, &T),
    show: impl Fn(&T) -> String,
) -> Result<(), Broken> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(Broken {
        key,
        cause: format!("{} is out of range", show(value)),
        remedy: format!("choose a value from {} to {}", show(low), show(high)),
    })
}

/// Bytes or a count, whatever integer holds it.
fn size(key: &'static str, value: impl TryInto<u64>, low: u64, high: u64) -> Result<(), Broken> {
    range(key, &value.try_into().unwrap_or(u64::MAX), (&low, &high), ToString::to_string)
}

fn time(key: &'static str, value: Duration, low: &str, high: &str) -> Result<(), Broken> {
    let limit = |text| humantime::parse_duration(text).unwrap_or_default();
    range(key, &value, (&limit(low), &limit(high)), |time| humantime::format_duration(*time).to_string())
}

/// Slot names have their own alphabet; ours leave room for what the copies' names append.
fn name(key: &'static str, value: &str) -> Result<(), Broken> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=40).contains(&value.len()) && value.bytes().all(allowed) {
        return Ok(());
    }
    Err(unusable(key, value, "1 to 40 lower-case letters, digits and underscores"))
}

fn identifier(key: &'static str, value: &str) -> Result<(), Broken> {
    if (1..=63).contains(&value.len()) && !value.contains(char::is_control) {
        return Ok(());
    }
    Err(unusable(key, value, "1 to 63 bytes without control characters"))
}

fn unusable(key: &'static str, value: impl Display, expected: &str) -> Broken {
    Broken { key, cause: format!("`{value}` is no usable name"), remedy: format!("choose {expected}") }
}

/// What could never match is a mistake.
fn browsers(auth: &auth::Config) -> Result<(), Broken> {
    let token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if auth.cookie.is_empty() || !auth.cookie.chars().all(token) {
        return Err(unusable("auth.cookie", &auth.cookie, "letters, digits, `_`, `-` and `.`"));
    }
    let origin = |text: &str| {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
        !host.is_empty() && !host.contains(['/', '?', '#', '@', '*', ' '])
    };
    match auth.origins.iter().find(|text| !origin(text)) {
        None => Ok(()),
        Some(text) => Err(Broken {
            key: "auth.origins",
            cause: format!("`{text}` is no origin"),
            remedy: "write scheme and host, such as https://app.example, without a path or a final slash"
                .into(),
        }),
    }
}

/// Beyond loopback strangers come, and tokens go over a network.
fn reachable(key: &'static str, address: SocketAddr, config: &Config) -> Result<(), Broken> {
    let http = &config.http;
    if address.ip().is_loopback() || http.insecure {
        return Ok(());
    }
    let (cause, remedy) = match (!config.asks(), config.tls.certificate.is_some() || http.behind_tls_proxy) {
        (false, true) => return Ok(()),
        (true, _) => ("nobody is asked who they are", "add a [[key]] (`walcast token` makes one)"),
        (false, false) => (
            "tokens would go there as they are",
            "set tls.certificate and tls.key, or http.behind_tls_proxy = true where a proxy encrypts",
        ),
    };
    Err(Broken {
        key,
        cause: format!("{address} is reachable from other machines, and {cause}"),
        remedy: format!(
            "{remedy}; or listen on 127.0.0.1; or, where nobody else can be, set http.insecure = true"
        ),
    })
}
