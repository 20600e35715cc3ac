//! A stream of a fixed rate: one message at a time, each due at its own moment.
//!
//! A message counts from when it was due, so that a server which holds up the publisher hides nothing.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::Error;
use crate::latency::Sent;
use crate::publish::Publisher;

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
        tokio::time::sleep_until(due.into()).await;
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
