//! Connection strings, as libpq reads them: `postgresql://…` and `key=value …`.
//!
//! A message of this module never repeats what may be part of a password: it names keys, not values, and only
//! keys that look like one. What libpq knows and walcast cannot honour is refused, never dropped silently.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::password::Secret;
use super::tls::{Mode, Settings as Tls};

/// A connection string that cannot be used. `Display` names the key and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("connection string: {0}")]
pub struct DsnError(pub(super) String);

/// Where to connect to, as whom, and how far to trust the other side.
#[derive(Clone, Debug)]
pub struct Target {
    /// In the order in which they are tried; never empty.
    pub hosts: Vec<HostPort>,
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// The connection string's own password.
    pub password: Option<Secret>,
    /// Asked before everything else, at every connect.
    pub password_file: Option<PathBuf>,
    /// Asked where there is no other password.
    pub passfile: Option<PathBuf>,
    /// More command line options for the server.
    pub options: Option<String>,
    /// How to encrypt and whom to trust.
    pub tls: Tls,
    /// Limit for one attempt, authentication included; `None` until a default is set.
    pub connect_timeout: Option<Duration>,
    /// TCP keepalive; `None` turns it off.
    pub keepalive: Option<Keepalive>,
    /// How long sent data may stay unacknowledged (TCP_USER_TIMEOUT); zero leaves it to the system.
    pub tcp_user_timeout: Duration,
    /// What kind of server will do.
    pub attributes: Attributes,
    /// Whether hosts are tried in random order.
    pub shuffle: bool,
    /// A transaction pooler may be in between: nothing is set that outlives a transaction, for the next one may run
    /// elsewhere, and another client's run here.
    pub pooled: bool,
    /// There is no connection string, nor a variable that names a host: it is this machine's default server.
    pub unnamed: bool,
}

/// One place to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The name, for certificates, passfiles and messages.
    pub host: Host,
    /// The address, where it is given apart from the name.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// A host by name or a Unix socket by its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or an address.
    Tcp(String),
    /// The directory that holds the socket.
    Unix(PathBuf),
}

/// TCP keepalive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// Between probes.
    pub interval: Duration,
    /// Unanswered probes that end the connection.
    pub count: u32,
}

/// `target_session_attrs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attributes {
    /// The default for one host.
    Any,
    /// Accepts writes.
    ReadWrite,
    /// Accepts none.
    ReadOnly,
    /// Not a standby. The default for several hosts (libpq's is `any`): the others do not help a broker.
    Primary,
    /// A standby.
    Standby,
}

/// Where there is no connection string.
pub(super) const REMEDY: &str = "set DATABASE_URL, or `postgres.url`, or --database-url";

