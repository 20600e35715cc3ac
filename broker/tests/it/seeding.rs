//! Current values under load: whatever is written while tables are read, once the stream is caught up they are
//! what SELECT says, and so is what a client made of snapshot and events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use walcast::router::RuleConfig;
use walcast::source::wal::Delivery;
use walcast_client::wire::Op;
use walcast_client::{After, Client, EventsRequest, Message, Transport};

use crate::broker::{self, Broker, MARK, connect, patterns, prepare, run, until, value_of, within};
use crate::server;

const WRITERS: u64 = 8;
/// Rows that are written to, half of them read first and half read last; the others only lie between.
const HOT: u64 = 30;
const ROWS: u64 = 1200;
const TABLES: &str = "
    CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL, live boolean NOT NULL, kind int NOT NULL, doc text NOT NULL);
    ALTER TABLE items ALTER doc SET STORAGE EXTERNAL;
    CREATE FUNCTION fill() RETURNS void LANGUAGE sql AS $$
        INSERT INTO items SELECT i, i, i % 3 > 0, i, CASE WHEN i <= 30 OR i > 1170 THEN repeat('a', 2100) ELSE '' END
        FROM generate_series(16, 1185) i ON CONFLICT DO NOTHING $$;
    SELECT fill()";

/// The rule, with its columns in one order or another.
fn rule(when: &str, turned: bool) -> String {
    let columns =
        if turned { "'live', 'kind', 'doc', 'n', 'id'" } else { "'id', 'n', 'live', 'kind', 'doc'" };
    format!(
        "[[table]]\nname = 'public.items'\ntopic = 'item/{{id}}'\ncolumns = [{columns}]\nstate = true\nwhen = '{when}'\n"
    )
}

fn rules(text: &str) -> Vec<RuleConfig> {
    broker::config("", "", text).table
}

/// As CEL and as SQL.
const WHEN: [(&str, &str); 2] =
    [("data.live", "live"), ("data.live && data.kind % 2 == 0", "live AND kind % 2 = 0")];

/// Numbers that look random; the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn id(&mut self) -> u64 {
        let n = self.below(2 * HOT) + 1;
        if n <= HOT { n } else { ROWS - 2 * HOT + n }
    }

    /// A row that becomes a member is sent whole: of a long column that was not sent, nobody else would know.
    fn statement(&mut self) -> String {
        let (id, other, n) = (self.id(), self.id(), self.below(1000));
        match self.below(20) {
            0..3 => format!(
                "INSERT INTO items VALUES ({id}, {n}, {n} % 4 > 0, {n}, repeat('{n} ', 600)) ON CONFLICT DO NOTHING"
            ),
            3..8 => format!("UPDATE items SET n = n + 1 WHERE id = {id}"),
            8..10 => format!("UPDATE items SET doc = repeat('{n} ', 700) WHERE id = {id}"),
            10..12 => {
                format!("UPDATE items SET live = NOT live, kind = kind + 1, doc = doc || '' WHERE id = {id}")
            }
            12..16 => format!(
                "UPDATE items SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM items WHERE id = {other})"
            ),
            16 => format!(
                "UPDATE items SET id = {other}, live = NOT live, doc = doc || '' WHERE id = {id} AND NOT EXISTS (SELECT FROM items WHERE id = {other})"
            ),
            17..19 => format!("DELETE FROM items WHERE id = {id}"),
            _ => format!(
                "SAVEPOINT s; DELETE FROM items WHERE id = {id}; UPDATE items SET n = -n WHERE id = {other}; ROLLBACK TO s"
            ),
        }
    }

    fn transaction(&mut self) -> String {
        if self.below(1000) == 0 {
            return "BEGIN; TRUNCATE items; SELECT fill(); COMMIT".into();
        }
        let statements: Vec<_> = (0..=self.below(4)).map(|_| self.statement()).collect();
        format!("BEGIN; {}; COMMIT", statements.join("; "))
    }
}

/// Writers that can be held.
struct Load {
    held: Arc<RwLock<()>>,
    stop: CancellationToken,
    writers: JoinSet<u64>,
}

