//! One stream to a server: TCP, a Unix socket, or TLS over TCP.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::dsn::Target;
use super::tls::{self, Mode};

/// A connected stream; nothing of the startup has been sent.
#[derive(Debug)]
pub struct Socket {
    io: Io,
    end_point: Option<Vec<u8>>,
}

#[derive(Debug)]
enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// Why TLS could not be had.
#[derive(Debug)]
pub(super) enum TlsError {
    /// The connection broke.
    Io(io::Error),
    /// The server has no TLS, or is not trusted.
    Refused(String),
}

impl Socket {
    /// Connects by TCP, with the target's keepalive and time limits set.
    pub(super) async fn tcp(address: SocketAddr, target: &Target) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        if let Some(keepalive) = target.keepalive {
            let settings = TcpKeepalive::new().with_time(keepalive.idle).with_interval(keepalive.interval);
            socket.set_tcp_keepalive(&settings.with_retries(keepalive.count))?;
        }
        #[cfg(target_os = "linux")]
        if !target.tcp_user_timeout.is_zero() {
            socket.set_tcp_user_timeout(Some(target.tcp_user_timeout))?;
        }
        Ok(Self { io: Io::Tcp(stream), end_point: None })
    }

    /// Connects to the Unix socket of this port.
    pub(super) async fn unix(directory: &Path, port: u16) -> io::Result<Self> {
        let stream = UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).await?;
        Ok(Self { io: Io::Unix(stream), end_point: None })
    }

    /// Asks for TLS and starts it. Returns the plain socket where the server has none and that will do.
    pub(super) async fn encrypt(
        self,
        host: &str,
        settings: &tls::Settings,
        config: Arc<ClientConfig>,
    ) -> Result<Self, TlsError> {
        let Io::Tcp(mut stream) = self.io else { return Ok(self) };
        if !settings.direct {
            let mut request = BytesMut::new();
            frontend::ssl_request(&mut request);
            stream.write_all(&request).await.map_err(TlsError::Io)?;
            // Exactly one byte: what somebody may have slipped in behind it must not count as encrypted.
            match stream.read_u8().await.map_err(TlsError::Io)? {
                b'S' => {}
                b'N' if settings.mode < Mode::Require => return Ok(Self { io: Io::Tcp(stream), ..self }),
                b'N' => {
                    let message = "the server has no TLS; set ssl=on there, or a weaker sslmode here";
                    return Err(TlsError::Refused(message.into()));
                }
                _ => {
                    return Err(TlsError::Refused(
                        "the answer to the request for TLS is not Postgres's".into(),
                    ));
                }
            }
        }
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| TlsError::Refused(format!("{host} is not a name that a certificate could hold")))?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
            match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(cause) => TlsError::Refused(explain(cause, host)),
                None => TlsError::Io(error),
            }
        })?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let end_point = certificates.first().and_then(|certificate| tls::server_end_point(certificate));
        Ok(Self { io: Io::Tls(Box::new(stream)), end_point })
    }

    /// For tests that play the server.
    #[cfg(test)]
    pub(crate) fn over(stream: TcpStream) -> Self {
        Self { io: Io::Tcp(stream), end_point: None }
    }

    /// Whether TLS is in use.
    #[must_use]
    pub fn encrypted(&self) -> bool {
        matches!(self.io, Io::Tls(_))
    }

    /// The `tls-server-end-point`, for SCRAM's channel binding.
    #[must_use]
    pub fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut (dyn Stream + '_)> {
        let stream: Pin<&mut dyn Stream> = match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream) as Pin<&mut TcpStream>,
            Io::Unix(stream) => Pin::new(stream) as Pin<&mut UnixStream>,
            Io::Tls(stream) => {
                Pin::new(stream.as_mut()) as Pin<&mut tokio_rustls::client::TlsStream<TcpStream>>
            }
        };
        stream
    }
}

fn explain(error: &rustls::Error, host: &str) -> String {
    use rustls::CertificateError::{NotValidForName, NotValidForNameContext, UnknownIssuer};
    match error {
        rustls::Error::InvalidCertificate(UnknownIssuer) => {
            "the server's certificate is not signed by a CA in sslrootcert; check that file".into()
        }
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => format!(
            "the server's certificate is not for {host}; connect by a name in its subjectAltName, or use \
             sslmode=verify-ca"
        ),
        other => format!("TLS failed: {other}"),
    }
}

trait Stream: AsyncRead + AsyncWrite {}
impl<T: AsyncRead + AsyncWrite> Stream for T {}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }
}
