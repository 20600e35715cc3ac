//! Sessions, the companion and the replication connection on a real server.

use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::TcpListener;
use walcast::postgres::{Busy, Closed, Companion, ConnectErrorKind as Kind, Session, SessionState, Target};
use walcast::source::wal::replication::{Connection, Frame, ReplicationError, Stream, StreamOptions};

use crate::proxy::Proxy;
use crate::server::{Server, target};
use crate::wait::{until, within};

const LEASE: Duration = Duration::from_secs(5);

/// How a target fares with both kinds of session: whether TLS is used, or what stood in the way.
async fn try_both(target: &Target) -> Result<bool, (Kind, String)> {
    let session = Session::connect(target, "walcast/test").await;
    let replication = Connection::connect(target, "walcast/test", LEASE).await;
    let sql = "SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()";
    match (session, replication) {
        (Ok(session), Ok(mut replication)) => {
            let row = session.query_one(sql, &[]).await.unwrap();
            let rows = replication.query(sql).await.unwrap();
            let ssl: bool = row.get(0);
            assert_eq!(rows, [[Some(if ssl { "t" } else { "f" }.to_owned())]]);
            session.close().await;
            replication.close().await;
            Ok(ssl)
        }
        (Err(session), Err(replication)) => {
            assert_eq!(
                (session.kind, &session.code),
                (replication.kind, &replication.code),
                "{session} / {replication}"
            );
            Err((session.kind, session.to_string()))
        }
        (session, replication) => panic!("different: {session:?} / {replication:?}"),
    }
}

struct Authority {
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

fn authority() -> Authority {
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = parameters.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: rcgen::Issuer::new(parameters, key) }
}

/// A server whose certificate is for `localhost`.
async fn tls_server(hba: &str) -> Server {
    let ca = authority();
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = parameters.signed_by(&key, &ca.issuer).unwrap();
    let files = [
        ("server.crt", certificate.pem()),
        ("server.key", key.serialize_pem()),
        ("ca.crt", ca.pem),
        ("other.crt", authority().pem),
    ];
    let files = files.each_ref().map(|(name, content)| (*name, content.as_str()));
    Server::start(hba, &files, &[("ssl", "on")]).await
}

#[tokio::test]
async fn sslmode_means_what_libpq_means() {
    let server = tls_server(
        "hostssl all,replication only_tls all trust\nhostnossl all,replication only_plain all trust\nhost all,replication either all trust",
    )
    .await;
    for role in ["only_tls", "only_plain", "either"] {
        server.sql(&format!("CREATE ROLE {role} LOGIN REPLICATION"));
    }
    let directory = server.directory.display().to_string();
    let check = async |words: &str, expected: Result<bool, Kind>| {
        let words = words.replace("DIR", &directory);
        let target = target(&format!("dbname=postgres port={} {words}", server.port));
        let found = try_both(&target).await;
        assert_eq!(found.as_ref().map_err(|(kind, _)| *kind).copied(), expected, "{words}: {found:?}");
    };
    check("host=localhost user=either sslmode=disable", Ok(false)).await;
    check("host=localhost user=either sslmode=allow", Ok(false)).await;
    check("host=localhost user=either", Ok(true)).await;
    check("host=localhost user=either sslmode=require", Ok(true)).await;
    check("host=localhost user=either sslmode=require ssl_min_protocol_version=TLSv1.3", Ok(true)).await;
    // The weak modes try the other way where one is refused.
    check("host=localhost user=only_tls sslmode=allow", Ok(true)).await;
    check("host=localhost user=only_plain sslmode=prefer", Ok(false)).await;
    check("host=localhost user=only_tls sslmode=disable", Err(Kind::Authentication)).await;
    check("host=localhost user=only_plain sslmode=require", Err(Kind::Authentication)).await;
    // Whom to trust.
    check("host=localhost user=either sslmode=verify-full sslrootcert=DIR/ca.crt", Ok(true)).await;
    check("host=127.0.0.1 user=either sslmode=verify-full sslrootcert=DIR/ca.crt", Err(Kind::Tls)).await;
    check(
        "host=localhost hostaddr=127.0.0.1 user=either sslmode=verify-full sslrootcert=DIR/ca.crt",
        Ok(true),
    )
    .await;
    check("host=127.0.0.1 user=either sslmode=verify-ca sslrootcert=DIR/ca.crt", Ok(true)).await;
    check("host=localhost user=either sslmode=verify-full sslrootcert=DIR/other.crt", Err(Kind::Tls)).await;
    check("host=localhost user=either sslmode=require sslrootcert=DIR/other.crt", Err(Kind::Tls)).await;
    check("host=localhost user=either sslmode=prefer sslrootcert=DIR/other.crt", Ok(false)).await;
    check("host=localhost user=either sslmode=verify-full sslrootcert=DIR/server.crt", Ok(true)).await;
    check("host=localhost user=either sslmode=require sslrootcert=DIR/none.crt", Err(Kind::Configuration))
        .await;
}

