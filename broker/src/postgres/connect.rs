//! Hosts, their addresses and the ways to encrypt, tried one after another as libpq does.
//!
//! The caller does the startup on each [`Attempt`] and reports a failure back, since what it was decides what is
//! tried next.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom;
use rustls::ClientConfig;
use tokio::time::Instant;

use super::dsn::{self, Attributes, Host, HostPort, Target};
use super::error::{ConnectError, ConnectErrorKind as Kind};
use super::password::{self, Lookup, Secret};
use super::socket::{Socket, TlsError};
use super::tls::Mode;

/// Where nothing else was said.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One connected socket, and what the startup on it needs.
#[derive(Debug)]
pub struct Attempt {
    /// Nothing has been sent yet.
    pub socket: Socket,
    /// Who and where, for messages.
    pub at: String,
    /// For this host.
    pub password: Option<Secret>,
    /// The startup must be done by then.
    pub deadline: Instant,
    step: Step,
    note: Option<String>,
}

#[derive(Clone, Debug)]
enum Step {
    Resolve(usize),
    Connect { host: usize, address: Option<SocketAddr>, encrypt: bool },
}

/// The search for a server that will do.
#[derive(Debug)]
pub struct Attempts<'a> {
    target: &'a Target,
    tls: Option<Arc<ClientConfig>>,
    secret: Option<Secret>,
    steps: VecDeque<Step>,
    failed: Option<ConnectError>,
}

impl<'a> Attempts<'a> {
    /// A search that knows no place but the one where an earlier attempt went.
    ///
    /// # Errors
    /// A file cannot be used.
    pub async fn back(target: &'a Target, to: &Failed) -> Result<Self, ConnectError> {
        let mut attempts = Self::new(target).await?;
        attempts.steps = VecDeque::from([to.step.clone()]);
        Ok(attempts)
    }

    /// Reads what comes from files, and starts the search.
    ///
    /// # Errors
    /// A file cannot be used.
    pub async fn new(target: &'a Target) -> Result<Self, ConnectError> {
        let (settings, file) = (target.tls.clone(), target.password_file.clone());
        let read = tokio::task::spawn_blocking(move || {
            let tls = (settings.mode != Mode::Disable).then(|| settings.client_config()).transpose()?;
            let secret = file.as_deref().map(password::read_password_file).transpose()?;
            Ok::<_, String>((tls, secret))
        });
        let read = read.await.unwrap_or_else(|error| Err(error.to_string()));
        let (tls, secret) =
            read.map_err(|cause| ConnectError::new(Kind::Configuration, &target.addresses(), cause))?;
        let mut steps: Vec<Step> = (0..target.hosts.len()).map(Step::Resolve).collect();
        if target.shuffle {
            steps.shuffle(&mut rand::rng());
        }
        Ok(Self { target, tls, secret, steps: steps.into(), failed: None })
    }

    /// The next connected socket.
    ///
    /// # Errors
    /// Nothing is left to try; this is what the last try ended with.
    pub async fn next(&mut self) -> Result<Attempt, ConnectError> {
        while let Some(step) = self.steps.pop_front() {
            let (Step::Resolve(index) | Step::Connect { host: index, .. }) = step;
            let Some(host) = self.target.hosts.get(index) else { continue };
            let limit = self.target.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
            let deadline = Instant::now() + limit;
            let tried = tokio::time::timeout_at(deadline, self.take(step.clone(), host)).await;
            match tried.unwrap_or_else(|_| Err((Kind::Network, format!("no answer within {limit:?}")))) {
                Ok(None) => {}
                Ok(Some(socket)) => {
                    let (password, note) = self.password(host).await;
                    let at = self.at(host);
                    return Ok(Attempt { socket, at, password, deadline, step, note });
                }
                Err((kind, cause)) => {
                    let error = ConnectError::new(kind, &self.at(host), cause);
                    self.after_failure(&step, error)?;
                }
            }
        }
        let none = || ConnectError::new(Kind::Network, &self.target.addresses(), "no address to try");
        Err(self.failed.take().unwrap_or_else(none))
    }

    /// The startup on `attempt` failed.
    ///
    /// # Errors
    /// The same error, if trying further makes no sense.
    pub fn failed(&mut self, attempt: &Failed, error: ConnectError) -> Result<(), ConnectError> {
        self.after_failure(&attempt.step, error.with_note(attempt.note.as_deref()))
    }

    async fn take(&mut self, step: Step, host: &HostPort) -> Result<Option<Socket>, (Kind, String)> {
        let network = |error: std::io::Error| (Kind::Network, error.to_string());
        match step {
            Step::Resolve(index) => {
                self.resolve(index, host).await.map_err(network)?;
                Ok(None)
            }
            Step::Connect { address: None, .. } => {
                let Host::Unix(directory) = &host.host else { return Ok(None) };
                Socket::unix(directory, host.port).await.map(Some).map_err(network)
            }
            Step::Connect { address: Some(address), encrypt, .. } => {
                let socket = Socket::tcp(address, self.target).await.map_err(network)?;
                let (Some(config), Host::Tcp(name), true) = (&self.tls, &host.host, encrypt) else {
                    return Ok(Some(socket));
                };
                let socket = socket.encrypt(name, &self.target.tls, Arc::clone(config)).await;
                socket.map(Some).map_err(|error| match error {
                    TlsError::Io(error) => network(error),
                    TlsError::Refused(cause) => (Kind::Tls, cause),
                })
            }
        }
    }

