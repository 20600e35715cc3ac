//! A real HAProxy in front of two brokers, by the very file that users copy.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::{Child, Command};
use walcast_client::Client;

use super::plain::{Answer, Plain};
use super::process::program;
use super::serving::Process;
use super::wait::until;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/haproxy.cfg");
/// Somebody else may take a port between our choice and its start.
const TRIES: u32 = 8;

/// Killed when dropped.
pub(crate) struct Balancer {
    /// Where clients connect.
    pub(crate) address: String,
    status: Plain,
    _child: Child,
}

/// A broker as it is named to it: where clients and where operators connect.
pub(crate) type Names<'a> = (&'a str, &'a str);

impl Balancer {
    /// Before these, once it has seen that they are ready; `name` is unique among all that run.
    pub(crate) async fn before(name: &str, brokers: [&Process; 2]) -> Self {
        let this = Self::start(name, brokers.map(|broker| (&*broker.http, &*broker.admin))).await;
        for server in ["one", "two"] {
            this.until_it_is(server, "UP").await;
        }
        this
    }

    /// The same for whatever listens there.
    pub(crate) async fn start(name: &str, brokers: [Names<'_>; 2]) -> Self {
        for _ in 0..TRIES {
            if let Some(this) = Self::attempt(name, brokers).await {
                return this;
            }
        }
        panic!("{name}: it found no free port");
    }

    async fn attempt(name: &str, brokers: [Names<'_>; 2]) -> Option<Self> {
        let [address, status] = free_addresses();
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-haproxy.log"));
        let log = File::create(&path).unwrap();
        let mut command = Command::new(program("haproxy"));
        command.args(["-db", "-f", FILE]).env("BALANCER", &address).env("BALANCER_STATUS", &status);
        for (number, (http, admin)) in (1..).zip(brokers) {
            let port = admin.rsplit_once(':').unwrap().1;
            command.env(format!("BROKER_{number}"), http).env(format!("BROKER_{number}_ADMIN_PORT"), port);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let status = Plain { address: status.parse().unwrap() };
        let mut ended = false;
        until("the balancer listens, or ends", async || {
            ended = child.try_wait().unwrap().is_some();
            ended || tokio::net::TcpStream::connect(status.address).await.is_ok()
        })
        .await;
        if ended || child.try_wait().unwrap().is_some() {
            let said = std::fs::read_to_string(&path).unwrap();
            assert!(said.contains("annot bind"), "{said}");
            return None;
        }
        Some(Self { address, status, _child: child })
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&format!("http://{}", self.address)).unwrap()
    }

    pub(crate) fn plain(&self) -> Plain {
        Plain { address: self.address.parse().unwrap() }
    }

    /// Until this server, `one` or `two`, is `UP` or `DOWN`.
    pub(crate) async fn until_it_is(&self, server: &str, state: &str) {
        let line = format!("brokers,{server},");
        until(&format!("{server} is {state}"), async || {
            let mut stream = self.status.begin("/;csv", "").await;
            let answer = Answer::read(&mut stream).await;
            let line = answer.body.lines().find_map(|text| text.strip_prefix(&line));
            // Behind the two names: see the first line.
            line.unwrap_or_else(|| panic!("{answer:?}")).split(',').nth(15) == Some(state)
        })
        .await;
    }
}

/// Nobody listens there now.
fn free_addresses() -> [String; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().to_string())
}