#[tokio::test]
async fn a_server_without_tls() {
    let server = Server::start("host all,replication either all trust", &[], &[]).await;
    server.sql("CREATE ROLE either LOGIN REPLICATION");
    let words = format!("host=127.0.0.1 port={} user=either dbname=postgres", server.port);
    assert_eq!(try_both(&target(&words)).await, Ok(false));
    let (kind, message) = try_both(&target(&format!("{words} sslmode=require"))).await.unwrap_err();
    assert_eq!(kind, Kind::Tls);
    assert!(message.contains("the server has no TLS"), "{message}");
}

#[tokio::test]
async fn passwords_from_everywhere() {
    let hba = "host all,replication scram all scram-sha-256\nhost all,replication md5 all md5\nhost all,replication clear all password";
    let server = tls_server(hba).await;
    server.sql("CREATE ROLE scram LOGIN REPLICATION PASSWORD 'sword fish'");
    server.sql("CREATE ROLE clear LOGIN REPLICATION PASSWORD 'sword fish'");
    server.sql("SET password_encryption = md5; CREATE ROLE md5 LOGIN REPLICATION PASSWORD 'sword fish'");
    let base = format!("host=localhost port={} dbname=postgres", server.port);
    let check = async |words: &str, expected: Result<bool, Kind>| {
        let found = try_both(&target(&format!("{base} {words}"))).await;
        assert_eq!(found.as_ref().map_err(|(kind, _)| *kind).copied(), expected, "{words}: {found:?}");
        if let Err((_, message)) = found {
            assert!(
                !message.contains("fish") && !message.contains("trout") && !message.contains('\n'),
                "{message}"
            );
        }
    };
    for role in ["scram", "md5", "clear"] {
        check(&format!("user={role} password='sword fish'"), Ok(true)).await;
        check(&format!("user={role} password='sword fish' sslmode=disable"), Ok(false)).await;
        check(&format!("user={role} password=trout"), Err(Kind::Authentication)).await;
        check(&format!("user={role}"), Err(Kind::Authentication)).await;
    }
    check("user=scram password='sword fish' channel_binding=require", Ok(true)).await;
    check("user=scram password='sword fish' channel_binding=disable", Ok(true)).await;
    check(
        "user=scram password='sword fish' channel_binding=require sslmode=disable",
        Err(Kind::Authentication),
    )
    .await;
    check("user=md5 password='sword fish' channel_binding=require", Err(Kind::Authentication)).await;

    let line = format!("localhost:{}:postgres:scram:sword fish\n", server.port);
    let passfile = server.file("passfile", &line).display().to_string();
    check(&format!("user=scram passfile={passfile}"), Ok(true)).await;
    std::fs::set_permissions(&passfile, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let (_, message) =
        try_both(&target(&format!("{base} user=scram passfile={passfile}"))).await.unwrap_err();
    assert!(message.contains("chmod 0600"), "{message}");
}

#[tokio::test]
async fn a_changed_password_file_is_read_again() {
    let server = Server::start("host all,replication scram all scram-sha-256", &[], &[]).await;
    server.sql("CREATE ROLE scram LOGIN REPLICATION PASSWORD 'one'");
    let mut target = target(&format!("host=127.0.0.1 port={} user=scram dbname=postgres", server.port));
    target.password_file = Some(server.file("password", "one\n"));
    try_both(&target).await.unwrap();
    server.sql("ALTER ROLE scram PASSWORD 'two'");
    assert_eq!(try_both(&target).await.unwrap_err().0, Kind::Authentication);
    server.file("password", "two");
    try_both(&target).await.unwrap();
    std::fs::remove_file(server.directory.join("password")).unwrap();
    let (kind, message) = try_both(&target).await.unwrap_err();
    assert_eq!(kind, Kind::Configuration);
    assert!(message.contains("password_file") && message.contains("cannot be read"), "{message}");
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let server = Server::start("host all,replication all all trust", &[], &[]).await;
    server.sql("CREATE ROLE plain LOGIN; CREATE ROLE one LOGIN REPLICATION CONNECTION LIMIT 1");
    let base = format!("host=127.0.0.1 port={}", server.port);
    let absent = target(&format!("{base} user=postgres dbname=absent"));
    assert_eq!(try_both(&absent).await.unwrap_err().0, Kind::DatabaseMissing);
    let plain = target(&format!("{base} user=plain dbname=postgres"));
    let error = Connection::connect(&plain, "walcast/test", LEASE).await.unwrap_err();
    assert_eq!(error.kind, Kind::Privilege, "{error}");
    let one = target(&format!("{base} user=one dbname=postgres"));
    let held = Session::connect(&one, "walcast/test").await.unwrap();
    let error = Session::connect(&one, "walcast/test").await.unwrap_err();
    assert_eq!(error.kind, Kind::TooManyConnections, "{error}");
    held.close().await;
    let closed = target("host=127.0.0.1 port=1 user=me");
    assert_eq!(try_both(&closed).await.unwrap_err().0, Kind::Network);
    let nowhere = target(&format!("host={} user=me", server.directory.join("none").display()));
    assert_eq!(try_both(&nowhere).await.unwrap_err().0, Kind::Network);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for mode in ["disable", "require"] {
        let mut target = target(&format!("host=127.0.0.1 port={port} user=me sslmode={mode}"));
        target.connect_timeout = Some(Duration::from_millis(100));
        let (kind, message) = try_both(&target).await.unwrap_err();
        assert_eq!(kind, Kind::Network, "{message}");
    }
}

#[tokio::test]
async fn the_first_host_that_will_do() {
    let server = Server::start("host all,replication all all trust", &[], &[]).await;
    let check = async |words: &str, expected: Result<bool, Kind>| {
        let words = words.replace("PORT", &server.port.to_string());
        let found = try_both(&target(&format!("user=postgres dbname=postgres {words}"))).await;
        assert_eq!(found.map_err(|(kind, _)| kind), expected, "{words}");
    };
    check("host=127.0.0.1,127.0.0.1 port=1,PORT", Ok(false)).await;
    check("host=/nowhere,127.0.0.1 port=PORT target_session_attrs=read-write", Ok(false)).await;
    check("host=127.0.0.1 port=PORT target_session_attrs=standby", Err(Kind::WrongServer)).await;
    check("host=127.0.0.1 port=PORT target_session_attrs=read-only", Err(Kind::WrongServer)).await;
    check("host=127.0.0.1,127.0.0.1 port=PORT,1 load_balance_hosts=random", Ok(false)).await;
}

#[tokio::test]
async fn hostile_defaults_do_not_matter() {
    let server = Server::start("", &[], &[]).await;
    for setting in [
        "statement_timeout = '1ms'",
        "idle_session_timeout = '100ms'",
        "idle_in_transaction_session_timeout = '1ms'",
        "search_path = 'nowhere'",
        "\"TimeZone\" = 'Asia/Kolkata'",
        "\"DateStyle\" = 'German'",
        "\"IntervalStyle\" = 'iso_8601'",
        "extra_float_digits = -5",
        "bytea_output = 'escape'",
        "default_transaction_isolation = 'serializable'",
        "wal_sender_timeout = '1s'",
        "default_transaction_read_only = on",
    ] {
        server.sql(&format!("ALTER ROLE postgres SET {setting}"));
    }
    let session = Session::connect(&server.target(), "walcast/test").await.unwrap();
    let mut replication = Connection::connect(&server.target(), "walcast/test", LEASE).await.unwrap();
    for (name, expected) in [
        ("statement_timeout", "0"),
        ("idle_session_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("search_path", "pg_catalog"),
        ("TimeZone", "UTC"),
        ("DateStyle", "ISO, YMD"),
        ("IntervalStyle", "postgres"),
        ("lc_monetary", "C"),
        ("extra_float_digits", "1"),
        ("bytea_output", "hex"),
        ("transaction_read_only", "off"),
        ("transaction_isolation", "read committed"),
        ("lock_timeout", "30s"),
        ("application_name", "walcast/test"),
        ("client_encoding", "UTF8"),
    ] {
        let sql = format!("SELECT current_setting('{name}')");
        let value: String = session.query_one(&sql, &[]).await.unwrap().get(0);
        assert_eq!(value, expected, "{name}");
        let rows = replication.query(&sql).await.unwrap();
        assert_eq!(rows[0][0].as_deref(), Some(expected), "{name}");
    }
    let rows = replication
        .query("SELECT current_setting('wal_sender_timeout'), NULL, pg_backend_pid()")
        .await
        .unwrap();
    assert_eq!(rows, [[Some("5s".into()), None, Some(replication.pid().to_string())]]);
    let error = replication.query("SELECT 1/0").await.unwrap_err();
    assert!(matches!(&error, ReplicationError::Server(error) if error.code.code() == "22012"), "{error}");
    assert_eq!(replication.query("SELECT 1").await.unwrap(), [[Some("1".to_owned())]]);
}

#[tokio::test]
async fn an_idle_session_hears_of_its_end() {
    let server = Server::start("", &[], &[]).await;
    let session = Session::connect(&server.target(), "walcast/test").await.unwrap();
    let mut replication = Connection::connect(&server.target(), "walcast/test", LEASE).await.unwrap();
    server.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walcast/test'",
    );
    let closed = within("the session hears of it", session.closed()).await;
    assert!(matches!(&closed, Closed::Shutdown(code) if code.code() == "57P01"), "{closed:?}");
    let error = replication.query("SELECT 1").await.unwrap_err();
    assert!(matches!(error, ReplicationError::Shutdown(_)), "{error}");
    drop(session);
    let session = Session::connect(&server.target(), "walcast/drop").await.unwrap();
    drop(session);
    let count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walcast/drop'";
    until("a dropped session is gone", async || server.sql(count) == "0").await;
}

#[tokio::test]
async fn the_companion_is_one_session_that_comes_back() {
    let server = Server::start("", &[], &[]).await;
    let companion = Companion::new(server.target(), "walcast/companion", 2);
    let mut watch = companion.watch();
    assert_eq!(*watch.borrow(), SessionState::None);
    let pid = async |companion: &Companion| -> i32 {
        companion.lock().await.unwrap().query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0)
    };
    let first = pid(&companion).await;
    assert_eq!(pid(&companion).await, first);
    assert_eq!(*watch.borrow_and_update(), SessionState::Open);

    server.sql(&format!("SELECT pg_terminate_backend({first})"));
    let closed = watch.wait_for(|state| matches!(state, SessionState::Closed(Closed::Shutdown(_))));
    within("the session hears of it", closed).await.unwrap();
    assert_ne!(pid(&companion).await, first);
    assert_eq!(*watch.borrow_and_update(), SessionState::Open);

    // A publish that runs and one that waits are all that may.
    let running = companion.lock_for_publish().await.unwrap();
    let mut waiting = std::pin::pin!(companion.lock_for_publish());
    assert!(waiting.as_mut().now_or_never().is_none());
    assert!(matches!(companion.lock_for_publish().await, Err(Busy::Full)));
    drop(running);
    drop(waiting.await.unwrap());

    // A transaction that is dropped half-way leaves nothing behind.
    let mut guard = companion.lock().await.unwrap();
    let transaction = guard.transaction().await.unwrap();
    transaction.batch_execute("CREATE TABLE public.left_over ()").await.unwrap();
    drop(transaction);
    drop(guard);
    assert_eq!(pid(&companion).await, pid(&companion).await);
    assert_eq!(server.sql("SELECT to_regclass('public.left_over') IS NULL"), "t");
    companion.close().await;
    assert_eq!(*watch.borrow_and_update(), SessionState::Closed(Closed::ByUs));
}