    async fn resolve(&mut self, index: usize, host: &HostPort) -> std::io::Result<()> {
        let mut addresses: Vec<Option<SocketAddr>> = match (&host.host, host.address) {
            (Host::Unix(_), None) => vec![None],
            (_, Some(address)) => vec![Some((address, host.port).into())],
            (Host::Tcp(name), None) => {
                tokio::net::lookup_host((name.as_str(), host.port)).await?.map(Some).collect()
            }
        };
        if self.target.shuffle {
            addresses.shuffle(&mut rand::rng());
        }
        let encrypt = self.target.tls.mode > Mode::Allow;
        for address in addresses.into_iter().rev() {
            self.steps.push_front(Step::Connect { host: index, address, encrypt });
        }
        Ok(())
    }

    fn after_failure(&mut self, step: &Step, error: ConnectError) -> Result<(), ConnectError> {
        // The two weak modes try the other way where this one was refused. A wrong password is not asked
        // again over a plain connection.
        let refused = error.code.as_ref().is_some_and(|code| code.code() == "28000");
        if let Step::Connect { host, address: Some(address), encrypt } = *step {
            let other = match self.target.tls.mode {
                Mode::Prefer => encrypt && (refused || error.kind == Kind::Tls),
                Mode::Allow => !encrypt && refused,
                _ => false,
            };
            if other {
                self.steps.push_front(Step::Connect { host, address: Some(address), encrypt: !encrypt });
                self.failed = Some(error);
                return Ok(());
            }
        }
        if !error.try_next_host() {
            return Err(error);
        }
        self.failed = Some(error);
        Ok(())
    }

    fn at(&self, host: &HostPort) -> String {
        let Target { user, database, .. } = self.target;
        let unnamed = match self.target.unnamed {
            true => format!(" (no connection string is given: {})", dsn::REMEDY),
            false => String::new(),
        };
        format!("{host} as {user}, database {database}{unnamed}")
    }

    async fn password(&self, host: &HostPort) -> (Option<Secret>, Option<String>) {
        if let Some(secret) = self.secret.as_ref().or(self.target.password.as_ref()) {
            return (Some(secret.clone()), None);
        }
        let Some(path) = self.target.passfile.clone() else { return (None, None) };
        let (target, port) = (self.target, host.port);
        let name = match &host.host {
            Host::Tcp(name) => name.clone(),
            // As in libpq: the default socket directory goes by the name of localhost.
            Host::Unix(path) if path.as_os_str() == "/var/run/postgresql" => "localhost".to_owned(),
            Host::Unix(path) => path.to_string_lossy().into_owned(),
        };
        let (user, database) = (target.user.clone(), target.database.clone());
        let read = tokio::task::spawn_blocking(move || {
            let lookup = Lookup { host: &name, port, database: &database, user: &user };
            password::read_passfile(&path, lookup)
        });
        match read.await {
            Ok(Ok(found)) => (found, None),
            Ok(Err(note)) => (None, Some(note)),
            Err(error) => (None, Some(error.to_string())),
        }
    }
}

/// What remains of an attempt once its socket is in use: enough to report how it went.
#[derive(Debug)]
pub struct Failed {
    step: Step,
    note: Option<String>,
}

impl Attempt {
    /// Takes the note that [`Attempts::failed`] wants.
    pub fn split(&mut self) -> Failed {
        Failed { step: self.step.clone(), note: self.note.take() }
    }
}

/// Whether a server with this answer, by column, to [`after_connect`](super::after_connect) will do.
///
/// # Errors
/// It will not. Another host may, unless this one is a pooler.
pub fn check_server<'r>(
    target: &Target,
    at: &str,
    answer: impl Fn(usize) -> Option<&'r str>,
) -> Result<(), ConnectError> {
    if !target.pooled && answer(2) != Some("pg_catalog") {
        let found = answer(2).unwrap_or_default();
        let cause = format!("the settings sent at the start do not arrive (search_path is {found:?})");
        return Err(ConnectError::new(Kind::Pooler, at, cause));
    }
    let (read_only, standby) = (answer(0) == Some("on"), answer(1) == Some("t"));
    let (fits, wanted) = match target.attributes {
        Attributes::Any => (true, ""),
        Attributes::ReadWrite => (!read_only && !standby, "one that accepts writes"),
        Attributes::ReadOnly => (read_only || standby, "one that accepts no writes"),
        Attributes::Primary => (!standby, "the primary"),
        Attributes::Standby => (standby, "a standby"),
    };
    if fits {
        return Ok(());
    }
    let found = if standby { "a standby" } else { "a primary" };
    let cause = format!("this server is {found}, and target_session_attrs wants {wanted}; check the hosts");
    Err(ConnectError::new(Kind::WrongServer, at, cause))
}