impl Load {
    async fn start(url: &str) -> Self {
        let (held, stop, mut writers) = (Arc::new(RwLock::new(())), CancellationToken::new(), JoinSet::new());
        for writer in 0..WRITERS {
            let (sql, held, stop) = (connect(url).await, Arc::clone(&held), stop.clone());
            writers.spawn(async move {
                let mut numbers = Numbers(writer * 77 + 1);
                let mut committed = 0;
                // As many as an unoptimized broker keeps up with.
                let mut pace = tokio::time::interval(Duration::from_millis(25));
                while !stop.is_cancelled() {
                    pace.tick().await;
                    let _writing = held.read().await;
                    // They get into each other's way: a key that is taken, a deadlock.
                    match sql.batch_execute(&numbers.transaction()).await {
                        Ok(()) => committed += 1,
                        Err(error) if error.code().is_some() => sql.batch_execute("ROLLBACK").await.unwrap(),
                        Err(error) => panic!("{error}"),
                    }
                }
                committed
            });
        }
        Self { held, stop, writers }
    }

    async fn stop(self) -> u64 {
        self.stop.cancel();
        self.writers.join_all().await.iter().sum()
    }
}

type Values = BTreeMap<String, Value>;

/// What a client makes of what it is told.
struct Mirror {
    transport: Transport,
    after: After,
    values: Values,
    /// What it was told of without some column, and knew nothing of before.
    lacking: BTreeSet<String>,
}

impl Mirror {
    fn new(transport: Transport, after: After) -> Self {
        Self { transport, after, values: Values::new(), lacking: BTreeSet::new() }
    }

    /// The stream passed a row on before the seed came to it, and said which columns it left out: of these
    /// topics a client asks for the value.
    async fn ask(&mut self, client: &Client) {
        for topic in std::mem::take(&mut self.lacking) {
            let request = EventsRequest::new(patterns(&[&topic]));
            let reply = within("the value", client.poll(&request)).await.unwrap();
            let event = broker::value(reply.events.first().unwrap());
            assert_eq!(event.unchanged, [""; 0], "{topic}");
            self.values.insert(topic, event.data);
        }
    }

    /// Follows up to this mark.
    async fn follow(mut self, client: Client, mark: String) -> Self {
        let request = EventsRequest::new(patterns(&["item/*", MARK])).after(self.after);
        let mut stream = within("the stream opens", client.open(self.transport, request)).await.unwrap();
        loop {
            let event = match within("an event", stream.next()).await {
                Ok(Some(Message::Event(event))) => broker::value(&event),
                Ok(Some(Message::Subscribed { .. })) => continue,
                Ok(Some(Message::Reset(_))) => {
                    self.values.clear();
                    self.lacking.clear();
                    continue;
                }
                other => panic!("{:?}: {other:?}", self.transport),
            };
            let topic = event.topic.to_string();
            if topic == MARK {
                if event.data == *mark {
                    self.after = After::Cursor(event.cursor);
                    self.ask(&client).await;
                    return self;
                }
                continue;
            }
            if matches!(event.op, Op::Delete | Op::Truncate) {
                self.values.remove(&topic);
                self.lacking.remove(&topic);
                continue;
            }
            if event.unchanged.is_empty() {
                self.lacking.remove(&topic);
            }
            let mut data = event.data;
            for name in &event.unchanged {
                match self.values.get(&topic).and_then(|known| known.get(name)) {
                    Some(known) => data[name] = known.clone(),
                    None => _ = self.lacking.insert(topic.clone()),
                }
            }
            self.values.insert(topic, data);
        }
    }
}

fn equal(found: &Values, table: &Values, what: &str) {
    if found != table {
        let short =
            |value: Option<&Value>| value.map(|value| value.to_string().chars().take(90).collect::<String>());
        let topics = found.keys().chain(table.keys());
        let different: BTreeMap<_, _> = topics
            .filter(|topic| found.get(*topic) != table.get(*topic))
            .map(|topic| (topic, (short(found.get(topic)), short(table.get(topic)))))
            .collect();
        panic!("{what}: {} differ, (found, in the table): {different:#?}", different.len());
    }
}

