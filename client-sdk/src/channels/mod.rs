//! Following topics over the channels of Redis, which brokers publish on with `redis.pubsub`.
//!
//! For services that listen to Redis anyway, and for fleets that are to burden Redis and not the brokers. Redis tells a
//! message to whoever listens at that moment and to nobody later, so what comes over channels comes at most once. With
//! brokers to ask, a subscriber fills in what it may have missed: [`RedisSubscriber::repair`].

#[cfg(feature = "fred")]
mod fred_rs;
mod inbox;
mod link;
mod listener;
mod names;
#[cfg(feature = "redis")]
mod redis_rs;
mod seen;
#[cfg(test)]
mod tests;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::sync::watch;
use walcast_wire::{Cursor, TopicPattern};

use crate::subscribe::Shared;
use crate::{Client, Error, Update};
use link::Dial;
use listener::Listener;
use names::Names;

/// What to listen to in Redis.
///
/// ```no_run
/// # #[cfg(feature = "redis")]
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use walcast_client::{Client, RedisSubscriber, Update};
///
/// let redis = redis::Client::open("redis://redis-1:6379")?;
/// let brokers = Client::new("http://broker-1:8480")?;
/// let mut updates = RedisSubscriber::new(redis, "walcast", ["vm/*"]).repair(brokers).stream();
/// while let Some(update) = updates.next().await {
///     match update? {
///         Update::Event(event) => println!("{} {}", event.topic, event.data),
///         Update::Reset(_) => println!("forget what was known: all of it follows"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// Redis is told the topics as channels, and patterns as globs, which are wider: what does not match is dropped here.
/// Redis 6.2 or later; the user needs `+subscribe +psubscribe +hmget +ping`, the channels `&walcast:{SOURCE}:*` and to
/// read the key `walcast:{SOURCE}:meta`. In a cluster, name the member that holds this key; where there are replicas, the
/// master, for a replica may name an older place than it tells.
#[must_use = "nothing is asked for before `stream`"]
pub struct RedisSubscriber {
    dial: Box<dyn Dial>,
    source: String,
    topics: Result<Vec<TopicPattern>, Error>,
    brokers: Option<Client>,
    after: Option<Cursor>,
}

impl std::fmt::Debug for RedisSubscriber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisSubscriber")
            .field("source", &self.source)
            .field("topics", &self.topics)
            .finish_non_exhaustive()
    }
}

impl RedisSubscriber {
    /// Over redis-rs. `source` is the brokers' `source.slot`, topics and patterns are as in [`Client::subscribe`]. Each
    /// stream makes a connection of its own, which speaks RESP3.
    ///
    /// ```no_run
    /// # fn example() -> redis::RedisResult<walcast_client::RedisUpdates> {
    /// use walcast_client::RedisSubscriber;
    ///
    /// let redis = redis::Client::open("redis://redis-1:6379")?;
    /// Ok(RedisSubscriber::new(redis, "walcast", ["vm/host-17", "jobs/*"]).stream())
    /// # }
    /// ```
    #[cfg(feature = "redis")]
    pub fn new<T: AsRef<str>>(
        client: redis::Client,
        source: impl Into<String>,
        topics: impl IntoIterator<Item = T>,
    ) -> Self {
        Self::over(Box::new(client), source.into(), topics)
    }

    /// The same over fred, which makes a connection of its own by this configuration, with RESP3 and without fred's
    /// reconnecting.
    ///
    /// ```no_run
    /// # fn example() -> Result<walcast_client::RedisUpdates, fred::error::Error> {
    /// use walcast_client::RedisSubscriber;
    ///
    /// let config = fred::types::config::Config::from_url("redis://redis-1:6379")?;
    /// Ok(RedisSubscriber::fred(config, "walcast", ["vm/host-17", "jobs/*"]).stream())
    /// # }
    /// ```
    #[cfg(feature = "fred")]
    pub fn fred<T: AsRef<str>>(
        config: fred::types::config::Config,
        source: impl Into<String>,
        topics: impl IntoIterator<Item = T>,
    ) -> Self {
        Self::over(Box::new(config), source.into(), topics)
    }

    fn over<T: AsRef<str>>(dial: Box<dyn Dial>, source: String, topics: impl IntoIterator<Item = T>) -> Self {
        let pattern = |text: T| {
            let text = text.as_ref();
            TopicPattern::new(text).map_err(|source| Error::Topic { text: text.to_owned(), source })
        };
        let topics = topics.into_iter().map(pattern).collect();
        Self { dial, source, topics, brokers: None, after: None }
    }

    /// Fills what was missed, from brokers that serve the same source.
    ///
    /// Whenever Redis was away, and when [asked](RedisUpdates::repair), `client` is followed from the last event on, until
    /// it is where Redis said that the log ends after it confirmed the subscription; meanwhile what Redis tells is held,
    /// and goes on behind it. So over cuts and restarts of Redis, events come once and in order, and while Redis is away
    /// they come from the brokers. Where a broker cannot tell what came, there is its [`Update::Reset`].
    ///
    /// What stays at most once is what Redis drops without ending the connection, for nobody learns of it: between members
    /// of a cluster, behind a failover that the connection outlives, or while brokers have `redis.pubsub` off. The next
    /// repair brings what is missing up to the last event that came, and not what is before it: who cannot bear that
    /// follows the brokers by [`Client::subscribe`].
    ///
    /// ```no_run
    /// # #[cfg(feature = "redis")]
    /// # fn example(redis: redis::Client) -> Result<walcast_client::RedisUpdates, walcast_client::Error> {
    /// use walcast_client::{Client, RedisSubscriber};
    ///
    /// let brokers = Client::builder().hosts(["http://broker-1:8480", "http://broker-2:8480"]).build()?;
    /// Ok(RedisSubscriber::new(redis, "walcast", ["vm/**"]).repair(brokers).stream())
    /// # }
    /// ```
    pub fn repair(mut self, client: Client) -> Self {
        self.brokers = Some(client);
        self
    }

