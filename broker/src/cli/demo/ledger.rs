//! What was assigned against what arrived: the judge of the demo.
//!
//! An assignment is entered before its commit is asked for, so an event can never come too early to be
//! known. It is delivered by its first event; every further one is a duplicate.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

/// The accounts of all VMs.
#[derive(Debug)]
pub struct Ledger {
    /// Per VM the assignments that did not arrive, by PIN, and when their commit was asked for.
    outstanding: Vec<Mutex<HashMap<i64, Instant>>>,
    waiting: AtomicU32,
    assigned: AtomicU64,
    delivered: AtomicU64,
    /// Of those, by the broker that sent them.
    delivered_by: Vec<AtomicU64>,
    duplicates: AtomicU64,
    resets: AtomicU64,
    connections: AtomicU32,
    connections_most: AtomicU32,
    /// In microseconds.
    latency: Mutex<Histogram<u64>>,
    last_error: Mutex<Option<String>>,
}

/// While it lives, a VM counts as waiting.
#[derive(Debug)]
pub struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Ledger {
    /// Empty accounts of `vms` VMs on so many brokers.
    #[must_use]
    pub fn new(vms: u32, brokers: usize) -> Self {
        Self {
            outstanding: (0..vms).map(|_| Mutex::default()).collect(),
            waiting: AtomicU32::new(0),
            assigned: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            delivered_by: (0..brokers).map(|_| AtomicU64::new(0)).collect(),
            duplicates: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            connections: AtomicU32::new(0),
            connections_most: AtomicU32::new(0),
            latency: Mutex::new(histogram()),
            last_error: Mutex::new(None),
        }
    }

    /// A VM waits from now on.
    pub fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Relaxed);
        Waiting(&self.waiting)
    }

    /// The commit that assigns `pin` to `vm` is asked for at `at`.
    pub fn assigned(&self, vm: u32, pin: i64, at: Instant) {
        if let Some(account) = self.outstanding.get(vm as usize) {
            account.lock().insert(pin, at);
            self.assigned.fetch_add(1, Relaxed);
        }
    }

    /// An event with `pin` arrived at `vm` at `at`, from the broker of this number.
    pub fn received(&self, vm: u32, pin: i64, at: Instant, broker: usize) {
        let entry = self.outstanding.get(vm as usize).and_then(|account| account.lock().remove(&pin));
        match entry {
            Some(asked) => {
                self.delivered.fetch_add(1, Relaxed);
                if let Some(delivered) = self.delivered_by.get(broker) {
                    delivered.fetch_add(1, Relaxed);
                }
                let us = at.saturating_duration_since(asked).as_micros();
                self.latency.lock().saturating_record(u64::try_from(us).unwrap_or(u64::MAX));
            }
            None => {
                self.duplicates.fetch_add(1, Relaxed);
            }
        }
    }

    /// A VM was told that events may be missing.
    pub fn reset(&self) {
        self.resets.fetch_add(1, Relaxed);
    }

    /// A VM lost its connection, or got none.
    pub fn failed(&self, error: &walcast_client::Error) {
        *self.last_error.lock() = Some(error.to_string());
    }

    /// The broker holds this many connections to Postgres.
    pub fn connections(&self, count: u32) {
        self.connections.store(count, Relaxed);
        self.connections_most.fetch_max(count, Relaxed);
    }

    /// How many VMs there are.
    #[must_use]
    pub fn vms(&self) -> u32 {
        u32::try_from(self.outstanding.len()).unwrap_or(u32::MAX)
    }

    /// How many of them wait.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    /// Assignments that arrived.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Relaxed)
    }

    /// Assignments that did not arrive.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.assigned.load(Relaxed).saturating_sub(self.delivered())
    }

    /// What last went wrong between a VM and the broker.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().clone()
    }

    /// How it goes, in lines that fit a small terminal.
    #[must_use]
    pub fn lines(&self) -> [String; 3] {
        let latency = Latency::of(&self.latency.lock());
        [
            format!(
                "{} waiting · {} assigned · {} delivered",
                self.waiting(),
                self.assigned.load(Relaxed),
                self.delivered()
            ),
            format!("latency: p50 {} ms · p99 {} ms", latency.p50, latency.p99),
            format!(
                "Postgres connections: {} now · LISTEN would hold {}",
                self.connections.load(Relaxed),
                self.vms()
            ),
        ]
    }

    /// The result; what is still outstanding counts as missed.
    #[must_use]
    pub fn report(&self) -> Report {
        Report {
            vms: self.vms(),
            assigned: self.assigned.load(Relaxed),
            delivered: self.delivered(),
            delivered_by_node: match &self.delivered_by[..] {
                [] | [_] => Vec::new(),
                several => several.iter().map(|delivered| delivered.load(Relaxed)).collect(),
            },
            missed: self.outstanding(),
            duplicates: self.duplicates.load(Relaxed),
            latency_ms: Latency::of(&self.latency.lock()),
            postgres_connections: self.connections_most.load(Relaxed),
            resets: self.resets.load(Relaxed),
        }
    }
}

