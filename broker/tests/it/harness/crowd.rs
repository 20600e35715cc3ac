//! A crowd on one database: some publish, many follow and come back whenever they are cut, and all of it is
//! written down for the judge.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::{Client as Sql, NoTls};
use tokio_util::sync::CancellationToken;
use walcast_client::wire::{Cursor, Position, ProblemCode, Topic};
use walcast_client::{After, Client, EventsRequest, Message, Subscription, Transport};

use super::broker::{LIMIT, connect, patterns, prepare, until, value, within};
use super::server::Server;
use crate::judge::receiver::Receiver;
use crate::judge::slot::Raw;
use crate::judge::{Entry, History, Noted, Seen, Terms, Truth, Violation, What, digest, judge, summary};

/// Each row stands for one transaction and says, by the rule of [`texts`], what it published.
const LEDGER: &str = "CREATE TABLE ledger (writer int, n int, \
    xid int8 NOT NULL DEFAULT pg_current_xact_id()::xid::text::int8, PRIMARY KEY (writer, n))";
/// The rows are events, too.
pub(crate) const RULE: &str =
    "[[table]]\nname = 'public.ledger'\ntopic = 'row/{writer}'\ncolumns = ['writer', 'n']";
/// The writer of the marks that everybody follows, by which followers know that they are done.
const MARKS: u32 = 0;
/// One in so many followers looks on delivery whether the row is there.
const LOOKING: usize = 20;
/// One in so many keeps a copy of its place that is this many events old, and comes back with that.
const FORGETFUL: usize = 5;
const FORGOTTEN: usize = 16;

/// How large it is, and how fast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) writers: u32,
    pub(crate) followers: usize,
    /// After so many events at most a follower goes elsewhere by itself.
    pub(crate) stays: usize,
    /// Between two transactions of one writer.
    pub(crate) pause: Duration,
}

/// See the module.
pub(crate) struct Crowd {
    pub(crate) name: String,
    pub(crate) url: String,
    receiver: Receiver,
    /// Where the brokers are now.
    brokers: watch::Sender<Vec<Client>>,
    stays: usize,
    /// Events that followers were given so far.
    delivered: Arc<AtomicU64>,
    stop: CancellationToken,
    writers: Vec<JoinHandle<()>>,
    followers: Vec<JoinHandle<History>>,
    /// Where the first mark is, once there is one.
    end: watch::Sender<Option<Position>>,
    /// Followers that are not there yet have waited long enough.
    give_up: CancellationToken,
    /// Where it began.
    start: Option<Cursor>,
    begun: Instant,
}

impl Crowd {
    /// Makes a database, with a slot of the judge's own.
    pub(crate) async fn prepare(server: &Server, name: &str) -> Self {
        let url = server.create_database(name).await;
        prepare(&url, name, LEDGER, RULE).await;
        let (slot, directory) = (format!("{name}_judge"), Path::new(env!("CARGO_TARGET_TMPDIR")));
        let receiver = Receiver::start(&server.bin_dir(), &url, &slot, name, directory).await;
        Self {
            name: name.to_owned(),
            url,
            receiver,
            brokers: watch::channel(Vec::new()).0,
            stays: usize::MAX,
            delivered: Arc::default(),
            stop: CancellationToken::new(),
            writers: Vec::new(),
            followers: Vec::new(),
            end: watch::channel(None).0,
            give_up: CancellationToken::new(),
            start: None,
            begun: Instant::now(),
        }
    }

    /// Where the broker is from now on.
    pub(crate) fn at(&self, client: &Client) {
        self.among([client]);
    }

