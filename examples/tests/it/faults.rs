//! What lies between a client and its broker, and fails on purpose.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Passes on what clients and a broker say, and breaks off where it is told to.
pub(crate) struct Proxy {
    port: u16,
    link: Arc<Link>,
}

struct Link {
    broker: u16,
    /// So many more bytes may come from the broker.
    left: AtomicI64,
    cuts: AtomicU64,
}

impl Proxy {
    /// To a port of this machine.
    pub(crate) async fn start(broker: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let link = Arc::new(Link { broker, left: AtomicI64::new(i64::MAX), cuts: AtomicU64::new(0) });
        let passing = Arc::clone(&link);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&passing).pass(client));
            }
        });
        Self { port, link }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends the connection behind so many more bytes of the broker's, once.
    pub(crate) fn cut_after(&self, bytes: i64) {
        self.link.left.store(bytes, SeqCst);
    }

    pub(crate) fn cuts(&self) -> u64 {
        self.link.cuts.load(SeqCst)
    }
}

impl Link {
    async fn pass(self: Arc<Self>, client: TcpStream) {
        let Ok(broker) = TcpStream::connect(("127.0.0.1", self.broker)).await else { return };
        let (mut asked, mut answered) = client.into_split();
        let (mut answers, mut asks) = broker.into_split();
        let down = async {
            let mut bytes = vec![0; 1 << 16];
            while let Ok(count @ 1..) = answers.read(&mut bytes).await {
                let left = self.left.fetch_sub(count as i64, SeqCst);
                let passes = count.min(left.max(0) as usize);
                if answered.write_all(&bytes[..passes]).await.is_err() {
                    return;
                }
                if passes < count {
                    self.cuts.fetch_add(1, SeqCst);
                    self.left.store(i64::MAX, SeqCst);
                    return;
                }
            }
        };
        // Whichever side ends takes the other with it.
        tokio::select! {
            () = down => {}
            _ = tokio::io::copy(&mut asked, &mut asks) => {}
        }
    }
}

/// Answers with these, one a connection: status, headers, body. It says where it listens.
pub(crate) async fn canned(answers: Vec<(&'static str, &'static str, &'static str)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for (status, headers, body) in answers {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(client.read_u8().await.unwrap());
            }
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            client.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    url
}