async fn start_stream(target: &Target, lease: Duration) -> Stream {
    let mut connection = Connection::connect(target, "walcast/replication", lease).await.unwrap();
    let create =
        "SELECT lsn - '0/0' FROM pg_create_logical_replication_slot('walcast_test', 'pgoutput', true)";
    let rows = connection.query(create).await.unwrap();
    let start_lsn = rows[0][0].as_deref().unwrap().parse().unwrap();
    let plugin = [("proto_version", "1"), ("publication_names", "none"), ("messages", "true")];
    let options = StreamOptions {
        slot: "walcast_test".into(),
        start_lsn,
        plugin: plugin.map(|(name, value)| (name.into(), value.into())).into(),
        status_every: lease / 3,
        silence_max: lease / 2,
    };
    connection.start(&options).await.unwrap()
}

/// The content of the next message that was emitted; acknowledges everything on the way.
async fn next_message(stream: &mut Stream) -> Vec<u8> {
    loop {
        match within("a frame", stream.next()).await.unwrap() {
            Frame::Data { body, .. } if body[0] == b'M' => {
                // Kind, flags, LSN, prefix "t", its end, length.
                return body[1 + 1 + 8 + 2 + 4..].to_vec();
            }
            Frame::Data { wal_end, .. } | Frame::Keepalive { wal_end } => stream.ack(wal_end),
        }
    }
}

