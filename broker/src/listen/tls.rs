//! TLS from files, which are read again when they change: a certificate that is renewed needs no restart.
//!
//! A connection keeps what it began with. What cannot be used is reported, and what was there before stays.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(5);

/// `[tls]`: both listeners speak TLS, if both files are named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The certificate and those that vouch for it, PEM.
    pub certificate: Option<PathBuf>,
    /// Its private key, PEM.
    pub key: Option<PathBuf>,
}

/// The files cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {}: {cause}; {remedy}", .path.display())]
pub struct TlsError {
    /// The key that names the file.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub remedy: &'static str,
}

/// What the next connection is answered with.
pub type Current = watch::Receiver<Arc<ServerConfig>>;

/// A certificate, as it is on disk.
#[derive(Debug)]
pub struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    seen: [Option<(SystemTime, u64)>; 2],
    /// What was read last could not be used.
    failed: bool,
    current: watch::Sender<Arc<ServerConfig>>,
}

impl Certificate {
    /// Reads what is named; `None` where nothing is.
    ///
    /// # Errors
    /// One of two is missing, or cannot be used.
    pub fn load(config: &Config) -> Result<Option<Self>, TlsError> {
        let missing = |key, path: &Path| TlsError {
            key,
            path: path.to_owned(),
            cause: "stands alone".into(),
            remedy: "name both tls.certificate and tls.key, or neither",
        };
        let (certificate, key) = match (&config.certificate, &config.key) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            (Some(path), None) => return Err(missing("tls.certificate", path)),
            (None, Some(path)) => return Err(missing("tls.key", path)),
        };
        // Before they are read: what changes meanwhile is read again.
        let seen = [stamp(&certificate), stamp(&key)];
        let current = watch::Sender::new(read(&certificate, &key)?);
        Ok(Some(Self { certificate, key, seen, failed: false, current }))
    }

    /// What a listener takes.
    #[must_use]
    pub fn current(&self) -> Current {
        self.current.subscribe()
    }

    /// Reads the files again whenever they change. Never ends.
    pub async fn watch(mut self) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(LOOK).await;
            // A disk that hangs must not hold up those who wait.
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(this) => self = this,
                // It panicked, or the runtime ends.
                Err(_) => return std::future::pending().await,
            }
        }
    }

    fn look(&mut self) {
        let seen = [stamp(&self.certificate), stamp(&self.key)];
        let changed = seen != self.seen;
        // What failed may have failed for a moment only.
        if !changed && !self.failed {
            return;
        }
        self.seen = seen;
        let read = read(&self.certificate, &self.key);
        self.failed = read.is_err();
        match read {
            Ok(new) => {
                self.current.send_replace(new);
                tracing::info!(certificate = %self.certificate.display(), "the certificate changed, and was taken");
            }
            // Two files do not change at one moment.
            Err(_) if !changed => {}
            Err(error) => {
                tracing::warn!("the certificate of before stays until both files can be used: {error}");
            }
        }
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn read(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let wrong = |key: &'static str, path: &Path, cause: String| TlsError {
        key,
        path: path.to_owned(),
        cause,
        remedy: "give PEM files that this process can read: the chain, and the private key of its first certificate",
    };
    let of_chain = |cause: String| wrong("tls.certificate", certificate, cause);
    let chain = CertificateDer::pem_file_iter(certificate).map_err(|error| of_chain(error.to_string()))?;
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(|error| of_chain(error.to_string()))?;
    if chain.is_empty() {
        return Err(of_chain("holds no certificate".into()));
    }
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| wrong("tls.key", key, error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                wrong("tls.key", key, format!("is not the private key of {}", certificate.display()))
            }
            error => of_chain(error.to_string()),
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Shakes hands.
pub(super) async fn accept(stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<Stream> {
    Ok(Stream::Tls(Box::new(TlsAcceptor::from(config).accept(stream).await?)))
}

/// Bytes to and from a peer.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(name: &str) -> (PathBuf, Config) {
        let directory = std::env::temp_dir().join(format!("walcast-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let config =
            Config { certificate: Some(directory.join("cert.pem")), key: Some(directory.join("key.pem")) };
        (directory, config)
    }

    fn write(config: &Config, name: &str) {
        let own = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        std::fs::write(config.certificate.as_ref().unwrap(), own.cert.pem()).unwrap();
        std::fs::write(config.key.as_ref().unwrap(), own.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        assert!(Certificate::load(&Config::default()).unwrap().is_none());
        let (directory, config) = files("wrong");
        let check = |config: &Config, expected: &[&str]| {
            let error = Certificate::load(config).unwrap_err().to_string();
            assert!(expected.iter().all(|part| error.contains(part)), "{error}");
        };
        check(&Config { key: None, ..config.clone() }, &["tls.certificate", "cert.pem", "tls.key"]);
        check(&Config { certificate: None, ..config.clone() }, &["tls.key", "key.pem"]);
        check(&config, &["tls.certificate", "cert.pem"]);
        write(&config, "a");
        std::fs::write(config.certificate.as_ref().unwrap(), "nothing").unwrap();
        check(&config, &["tls.certificate", "no certificate"]);
        write(&config, "a");
        std::fs::write(config.key.as_ref().unwrap(), "nothing").unwrap();
        check(&config, &["tls.key", "key.pem"]);
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_renewed_certificate_is_taken_once_both_files_fit() {
        let (directory, config) = files("renewed");
        write(&config, "a");
        let mut certificate = Certificate::load(&config).unwrap().unwrap();
        let mut current = certificate.current();
        certificate.look();
        assert!(!current.has_changed().unwrap());
        let key = std::fs::read(config.key.as_ref().unwrap()).unwrap();
        write(&config, "renewed.example");
        let new = std::fs::read(config.key.as_ref().unwrap()).unwrap();
        // The certificate was there first.
        std::fs::write(config.key.as_ref().unwrap(), key).unwrap();
        certificate.look();
        assert!(!current.has_changed().unwrap());
        std::fs::write(config.key.as_ref().unwrap(), [new, b"\n".to_vec()].concat()).unwrap();
        certificate.look();
        assert!(current.has_changed().unwrap());
        current.borrow_and_update();
        std::fs::remove_dir_all(directory).unwrap();
    }
}
