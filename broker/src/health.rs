//! What is well and what is not, in words: parts report here, the admin listener reads.
//!
//! A node is ready when every part that it is made of is well. Nothing here decides what to do about it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::facts::SourceFacts;
use crate::telemetry;

/// Slots that were not looked at for longer, three times the longest pause between two looks, are in nobody's care.
const LOOKED_MAX: Duration = Duration::from_secs(15);

/// The parts of a node that can be unwell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The replication stream.
    Stream,
    /// The visibility gate.
    Gate,
    /// Current values of state topics.
    State,
    /// The reading of current values that new rules ask for.
    Seed,
    /// The right to read the log, which one broker has at a time.
    Lease,
    /// Redis, as a broker that follows reads it.
    Following,
    /// Redis, as it is asked for current values.
    Asking,
    /// Redis, as the leader writes it.
    Carrying,
    /// The floor slot.
    Floor,
    /// The slots' WAL: it is being removed.
    Slot,
    /// How much WAL the slots keep, and why.
    Retention,
    /// Rules as loaded last.
    Rules,
    /// Publication, slot and tables, as the rules need them.
    Catalog,
    /// The node as a whole: starting, draining.
    Node,
}

impl Part {
    /// The name in `/readyz`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Gate => "gate",
            Self::State => "state",
            Self::Seed => "seed",
            Self::Lease => "lease",
            Self::Following => "following",
            Self::Asking => "asking",
            Self::Carrying => "carrying",
            Self::Floor => "floor",
            Self::Slot => "slot",
            Self::Retention => "retention",
            Self::Rules => "rules",
            Self::Catalog => "catalog",
            Self::Node => "node",
        }
    }

    /// Whether a node with this part unwell still serves its clients as promised.
    #[must_use]
    pub const fn advisory(self) -> bool {
        matches!(self, Self::Carrying | Self::Floor | Self::Retention | Self::Rules)
    }
}

/// The state of all parts.
#[derive(Debug)]
pub struct Health {
    inner: Mutex<Inner>,
    /// A stream that was silent for longer does not move.
    silence_max: Duration,
    /// Another broker has the lease.
    standing_by: watch::Sender<bool>,
    /// What that one tells comes here, too.
    among_others: bool,
}

#[derive(Debug, Default)]
struct Inner {
    unwell: BTreeMap<Part, String>,
    last_beat: Option<Instant>,
    source: Option<(SourceFacts, Instant)>,
    leads: Leads,
}

/// Whether this node counts among those of this process that lead.
#[derive(Debug, Default)]
struct Leads(bool);

impl Leads {
    fn set(&mut self, leads: bool) {
        metrics::gauge!(telemetry::LEADS).increment(f64::from(leads) - f64::from(self.0));
        self.0 = leads;
    }
}

impl Drop for Leads {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl Inner {
    /// Says whether the source is read here.
    fn tell_lead(&mut self) {
        let leads = ![Part::Stream, Part::Lease].iter().any(|part| self.unwell.contains_key(part));
        self.leads.set(leads);
    }
}

impl Health {
    /// All parts well, but for a stream that has not begun and values that nobody has read; the stream counts
    /// as moving for `silence_max` after each sign of life.
    #[must_use]
    pub fn new(silence_max: Duration) -> Self {
        let unwell = BTreeMap::from([
            (Part::Stream, "not connected to Postgres yet".to_owned()),
            (Part::State, "current values are not read yet".to_owned()),
        ]);
        let mut inner = Inner { unwell, ..Inner::default() };
        inner.tell_lead();
        let standing_by = watch::Sender::new(false);
        Self { inner: Mutex::new(inner), silence_max, standing_by, among_others: false }
    }

    /// The same for one that serves its clients though another one leads.
    #[must_use]
    pub fn among_others(silence_max: Duration) -> Self {
        Self { among_others: true, ..Self::new(silence_max) }
    }

    /// The part is well.
    pub fn well(&self, part: Part) {
        let mut inner = self.inner.lock();
        inner.unwell.remove(&part);
        inner.tell_lead();
        if part == Part::Lease {
            self.standing_by.send_replace(false);
        }
    }

    /// The part is unwell: what is wrong, and what to do. Whether that is news.
    pub fn unwell(&self, part: Part, reason: impl Into<String>) -> bool {
        let reason = reason.into();
        let mut inner = self.inner.lock();
        let old = inner.unwell.insert(part, reason.clone());
        inner.tell_lead();
        if part == Part::Lease {
            self.standing_by.send_replace(true);
        }
        old.is_none_or(|old| old != reason)
    }

