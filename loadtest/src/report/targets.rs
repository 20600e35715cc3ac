//! The figures that walcast must show, as data: what each is, how it comes from the runs, and its limit.
//!
//! A figure whose runs are missing is said to be unmeasured; it is neither held nor missed.

use super::figure::{self, label};
use super::summary::Summary;
use super::unit::{Unit, count, significant};
use super::{Latency, Scenario, System, Transport};

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

impl Limit {
    fn value(self) -> f64 {
        match self {
            Self::AtMost(limit) | Self::AtLeast(limit) => limit,
        }
    }

    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
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
            Limit::AtLeast(_) => "≥",
        };
        let limit = format!("{sign} {}", self.unit.show(self.limit.value()));
        let outcome =
            |of, value, verdict| Outcome { what: self.what, of, value, limit: limit.clone(), verdict };
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

const MANY: u64 = 10_000;
const FEW: u64 = 100;

/// All of them, in the order in which reports show them.
pub const TARGETS: &[Target] = &[
    Target {
        what: "events lost, repeated or out of order, and clients that failed, in all runs together",
        limit: Limit::AtMost(0.0),
        unit: Unit::Count,
        measured_by: "any scenario",
        compute: faults,
    },
    Target {
        what: "memory per waiting client",
        limit: Limit::AtMost(2_000.0),
        unit: Unit::Bytes,
        measured_by: "idle --clients 10000",
        compute: |all| figures(all, Scenario::Idle, MANY, |run| run.figure(figure::MEMORY_PER_CLIENT_BYTES)),
    },
    Target {
        what: "memory per waiting client after a burst ÷ before it",
        limit: Limit::AtMost(1.2),
        unit: Unit::Ratio,
        measured_by: "idle --clients 10000",
        compute: |all| {
            figures(all, Scenario::Idle, MANY, |run| {
                let before = run.figure(figure::MEMORY_PER_CLIENT_BYTES)?;
                Some(run.figure(figure::MEMORY_PER_CLIENT_AFTER_BURST_BYTES)? / before)
            })
        },
    },
    Target {
        what: "CPU while all wait, of one core, beyond heartbeats",
        limit: Limit::AtMost(1.0),
        unit: Unit::Percent,
        measured_by: "idle --clients 10000",
        compute: |all| figures(all, Scenario::Idle, MANY, |run| run.figure(figure::CPU_PERCENT)),
    },
    Target {
        what: "`wake` p50 ÷ that of LISTEN",
        limit: Limit::AtMost(1.0),
        unit: Unit::Ratio,
        measured_by: "wake --clients 100 --peer listen",
        compute: |all| {
            let latency = |run: &Summary| run.latency.as_ref().map(|latency| latency.p50_us as f64);
            against(all, (Scenario::Wake, FEW), (System::Listen, Scenario::Wake), latency)
        },
    },
    Target {
        what: "`wake` p50 at 10,000 clients ÷ at 100",
        limit: Limit::AtMost(1.5),
        unit: Unit::Ratio,
        measured_by: "wake --clients 100,10000",
        compute: |all| growth(all, |run| quantile(run, |latency| latency.p50_us)),
    },
    Target {
        what: "`wake` p99 at 10,000 clients ÷ at 100",
        limit: Limit::AtMost(1.5),
        unit: Unit::Ratio,
        measured_by: "wake --clients 100,10000",
        compute: |all| growth(all, |run| quantile(run, |latency| latency.p99_us)),
    },
    Target {
        what: "server CPU per event at 10,000 clients ÷ at 100",
        limit: Limit::AtMost(1.25),
        unit: Unit::Ratio,
        measured_by: "wake --clients 100,10000",
        compute: |all| growth(all, |run| run.figure(figure::CPU_US_PER_EVENT)),
    },
    Target {
        what: "broker CPU per event",
        limit: Limit::AtMost(100.0),
        unit: Unit::Micros,
        measured_by: "wake --clients 10000",
        compute: |all| figures(all, Scenario::Wake, MANY, |run| run.figure(figure::BROKER_CPU_US_PER_EVENT)),
    },
    Target {
        what: "`fanout` CPU of the broker per delivery, WebSocket",
        limit: Limit::AtMost(1.5),
        unit: Unit::Micros,
        measured_by: "fanout --clients 1000 --transport ws",
        compute: |all| fanout(all, |run| run.figure(figure::CPU_US_PER_DELIVERY)),
    },
    Target {
        what: "`fanout` deliveries per second, WebSocket",
        limit: Limit::AtLeast(600_000.0),
        unit: Unit::PerSecond,
        measured_by: "fanout --clients 1000 --transport ws",
        compute: |all| fanout(all, |run| run.figure(figure::DELIVERIES_PER_SECOND)),
    },
    Target {
        what: "`storm`: commit to the last client",
        limit: Limit::AtMost(300_000.0),
        unit: Unit::Micros,
        measured_by: "storm --clients 10000",
        compute: |all| {
            figures(all, Scenario::Storm, MANY, |run| Some(run.figure(figure::COMMIT_TO_LAST_MS)? * 1e3))
        },
    },
    Target {
        what: "`storm` ÷ nchan fanned out to as many",
        limit: Limit::AtMost(1.5),
        unit: Unit::Ratio,
        measured_by: "storm --clients 10000 --peer nchan",
        compute: |all| {
            let last = |run: &Summary| run.figure(figure::COMMIT_TO_LAST_MS);
            let here = against(all, (Scenario::Storm, MANY), (System::Nchan, Scenario::Storm), last);
            if !here.is_empty() {
                return here;
            }
            against(all, (Scenario::Storm, MANY), (System::Nchan, Scenario::Fanout), last)
        },
    },
    Target {
        what: "`arrive`: connections per second ÷ those of nchan",
        limit: Limit::AtLeast(1.0),
        unit: Unit::Ratio,
        measured_by: "arrive --clients 10000 --peer nchan",
        compute: |all| {
            let speed = |run: &Summary| run.figure(figure::CONNECTIONS_PER_SECOND);
            against(all, (Scenario::Arrive, MANY), (System::Nchan, Scenario::Arrive), speed)
        },
    },
    Target {
        what: "`commit`: bare pg_logical_emit_message ÷ no-op",
        limit: Limit::AtLeast(0.9),
        unit: Unit::Ratio,
        measured_by: "commit",
        compute: |all| writers(all, |all, writers| method(all, writers, label::MESSAGE)),
    },
    Target {
        what: "`commit`: walcast.publish ÷ no-op",
        limit: Limit::AtLeast(0.7),
        unit: Unit::Ratio,
        measured_by: "commit",
        compute: |all| writers(all, |all, writers| method(all, writers, label::PUBLISH)),
    },
    Target {
        what: "`commit`: walcast.publish ÷ no-op, as hoped for",
        limit: Limit::AtLeast(0.85),
        unit: Unit::Ratio,
        measured_by: "commit",
        compute: |all| writers(all, |all, writers| method(all, writers, label::PUBLISH)),
    },
    Target {
        what: "`commit`: walcast.publish ÷ pg_notify, nobody waits",
        limit: Limit::AtLeast(2.5),
        unit: Unit::Ratio,
        measured_by: "commit --peer listen",
        compute: |all| {
            writers(all, |all, writers| {
                Some(method(all, writers, label::PUBLISH)? / method(all, writers, label::NOTIFY)?)
            })
        },
    },
    Target {
        what: "`commit`: walcast.publish ÷ pg_notify, 100 wait",
        limit: Limit::AtLeast(2.5),
        unit: Unit::Ratio,
        measured_by: "commit --peer listen",
        compute: |all| {
            writers(all, |all, writers| {
                Some(
                    method(all, writers, label::PUBLISH_IN_USE)?
                        / method(all, writers, label::NOTIFY_IN_USE)?,
                )
            })
        },
    },
    Target {
        what: "`ingest`: changes per second ÷ those of pg_recvlogical",
        limit: Limit::AtLeast(0.9),
        unit: Unit::Ratio,
        measured_by: "ingest",
        compute: |all| {
            let ours = one(all, Scenario::Ingest, System::Walcast, figure::CHANGES_PER_SECOND);
            let theirs = one(all, Scenario::Ingest, System::Recvlogical, figure::CHANGES_PER_SECOND);
            single(ours.zip(theirs).map(|(ours, theirs)| ours / theirs))
        },
    },
    Target {
        what: "`ingest`: CPU of the broker ÷ its walsender's",
        limit: Limit::AtMost(1.0),
        unit: Unit::Ratio,
        measured_by: "ingest",
        compute: |all| {
            let broker = one(all, Scenario::Ingest, System::Walcast, figure::CONSUMER_CPU_SECONDS);
            let walsender = one(all, Scenario::Ingest, System::Walcast, figure::WALSENDER_CPU_SECONDS);
            single(broker.zip(walsender).map(|(broker, walsender)| broker / walsender))
        },
    },
    Target {
        what: "`slow`: p99 of good clients beside stalled ones ÷ alone",
        limit: Limit::AtMost(1.1),
        unit: Unit::Ratio,
        measured_by: "slow",
        compute: |all| {
            paired(all, Scenario::Slow, label::STALLED, label::GOOD, |latency| latency.p99_us, |a, b| a / b)
        },
    },
    Target {
        what: "`slow`: memory ÷ that without stalled readers, and 4 kB for each",
        limit: Limit::AtMost(1.0),
        unit: Unit::Ratio,
        measured_by: "slow",
        compute: |all| {
            let stalled = all.iter().filter(|run| run.label.as_deref() == Some(label::STALLED));
            let shares = stalled.filter_map(|run| {
                let share =
                    run.figure(figure::MEMORY_PEAK_BYTES)? / run.figure(figure::MEMORY_ALLOWED_BYTES)?;
                Some(found(run, share))
            });
            shares.collect()
        },
    },
    Target {
        what: "cost of the visibility gate: `wake` p50, visible − fast",
        limit: Limit::AtMost(200.0),
        unit: Unit::Micros,
        measured_by: "wake",
        compute: |all| {
            paired(all, Scenario::Wake, label::VISIBLE, label::FAST, |latency| latency.p50_us, |a, b| a - b)
        },
    },
];