fn slots(server: &Server) -> String {
    server.sql("SELECT count(*) FROM pg_replication_slots")
}

#[tokio::test]
async fn frames_arrive_in_order_and_acknowledgements_get_through() {
    let server = Server::start("", &[], &[]).await;
    let mut stream = start_stream(&server.target(), LEASE).await;
    server.sql("SELECT pg_logical_emit_message(true, 't', n::text) FROM generate_series(1, 5000) n");
    for number in 1..=5000 {
        assert_eq!(next_message(&mut stream).await, number.to_string().into_bytes());
    }
    // A frame far beyond what may wait, and small ones on both sides.
    server.sql("SELECT pg_logical_emit_message(true, 't', m) FROM (VALUES ('a'), (repeat('x', 20000000)), ('b')) t(m)");
    assert_eq!(next_message(&mut stream).await, b"a");
    assert_eq!(next_message(&mut stream).await.len(), 20_000_000);
    assert_eq!(next_message(&mut stream).await, b"b");

    let wal = server.sql("SELECT pg_current_wal_insert_lsn() - '0/0'").parse::<u64>().unwrap();
    stream.ack(wal);
    stream.ack(1);
    assert_eq!(stream.acknowledged(), wal);
    let behind = format!("SELECT confirmed_flush_lsn - '0/0' < {wal} FROM pg_replication_slots");
    until("the acknowledgement arrived", async || server.sql(&behind) == "f").await;

    stream.close().await;
    until("the temporary slot is gone", async || slots(&server) == "0").await;
}

