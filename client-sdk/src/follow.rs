//! Follows topics from broker to broker and from transport to transport.
//!
//! What was taken from a connection and what was handed out are two places: between them lie events that wait for
//! their turn, and those are never asked for again. The place that a program sees never runs ahead of what it got.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use walcast_wire::{CloseCode, Cursor, Problem};

use crate::client::open;
use crate::hosts::Host;
use crate::pace::Pace;
use crate::reconnect::{Next, Retry, Verdict};
use crate::store::Saver;
use crate::subscribe::{Shared, Subscribe};
use crate::subscription::Step;
use crate::values::Values;
use crate::{
    After, Client, CursorStore, Error, EventsRequest, Message, Stream, Subscription, Transport, Update,
};

/// A connection that lived so long proves that its broker works.
const PROVEN: Duration = Duration::from_secs(5);
/// How long a broker holds a long-poll at most: short, for whoever gets no other transport sits behind a strict proxy.
const HOLD: Duration = Duration::from_secs(25);

/// So much is read ahead while an event waits for its turn.
const AHEAD_BYTES_MAX: usize = 1 << 20;
/// About what an event takes beside its data and topic.
const AROUND: usize = 256;
/// Brokers cut who does not answer a ping within 10 s: for longer than this no connection should be left unread.
const UNREAD_MAX: Duration = Duration::from_secs(5);

/// Does the work of [`Updates`](crate::Updates).
pub(crate) struct Follower {
    client: Client,
    pinned: Option<Transport>,
    store: Option<Arc<dyn CursorStore>>,
    shared: Arc<Shared>,
    pace: Pace,
    /// For errors: what is followed.
    topics: String,
    /// What to ask for, or why nothing can be; taken when it begins.
    start: Option<Result<EventsRequest, Error>>,
    /// What was taken from connections that ended.
    subscription: Subscription,
    /// What to ask for while no place behind the current values is known.
    whole: EventsRequest,
    values: Values,
    values_bytes_max: usize,
    /// Taken from a connection, and not handed out.
    ready: VecDeque<Ready>,
    live: Option<Live>,
    host: usize,
    retry: Retry,
    /// The log was told that nothing can be reached.
    down: bool,
}

/// Something to hand out, and the place behind it, if it is another.
struct Ready {
    update: Option<Update>,
    place: Option<Cursor>,
}

/// A connection.
struct Live {
    stream: Stream,
    transport: Transport,
    since: Instant,
    /// Behind what was taken from it.
    place: Option<Cursor>,
    /// The broker said something.
    came: bool,
    /// It said more than why it does not serve, and that it goes away.
    serves: bool,
    /// Why it does not serve us; the end follows.
    refused: Option<Error>,
    /// What was read ahead, and must wait until everything before it is handed out.
    ahead: Option<Result<Option<Step>, Error>>,
    /// When it was last read.
    read: Instant,
    /// The program left it unread for so long that a cut is its own doing.
    neglected: bool,
}

impl Live {
    /// What it says next.
    async fn advance(&mut self) -> Result<Option<Step>, Error> {
        if let Some(said) = self.ahead.take() {
            return said;
        }
        let begun = Instant::now();
        self.neglected |= begun - self.read > UNREAD_MAX;
        let said = self.stream.advance().await;
        self.read = Instant::now();
        // What was sent meanwhile is read, and the broker bore it.
        self.neglected &= self.read - begun <= UNREAD_MAX;
        said
    }
}

impl Ready {
    /// About what it takes.
    fn bytes(&self) -> usize {
        match &self.update {
            Some(Update::Event(event)) => event.data.get().len() + event.topic.as_str().len() + AROUND,
            _ => AROUND,
        }
    }
}

