//! Listens to Redis, and fills from brokers what it may have missed.
//!
//! Whatever is committed behind the moment at which Redis confirmed a subscription comes over the channels; whatever was
//! before it is in the log, up to the head that Redis names after that moment. So brokers are followed until they are there,
//! while what is heard is held; then what is held goes on behind it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use walcast_wire::{Cursor, Op, Reset, ResetReason};

use super::link::{Answer, Dial, Fault, Line, done, head};
use super::names::Names;
use super::seen::{Seen, Verdict, reached};
use crate::reconnect::{Next, Retry, Verdict as Outcome};
use crate::subscribe::Shared;
use crate::{After, Client, Error, Event, EventsRequest, Update, Updates};

/// A connection that lived so long proves that Redis works.
const PROVEN: Duration = Duration::from_secs(5);
/// How long until Redis is asked again how far the log goes, where the answer was of no use.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How many events are held while brokers are followed, and what they may take. Beyond it they come over the brokers.
const HELD_MAX: usize = 10_000;
const HELD_BYTES_MAX: usize = 16 << 20;

/// Does the work of [`RedisUpdates`](super::RedisUpdates).
pub(crate) struct Listener {
    dial: Box<dyn Dial>,
    names: Names,
    brokers: Option<Client>,
    shared: Arc<Shared>,
    /// Goes up when the caller wants a repair.
    wanted: watch::Receiver<u64>,
    seen: Seen,
    ready: VecDeque<Update>,
    link: Link,
    retry: Retry,
    down: bool,
    /// How far the log goes, once Redis has said so.
    asking: Option<Answer<Option<Cursor>>>,
    head: Option<Cursor>,
    /// What was heard, and waits until it is known what was before it.
    held: VecDeque<Event>,
    held_bytes: usize,
    fill: Option<Fill>,
}

enum Link {
    Opening(Answer<Line>),
    Up(Line),
}

/// Brokers are followed.
struct Fill {
    updates: Updates,
    places: watch::Receiver<Option<Cursor>>,
    /// The last unit that was handed out, perhaps not all of it: that is behind the place.
    last: Seen,
    look: Option<Look>,
    /// How long until the next look.
    pause: Duration,
}

/// A look at what lies behind a place: if there is nothing, how far that holds. A stream that has nothing to tell says so
/// much later only.
type Look = Pin<Box<dyn Future<Output = (Cursor, Option<Cursor>)> + Send>>;

fn place_of(fill: Option<&Fill>) -> Option<Cursor> {
    fill.and_then(|fill| *fill.places.borrow())
}

/// What happened.
enum Said {
    Update(Option<Result<Update, Error>>),
    CaughtUp,
    Looked(Cursor, Option<Cursor>),
    Opened(Result<Line, Fault>),
    Heard(Option<Vec<u8>>),
    Head(Result<Option<Cursor>, Fault>),
    Wanted,
}

impl Listener {
    pub(crate) fn new(
        dial: Box<dyn Dial>,
        names: Names,
        brokers: Option<Client>,
        shared: Arc<Shared>,
        wanted: watch::Receiver<u64>,
    ) -> Self {
        let link = Link::Opening(dial.open(&names));
        let seen = Seen::all(shared.get());
        Self {
            dial,
            names,
            brokers,
            shared,
            wanted,
            seen,
            ready: VecDeque::new(),
            link,
            retry: Retry::new(1),
            down: false,
            asking: None,
            head: None,
            held: VecDeque::new(),
            held_bytes: 0,
            fill: None,
        }
    }

    /// The next update. Behind an error there is none.
    pub(crate) async fn next(&mut self) -> Result<Update, Error> {
        loop {
            if let Some(update) = self.ready.pop_front() {
                return Ok(update);
            }
            // Of different orders, one is behind: brokers will say, or Redis.
            let place = place_of(self.fill.as_ref());
            let differ = place.zip(self.head).is_some_and(|(place, head)| place.epoch != head.epoch);
            if differ && self.asking.is_none() {
                self.ask(ASK_AGAIN);
            }
            if let Some(from) = place.filter(|_| self.head.is_some()) {
                self.look(from);
            }
            match self.hear().await {
                Said::Update(Some(update)) => self.filled(update?),
                // It ends behind an error only.
                Said::Update(None) => self.fill = None,
                Said::CaughtUp => self.caught_up(place_of(self.fill.as_ref())),
                Said::Looked(from, to) => self.looked(from, to),
                Said::Opened(Ok(line)) => self.opened(line),
                Said::Opened(Err(fault)) | Said::Head(Err(fault)) => self.lost(fault)?,
                Said::Heard(Some(message)) => self.heard(&message),
                Said::Heard(None) => self.lost(Fault::Mends("the connection ended".to_owned()))?,
                Said::Head(Ok(head)) => self.told(head),
                Said::Wanted => self.repair(),
            }
        }
    }