#[tokio::test]
async fn a_reader_that_is_behind_is_not_dropped() {
    let server = Server::start("", &[], &[]).await;
    let mut stream = start_stream(&server.target(), Duration::from_secs(1)).await;
    server.sql("SELECT pg_logical_emit_message(true, 't', repeat('x', 100000)) FROM generate_series(1, 500)");
    // Nobody reads; the server goes on hearing from us, well beyond the lease.
    let reply = "SELECT reply_time FROM pg_stat_replication";
    let mut last = server.sql(reply);
    for _ in 0..6 {
        until("another status arrived", async || {
            let now = server.sql(reply);
            !now.is_empty() && std::mem::replace(&mut last, now.clone()) != now
        })
        .await;
    }
    for _ in 0..500 {
        assert_eq!(next_message(&mut stream).await.len(), 100_000);
    }
    stream.close().await;
}

#[tokio::test]
async fn a_fast_stop_waits_only_for_what_is_unread() {
    let server = Server::start("", &[], &[]).await;
    let mut stream = start_stream(&server.target(), LEASE).await;
    server.sql("SELECT pg_logical_emit_message(true, 't', n::text) FROM generate_series(1, 100) n");
    let stop = tokio::spawn({
        let server = server.clone();
        async move { server.stop().await }
    });
    let ended = loop {
        match within("a frame", stream.next()).await {
            Ok(Frame::Data { wal_end, .. } | Frame::Keepalive { wal_end }) => stream.ack(wal_end),
            Err(error) => break error,
        }
    };
    assert!(matches!(ended, ReplicationError::Shutdown(_)), "{ended}");
    assert!(matches!(stream.next().await, Err(ReplicationError::Shutdown(_))));
    stop.await.unwrap();
    assert_eq!(Session::connect(&server.target(), "walcast/test").await.unwrap_err().kind, Kind::Network);
}

