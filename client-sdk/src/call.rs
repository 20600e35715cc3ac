//! A call that is answered once, by whichever broker can; and the first such call, the current value.

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{ETAG, HeaderMap, IF_NONE_MATCH};
use tokio::time::{Instant, sleep};
use walcast_wire::{Cursor, ProblemCode, Topic};

use crate::connection::Endpoint;
use crate::reconnect::{Next, Retry, Verdict};
use crate::request::{Query, encode, seconds};
use crate::{Client, Data, Error};

/// What a call becomes.
pub(crate) type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// Takes a text for a topic.
pub(crate) fn topic(text: &str) -> Result<Topic, Error> {
    Topic::new(text).map_err(|source| Error::Topic { text: text.to_owned(), source })
}

impl Client {
    /// Makes `attempt` at one broker after the other until one answers, or refuses for good; begins no attempt
    /// after `deadline`.
    pub(crate) async fn over<T, F: Future<Output = Result<T, Error>>>(
        &self,
        topics: &str,
        deadline: Option<Instant>,
        mut attempt: impl FnMut(Arc<Endpoint>) -> F,
    ) -> Result<T, Error> {
        let mut retry = Retry::new(self.hosts.len());
        let mut number = self.hosts.current();
        let mut down = false;
        loop {
            let host = self.hosts.at(number);
            let error = match attempt(Arc::clone(&host.endpoint)).await {
                Ok(answer) => {
                    host.works();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            host.complain(&error);
            let verdict = Verdict::of(&error);
            if verdict == Verdict::Lasting {
                return Err(match error.reset() {
                    Some(_) => error,
                    None => error.refused(host.endpoint.address(), topics),
                });
            }
            number = self.hosts.behind(number);
            let pause = match retry.failed(verdict, error.retry_after()) {
                Next::Another => continue,
                Next::Pause(pause) => pause,
                Next::Never => return Err(error.refused(host.endpoint.address(), topics)),
            };
            if deadline.is_some_and(|deadline| Instant::now() + pause >= deadline) {
                return Err(error);
            }
            if !std::mem::replace(&mut down, true) {
                tracing::warn!(%error, topics, "walcast: no broker answers; trying on");
            }
            sleep(pause).await;
        }
    }

    /// The current value of a state topic, from whichever broker answers.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), walcast_client::Error> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use std::time::Duration;
    /// use walcast_client::State;
    ///
    /// if let State::Value { data, .. } = client.state("vm/host-17").wait(Duration::from_secs(30)).await? {
    ///     println!("{data}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn state(&self, topic: impl AsRef<str>) -> GetState {
        GetState { client: self.clone(), topic: self::topic(topic.as_ref()), wait: None, unless: None }
    }
}

/// The current value of a state topic.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// use walcast_client::State;
///
/// match client.state("vm/host-17").await? {
///     State::Value { data, .. } => println!("{data}"),
///     State::Unchanged => println!("as it was"),
///     State::Absent => println!("free"),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub enum State {
    /// It has one.
    Value {
        /// The value.
        data: Data,
        /// Its version: present it to wait for another.
        cursor: Cursor,
    },
    /// It still has the value that was presented.
    Unchanged,
    /// It has none.
    Absent,
}

/// Asks for a current value; from [`Client::state`]. Await it.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// let hold = std::time::Duration::from_secs(30);
/// let state = client.state("vm/host-17").wait(hold).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Topic`], [`Error::Refused`], [`Error::Certificate`] of every broker, or whatever came last when the
/// [patience](crate::ClientBuilder::patience) was over.
#[derive(Debug)]
#[must_use = "await it"]
pub struct GetState {
    client: Client,
    topic: Result<Topic, Error>,
    wait: Option<Duration>,
    unless: Option<Cursor>,
}

impl GetState {
    /// Lets the broker hold the answer until there is a value, or another than that of
    /// [`unless`](Self::unless); at most 5 min.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// let hold = std::time::Duration::from_secs(30);
    /// let assigned = client.state("vm/host-17").wait(hold).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait(mut self, hold: Duration) -> Self {
        self.wait = Some(hold);
        self
    }

    /// Answers [`State::Unchanged`] if the value is still that of this cursor.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::State;
    ///
    /// let hold = std::time::Duration::from_secs(30);
    /// if let State::Value { cursor, .. } = client.state("vm/host-17").await? {
    ///     let another = client.state("vm/host-17").unless(cursor).wait(hold).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn unless(mut self, cursor: Cursor) -> Self {
        self.unless = Some(cursor);
        self
    }

    async fn get(self) -> Result<State, Error> {
        let topic = self.topic?;
        let hold = self.wait.unwrap_or_default();
        // Longer than the clock goes is for ever.
        let deadline = Instant::now().checked_add(self.client.patience.saturating_add(hold));
        self.client
            .over(topic.as_str(), deadline, |endpoint| {
                let topic = topic.clone();
                async move { state_once(&endpoint, &topic, self.wait, self.unless).await }
            })
            .await
    }
}

impl IntoFuture for GetState {
    type Output = Result<State, Error>;
    type IntoFuture = Answer<State>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.get())
    }
}

async fn state_once(
    endpoint: &Endpoint,
    topic: &Topic,
    wait: Option<Duration>,
    unless: Option<Cursor>,
) -> Result<State, Error> {
    let mut target = "/v1/state/".to_owned();
    encode(topic.as_str(), &mut target);
    let mut query = Query::default();
    if let Some(wait) = wait {
        query.add("wait", &seconds(wait));
    }
    target.push_str(query.as_str());
    let mut get = endpoint.request("GET", &target);
    if let Some(cursor) = unless {
        get = get.header(IF_NONE_MATCH, format!("\"{cursor}\""));
    }
    match endpoint.call(get, Bytes::new(), wait.unwrap_or_default()).await {
        Ok((StatusCode::NOT_MODIFIED, ..)) => Ok(State::Unchanged),
        Ok((_, headers, body)) => {
            let cursor = etag(&headers).ok_or_else(|| endpoint.protocol("no ETag".to_owned()))?;
            let data = serde_json::from_slice(&body);
            let data = data.map_err(|error| endpoint.protocol(error.to_string()))?;
            Ok(State::Value { data, cursor })
        }
        Err(error) if error.problem().is_some_and(|it| it.code == ProblemCode::NotFound) => Ok(State::Absent),
        Err(error) => Err(error),
    }
}

/// The cursor in `ETag: "…"`, weak or not.
fn etag(headers: &HeaderMap) -> Option<Cursor> {
    let text = headers.get(ETAG)?.to_str().ok()?;
    text.trim_start_matches("W/").trim_matches('"').parse().ok()
}