fn quantile(run: &Summary, of: fn(&Latency) -> u64) -> Option<f64> {
    run.latency.as_ref().map(|latency| of(latency) as f64)
}

fn found(run: &Summary, value: f64) -> Found {
    let transport = run.transport.map(|transport| format!("{transport}, ")).unwrap_or_default();
    let clients = count(run.clients);
    Found { of: format!("{transport}{clients} clients"), value }
}

fn single(value: Option<f64>) -> Vec<Found> {
    value.map(|value| Found { of: String::new(), value }).into_iter().collect()
}

fn faults(all: &[Summary]) -> Vec<Found> {
    let checked = all.iter().filter(|run| run.system == System::Walcast && run.checks.expected > 0);
    let faults = checked.map(|run| {
        let checks = run.checks;
        checks.lost + checks.duplicates + checks.disordered + checks.failed
    });
    let total = faults.fold(None, |total, faults| Some(total.unwrap_or(0) + faults));
    single(total.map(|total| total as f64))
}

fn ours(all: &[Summary], scenario: Scenario, clients: u64) -> impl Iterator<Item = &Summary> {
    let wanted = move |run: &&Summary| run.scenario == scenario && run.clients == clients;
    all.iter().filter(wanted).filter(|run| run.system == System::Walcast && run.usual())
}

