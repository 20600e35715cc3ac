//! A stream of a fixed rate: one message at a time, each due at its own moment.
//!
//! A message counts from when it was due, so that a server which holds up the publisher hides nothing; and is sent
//! then to a few microseconds, for what the timer is late would be counted as the server's.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::Error;
use crate::latency::Sent;
use crate::publish::Publisher;

/// The runtime's timer knows whole milliseconds and rounds up, so it is left by a little more before the moment.
const TIMER: Duration = Duration::from_micros(1_250);
/// And this much before it others are no longer let in between.
const ALONE: Duration = Duration::from_micros(50);

/// Returns at `due`, or at once if that is over.
async fn until(due: Instant) {
    if let Some(early) = due.checked_sub(TIMER) {
        tokio::time::sleep_until(early.into()).await;
    }
    loop {
        match due.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return,
            left if left > ALONE => tokio::task::yield_now().await,
            _ => std::hint::spin_loop(),
        }
    }
}

/// Messages that are due one after another.
#[derive(Debug)]
pub(super) struct Steady {
    next: Instant,
    every: Duration,
}

impl Steady {
    /// The first is due now.
    pub(super) fn new(per_second: u32) -> Self {
        Self { next: Instant::now(), every: Duration::from_secs(1) / per_second.max(1) }
    }

    /// Waits until the next message is due, and publishes it.
    pub(super) async fn one(
        &mut self,
        publisher: &mut Publisher,
        topic: &str,
        seq: u32,
        sent: &Sent,
    ) -> Result<(), Error> {
        let due = self.next;
        self.next += self.every;
        until(due).await;
        sent.at(seq, due);
        publisher.one(topic, seq).await
    }
}

/// Publishes `seqs`, each to the topic that `topic` says.
pub(super) async fn publish(
    publisher: &mut Publisher,
    per_second: u32,
    seqs: Range<u32>,
    topic: impl Fn(u32) -> String,
    sent: &Sent,
) -> Result<(), Error> {
    let mut steady = Steady::new(per_second);
    for seq in seqs {
        steady.one(publisher, &topic(seq), seq, sent).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_is_sent_before_it_is_due() {
        for ahead in [0, 40, 900, 2_500, 7_300].map(Duration::from_micros) {
            let due = Instant::now() + ahead;
            until(due).await;
            assert!(Instant::now() >= due, "{ahead:?}");
        }
    }
}