    /// Waits for whatever comes first. What is not taken is not lost.
    async fn hear(&mut self) -> Said {
        let Self { fill, link, asking, head, wanted, .. } = self;
        let target = if asking.is_none() { *head } else { None };
        let up = matches!(link, Link::Up(_));
        let (updates, places, look) = match fill {
            Some(Fill { updates, places, look, .. }) => (Some(updates), Some(places), look.as_mut()),
            None => (None, None, None),
        };
        let looked = async {
            match look {
                Some(look) => look.await,
                None => std::future::pending().await,
            }
        };
        let update = async {
            match updates {
                Some(updates) => updates.next().await,
                None => std::future::pending().await,
            }
        };
        let caught_up = async {
            match places.zip(target) {
                Some((places, head)) => {
                    if places.wait_for(|place| reached(*place, head)).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        let line = async {
            match link {
                Link::Opening(line) => Said::Opened(line.await),
                Link::Up(line) => Said::Heard(line.next().await),
            }
        };
        let again = async {
            if wanted.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            // Before the next update is taken, which would be one too many.
            () = caught_up => Said::CaughtUp,
            () = again => Said::Wanted,
            (from, to) = looked => Said::Looked(from, to),
            head = done(asking), if up => Said::Head(head),
            said = line => said,
            update = update => Said::Update(update),
        }
    }

    /// Redis confirmed that it tells from now on.
    fn opened(&mut self, line: Line) {
        if std::mem::take(&mut self.down) {
            tracing::info!(source = self.names.meta, "walcast: Redis is reached again");
        }
        self.link = Link::Up(line);
        self.ask(Duration::ZERO);
    }

    /// Asks how far the log goes, and holds what is heard until then.
    fn ask(&mut self, pause: Duration) {
        let Link::Up(line) = &self.link else { return };
        let (asks, meta) = (Arc::clone(&line.asks), self.names.meta.clone());
        self.asking = Some(Box::pin(async move {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            head(asks, meta).await
        }));
    }

    /// Redis said how far the log goes.
    fn told(&mut self, head: Option<Cursor>) {
        self.asking = None;
        self.head = head;
        if let Some(fill) = &mut self.fill {
            (fill.look, fill.pause) = (None, Duration::ZERO);
            if head.is_none() {
                self.ask(ASK_AGAIN);
            }
            return;
        }
        match (self.seen.place(), head) {
            // This is where it begins.
            (None, head) => self.reach(Seen::all(head)),
            (Some(_), Some(head)) if self.seen.reaches(head) => {}
            (Some(place), _) if self.brokers.is_none() => {
                self.ready.push_back(Update::Reset(Reset { reason: ResetReason::Gap, resume: place }));
            }
            (Some(_), head) => {
                self.follow();
                if head.is_none() {
                    self.ask(ASK_AGAIN);
                }
            }
        }
        self.release();
    }

    /// Everything up to there was handed out, or need not be.
    fn reach(&mut self, seen: Seen) {
        self.seen = seen;
        self.shared.set(self.seen.place());
    }

    /// Hands on what was held.
    fn release(&mut self) {
        self.held_bytes = 0;
        for event in std::mem::take(&mut self.held) {
            if self.asking.is_some() || self.fill.is_some() {
                self.hold(event);
            } else {
                self.admit(event);
            }
        }
    }

    fn heard(&mut self, message: &[u8]) {
        self.retry.progressed();
        let event = match serde_json::from_slice::<Event>(message) {
            Ok(event) => event,
            Err(error) => {
                tracing::debug!(%error, "walcast: somebody else's message in a channel is passed over");
                return;
            }
        };
        if !self.names.want(&event.topic) {
            return;
        }
        if self.asking.is_some() || self.fill.is_some() {
            self.hold(event);
        } else {
            self.admit(event);
        }
    }

    fn hold(&mut self, event: Event) {
        self.held_bytes += event.data.get().len() + event.topic.as_str().len();
        self.held.push_back(event);
        if self.held.len() > HELD_MAX || self.held_bytes > HELD_BYTES_MAX {
            (self.held, self.held_bytes) = (VecDeque::new(), 0);
            if self.fill.is_none() {
                self.repair();
            }
            self.ask(Duration::ZERO);
        }
    }

    /// An event in its turn.
    fn admit(&mut self, event: Event) {
        match self.seen.take(&event) {
            Verdict::New => self.ready.push_back(Update::Event(event)),
            Verdict::Known => return,
            Verdict::Elsewhere if self.brokers.is_some() => {
                self.repair();
                return self.hold(event);
            }
            Verdict::Elsewhere => {
                let Cursor { epoch, position } = event.cursor;
                let resume = Cursor::new(epoch, position.predecessor());
                let reset = Reset { reason: ResetReason::EpochChanged, resume };
                self.ready.push_back(Update::Reset(reset));
                self.seen = Seen::default();
                self.seen.take(&event);
                self.ready.push_back(Update::Event(event));
            }
        }
        self.shared.set(self.seen.place());
    }

    /// Follows brokers from where we are until they are where Redis is now.
    fn repair(&mut self) {
        if self.brokers.is_some() {
            self.follow();
            self.ask(Duration::ZERO);
        }
    }

    /// Follows brokers from where we are.
    fn follow(&mut self) {
        let (Some(client), None) = (&self.brokers, &self.fill) else { return };
        let after = self.seen.place().map_or(After::Now, After::Cursor);
        let updates = client.subscribe(self.names.topics()).after(after).stream();
        self.fill = Some(Fill {
            places: updates.places(),
            updates,
            last: Seen::default(),
            look: None,
            pause: Duration::ZERO,
        });
    }

    /// A broker told something.
    fn filled(&mut self, update: Update) {
        let Some(fill) = &mut self.fill else { return };
        let place = *fill.places.borrow();
        match &update {
            Update::Event(event) => {
                // A value's cursor is no place.
                if event.op != Op::Snapshot {
                    fill.last.take(event);
                }
                if self.seen.knows(event) {
                    return;
                }
            }
            // What follows is told from the beginning.
            Update::Reset(_) => (self.seen, fill.last) = (Seen::default(), Seen::default()),
        }
        self.shared.set(place.or(self.seen.place()));
        self.ready.push_back(update);
    }

    /// Looks whether there is anything behind `from`, unless that is under way.
    fn look(&mut self, from: Cursor) {
        let (Some(client), Some(fill)) = (&self.brokers, &mut self.fill) else { return };
        if fill.look.is_some() {
            return;
        }
        let pause = std::mem::replace(&mut fill.pause, ASK_AGAIN);
        let mut request = EventsRequest::new(self.names.topics().iter().cloned()).after(After::Cursor(from));
        (request.wait, request.limit) = (Some(Duration::ZERO), Some(1));
        let client = client.clone();
        fill.look = Some(Box::pin(async move {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            // What failed here fails there, and is told there.
            let reply = client.poll(&request).await.ok();
            (from, reply.filter(|reply| reply.events.is_empty()).map(|reply| reply.cursor))
        }));
    }

    /// Behind `from` there is nothing up to `to`.
    fn looked(&mut self, from: Cursor, to: Option<Cursor>) {
        let Some(fill) = &mut self.fill else { return };
        fill.look = None;
        let still = *fill.places.borrow() == Some(from);
        if still && self.asking.is_none() && self.head.is_some_and(|head| reached(to, head)) {
            self.caught_up(to);
        }
    }

    /// Brokers told everything that was before what is held.
    fn caught_up(&mut self, place: Option<Cursor>) {
        let last = self.fill.take().map(|fill| fill.last).unwrap_or_default();
        self.reach(Seen::all_and(place, last));
        self.release();
    }

    /// Redis is gone, or refuses.
    fn lost(&mut self, fault: Fault) -> Result<(), Error> {
        let reason = match fault {
            Fault::Mends(reason) => reason,
            Fault::Lasting(reason) => return Err(Error::Redis { reason }),
        };
        if let Link::Up(line) = &self.link
            && line.since.elapsed() >= PROVEN
        {
            self.retry.recovered();
        }
        if !std::mem::replace(&mut self.down, true) {
            tracing::warn!(reason, source = self.names.meta, "walcast: Redis is not reached; trying on");
        }
        (self.held, self.held_bytes) = (VecDeque::new(), 0);
        (self.asking, self.head) = (None, None);
        let pause = match self.retry.failed(Outcome::Mends, None) {
            Next::Pause(pause) => pause,
            Next::Another | Next::Never => Duration::ZERO,
        };
        let opening = self.dial.open(&self.names);
        self.link = Link::Opening(Box::pin(async move {
            sleep(pause).await;
            super::link::in_time(opening).await
        }));
        self.repair();
        Ok(())
    }
}