impl Follower {
    pub(crate) fn new(subscribe: Subscribe, shared: Arc<Shared>) -> Self {
        let Subscribe { client, topics, after, transport, spread, values_bytes_max, name, store } = subscribe;
        let host = client.hosts.current();
        // Where silence is borne for less, nothing is held for longer.
        let hold = HOLD.min(client.hosts.at(host).endpoint.silence_max());
        let start =
            topics.map(|topics| EventsRequest { topics, after, wait: Some(hold), limit: None, client: name });
        let nothing = EventsRequest::default();
        Self {
            pinned: transport,
            store,
            shared,
            pace: Pace::new(spread),
            topics: String::new(),
            start: Some(start),
            subscription: Subscription::new(nothing.clone()),
            whole: nothing,
            values: Values::new(values_bytes_max),
            values_bytes_max,
            ready: VecDeque::new(),
            live: None,
            host,
            retry: Retry::new(client.hosts.len()),
            down: false,
            client,
        }
    }

    /// The next update. Behind an error there is none.
    pub(crate) async fn next(&mut self) -> Result<Update, Error> {
        // Who asks for more is done with what it got.
        self.finished();
        if let Some(start) = self.start.take() {
            self.begin(start?).await?;
        }
        loop {
            while let Some(Ready { update, place }) = self.ready.pop_front() {
                if matches!(update, Some(Update::Event(_))) {
                    self.pace().await;
                }
                // Without an await up to the end, so that the place is that of what is handed out.
                if place.is_some() {
                    self.shared.set(place);
                }
                match update {
                    Some(update) => return Ok(update),
                    None => self.finished(),
                }
            }
            let Some(live) = &mut self.live else {
                self.connect().await?;
                continue;
            };
            match live.advance().await {
                Ok(Some(step)) => self.take(step).await?,
                Ok(None) => self.lost(None, None).await?,
                Err(error) => self.lost(Some(error), None).await?,
            }
        }
    }

    /// Waits until an event that is there may be handed out. Meanwhile the connection is read, so that pings are
    /// answered. Where that is too much, it is left, for else the broker would cut it.
    async fn pace(&mut self) {
        let delay = self.pace.delay(Instant::now());
        if delay.is_zero() {
            return;
        }
        let mut turn = std::pin::pin!(sleep(delay));
        let mut bytes: usize = self.ready.iter().map(Ready::bytes).sum();
        while bytes < AHEAD_BYTES_MAX
            && let Some(live) = &mut self.live
            // Between two polls there is nothing to read.
            && live.transport != Transport::Poll
            && live.ahead.is_none()
        {
            let said = tokio::select! {
                biased;
                () = &mut turn => {
                    live.read = Instant::now();
                    return self.pace.over(live.read);
                }
                said = live.advance() => said,
            };
            let before = self.ready.len();
            let ahead = match said {
                Ok(Some(step)) if !step.ends() => self.take(step).await.err().map(Err),
                ended => Some(ended),
            };
            if let Some(live) = &mut self.live {
                live.ahead = ahead;
            }
            bytes += self.ready.range(before..).map(Ready::bytes).sum::<usize>();
        }
        let left = turn.deadline().saturating_duration_since(Instant::now());
        if bytes >= AHEAD_BYTES_MAX && left > UNREAD_MAX {
            self.leave();
        }
        turn.await;
        self.pace.over(Instant::now());
    }

    /// Everything that was handed out is done with.
    fn finished(&self) {
        if let Some(saver) = self.shared.saver.get() {
            saver.want(self.shared.get());
        }
    }

    async fn begin(&mut self, mut request: EventsRequest) -> Result<(), Error> {
        if request.topics.is_empty() {
            return Err(Error::Request("no topic is named".to_owned()));
        }
        let names: Vec<&str> = request.topics.iter().map(AsRef::as_ref).collect();
        self.topics = names.join(", ");
        if let Some(store) = self.store.take() {
            let from = Arc::clone(&store);
            let stored = match tokio::task::spawn_blocking(move || from.load()).await {
                Ok(stored) => stored.map_err(Error::Store)?,
                Err(error) => return Err(Error::Store(std::io::Error::other(error))),
            };
            if let Some(cursor) = stored {
                request.after = After::Cursor(cursor);
                self.shared.set(stored);
            }
            // There is one begin.
            let _ = self.shared.saver.set(Saver::start(store, stored));
        }
        self.subscription = Subscription::new(request.clone());
        self.whole = request;
        Ok(())
    }

