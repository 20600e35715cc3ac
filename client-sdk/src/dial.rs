//! From an address to bytes that go both ways: name, TCP, TLS.
//!
//! Whatever happens in here ends within one limit, which the caller sets. A name may stand for several
//! addresses; each gets its share of the time, so that one that swallows packets does not take it all.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use crate::Error;
#[cfg(feature = "tls")]
use crate::tls::Tls;

/// How long a peer may leave bytes or probes unanswered before the kernel gives the connection up.
const PEER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a broker is.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Without the brackets of an IPv6 address.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Host and port, as people write them.
    pub(crate) address: String,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Tls>,
}

/// A connection, encrypted or not.
#[derive(Debug)]
pub(crate) enum Wire {
    Plain(TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Target {
    /// Connects until `deadline`.
    pub(crate) async fn dial(&self, deadline: Instant) -> Result<Wire, Error> {
        let unresolved = |source| Error::Resolve { address: self.address.clone(), source };
        let found = match timeout_at(deadline, lookup_host((self.host.as_str(), self.port))).await {
            Ok(found) => found.map_err(unresolved)?.collect::<Vec<_>>(),
            Err(_) => return Err(unresolved(io::ErrorKind::TimedOut.into())),
        };
        let stream = self.connect(&found, deadline).await?;
        tune(&stream);
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return match timeout_at(deadline, tls.handshake(&self.host, stream)).await {
                Ok(Ok(stream)) => Ok(Wire::Tls(Box::new(stream))),
                Ok(Err(error)) => Err(self.handshake_failed(error)),
                Err(_) => Err(self.failed(io::ErrorKind::TimedOut.into())),
            };
        }
        Ok(Wire::Plain(stream))
    }

    async fn connect(&self, found: &[SocketAddr], deadline: Instant) -> Result<TcpStream, Error> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for (i, address) in found.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(found.len() - i).unwrap_or(u32::MAX);
            match timeout_at(Instant::now() + share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(self.failed(last))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Connect { address: self.address.clone(), source }
    }

    #[cfg(feature = "tls")]
    fn handshake_failed(&self, error: io::Error) -> Error {
        match crate::tls::distrust(&error) {
            Some(reason) => Error::Certificate { address: self.address.clone(), reason },
            None => self.failed(crate::tls::with_remedy(error)),
        }
    }
}

/// No delay for small writes, and an end for peers that vanished. A failure leaves the kernel's defaults,
/// which are slower but not wrong.
fn tune(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive);
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = socket.set_tcp_user_timeout(Some(PEER_TIMEOUT));
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = PEER_TIMEOUT;
}

impl Wire {
    fn reader(self: Pin<&mut Self>) -> Pin<&mut (dyn AsyncRead + Send + Unpin)> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }

    fn writer(self: Pin<&mut Self>) -> Pin<&mut (dyn AsyncWrite + Send + Unpin)> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.reader().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writer().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_shutdown(cx)
    }
}
