//! A connection to one server: TCP, TLS where that is asked for, user and database.
//!
//! It never asks whether this is the right server.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::RedisError;
use super::target::Host;

/// A server, and what it is to us: the same word means one thing of a member of a cluster and another elsewhere.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) host: Host,
    pub(super) kind: Kind,
}

/// What a server is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One that has all keys.
    Whole,
    /// One of a cluster.
    Member,
    /// One that knows of others.
    Sentinel,
}

/// A connection and the task that moves its bytes, which ends with the last copy.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) commands: MultiplexedConnection,
    /// Where it leads.
    pub(super) server: Arc<Server>,
    _task: Arc<AbortOnDropHandle<()>>,
}

/// Connects `within` that time. Answers that take longer than asked of a connection end it.
pub(super) async fn dial(
    server: Server,
    tls: bool,
    login: &RedisConnectionInfo,
    within: Duration,
) -> Result<Connection, RedisError> {
    let late = format!("{server} did not take a connection within {} s; it is tried again", within.as_secs());
    let reached = async { if tls { encrypted(server, login).await } else { plain(server, login).await } };
    tokio::time::timeout(within, reached).await.map_err(|_| RedisError::Away(late))?
}

async fn plain(server: Server, login: &RedisConnectionInfo) -> Result<Connection, RedisError> {
    let stream = reach(&server).await?;
    log_in(server, login, stream).await
}

async fn encrypted(server: Server, login: &RedisConnectionInfo) -> Result<Connection, RedisError> {
    let refused = |why: String| {
        RedisError::Unsuitable(format!("TLS with {server}: {why}; correct redis.url, or the certificates"))
    };
    let stream = reach(&server).await?;
    let name = ServerName::try_from(server.host.name.clone()).map_err(|error| refused(error.to_string()))?;
    let connector = TlsConnector::from(trusting().map_err(refused)?);
    let stream = connector.connect(name, stream).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => refused(error.to_string()),
        _ => unreachable(&server, &error),
    })?;
    log_in(server, login, stream).await
}

async fn reach(server: &Server) -> Result<TcpStream, RedisError> {
    let Host { name, port } = &server.host;
    let failed = |error: std::io::Error| unreachable(server, &error);
    let stream = TcpStream::connect((name.as_str(), *port)).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

fn unreachable(server: &Server, error: &std::io::Error) -> RedisError {
    let text = error.to_string().replace('\n', " ");
    RedisError::Away(format!("{server} cannot be reached: {text}; it is tried again"))
}

async fn log_in<S>(server: Server, login: &RedisConnectionInfo, stream: S) -> Result<Connection, RedisError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    // Each call says for itself how long it may take.
    let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    let (commands, task) = MultiplexedConnection::new_with_config(login, stream, config)
        .await
        .map_err(|error| RedisError::of(&server, &error))?;
    let task = Arc::new(AbortOnDropHandle::new(tokio::spawn(task)));
    Ok(Connection { commands, server: Arc::new(server), _task: task })
}

impl fmt::Display for Server {
    /// As an error names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.kind == Kind::Sentinel { "the sentinel" } else { "Redis" };
        write!(f, "{what} at {}", self.host)
    }
}

/// Whoever the operating system trusts.
fn trusting() -> Result<Arc<ClientConfig>, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err("the system has no root certificates (SSL_CERT_FILE may name some)".into());
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
