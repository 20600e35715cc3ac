//! What a throwaway server promises: it works, says why it does not start, and leaves nothing behind.

use std::any::Any;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use super::sandbox::{make_dir, unprivileged_user};
use super::*;

#[test]
fn missing_binaries_are_named() {
    let options = Options { bin_dir: Some("/nonexistent/bin".into()), ..Options::default() };
    let message = Throwaway::start(&options).unwrap_err().to_string();
    assert!(message.contains("/nonexistent/bin") && message.contains("14 or later"), "{message}");
}

fn show(server: &Throwaway, setting: &str, expected: &str) {
    let sql = format!(
        "do $$ begin if current_setting('{setting}') <> '{expected}' then
             raise '{setting} is %', current_setting('{setting}'); end if; end $$"
    );
    server.execute("postgres", &sql).unwrap();
}

#[test]
fn a_server_lives_through_restarts_and_goes_with_its_handle() {
    let server = Throwaway::start(&Options::for_tests().set("application_name", "it's")).unwrap();
    show(&server, "wal_level", "logical");
    show(&server, "fsync", "off");
    show(&server, "listen_addresses", "127.0.0.1");
    show(&server, "max_slot_wal_keep_size", "4GB");
    show(&server, "application_name", "it''s");
    assert!(server.socket_dir().is_some_and(|dir| dir.join(format!(".s.PGSQL.{}", server.port())).exists()));

    let url = server.create_database("a b").unwrap();
    assert!(url.ends_with("/a%20b"), "{url}");
    let error = server.create_database("a b").unwrap_err().to_string();
    assert!(error.contains("already exists"), "{error}");
    server.execute("a b", "create table kept (id int)").unwrap();
    server.restart(StopMode::Fast).unwrap();
    server.restart(StopMode::Immediate).unwrap();
    server.execute("a b", "insert into kept values (1)").unwrap();
    server.stop(StopMode::Fast).unwrap();
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).is_err());
    server.start_again().unwrap();

    let (dir, port) = (server.dir.clone(), server.port());
    drop(server);
    assert!(!dir.exists());
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
}

#[test]
fn a_server_that_does_not_start_says_why_and_leaves_nothing() {
    let parent = make_dir(None, unprivileged_user().unwrap()).unwrap();
    let options = Options { parent: Some(parent.clone()), ..Options::for_tests() };
    let error = Throwaway::start(&options.set("wal_level", "sideways")).unwrap_err().to_string();
    assert!(error.contains("sideways"), "{error}");
    fs::remove_dir(&parent).unwrap();
}

#[test]
fn a_redis_keeps_nothing_and_goes_with_its_handle() {
    let say = |server: &redis::Server, command: &str| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).unwrap();
        write!(stream, "{command}\r\nQUIT\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let server = redis::Server::tuned(&[("maxclients", "77")]).unwrap();
    assert_eq!(server.url(), format!("redis://127.0.0.1:{}", server.port()));
    assert!(say(&server, "CONFIG GET maxclients").contains("77"));
    for (setting, expected) in
        [("bind", "127.0.0.1"), ("appendonly", "no"), ("maxmemory-policy", "noeviction")]
    {
        let answer = say(&server, &format!("CONFIG GET {setting}"));
        assert!(answer.contains(expected), "{setting}: {answer}");
    }
    assert!(say(&server, "SET a b").starts_with("+OK"));
    let pid = server.pid();
    server.restart_empty().unwrap();
    assert_ne!(server.pid(), pid);
    assert!(say(&server, "DBSIZE").starts_with(":0"));
    server.stop();
    assert!(server.pid().is_none() && TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).is_err());
    server.start_again().unwrap();

    let (dir, port) = (server.dir().to_owned(), server.port());
    drop(server);
    assert!(!dir.exists());
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    let error = redis::Server::tuned(&[("maxclients", "many")]).unwrap_err().to_string();
    assert!(error.contains("maxclients"), "{error}");
}

#[tokio::test]
async fn a_killed_process_leaves_nothing() {
    leaves_nothing("a_killed_process_leaves_nothing", "data/postmaster.pid", || {
        let server = Throwaway::start(&Options::for_tests()).unwrap();
        (server.port(), server.dir.clone(), Box::new(server))
    })
    .await;
}

#[tokio::test]
async fn a_killed_process_leaves_no_redis() {
    leaves_nothing("a_killed_process_leaves_no_redis", "data/pid", || {
        let server = redis::Server::start().unwrap();
        (server.port(), server.dir().to_owned(), Box::new(server))
    })
    .await;
}

/// Plays both parts: the process that is killed, and the one that looks at what it left.
async fn leaves_nothing(test: &str, pid_file: &str, start: fn() -> (u16, PathBuf, Box<dyn Any>)) {
    const ROLE: &str = "WALCAST_THROWAWAY_ROLE";
    if std::env::var_os(ROLE).is_some() {
        let (port, dir, server) = start();
        println!("\nserver {port} {}", dir.display());
        let _ = io::stdin().read(&mut [0]);
        drop(server);
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("throwaway::tests::{test}"), "--nocapture"])
        .env(ROLE, "child")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.starts_with("server ")).unwrap();
    let (port, dir) = line["server ".len()..].split_once(' ').unwrap();
    let address = (Ipv4Addr::LOCALHOST, port.parse::<u16>().unwrap());
    assert!(Path::new(dir).exists() && TcpStream::connect(address).is_ok());

    // A terminal's Ctrl-C goes to our whole process group, in which the server must not be.
    let server = fs::read_to_string(Path::new(dir).join(pid_file)).unwrap();
    let group = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().split(' ').nth(2).unwrap().to_owned()
    };
    assert_ne!(group(server.lines().next().unwrap()), group(&child.id().to_string()));

    child.kill().unwrap();
    child.wait().unwrap();
    let gone = async {
        while Path::new(dir).exists() || TcpStream::connect(address).is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.unwrap();
}