    fn host(&self) -> &Host {
        self.client.hosts.at(self.host)
    }

    async fn connect(&mut self) -> Result<(), Error> {
        let host = self.client.hosts.at(self.host);
        let transport = self.pinned.unwrap_or_else(|| host.transport());
        let endpoint = Arc::clone(&host.endpoint);
        match Box::pin(open(endpoint, transport, self.subscription.clone())).await {
            Ok(stream) => {
                let stream = match stream {
                    Stream::Poll(stream) => Stream::Poll(stream.place_first()),
                    other => other,
                };
                let (since, place) = (Instant::now(), self.subscription.cursor());
                self.live = Some(Live {
                    stream,
                    transport,
                    since,
                    place,
                    came: false,
                    serves: false,
                    refused: None,
                    ahead: None,
                    read: since,
                    neglected: false,
                });
                Ok(())
            }
            Err(error) if self.steps_down(transport, &error) => Ok(()),
            Err(error) => self.failed(error, None).await,
        }
    }

    /// What the broker said.
    async fn take(&mut self, step: Step) -> Result<(), Error> {
        let Some(live) = &mut self.live else { return Ok(()) };
        live.came = true;
        if !step.ends() && !std::mem::replace(&mut live.serves, true) {
            let host = self.client.hosts.at(self.host);
            host.works();
            self.shared.connected();
            if std::mem::take(&mut self.down) {
                let address = host.endpoint.address();
                tracing::info!(address, topics = self.topics, "walcast: a broker is reached again");
            }
        }
        let place = live.stream.subscription().cursor();
        let moved = place != std::mem::replace(&mut live.place, place);
        match step {
            Step::Message(Message::Event(event)) => {
                self.retry.progressed();
                self.values.hold(event);
                self.settle(place);
                if self.values.too_many() {
                    let (topics, bytes_max) = (self.topics.clone(), self.values_bytes_max);
                    return Err(Error::TooBroad { topics, bytes_max });
                }
                self.climb();
            }
            Step::Moved | Step::Message(Message::Subscribed { .. }) => {
                if moved {
                    self.retry.progressed();
                }
                self.settle(place);
                self.climb();
            }
            Step::Message(Message::Reset(reset)) => {
                self.values.again(Some(reset.resume));
                self.whole.after = After::Cursor(reset.resume);
                let place = Some(reset.resume);
                self.ready.push_back(Ready { update: Some(Update::Reset(reset)), place });
            }
            Step::Message(Message::Refused { code, detail }) => {
                let problem = Box::new(Problem::new(code, detail));
                let error = Error::Problem { problem, retry_after: None };
                if Verdict::of(&error) == Verdict::Lasting {
                    return Err(error.refused(self.host().endpoint.address(), &self.topics));
                }
                live.refused = Some(error);
            }
            Step::Message(Message::Bye { retry }) => {
                self.lost(None, retry).await?;
            }
        }
        Ok(())
    }

    /// Hands on what is held, if the place behind it is known.
    fn settle(&mut self, place: Option<Cursor>) {
        if !self.values.behind(place) {
            return;
        }
        let events = self.values.take().into_iter();
        self.ready.extend(events.map(|event| Ready { update: Some(Update::Event(event)), place: None }));
        match self.ready.back_mut() {
            Some(last) => last.place = place,
            None => self.ready.push_back(Ready { update: None, place }),
        }
    }

