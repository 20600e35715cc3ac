//! The figures that walcast must show, as data: what each is, how it comes from the runs, and its limit.
//!
//! A figure whose runs are missing is said to be unmeasured; it is neither held nor missed.

use super::summary::Summary;
use super::unit::{Unit, significant};

mod asked;
mod compute;

use asked::TARGETS;

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
    /// This or more, if it can be had: nothing fails that misses it.
    Hoped(f64),
}

impl Limit {
    fn value(self) -> f64 {
        match self {
            Self::AtMost(limit) | Self::AtLeast(limit) | Self::Hoped(limit) => limit,
        }
    }

    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) | Self::Hoped(limit) => value >= limit,
        }
    }
}

/// One figure that walcast must show.
pub struct Target {
    /// What it is, in a line.
    pub what: &'static str,
    /// Its limit, in the base unit of `unit`.
    pub limit: Limit,
    /// What its value counts.
    pub unit: Unit,
    /// The arguments that measure it.
    pub measured_by: &'static str,
    compute: fn(&[Summary]) -> Vec<Found>,
}

/// One value of a target: there may be one for each transport.
struct Found {
    of: String,
    value: f64,
}

/// How a figure came out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Within its limit.
    Held,
    /// Beyond it, by this share of the limit; infinite where the limit is 0.
    Missed(f64),
    /// The runs that it takes are not there.
    Unmeasured,
}

/// A target beside what was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What the figure is.
    pub what: &'static str,
    /// Of what in particular: `ws, 10,000 clients`. The arguments that measure it, if nothing did.
    pub of: String,
    /// What was measured, for people.
    pub value: String,
    /// What was asked, for people.
    pub limit: String,
    /// How it came out.
    pub verdict: Verdict,
    /// It was only hoped for.
    pub hoped: bool,
}

impl Outcome {
    /// A figure that had to be reached was missed.
    #[must_use]
    pub fn fails(&self) -> bool {
        matches!(self.verdict, Verdict::Missed(_)) && !self.hoped
    }
}

impl Verdict {
    /// In a word or two.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Held => "held".to_owned(),
            Self::Missed(by) if by.is_infinite() => "missed".to_owned(),
            Self::Missed(by) if by >= 2.0 => format!("missed: {} × the target", significant(by + 1.0)),
            Self::Missed(by) => format!("missed by {:.0} %", (by * 100.0).max(1.0)),
            Self::Unmeasured => "not measured".to_owned(),
        }
    }
}

/// Every target beside what `summaries` say of it.
#[must_use]
pub fn judge(summaries: &[Summary]) -> Vec<Outcome> {
    TARGETS.iter().flat_map(|target| target.outcomes(summaries)).collect()
}

impl Target {
    fn outcomes(&self, summaries: &[Summary]) -> Vec<Outcome> {
        let sign = match self.limit {
            Limit::AtMost(_) => "≤",
            Limit::AtLeast(_) | Limit::Hoped(_) => "≥",
        };
        let limit = format!("{sign} {}", self.unit.show(self.limit.value()));
        let hoped = matches!(self.limit, Limit::Hoped(_));
        let outcome =
            |of, value, verdict| Outcome { what: self.what, of, value, limit: limit.clone(), verdict, hoped };
        let found = (self.compute)(summaries);
        if found.is_empty() {
            let by = format!("`{}`", self.measured_by);
            return vec![outcome(by, "–".to_owned(), Verdict::Unmeasured)];
        }
        found
            .into_iter()
            .map(|found| outcome(found.of, self.unit.show(found.value), self.verdict(found.value)))
            .collect()
    }

    fn verdict(&self, value: f64) -> Verdict {
        let limit = self.limit.value();
        match self.limit.holds(value) {
            true => Verdict::Held,
            false if limit == 0.0 => Verdict::Missed(f64::INFINITY),
            false => Verdict::Missed((value / limit - 1.0).abs()),
        }
    }
}
