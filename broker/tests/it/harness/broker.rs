//! A broker on a database of the test's own, as `walcast setup` and `walcast serve` make one, and the ways in
//! which a test looks at it. Nothing here sleeps: everything waits for a condition, with a generous limit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client as Sql;
use walcast::cli::local;
use walcast::config::Config;
use walcast::node::{Node, NodeError};
use walcast::source::SourceKind;
use walcast_client::wire::{Cursor, Event};
use walcast_client::{After, Client, EventsRequest, Message, Transport};

use super::plain::Plain;
use super::pooler::Pooler;
use super::server::{self, Server};

// What most tests of a broker need besides.
pub(crate) use super::follow::{Follower, MARK, line, patterns, value};
pub(crate) use super::wait::{LIMIT, until, within};

/// A running broker.
pub(crate) struct Broker {
    pub(crate) name: String,
    /// The database, reached directly.
    pub(crate) url: String,
    pub(crate) config: Config,
    pub(crate) sql: Sql,
    pub(crate) client: Client,
    /// The API, byte by byte.
    pub(crate) http: Plain,
    node: Option<Node>,
    /// What stands between it and its database.
    _between: Option<Between>,
}

/// How the broker under test reads Postgres.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Wal,
    Outbox,
    /// The outbox, and nothing but a transaction pooler to reach it by.
    Pooled,
}

/// A pooler, and its server.
struct Between {
    _pooler: Pooler,
    _server: Server,
}

impl Way {
    /// As [`Broker::start`].
    pub(crate) async fn start(self, name: &str, ddl: &str, rules: &str) -> Broker {
        self.start_with(name, ddl, rules, |_| ()).await
    }

    /// As [`Broker::start_with`], but for when `change` is called: before setup.
    pub(crate) async fn start_with(
        self,
        name: &str,
        ddl: &str,
        rules: &str,
        change: impl FnOnce(&mut Config),
    ) -> Broker {
        let name = format!("{name}_{self:?}").to_lowercase();
        let (direct, url, between) = if self == Self::Pooled {
            let server = Server::tuned(&[("wal_level", "replica")]).await;
            let direct = server.create_database(&name).await;
            let pooler = Pooler::start(&server, "").await;
            let url = pooler.dsn(&name);
            (direct, url, Some(Between { _pooler: pooler, _server: server }))
        } else {
            let direct = server::create(&name).await;
            (direct.clone(), direct, None)
        };
        run(&connect(&direct).await, ddl).await;
        let mut config = config(&url, &name, rules);
        if self != Self::Wal {
            config.source.kind = SourceKind::Outbox;
        }
        change(&mut config);
        local::set_up(&config, false).await.unwrap();
        let mut broker = Broker::on(&name, config, connect(&direct).await).await;
        (broker.url, broker._between) = (direct, between);
        broker
    }
}

impl Broker {
    /// Makes the database `name`, runs `ddl`, sets up with these `[[table]]` rules, and starts.
    pub(crate) async fn start(name: &str, ddl: &str, rules: &str) -> Self {
        Self::start_with(name, ddl, rules, |_| ()).await
    }

    /// The same; `change` may change the broker's configuration before it starts.
    pub(crate) async fn start_with(
        name: &str,
        ddl: &str,
        rules: &str,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        Self::start_on(&server::create(name).await, name, ddl, rules, change).await
    }

    /// The same in a new database of this server.
    pub(crate) async fn start_at(
        server: &Server,
        name: &str,
        ddl: &str,
        rules: &str,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        Self::start_on(&server.create_database(name).await, name, ddl, rules, change).await
    }

    async fn start_on(
        url: &str,
        name: &str,
        ddl: &str,
        rules: &str,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = prepare(url, name, ddl, rules).await;
        change(&mut config);
        let mut broker = Self::on(name, config, connect(url).await).await;
        url.clone_into(&mut broker.url);
        broker
    }

    /// Starts on a database that is set up.
    pub(crate) async fn on(name: &str, config: Config, sql: Sql) -> Self {
        let broker = Self::begin(name, config, sql);
        broker.ready().await;
        broker
    }

    /// The same, without waiting until it is ready.
    pub(crate) fn begin(name: &str, config: Config, sql: Sql) -> Self {
        let node = Node::start(config.clone()).unwrap();
        let client = Client::new(&format!("http://{}", node.http)).unwrap();
        let url = config.postgres.url.as_ref().unwrap().expose().to_owned();
        let http = Plain { address: node.http };
        Self { name: name.to_owned(), url, config, sql, client, http, node: Some(node), _between: None }
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&self) {
        let ready = async {
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            while !self.node().ready() {
                tick.tick().await;
            }
        };
        if tokio::time::timeout(LIMIT, ready).await.is_err() {
            panic!("{} is not ready: {}", self.name, self.node().problems());
        }
    }

    pub(crate) fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    /// Drains it; the database stays.
    pub(crate) async fn stop(&mut self) -> Result<(), NodeError> {
        within("the broker stops", self.node.take().unwrap().join(std::future::ready(()))).await
    }

    /// Stops it and starts another on its database.
    pub(crate) async fn restart(mut self) -> Self {
        self.stop().await.unwrap();
        self.start_again().await
    }

    /// Starts another on the database of this one, which has stopped.
    pub(crate) async fn start_again(self) -> Self {
        let new = Self::on(&self.name, self.config, self.sql).await;
        Self { url: self.url, _between: self._between, ..new }
    }

