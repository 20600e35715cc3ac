//! `rediss://`: encrypted, and only with a server that the system's certificates vouch for.

use walcast::backbone::redis::{Config, RedisError, Writer};

use super::{FENCE, Lab, SOURCE, at, begins};
use crate::redis_group::{SERVICE, Sentinel, free_port};
use crate::wait::within;

/// Says to this test, started again, that it is the process with a root certificate.
const URL: &str = "WALCAST_TEST_REDISS_URL";
const SENTINEL_URL: &str = "WALCAST_TEST_REDISS_SENTINEL_URL";

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
        // So do those that are found.
        connect(url.replace("rediss:", "rediss-cluster:")).await.unwrap();
        connect(std::env::var(SENTINEL_URL).unwrap()).await.unwrap();
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
    let port = free_port();
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

    // Sentinels tell of servers by name only where they are told to.
    let at_sentinel = free_port();
    let settings = format!(
        "tls-port {at_sentinel}\ntls-cert-file {cert}\ntls-key-file {key}\ntls-auth-clients no\n\
         tls-ca-cert-file {cert}\ntls-replication yes\n\
         sentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n"
    );
    let _sentinel = Sentinel::tuned("redis-tls-sentinel", ("localhost", port), 1, &settings).await;
    let sentinel_url = format!("rediss-sentinel://localhost:{at_sentinel}?service={SERVICE}");

    let url = format!("rediss://localhost:{port}");
    let stranger = connect(url.clone()).await;
    assert!(matches!(&stranger, Err(RedisError::Unsuitable(why)) if why.contains("TLS")), "{stranger:?}");
    let mut again = tokio::process::Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "redis::tls::rediss_trusts_what_the_system_trusts"]);
    let output = within(
        "the other process",
        again.env(URL, &url).env(SENTINEL_URL, sentinel_url).env("SSL_CERT_FILE", &cert).output(),
    )
    .await;
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(lab.keys().await.len(), 3);
}
