//! A topic's current value, looked at again whenever something happens to it.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use walcast_wire::{Reset, Topic};

use super::App;
use super::problem::Refusal;
use super::session::{PIECE, Page, Session};
use crate::auth::Key;
use crate::hub::Current;
use crate::hub::roll::Name;

/// One client's look at a current value.
pub(super) struct Look {
    topic: Topic,
    session: Session,
    /// What was known last: a node that holds no values forgets what it asked for.
    seen: Option<Current>,
}

impl Look {
    pub(super) fn open(app: &App, key: Arc<Key>, topic: Topic, name: Option<Name>) -> Result<Self, Refusal> {
        // Subscribed before the first look, so that no change between look and wait is missed.
        let session = Session::open(app, key, vec![topic.clone().into()], None, name)?;
        Ok(Self { topic, session, seen: None })
    }

    pub(super) fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The first answer that `look` has for the value as it is, or `reset` when something may have been missed.
    pub(super) fn poll<T>(
        &mut self,
        app: &App,
        cx: &mut Context<'_>,
        mut look: impl FnMut(&Current) -> Option<T>,
        mut reset: impl FnMut(Reset) -> Option<T>,
    ) -> Poll<T> {
        ready!(self.session.poll_settled(cx));
        loop {
            let current = app.hub.current(&self.topic);
            let outdated = matches!(current, Current::Unsettled);
            let answer = look(&current);
            if !outdated && app.hub.follows() {
                self.seen = Some(current);
            }
            if let Some(answer) = answer {
                return Poll::Ready(answer);
            }
            // On a node that holds no values, a change makes the one that was asked for out of date.
            if outdated && self.session.ask_again() {
                ready!(self.session.poll_settled(cx));
            // Events only tell that it is time to look.
            } else if let Page::Reset(told) = ready!(self.session.poll_page(cx, PIECE))
                && let Some(answer) = reset(told)
            {
                return Poll::Ready(answer);
            }
        }
    }

    /// The client is to come again.
    pub(super) fn ends(&self, app: &App) -> bool {
        self.session.ends(app)
    }

    /// Nothing is known of the value, and nothing was.
    pub(super) fn unsettled(&self, app: &App) -> bool {
        self.seen.is_none() && matches!(app.hub.current(&self.topic), Current::Unsettled)
    }

    /// What is known of it, or was last.
    pub(super) fn last(&mut self, app: &App) -> Current {
        match (app.hub.current(&self.topic), self.seen.take()) {
            (Current::Unsettled, Some(seen)) => seen,
            (current, _) => current,
        }
    }
}
