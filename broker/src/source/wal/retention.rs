//! What the figures of the slots mean: how pressing it is, what to tell an operator. Pure.

use std::time::Duration;

use tokio::time::Instant;

use crate::facts::{Copy, SlotFacts, SourceFacts, StandbyFacts, TransactionFacts};

/// The longest pause between two looks at the slots,
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// and the shortest.
const LOOK_MIN: Duration = Duration::from_millis(40);
/// A server that may keep so much WAL is looked at every second, one that may keep less more often: it fills a
/// fixed part of it in the meantime, however small that is.
const LOOK_EACH_SECOND: u64 = 1 << 30;
/// The shortest pause while nothing presses.
const LOOK_IDLE_MIN: Duration = Duration::from_millis(250);
/// So many positions are remembered.
const SAMPLES_MAX: usize = 256;
/// A transaction that is open for longer and keeps so much WAL is told of.
const LONG: (u64, u64) = (300, 256 << 20);
/// One that is younger is no cause, unless it is known to be.
const SUSPECT_SECONDS: u64 = 10;
/// What falls below so many looks is too short for a slot that rests.
const IDLE_LOOKS_MIN: u32 = 10;

/// How urgently WAL has to be let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pressure {
    /// Not at all.
    #[default]
    None,
    /// The floor follows what is acknowledged, at once.
    Shrink,
    /// The slots are gone: they kept too much, and nothing else would have freed it.
    GiveUp,
}