    /// Whether this part was last reported so.
    #[must_use]
    pub fn is_unwell(&self, part: Part) -> bool {
        self.inner.lock().unwell.contains_key(&part)
    }

    /// Whether another broker has the lease, so that nothing comes from Postgres here.
    #[must_use]
    pub fn standing_by(&self) -> watch::Receiver<bool> {
        self.standing_by.subscribe()
    }

    /// Whether clients have to go elsewhere, for nothing comes here while another broker leads.
    #[must_use]
    pub fn away(&self) -> watch::Receiver<bool> {
        if self.among_others { watch::Sender::new(false).subscribe() } else { self.standing_by() }
    }

    /// The stream gave a sign of life.
    pub fn beat(&self, now: Instant) {
        let mut inner = self.inner.lock();
        inner.last_beat = Some(now);
        if inner.unwell.remove(&Part::Stream).is_some() {
            inner.tell_lead();
        }
    }

    /// What the source saw when it looked at its slots.
    pub fn saw(&self, facts: SourceFacts, now: Instant) {
        self.inner.lock().source = Some((facts, now));
    }

    /// It looks no more: what it saw is of the past.
    pub fn sees_nothing(&self) {
        self.inner.lock().source = None;
    }

    /// What it saw last, and when; `None` while nobody looks.
    #[must_use]
    pub fn source(&self) -> Option<(SourceFacts, Instant)> {
        self.inner.lock().source.clone()
    }

    /// Everything that is wrong now.
    #[must_use]
    pub fn problems(&self, now: Instant) -> BTreeMap<Part, String> {
        let inner = self.inner.lock();
        let mut problems = inner.unwell.clone();
        if let Some(last) = inner.last_beat {
            let silent = now.saturating_duration_since(last);
            // What the gate holds back did come; and who does not lead gets nothing.
            let explained = [Part::Gate, Part::Lease].iter().any(|part| problems.contains_key(part));
            if silent > self.silence_max && !explained {
                let seconds = silent.as_secs();
                let reason = || format!("nothing came from Postgres for {seconds} s; see the log");
                problems.entry(Part::Stream).or_insert_with(reason);
            }
        }
        if let Some((_, looked)) = &inner.source {
            let ago = now.saturating_duration_since(*looked);
            // Without a stream there is nothing to look at, and that is told.
            let explained = [Part::Stream, Part::Lease].iter().any(|part| problems.contains_key(part));
            if ago > LOOKED_MAX && !explained {
                let seconds = ago.as_secs();
                let reason = || {
                    format!(
                        "the slots were not looked at for {seconds} s, and the floor may not move: what does the \
                         session `walcast companion` wait for? (pg_stat_activity)"
                    )
                };
                problems.entry(Part::Slot).or_insert_with(reason);
            }
        }
        problems
    }

    /// No part is unwell, leaving out those whose trouble clients do not feel.
    #[must_use]
    pub fn ready(&self, now: Instant) -> bool {
        let without = |part: &Part| part.advisory() || self.among_others && *part == Part::Lease;
        self.problems(now).keys().all(without)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_the_stream_moves_and_nothing_is_wrong() {
        let health = Health::new(Duration::from_secs(10));
        let start = Instant::now();
        assert!(!health.ready(start));
        health.beat(start);
        assert!(!health.ready(start), "current values are not known by the first sign of life");
        health.well(Part::State);
        assert!(health.ready(start));
        assert!(!health.ready(start + Duration::from_secs(11)));
        health.unwell(Part::Gate, "waits");
        assert!(!health.ready(start));
        assert_eq!(
            health.problems(start + Duration::from_secs(11)).len(),
            1,
            "the gate explains the silence"
        );
        health.well(Part::Gate);
        let standing_by = health.standing_by();
        health.unwell(Part::Lease, "another broker leads");
        assert!(*standing_by.borrow() && !health.ready(start));
        assert_eq!(health.problems(start + Duration::from_secs(11)).len(), 1, "nothing is to come here");
        health.well(Part::Lease);
        assert!(!*standing_by.borrow());
        health.saw(SourceFacts::default(), start);
        assert!(health.ready(start + Duration::from_secs(9)));
        let later = start + Duration::from_secs(16);
        health.beat(later);
        assert!(health.problems(later)[&Part::Slot].contains("16 s"), "nobody looked at the slots");
        health.saw(SourceFacts::default(), later);
        assert!(health.ready(later));
        health.beat(start);
        health.unwell(Part::Floor, "cannot be moved");
        assert!(health.ready(start));
        assert_eq!(health.problems(start).len(), 1);
    }
}