    /// Where the brokers are from now on.
    pub(crate) fn among<'a>(&self, clients: impl IntoIterator<Item = &'a Client>) {
        self.brokers.send_replace(clients.into_iter().cloned().collect());
    }

    /// Everybody begins at the broker's present head.
    pub(crate) async fn begin_here(&mut self) {
        let broker = self.brokers.borrow()[0].clone();
        let mut now = EventsRequest::new(patterns(&["**"])).after(After::Now);
        now.wait = Some(Duration::ZERO);
        self.start = Some(broker.poll(&now).await.unwrap().cursor);
    }

    /// Sets everybody to work, from the broker's present head on unless it was said before.
    pub(crate) async fn begin(&mut self, size: Size) {
        if self.start.is_none() {
            self.begin_here().await;
        }
        self.stays = size.stays;
        for number in 0..size.followers {
            let writer = number as u32 % size.writers + 1;
            match number {
                0..3 => self.follow(&["**"]),
                _ => self.follow(&[&format!("row/{writer}"), &format!("said/{writer}"), "row/0"]),
            }
        }
        for writer in 1..=size.writers {
            let stop = self.stop.clone();
            self.writers.push(tokio::spawn(write(self.url.clone(), writer, size.pause, stop)));
        }
    }

    /// One more follower, from where all began.
    pub(crate) fn follow(&mut self, topics: &[&str]) {
        let (number, topics) = (self.followers.len(), patterns(topics));
        let start = After::Cursor(self.start.unwrap());
        let place = Subscription::new(EventsRequest::new(topics.clone()).after(start));
        let follower = Follower {
            number,
            begun: self.begun,
            brokers: self.brokers.subscribe(),
            stays: self.stays,
            delivered: Arc::clone(&self.delivered),
            end: self.end.subscribe(),
            give_up: self.give_up.clone(),
            eyes: number.is_multiple_of(LOOKING).then(|| Eyes { url: self.url.clone(), sql: None }),
            connection: 0,
            history: History { client: format!("follower {number}"), topics, entries: Vec::new() },
        };
        self.followers.push(tokio::spawn(follower.run(place)));
    }

    /// Events delivered so far.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Waits until so many more events are delivered.
    pub(crate) async fn progress(&self, events: u64) {
        let enough = self.delivered() + events;
        until("the crowd gets on", async || self.delivered() >= enough).await;
    }

    /// Lets the writers stop, and the followers receive what there is, or give up; then reads the truth.
    pub(crate) async fn end(self, patience: Duration) -> (Truth, Vec<History>, Terms) {
        self.stop.cancel();
        for writer in self.writers {
            within("a writer stops", writer).await.unwrap();
        }
        let sql = connect(&self.url).await;
        let all = async {
            let mut histories = Vec::with_capacity(self.followers.len());
            for follower in self.followers {
                histories.push(follower.await.unwrap());
            }
            histories
        };
        let marks = async {
            for n in 1_u32.. {
                publish(&sql, MARKS, n).await.unwrap();
                if n == 1 {
                    let xid = last_mark(&sql).await.1;
                    let commits = self.receiver.told(xid, &event).await;
                    let first = commits.iter().find(|commit| commit.xid == xid).unwrap();
                    self.end.send_replace(Some(Position::new(first.lsn, first.records[0].ordinal)));
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let give_up = self.give_up.clone();
        tokio::spawn(async move {
            tokio::time::sleep(patience).await;
            give_up.cancel();
        });
        // Each has its first mark, and knows by a second one that it has.
        let histories = tokio::select! {
            histories = all => histories,
            () = marks => unreachable!("there is no last mark"),
        };
        // Nobody publishes any more: what the log told up to one more mark is all.
        publish(&sql, MARKS, last_mark(&sql).await.0 + 1).await.unwrap();
        let told = self.receiver.told(last_mark(&sql).await.1, &event);
        let mut commits = within("the log tells of the last mark", told).await;
        commits.retain(|commit| !commit.records.is_empty());
        let connections = self.receiver.end().await;
        let truth = Truth { commits, ledger: ledger(&sql).await };
        let (commits, events) = (truth.commits.len(), truth.ledger.len());
        println!("{}: {commits} commits, {events} events, told on {connections} connections", self.name);
        let until = self.end.borrow().unwrap();
        (truth, histories, Terms { resets: false, until })
    }

    /// As [`end`](Self::end), and all that is wrong.
    pub(crate) async fn judged(self, patience: Duration, resets: bool) -> Vec<Violation> {
        let (truth, histories, terms) = self.end(patience).await;
        judge(&truth, &histories, &Terms { resets, ..terms })
    }

    /// As [`end`](Self::end), and nothing may be wrong. Who follows everything from the start, and looks for each row,
    /// takes its time.
    pub(crate) async fn acquitted(self, resets: bool) {
        let violations = self.judged(10 * LIMIT, resets).await;
        assert!(violations.is_empty(), "{}", summary(&violations));
    }
}

/// What the transaction `n` of a writer publishes besides its row.
fn texts(n: u32) -> Vec<Value> {
    let many = if n.is_multiple_of(3) { 2 } else { 1 };
    (1..=many).map(|i| json!({"n": n, "i": i})).collect()
}

/// One transaction.
pub(crate) async fn publish(sql: &Sql, writer: u32, n: u32) -> Result<(), tokio_postgres::Error> {
    let says = |text: &Value| format!("SELECT walcast.publish('said/{writer}', '{text}');");
    let says: String = texts(n).iter().map(says).collect();
    let all = format!("INSERT INTO ledger VALUES ({writer}, {n}); {says}");
    if n.is_multiple_of(5) {
        sql.batch_execute(&format!("BEGIN; {all} ROLLBACK")).await?;
    }
    sql.batch_execute(&format!("BEGIN; {all} COMMIT")).await
}

/// The newest mark: its number and transaction.
async fn last_mark(sql: &Sql) -> (u32, u32) {
    let query = format!("SELECT n, xid FROM ledger WHERE writer = {MARKS} ORDER BY n DESC LIMIT 1");
    let row = sql.query_one(&query, &[]).await.unwrap();
    (row.get::<_, i32>(0) as u32, row.get::<_, i64>(1) as u32)
}

/// Publishes until told to stop, whatever happens to the server.
async fn write(url: String, writer: u32, pause: Duration, stop: CancellationToken) {
    let mut sql: Option<Sql> = None;
    let mut pace = tokio::time::interval(pause);
    for n in 1_u32.. {
        tokio::select! {
            _ = pace.tick() => {}
            () = stop.cancelled() => return,
        }
        if sql.is_none() {
            sql = reach(&url).await;
        }
        if let Some(session) = &sql
            && publish(session, writer, n).await.is_err()
        {
            sql = None;
        }
    }
}

/// A session, if the server is there.
async fn reach(url: &str) -> Option<Sql> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.ok()?;
    tokio::spawn(connection);
    Some(client)
}

struct Follower {
    number: usize,
    begun: Instant,
    brokers: watch::Receiver<Vec<Client>>,
    stays: usize,
    delivered: Arc<AtomicU64>,
    end: watch::Receiver<Option<Position>>,
    give_up: CancellationToken,
    eyes: Option<Eyes>,
    connection: u32,
    history: History,
}

impl Follower {
    async fn run(mut self, place: Subscription) -> History {
        let give_up = self.give_up.clone();
        tokio::select! {
            () = self.follow(place) => {}
            () = give_up.cancelled() => {}
        }
        self.history
    }

    /// Until it is where all followers are to get.
    async fn follow(&mut self, mut place: Subscription) {
        let mut old = Some(place.clone());
        loop {
            self.connection += 1;
            let client = {
                let brokers = self.brokers.borrow();
                let any = (self.number * 7 + self.connection as usize * 5) % brokers.len();
                brokers[any].clone()
            };
            let stays = match self.stays {
                usize::MAX => usize::MAX,
                most => 1 + (self.number * 31 + self.connection as usize * 17) % most,
            };
            let forgets = self.number.is_multiple_of(FORGETFUL)
                && self.connection.is_multiple_of(2)
                && self.end.borrow().is_none();
            let from = old.as_ref().filter(|_| forgets).unwrap_or(&place);
            // Another transport each time.
            let transport = Transport::ALL[(self.number + self.connection as usize) % 3];
            self.note(What::Presented(from.cursor()));
            if let Ok(mut stream) = client.resume(transport, from.clone()).await {
                let mut events = 0;
                // A WebSocket that is not served yet says so in a frame, and not by its status.
                while let Ok(Some(message)) = stream.next().await
                    && !matches!(message, Message::Refused { code: ProblemCode::Unavailable, .. })
                {
                    events += 1;
                    // Behind a reset no place from before it holds; its own says "from the beginning", and who goes back
                    // there on purpose begins anew.
                    if matches!(message, Message::Reset(_)) {
                        old = None;
                    } else if events % FORGOTTEN == 0 {
                        old = Some(stream.subscription().clone());
                    }
                    self.message(message).await;
                    if self.upto(stream.subscription()) {
                        return;
                    }
                    // Once it is about how soon all are whole, nobody leaves any more.
                    if events >= stays && self.end.borrow().is_none() {
                        break;
                    }
                }
                place = stream.into_subscription();
            }
            // A crowd that comes back all at once, again and again, leaves the machine no time for anything else.
            tokio::time::sleep(Duration::from_millis(100 + self.number as u64 % 100)).await;
        }
    }

    fn note(&mut self, what: What) {
        let (at, connection) = (self.begun.elapsed(), self.connection);
        self.history.entries.push(Entry { at, connection, what });
    }

    async fn message(&mut self, message: Message) {
        match message {
            Message::Event(event) => {
                let event = value(&event);
                let found = match &mut self.eyes {
                    Some(eyes) => eyes.find(&event.topic, &event.data).await,
                    None => None,
                };
                self.delivered.fetch_add(1, Ordering::Relaxed);
                self.note(What::Event(Seen {
                    cursor: event.cursor,
                    digest: digest(&event.data),
                    topic: event.topic,
                    xid: event.xid,
                    last: event.last,
                    partial: event.partial,
                    found,
                }));
            }
            Message::Reset(reset) => self.note(What::Reset(reset)),
            Message::Subscribed { .. } | Message::Bye { .. } => {}
            Message::Refused { code, detail } => panic!("{}: {code}: {detail}", self.history.client),
        }
    }

    /// Notes how far it is; whether that is the end.
    fn upto(&mut self, place: &Subscription) -> bool {
        let Some(cursor) = place.cursor() else { return false };
        let last = self.history.entries.iter().rev().find_map(|entry| match entry.what {
            What::Presented(last) => Some(last),
            What::Upto(last) => Some(Some(last)),
            _ => None,
        });
        if last != Some(Some(cursor)) {
            self.note(What::Upto(cursor));
        }
        self.end.borrow().is_some_and(|end| cursor.position >= end)
    }
}

/// Looks for the row that an event is.
struct Eyes {
    url: String,
    sql: Option<Sql>,
}

impl Eyes {
    async fn find(&mut self, topic: &Topic, data: &Value) -> Option<bool> {
        let writer = topic.as_str().strip_prefix("row/")?;
        if self.sql.is_none() {
            self.sql = reach(&self.url).await;
        }
        let look = format!("SELECT 1 FROM ledger WHERE writer = {writer} AND n = {}", data["n"]);
        let found = self.sql.as_ref()?.simple_query(&look).await;
        let Ok(rows) = found else {
            self.sql = None;
            return None;
        };
        Some(rows.iter().any(|row| matches!(row, tokio_postgres::SimpleQueryMessage::Row(_))))
    }
}

/// What a record of the log is to followers.
fn event(raw: &Raw<'_>) -> Option<(Topic, u64)> {
    match raw {
        Raw::Insert("public.ledger", row) => {
            let number = |column: &str| row[column].parse::<u32>().unwrap();
            Some(row_event(number("writer"), number("n")))
        }
        Raw::Message(prefix, content) if prefix.starts_with("walcast:") => {
            let (topic, data) = content.split_once('\n').unwrap();
            Some((topic.parse().unwrap(), digest(&serde_json::from_str(data).unwrap())))
        }
        _ => None,
    }
}

/// What the ledger says.
async fn ledger(sql: &Sql) -> Vec<Noted> {
    let mut ledger = Vec::new();
    for row in sql.query("SELECT writer, n, xid FROM ledger", &[]).await.unwrap() {
        let (writer, n) = (row.get::<_, i32>(0) as u32, row.get::<_, i32>(1) as u32);
        let xid = row.get::<_, i64>(2) as u32;
        let said: Topic = format!("said/{writer}").parse().unwrap();
        let said = texts(n).into_iter().map(|text| (said.clone(), digest(&text)));
        let events = std::iter::once(row_event(writer, n)).chain(said);
        ledger.extend(events.map(|(topic, digest)| Noted { xid, topic, digest }));
    }
    ledger
}

fn row_event(writer: u32, n: u32) -> (Topic, u64) {
    (format!("row/{writer}").parse().unwrap(), digest(&json!({"writer": writer, "n": n})))
}