impl Pressure {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Shrink => "shrink",
            Self::GiveUp => "give_up",
        }
    }

    /// The next one. `rate` is what is written, in bytes per second; `held`: a transaction is known to hold the
    /// log. Shrinking begins in time to be done before a quarter is left, and ends with some distance.
    pub(super) fn judge(self, facts: &SourceFacts, rate: u64, held: bool) -> Self {
        // Its WAL is gone: what is left of it serves nobody.
        if facts.slots.get("floor").is_some_and(|slot| slot.wal_status == "lost") {
            return Self::GiveUp;
        }
        let safe = facts.slots.values().filter_map(|slot| slot.safe_bytes).min();
        let (Some(limit), Some(safe)) = (facts.wal_keep_bytes_max, safe) else { return Self::None };
        let (limit, rate) = (signed(limit), signed(rate));
        if held && safe <= limit / 20 {
            return Self::GiveUp;
        }
        let begin = limit / 2;
        let enough = if self == Self::None { begin } else { begin + limit / 8 };
        if safe.saturating_sub(rate) < enough { Self::Shrink } else { Self::None }
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// When to look again: before an eighth of what may be kept can have been written.
pub(super) fn next_look(facts: &SourceFacts, rate: u64) -> Duration {
    let Some(limit) = facts.wal_keep_bytes_max else { return LOOK };
    let idle = Duration::from_millis(limit.saturating_mul(1000) / LOOK_EACH_SECOND).max(LOOK_IDLE_MIN);
    let busy = Duration::from_millis((limit / 8).saturating_mul(1000) / rate.max(1)).max(LOOK_MIN);
    idle.min(busy).min(LOOK)
}

/// Where the log ended when, to say how old a position is.
#[derive(Debug, Default)]
pub(super) struct Positions {
    samples: Vec<(u64, Instant)>,
    rate: u64,
}

impl Positions {
    pub(super) fn push(&mut self, lsn: u64, now: Instant) {
        match self.samples.last_mut() {
            Some(last) if last.0 >= lsn => {
                last.1 = now;
                self.rate = 0;
                return;
            }
            Some((from, since)) => {
                let micros = now.duration_since(*since).as_micros().max(1);
                let rate = u128::from(lsn - *from) * 1_000_000 / micros;
                self.rate = u64::try_from(rate).unwrap_or(u64::MAX);
            }
            None => {}
        }
        if self.samples.len() == SAMPLES_MAX {
            // Reaches ever further back, at half the resolution.
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.samples.push((lsn, now));
    }

    /// Since the log was known to end there; since the first sample for what is older.
    pub(super) fn age(&self, lsn: u64, now: Instant) -> Duration {
        let newer = self.samples.partition_point(|(sample, _)| *sample <= lsn);
        match self.samples.get(newer.saturating_sub(1)) {
            Some((_, at)) if newer < self.samples.len() => now.duration_since(*at),
            _ => Duration::ZERO,
        }
    }

    /// What was written between the last two samples, in bytes per second.
    pub(super) const fn rate(&self) -> u64 {
        self.rate
    }
}

/// What turns readiness red: WAL that the slots need goes or is gone.
pub(super) fn losing(facts: &SourceFacts) -> Option<String> {
    facts.slots.values().find_map(|slot| {
        let name = &slot.name;
        match slot.wal_status.as_str() {
            "unreserved" => Some(format!(
                "slot {name} is unreserved: the next checkpoint may remove the WAL that it needs{}",
                cause(facts)
            )),
            "lost" => {
                Some(format!("slot {name} is lost: the WAL that it needs was removed; clients start anew"))
            }
            _ => None,
        }
    })
}

/// What an operator should know before it hurts. `freeze_age`: the server's `autovacuum_freeze_max_age`.
pub(super) fn advice(facts: &SourceFacts, freeze_age: i64) -> Option<String> {
    let mut advice = Vec::new();
    let most = facts.slots.values().max_by_key(|slot| slot.retained_bytes);
    if let Some(SlotFacts { name, retained_bytes, .. }) = most {
        let kept = mib(*retained_bytes);
        if let Some(limit) = facts.wal_keep_bytes_max.filter(|limit| *retained_bytes > limit / 2) {
            advice.push(format!(
                "slot {name} keeps {kept} of WAL, more than half of max_slot_wal_keep_size ({}){}",
                mib(limit),
                cause(facts)
            ));
        } else if let Some(open) = facts.oldest_transaction.as_ref().filter(|open| open.seconds >= LONG.0)
            && *retained_bytes > LONG.1
        {
            advice.push(format!("{} while slot {name} keeps {kept} of WAL; {}", told(open), remedy(open)));
        }
    }
    for SlotFacts { name, catalog_xmin_age, .. } in facts.slots.values() {
        if let Some(age) = catalog_xmin_age.filter(|age| *age > freeze_age / 2) {
            advice.push(format!(
                "slot {name} keeps catalog rows of {age} transactions from vacuum; end long transactions{}",
                facts.oldest_transaction.as_ref().map(|open| format!(": {}", told(open))).unwrap_or_default()
            ));
        }
    }
    if facts.slots.get("floor").is_some_and(|slot| slot.failover == Some(false)) {
        advice.push(
            "the floor slot has failover = false, so no standby has it when it is promoted: run `walcast teardown`, \
             then `walcast setup`, or alter the slot"
                .to_owned(),
        );
    }
    if facts.synchronous {
        advice.push(
            "commits wait for this broker as for a synchronous standby, and it waits for them to be visible, so neither              may ever end: name the standbys in synchronous_standby_names instead of `*`, and reload"
                .to_owned(),
        );
    }
    advice.extend(facts.standbys.iter().filter_map(lacking));
    let shortest = (LOOK * IDLE_LOOKS_MIN).as_secs_f64();
    if let Some(seconds) = facts.idle_slot_timeout_seconds.filter(|seconds| *seconds < shortest) {
        advice.push(format!(
            "idle_replication_slot_timeout is {seconds} s, which may invalidate the floor slot: set it to 0 or above \
             {shortest} s"
        ));
    }
    (!advice.is_empty()).then(|| advice.join("; "))
}

/// What a failover to this standby would lack, and the remedy.
fn lacking(standby: &StandbyFacts) -> Option<String> {
    let host = &standby.host;
    match &standby.copy {
        Copy::Lasting => None,
        Copy::Passing => Some(format!(
            "standby {host} cannot keep its copy of the floor slot yet, for it has less WAL than that needs: this \
             passes once what is published now has left the history, and nobody holds an old transaction open"
        )),
        Copy::None => Some(format!(
            "standby {host} has no copy of the floor slot, which would be made anew after a failover to it: set \
             sync_replication_slots and hot_standby_feedback to on there, primary_slot_name, and dbname in \
             primary_conninfo"
        )),
        Copy::Unknown(error) => {
            Some(format!("whether standby {host} has a copy of the floor slot is not known: {error}"))
        }
    }
}

/// Why WAL is kept, and the remedy, to go behind a statement.
pub(super) fn cause(facts: &SourceFacts) -> String {
    let suspect = |open: &&TransactionFacts| open.holds_wal || open.seconds >= SUSPECT_SECONDS;
    match facts.oldest_transaction.as_ref().filter(suspect) {
        Some(open) => format!("; {}; {}", told(open), remedy(open)),
        None => "; the broker lets it go as fast as it can: if that lasts, raise max_slot_wal_keep_size"
            .to_owned(),
    }
}

/// `transaction of process 4711 (user app, psql) is open for 12 s`.
fn told(open: &TransactionFacts) -> String {
    let what = match (&open.prepared, open.pid) {
        (Some(gid), _) => format!("prepared transaction '{gid}'"),
        (None, Some(pid)) => format!("transaction of process {pid}"),
        (None, None) => "a transaction".to_owned(),
    };
    let user = open.user.as_ref().map(|user| format!("user {user}"));
    let application = open.application.clone().filter(|name| !name.is_empty());
    let who: Vec<String> = user.into_iter().chain(application).collect();
    let who = if who.is_empty() { String::new() } else { format!(" ({})", who.join(", ")) };
    format!("{what}{who} is open for {} s", open.seconds)
}

fn remedy(open: &TransactionFacts) -> String {
    match (&open.prepared, open.pid) {
        (Some(gid), _) => format!("COMMIT PREPARED or ROLLBACK PREPARED '{gid}'"),
        (None, Some(pid)) => format!("end it, or SELECT pg_terminate_backend({pid})"),
        (None, None) => "end it".to_owned(),
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(limit_mib: Option<u64>, safe_mib: i64, status: &str) -> SourceFacts {
        let slot = SlotFacts {
            name: "w".into(),
            wal_status: status.into(),
            safe_bytes: limit_mib.map(|_| safe_mib << 20),
            retained_bytes: limit_mib
                .map_or(0, |limit| (limit << 20).saturating_add_signed(-(safe_mib << 20))),
            ..SlotFacts::default()
        };
        SourceFacts {
            slots: [("floor", slot)].into(),
            wal_keep_bytes_max: limit_mib.map(|limit| limit << 20),
            ..SourceFacts::default()
        }
    }

    #[test]
    fn pressure_rises_before_a_quarter_is_left_and_falls_with_distance() {
        use Pressure::{GiveUp, None, Shrink};
        let check = |was: Pressure, safe: i64, rate: u64, held: bool, expected: Pressure| {
            let facts = facts(Some(1000), safe, "extended");
            assert_eq!(was.judge(&facts, rate << 20, held), expected, "{was:?} {safe} {rate} {held}");
        };
        check(None, 900, 0, false, None);
        check(None, 501, 0, false, None);
        check(None, 499, 0, false, Shrink);
        check(None, 700, 300, false, Shrink); // soon
        check(Shrink, 600, 0, false, Shrink);
        check(Shrink, 630, 0, false, None);
        check(Shrink, 40, 0, false, Shrink); // it can still move
        check(Shrink, 51, 0, true, Shrink);
        check(Shrink, 50, 0, true, GiveUp);
        check(Shrink, -300, 0, true, GiveUp);
    }

    #[test]
    fn without_a_limit_nothing_presses_and_what_is_lost_is_given_up() {
        let check = |facts: &SourceFacts, expected| {
            assert_eq!(Pressure::None.judge(facts, u64::MAX, true), expected);
        };
        check(&facts(None, 0, "extended"), Pressure::None);
        check(&facts(None, 0, "lost"), Pressure::GiveUp);
        check(&SourceFacts::default(), Pressure::None);
    }

    #[test]
    fn looks_come_the_more_often_the_less_is_left() {
        let check = |limit_mib: Option<u64>, rate_mib: u64, expected_ms: u64| {
            let look = next_look(&facts(limit_mib, 0, "reserved"), rate_mib << 20);
            assert_eq!(look, Duration::from_millis(expected_ms), "{limit_mib:?} {rate_mib}");
        };
        check(None, 1000, 5000);
        check(Some(1 << 20), 0, 5000);
        check(Some(2048), 0, 2000);
        check(Some(2048), 256, 1000);
        check(Some(64), 0, 250);
        check(Some(64), 100, 80);
        check(Some(64), 1000, 40);
    }

    #[test]
    fn positions_have_an_age() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut positions = Positions::default();
        for (lsn, seconds) in [(100, 0), (100, 5), (200, 10), (400, 12)] {
            positions.push(lsn, at(seconds));
        }
        assert_eq!(positions.rate(), 100);
        let check = |lsn: u64, expected: u64| {
            assert_eq!(positions.age(lsn, at(20)), Duration::from_secs(expected), "{lsn}");
        };
        check(400, 0);
        check(500, 0);
        check(399, 10);
        check(200, 10);
        check(150, 15);
        check(100, 15);
        check(1, 15);
        assert_eq!(Positions::default().age(1, start), Duration::ZERO);
    }

    #[test]
    fn few_positions_reach_far_back() {
        let start = Instant::now();
        let mut positions = Positions::default();
        for second in 0..100_000 {
            positions.push(second, start + Duration::from_secs(second));
        }
        assert!(positions.samples.len() <= SAMPLES_MAX);
        let age = positions.age(0, start + Duration::from_secs(99_999)).as_secs();
        assert_eq!(age, 99_999);
    }

    #[test]
    fn words_name_the_transaction_and_the_remedy() {
        let mut facts = facts(Some(64), 20, "extended");
        let check = |facts: &SourceFacts, expected: &str| {
            let advice = advice(facts, 200_000_000).unwrap_or_default();
            assert!(advice.contains(expected), "{advice}");
        };
        check(
            &facts,
            "slot w keeps 44 MiB of WAL, more than half of max_slot_wal_keep_size (64 MiB); the broker",
        );
        let open = TransactionFacts {
            pid: Some(7),
            user: Some("app".into()),
            seconds: 3,
            holds_wal: true,
            ..Default::default()
        };
        facts.oldest_transaction = Some(open);
        check(
            &facts,
            "transaction of process 7 (user app) is open for 3 s; end it, or SELECT pg_terminate_backend(7)",
        );
        facts.oldest_transaction =
            Some(TransactionFacts { prepared: Some("x".into()), seconds: 10, ..Default::default() });
        check(&facts, "prepared transaction 'x' is open for 10 s; COMMIT PREPARED or ROLLBACK PREPARED 'x'");
        facts.idle_slot_timeout_seconds = Some(30.0);
        check(&facts, "idle_replication_slot_timeout is 30 s");
        facts.idle_slot_timeout_seconds = Some(60.0);
        let floor = facts.slots.get_mut("floor").unwrap();
        (floor.retained_bytes, floor.catalog_xmin_age, floor.failover) = (0, Some(150_000_000), Some(false));
        check(&facts, "keeps catalog rows of 150000000 transactions");
        check(&facts, "failover = false");
        let floor = facts.slots.get_mut("floor").unwrap();
        (floor.catalog_xmin_age, floor.failover) = (Some(5), Some(true));
        for (copy, expected) in [
            (Copy::None, "standby b:1 has no copy of the floor slot, which"),
            (Copy::Passing, "standby b:1 cannot keep its copy"),
            (Copy::Unknown("gone".into()), "standby b:1 has a copy of the floor slot is not known: gone"),
            (Copy::Lasting, ""),
        ] {
            facts.standbys = vec![StandbyFacts { host: "b:1".into(), copy }];
            check(&facts, expected);
        }
        assert_eq!(advice(&facts, 200_000_000), None);
        assert_eq!(losing(&facts), None);
        facts.slots.get_mut("floor").unwrap().wal_status = "unreserved".into();
        assert!(losing(&facts).unwrap().contains("ROLLBACK PREPARED 'x'"));
    }
}
