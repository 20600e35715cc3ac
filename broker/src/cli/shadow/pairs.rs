//! Which of what came by one way came by the other as well. Pure: it is told what came, and when.
//!
//! It must never hold more than it was allowed to: what lies longest is given up first.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::shelf::{Item, Keys, Shelf, Side, sample};

/// The longest delay that is told apart from longer ones, in microseconds: an hour.
const DELAY_MAX: u64 = 3_600_000_000;

/// What is counted for each side.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// What came by it.
    pub(super) heard: u64,
    /// What came by the other one only.
    pub(super) missed: u64,
    /// The same, while it was cut off.
    pub(super) missed_away: u64,
    /// Pairs of which it brought the second.
    pub(super) second: u64,
    /// How much later, in microseconds.
    pub(super) delay: Histogram<u64>,
}

impl Tally {
    fn new() -> Self {
        #[expect(clippy::expect_used, reason = "these bounds are allowed, and they are constants")]
        let delay = Histogram::new_with_bounds(1, DELAY_MAX, 3).expect("these bounds are allowed");
        Self { heard: 0, missed: 0, missed_away: 0, second: 0, delay }
    }
}

/// A time in which the listening side heard nothing.
#[derive(Clone, Copy, Debug)]
struct Outage {
    from: Duration,
    /// When it ended, and how far the server's log was then.
    back: Option<(Duration, u64)>,
}

/// What one side missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missed {
    /// Who missed it.
    pub(super) by: Side,
    /// It was cut off then.
    pub(super) away: bool,
    /// The beginning of the payload.
    pub(super) sample: String,
}

/// The multiset of what came, without what is paired.
#[derive(Debug)]
pub(super) struct Pairs {
    window: Duration,
    /// Of each shelf.
    items_max: usize,
    keys: Keys,
    /// Within the window.
    waiting: Shelf,
    /// Given up, and taken up again should the counterpart come late.
    missed: Shelf,
    outages: Vec<Outage>,
    closed: bool,
    pub(super) paired: u64,
    /// Paired behind the window, or after so much else came that it was given up.
    pub(super) late: u64,
    pub(super) listen: Tally,
    pub(super) walcast: Tally,
}

impl Pairs {
    /// Something is missed by a side to which it does not come in `window`. At most `items_max` wait for that. The
    /// listening side is cut off until it is [`back`](Self::back).
    pub(super) fn new(window: Duration, items_max: usize) -> Self {
        Self {
            window,
            items_max,
            keys: Keys::default(),
            waiting: Shelf::default(),
            missed: Shelf::default(),
            outages: vec![Outage { from: Duration::ZERO, back: None }],
            closed: false,
            paired: 0,
            late: 0,
            listen: Tally::new(),
            walcast: Tally::new(),
        }
    }

    fn tally(&mut self, side: Side) -> &mut Tally {
        match side {
            Side::Listen => &mut self.listen,
            Side::Walcast => &mut self.walcast,
        }
    }