async fn exact_under_load(name: &str, delivery: Delivery) {
    let runs = if std::env::var_os("WALCAST_SOAK").is_some() { 500 } else { 25 };
    server::create(name).await;
    let plain = server::url(name).await;
    let mut config = prepare(&plain, name, TABLES, &rule(WHEN[0].0, false)).await;
    let own = format!(
        "{plain}?options=-c%20statement_timeout%3D0%20-c%20lock_timeout%3D0%20-c%20idle_in_transaction_session_timeout%3D0"
    );
    let sql = connect(&own).await;
    run(&sql, &format!("CREATE ROLE {name} LOGIN SUPERUSER")).await;
    for whose in
        [format!("DATABASE {name}"), format!("ROLE {name}"), format!("ROLE {name} IN DATABASE {name}")]
    {
        for setting in ["lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"] {
            run(&sql, &format!("ALTER {whose} SET {setting} = '1ms'")).await;
        }
    }
    config.postgres.url = Some(plain.replace("postgres@", &format!("{name}@")).as_str().into());
    config.source.delivery = delivery;
    config.source.seed_bytes_per_second = 8 << 20;
    // So that a restart replays a part of what was written, not all of it.
    config.history.events = 3_000;

    let load = Load::start(&own).await;
    let mut broker = Broker::on(name, config, sql).await;
    let transports = [Transport::Poll, Transport::Sse, Transport::WebSocket];
    let mut mirrors: Vec<_> = transports.map(|transport| Mirror::new(transport, After::Current)).into();
    let (mut which, mut turned) = (0, false);
    for run in 0..runs {
        let follow = |broker: &Broker, mirrors: Vec<Mirror>| -> Vec<_> {
            let newcomer = Mirror::new(transports[(run + 1) % 3], After::Current);
            let all = mirrors.into_iter().chain([newcomer]);
            // By other rules there was other history.
            let from = if matches!(run % 5, 0 | 4) { After::Earliest } else { After::Current };
            all.chain([Mirror::new(transports[run % 3], from)])
                .map(|mirror| {
                    AbortOnDropHandle::new(tokio::spawn(
                        mirror.follow(broker.client.clone(), format!("run {run}")),
                    ))
                })
                .collect()
        };
        let following = match run % 5 {
            // The columns in another order: the same values, read again.
            1 | 3 => {
                turned ^= run % 10 < 5;
                let following = follow(&broker, mirrors);
                let reloader = broker.node().reloader();
                if run % 10 > 5 {
                    // And back again before the first has settled.
                    reloader.reload(&rules(&rule(WHEN[which].0, !turned))).await.unwrap();
                    broker.catch_up().await;
                }
                reloader.reload(&rules(&rule(WHEN[which].0, turned))).await.unwrap();
                broker.catch_up().await;
                following
            }
            // Another condition: what is no member any more is nobody's event, so followers are told to begin anew.
            2 => {
                which = 1 - which;
                let following = follow(&broker, mirrors);
                broker.node().reloader().reload(&rules(&rule(WHEN[which].0, turned))).await.unwrap();
                broker.catch_up().await;
                following
            }
            _ => {
                broker.stop().await.unwrap();
                let mut config = broker.config.clone();
                config.table = rules(&rule(WHEN[which].0, turned));
                broker = Broker::begin(name, config, broker.sql);
                let mut now = EventsRequest::new(patterns(&[MARK])).after(After::Now);
                now.wait = Some(Duration::ZERO);
                until("it reaches Postgres", async || broker.client.poll(&now).await.is_ok()).await;
                follow(&broker, mirrors)
            }
        };
        broker.ready().await;
        let held = load.held.write().await;
        // What is told behind the first mark is told by the new rules.
        broker.catch_up().await;
        broker.run(&format!("SELECT walcast.publish('{MARK}', '\"run {run}\"')")).await;
        broker.catch_up().await;
        broker.ready().await;
        let select = format!(
            "SELECT json_object_agg('item/' || id, to_json(items)) FROM items WHERE {}",
            WHEN[which].1
        );
        let table: Values = serde_json::from_str(&value_of(&broker.sql, &select).await).unwrap();
        let current = broker.poll(&["item/*"], After::Current).await;
        let current = current.into_iter().map(|event| (event.topic.to_string(), event.data)).collect();
        equal(&current, &table, &format!("run {run}, current values"));
        mirrors = Vec::new();
        for (index, mirror) in following.into_iter().enumerate() {
            let mirror = within("the mark", mirror).await.unwrap();
            equal(&mirror.values, &table, &format!("run {run}, follower {index} by {:?}", mirror.transport));
            if index < transports.len() {
                mirrors.push(mirror);
            }
        }
        drop(held);
    }
    assert!(load.stop().await > runs as u64 * WRITERS);
    broker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_exact_under_load() {
    exact_under_load("seeding_visible", Delivery::Visible).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_exact_under_load_also_where_delivery_is_fast() {
    exact_under_load("seeding_fast", Delivery::Fast).await;
}