    /// Runs SQL, as one transaction if it is several statements.
    pub(crate) async fn run(&self, sql: &str) {
        run(&self.sql, sql).await;
    }

    /// Another session.
    pub(crate) async fn session(&self) -> Sql {
        connect(&self.url).await
    }

    /// Follows topics from now on.
    pub(crate) async fn follow(&self, transport: Transport, topics: &[&str]) -> Follower {
        self.follow_after(transport, topics, After::Now).await
    }

    /// Follows topics from somewhere.
    pub(crate) async fn follow_after(&self, transport: Transport, topics: &[&str], after: After) -> Follower {
        let mut after = after;
        if matches!(after, After::Now) {
            // A stream's `now` is when its request arrives; this one is before the test goes on.
            let mut request = EventsRequest::new(patterns(topics)).after(After::Now);
            request.wait = Some(Duration::ZERO);
            after = After::Cursor(self.client.poll(&request).await.unwrap().cursor);
        }
        let request = EventsRequest::new(patterns(topics)).after(after);
        Follower(within("the stream opens", self.client.open(transport, request)).await.unwrap())
    }

    /// The cursor of now.
    pub(crate) async fn place(&self) -> Cursor {
        let mut request = EventsRequest::new(patterns(&["**"])).after(After::Now);
        request.wait = Some(Duration::ZERO);
        self.client.poll(&request).await.unwrap().cursor
    }

    /// What one long-poll that does not wait answers.
    pub(crate) async fn poll(&self, topics: &[&str], after: After) -> Vec<Event<Value>> {
        let mut request = EventsRequest::new(patterns(topics)).after(after);
        request.wait = Some(Duration::ZERO);
        let reply = self.client.poll(&request).await.unwrap();
        reply.events.iter().map(value).collect()
    }

    /// Waits until everything committed so far is delivered to whom it concerns.
    pub(crate) async fn catch_up(&self) {
        let (mark, publish) = mark();
        let Follower(mut marks) = self.follow(Transport::Poll, &[MARK]).await;
        self.run(&publish).await;
        loop {
            match within("the mark", marks.next()).await {
                Ok(Some(Message::Event(event))) if value(&event).data == *mark => return,
                Ok(Some(Message::Event(_) | Message::Subscribed { .. })) => {}
                // It may be gone from a short history while others write much.
                Ok(Some(Message::Reset(_))) => self.run(&publish).await,
                other => panic!("{}: no mark but {other:?}", self.name),
            }
        }
    }

    /// Until this many subscriptions exist.
    pub(crate) async fn until_waiting(&self, count: usize) {
        until("subscriptions", async || self.readiness().await.1["subscriptions"] == count).await;
    }

    /// What `/readyz` answers, and with which status.
    pub(crate) async fn readiness(&self) -> (u16, Value) {
        let answer = self.admin().get("/readyz").await;
        (answer.status, answer.json())
    }

    /// The value of a metric, over all nodes of this process.
    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let metrics = self.admin().get("/metrics").await.body;
        let value = metrics.lines().find_map(|text| text.strip_prefix(line));
        value.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    fn admin(&self) -> Plain {
        Plain { address: self.node().admin }
    }

    /// What comes up to a mark that is made now; the follower follows [`MARK`] too.
    pub(crate) async fn rest(&self, follower: &mut Follower) -> Vec<Event<Value>> {
        let (mark, publish) = mark();
        self.run(&publish).await;
        let mut events = Vec::new();
        loop {
            let event = follower.next().await;
            if event.topic.as_str() != MARK {
                events.push(event);
            } else if event.data == *mark {
                return events;
            }
        }
    }

    /// The same as lines.
    pub(crate) async fn rest_lines(&self, follower: &mut Follower) -> Vec<String> {
        self.rest(follower).await.iter().map(line).collect()
    }
}

/// A mark that nobody made before, and the statement that publishes it.
fn mark() -> (String, String) {
    static MARKS: AtomicU64 = AtomicU64::new(0);
    let mark = format!("mark {}", MARKS.fetch_add(1, Ordering::Relaxed));
    let publish = format!("SELECT walcast.publish('{MARK}', '\"{mark}\"')");
    (mark, publish)
}

/// The configuration of a test's broker: slot and publication named after it, ports free ones.
pub(crate) fn config(url: &str, name: &str, rules: &str) -> Config {
    #[derive(serde::Deserialize)]
    struct Rules {
        #[serde(default)]
        table: Vec<walcast::router::RuleConfig>,
    }
    let mut config = local::config(url, 0);
    (config.source.slot, config.source.publication) = (name.to_owned(), name.to_owned());
    config.table = toml::from_str::<Rules>(rules).unwrap().table;
    config
}

/// Makes a database ready: what `ddl` says, and what `walcast setup` does.
pub(crate) async fn prepare(url: &str, name: &str, ddl: &str, rules: &str) -> Config {
    run(&connect(url).await, ddl).await;
    let config = config(url, name, rules);
    local::set_up(&config, false).await.unwrap();
    config
}

/// A session.
pub(crate) async fn connect(url: &str) -> Sql {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// One value, as text.
pub(crate) async fn value_of(sql: &Sql, query: &str) -> String {
    let row = sql.query_one(&format!("SELECT ({query})::text"), &[]).await.unwrap();
    row.get::<_, Option<String>>(0).unwrap_or_default()
}

/// Runs SQL.
pub(crate) async fn run(sql: &Sql, text: &str) {
    if let Err(error) = sql.batch_execute(text).await {
        panic!("{text}: {error:?}");
    }
}