    /// Something came, committed at `lsn`, if that is known. What is given up for it, if there is no more room.
    pub(super) fn came(
        &mut self,
        side: Side,
        payload: &str,
        at: Duration,
        lsn: Option<u64>,
    ) -> Option<Missed> {
        let key = self.keys.of(payload);
        let waiting = self.waiting.take(side.other(), key);
        let late = if waiting.is_none() { self.missed.take(side.other(), key) } else { None };
        if waiting.is_none() && late.is_none() && self.closed {
            return None;
        }
        self.tally(side).heard += 1;
        if let Some(other) = waiting.as_ref().or(late.as_ref()) {
            let delay = at.saturating_sub(other.at);
            let tally = self.tally(side);
            tally.second += 1;
            tally.delay.saturating_record(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX));
            self.paired += 1;
            if late.is_some() {
                self.late += 1;
                self.tally(side).missed -= 1;
            }
            return None;
        }
        self.waiting.put(Item { side, key, at, lsn, sample: sample(payload) });
        if self.waiting.len() > self.items_max { self.give_up_oldest() } else { None }
    }

    /// The listening side is cut off.
    pub(super) fn cut(&mut self, at: Duration) {
        self.outages.push(Outage { from: at, back: None });
    }

    /// The listening side listens again, and hears what commits behind `lsn`.
    pub(super) fn back(&mut self, at: Duration, lsn: u64) {
        if let Some(outage) = self.outages.last_mut() {
            outage.back.get_or_insert((at, lsn));
        }
    }

    /// From now on only counterparts are taken.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// What is neither paired nor given up.
    pub(super) fn undecided(&self) -> usize {
        self.waiting.len()
    }

    /// One of what was in the window for its whole length by `now`, and now counts as missed.
    pub(super) fn overdue(&mut self, now: Duration) -> Option<Missed> {
        let window = self.window;
        let due = |at: Duration| at.checked_add(window).is_some_and(|due| due <= now);
        if self.waiting.oldest().is_some_and(|item| due(item.at)) {
            return self.give_up_oldest();
        }
        // Nothing is left that came at its time.
        self.outages.retain(|outage| outage.back.is_none_or(|(at, _)| now < at + 3 * window));
        None
    }

    fn give_up_oldest(&mut self) -> Option<Missed> {
        let item = self.waiting.take_oldest()?;
        let by = item.side.other();
        let away = by == Side::Listen && self.outages.iter().any(|outage| outage.covers(&item, self.window));
        let told = Missed { by, away, sample: item.sample.clone() };
        if away {
            self.listen.missed_away += 1;
        } else {
            self.tally(by).missed += 1;
            self.missed.put(item);
            if self.missed.len() > self.items_max {
                self.missed.take_oldest();
            }
        }
        Some(told)
    }

    /// Some of what `side` missed.
    pub(super) fn examples(&self, side: Side) -> impl Iterator<Item = &str> {
        let missed = self.missed.iter().filter(move |item| item.side == side.other());
        missed.map(|item| item.sample.as_str())
    }

    /// Whether one side missed what the other one had, but for what came while the listening side was cut off.
    pub(super) fn differ(&self) -> bool {
        self.listen.missed > 0 || self.walcast.missed > 0
    }
}

