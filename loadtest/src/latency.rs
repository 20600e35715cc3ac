//! The run's clock, when each message was due, and distributions of how long they took.
//!
//! A schedule of a fixed rate notes when a message was *meant* to be sent: a server that holds up the
//! publisher would otherwise hide its own delay.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::report::Latency;
use crate::verify::Receipt;

/// Latencies above this count as this: an hour.
const LONGEST_US: u64 = 3_600_000_000;
/// Quantiles of a report's curve.
const CURVE: [f64; 17] =
    [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0];

/// Microseconds since a run began; good for an hour.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    /// Now.
    #[must_use]
    pub fn us(&self) -> u32 {
        self.at(Instant::now())
    }

    /// That instant.
    #[must_use]
    pub fn at(&self, instant: Instant) -> u32 {
        u32::try_from(instant.saturating_duration_since(self.0).as_micros()).unwrap_or(u32::MAX)
    }
}

/// When messages were due, by sequence number.
#[derive(Clone, Debug)]
pub struct Sent {
    clock: Clock,
    at_us: Arc<[AtomicU32]>,
}

impl Sent {
    /// Room for sequence numbers below `messages`.
    #[must_use]
    pub fn new(clock: Clock, messages: usize) -> Self {
        Self { clock, at_us: (0..messages).map(|_| AtomicU32::new(0)).collect() }
    }

    /// The run's clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The message is due now.
    pub fn now(&self, seq: u32) {
        self.at(seq, Instant::now());
    }

    /// The message is, or was, due then.
    pub fn at(&self, seq: u32, instant: Instant) {
        if let Some(at) = self.at_us.get(seq as usize) {
            at.store(self.clock.at(instant), Ordering::Relaxed);
        }
    }

    /// How long the message took to this receipt.
    #[must_use]
    pub fn took(&self, receipt: Receipt) -> Option<Duration> {
        let sent = self.at_us.get(receipt.seq as usize)?.load(Ordering::Relaxed);
        Some(Duration::from_micros(receipt.at_us.saturating_sub(sent).into()))
    }
}

/// A distribution being collected.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        // Three digits from 1 µs to an hour: bounds that the library takes.
        Self(Histogram::new_with_bounds(1, LONGEST_US, 3).unwrap_or_else(|_| unreachable!("valid bounds")))
    }
}

impl Latencies {
    /// Adds one.
    pub fn add(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_micros()).unwrap_or(LONGEST_US).max(1));
    }

    /// Adds all that a client received.
    pub fn receipts(&mut self, received: &[Receipt], sent: &Sent) {
        for receipt in received {
            if let Some(took) = sent.took(*receipt) {
                self.add(took);
            }
        }
    }

    /// As the report has it; `None` if nothing was added.
    #[must_use]
    pub fn summary(&self) -> Option<Latency> {
        let all = &self.0;
        if all.is_empty() {
            return None;
        }
        Some(Latency {
            count: all.len(),
            min_us: all.min(),
            p50_us: all.value_at_quantile(0.5),
            p90_us: all.value_at_quantile(0.9),
            p99_us: all.value_at_quantile(0.99),
            p999_us: all.value_at_quantile(0.999),
            max_us: all.max(),
            mean_us: all.mean(),
            cdf: CURVE.iter().map(|quantile| (*quantile, all.value_at_quantile(*quantile))).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_counts_from_when_a_message_was_due() {
        let clock = Clock::default();
        let sent = Sent::new(clock, 3);
        let due = Instant::now();
        sent.at(1, due);
        let receipt = |seq, after| Receipt { seq, at_us: clock.at(due + Duration::from_micros(after)) };
        let took = |receipt| sent.took(receipt).map(|took| took.as_micros());
        assert_eq!(took(receipt(1, 250)), Some(250));
        assert_eq!(took(receipt(3, 250)), None, "never sent");

        let mut latencies = Latencies::default();
        assert_eq!(latencies.summary(), None);
        for after in 1..=1000 {
            latencies.receipts(&[receipt(1, after)], &sent);
        }
        let summary = latencies.summary().unwrap();
        assert_eq!((summary.count, summary.min_us, summary.p50_us, summary.max_us), (1000, 1, 500, 1000));
        assert!(summary.cdf.is_sorted(), "{summary:?}");
    }
}
