//! Where Redis is, read from a URL, and a connection to it: TCP, TLS where the URL says so, user and database.
//!
//! It never repeats the password, nor the URL that holds it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::RedisError;

/// How long it may take until a connection can be used.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Where Redis is.
#[derive(Clone)]
pub(super) struct Target {
    host: String,
    port: u16,
    tls: bool,
    login: RedisConnectionInfo,
}

/// A connection and the task that moves its bytes, which ends with the last copy.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) commands: MultiplexedConnection,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl Target {
    /// Reads a URL.
    pub(super) fn parse(url: &str) -> Result<Self, RedisError> {
        const FORM: &str = "redis.url is not of the form redis://user:password@host:port/database, or rediss:// for \
                            TLS; characters that URLs reserve are percent-encoded in it";
        let wrong = || RedisError::Unsuitable(FORM.into());
        let (tls, rest) = match url.split_once("://").ok_or_else(wrong)? {
            ("redis", rest) => (false, rest),
            ("rediss", rest) => (true, rest),
            _ => return Err(wrong()),
        };
        if rest.contains('#') || rest.contains('?') {
            return Err(wrong());
        }
        let info = format!("redis://{rest}").into_connection_info().map_err(|_| wrong())?;
        let ConnectionAddr::Tcp(host, port) = info.addr() else { return Err(wrong()) };
        // What the library would tell of itself needs a right more, and helps nobody.
        let login = info.redis_settings().clone().set_skip_set_lib_name();
        Ok(Self { host: host.clone(), port: *port, tls, login })
    }

    /// Connects. Answers that take longer than asked of a connection end it.
    pub(super) async fn connect(&self) -> Result<Connection, RedisError> {
        let late = |_| {
            RedisError::Away(format!(
                "Redis at {self} did not take a connection within 5 s; it is tried again"
            ))
        };
        tokio::time::timeout(CONNECT_MAX, self.dial()).await.map_err(late)?
    }

    async fn dial(&self) -> Result<Connection, RedisError> {
        let failed = |error: std::io::Error| {
            let text = error.to_string().replace('\n', " ");
            RedisError::Away(format!("Redis at {self} cannot be reached: {text}; it is tried again"))
        };
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        if !self.tls {
            return self.log_in(stream).await;
        }
        let refused = |why: String| {
            RedisError::Unsuitable(format!(
                "TLS with Redis at {self}: {why}; correct redis.url, or the certificates"
            ))
        };
        let name = ServerName::try_from(self.host.clone()).map_err(|error| refused(error.to_string()))?;
        let connector = TlsConnector::from(trusting().map_err(refused)?);
        let stream = connector.connect(name, stream).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => refused(error.to_string()),
            _ => failed(error),
        })?;
        self.log_in(stream).await
    }

    async fn log_in<S>(&self, stream: S) -> Result<Connection, RedisError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        // Each call says for itself how long it may take.
        let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
        let (commands, task) = MultiplexedConnection::new_with_config(&self.login, stream, config)
            .await
            .map_err(|error| RedisError::of(&self.to_string(), &error))?;
        Ok(Connection { commands, _task: Arc::new(AbortOnDropHandle::new(tokio::spawn(task))) })
    }
}

impl fmt::Display for Target {
    /// Host and port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
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
        check("redis://:p@[::1]:7000", Some(("::1:7000", false)));
        check("localhost:6379", None);
        check("http://localhost", None);
        check("redis://", None);
        check("redis://h/x", None);
        check("rediss://h/#insecure", None);
        check("redis://h/?protocol=resp3", None);
    }

    #[test]
    fn a_password_is_never_shown() {
        for url in [
            "redis://u:swordfish@h/1",
            "redis://u:swordfish@h/x",
            "redis://u:swordfish@",
            "x://u:swordfish@h",
        ] {
            let shown =
                Target::parse(url).map_or_else(|error| error.to_string(), |target| format!("{target:?}"));
            let config = super::super::Config { url: Some(url.into()), ..Default::default() };
            assert!(!format!("{shown} {config:?}").contains("swordfish"), "{url}: {shown} {config:?}");
        }
    }
}
