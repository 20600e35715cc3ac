//! Which server holds the log: the one that the URL names, the master that a sentinel knows, or the member of a cluster
//! that the others point to.
//!
//! Where a URL names several hosts, one that is silent must not keep the next from being asked: there is a pause
//! before that, and no longer one. It never decides who is master, and keeps nothing of what it learned: the next
//! connection asks anew.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::RedisConnectionInfo;
use redis::aio::MultiplexedConnection;
use tokio::time::timeout;

use super::RedisError;
use super::dial::{Connection, Kind, Server, dial};
use super::target::{Host, Target, Way};

/// How long it may take to reach the only host there is.
const ALONE_MAX: Duration = Duration::from_secs(5);
/// The same for one of several, and for what it is asked.
const HOST_MAX: Duration = Duration::from_secs(2);
/// How long all of it may take.
const FIND_MAX: Duration = Duration::from_secs(10);
/// Before the next host is asked beside one that has not answered. Some callers give up after a second.
const PAUSE: Duration = Duration::from_millis(200);
/// How often a cluster may point elsewhere.
const HOPS_MAX: usize = 5;

/// Connects to the server that holds this key.
pub(super) async fn find(target: &Target, key: &str) -> Result<Connection, RedisError> {
    let late = |_| {
        let within = FIND_MAX.as_secs();
        RedisError::Away(format!("no server of Redis was found within {within} s; it is tried again"))
    };
    timeout(FIND_MAX, first(target, key)).await.map_err(late)?
}

/// The first host that leads to it, in their order from any of them on: one sentinel alone may be cut off with a master of
/// before, and must not be believed each time. What an operator has to correct is told before what may go by itself.
async fn first(target: &Target, key: &str) -> Result<Connection, RedisError> {
    let (before, from) = target.hosts.split_at(rand::random_range(0..target.hosts.len().max(1)));
    let hosts: Vec<&Host> = from.iter().chain(before).collect();
    let mut others = hosts.into_iter();
    let mut asked = FuturesUnordered::new();
    let mut failed = None;
    loop {
        asked.extend(others.next().map(|host| through(target, host, key)));
        let pause = if others.len() > 0 { PAUSE } else { Duration::MAX };
        match timeout(pause, asked.next()).await {
            Ok(Some(Ok(connection))) => return Ok(connection),
            Ok(Some(Err(error))) => {
                if !matches!(failed, Some(RedisError::Unsuitable(_))) {
                    failed = Some(error);
                }
            }
            Ok(None) => return Err(failed.unwrap_or_else(|| RedisError::fault("a URL without a host"))),
            Err(_) => {}
        }
    }
}

async fn through(target: &Target, host: &Host, key: &str) -> Result<Connection, RedisError> {
    match &target.way {
        Way::Alone => dial(whole(host.clone()), target.tls, &target.login, ALONE_MAX).await,
        Way::Sentinel { service, login } => through_sentinel(target, host, service, login).await,
        Way::Cluster => through_member(target, host, key).await,
    }
}

fn whole(host: Host) -> Server {
    Server { host, kind: Kind::Whole }
}

/// The master, as this sentinel knows it.
async fn through_sentinel(
    target: &Target,
    host: &Host,
    service: &str,
    login: &RedisConnectionInfo,
) -> Result<Connection, RedisError> {
    let server = Server { host: host.clone(), kind: Kind::Sentinel };
    let sentinel = dial(server, target.tls, login, HOST_MAX).await?;
    let mut question = redis::cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg(service);
    let known: Option<(String, u16)> = ask(&sentinel, &question).await?;
    let Some((name, port)) = known else {
        return Err(RedisError::Unsuitable(format!(
            "{} knows no service {service:?}: correct `service` in redis.url, or let the sentinel monitor it",
            sentinel.server
        )));
    };
    let master = dial(whole(Host { name, port }), target.tls, &target.login, HOST_MAX).await?;
    let role: Vec<redis::Value> = ask(&master, &redis::cmd("ROLE")).await?;
    if matches!(role.first(), Some(redis::Value::BulkString(word)) if word == b"master") {
        return Ok(master);
    }
    Err(RedisError::Away(format!(
        "{} is no master, though {} takes it for that of {service:?}: a failover is going on; it is tried again",
        master.server, sentinel.server
    )))
}

/// The member that has the key. One that has not says who does.
async fn through_member(target: &Target, seed: &Host, key: &str) -> Result<Connection, RedisError> {
    let mut host = seed.clone();
    for _ in 0..=HOPS_MAX {
        let server = Server { host: host.clone(), kind: Kind::Member };
        let member = dial(server, target.tls, &target.login, HOST_MAX).await?;
        let mut look = redis::cmd("HMGET");
        look.arg(key).arg("version");
        let Err(error) = send::<redis::Value>(&member, &look).await else { return Ok(member) };
        let moved = error.code() == Some("MOVED");
        let there = error.redirect_node().filter(|_| moved).and_then(|(text, _)| pointed(text, &host.name));
        host = there.ok_or_else(|| RedisError::of(&member.server, &error))?;
    }
    Err(RedisError::Away(format!(
        "the members of the cluster at {seed} point to each other for the keys of this source: a slot moves; it is \
         tried again"
    )))
}

/// Where a member points to. Without a name it is where the member itself is.
fn pointed(text: &str, here: &str) -> Option<Host> {
    let (name, port) = text.rsplit_once(':')?;
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let name = if name.is_empty() { here } else { name };
    Some(Host { name: name.to_owned(), port: port.parse().ok()? })
}

async fn ask<T: redis::FromRedisValue>(
    connection: &Connection,
    command: &redis::Cmd,
) -> Result<T, RedisError> {
    send(connection, command).await.map_err(|error| RedisError::of(&connection.server, &error))
}

async fn send<T: redis::FromRedisValue>(
    connection: &Connection,
    command: &redis::Cmd,
) -> redis::RedisResult<T> {
    let mut commands: MultiplexedConnection = connection.commands.clone();
    commands.set_response_timeout(HOST_MAX);
    command.query_async(&mut commands).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_members_point_to() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(pointed(text, "h").map(|host| host.to_string()).as_deref(), expected, "{text}");
        };
        check("10.0.0.1:7000", Some("10.0.0.1:7000"));
        check("cache.example:7000", Some("cache.example:7000"));
        check(":7000", Some("h:7000"));
        check("::1:7000", Some("[::1]:7000"));
        check("[::1]:7000", Some("[::1]:7000"));
        check("10.0.0.1", None);
        check("10.0.0.1:x", None);
    }
}
