//! The heartbeat of a quiet stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Fires when nothing has moved for up to the given time, spread so that streams that began together do not
/// beat together. Moving costs no timer.
#[derive(Debug)]
pub(super) struct Beat {
    every: Duration,
    due_at: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Beat {
    pub(super) fn new(every: Duration) -> Self {
        let due_at = Instant::now() + spread(every);
        Self { every, due_at, timer: Box::pin(tokio::time::sleep_until(due_at)) }
    }

    /// The next beat is due a whole time from now.
    pub(super) fn moved(&mut self) {
        self.due_at = Instant::now() + spread(self.every);
    }

    /// The next beat is due after `time`.
    pub(super) fn due_in(&mut self, time: Duration) {
        self.due_at = Instant::now() + time;
        // The timer may be set for later than that.
        if self.timer.deadline() > self.due_at {
            self.timer.as_mut().reset(self.due_at);
        }
    }

    /// Ready once it is due; until [`Self::moved`] or [`Self::due_in`] is called it stays so.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if Instant::now() >= self.due_at {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(self.due_at);
        }
    }
}

fn spread(every: Duration) -> Duration {
    every.mul_f64(rand::random_range(0.75..1.0))
}
