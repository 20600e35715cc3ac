//! TLS by rustls with the ring provider, given explicitly, so that a process may hold other providers, too.
//!
//! A certificate is always verified; there is no switch to do without.

use std::io;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Error;

/// Whom to trust.
#[derive(Clone)]
pub(crate) struct Tls(TlsConnector);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Trusts the certificates in `pem`, or without it those that the operating system trusts. Blocks while it
    /// reads these.
    pub(crate) fn new(pem: Option<&[u8]>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        match pem {
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|error| unusable(&error))?;
                    roots.add(certificate).map_err(|error| unusable(&error))?;
                }
                if roots.is_empty() {
                    return Err(unusable(&"there is none in it"));
                }
            }
            None => {
                // Some systems list a few that cannot be read.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(Error::Setup(
                        "the system has no root certificates; install them (ca-certificates), or give your own \
                         by `root_certificates`"
                            .to_owned(),
                    ));
                }
            }
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Setup(format!("TLS: {error}")))?;
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    pub(crate) async fn handshake(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.0.connect(name, stream).await
    }
}

fn unusable(reason: &dyn std::fmt::Display) -> Error {
    Error::Setup(format!("`root_certificates` cannot be used: {reason}; give PEM certificates"))
}

/// A certificate that is not valid yet, or no longer. This machine's clock may be wrong, as after booting, so it does
/// not count as distrust.
#[derive(Debug, thiserror::Error)]
#[error("{0}; renew it, or set this machine's clock")]
pub(crate) struct OutOfDate(rustls::Error);

/// Adds what to do if the certificate is refused for its dates alone, or there is no TLS at all.
pub(crate) fn with_remedy(error: io::Error) -> io::Error {
    match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        Some(cause @ rustls::Error::InvalidCertificate(reason)) if by_date(reason) => {
            io::Error::new(error.kind(), OutOfDate(cause.clone()))
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            io::Error::new(error.kind(), "it does not speak TLS: perhaps its URL begins with http://")
        }
        _ => error,
    }
}

/// Whether the certificate was refused for its dates alone.
pub(crate) fn out_of_date(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<OutOfDate>())
}

fn by_date(reason: &CertificateError) -> bool {
    matches!(
        reason,
        CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
            | CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
    )
}

/// Why the peer's certificate is not trusted, if that is the cause.
pub(crate) fn distrust(error: &io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(reason) if by_date(reason) => None,
        rustls::Error::InvalidCertificate(reason) => Some(reason.to_string()),
        rustls::Error::NoCertificatesPresented => Some("there is none".to_owned()),
        _ => None,
    }
}
