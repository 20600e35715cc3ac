//! Following topics: what to follow and how, and the stream of updates that comes of it.
//!
//! The stream outlives connections and brokers. The work is done in `follow`; here is what a program sees of it.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::watch;
use walcast_wire::{Cursor, Reset, TopicPattern};

use crate::follow::Follower;
use crate::store::Saver;
use crate::{After, Client, CursorStore, Error, Event, Transport};

/// What the current values of all topics may take.
const VALUES_BYTES_MAX: usize = 64 << 20;

/// What a followed topic tells.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// use walcast_client::Update;
///
/// let mut updates = client.subscribe(["vm/*"]).stream();
/// match updates.next().await.transpose()? {
///     Some(Update::Event(event)) => println!("{} {}", event.topic, event.data),
///     Some(Update::Reset(reset)) => println!("forget what was known: {}", reset.reason.code()),
///     None => println!("it is over"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum Update {
    /// Something happened, or (with `op` snapshot) is so.
    Event(Event),
    /// Events may be missing before what follows. Rebuild what was derived from earlier ones: what follows are the
    /// current values of state topics, and the events that are still held, which may have been told before.
    Reset(Reset),
}

impl Client {
    /// Follows topics and patterns (`*` is one segment, a final `**` the rest), from 1 to 100, over all brokers and
    /// over whichever transport gets through.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), walcast_client::Error> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::{FileStore, Update};
    ///
    /// let mut updates = client
    ///     .subscribe(["vm/host-17", "jobs/*"])
    ///     .store(FileStore::new("/var/lib/agent/cursor"))
    ///     .stream();
    /// while let Some(update) = updates.next().await {
    ///     match update? {
    ///         Update::Event(event) => println!("{} {}", event.topic, event.data),
    ///         Update::Reset(_) => println!("forget what was known: all of it follows"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn subscribe<T: AsRef<str>>(&self, topics: impl IntoIterator<Item = T>) -> Subscribe {
        let pattern = |text: T| {
            let text = text.as_ref();
            TopicPattern::new(text).map_err(|source| Error::Topic { text: text.to_owned(), source })
        };
        Subscribe {
            client: self.clone(),
            topics: topics.into_iter().map(pattern).collect(),
            after: After::Current,
            transport: None,
            spread: Duration::ZERO,
            values_bytes_max: VALUES_BYTES_MAX,
            name: None,
            store: None,
        }
    }
}

/// What to follow, from where, and how; from [`Client::subscribe`].
///
/// ```no_run
/// # fn example(client: walcast_client::Client) -> walcast_client::Updates {
/// use std::time::Duration;
/// use walcast_client::{After, Transport};
///
/// client
///     .subscribe(["fleet/upgrade"])
///     .after(After::Now)
///     .spread(Duration::from_secs(60))
///     .transport(Transport::Sse)
///     .named("host-17")
///     .stream()
/// # }
/// ```
#[must_use = "nothing is asked for before `stream`"]
pub struct Subscribe {
    pub(crate) client: Client,
    pub(crate) topics: Result<Vec<TopicPattern>, Error>,
    pub(crate) after: After,
    pub(crate) transport: Option<Transport>,
    pub(crate) spread: Duration,
    pub(crate) values_bytes_max: usize,
    pub(crate) name: Option<String>,
    pub(crate) store: Option<Arc<dyn CursorStore>>,
}

impl std::fmt::Debug for Subscribe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscribe")
            .field("topics", &self.topics)
            .field("after", &self.after)
            .finish_non_exhaustive()
    }
}

impl Subscribe {
    /// Begins there: a [`Cursor`], [`After::Now`], [`After::Earliest`]. Default: with the current values of state
    /// topics, and with what comes of others. Now is when a broker first confirms it, and tells the first
    /// [cursor](Updates::cursor). A place that was [stored](Self::store) wins over all of it.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::After;
    ///
    /// let mut updates = client.subscribe(["jobs/**"]).after(After::Earliest).stream();
    /// # Ok(())
    /// # }
    /// ```
    pub fn after(mut self, after: impl Into<After>) -> Self {
        self.after = after.into();
        self
    }

    /// Uses this transport alone. Default: a WebSocket; where that does not get through, server-sent events; then
    /// long-poll. What did not get through to a broker is tried again after 5 minutes.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::Transport;
    ///
    /// let mut updates = client.subscribe(["jobs/**"]).transport(Transport::Poll).stream();
    /// # Ok(())
    /// # }
    /// ```
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = Some(transport);
        self
    }

    /// Hands an event out a random time of up to `spread` after it came, so that a fleet which is woken by the same
    /// event does not act at the same moment. Events close behind it follow at once; the order stays. Up to 1 MiB of
    /// what comes meanwhile is held; beyond that the connection is left, and taken up again after. Default: none.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// // Thousands are woken by one event; each acts at a moment of its own.
    /// let mut updates = client.subscribe(["bots/start"]).spread(std::time::Duration::from_secs(20)).stream();
    /// # Ok(())
    /// # }
    /// ```
    pub fn spread(mut self, spread: Duration) -> Self {
        self.spread = spread;
        self
    }

    /// Keeps the place in `store`, and begins there the next time. A place is kept when the program asks for the
    /// next update, by which it says that it is done with the last: after a crash it gets again what it may not have
    /// finished, so acting on an event must be harmless the second time.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::FileStore;
    ///
    /// let mut updates = client.subscribe(["vm/*"]).store(FileStore::new("/var/lib/agent/cursor")).stream();
    /// # Ok(())
    /// # }
    /// ```
    pub fn store(mut self, store: impl CursorStore) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// How the waiter is called in the brokers' list of who waits; 1 to 128 characters.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// let mut updates = client.subscribe(["vm/host-17"]).named("host-17").stream();
    /// # Ok(())
    /// # }
    /// ```
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How many bytes of current values are held until the last of them is there. Default: 64 MiB.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// let mut updates = client.subscribe(["vm/*"]).values_bytes_max(64 << 20).stream();
    /// # Ok(())
    /// # }
    /// ```
    pub fn values_bytes_max(mut self, bytes: usize) -> Self {
        self.values_bytes_max = bytes;
        self
    }

    /// The stream, which connects when it is first polled.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// let mut updates = client.subscribe(["vm/host-17"]).stream();
    /// println!("{:?}", updates.next().await);
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream(self) -> Updates {
        let shared = Arc::new(Shared::default());
        let start = match self.after {
            After::Cursor(cursor) => Some(cursor),
            _ => None,
        };
        shared.set(start);
        let follower = Follower::new(self, Arc::clone(&shared));
        Updates { turn: Turn::Idle(Box::new(follower)), shared }
    }
}

