//! Redis servers that belong together: sentinels and those whom they watch, and a cluster.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rand::RngExt;
use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;
use walcast::throwaway::redis::Server;

use super::process::directory;
use super::wait::{LIMIT, until_limit};

/// The name by which sentinels know whom they watch.
pub(crate) const SERVICE: &str = "orders";
/// Ends it when our end of standard input closes, however we end.
const SCRIPT: &str = "redis-server sentinel.conf --sentinel & read -r _; kill -KILL $!";
/// What is agreed upon takes its time on a busy machine.
const AGREED: std::time::Duration = LIMIT.saturating_mul(2);

/// Says words to a server, on a connection of their own.
pub(crate) async fn say<T: FromRedisValue>(port: u16, words: &str) -> T {
    try_say(port, words).await.unwrap()
}

async fn try_say<T: FromRedisValue>(port: u16, words: &str) -> redis::RedisResult<T> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}"))?;
    let mut connection: MultiplexedConnection = client.get_multiplexed_async_connection().await?;
    let mut words = words.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        command.arg(word);
    });
    command.query_async(&mut connection).await
}

/// A port that neither outgoing connections nor throwaway servers take.
pub(crate) fn free_port() -> u16 {
    let mut ports = std::iter::repeat_with(|| rand::rng().random_range(11_000..15_000));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

async fn server(settings: &'static [(&'static str, &'static str)]) -> Arc<Server> {
    Arc::new(tokio::task::spawn_blocking(|| Server::tuned(settings).unwrap()).await.unwrap())
}

/// A sentinel, killed when dropped.
pub(crate) struct Sentinel {
    pub(crate) port: u16,
    // Its standard input is the pipe.
    shell: Child,
}

impl Sentinel {
    /// One that watches the server on this port; `name` is unique among all that run, and so many have to agree that it
    /// is gone.
    pub(crate) async fn start(name: &str, master: u16, quorum: usize) -> Self {
        Self::tuned(name, ("127.0.0.1", master), quorum, "").await
    }

    /// The same with more lines of settings.
    pub(crate) async fn tuned(name: &str, master: (&str, u16), quorum: usize, more: &str) -> Self {
        let (host, master) = master;
        let directory = directory(name);
        let port = free_port();
        let settings = format!(
            "port {port}\nbind 127.0.0.1\nlogfile log\n{more}sentinel monitor {SERVICE} {host} {master} {quorum}\n\
             sentinel down-after-milliseconds {SERVICE} 500\nsentinel failover-timeout {SERVICE} 5000\n"
        );
        fs::write(directory.join("sentinel.conf"), settings).unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SCRIPT]).current_dir(&directory).process_group(0);
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let this = Self { port, shell: shell.spawn().unwrap() };
        until_limit(AGREED, "a sentinel answers", async || try_say::<String>(port, "PING").await.is_ok())
            .await;
        this
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// A master with a replica, and three sentinels of whom two have to agree.
pub(crate) struct Watched {
    pub(crate) master: Arc<Server>,
    pub(crate) replica: Arc<Server>,
    pub(crate) sentinels: Vec<Sentinel>,
}

impl Watched {
    /// Ready for a failover; `name` is unique among all that run.
    pub(crate) async fn start(name: &str) -> Self {
        let (master, replica) = (server(&[]).await, server(&[]).await);
        let _: () = say(replica.port(), &format!("REPLICAOF 127.0.0.1 {}", master.port())).await;
        until_linked(&replica).await;
        let mut sentinels = Vec::new();
        for number in 0..3 {
            sentinels.push(Sentinel::start(&format!("{name}-sentinel-{number}"), master.port(), 2).await);
        }
        for sentinel in &sentinels {
            until_limit(AGREED, "a sentinel knows the others and the replica", async || {
                let known: Vec<Vec<String>> =
                    say(sentinel.port, &format!("SENTINEL REPLICAS {SERVICE}")).await;
                let others: Vec<redis::Value> =
                    say(sentinel.port, &format!("SENTINEL SENTINELS {SERVICE}")).await;
                let linked = known.iter().flatten().any(|word| word == "ok");
                linked && others.len() == 2
            })
            .await;
        }
        Self { master, replica, sentinels }
    }

    /// The URL, with `hosts` before the sentinels.
    pub(crate) fn url(&self, hosts: &[u16]) -> String {
        let ports = hosts.iter().copied().chain(self.sentinels.iter().map(|sentinel| sentinel.port));
        sentinel_url(&ports.collect::<Vec<_>>())
    }
}

/// A URL with sentinels on these ports.
pub(crate) fn sentinel_url(ports: &[u16]) -> String {
    let hosts: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("redis-sentinel://{}?service={SERVICE}", hosts.join(","))
}

async fn until_linked(replica: &Server) {
    until_limit(AGREED, "a replica has what its master has", async || {
        say::<String>(replica.port(), "INFO replication").await.contains("master_link_status:up")
    })
    .await;
}

/// Two masters with half of the slots each, and a replica of the one that holds a key.
pub(crate) struct Cluster {
    /// Of the key.
    pub(crate) owner: Arc<Server>,
    pub(crate) replica: Arc<Server>,
    /// Has no part in it.
    pub(crate) other: Arc<Server>,
    /// Of the key.
    pub(crate) slot: u16,
}

impl Cluster {
    /// One in which all know each other.
    pub(crate) async fn start(key: &str) -> Self {
        const MEMBER: &[(&str, &str)] = &[("cluster-enabled", "yes")];
        let all = [server(MEMBER).await, server(MEMBER).await, server(MEMBER).await];
        for (number, member) in all.iter().enumerate() {
            let _: () = say(member.port(), &format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1)).await;
        }
        for member in &all[1..] {
            let _: () = say(member.port(), &format!("CLUSTER MEET 127.0.0.1 {}", all[0].port())).await;
        }
        let _: () = say(all[0].port(), "CLUSTER ADDSLOTSRANGE 0 8191").await;
        let _: () = say(all[1].port(), "CLUSTER ADDSLOTSRANGE 8192 16383").await;
        let slot: u16 = say(all[0].port(), &format!("CLUSTER KEYSLOT {key}")).await;
        let [low, high, replica] = all;
        let (owner, other) = if slot < 8192 { (low, high) } else { (high, low) };
        let this = Self { owner, replica, other, slot };
        this.until_all_see("cluster_known_nodes:3").await;
        this.until_all_see("cluster_state:ok").await;
        let id: String = say(this.owner.port(), "CLUSTER MYID").await;
        let _: () = say(this.replica.port(), &format!("CLUSTER REPLICATE {id}")).await;
        until_linked(&this.replica).await;
        for member in this.members() {
            until_limit(AGREED, "all know the replica", async || {
                say::<String>(member.port(), "CLUSTER NODES").await.contains(&format!("slave {id}"))
            })
            .await;
        }
        this
    }

    pub(crate) fn members(&self) -> [&Arc<Server>; 3] {
        [&self.owner, &self.replica, &self.other]
    }

    /// A URL that names those on these ports alone.
    pub(crate) fn url(ports: &[u16]) -> String {
        let hosts: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }

    /// The replica takes the place of the owner.
    pub(crate) async fn fail_over(&self) {
        let _: () = say(self.replica.port(), "CLUSTER FAILOVER").await;
        until_limit(AGREED, "the replica is master", async || {
            say::<String>(self.replica.port(), "INFO replication").await.contains("role:master")
        })
        .await;
    }

    async fn until_all_see(&self, line: &str) {
        for member in self.members() {
            until_limit(AGREED, line, async || {
                say::<String>(member.port(), "CLUSTER INFO").await.contains(line)
            })
            .await;
        }
    }
}
