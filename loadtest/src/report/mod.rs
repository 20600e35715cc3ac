//! What a load test found, as data: every form of it (JSON, tables, pages) is made from these types.
//!
//! The types are plain and serialise both ways, so that reports of other days and machines can be read and
//! compared. They must know nothing of how a figure was come by.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub mod charts;
pub mod figure;
pub mod grid;
pub mod html;
pub mod markdown;
mod names;
pub mod plot;
pub mod summary;
pub mod table;
pub mod targets;
pub mod unit;

#[cfg(test)]
mod tests;

pub use names::{Scenario, System, Transport};

/// Everything that one call of the load tester found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The version of walcast.
    pub version: String,
    /// When it began: RFC 3339, UTC.
    pub started: String,
    /// Where it ran.
    pub machine: Machine,
    /// In the order in which they were played. Rounds of the same thing are runs of their own.
    pub runs: Vec<Run>,
    /// What a reader must know to judge the figures, for example a peer that was not installed.
    pub notes: Vec<String>,
}

impl Report {
    /// As JSON, indented.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Only a map whose keys are no strings could fail, and there is none.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// A report that [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// It is no JSON, or not of this form.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// Takes the runs of an earlier report in, before its own.
    pub fn add(&mut self, earlier: Self) {
        if self.runs.is_empty() {
            (self.version, self.started, self.machine) = (earlier.version, earlier.started, earlier.machine);
        }
        self.runs.splice(0..0, earlier.runs);
        for note in earlier.notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
    }
}

/// Where the figures were measured; clients and servers share it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Cores that we may use.
    pub cores: u64,
    /// Main memory.
    pub memory_bytes: u64,
    /// The kernel's name and release.
    pub kernel: String,
    /// Versions of the programs that took part, by name: `Postgres`, `Redis`, `nginx` …
    pub versions: BTreeMap<String, String>,
}

/// One scenario played once against one system.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// What was played.
    pub scenario: Scenario,
    /// Against what.
    pub system: System,
    /// How walcast's clients waited; `None` for peers and where nobody waits.
    pub transport: Option<Transport>,
    /// How many clients took part; the writers, where nobody waits.
    pub clients: u64,
    /// What else tells runs apart, from [`figure::label`]: a publish method, `visible`, `stalled` …
    pub label: Option<String>,
    /// Figures by name, from [`figure`]. The name says the unit.
    pub figures: BTreeMap<String, f64>,
    /// From the publish call, or when that was due, to receipt.
    pub latency: Option<Latency>,
    /// What arrived, compared with what was sent.
    pub checks: Checks,
    /// Why the first client that failed did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

impl Run {
    /// What is not as it should be, and where, in a line.
    #[must_use]
    pub fn complaint(&self) -> String {
        let Checks { expected, resets, .. } = self.checks;
        let mut text = format!("{} {}", self.scenario, self.system);
        if let Some(transport) = self.transport {
            text = format!("{text} {transport}");
        }
        text = format!("{text}, {} clients", unit::count(self.clients));
        if let Some(label) = &self.label {
            text = format!("{text}, {label}");
        }
        text = format!("{text}: {} of {}", self.checks.faults().join(", "), unit::count(expected));
        if resets > 0 {
            text = format!("{text}; {resets} times a client was told that events may be missing");
        }
        match &self.fault {
            Some(fault) => format!("{text}; {fault}"),
            None => text,
        }
    }
}

/// A distribution of latencies, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// The shortest.
    pub min_us: u64,
    /// Half were at most this.
    pub p50_us: u64,
    /// Nine of ten were at most this.
    pub p90_us: u64,
    /// 99 of 100 were at most this.
    pub p99_us: u64,
    /// 999 of 1,000 were at most this.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
    /// The arithmetic mean.
    pub mean_us: f64,
    /// For plots: pairs of a quantile in 0..=1 and its latency, both rising.
    pub cdf: Vec<(f64, u64)>,
}

/// What arrived, compared with what was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks {
    /// Deliveries that were due.
    pub expected: u64,
    /// Deliveries that came, each counted once.
    pub delivered: u64,
    /// Deliveries that never came.
    pub lost: u64,
    /// Deliveries that came again.
    pub duplicates: u64,
    /// Deliveries that came after a later one.
    pub disordered: u64,
    /// Clients that could not go on.
    #[serde(default)]
    pub failed: u64,
    /// How often a client was told that events may be missing; what then was missing is lost, too.
    #[serde(default)]
    pub resets: u64,
}

impl Checks {
    /// Nothing lost, repeated or out of order, and no client failed.
    #[must_use]
    pub fn held(&self) -> bool {
        self.faults().is_empty()
    }

    /// What is not as it should be, in words.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let all = [
            (self.lost, "lost"),
            (self.duplicates, "twice"),
            (self.disordered, "out of order"),
            (self.failed, "clients failed"),
        ];
        let there = all.into_iter().filter(|(number, _)| *number > 0);
        there.map(|(number, what)| format!("{} {what}", unit::count(number))).collect()
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            expected: self.expected + other.expected,
            delivered: self.delivered + other.delivered,
            lost: self.lost + other.lost,
            duplicates: self.duplicates + other.duplicates,
            disordered: self.disordered + other.disordered,
            failed: self.failed + other.failed,
            resets: self.resets + other.resets,
        }
    }
}
