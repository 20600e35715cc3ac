//! What every transport does: subscribe, then read page after page.

use std::sync::Arc;

use futures_util::FutureExt;
use walcast_wire::{Cursor, ProblemCode, Reset, TopicPattern};

use super::App;
use super::problem::Refusal;
use super::query::After;
use crate::hub::{CurrentValues, Delivery, Encoded, SubscribeError, Subscription};

/// Events taken from the hub at a time.
const PIECE: usize = 64;
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

/// One client's place, as a transport reads it.
#[derive(Debug)]
pub(crate) struct Session {
    subscription: Subscription,
    /// Met while filling a page; the next page.
    reset: Option<Reset>,
    /// Behind the last page.
    cursor: Cursor,
}

impl Session {
    pub(super) fn open(app: &App, topics: Vec<TopicPattern>, after: Option<After>) -> Result<Self, Refusal> {
        if *app.away.borrow() {
            return Err(Refusal::unavailable("another broker leads; ask again"));
        }
        let subscription = app.hub.subscribe(topics, After::start(after)).map_err(|error| {
            let code = match error {
                SubscribeError::NotStarted => ProblemCode::Unavailable,
                SubscribeError::TooManyTopics { .. } => ProblemCode::BadParameter,
                SubscribeError::Overloaded => ProblemCode::Overloaded,
            };
            Refusal::new(code, error.to_string())
        })?;
        let cursor = subscription.cursor();
        Ok(Self { subscription, reset: None, cursor })
    }

    /// Waits until there is something, and returns at most `limit` events (more only to complete a unit).
    /// Cancel safe.
    pub(crate) async fn page(&mut self, limit: usize) -> Page {
        if let Some(reset) = self.reset.take() {
            self.cursor = reset.resume;
            return Page::Reset(reset);
        }
        let asked = limit.min(PIECE);
        let mut events = match self.subscription.next(asked).await {
            Delivery::Events(events) => events,
            Delivery::Values(values) => {
                self.cursor = self.subscription.cursor();
                return Page::Values(values);
            }
            Delivery::Reset(reset) => {
                self.cursor = reset.resume;
                return Page::Reset(reset);
            }
        };
        self.cursor = self.subscription.cursor();
        let mut full = events.len() >= asked;
        while full && events.len() < limit && bytes(&events) < PAGE_BYTES {
            let asked = PIECE.min(limit - events.len());
            match self.subscription.next(asked).now_or_never() {
                Some(Delivery::Events(more)) => {
                    full = more.len() >= asked;
                    events.extend(more);
                    self.cursor = self.subscription.cursor();
                }
                // The events before it are still good: it comes by itself.
                Some(Delivery::Reset(reset)) => {
                    self.reset = Some(reset);
                    break;
                }
                // They come before all events, or behind a reset.
                Some(Delivery::Values(_)) | None => break,
            }
        }
        Page::Events(events)
    }

    /// Makes sure that the current values that a plain request gets, whole, are known and not too many.
    /// Cancel safe.
    pub(crate) async fn check_values(&mut self, bytes_max: u64) -> Result<(), Refusal> {
        self.subscription.settled().await;
        let bytes = self.subscription.values_bytes();
        if bytes <= bytes_max {
            return Ok(());
        }
        Err(Refusal::new(
            ProblemCode::TooBroad,
            format!(
                "current values of these topics take {bytes} bytes, more than {bytes_max}: narrow the topics, or use a stream"
            ),
        ))
    }

    /// Current values are wanted and not known yet, so there is no cursor to give.
    pub(crate) fn unsettled(&self) -> bool {
        self.reset.is_none() && self.subscription.unsettled()
    }

    /// A page that is there already.
    pub(crate) fn page_now(&mut self, limit: usize) -> Option<Page> {
        self.page(limit).now_or_never()
    }

    /// Returns once current values, where wanted, are known. Cancel safe.
    pub(crate) async fn settled(&mut self) {
        self.subscription.settled().await;
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
        let Self { subscription, reset, cursor } = other;
        self.subscription.add(subscription).err().map(|subscription| Self { subscription, reset, cursor })
    }
}

fn bytes(events: &[Arc<Encoded>]) -> usize {
    events.iter().map(|event| event.json().len()).sum()
}

/// Units of a page: runs of events that share a position.
pub(crate) fn units(events: &[Arc<Encoded>]) -> impl Iterator<Item = &[Arc<Encoded>]> {
    events.chunk_by(|a, b| a.position() == b.position())
}
