//! The side that listens, over cuts.
//!
//! It must never hide a cut: what is sent meanwhile is gone.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::postgres::{ConnectError, Listener, Notice, Target};

/// Between two attempts to listen again.
const RETRY: Duration = Duration::from_millis(500);
/// How the server's list of sessions calls us.
const NAME: &str = "walcast shadow";

/// What there is to hear.
#[derive(Debug)]
pub(super) enum Heard {
    /// A notification.
    Notice(Notice),
    /// The session ended, and why.
    Cut(String),
    /// It listens again; whatever commits behind this place in the log is heard.
    Back(u64),
}

/// One session after the other that listens on a channel.
pub(super) struct Ears {
    target: Target,
    channel: String,
    state: State,
}

enum State {
    Listening(Box<Listener>),
    Away(Pin<Box<dyn Future<Output = Listener> + Send>>),
}

impl Ears {
    /// Listens. Of its place in the log the caller hears as of one that is reached again.
    ///
    /// # Errors
    /// The server is out of reach, or refuses.
    pub(super) async fn open(target: Target, channel: &str) -> Result<(Self, u64), ConnectError> {
        let listener = Listener::connect(&target, NAME, channel).await?;
        let from = listener.from;
        Ok((Self { target, channel: channel.to_owned(), state: State::Listening(Box::new(listener)) }, from))
    }

    /// What comes next. May be dropped and called again without loss.
    pub(super) async fn next(&mut self) -> Heard {
        match &mut self.state {
            State::Listening(listener) => {
                if let Some(notice) = listener.next().await {
                    return Heard::Notice(notice);
                }
                let why = listener.closed().await.to_string();
                self.state = State::Away(Box::pin(again(self.target.clone(), self.channel.clone())));
                Heard::Cut(why)
            }
            State::Away(again) => {
                let listener = again.await;
                let from = listener.from;
                self.state = State::Listening(Box::new(listener));
                Heard::Back(from)
            }
        }
    }
}

async fn again(target: Target, channel: String) -> Listener {
    let started = Instant::now();
    loop {
        sleep(RETRY).await;
        match Listener::connect(&target, NAME, &channel).await {
            Ok(listener) => return listener,
            Err(error) => tracing::debug!(%error, after = ?started.elapsed(), "cannot listen again yet"),
        }
    }
}