    /// Leaves the connection. What was taken from it is ours: the next one goes on behind it, except that values
    /// which did not come whole are asked for again.
    fn leave(&mut self) -> Option<Live> {
        let live = self.live.take()?;
        self.subscription = match self.values.behind(live.stream.subscription().cursor()) {
            true => live.stream.subscription().clone(),
            false => Subscription::new(self.whole.clone()),
        };
        self.values.discard();
        Some(live)
    }

    /// Where a lesser transport was used long enough, the best is tried again.
    fn climb(&mut self) {
        let Some(live) = &self.live else { return };
        let better = self.pinned.is_none()
            && live.transport != Transport::WebSocket
            && self.host().transport() == Transport::WebSocket;
        if better && self.values.is_empty() {
            self.leave();
        }
    }

    /// The connection ended.
    async fn lost(&mut self, error: Option<Error>, hint: Option<Duration>) -> Result<(), Error> {
        let Some(mut live) = self.leave() else { return Ok(()) };
        // Why says more than how.
        let error = live.refused.take().or(error);
        let hint = match &live.stream {
            Stream::Sse(stream) => hint.or(stream.retry()),
            _ => hint,
        };
        if live.neglected && live.transport == Transport::WebSocket && cut(error.as_ref()) {
            tracing::debug!(topics = self.topics, "walcast: cut while the program did something else");
            return Ok(());
        }
        if let Some(error) = &error
            && (!live.came || matches!(error, Error::TooLarge { .. }))
            && self.steps_down(live.transport, error)
        {
            return Ok(());
        }
        if live.came && live.since.elapsed() >= PROVEN {
            self.retry.recovered();
        }
        let address = || self.host().endpoint.address().to_owned();
        let ended = || Error::Broken { address: address(), reason: "the broker ended the stream".to_owned() };
        self.failed(error.unwrap_or_else(ended), hint).await
    }

    /// Whether another transport to the same broker is worth a try.
    fn steps_down(&self, transport: Transport, error: &Error) -> bool {
        let blocked = match error {
            Error::Broken { .. } | Error::Silent { .. } | Error::Protocol { .. } => true,
            // The next one is sent it in smaller pieces, or reads more at once.
            Error::TooLarge { .. } => true,
            Error::Closed { .. } => Verdict::of(error) == Verdict::Lasting,
            // What is wrong with the request, the next transport says as well.
            Error::Problem { .. } => {
                transport == Transport::WebSocket && Verdict::of(error) != Verdict::Mends
            }
            Error::Status { status, .. } => !matches!(status, 408 | 429 | 502..=504),
            _ => false,
        };
        blocked && self.pinned.is_none() && self.host().step_down(transport, error)
    }

    /// This broker does not serve us: on to the next, behind a pause if all of them do not.
    async fn failed(&mut self, error: Error, hint: Option<Duration>) -> Result<(), Error> {
        let endpoint = Arc::clone(&self.host().endpoint);
        let address = endpoint.address();
        self.host().complain(&error);
        let verdict = Verdict::of(&error);
        if verdict == Verdict::Lasting {
            return Err(error.refused(address, &self.topics));
        }
        tracing::debug!(%error, address, "walcast: on to the next broker");
        self.host = self.client.hosts.behind(self.host);
        let pause = match self.retry.failed(verdict, hint.or(error.retry_after())) {
            Next::Another => return Ok(()),
            Next::Pause(pause) => pause,
            Next::Never => return Err(error.refused(address, &self.topics)),
        };
        if !self.down {
            tracing::warn!(%error, topics = self.topics, "walcast: no broker serves; trying on");
            self.down = true;
        }
        sleep(pause).await;
        Ok(())
    }
}

/// Whether this may come of pings that were not answered.
fn cut(error: Option<&Error>) -> bool {
    match error {
        Some(Error::Closed { code, .. }) => *code == CloseCode::SlowConsumer.code(),
        error => matches!(error, Some(Error::Broken { .. })),
    }
}
