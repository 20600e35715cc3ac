//! What every transport does: subscribe, then read page after page.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use walcast_wire::{Cursor, ProblemCode, Reset, TopicPattern};

use super::App;
use super::problem::Refusal;
use super::query::After;
use crate::auth::Key;
use crate::hub::roll::Name;
use crate::hub::{CurrentValues, Delivery, Encoded, Subscription};

/// Events taken from the hub at a time.
pub(super) const PIECE: usize = 64;
/// How long a request waits for current values that this node has to ask others for, beyond what it allows.
const ASKING_MAX: Duration = Duration::from_secs(2);
/// A page takes no further events above this, so that no client, however slow, keeps more of evicted
/// history alive than this and one piece.
const PAGE_BYTES: usize = 1 << 20;

/// Something to send.
#[derive(Debug)]
pub(crate) enum Page {
    /// Events in order, ending with a unit.
    Events(Vec<Arc<Encoded>>),
    /// Current values, all of them. Where to go on is behind the page, not in the values' own cursors.
    Values(CurrentValues),
    /// Events may be missing before what follows.
    Reset(Reset),
}

/// When a plain request is answered at the latest.
pub(super) struct Late {
    at: Pin<Box<Sleep>>,
    /// Current values may have to be asked for, however little time was given.
    asks: bool,
}

impl Late {
    pub(super) fn new(app: &App, wait: Duration) -> Self {
        Self { at: Box::pin(tokio::time::sleep(wait)), asks: app.hub.follows() }
    }

    /// Ready once the time is up; where current values are `unsettled` then, a little later.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, unsettled: impl FnOnce() -> bool) -> Poll<()> {
        ready!(self.at.as_mut().poll(cx));
        if std::mem::take(&mut self.asks) && unsettled() {
            self.at.as_mut().reset(Instant::now() + ASKING_MAX);
            ready!(self.at.as_mut().poll(cx));
        }
        Poll::Ready(())
    }
}

/// One client's place, as a transport reads it.
#[derive(Debug)]
pub(crate) struct Session {
    subscription: Subscription,
    /// Who reads.
    key: Arc<Key>,
    /// Met while filling a page; the next page.
    reset: Option<Reset>,
    /// Behind the last page.
    cursor: Cursor,
}

impl Session {
    /// Begins to wait for what the key grants; under a name, where the client gave one.
    pub(super) fn open(
        app: &App,
        key: Arc<Key>,
        topics: Vec<TopicPattern>,
        after: Option<After>,
        name: Option<Name>,
    ) -> Result<Self, Refusal> {
        if *app.away.borrow() {
            return Err(Refusal::unavailable("another broker leads; ask again"));
        }
        let subscription = app.hub.subscribe(topics, After::start(after))?;
        if let Some(name) = name {
            subscription.name(name);
        }
        let cursor = subscription.cursor();
        Ok(Self { subscription, key, reset: None, cursor })
    }

    /// What there is: at most `limit` events (more only to complete a unit). Else the task is woken once there
    /// is something.
    pub(crate) fn poll_page(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<Page> {
        if let Some(reset) = self.reset.take() {
            self.cursor = reset.resume;
            return Poll::Ready(Page::Reset(reset));
        }
        let asked = limit.min(PIECE);
        let mut events = match ready!(self.subscription.poll_next(cx, asked)) {
            Delivery::Events(events) => events,
            Delivery::Values(values) => {
                self.cursor = self.subscription.cursor();
                return Poll::Ready(Page::Values(values));
            }
            Delivery::Reset(reset) => {
                self.cursor = reset.resume;
                return Poll::Ready(Page::Reset(reset));
            }
        };
        self.cursor = self.subscription.cursor();
        let mut full = events.len() >= asked;
        while full && events.len() < limit && bytes(&events) < PAGE_BYTES {
            let asked = PIECE.min(limit - events.len());
            match self.subscription.poll_next(cx, asked) {
                Poll::Ready(Delivery::Events(more)) => {
                    full = more.len() >= asked;
                    events.extend(more);
                    self.cursor = self.subscription.cursor();
                }
                // The events before it are still good: it comes by itself.
                Poll::Ready(Delivery::Reset(reset)) => {
                    self.reset = Some(reset);
                    break;
                }
                // They come before all events, or behind a reset.
                Poll::Ready(Delivery::Values(_)) | Poll::Pending => break,
            }
        }
        Poll::Ready(Page::Events(events))
    }

    /// As [`Self::poll_page`], for a plain request, which gets current values whole: once they are known, and
    /// unless they are too many.
    pub(crate) fn poll_whole(
        &mut self,
        cx: &mut Context<'_>,
        limit: usize,
        values_bytes_max: u64,
    ) -> Poll<Result<Page, Refusal>> {
        ready!(self.poll_settled(cx));
        let bytes = self.subscription.values_bytes();
        if bytes <= values_bytes_max {
            return self.poll_page(cx, limit).map(Ok);
        }
        Poll::Ready(Err(Refusal::new(
            ProblemCode::TooBroad,
            format!(
                "current values of these topics take {bytes} bytes, more than {values_bytes_max}: narrow the topics, or use a stream"
            ),
        )))
    }

    /// The client is to come again: the broker goes away, or its key does not hold any more.
    pub(crate) fn ends(&self, app: &App) -> bool {
        app.ends(&self.key)
    }

    /// Current values are wanted and not known yet, so there is no cursor to give.
    pub(crate) fn unsettled(&self) -> bool {
        self.reset.is_none() && self.subscription.unsettled()
    }

    /// Ready once current values, where wanted, are known.
    pub(crate) fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.subscription.poll_settled(cx)
    }

    /// Asks for current values once more, as they are now, if all that was asked before is told; whether it does.
    pub(crate) fn ask_again(&mut self) -> bool {
        self.reset.is_none() && self.subscription.ask_again()
    }

    /// What to present to go on after the last page, or further on where nothing is pending.
    pub(crate) fn bookmark(&mut self) -> Cursor {
        // After a reset that is not told yet, only the cursor before it makes the client hear of it.
        if self.reset.is_none() {
            self.cursor = self.subscription.bookmark();
        }
        self.cursor
    }

    pub(crate) fn topics(&self) -> &[TopicPattern] {
        self.subscription.topics()
    }

    pub(crate) fn remove(&mut self, topics: &[TopicPattern]) {
        self.subscription.remove(topics);
    }

    /// Joins `other` if both are caught up; else gives it back.
    #[must_use]
    pub(crate) fn join(&mut self, other: Self) -> Option<Self> {
        if self.reset.is_some() || other.reset.is_some() {
            return Some(other);
        }
        let Self { subscription, key, reset, cursor } = other;
        self.subscription.add(subscription).err().map(|subscription| Self {
            subscription,
            key,
            reset,
            cursor,
        })
    }
}

fn bytes(events: &[Arc<Encoded>]) -> usize {
    events.iter().map(|event| event.json().len()).sum()
}

/// Units of a page: runs of events that share a position.
pub(crate) fn units(events: &[Arc<Encoded>]) -> impl Iterator<Item = &[Arc<Encoded>]> {
    events.chunk_by(|a, b| a.position() == b.position())
}
