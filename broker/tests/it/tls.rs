//! Both listeners over TLS: the same answers on every way in, and a certificate that is renewed while they run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::client_async;
use walcast::auth::Token;

use crate::broker::{connect, prepare, run};
use crate::process::{directory, run as command};
use crate::server;
use crate::serving::{self, Process};
use crate::wait::{until, within};

/// A certificate of our own for `localhost`, in files.
struct Paper {
    certificate: PathBuf,
    key: PathBuf,
}

impl Paper {
    fn new(name: &str) -> Self {
        let directory = directory(name);
        let paper = Self { certificate: directory.join("cert.pem"), key: directory.join("key.pem") };
        paper.renew();
        paper
    }

    fn renew(&self) {
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&self.key, own.signing_key.serialize_pem()).unwrap();
        std::fs::write(&self.certificate, own.cert.pem()).unwrap();
    }

    fn section(&self) -> String {
        format!("[tls]\ncertificate = '{}'\nkey = '{}'\n", self.certificate.display(), self.key.display())
    }
}

/// Trusts what stands in the file now, and nobody else.
async fn dial(address: &str, certificate: &Path) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

async fn answer(address: &str, paper: &Paper, request: &str) -> String {
    let mut stream = dial(address, &paper.certificate).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    within("the answer ends", stream.read_to_end(&mut bytes)).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

fn get(target: &str, token: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n"
    )
}

#[tokio::test]
async fn every_way_in_speaks_tls() {
    let name = "tls";
    let (url, paper, token) = (server::create(name).await, Paper::new("tls-files"), Token::new());
    prepare(&url, name, "CREATE TABLE vms (host text PRIMARY KEY, pin text)", RULE).await;
    const RULE: &str = "[[table]]\nname = 'public.vms'\ntopic = 'vm/{host}'\nstate = true\n";
    let role =
        "[[role]]\nname = 'all'\nsubscribe = ['**']\npublish = ['**']\nwaiters = ['**']\nadmin = true\n";
    let key = format!("[[key]]\nsub = 'test'\nsha256 = '{}'\nroles = ['all']\n", token.sha256());
    let broker = Process::start(
        name,
        &serving::settings(&url, name, "", &format!("{}{RULE}{role}{key}", paper.section())),
    )
    .await;
    let ask = async |address: &str, request: String| answer(address, &paper, &request).await;
    until("the broker is ready", async || {
        ask(&broker.admin, get("/readyz", "nobody's")).await.contains("{\"ready\":true}")
    })
    .await;

    // Longer than a record, and than what one write takes.
    let sql = connect(&url).await;
    run(&sql, "INSERT INTO vms SELECT i, repeat('x', 100000) FROM generate_series(1, 20) i").await;
    until("the rows have come", async || {
        ask(&broker.http, get("/v1/state/vm/20", token.reveal())).await.starts_with("HTTP/1.1 200")
    })
    .await;
    let all = ask(&broker.http, get("/v1/events?topic=vm/*&after=earliest&wait=1", token.reveal())).await;
    assert!(all.len() > 2_000_000 && all.ends_with("]}"), "{} bytes", all.len());
    assert!(ask(&broker.http, get("/v1/waiters", token.reveal())).await.contains("\"waiting\":"));
    assert!(ask(&broker.http, get("/v1/waiters", "other")).await.starts_with("HTTP/1.1 401"));
    let metrics = ask(&broker.admin, get("/metrics", token.reveal())).await;
    assert!(metrics.contains("walcast_subscriptions"), "{metrics}");
    assert!(ask(&broker.admin, get("/metrics", "other")).await.starts_with("HTTP/1.1 401"));
    assert!(ask(&broker.admin, get("/readyz", token.reveal())).await.contains("\"epoch\""));
    let body = r#"{"topic": "said", "data": 1}"#;
    let publish = format!(
        "POST /v1/publish HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         authorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
        token.reveal(),
        body.len()
    );

    // A held poll, a WebSocket and an event for both.
    let waits = ask(&broker.http, get("/v1/events?topic=said&after=now&wait=60", token.reveal()));
    let stream = dial(&broker.http, &paper.certificate).await.unwrap();
    let request = tokio_tungstenite::tungstenite::http::Request::get("ws://localhost/v1/ws?topic=said")
        .header("host", "localhost")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("authorization", format!("Bearer {}", token.reveal()))
        .body(())
        .unwrap();
    let (mut socket, _) = client_async(request, stream).await.unwrap();
    let (polled, published) = tokio::join!(waits, async {
        until("both wait", async || {
            ask(&broker.http, get("/v1/waiters", token.reveal())).await.contains("\"waiting\":2")
        })
        .await;
        ask(&broker.http, publish).await
    });
    assert!(published.starts_with("HTTP/1.1 200"), "{published}");
    assert!(polled.contains("\"data\":1"), "{polled}");
    loop {
        let message = within("the event", socket.next()).await.unwrap().unwrap();
        if message.into_text().unwrap().contains("\"event\"") {
            break;
        }
    }

    // The commands, too.
    let file = |name: &str, text: &str| {
        let path = paper.key.with_file_name(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (good, bad) = (file("token", &format!("{}\n", token.reveal())), file("other", "a-token-of-others"));
    let url = format!("--url=https://localhost:{}", broker.http.rsplit_once(':').unwrap().1);
    let ca = format!("--ca-file={}", paper.certificate.display());
    let publish = async |token: &str| {
        command(&["publish", "said", "3", &url, &ca, &format!("--token-file={token}")]).await
    };
    publish(&good).await.succeeded();
    publish(&bad).await.failed(77, &["localhost", "unauthorized", "--token-file"]);
    command(&["publish", "said", "3", &url]).await.failed(1, &["localhost", "certificate", "--ca-file"]);
    let tail = ["tail", "said", "--after=earliest", "--limit=1", "--json", &url, &ca];
    let told = command(&[&tail[..], &[&format!("--token-file={good}")]].concat()).await;
    assert!(told.succeeded().contains("\"data\":1"), "{told:?}");

    // Who speaks something else is cut, and holds nobody up.
    let mut plain = TcpStream::connect(&broker.http).await.unwrap();
    plain.write_all(b"GET /v1/events?topic=a HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    let _ = within("it is cut", plain.read_to_end(&mut bytes)).await;
    assert!(!bytes.starts_with(b"HTTP"), "{bytes:?}");

    // Those that are connected stay when the certificate is renewed.
    let old = CertificateDer::from_pem_file(&paper.certificate).unwrap();
    paper.renew();
    assert_ne!(old, CertificateDer::from_pem_file(&paper.certificate).unwrap());
    until("the new certificate is shown", async || dial(&broker.http, &paper.certificate).await.is_ok())
        .await;
    dial(&broker.admin, &paper.certificate).await.unwrap();
    run(&sql, "SELECT walcast.publish('said', '2')").await;
    loop {
        let message = within("the event", socket.next()).await.unwrap().unwrap();
        if message.is_text() && message.into_text().unwrap().contains("\"data\":2") {
            break;
        }
    }
    let ended = broker.stop().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
}
