//! Waiting for one thing, by long-poll: the next event, or the value that makes a condition true.
//!
//! Between two answers there is a cursor, so nothing slips through. The first question is answered at once, for the
//! cursor in its answer is what makes the others safe from cuts.

use std::future::IntoFuture;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::time::sleep;
use walcast_wire::{Cursor, Op, Position, Topic};

use crate::call::{Answer, topic};
use crate::poll::poll_once;
use crate::{After, Client, Error, Event, EventsRequest};

/// How long a broker holds a question: less than what proxies take for silence.
const HOLD: Duration = Duration::from_secs(50);

impl Client {
    /// The next event of a topic; of a state topic the current value, if it has one. Waits as long as it takes, over
    /// all brokers.
    ///
    /// What is published between two such calls is not told. To see everything follow the topic
    /// ([`Client::subscribe`]), or go on [`after`](Wait::after) the last event.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// let limit = std::time::Duration::from_secs(600);
    /// let event = tokio::time::timeout(limit, client.wait("vm/host-17")).await??;
    /// println!("{} {}", event.op.as_str(), event.data);
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait(&self, topic: impl AsRef<str>) -> Wait {
        Wait { client: self.clone(), topic: self::topic(topic.as_ref()), after: None, name: None }
    }

    /// The first value of a topic for which `done` is true, beginning with the current one of a state topic. Waits as
    /// long as it takes, over all brokers; rows that go away are passed over.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), walcast_client::Error> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// #[derive(serde::Deserialize)]
    /// struct Vm {
    ///     pin: u32,
    /// }
    /// let event = client.wait_for("vm/host-17", |vm: &Vm| vm.pin != 0).await?;
    /// println!("pinned to {}", event.data.pin);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Data`] for a value that is no `T`, and as [`Wait`].
    pub async fn wait_for<T: DeserializeOwned>(
        &self,
        topic: impl AsRef<str>,
        mut done: impl FnMut(&T) -> bool,
    ) -> Result<walcast_wire::Event<T>, Error> {
        let topic = self::topic(topic.as_ref())?;
        let mut watch = Watch::new(self.clone(), topic, None, None);
        loop {
            for event in watch.page().await? {
                if matches!(event.op, Op::Delete | Op::Truncate) {
                    continue;
                }
                let event = typed(event)?;
                if done(&event.data) {
                    return Ok(event);
                }
            }
        }
    }
}

/// The same event with its data read.
fn typed<T: DeserializeOwned>(event: Event) -> Result<walcast_wire::Event<T>, Error> {
    let data = match serde_json::from_str(event.data.get()) {
        Ok(data) => data,
        Err(error) => {
            let (topic, cursor) = (event.topic, event.cursor);
            return Err(Error::Data { topic, cursor, reason: error.to_string() });
        }
    };
    let walcast_wire::Event { cursor, topic, op, data: _, time, lsn, xid, last, partial, unchanged, omitted } =
        event;
    Ok(walcast_wire::Event { cursor, topic, op, data, time, lsn, xid, last, partial, unchanged, omitted })
}

/// Waits for an event; from [`Client::wait`]. Await it; dropping it ends the wait.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// let next = client.wait("jobs/7").named("worker-3").await?;
/// println!("{}", next.data);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Topic`], [`Error::Refused`], [`Error::Certificate`] of every broker, or [`Error::Missed`].
#[derive(Debug)]
#[must_use = "await it"]
pub struct Wait {
    client: Client,
    topic: Result<Topic, Error>,
    after: Option<Cursor>,
    name: Option<String>,
}

impl Wait {
    /// The next event after this place. Where the brokers cannot tell what came since, the answer is
    /// [`Error::Missed`].
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// let first = client.wait("jobs/7").await?;
    /// // Whatever came in between.
    /// let second = client.wait("jobs/7").after(first.cursor).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn after(mut self, cursor: Cursor) -> Self {
        self.after = Some(cursor);
        self
    }

    /// How the waiter is called in the brokers' list of who waits; 1 to 128 characters.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// let event = client.wait("vm/host-17").named("host-17").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    async fn next(self) -> Result<Event, Error> {
        let mut watch = Watch::new(self.client, self.topic?, self.after, self.name);
        // Of what follows nothing was promised.
        watch.request.limit = Some(1);
        loop {
            if let Some(event) = watch.page().await?.into_iter().next() {
                return Ok(event);
            }
        }
    }
}

impl IntoFuture for Wait {
    type Output = Result<Event, Error>;
    type IntoFuture = Answer<Event>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.next())
    }
}

/// One question after another.
struct Watch {
    client: Client,
    topic: Topic,
    request: EventsRequest,
    /// The caller wants to know of a gap.
    strict: bool,
    /// How often a broker said that it goes away, without a pause.
    leaving: usize,
}

impl Watch {
    fn new(client: Client, topic: Topic, after: Option<Cursor>, name: Option<String>) -> Self {
        let mut request = EventsRequest::new([topic.clone().into()]);
        request.after = after.map_or(After::Current, After::Cursor);
        request.client = name;
        Self { client, topic, request, strict: after.is_some(), leaving: 0 }
    }

    /// The next answer that has events.
    async fn page(&mut self) -> Result<Vec<Event>, Error> {
        loop {
            self.request.wait = match self.request.after {
                After::Cursor(_) => Some(HOLD),
                _ => Some(Duration::ZERO),
            };
            let asked = self.client.hosts.current();
            let request = &self.request;
            let answer = self.client.over(self.topic.as_str(), None, |endpoint| {
                let request = request.clone();
                async move { poll_once(&endpoint, &request).await }
            });
            match answer.await {
                Ok((reply, leaving)) => {
                    // The place before everything is none to go on from: it would bring what is long past.
                    if reply.cursor.position != Position::ZERO {
                        self.request.after = After::Cursor(reply.cursor);
                    }
                    if !reply.events.is_empty() {
                        return Ok(reply.events);
                    }
                    if let Some(pause) = leaving {
                        self.leave(asked, pause).await;
                    }
                }
                Err(error) => match error.reset() {
                    Some(reset) if self.strict => return Err(Error::Missed { reset }),
                    // The current value says it all; of messages that came meanwhile nothing was promised.
                    Some(_) => self.request.after = After::Current,
                    None => return Err(error),
                },
            }
        }
    }

    /// The broker goes away: the next one is asked, and after a round of these there is a pause.
    async fn leave(&mut self, number: usize, pause: Duration) {
        self.client.hosts.behind(number);
        self.leaving += 1;
        if self.leaving.is_multiple_of(self.client.hosts.len()) {
            sleep(pause.min(HOLD).mul_f64(rand::random_range(1.0..1.5))).await;
        }
    }
}