/// A figure of each transport.
fn figures(
    all: &[Summary],
    scenario: Scenario,
    clients: u64,
    of: impl Fn(&Summary) -> Option<f64>,
) -> Vec<Found> {
    ours(all, scenario, clients).filter_map(|run| Some(found(run, of(run)?))).collect()
}

/// A figure of each transport over that of a peer: by the same transport, if it was played so.
fn against(
    all: &[Summary],
    (scenario, clients): (Scenario, u64),
    (peer, its): (System, Scenario),
    of: impl Fn(&Summary) -> Option<f64>,
) -> Vec<Found> {
    let peers =
        || all.iter().filter(|run| run.scenario == its && run.system == peer && run.clients == clients);
    figures(all, scenario, clients, |run| {
        let theirs = peers().min_by_key(|theirs| theirs.transport != run.transport)?;
        Some(of(run)? / of(theirs)?)
    })
}

/// A figure of each transport at many clients over the same at few.
fn growth(all: &[Summary], of: impl Fn(&Summary) -> Option<f64>) -> Vec<Found> {
    let few = |transport| ours(all, Scenario::Wake, FEW).find(|run| run.transport == transport);
    figures(all, Scenario::Wake, MANY, |run| Some(of(run)? / of(few(run.transport)?)?))
}

fn fanout(all: &[Summary], of: fn(&Summary) -> Option<f64>) -> Vec<Found> {
    let at = ours(all, Scenario::Fanout, 1_000).filter(|run| run.transport == Some(Transport::Ws));
    at.filter_map(|run| Some(found(run, of(run)?))).collect()
}

/// A value at each number of writers.
fn writers(all: &[Summary], of: fn(&[Summary], u64) -> Option<f64>) -> Vec<Found> {
    let values =
        [32, 64].map(|writers| Some(Found { of: format!("{writers} writers"), value: of(all, writers)? }));
    values.into_iter().flatten().collect()
}

fn method(all: &[Summary], writers: u64, method: &str) -> Option<f64> {
    let at = all.iter().filter(|run| run.scenario == Scenario::Commit && run.clients == writers);
    at.filter(|run| run.label.as_deref() == Some(method)).find_map(|run| run.figure(figure::RATIO_TO_NOOP))
}

/// A figure of the only run of its kind.
fn one(all: &[Summary], scenario: Scenario, system: System, name: &str) -> Option<f64> {
    all.iter().filter(|run| run.scenario == scenario && run.system == system).find_map(|run| run.figure(name))
}

/// A quantile under one label combined with the same under another, of each transport and number of clients.
fn paired(
    all: &[Summary],
    scenario: Scenario,
    with: &str,
    without: &str,
    of: fn(&Latency) -> u64,
    combine: fn(f64, f64) -> f64,
) -> Vec<Found> {
    let labelled = |label: &str| {
        let label = label.to_owned();
        let here = move |run: &&Summary| run.scenario == scenario && run.label.as_deref() == Some(&*label);
        all.iter().filter(here)
    };
    let pairs = labelled(with).filter_map(|run| {
        let mut others = labelled(without);
        let other = others.find(|other| other.transport == run.transport && other.clients == run.clients)?;
        Some(found(run, combine(quantile(run, of)?, quantile(other, of)?)))
    });
    pairs.collect()
}
