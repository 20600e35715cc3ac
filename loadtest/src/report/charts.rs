//! Which plots a report has, and what is drawn in each. Pure; [`plot`](super::plot) draws them.

use std::collections::BTreeMap;

use super::plot::{Axis, Chart, Scale, Series, Shape};
use super::summary::Summary;
use super::unit::{Unit, count};
use super::{Latency, Scenario, System, Transport, figure};

/// Every plot for which there is something to draw.
#[must_use]
pub fn charts(summaries: &[Summary]) -> Vec<Chart> {
    let growth = GROWTH.iter().filter_map(|growth| growth.chart(summaries));
    growth.chain(distributions(summaries)).collect()
}

/// One figure over the number of clients.
struct Growth {
    id: &'static str,
    title: &'static str,
    scenario: Scenario,
    scale: Scale,
    unit: Unit,
    of: fn(&Summary) -> Option<f64>,
}

const GROWTH: &[Growth] = &[
    Growth {
        id: "memory",
        title: "Memory per waiting client",
        scenario: Scenario::Idle,
        scale: Scale::Log,
        unit: Unit::Bytes,
        of: |run| run.figure(figure::MEMORY_PER_CLIENT_BYTES),
    },
    Growth {
        id: "idle-cpu",
        title: "CPU while all wait, of one core",
        scenario: Scenario::Idle,
        scale: Scale::Linear,
        unit: Unit::Percent,
        of: |run| run.figure(figure::CPU_PERCENT),
    },
    Growth {
        id: "cpu",
        title: "Server CPU per event, one waiter woken",
        scenario: Scenario::Wake,
        scale: Scale::Log,
        unit: Unit::Micros,
        of: |run| run.figure(figure::CPU_US_PER_EVENT),
    },
    Growth {
        id: "wake-p50",
        title: "Publish to receipt, p50, one waiter woken",
        scenario: Scenario::Wake,
        scale: Scale::Log,
        unit: Unit::Micros,
        of: |run| run.latency.as_ref().map(|latency| latency.p50_us as f64),
    },
    Growth {
        id: "wake-p99",
        title: "Publish to receipt, p99, one waiter woken",
        scenario: Scenario::Wake,
        scale: Scale::Log,
        unit: Unit::Micros,
        of: |run| run.latency.as_ref().map(|latency| latency.p99_us as f64),
    },
    Growth {
        id: "storm",
        title: "Commit to the last client, all woken at once",
        scenario: Scenario::Storm,
        scale: Scale::Log,
        unit: Unit::Micros,
        of: |run| run.figure(figure::COMMIT_TO_LAST_MS).map(|ms| ms * 1e3),
    },
    Growth {
        id: "fanout-throughput",
        title: "Deliveries per second, one topic",
        scenario: Scenario::Fanout,
        scale: Scale::Log,
        unit: Unit::PerSecond,
        of: |run| run.figure(figure::DELIVERIES_PER_SECOND),
    },
    Growth {
        id: "fanout-cpu",
        title: "CPU per delivery of the server that clients are connected to, one topic",
        scenario: Scenario::Fanout,
        scale: Scale::Log,
        unit: Unit::Micros,
        of: |run| run.figure(figure::CPU_US_PER_DELIVERY),
    },
    Growth {
        id: "arrive",
        title: "Connections per second until all wait",
        scenario: Scenario::Arrive,
        scale: Scale::Log,
        unit: Unit::PerSecond,
        of: |run| run.figure(figure::CONNECTIONS_PER_SECOND),
    },
    Growth {
        id: "commit",
        title: "Transactions per second beside a no-op statement",
        scenario: Scenario::Commit,
        scale: Scale::Linear,
        unit: Unit::Ratio,
        of: |run| run.figure(figure::RATIO_TO_NOOP),
    },
    Growth {
        id: "sources",
        title: "Transactions per second beside a no-op statement, by source",
        scenario: Scenario::Sources,
        scale: Scale::Linear,
        unit: Unit::Ratio,
        of: |run| run.figure(figure::RATIO_TO_NOOP),
    },
];