impl Outage {
    /// Whether what came to the other side may have been missed for this: a cut is noticed a little later than it is, and
    /// where nothing tells what was committed before the return, all that came soon after may have been.
    fn covers(&self, item: &Item, window: Duration) -> bool {
        let before = self.back.is_none_or(|(back, from)| match item.lsn {
            Some(lsn) => lsn < from,
            None => item.at <= back + window,
        });
        before && self.from <= item.at + window
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(5);

    fn seconds(at: u64) -> Duration {
        Duration::from_secs(at)
    }

    /// Listening from the beginning.
    fn pairs(items_max: usize) -> Pairs {
        let mut pairs = Pairs::new(WINDOW, items_max);
        pairs.back(Duration::ZERO, 0);
        pairs
    }

    /// All that is overdue: who missed it, and what.
    fn overdue(pairs: &mut Pairs, now: u64) -> Vec<(Side, bool, String)> {
        let missed = std::iter::from_fn(|| pairs.overdue(seconds(now)));
        missed.map(|missed| (missed.by, missed.away, missed.sample)).collect()
    }

    #[test]
    fn what_came_both_ways_is_paired_as_often_as_it_came() {
        let mut pairs = pairs(100);
        for (side, payload, at) in [
            (Side::Listen, "a", 1),
            (Side::Listen, "a", 2),
            (Side::Walcast, "a", 3),
            (Side::Walcast, "b", 3),
            (Side::Listen, "b", 4),
        ] {
            assert_eq!(pairs.came(side, payload, seconds(at), Some(9)), None);
        }
        assert_eq!((pairs.paired, pairs.undecided(), pairs.differ()), (2, 1, false));
        assert_eq!((pairs.listen.second, pairs.walcast.second), (1, 1));
        assert_eq!(pairs.walcast.delay.max() / 1000, 2000, "it goes with the first of the two");
        assert_eq!(overdue(&mut pairs, 6), []);
        assert_eq!(overdue(&mut pairs, 7), [(Side::Walcast, false, "a".to_owned())]);
        assert_eq!((pairs.undecided(), pairs.differ()), (0, true));
        assert_eq!(pairs.examples(Side::Walcast).collect::<Vec<_>>(), ["a"]);
        assert_eq!(pairs.examples(Side::Listen).count(), 0);
    }

    #[test]
    fn what_comes_late_was_not_missed() {
        let mut pairs = pairs(100);
        pairs.came(Side::Listen, "a", seconds(1), None);
        assert_eq!(overdue(&mut pairs, 9).len(), 1);
        assert_eq!(pairs.walcast.missed, 1);
        pairs.came(Side::Walcast, "a", seconds(10), None);
        assert_eq!((pairs.walcast.missed, pairs.late, pairs.paired, pairs.differ()), (0, 1, 1, false));
    }

    #[test]
    fn a_cut_is_told_apart() {
        let mut pairs = Pairs::new(WINDOW, 100);
        pairs.came(Side::Walcast, "before it listened", seconds(1), Some(10));
        pairs.back(seconds(1), 20);
        pairs.came(Side::Walcast, "behind", seconds(2), Some(20));
        pairs.cut(seconds(20));
        pairs.came(Side::Walcast, "away", seconds(21), Some(30));
        pairs.back(seconds(22), 40);
        pairs.came(Side::Walcast, "was on its way", seconds(23), Some(35));
        pairs.came(Side::Walcast, "nobody told", seconds(23), None);
        pairs.came(Side::Walcast, "again", seconds(23), Some(41));
        let told: Vec<_> = overdue(&mut pairs, 100).into_iter().map(|(_, away, text)| (away, text)).collect();
        let expected = [
            (true, "before it listened"),
            (false, "behind"),
            (true, "away"),
            (true, "was on its way"),
            (true, "nobody told"),
            (false, "again"),
        ];
        assert_eq!(told, expected.map(|(away, text)| (away, text.to_owned())));
        assert_eq!((pairs.listen.missed, pairs.listen.missed_away), (2, 4));
        // What the broker does not have is missed, whatever the other side does.
        pairs.cut(seconds(200));
        pairs.came(Side::Listen, "x", seconds(200), None);
        assert_eq!(overdue(&mut pairs, 300), [(Side::Walcast, false, "x".to_owned())]);
    }

    #[test]
    fn what_lies_longest_goes_first_when_there_is_no_more_room() {
        let mut pairs = pairs(2);
        assert_eq!(pairs.came(Side::Listen, "a", seconds(1), None), None);
        assert_eq!(pairs.came(Side::Listen, "b", seconds(1), None), None);
        let missed = pairs.came(Side::Listen, "c", seconds(1), None).unwrap();
        assert_eq!((missed.by, missed.sample.as_str()), (Side::Walcast, "a"));
        assert_eq!(pairs.undecided(), 2);
    }

    #[test]
    fn behind_the_end_only_counterparts_are_taken() {
        let mut pairs = pairs(100);
        pairs.came(Side::Listen, "a", seconds(1), None);
        pairs.close();
        pairs.came(Side::Listen, "b", seconds(2), None);
        pairs.came(Side::Walcast, "a", seconds(2), None);
        assert_eq!((pairs.paired, pairs.undecided(), pairs.listen.heard, pairs.walcast.heard), (1, 0, 1, 1));
    }

    proptest! {
        /// Whatever comes, in whichever order: each is in a pair, or missed, or waits; and of one text no two wait for
        /// each other.
        #[test]
        fn all_is_accounted_for(
            steps in proptest::collection::vec((any::<bool>(), 0_u8..6, 0_u64..4, any::<bool>()), 0..200),
            items_max in 1_usize..20,
        ) {
            let mut pairs = pairs(items_max);
            let mut now = 0;
            let mut heard = [[0_u64; 6]; 2];
            for (listen, text, later, look) in steps {
                now += later;
                let side = if listen { Side::Listen } else { Side::Walcast };
                pairs.came(side, &text.to_string(), seconds(now), Some(1));
                heard[usize::from(listen)][usize::from(text)] += 1;
                if look {
                    let _ = overdue(&mut pairs, now);
                }
                prop_assert!(pairs.undecided() <= items_max && pairs.missed.len() <= items_max);
            }
            let [walcast, listen] = heard.map(|counts| counts.iter().sum::<u64>());
            prop_assert_eq!((pairs.walcast.heard, pairs.listen.heard), (walcast, listen));
            prop_assert_eq!(pairs.paired, pairs.walcast.second + pairs.listen.second);
            // Whoever heard something has it in a pair, or the other one missed it, or it waits.
            let _ = overdue(&mut pairs, now + 5);
            prop_assert_eq!(pairs.undecided(), 0);
            prop_assert_eq!(pairs.paired + pairs.walcast.missed, listen);
            prop_assert_eq!(pairs.paired + pairs.listen.missed, walcast);
            // Where there was room for all, it is what comparing the counts gives.
            if walcast + listen <= items_max as u64 {
                let both: u64 = heard[0].iter().zip(heard[1]).map(|(a, b)| (*a).min(b)).sum();
                prop_assert_eq!(pairs.paired, both);
            }
        }
    }
}
