//! https: who is trusted, and what is said of the others.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use walcast_client::{Client, Error, State, Update};

use crate::fake::{Answer, Fake, answer, cursor, dead, event, frame, play, subscribed, within};
use crate::log::Log;

/// Somebody who signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// Serves https under a certificate for `name`; the port.
    async fn serve(&self, name: &str, connections: Vec<Vec<Answer>>) -> u16 {
        self.serve_as(CertificateParams::new(vec![name.to_owned()]).unwrap(), connections).await
    }

    async fn serve_as(&self, params: CertificateParams, connections: Vec<Vec<Answer>>) -> u16 {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for answers in connections {
                let (stream, _) = listener.accept().await.unwrap();
                if let Ok(stream) = acceptor.accept(stream).await {
                    play(stream, answers, mpsc::channel(64).0).await;
                }
            }
        });
        port
    }
}

fn value() -> String {
    answer("200 OK", &format!("etag: \"{}\"\r\n", cursor(4)), "1")
}

#[tokio::test]
async fn who_is_trusted_is_followed() {
    let authority = Authority::new();
    let frames = vec![subscribed(cursor(1)), frame(&event(2, "vm/a"))];
    let port = authority
        .serve("127.0.0.1", vec![vec![Answer::Keep(value())], vec![Answer::HeldWebSocket(frames)]])
        .await;
    let builder = Client::builder().hosts([format!("https://127.0.0.1:{port}")]);
    let client = builder.root_certificates(authority.pem()).build().unwrap();
    assert!(matches!(within(client.state("vm/a")).await.unwrap(), State::Value { .. }));
    drop(client);
    let builder = Client::builder().hosts([format!("https://127.0.0.1:{port}")]);
    let client = builder.root_certificates(authority.pem()).build().unwrap();
    let update = within(client.subscribe(["vm/*"]).stream().next()).await.unwrap().unwrap();
    assert!(matches!(update, Update::Event(event) if event.cursor == cursor(2)));
}

#[tokio::test]
async fn who_is_not_trusted_is_named_and_ends_it_if_there_is_no_other() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let script = || (0..8).map(|_| vec![Answer::Keep(value())]).collect::<Vec<_>>();
    let stranger = theirs.serve("127.0.0.1", script()).await;
    let misnamed = ours.serve("another.example", script()).await;
    let hosts = [stranger, misnamed].map(|port| format!("https://127.0.0.1:{port}"));
    let client =
        |hosts: &[String]| Client::builder().hosts(hosts).root_certificates(ours.pem()).build().unwrap();
    for host in &hosts {
        let error = within(client(std::slice::from_ref(host)).state("vm/a")).await.unwrap_err();
        let address = host.trim_start_matches("https://");
        assert!(matches!(error, Error::Certificate { .. }) && error.to_string().contains(address), "{error}");
    }
    let error = within(client(&hosts).subscribe(["vm/*"]).stream().next()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Certificate { .. }), "{error}");

    // With another broker it goes on.
    let fake = Fake::start(vec![vec![Answer::Keep(value())]]).await;
    let all = [hosts[0].clone(), fake.url(), dead().await];
    assert!(matches!(within(client(&all).state("vm/a")).await.unwrap(), State::Value { .. }));
}

#[tokio::test]
async fn a_certificate_that_ran_out_may_be_a_wrong_clock_and_is_tried_on() {
    let authority = Authority::new();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let port = authority.serve_as(params, (0..64).map(|_| Vec::new()).collect()).await;
    let builder = Client::builder().hosts([format!("https://127.0.0.1:{port}")]);
    let client = builder.root_certificates(authority.pem()).build().unwrap();
    let (log, _guard) = Log::listen();
    let mut updates = client.subscribe(["vm/*"]).stream();
    tokio::select! {
        update = updates.next() => panic!("{update:?}"),
        () = within(async {
            while log.count("no broker serves") == 0 {
                tokio::task::yield_now().await;
            }
        }) => {}
    }
    assert_eq!(log.count("clock"), log.lines().len(), "each names the remedy: {:?}", log.lines());
    assert_eq!(log.count("a broker cannot be used"), 1, "{:?}", log.lines());
}