#[tokio::test]
async fn ends_have_types() {
    let server = Server::start("", &[], &[]).await;
    let mut connection = Connection::connect(&server.target(), "walcast/replication", LEASE).await.unwrap();
    connection
        .query("SELECT pg_create_logical_replication_slot('walcast_test', 'pgoutput', true)")
        .await
        .unwrap();
    let options = StreamOptions {
        slot: "absent".into(),
        start_lsn: 0,
        plugin: Vec::new(),
        status_every: LEASE,
        silence_max: LEASE,
    };
    let error = connection.start(&options).await.unwrap_err();
    assert!(matches!(&error, ReplicationError::Server(error) if error.code.code() == "42704"), "{error}");
    until("the temporary slot is gone", async || slots(&server) == "0").await;

    let mut stream = start_stream(&server.target(), LEASE).await;
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    let error = loop {
        if let Err(error) = within("a frame", stream.next()).await {
            break error;
        }
    };
    assert!(matches!(error, ReplicationError::Shutdown(_)), "{error}");
}

#[tokio::test]
async fn a_link_that_fell_silent_is_noticed() {
    let server = tls_server("host all,replication all all trust").await;
    let proxy = Proxy::start(server.port).await;
    let ca = server.directory.join("ca.crt");
    let words = |ca: &Path| {
        format!(
            "host=localhost hostaddr=127.0.0.1 port={} user=postgres dbname=postgres sslmode=verify-full sslrootcert={}",
            proxy.address.port(),
            ca.display()
        )
    };
    let lease = Duration::from_secs(1);
    let mut stream = start_stream(&target(&words(&ca)), lease).await;
    server.sql("SELECT pg_logical_emit_message(true, 't', 'hello')");
    assert_eq!(next_message(&mut stream).await, b"hello");
    proxy.blackhole();
    let error = loop {
        if let Err(error) = within("a frame", stream.next()).await {
            break error;
        }
    };
    assert!(matches!(error, ReplicationError::Silent(silence) if silence == lease / 2), "{error}");
    // The server drops the silent side by itself, and with it the slot.
    until("the temporary slot is gone", async || slots(&server) == "0").await;
}