impl Growth {
    fn chart(&self, summaries: &[Summary]) -> Option<Chart> {
        let mut lines: BTreeMap<_, (&Summary, Vec<(f64, f64)>)> = BTreeMap::new();
        for run in summaries.iter().filter(|run| run.scenario == self.scenario) {
            if let Some(value) = (self.of)(run) {
                let key = (run.system, run.transport, run.label.as_deref());
                lines.entry(key).or_insert_with(|| (run, Vec::new())).1.push((run.clients as f64, value));
            }
        }
        // A table says as much of one point.
        if !lines.values().any(|(_, points)| points.len() > 1) {
            return None;
        }
        let unit = self.unit;
        let who =
            if matches!(self.scenario, Scenario::Commit | Scenario::Sources) { "writers" } else { "clients" };
        Some(Chart {
            id: self.id.to_owned(),
            title: self.title.to_owned(),
            x: Axis {
                title: who.to_owned(),
                scale: Scale::Log,
                show: Box::new(|clients| count(clients as u64)),
            },
            y: Axis {
                title: String::new(),
                scale: self.scale,
                show: Box::new(move |value| unit.show(value)),
            },
            series: lines.into_values().map(|(run, points)| series(run, points, true)).collect(),
        })
    }
}

/// Distributions of latency: of each scenario, with the fewest and with the most clients of ours.
fn distributions(summaries: &[Summary]) -> Vec<Chart> {
    let mut charts = Vec::new();
    for scenario in Scenario::ALL {
        let runs = || summaries.iter().filter(|run| run.scenario == scenario);
        let measured =
            || runs().filter(|run| run.latency.as_ref().is_some_and(|latency| latency.cdf.len() > 1));
        let ours = || measured().filter(|run| run.system == System::Walcast).map(|run| run.clients);
        let (least, most) = (ours().min(), ours().max());
        let mut sizes: Vec<u64> = least.into_iter().chain(most).collect();
        sizes.dedup();
        charts.extend(sizes.into_iter().map(|clients| {
            let here = measured().filter(|run| run.clients == clients);
            let lines = here.filter_map(|run| Some(series(run, curve(run.latency.as_ref()?), false)));
            Chart {
                id: format!("latency-{scenario}-{clients}"),
                title: format!("Publish to receipt, {scenario}, {} clients", count(clients)),
                x: Axis {
                    title: "share of deliveries".to_owned(),
                    scale: Scale::Linear,
                    show: Box::new(share),
                },
                y: Axis {
                    title: String::new(),
                    scale: Scale::Log,
                    show: Box::new(|us| Unit::Micros.show(us)),
                },
                series: lines.collect(),
            }
        }));
    }
    charts
}

/// Quantiles as the number of their nines, so that 0.9, 0.99 and 0.999 stand equally far apart.
fn curve(latency: &Latency) -> Vec<(f64, f64)> {
    let last = (latency.count.max(1) as f64).log10();
    let nines = latency.cdf.iter().map(|(quantile, us)| ((-(1.0 - quantile).log10()).min(last), us));
    nines.filter(|(nines, _)| nines.is_finite()).map(|(nines, us)| (nines, (*us).max(1) as f64)).collect()
}

/// The tick at so many nines.
fn share(nines: f64) -> String {
    match nines.round() as i64 {
        ..=0 => "0".to_owned(),
        1 => "90 %".to_owned(),
        2 => "99 %".to_owned(),
        nines => format!("99.{} %", "9".repeat(usize::try_from(nines - 2).unwrap_or(1).min(6))),
    }
}

/// A line keeps its colour in every plot; peers are dashed.
fn series(run: &Summary, points: Vec<(f64, f64)>, marks: bool) -> Series {
    let label = run.label.as_deref().unwrap_or_default();
    let colour = match (run.system, run.transport) {
        (System::Walcast, Some(Transport::Ws)) => 0,
        (System::Walcast, Some(Transport::Sse)) => 1,
        (System::Walcast, Some(Transport::Poll)) => 2,
        (System::Walcast, None) if label == figure::label::MESSAGE => 1,
        (System::Walcast, None) if label == figure::label::PUBLISH_OUTBOX => 1,
        (System::Walcast, None) if label == figure::label::STAND_IN => 2,
        (System::Walcast, None) => 0,
        (System::Listen, _) => 3,
        (System::Redis, _) => 4,
        (System::Nchan, _) => 5,
        (System::Recvlogical | System::Postgres, _) => 6,
    };
    let odd = matches!(
        label,
        figure::label::FAST
            | figure::label::STALLED
            | figure::label::UNPUBLISHED
            | figure::label::OUTBOX
            | figure::label::BEHIND_SILENCE
            | figure::label::HEARTBEATS
            | figure::label::ASKING
    );
    let shape = if run.system != System::Walcast {
        Shape::Dashed
    } else if odd {
        Shape::Dotted
    } else {
        Shape::Solid
    };
    Series { name: run.name(), colour, shape, marks, points }
}
