//! `rediss://`: encrypted, and only with a server that the system's certificates vouch for.

use std::net::TcpListener;

use walcast::backbone::redis::{Config, RedisError, Writer};

use super::{FENCE, Lab, SOURCE, at, begins};
use crate::wait::within;

/// Says to this test, started again, that it is the process with a root certificate.
const URL: &str = "WALCAST_TEST_REDISS_URL";

async fn connect(url: String) -> Result<Writer, RedisError> {
    let config = Config { url: Some(url), ..Config::default() };
    within("an answer", Writer::connect(&config, SOURCE)).await
}

#[tokio::test]
async fn rediss_trusts_what_the_system_trusts() {
    if let Ok(url) = std::env::var(URL) {
        let mut writer = connect(url.clone()).await.unwrap();
        writer.claim(FENCE).await.unwrap();
        writer.append(&begins(at(6, 0), at(7, 1))).await.unwrap();
        let other_name = connect(url.replace("localhost", "127.0.0.1")).await;
        assert!(
            matches!(&other_name, Err(RedisError::Unsuitable(why)) if why.contains("TLS")),
            "{other_name:?}"
        );
        return;
    }
    let lab = Lab::start().await;
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files = [("cert.pem", own.cert.pem()), ("key.pem", own.signing_key.serialize_pem())];
    let [cert, key] = files.map(|(name, pem)| {
        let path = lab.server.dir().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    });
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut set = redis::cmd("CONFIG");
    set.arg("SET")
        .arg("tls-cert-file")
        .arg(&cert)
        .arg("tls-key-file")
        .arg(&key)
        .arg("tls-auth-clients")
        .arg("no");
    let _: () = lab.ask(&set).await;
    let _: () = lab.say(&format!("CONFIG SET tls-port {port}")).await;

    let url = format!("rediss://localhost:{port}");
    let stranger = connect(url.clone()).await;
    assert!(matches!(&stranger, Err(RedisError::Unsuitable(why)) if why.contains("TLS")), "{stranger:?}");
    let mut again = tokio::process::Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "redis::tls::rediss_trusts_what_the_system_trusts"]);
    let output = within("the other process", again.env(URL, &url).env("SSL_CERT_FILE", &cert).output()).await;
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(lab.keys().await.len(), 3);
}
