//! Long-poll as a stream: one request after another, each from the cursor of the last answer.

use std::collections::VecDeque;
use std::time::Duration;

use walcast_wire::{Cursor, ProblemCode, Reset, ResetReason};

use crate::{Client, Error, Event, Message, Subscription};

/// A stream of long-polls. It ends only when the broker drains or a call fails.
#[derive(Debug)]
pub struct PollStream {
    client: Client,
    subscription: Subscription,
    /// Events of the last answer that were not handed out.
    page: VecDeque<Event>,
    /// The cursor behind them.
    page_end: Option<Cursor>,
    ending: Option<Duration>,
    ended: bool,
}

impl PollStream {
    pub(crate) fn new(client: Client, subscription: Subscription) -> Self {
        Self { client, subscription, page: VecDeque::new(), page_end: None, ending: None, ended: false }
    }

    /// As [`Stream::next`](crate::Stream::next).
    ///
    /// # Errors
    /// As there.
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        loop {
            while let Some(event) = self.page.pop_front() {
                let new = self.subscription.admit(&event);
                self.finish_page();
                if new {
                    return Ok(Some(Message::Event(event)));
                }
            }
            if self.ended {
                return Ok(None);
            }
            if let Some(retry) = self.ending.take() {
                self.ended = true;
                return Ok(Some(Message::Bye { retry: Some(retry) }));
            }
            match self.client.poll_once(&self.subscription.request()).await {
                Ok((reply, retry)) => {
                    self.page = reply.events.into();
                    self.page_end = Some(reply.cursor);
                    self.ending = retry;
                    self.finish_page();
                }
                Err(error) => {
                    let Some(reset) = reset(&error) else { return Err(error) };
                    self.subscription.reset(reset.resume);
                    return Ok(Some(Message::Reset(reset)));
                }
            }
        }
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
    #[must_use]
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }
}

/// A 410 says on a plain request what a stream says as a reset.
fn reset(error: &Error) -> Option<Reset> {
    let problem = error.problem()?;
    let reason = match problem.code {
        ProblemCode::CursorExpired => ResetReason::CursorExpired,
        ProblemCode::EpochChanged => ResetReason::EpochChanged,
        ProblemCode::Gap => ResetReason::Gap,
        _ => return None,
    };
    Some(Reset { reason, resume: problem.resume? })
}