/// What the stream and the work behind it both know.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Behind what was handed out last.
    place: watch::Sender<Option<Cursor>>,
    pub(crate) saver: OnceLock<Saver>,
    /// Connections on which a broker said something.
    connections: AtomicU64,
}

impl Shared {
    pub(crate) fn set(&self, place: Option<Cursor>) {
        self.place.send_replace(place);
    }

    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Option<Cursor> {
        *self.place.borrow()
    }
}

/// One call of the work: whoever made it gets the worker back with the answer.
type Work = Pin<Box<dyn Future<Output = (Box<Follower>, Answer)> + Send>>;
type Answer = Result<Update, Error>;

enum Turn {
    Idle(Box<Follower>),
    Working(Work),
    Ended,
}

/// Updates of the topics that are followed, in order; from [`Subscribe::stream`]. A [`Stream`]
/// that has [`next`](Self::next) of its own, too.
///
/// - Nothing comes twice and nothing is missing, over cuts, brokers and transports, unless an [`Update::Reset`] says
///   so. Current values come all together, once the last of them is there.
/// - While no broker can be reached it waits and tries on, with pauses of up to 30 s; the log is told once.
/// - After an error it is over: [`Error::Refused`] (which broker, topics, status and code), [`Error::Certificate`] of
///   every broker, [`Error::Topic`], [`Error::TooBroad`], [`Error::TooLarge`], [`Error::Store`].
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// use walcast_client::Update;
///
/// let mut updates = client.subscribe(["vm/host-17"]).stream();
/// while let Some(update) = updates.next().await {
///     if let Update::Event(event) = update? {
///         println!("{}", event.data);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is asked for before it is polled"]
pub struct Updates {
    turn: Turn,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Updates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Updates").field("cursor", &self.cursor()).finish_non_exhaustive()
    }
}

impl Updates {
    /// The next update; `None` once the stream is over. May be dropped and called again without loss.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// let mut updates = client.subscribe(["vm/host-17"]).stream();
    /// let first = updates.next().await.transpose()?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn next(&mut self) -> Option<Result<Update, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The place behind what was handed out last. `None` until a broker told one, and while current values are handed
    /// out for the first time: who begins again then gets all of them.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// let mut updates = client.subscribe(["vm/host-17"]).stream();
    /// updates.next().await.transpose()?;
    /// println!("to go on from: {:?}", updates.cursor());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        self.shared.get()
    }

    /// How many connections there were on which a broker answered; each above the first followed a cut.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// let mut updates = client.subscribe(["vm/host-17"]).stream();
    /// updates.next().await.transpose()?;
    /// println!("cut {} times", updates.connections().saturating_sub(1));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// The place, to wait for.
    #[cfg(any(feature = "redis", feature = "fred"))]
    pub(crate) fn places(&self) -> watch::Receiver<Option<Cursor>> {
        self.shared.place.subscribe()
    }

    /// Keeps the place of now, everything that was handed out counting as done. For a program that ends in good
    /// order; without a store it does nothing.
    ///
    /// ```no_run
    /// # async fn example(mut updates: walcast_client::Updates) -> Result<(), walcast_client::Error> {
    /// tokio::select! {
    ///     update = updates.next() => println!("{update:?}"),
    ///     _ = tokio::signal::ctrl_c() => updates.save().await?,
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`]: it could not be kept.
    pub async fn save(&self) -> Result<(), Error> {
        match (self.shared.saver.get(), self.cursor()) {
            (Some(saver), Some(cursor)) => saver.save(cursor).await.map_err(Error::Store),
            _ => Ok(()),
        }
    }
}

impl Stream for Updates {
    type Item = Result<Update, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut work = match std::mem::replace(&mut self.turn, Turn::Ended) {
            Turn::Ended => return Poll::Ready(None),
            Turn::Working(work) => work,
            Turn::Idle(mut follower) => Box::pin(async move {
                let answer = follower.next().await;
                (follower, answer)
            }),
        };
        let Poll::Ready((follower, answer)) = work.as_mut().poll(cx) else {
            self.turn = Turn::Working(work);
            return Poll::Pending;
        };
        if answer.is_ok() {
            self.turn = Turn::Idle(follower);
        }
        Poll::Ready(Some(answer))
    }
}
