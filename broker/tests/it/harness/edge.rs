//! The HTTP side alone: a real hub behind a real listener, fed by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use walcast::auth::{self, KeyConfig, Keys, RoleConfig};
use walcast::endpoint::{EndpointConfig, Endpoints};
use walcast::event::{Batch, Commit, Effect, Entry, Event, Note, Seeded, Snapshot, State};
use walcast::hub::roll::Elsewhere;
use walcast::hub::{self, Hub};
use walcast::transport::{self, Config, Others, Parts, PublishError, Published, Publisher};
use walcast_wire::{Cursor, Epoch, Op, Position, Topic};

use super::plain::Plain;
use super::wait::until;

/// Takes messages instead of Postgres. What it does is told by the topic.
#[derive(Debug, Default)]
pub(crate) struct Shelf(pub(crate) Mutex<Vec<(String, String, Option<String>)>>);

impl Publisher for Shelf {
    fn publish<'a>(
        &'a self,
        topic: &'a Topic,
        data: &'a RawValue,
        key: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Published, PublishError>> {
        Box::pin(async move {
            match topic.as_str() {
                "refused" => return Err(PublishError::Rejected("no".into())),
                "conflict" => return Err(PublishError::Conflict),
                "away" => return Err(PublishError::Unavailable("no connection".into())),
                "panic" => panic!("as asked"),
                _ => {}
            }
            self.0.lock().push((topic.to_string(), data.get().to_owned(), key.map(str::to_owned)));
            Ok(Published { xid: Some(7), duplicate: false })
        })
    }
}

/// A node that has no others.
struct Alone;

impl Others for Alone {
    fn name(&self) -> &str {
        "alone"
    }

    fn elsewhere(&self) -> BoxFuture<'_, Arc<Elsewhere>> {
        std::future::ready(Arc::default()).boxed()
    }
}

pub(crate) struct Edge {
    plain: Plain,
    pub(crate) hub: Arc<Hub>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) drain: CancellationToken,
    keys: watch::Sender<Arc<Keys>>,
    pub(crate) served: JoinHandle<()>,
    head: AtomicU64,
    epoch: AtomicU64,
}

pub(crate) const EPOCH: Epoch = Epoch(1);

impl Edge {
    pub(crate) async fn start() -> Self {
        Self::with(Config::default(), hub::Config::default()).await
    }

    pub(crate) async fn with(config: Config, history: hub::Config) -> Self {
        Self::unstarted(config, history).await.begun()
    }

    /// The hub has seen the beginning of a stream.
    fn begun(self) -> Self {
        self.begin_line(EPOCH);
        self
    }

