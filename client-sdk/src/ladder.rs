//! Which transport a broker is followed by: the best that gets through to it.
//!
//! A proxy may refuse WebSockets, or keep a stream's bytes until it ends. What did not get through is left alone
//! for some minutes; then the best is tried again, for proxies are mended and laptops move.

use std::time::Duration;

use tokio::time::Instant;

use crate::Transport;

/// How long a lesser transport is kept.
const KEEP: Duration = Duration::from_secs(300);

/// The transport of one broker.
#[derive(Debug, Default)]
pub(crate) struct Ladder {
    /// A lesser transport, and until when.
    lesser: Option<(Transport, Instant)>,
}

impl Ladder {
    /// What to use now.
    pub(crate) fn transport(&mut self, now: Instant) -> Transport {
        match self.lesser {
            Some((transport, until)) if now < until => transport,
            _ => {
                self.lesser = None;
                Transport::WebSocket
            }
        }
    }

    /// `transport` does not get through; whether there is another.
    pub(crate) fn step_down(&mut self, transport: Transport, now: Instant) -> bool {
        let next = match transport {
            Transport::WebSocket => Transport::Sse,
            Transport::Sse => Transport::Poll,
            Transport::Poll => return false,
        };
        // Who came here by another way knows no more than that; the time runs from the first step.
        let until = self.lesser.map_or(now + KEEP, |(_, until)| until);
        self.lesser = Some((next, until));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_steps_down_and_tries_the_best_again() {
        let (mut ladder, start) = (Ladder::default(), Instant::now());
        assert_eq!(ladder.transport(start), Transport::WebSocket);
        assert!(ladder.step_down(Transport::WebSocket, start));
        assert_eq!(ladder.transport(start), Transport::Sse);
        assert!(ladder.step_down(Transport::Sse, start));
        assert!(!ladder.step_down(Transport::Poll, start));
        assert_eq!(ladder.transport(start + KEEP / 2), Transport::Poll);
        assert_eq!(ladder.transport(start + KEEP), Transport::WebSocket);
        assert_eq!(ladder.transport(start + KEEP), Transport::WebSocket);
    }
}
