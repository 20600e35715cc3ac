//! What `redis.url` says: of which servers to ask, how, and as whom. It reaches none of them.
//!
//! It never repeats a password, nor the URL that holds it.

use std::fmt;

use redis::{ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};

use super::RedisError;

const FORM: &str = "redis.url is not of the form redis://user:password@host:port/database, or rediss:// for TLS; \
                    characters that URLs reserve are percent-encoded in it; several hosts are for redis-sentinel:// and \
                    redis-cluster://";
const SENTINEL_FORM: &str = "redis.url is not of the form redis-sentinel://user:password@host:port,host:port/database\
                             ?service=name, with &sentinel_user=… and &sentinel_password=… where the sentinels ask for \
                             them, or rediss-sentinel:// for TLS; characters that URLs reserve are percent-encoded in it";
const CLUSTER_FORM: &str = "redis.url is not of the form redis-cluster://user:password@host:port,host:port, or \
                            rediss-cluster:// for TLS; characters that URLs reserve are percent-encoded in it; a cluster \
                            has no database but 0";
/// Where they listen if nobody says otherwise.
const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Where Redis is.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) way: Way,
    /// At least one.
    pub(super) hosts: Vec<Host>,
    pub(super) tls: bool,
    /// At the server that holds the log.
    pub(super) login: RedisConnectionInfo,
}

/// How the server is found that holds the log.
#[derive(Clone)]
pub(super) enum Way {
    /// It is the host.
    Alone,
    /// The hosts are sentinels, who know it by the name of the service.
    Sentinel { service: String, login: RedisConnectionInfo },
    /// The hosts are members of a cluster, of which each knows who has the keys.
    Cluster,
}

/// A host without brackets, and its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) port: u16,
}

impl Target {
    /// Reads a URL.
    pub(super) fn parse(url: &str) -> Result<Self, RedisError> {
        let wrong = |form: &str| RedisError::Unsuitable(form.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong(FORM))?;
        let tls = scheme.starts_with("rediss");
        let (form, read) = match scheme {
            "redis" | "rediss" => (FORM, alone(rest)),
            "redis-sentinel" | "rediss-sentinel" => (SENTINEL_FORM, sentinel(rest)),
            "redis-cluster" | "rediss-cluster" => (CLUSTER_FORM, cluster(rest)),
            _ => (FORM, None),
        };
        let (way, hosts, login) = read.ok_or_else(|| wrong(form))?;
        Ok(Self { way, hosts, tls, login })
    }
}

type Read = Option<(Way, Vec<Host>, RedisConnectionInfo)>;

fn alone(rest: &str) -> Read {
    if rest.contains(['?', '#']) {
        return None;
    }
    let (host, login) = one(rest)?;
    Some((Way::Alone, vec![host], login))
}

fn sentinel(rest: &str) -> Read {
    let (rest, query) = rest.split_once('?')?;
    let (hosts, login) = several(rest, SENTINEL_PORT)?;
    let (mut service, mut user, mut password) = (None, None, None);
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=')?;
        let known = match key {
            "service" => &mut service,
            "sentinel_user" => &mut user,
            "sentinel_password" => &mut password,
            _ => return None,
        };
        if known.replace(decoded(value)?).is_some() {
            return None;
        }
    }
    let mut of_sentinels = RedisConnectionInfo::default().set_skip_set_lib_name();
    match (user, password) {
        (Some(_), None) => return None,
        (user, Some(password)) => {
            of_sentinels = of_sentinels.set_password(password);
            if let Some(user) = user {
                of_sentinels = of_sentinels.set_username(user);
            }
        }
        (None, None) => {}
    }
    let service = service?;
    Some((Way::Sentinel { service, login: of_sentinels }, hosts, login))
}

fn cluster(rest: &str) -> Read {
    if rest.contains('?') {
        return None;
    }
    let (hosts, login) = several(rest, PORT)?;
    (login.db() == 0).then_some((Way::Cluster, hosts, login))
}

/// Hosts with commas between them, and what else stands in a URL.
fn several(rest: &str, port: u16) -> Option<(Vec<Host>, RedisConnectionInfo)> {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, hosts) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    let mut found = Vec::new();
    let mut login = None;
    for host in hosts.split(',') {
        let (_, behind) = host.rsplit_once(']').unwrap_or(("", host));
        let port = if behind.contains(':') { String::new() } else { format!(":{port}") };
        let (host, of_it) = one(&format!("{user}{host}{port}/{path}"))?;
        found.push(host);
        login = Some(of_it);
    }
    Some((found, login?))
}

/// What stands in a URL with one host. The library takes it apart.
fn one(rest: &str) -> Option<(Host, RedisConnectionInfo)> {
    if rest.contains('#') {
        return None;
    }
    let info = format!("redis://{rest}").into_connection_info().ok()?;
    let ConnectionAddr::Tcp(name, port) = info.addr() else { return None };
    if name.is_empty() || name.contains(',') || *port == 0 {
        return None;
    }
    // What the library would tell of itself needs a right more, and helps nobody.
    let login = info.redis_settings().clone().set_skip_set_lib_name();
    Some((Host { name: name.clone(), port: *port }, login))
}