    /// A stream of this epoch begins.
    pub(crate) fn begin_line(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::SeqCst);
        let start = Position::before(100);
        self.head.store(100, Ordering::SeqCst);
        self.note(Note::Start { replay_until: start, quiet_from: start });
        let snapshot = Arc::new(Snapshot::parse("1:1:").unwrap());
        let seeded = Seeded { table: "public.vms".into(), topics: vec!["vm/*".parse().unwrap()] };
        self.note(Note::SeedBegin(Arc::from([seeded])));
        self.note(Note::SeedEnd { settle: Position::before(100), snapshot });
    }

    /// Answers these `[[endpoint]]`, too.
    pub(crate) async fn answering(endpoints: &str) -> Self {
        Self::answering_unstarted(endpoints).await.begun()
    }

    /// The same, but the hub has seen no stream.
    pub(crate) async fn answering_unstarted(endpoints: &str) -> Self {
        #[derive(serde::Deserialize)]
        struct File {
            endpoint: Vec<EndpointConfig>,
        }
        let file: File = toml::from_str(endpoints).unwrap();
        let endpoints = Endpoints::new(&file.endpoint).unwrap();
        Self::listen(Config::default(), hub::Config::default(), endpoints).await
    }

    /// Listens, but the hub has seen no stream.
    pub(crate) async fn unstarted(config: Config, history: hub::Config) -> Self {
        Self::listen(config, history, Endpoints::default()).await
    }

    async fn listen(config: Config, history: hub::Config, endpoints: Endpoints) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hub, shelf, drain) = (Hub::new(history), Arc::<Shelf>::default(), CancellationToken::new());
        let publisher = Arc::clone(&shelf) as Arc<dyn Publisher>;
        let away = watch::channel(false).1;
        let (theirs, end) = (Arc::clone(&hub), drain.clone());
        let keys = watch::Sender::new(Arc::new(Keys::new(&[], &[], false).unwrap()));
        let parts = Parts {
            hub: theirs,
            publisher,
            others: Arc::new(Alone),
            endpoints: Arc::new(endpoints),
            auth: auth::Config::default(),
            keys: keys.subscribe(),
            tls: None,
        };
        let serving = transport::serve(listener, config, parts, end, away);
        let served = tokio::spawn(serving);
        Self {
            plain: Plain { address },
            hub,
            shelf,
            drain,
            keys,
            served,
            head: AtomicU64::new(100),
            epoch: AtomicU64::new(EPOCH.0),
        }
    }

    /// Takes these keys, as a reload does.
    pub(crate) fn let_in(&self, keys: &[KeyConfig], roles: &[RoleConfig]) {
        let new = Keys::new(keys, roles, false).unwrap();
        self.keys.send_modify(|keys| *keys = Arc::new(new.after(keys)));
    }

    fn note(&self, note: Note) {
        let head = Position::before(self.head.load(Ordering::SeqCst));
        self.ingest(head, head, Vec::new(), Some(note));
    }

    fn ingest(&self, after: Position, upto: Position, entries: Vec<Entry>, note: Option<Note>) {
        let epoch = Epoch(self.epoch.load(Ordering::SeqCst));
        let batch = Batch { epoch, after, upto, entries: entries.into(), note };
        self.hub.ingest(&batch, Instant::now()).unwrap();
    }

    /// Commits a transaction of events, each with its ordinal; returns the cursor behind it.
    pub(crate) fn commit(&self, events: Vec<(u64, Event)>) -> Cursor {
        let lsn = self.head.fetch_add(2, Ordering::SeqCst);
        let commit = Arc::new(Commit { major: lsn, lsn: Some(lsn), xid: lsn as u32, time_us: 0 });
        let entries = events.into_iter().map(|(ordinal, event)| {
            let (position, commit) = (Position::new(lsn, ordinal), Some(Arc::clone(&commit)));
            Entry::Event(Event { position, commit, ..event })
        });
        let upto = Position::before(lsn + 2);
        self.ingest(Position::before(lsn), upto, entries.collect(), None);
        Cursor::new(Epoch(self.epoch.load(Ordering::SeqCst)), upto)
    }

    /// A message on `topic`.
    pub(crate) fn send(&self, topic: &str, data: &str) -> Cursor {
        self.commit(vec![(1, message(topic, data))])
    }

    /// Sets a current value.
    pub(crate) fn put(&self, topic: &str, data: &str) -> Cursor {
        self.commit(vec![(1, state(topic, data, Op::Update, Effect::Put))])
    }

    /// Removes a current value.
    pub(crate) fn clear(&self, topic: &str) -> Cursor {
        self.commit(vec![(1, state(topic, "{}", Op::Delete, Effect::Clear))])
    }

    pub(crate) fn waiting(&self) -> usize {
        self.hub.status().subscriptions
    }

    /// Until this many subscriptions exist.
    pub(crate) async fn until_waiting(&self, count: usize) {
        until("subscriptions", async || self.waiting() == count).await;
    }
}

impl std::ops::Deref for Edge {
    type Target = Plain;
    fn deref(&self) -> &Plain {
        &self.plain
    }
}

pub(crate) fn message(topic: &str, data: &str) -> Event {
    Event {
        position: Position::ZERO,
        topic: Topic::new(topic).unwrap(),
        op: Op::Message,
        data: Bytes::copy_from_slice(data.as_bytes()),
        commit: None,
        unchanged: Box::default(),
        omitted: Box::default(),
        partial: false,
        state: None,
    }
}

pub(crate) fn state(topic: &str, data: &str, op: Op, effect: Effect) -> Event {
    Event { op, state: Some(State { table: "public.vms".into(), effect }), ..message(topic, data) }
}
