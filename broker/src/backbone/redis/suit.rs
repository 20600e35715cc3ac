//! Whether a Redis can be trusted with the log: it must know what is asked of it, and drop nothing by itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::{FromRedisValue, RedisResult};

use super::RedisError;
use super::dial::Connection;
use super::link::ANSWER_MAX;

/// From here on a stream can be trimmed by its ids.
const VERSION_MIN: (u32, u32) = (6, 2);
const POLICY: &str = "maxmemory-policy";

/// Looks once at each connection. `warned` keeps what cannot be known from being said again.
pub(super) async fn examine(connection: &Connection, warned: &AtomicBool) -> Result<(), RedisError> {
    let server_at = &connection.server;
    let at = &*server_at.host.to_string();
    let server: String = ask(connection, redis::cmd("INFO").arg("server"))
        .await
        .map_err(|error| RedisError::of(server_at, &error))?;
    judge_version(at, info(&server, "redis_version"))?;
    // A managed service may not let CONFIG be asked, and says the same elsewhere.
    let config: RedisResult<HashMap<String, String>> =
        ask(connection, redis::cmd("CONFIG").arg("GET").arg(POLICY)).await;
    let policy = match config {
        Ok(found) => found.get(POLICY).cloned(),
        Err(error) if error.code().is_some() => None,
        Err(error) => return Err(RedisError::of(server_at, &error)),
    };
    let policy = match policy {
        Some(policy) => Some(policy),
        None => {
            let memory: String = ask(connection, redis::cmd("INFO").arg("memory"))
                .await
                .map_err(|error| RedisError::of(server_at, &error))?;
            info(&memory, "maxmemory_policy").map(str::to_owned)
        }
    };
    match policy {
        Some(policy) => judge_policy(at, &policy),
        None => {
            if !warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    redis = at,
                    "Redis does not tell its maxmemory-policy: see that it is noeviction, or keys may be dropped"
                );
            }
            Ok(())
        }
    }
}

async fn ask<T: FromRedisValue>(connection: &Connection, command: &redis::Cmd) -> RedisResult<T> {
    let mut commands = connection.commands.clone();
    commands.set_response_timeout(ANSWER_MAX);
    command.query_async(&mut commands).await
}

/// A line `key:value`.
fn info<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

fn judge_version(at: &str, version: Option<&str>) -> Result<(), RedisError> {
    let mut numbers = version.unwrap_or_default().split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found >= VERSION_MIN {
        return Ok(());
    }
    let version = version.unwrap_or("an unknown version");
    Err(RedisError::Unsuitable(format!("Redis at {at} is {version}: the log needs version 6.2 or newer")))
}

fn judge_policy(at: &str, policy: &str) -> Result<(), RedisError> {
    if policy == "noeviction" {
        return Ok(());
    }
    Err(RedisError::Unsuitable(format!(
        "Redis at {at} drops keys when its memory is used up (maxmemory-policy {policy}): set it to noeviction, or \
         give the broker a Redis of its own"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let check = |version: Option<&str>, expected: bool| {
            assert_eq!(judge_version("h:1", version).is_ok(), expected, "{version:?}");
        };
        check(Some("6.2.0"), true);
        check(Some("7.0.15"), true);
        check(Some("10.1"), true);
        check(Some("6.0.16"), false);
        check(Some("5"), false);
        check(Some("x"), false);
        check(None, false);
    }

    #[test]
    fn only_a_redis_that_keeps_its_keys_will_do() {
        judge_policy("h:1", "noeviction").unwrap();
        let error = judge_policy("h:1", "allkeys-lru").unwrap_err().to_string();
        assert!(
            error.contains("h:1") && error.contains("allkeys-lru") && error.contains("noeviction"),
            "{error}"
        );
    }

    #[test]
    fn lines_of_info() {
        let text = "# Memory\r\nused_memory:1\r\nmaxmemory_policy:noeviction\r\n";
        assert_eq!(info(text, "maxmemory_policy"), Some("noeviction"));
        assert_eq!(info(text, "maxmemory"), None);
    }
}
