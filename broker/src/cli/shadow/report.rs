//! What a comparison came to: as a line while it goes on, as a table, and as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::pairs::{Pairs, Tally};
use super::shelf::Side;

/// How many of what was missed are shown.
const EXAMPLES_MAX: usize = 10;

/// The end of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What was listened on.
    pub channel: String,
    /// What was followed.
    pub topic: String,
    /// How long.
    pub seconds: f64,
    /// Whether one side missed what the other one had, but for what was sent while the listening side was cut off.
    pub differs: bool,
    /// What came both ways.
    pub paired: u64,
    /// Of those, the second came behind the window.
    pub late: u64,
    /// What came one way, too late for the other one to be waited for.
    pub undecided: usize,
    /// The session that listens.
    pub notify: Heard,
    /// The client of the broker.
    pub walcast: Heard,
}

/// What one side heard.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Heard {
    /// All that came to it.
    pub heard: u64,
    /// What only the other one heard.
    pub missed: u64,
    /// The same, while this one was cut off. A client of the broker goes on where it was, and misses nothing by a cut.
    pub missed_while_away: u64,
    /// The beginnings of some of what it missed.
    pub examples: Vec<String>,
    /// How often its connection was cut.
    pub cuts: u64,
    /// How often it was told that events may be missing.
    pub resets: u64,
    /// Of the pairs, how many it heard second.
    pub second: u64,
    /// How much later that was.
    pub behind_ms: Delay,
}

/// How much later something came, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Delay {
    /// Half came sooner.
    pub p50: f64,
    /// 99 of 100 came sooner.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// What is counted outside of the pairs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cuts {
    pub(super) listen: u64,
    pub(super) walcast: u64,
    pub(super) resets: u64,
}

impl Report {
    pub(super) fn new(channel: &str, topic: &str, elapsed: Duration, pairs: &Pairs, cuts: Cuts) -> Self {
        let heard = |side: Side, tally: &Tally, cuts, resets| Heard {
            heard: tally.heard,
            missed: tally.missed,
            missed_while_away: tally.missed_away,
            examples: pairs.examples(side).take(EXAMPLES_MAX).map(str::to_owned).collect(),
            cuts,
            resets,
            second: tally.second,
            behind_ms: Delay::of(tally),
        };
        Self {
            channel: channel.to_owned(),
            topic: topic.to_owned(),
            seconds: (elapsed.as_secs_f64() * 10.0).round() / 10.0,
            differs: pairs.differ(),
            paired: pairs.paired,
            late: pairs.late,
            undecided: pairs.undecided(),
            notify: heard(Side::Listen, &pairs.listen, cuts.listen, 0),
            walcast: heard(Side::Walcast, &pairs.walcast, cuts.walcast, cuts.resets),
        }
    }

    /// Why the two are not the same, in one line.
    pub(super) fn difference(&self) -> String {
        format!(
            "the two differ: walcast missed {} of {} that NOTIFY had, NOTIFY missed {} of {} that walcast had",
            self.walcast.missed, self.notify.heard, self.notify.missed, self.walcast.heard
        )
    }
}

impl Delay {
    fn of(tally: &Tally) -> Self {
        let ms = |us: u64| (us as f64 / 10.0).round() / 100.0;
        Self {
            p50: ms(tally.delay.value_at_quantile(0.5)),
            p99: ms(tally.delay.value_at_quantile(0.99)),
            max: ms(tally.delay.max()),
        }
    }
}

/// While it goes on.
pub(super) fn progress(elapsed: Duration, pairs: &Pairs) -> String {
    format!(
        "{}  {} the same, {} open, missed: {} by walcast, {} by NOTIFY",
        humantime::format_duration(Duration::from_secs(elapsed.as_secs())),
        pairs.paired,
        pairs.undecided(),
        pairs.walcast.missed,
        pairs.listen.missed + pairs.listen.missed_away,
    )
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { notify, walcast, .. } = self;
        writeln!(f, "channel {:?} beside topic {}, for {} s", self.channel, self.topic, self.seconds)?;
        writeln!(f, "the same {} (of them late {}), undecided {}", self.paired, self.late, self.undecided)?;
        writeln!(f, "{:<24}{:>12}{:>12}", "", "NOTIFY", "walcast")?;
        for (name, value) in [
            ("heard", (|side| side.heard) as fn(&Heard) -> u64),
            ("missed", |side| side.missed),
            ("missed while cut off", |side| side.missed_while_away),
            ("cut off", |side| side.cuts),
            ("resets", |side| side.resets),
            ("came second", |side| side.second),
        ] {
            writeln!(f, "{name:<24}{:>12}{:>12}", value(notify), value(walcast))?;
        }
        for (name, value) in [
            ("  later by, ms: p50", (|delay| delay.p50) as fn(Delay) -> f64),
            ("                p99", |delay| delay.p99),
            ("                max", |delay| delay.max),
        ] {
            writeln!(f, "{name:<24}{:>12}{:>12}", value(notify.behind_ms), value(walcast.behind_ms))?;
        }
        for (name, side) in [("NOTIFY", notify), ("walcast", walcast)] {
            for example in &side.examples {
                writeln!(f, "missed by {name}: {example:?}")?;
            }
        }
        Ok(())
    }
}