/// From 1 µs to 10 min, to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("these bounds are allowed")
}

/// From just before the commit was asked for to receipt, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Half were faster.
    pub p50: f64,
    /// 99 of 100 were faster.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |us: u64| (us as f64 / 10.0).round() / 100.0;
        Self {
            p50: ms(histogram.value_at_quantile(0.5)),
            p99: ms(histogram.value_at_quantile(0.99)),
            max: ms(histogram.max()),
        }
    }
}

/// What a demo ends with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// VMs.
    pub vms: u32,
    /// Assignments committed.
    pub assigned: u64,
    /// Of those, arrived.
    pub delivered: u64,
    /// Of those, by broker, the leader first. Empty where there is one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub delivered_by_node: Vec<u64>,
    /// Of those, not arrived.
    pub missed: u64,
    /// Events beyond the first of an assignment.
    pub duplicates: u64,
    /// How fast.
    pub latency_ms: Latency,
    /// The most connections that the broker held to Postgres at a time.
    pub postgres_connections: u32,
    /// How often a VM was told that events may be missing.
    #[serde(skip)]
    pub resets: u64,
}

impl Report {
    /// Whether every assignment arrived exactly once.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.missed == 0 && self.duplicates == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { p50, p99, max } = self.latency_ms;
        write!(
            f,
            "{} VMs: {} assigned, {} delivered, {} missed, {} duplicates; latency p50 {p50} ms, p99 {p99} ms, \
             max {max} ms; {} Postgres connections (LISTEN would hold {})",
            self.vms,
            self.assigned,
            self.delivered,
            self.missed,
            self.duplicates,
            self.postgres_connections,
            self.vms
        )?;
        if let [leader, edges @ ..] = &self.delivered_by_node[..] {
            let edges: Vec<String> = edges.iter().map(u64::to_string).collect();
            write!(f, "; delivered by the leader {leader}, by edges {}", edges.join(", "))?;
        }
        if self.resets > 0 {
            write!(f, "; {} VMs were told that events may be missing", self.resets)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_event_finds_its_assignment_once() {
        let ledger = Ledger::new(2, 1);
        let asked = Instant::now();
        ledger.assigned(0, 1, asked);
        ledger.assigned(1, 2, asked);
        ledger.assigned(1, 3, asked);
        ledger.received(0, 1, asked + Duration::from_millis(4), 0);
        ledger.received(1, 2, asked + Duration::from_millis(2), 0);
        assert_eq!(ledger.outstanding(), 1);
        ledger.received(1, 2, asked, 0);
        ledger.received(0, 3, asked, 0);
        ledger.connections(4);
        ledger.connections(3);

        let report = ledger.report();
        assert!(!report.is_good());
        let json = serde_json::to_value(&report).unwrap();
        let expected = serde_json::json!({
            "vms": 2, "assigned": 3, "delivered": 2, "missed": 1, "duplicates": 2,
            "latency_ms": {"p50": 2.0, "p99": 4.0, "max": 4.0}, "postgres_connections": 4,
        });
        assert_eq!(json, expected);

        ledger.received(1, 3, asked, 0);
        assert_eq!(ledger.report().missed, 0);
    }

    #[test]
    fn several_brokers_are_told_apart() {
        let ledger = Ledger::new(1, 2);
        let now = Instant::now();
        for (pin, broker) in [(1, 1), (2, 0), (3, 1)] {
            ledger.assigned(0, pin, now);
            ledger.received(0, pin, now, broker);
        }
        ledger.received(0, 3, now, 0);
        let report = ledger.report();
        assert_eq!((&report.delivered_by_node[..], report.duplicates), (&[1, 2][..], 1));
        assert!(report.to_string().contains("delivered by the leader 1, by edges 2"), "{report}");
    }

    #[test]
    fn waiting_counts_those_who_wait_now() {
        let ledger = Ledger::new(2, 1);
        let one = ledger.wait();
        let other = ledger.wait();
        assert_eq!(ledger.waiting(), 2);
        drop(one);
        assert_eq!(ledger.waiting(), 1);
        drop(other);
        assert!(ledger.report().is_good());
    }
}