/// Keys that mean something here, with the environment variable that stands in for them.
const KEYS: &[(&str, &str)] = &[
    ("application_name", ""),
    ("channel_binding", "PGCHANNELBINDING"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("dbname", "PGDATABASE"),
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("keepalives", ""),
    ("keepalives_count", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("options", "PGOPTIONS"),
    ("passfile", "PGPASSFILE"),
    ("password", "PGPASSWORD"),
    ("port", "PGPORT"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslmode", "PGSSLMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("tcp_user_timeout", ""),
    ("user", "PGUSER"),
    // Accepted without effect: they weaken nothing, and we name and encode sessions ourselves.
    ("client_encoding", ""),
    ("fallback_application_name", ""),
    ("gssdelegation", ""),
    ("gsslib", ""),
    ("krbsrvname", ""),
    ("sslcompression", ""),
    ("sslsni", ""),
];

/// Keys of libpq that would have to change what we do, and cannot.
const REFUSED: &[&str] = &[
    "gssencmode",
    "min_protocol_version",
    "max_protocol_version",
    "oauth_client_id",
    "oauth_issuer",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "ssl_max_protocol_version",
    "sslcertmode",
    "sslcrl",
    "sslcrldir",
    "sslpassword",
];

impl Target {
    /// Reads a connection string; `environment` looks up the variables that stand in for what it leaves out.
    ///
    /// # Errors
    /// An unknown key, a value out of range, or no way to tell the user.
    pub fn parse(text: &str, environment: impl Fn(&str) -> Option<String>) -> Result<Self, DsnError> {
        let mut values = Values { map: BTreeMap::new(), given: !text.trim().is_empty() };
        for (key, variable) in KEYS.iter().filter(|(_, variable)| !variable.is_empty()) {
            if let Some(value) = environment(variable).filter(|value| !value.is_empty()) {
                values.map.insert(key, value);
            }
        }
        for (key, value) in super::dsn_syntax::pairs(text)? {
            values.set(&key, value)?;
        }
        values.target(environment)
    }

    /// `host:port` of all hosts, for messages.
    #[must_use]
    pub fn addresses(&self) -> String {
        self.hosts.iter().map(HostPort::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Host::Tcp(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Host::Tcp(name) => write!(f, "{name}:{}", self.port),
            Host::Unix(directory) => write!(f, "{}/.s.PGSQL.{}", directory.display(), self.port),
        }
    }
}

struct Values {
    map: BTreeMap<&'static str, String>,
    /// There is a connection string.
    given: bool,
}

impl Values {
    fn set(&mut self, key: &str, value: String) -> Result<(), DsnError> {
        // JDBC's way to say it; libpq takes it, too.
        if key == "ssl" && value == "true" {
            self.map.insert("sslmode", "require".to_owned());
            return Ok(());
        }
        if REFUSED.contains(&key) {
            if (key, value.as_str()) == ("gssencmode", "disable")
                || (key == "gssencmode" && value == "prefer")
            {
                return Ok(());
            }
            return Err(DsnError(format!("{key} is not supported; leave it out")));
        }
        match KEYS.iter().find(|(known, _)| *known == key) {
            Some((known, _)) if value.is_empty() => drop(self.map.remove(known)),
            Some((known, _)) => drop(self.map.insert(known, value)),
            None => return Err(unknown_key(key)),
        }
        Ok(())
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.map.remove(key)
    }

    fn number(&mut self, key: &'static str) -> Result<Option<u32>, DsnError> {
        let Some(text) = self.take(key) else { return Ok(None) };
        // libpq takes negative numbers for "not set" in several of these.
        let number = text.trim().parse::<i32>().map_err(|_| DsnError(format!("{key} must be a number")))?;
        Ok(Some(u32::try_from(number).unwrap_or(0)))
    }

    fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Result<Option<T>, DsnError> {
        let Some(text) = self.take(key) else { return Ok(None) };
        choices.iter().find(|(name, _)| *name == text).map(|(_, value)| Some(*value)).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            DsnError(format!("{key} must be one of {}", names.join(", ")))
        })
    }

    fn target(mut self, environment: impl Fn(&str) -> Option<String>) -> Result<Target, DsnError> {
        let home = environment("HOME").map(PathBuf::from);
        let home = home.as_deref();
        let user = self.take("user").or_else(|| environment("USER")).or_else(|| environment("LOGNAME"));
        let user = user.filter(|user| !user.is_empty());
        let user = user.ok_or_else(|| {
            DsnError(match self.given {
                true => "user is missing; add user=… to it".to_owned(),
                false => format!("none is given, and no user to connect as; {REMEDY}"),
            })
        })?;
        let unnamed = !self.given && !["host", "hostaddr"].iter().any(|key| self.map.contains_key(key));
        let hosts = self.hosts()?;
        let default = if hosts.len() > 1 { Attributes::Primary } else { Attributes::Any };
        let attributes = self.choice(
            "target_session_attrs",
            &[
                ("any", Attributes::Any),
                ("read-write", Attributes::ReadWrite),
                ("read-only", Attributes::ReadOnly),
                ("primary", Attributes::Primary),
                ("standby", Attributes::Standby),
            ],
        )?;
        let load_balance = self.choice("load_balance_hosts", &[("disable", false), ("random", true)])?;
        Ok(Target {
            hosts,
            database: self.take("dbname").unwrap_or_else(|| user.clone()),
            user,
            password: self.take("password").map(Secret::from),
            password_file: None,
            passfile: self.take("passfile").map(PathBuf::from).or_else(|| Some(home?.join(".pgpass"))),
            options: self.take("options"),
            tls: self.tls(home)?,
            connect_timeout: self.number("connect_timeout")?.filter(|n| *n > 0).map(seconds),
            keepalive: self.keepalive()?,
            // libpq counts this one in milliseconds.
            tcp_user_timeout: Duration::from_millis(
                self.number("tcp_user_timeout")?.unwrap_or(30_000).into(),
            ),
            attributes: attributes.unwrap_or(default),
            shuffle: load_balance.unwrap_or(false),
            pooled: false,
            unnamed,
        })
    }

    fn keepalive(&mut self) -> Result<Option<Keepalive>, DsnError> {
        let enabled = self.number("keepalives")?.unwrap_or(1) != 0;
        let mut read = |key, default| Ok(self.number(key)?.filter(|n| *n > 0).unwrap_or(default));
        let keepalive = Keepalive {
            idle: seconds(read("keepalives_idle", 30)?),
            interval: seconds(read("keepalives_interval", 10)?),
            count: read("keepalives_count", 3)?,
        };
        Ok(enabled.then_some(keepalive))
    }

    fn hosts(&mut self) -> Result<Vec<HostPort>, DsnError> {
        let split = |text: Option<String>| -> Vec<String> {
            text.map(|text| text.split(',').map(str::to_owned).collect()).unwrap_or_default()
        };
        let (names, addresses) = (split(self.take("host")), split(self.take("hostaddr")));
        let ports = split(self.take("port"));
        if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
            return Err(DsnError("hostaddr must have as many entries as host".into()));
        }
        let count = names.len().max(addresses.len()).max(1);
        if ports.len() > 1 && ports.len() != count {
            return Err(DsnError("port must have one entry, or as many as host".into()));
        }
        (0..count)
            .map(|index| {
                let address = match addresses.get(index).map(String::as_str) {
                    None | Some("") => None,
                    Some(text) => Some(
                        text.parse::<IpAddr>()
                            .map_err(|_| DsnError("hostaddr must be an IP address".into()))?,
                    ),
                };
                let name = names.get(index).map(String::as_str).unwrap_or_default();
                if name.contains('@') {
                    let message = "host holds an @; one that belongs to the password is written %40";
                    return Err(DsnError(message.into()));
                }
                let host = match (name, address) {
                    ("", Some(address)) => Host::Tcp(address.to_string()),
                    ("", None) => default_host(),
                    (path, _) if path.starts_with('/') => Host::Unix(path.into()),
                    (name, _) => Host::Tcp(name.to_owned()),
                };
                let port = match ports.get(index).or(ports.first()).map(String::as_str) {
                    None | Some("") => 5432,
                    Some(text) => text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| {
                        DsnError(
                            "port must be a number from 1 to 65535 (in a URL, a / : ? # or @ of the password \
                             is written as %2F %3A %3F %23 %40)"
                                .into(),
                        )
                    })?,
                };
                Ok(HostPort { host, address, port })
            })
            .collect()
    }

    fn tls(&mut self, home: Option<&Path>) -> Result<Tls, DsnError> {
        let root = self.take("sslrootcert");
        let system = root.as_deref() == Some("system");
        let mode = self.choice(
            "sslmode",
            &[
                ("disable", Mode::Disable),
                ("allow", Mode::Allow),
                ("prefer", Mode::Prefer),
                ("require", Mode::Require),
                ("verify-ca", Mode::VerifyCa),
                ("verify-full", Mode::VerifyFull),
            ],
        )?;
        let mode = mode.unwrap_or(if system { Mode::VerifyFull } else { Mode::Prefer });
        if system && mode != Mode::VerifyFull {
            return Err(DsnError("sslrootcert=system needs sslmode=verify-full".into()));
        }
        let direct =
            self.choice("sslnegotiation", &[("postgres", false), ("direct", true)])?.unwrap_or(false);
        if direct && mode < Mode::Require {
            return Err(DsnError("sslnegotiation=direct needs sslmode=require or stronger".into()));
        }
        let tls13_only = self.choice(
            "ssl_min_protocol_version",
            &[("TLSv1", false), ("TLSv1.1", false), ("TLSv1.2", false), ("TLSv1.3", true)],
        )?;
        let binding = self.choice(
            "channel_binding",
            &[
                ("disable", super::tls::Binding::Disable),
                ("prefer", super::tls::Binding::Prefer),
                ("require", super::tls::Binding::Require),
            ],
        )?;
        let (cert, key) = (self.take("sslcert"), self.take("sslkey"));
        if cert.is_some() != key.is_some() {
            return Err(DsnError("sslcert and sslkey go together; set both".into()));
        }
        Ok(Tls {
            mode,
            root: root.filter(|_| !system).map(PathBuf::from),
            root_default: home.map(|home| home.join(".postgresql/root.crt")),
            system,
            client: cert.zip(key).map(|(cert, key)| (cert.into(), key.into())),
            direct,
            tls13_only: tls13_only.unwrap_or(false),
            binding: binding.unwrap_or_default(),
        })
    }
}

/// libpq's: the socket directory where there is one.
fn default_host() -> Host {
    let directory = PathBuf::from("/var/run/postgresql");
    if directory.is_dir() { Host::Unix(directory) } else { Host::Tcp("localhost".into()) }
}

fn seconds(number: u32) -> Duration {
    Duration::from_secs(number.into())
}

fn unknown_key(key: &str) -> DsnError {
    // Behind a password with a blank in it, any text may stand where a key is expected.
    let plain = key.len() <= 32 && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let name = if plain && !key.is_empty() { format!("unknown key {key}") } else { "an unknown key".into() };
    DsnError(format!("{name}; the keys are those of libpq, and values with blanks stand in single quotes"))
}

#[cfg(test)]
#[path = "dsn_tests.rs"]
mod tests;
