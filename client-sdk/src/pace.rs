//! A random delay before events are handed out, for fleets that one event wakes at once. It is reckoned here, and
//! waited for where the connection is read meanwhile.

use std::time::Duration;

use tokio::time::Instant;

/// Delays what comes alone, or first; what follows close behind is not delayed again, so that order is kept and a
/// burst is no slower for it.
#[derive(Debug)]
pub(crate) struct Pace {
    spread: Duration,
    /// When the last delay was over.
    last: Option<Instant>,
}

impl Pace {
    /// Delays of up to `spread`.
    pub(crate) fn new(spread: Duration) -> Self {
        Self { spread, last: None }
    }

    /// How long an event that is there has to wait.
    pub(crate) fn delay(&self, now: Instant) -> Duration {
        // Where the clock does not go so far, it is not over.
        let behind =
            self.last.is_some_and(|last| last.checked_add(self.spread).is_none_or(|over| now < over));
        if behind || self.spread.is_zero() {
            return Duration::ZERO;
        }
        self.spread.mul_f64(rand::random_range(0.0..1.0))
    }

    /// A delay is over.
    pub(crate) fn over(&mut self, now: Instant) {
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_spread_and_not_added_up() {
        let (now, spread) = (Instant::now(), Duration::from_secs(10));
        let pace = Pace::new(spread);
        let delays: Vec<_> = (0..200).map(|_| pace.delay(now)).collect();
        assert!(delays.iter().all(|delay| *delay < spread));
        assert!(delays.iter().any(|delay| *delay < spread / 4));
        assert!(delays.iter().any(|delay| *delay > spread * 3 / 4));
        let pace = Pace { spread, last: Some(now) };
        assert_eq!(pace.delay(now + spread / 2), Duration::ZERO);
        assert!((0..50).any(|_| !pace.delay(now + spread).is_zero()));
        assert_eq!(Pace::new(Duration::ZERO).delay(now), Duration::ZERO);
    }

    #[test]
    fn a_spread_may_be_as_long_as_it_can_be_written() {
        let (now, spread) = (Instant::now(), Duration::MAX);
        assert!(Pace::new(spread).delay(now) < spread);
        assert_eq!(Pace { spread, last: Some(now) }.delay(now), Duration::ZERO);
    }
}