    /// Begins behind this place, which only brokers can tell of: give some to [`repair`](Self::repair). Default: now, which
    /// is when Redis confirms the subscription.
    ///
    /// ```no_run
    /// # #[cfg(feature = "redis")]
    /// # fn example(subscriber: walcast_client::RedisSubscriber, brokers: walcast_client::Client,
    /// #     kept: walcast_client::wire::Cursor) -> walcast_client::RedisUpdates {
    /// subscriber.repair(brokers).after(kept).stream()
    /// # }
    /// ```
    pub fn after(mut self, cursor: Cursor) -> Self {
        self.after = Some(cursor);
        self
    }

    /// The stream, which connects when it is first polled.
    pub fn stream(self) -> RedisUpdates {
        let shared = Arc::new(Shared::default());
        shared.set(self.after);
        let (wants, wanted) = watch::channel(0);
        let begin = Begin { subscriber: self, shared: Arc::clone(&shared), wanted };
        RedisUpdates { turn: Turn::Begin(Box::new(begin)), shared, wants }
    }
}

/// What a listener is made of, once there is a runtime.
struct Begin {
    subscriber: RedisSubscriber,
    shared: Arc<Shared>,
    wanted: watch::Receiver<u64>,
}

impl Begin {
    fn listener(self) -> Result<Box<Listener>, Error> {
        let RedisSubscriber { dial, source, topics, brokers, .. } = self.subscriber;
        let topics = topics?;
        if topics.is_empty() {
            return Err(Error::Request("no topic is named".to_owned()));
        }
        let names = Names::new(&source, topics);
        Ok(Box::new(Listener::new(dial, names, brokers, self.shared, self.wanted)))
    }
}

type Answer = Result<Update, Error>;
/// One call of the work: whoever made it gets the worker back with the answer.
type Work = Pin<Box<dyn Future<Output = (Box<Listener>, Answer)> + Send>>;

enum Turn {
    Begin(Box<Begin>),
    Idle(Box<Listener>),
    Working(Work),
    Ended,
}

/// Updates of the topics that are listened to, in order; from [`RedisSubscriber::stream`]. A [`Stream`] that has
/// [`next`](Self::next) of its own, too.
///
/// - Nothing comes twice: unique is cursor and topic.
/// - While Redis cannot be reached it tries on, with pauses of up to 30 s; the log is told once. A program that takes
///   nothing for so long that more than 4096 messages or 16 MiB wait is cut off as if Redis had been.
/// - Without [`repair`](RedisSubscriber::repair), a cut is followed by an [`Update::Reset`] if something may have been
///   missed: its `resume` is the place from which brokers tell it. No current values follow.
/// - After an error it is over: [`Error::Topic`], [`Error::Redis`] (it refuses the user, or holds another version), and
///   with brokers those of [`Updates`](crate::Updates).
#[must_use = "nothing is asked for before it is polled"]
pub struct RedisUpdates {
    turn: Turn,
    shared: Arc<Shared>,
    wants: watch::Sender<u64>,
}

impl std::fmt::Debug for RedisUpdates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisUpdates").field("cursor", &self.cursor()).finish_non_exhaustive()
    }
}

impl RedisUpdates {
    /// The next update; `None` once the stream is over. May be dropped and called again without loss.
    pub async fn next(&mut self) -> Option<Result<Update, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// A place to go on from, here or from brokers: nothing that was handed out is missing behind it, but what shares the
    /// cursor of the last event may come again, for Redis does not say where a unit ends. `None` until Redis or a
    /// broker told one.
    #[must_use]
    pub fn cursor(&self) -> Option<Cursor> {
        self.shared.get()
    }

    /// Asks the brokers whether something is missing behind the last event, without a cut. Without
    /// [brokers](RedisSubscriber::repair) it does nothing.
    ///
    /// ```no_run
    /// # async fn example(mut updates: walcast_client::RedisUpdates) -> Result<(), walcast_client::Error> {
    /// # let mut doubt = tokio::time::interval(std::time::Duration::from_secs(600));
    /// loop {
    ///     tokio::select! {
    ///         update = updates.next() => println!("{update:?}"),
    ///         _ = doubt.tick() => updates.repair(),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn repair(&self) {
        self.wants.send_modify(|wants| *wants += 1);
    }
}

fn work(mut listener: Box<Listener>) -> Work {
    Box::pin(async move {
        let answer = listener.next().await;
        (listener, answer)
    })
}

impl Stream for RedisUpdates {
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        let mut work = match std::mem::replace(&mut self.turn, Turn::Ended) {
            Turn::Ended => return Poll::Ready(None),
            Turn::Working(work) => work,
            Turn::Idle(listener) => work(listener),
            Turn::Begin(begin) => match begin.listener() {
                Ok(listener) => work(listener),
                Err(error) => return Poll::Ready(Some(Err(error))),
            },
        };
        let Poll::Ready((listener, answer)) = work.as_mut().poll(cx) else {
            self.turn = Turn::Working(work);
            return Poll::Pending;
        };
        if answer.is_ok() {
            self.turn = Turn::Idle(listener);
        }
        Poll::Ready(Some(answer))
    }
}
