//! What is asked of each figure.

use super::compute::{
    FEW, MANY, against, fanout, faults, figures, found, growth, method, one, paired, quantile, single,
    source, writers,
};
use super::{Limit, Target};
use crate::report::figure::{self, label};
use crate::report::summary::Summary;
use crate::report::unit::Unit;
use crate::report::{Scenario, System};

/// All of them, in the order in which reports show them.
pub(super) const TARGETS: &[Target] = &[
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
        limit: Limit::Hoped(0.85),
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
        what: "`sources`: walcast.publish by the outbox ÷ no-op, 32 writers",
        limit: Limit::AtLeast(0.65),
        unit: Unit::Ratio,
        measured_by: "sources --clients 32",
        compute: |all| {
            single(source(all, 32, label::PUBLISH_OUTBOX, |run| run.figure(figure::RATIO_TO_NOOP)))
        },
    },
    Target {
        what: "`sources`: walcast.publish by the outbox ÷ pg_notify, 32 writers",
        limit: Limit::AtLeast(2.0),
        unit: Unit::Ratio,
        measured_by: "sources --clients 32 --peer listen",
        compute: |all| {
            single(source(all, 32, label::PUBLISH_OUTBOX, |run| run.figure(figure::RATIO_TO_NOTIFY)))
        },
    },
    Target {
        what: "`sources`: walcast.publish by the outbox ÷ pg_notify, 32 writers, 100 wait",
        limit: Limit::AtLeast(2.0),
        unit: Unit::Ratio,
        measured_by: "sources --clients 32 --peer listen",
        compute: |all| {
            single(source(all, 32, label::PUBLISH_OUTBOX_IN_USE, |run| run.figure(figure::RATIO_TO_NOTIFY)))
        },
    },
    Target {
        what: "`sources`: p50 from publish to receipt by the outbox, 1,000 events/s",
        limit: Limit::AtMost(10_000.0),
        unit: Unit::Micros,
        measured_by: "sources",
        compute: |all| single(source(all, 1, label::OUTBOX, |run| quantile(run, |latency| latency.p50_us))),
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
