//! Long-poll as a stream: one request after another, each from the cursor of the last answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::ACCEPT;
use walcast_wire::{Cursor, EventsReply};

use crate::connection::{Endpoint, retry_after};
use crate::subscription::{Step, Steps};
use crate::{Data, Error, Event, EventsRequest, Message, Subscription};

/// How long the broker holds a long-poll that names no `wait`.
const WAIT_DEFAULT: Duration = Duration::from_secs(50);

/// A stream of long-polls. It ends only when the broker drains or a call fails.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// use walcast_client::{EventsRequest, Transport};
///
/// let mut stream = client.open(Transport::Poll, EventsRequest::new(vec!["vm/*".parse()?])).await?;
/// println!("{:?}", stream.next().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PollStream {
    endpoint: Arc<Endpoint>,
    subscription: Subscription,
    /// Events of the last answer that were not handed out.
    page: VecDeque<Event>,
    /// The cursor behind them.
    page_end: Option<Cursor>,
    ending: Option<Duration>,
    ended: bool,
    /// Asks for a cursor first where it has none, so that a cut of a held answer loses nothing.
    place_first: bool,
}

/// One long-poll: the answer, and the delay after which a draining broker wants to be called again.
pub(crate) async fn poll_once(
    endpoint: &Endpoint,
    request: &EventsRequest,
) -> Result<(EventsReply<Data>, Option<Duration>), Error> {
    let target = format!("/v1/events{}", request.poll_query().as_str());
    let get = endpoint.request("GET", &target).header(ACCEPT, "application/json");
    let hold = request.wait.unwrap_or(WAIT_DEFAULT);
    let (_, headers, body) = endpoint.call(get, Bytes::new(), hold).await?;
    let reply = serde_json::from_slice(&body).map_err(|error| endpoint.protocol(error.to_string()))?;
    Ok((reply, retry_after(&headers)))
}

impl PollStream {
    pub(crate) fn new(endpoint: Arc<Endpoint>, subscription: Subscription) -> Self {
        Self {
            endpoint,
            subscription,
            page: VecDeque::new(),
            page_end: None,
            ending: None,
            ended: false,
            place_first: false,
        }
    }

    /// Lets the first answer come at once, if that is where the cursor comes from.
    pub(crate) fn place_first(mut self) -> Self {
        self.place_first = true;
        self
    }

    /// As [`Stream::next`](crate::Stream::next).
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::{EventsRequest, Transport};
    ///
    /// let mut stream = client.open(Transport::Poll, EventsRequest::new(vec!["vm/*".parse()?])).await?;
    /// let first = stream.next().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As there.
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        self.message().await
    }

    /// Takes over the answer's cursor once its last event is handed out.
    fn finish_page(&mut self) {
        if self.page.is_empty()
            && let Some(cursor) = self.page_end.take()
        {
            self.subscription.reached(cursor);
        }
    }

    /// What is waited for, and how far it was received.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// use walcast_client::{EventsRequest, Transport};
    ///
    /// let stream = client.open(Transport::Poll, EventsRequest::new(vec!["vm/*".parse()?])).await?;
    /// println!("{:?}", stream.subscription().cursor());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }
}

impl Steps for PollStream {
    async fn advance(&mut self) -> Result<Option<Step>, Error> {
        loop {
            while let Some(event) = self.page.pop_front() {
                let new = self.subscription.admit(&event);
                // An answer holds whole units.
                if self.page.front().is_some_and(|next| next.cursor != event.cursor) {
                    self.subscription.unit_ended();
                }
                self.finish_page();
                if new {
                    return Ok(Some(Step::Message(Message::Event(event))));
                }
            }
            if self.ended {
                return Ok(None);
            }
            if let Some(retry) = self.ending.take() {
                self.ended = true;
                return Ok(Some(Step::Message(Message::Bye { retry: Some(retry) })));
            }
            let mut request = self.subscription.request();
            if self.place_first && self.subscription.cursor().is_none() {
                request.wait = Some(Duration::ZERO);
            }
            match poll_once(&self.endpoint, &request).await {
                Ok((reply, retry)) => {
                    self.page = reply.events.into();
                    self.page_end = Some(reply.cursor);
                    self.ending = retry;
                    if self.page.is_empty() {
                        self.finish_page();
                        return Ok(Some(Step::Moved));
                    }
                }
                Err(error) => {
                    let Some(reset) = error.reset() else { return Err(error) };
                    self.subscription.reset(reset.resume);
                    return Ok(Some(Step::Message(Message::Reset(reset))));
                }
            }
        }
    }
}