/// A value of a query, by the library's own reading of a password, which is one that says something.
fn decoded(value: &str) -> Option<String> {
    let value = value.replace('/', "%2F").replace('?', "%3F");
    let info = format!("redis://:{value}@host").into_connection_info().ok()?;
    info.redis_settings().password().filter(|text| !text.is_empty()).map(str::to_owned)
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, port } = self;
        if name.contains(':') { write!(f, "[{name}]:{port}") } else { write!(f, "{name}:{port}") }
    }
}

impl fmt::Display for Target {
    /// Hosts and ports, and the service where there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, host) in self.hosts.iter().enumerate() {
            write!(f, "{}{host}", if at > 0 { "," } else { "" })?;
        }
        match &self.way {
            Way::Sentinel { service, .. } => write!(f, " service {service}"),
            Way::Alone | Way::Cluster => Ok(()),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let check = |url: &str, expected: Option<(&str, bool)>| {
            let found = Target::parse(url).ok().map(|target| (target.to_string(), target.tls));
            assert_eq!(found, expected.map(|(at, tls)| (at.to_owned(), tls)), "{url}");
        };
        check("redis://localhost", Some(("localhost:6379", false)));
        check("rediss://u:p%40ss@cache.example:7000/3", Some(("cache.example:7000", true)));
        check("redis://:p@[::1]:7000", Some(("[::1]:7000", false)));
        check("localhost:6379", None);
        check("http://localhost", None);
        check("redis://", None);
        check("redis://h/x", None);
        check("redis://a,b", None);
        check("redis://a:1,b:2", None);
        check("rediss://h/#insecure", None);
        check("redis://h/?protocol=resp3", None);

        check("redis-sentinel://a,b:7/2?service=s", Some(("a:26379,b:7 service s", false)));
        check(
            "rediss-sentinel://u:p@[::1],[::2]:7?service=s%26",
            Some(("[::1]:26379,[::2]:7 service s&", true)),
        );
        check("redis-sentinel://a?sentinel_password=x&service=s", Some(("a:26379 service s", false)));
        check("redis-sentinel://a", None);
        check("redis-sentinel://a?service=", None);
        check("redis-sentinel://a?service=s&service=t", None);
        check("redis-sentinel://a?service=s&quorum=2", None);
        check("redis-sentinel://a?service=s&sentinel_user=u", None);
        check("redis-sentinel://?service=s", None);
        check("redis-sentinel://u:p@?service=s", None);
        check("redis-sentinel://a,,b?service=s", None);
        check("redis-sentinel://a:0?service=s", None);
        check("redis-sentinel://a:x?service=s", None);
        check("redis-sentinel://a/x?service=s", None);
        check("redis-sentinel://a?service=s#insecure", None);

        check("redis-cluster://a:7,b", Some(("a:7,b:6379", false)));
        check("rediss-cluster://u:p@a/0", Some(("a:6379", true)));
        check("redis-cluster://", None);
        check("redis-cluster://a/1", None);
        check("redis-cluster://a,", None);
        check("redis-cluster://a?service=s", None);
        check("redis-cluster://a#insecure", None);
    }

    #[test]
    fn the_documented_forms_are_read() {
        let document = include_str!("../../../../docs/configuration.md");
        let forms: Vec<_> = document.lines().filter_map(|line| line.strip_prefix("- `redis")).collect();
        assert_eq!(forms.len(), 3);
        for form in forms {
            let (form, _) = form.split_once('`').unwrap();
            let target = Target::parse(&format!("redis{form}")).unwrap();
            assert_eq!(target.login.password(), Some("password"));
        }
    }

    #[test]
    fn who_is_who() {
        let url =
            "redis-sentinel://u%3A:p%2Fq@a,b/2?sentinel_user=s%20u&sentinel_password=s/p%3F%25@&service=s";
        let Target { way, login, .. } = Target::parse(url).unwrap();
        assert_eq!((login.username(), login.password(), login.db()), (Some("u:"), Some("p/q"), 2));
        let Way::Sentinel { login, .. } = way else { panic!("{url}") };
        assert_eq!((login.username(), login.password(), login.db()), (Some("s u"), Some("s/p?%@"), 0));
    }

    #[test]
    fn a_password_is_never_shown() {
        for url in [
            "redis://u:swordfish@h/1",
            "redis://u:swordfish@h/x",
            "redis://u:swordfish@",
            "x://u:swordfish@h",
            "redis://u:swordfish@a,b",
            "redis-sentinel://u:swordfish@a,b?service=s",
            "redis-sentinel://u:swordfish@a,b",
            "redis-sentinel://a?service=s&sentinel_password=swordfish",
            "redis-sentinel://a?service=s&sentinel_pasword=swordfish",
            "redis-sentinel://a/swordfish?service=s",
            "redis-cluster://u:swordfish@a,b",
            "redis-cluster://u:swordfish@a,b/1",
            "redis-cluster://u:sword/fish:swordfish@a",
        ] {
            let shown =
                Target::parse(url).map_or_else(|error| error.to_string(), |target| format!("{target:?}"));
            let config = super::super::Config { url: Some(url.into()), ..Default::default() };
            assert!(!format!("{shown} {config:?}").contains("swordfish"), "{url}: {shown} {config:?}");
        }
    }
}
