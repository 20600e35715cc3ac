//! A link between two TCP peers that a test can make slow, cut, or silent.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Forwards to a server.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    link: Arc<Link>,
}

struct Link {
    server: SocketAddr,
    /// Connections whose first words hold this go to that port instead.
    diverted: Mutex<Option<(&'static str, u16)>>,
    /// Nothing passes, on connections of before, now, and ever after.
    black: AtomicBool,
    /// How often that began; connections that lived through it stay silent.
    blackouts: AtomicU64,
    /// Bytes per second from the server; 0: as fast as they come.
    rate: AtomicU64,
    /// So many more bytes may come from the server before everything is reset.
    left: AtomicI64,
    /// Connections that were forwarded, and those that the server's bytes were cut on.
    resets: AtomicU64,
}

impl Proxy {
    /// To a port of this machine.
    pub(crate) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let link = Arc::new(Link {
            server: SocketAddr::from(([127, 0, 0, 1], port)),
            diverted: Mutex::new(None),
            black: AtomicBool::new(false),
            blackouts: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            left: AtomicI64::new(i64::MAX),
            resets: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&link);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&accepting).forward(client));
            }
        });
        Self { address, link }
    }

    /// From now on nothing passes, and nobody is told. Connections that live now never recover, as behind a
    /// router that lost its state; those made after [`Proxy::heal`] work.
    pub(crate) fn blackhole(&self) {
        self.link.black.store(true, Ordering::SeqCst);
        self.link.blackouts.fetch_add(1, Ordering::SeqCst);
    }

    /// New connections that begin with this word somewhere go to another port.
    pub(crate) fn divert(&self, to: Option<(&'static str, u16)>) {
        *self.link.diverted.lock().unwrap() = to;
    }

    /// New connections work again.
    pub(crate) fn heal(&self) {
        self.link.black.store(false, Ordering::SeqCst);
    }

    /// Lets so many bytes per second pass from the server on each connection.
    pub(crate) fn slow(&self, bytes_per_second: u64) {
        self.link.rate.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Resets the connection that brings the byte behind the next `bytes` of the server's, without sending it.
    pub(crate) fn reset_after(&self, bytes: i64) {
        self.link.left.store(bytes, Ordering::SeqCst);
    }

    /// How many connections were reset.
    pub(crate) fn resets(&self) -> u64 {
        self.link.resets.load(Ordering::SeqCst)
    }
}

impl Link {
    async fn forward(self: Arc<Self>, client: TcpStream) {
        let born = match self.black.load(Ordering::SeqCst) {
            true => u64::MAX,
            false => self.blackouts.load(Ordering::SeqCst),
        };
        let mut server = self.server;
        let diverted = *self.diverted.lock().unwrap();
        if let Some((word, port)) = diverted {
            let mut first = [0; 1024];
            let Ok(length) = client.peek(&mut first).await else { return };
            if String::from_utf8_lossy(&first[..length]).contains(word) {
                server.set_port(port);
            }
        }
        let Ok(server) = TcpStream::connect(server).await else { return };
        let reset = CancellationToken::new();
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        let up = self.pump(client_read, server_write, born, false, &reset);
        let down = self.pump(server_read, client_write, born, true, &reset);
        tokio::join!(up, down);
    }

    fn silent(&self, born: u64) -> bool {
        self.blackouts.load(Ordering::SeqCst) != born
    }

    async fn pump(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        born: u64,
        down: bool,
        reset: &CancellationToken,
    ) {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let length = match reset.run_until_cancelled(from.read(&mut buffer)).await {
                None => {
                    to.forget();
                    return;
                }
                Some(Ok(length @ 1..)) => length,
                // The other side must not hear of an end behind the silence.
                Some(_) if self.silent(born) => std::future::pending().await,
                Some(_) => return,
            };
            if self.silent(born) {
                continue;
            }
            let taken = i64::try_from(length).unwrap();
            if down && self.left.fetch_sub(taken, Ordering::SeqCst) < taken {
                self.left.store(i64::MAX, Ordering::SeqCst);
                // A part of what was read, so that a frame is cut.
                let _ = to.write_all(&buffer[..length / 2]).await;
                self.resets.fetch_add(1, Ordering::SeqCst);
                let _ = socket2::SockRef::from(to.as_ref()).set_linger(Some(Duration::ZERO));
                reset.cancel();
                to.forget();
                return;
            }
            if to.write_all(&buffer[..length]).await.is_err() {
                return;
            }
            let rate = self.rate.load(Ordering::SeqCst);
            if down && rate > 0 {
                tokio::time::sleep(Duration::from_secs_f64(length as f64 / rate as f64)).await;
            }
        }
    }
}
