//! TLS as libpq's `sslmode` says, on rustls with the ring provider, given explicitly everywhere.
//!
//! Certificates are read anew for every connection, so a rotated one needs no restart. As everywhere in rustls, a
//! host name is looked for in the certificate's subjectAltName alone, never in its common name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedCipherSuite, version,
};

/// `sslmode`, from weak to strong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Never encrypt.
    Disable,
    /// Encrypt where the server insists.
    Allow,
    /// Encrypt where the server can.
    Prefer,
    /// Always encrypt; verify as `VerifyCa` where there is a root certificate.
    Require,
    /// The certificate must be signed by a root certificate of ours.
    VerifyCa,
    /// And name the host that we wanted.
    VerifyFull,
}

/// `channel_binding`: whether SCRAM must prove that nobody sits inside the encrypted connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// Never.
    Disable,
    /// Where both sides can.
    #[default]
    Prefer,
    /// Or fail.
    Require,
}

/// How to encrypt and whom to trust.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `sslmode`.
    pub mode: Mode,
    /// `sslrootcert`, a PEM file; must be readable if it is set.
    pub root: Option<PathBuf>,
    /// Used where `root` is not set and this file exists.
    pub root_default: Option<PathBuf>,
    /// Trust what the operating system trusts, instead of a file.
    pub system: bool,
    /// `sslcert` and `sslkey`.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Start with TLS at once, without asking (Postgres 17 on).
    pub direct: bool,
    /// Refuse TLS 1.2.
    pub tls13_only: bool,
    /// `channel_binding`.
    pub binding: Binding,
}

impl Settings {
    /// Reads the files that are named and makes the client side of TLS of them. Blocks; small files.
    ///
    /// # Errors
    /// A file cannot be read, or a weaker check than the one asked for would be made.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, String> {
        let provider = Arc::new(ring::default_provider());
        let versions = if self.tls13_only { &[&version::TLS13][..] } else { rustls::ALL_VERSIONS };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(|error| format!("TLS cannot be set up: {error}"))?;
        let verifier = Verifier { trust: self.trust()?, provider };
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.client {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| format!("sslkey {} cannot be used: {error}", key.display()))?;
                builder
                    .with_client_auth_cert(read_certificates("sslcert", cert)?, key)
                    .map_err(|error| format!("sslcert {} cannot be used: {error}", cert.display()))?
            }
        };
        if self.direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(Arc::new(config))
    }

    fn trust(&self) -> Result<Trust, String> {
        let roots = if self.system {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                return Err("sslrootcert=system: the system has no root certificates".into());
            }
            Some(found.certs)
        } else if let Some(path) = &self.root {
            Some(read_certificates("sslrootcert", path)?)
        } else {
            match self.root_default.as_ref().filter(|path| path.exists()) {
                Some(path) => Some(read_certificates("sslrootcert", path)?),
                None => None,
            }
        };
        let Some(certificates) = roots else {
            return if self.mode >= Mode::VerifyCa {
                Err("sslmode asks to verify the server's certificate; set sslrootcert to the CA's file, or to \
                     system"
                    .into())
            } else {
                Ok(Trust::Anyone)
            };
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        Ok(Trust::Roots { roots, certificates, name: self.mode == Mode::VerifyFull })
    }
}

fn read_certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = || -> Result<Vec<_>, rustls::pki_types::pem::Error> {
        CertificateDer::pem_file_iter(path)?.collect()
    };
    match read() {
        Ok(certificates) if certificates.is_empty() => {
            Err(format!("{key} {} holds no PEM certificate", path.display()))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("{key} {} cannot be read: {error}", path.display())),
    }
}

#[derive(Debug)]
enum Trust {
    /// Encryption alone: anyone may answer.
    Anyone,
    Roots {
        roots: RootCertStore,
        certificates: Vec<CertificateDer<'static>>,
        /// Whether the host's name is checked, too.
        name: bool,
    },
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::Roots { roots, certificates, name } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        // A self-signed certificate that is its own root, as `openssl req -x509` makes them: it is a CA, which
        // the chain check refuses at the end of a chain, but it is exactly what the operator trusts.
        if !certificates.contains(end_entity) {
            let algorithms = self.provider.signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        }
        if *name {
            verify_server_name(&parsed, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The `tls-server-end-point` of a certificate (RFC 5929): its hash by its own signature's hash function. `None`
/// where that function is not SHA-1, SHA-256 or SHA-384; then SCRAM goes without channel binding.
#[must_use]
pub fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let suite = match signature_algorithm(certificate)? {
        // ecdsa-with-SHA256; sha256WithRSAEncryption; sha1WithRSAEncryption, which counts as SHA-256.
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]
        | [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b | 0x05] => &TLS13_AES_128_GCM_SHA256,
        // ecdsa-with-SHA384; sha384WithRSAEncryption.
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03]
        | [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c] => &TLS13_AES_256_GCM_SHA384,
        _ => return None,
    };
    let SupportedCipherSuite::Tls13(suite) = suite else { return None };
    Some(suite.common.hash_provider.hash(certificate).as_ref().to_vec())
}

/// The object identifier behind the signed part of a certificate.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (outer, _) = element(certificate, SEQUENCE)?;
    let (_, behind) = element(outer, SEQUENCE)?;
    let (algorithm, _) = element(behind, SEQUENCE)?;
    Some(element(algorithm, OBJECT_IDENTIFIER)?.0)
}

/// The content of a DER element with this tag, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = bytes.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        short if short < 0x80 => (usize::from(short), rest),
        long => {
            let digits = usize::from(long & 0x7f);
            if digits == 0 || digits > 4 {
                return None;
            }
            let (length, rest) = rest.split_at_checked(digits)?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_algorithm_of_a_certificate_is_found() {
        let key = rcgen::generate_simple_self_signed(vec!["db".to_owned()]).unwrap();
        let certificate = key.cert.der();
        let ecdsa_sha256 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
        assert_eq!(signature_algorithm(certificate), Some(&ecdsa_sha256[..]));
        assert_eq!(server_end_point(certificate).map(|hash| hash.len()), Some(32));
    }

    #[test]
    fn a_missing_root_is_never_weaker_trust() {
        let check = |text: &str, expected: &str| {
            let target = crate::postgres::Target::parse(text, |_| None).unwrap();
            let message = target.tls.client_config().map(|_| ()).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        };
        check("host=db user=me sslmode=verify-full", "set sslrootcert");
        check("host=db user=me sslmode=verify-ca", "set sslrootcert");
        check(
            "host=db user=me sslmode=require sslrootcert=/nowhere/ca.pem",
            "/nowhere/ca.pem cannot be read",
        );
        check(
            "host=db user=me sslmode=require sslcert=/nowhere/c sslkey=/nowhere/k",
            "/nowhere/k cannot be used",
        );
    }

    proptest! {
        #[test]
        fn no_certificate_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = server_end_point(&bytes);
        }
    }
}
