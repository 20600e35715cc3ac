//! What a report promises: rounds are taken together, targets judged, and every form shows all of it.

use std::collections::BTreeMap;

use super::figure::{self, label};
use super::summary::{median, summarise};
use super::targets::{Verdict, judge};
use super::*;

/// A run with `figures`, and latencies around `p50_us` unless that is 0.
fn run(scenario: Scenario, system: System, clients: u64, p50_us: u64, figures: &[(&str, f64)]) -> Run {
    let quantile =
        |share: f64| (share, (p50_us as f64 * (0.4 + 0.42 * -(1.0 - share + 1e-4).ln() * 2.0)) as u64);
    let latency = Latency {
        count: 10_000,
        min_us: p50_us / 2,
        p50_us,
        p90_us: p50_us * 2,
        p99_us: p50_us * 4,
        p999_us: p50_us * 6,
        max_us: p50_us * 9,
        mean_us: p50_us as f64 * 1.1,
        cdf: [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999].map(quantile).to_vec(),
    };
    Run {
        scenario,
        system,
        transport: None,
        clients,
        label: None,
        figures: figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
        latency: (p50_us > 0).then_some(latency),
        checks: Checks { expected: 10_000, delivered: 10_000, ..Checks::default() },
        fault: None,
        seconds: 4.0,
    }
}

fn over(transport: Transport, run: Run) -> Run {
    Run { transport: Some(transport), ..run }
}

fn labelled(label: &str, run: Run) -> Run {
    Run { label: Some(label.to_owned()), ..run }
}

/// A report in which every scenario was played, most targets are held, and some missed.
fn sample() -> Report {
    let mut runs = Vec::new();
    for (index, clients) in [100_u64, 1_000, 10_000, 15_000].into_iter().enumerate() {
        let grown = 1.0 + index as f64 * 0.06;
        let n = clients as f64;
        for (step, transport) in Transport::ALL.into_iter().enumerate() {
            let own = grown * (1.0 + step as f64 * 0.07);
            let memory = [
                (figure::MEMORY_PER_CLIENT_BYTES, 1_650.0 * own),
                (figure::MEMORY_PER_CLIENT_AFTER_BURST_BYTES, 1_900.0 * own),
                (figure::CPU_PERCENT, 0.05 + n / 20_000.0),
            ];
            let cpu =
                [(figure::CPU_US_PER_EVENT, 210.0 * own), (figure::BROKER_CPU_US_PER_EVENT, 80.0 * own)];
            let fanout =
                [(figure::DELIVERIES_PER_SECOND, 640_000.0 / own), (figure::CPU_US_PER_DELIVERY, 1.9 * own)];
            let last = [(figure::COMMIT_TO_LAST_MS, n * 0.024 * own)];
            let arrive = [(figure::CONNECTIONS_PER_SECOND, 15_500.0 / own)];
            let walcast = |scenario, p50, figures: &[_]| {
                over(transport, run(scenario, System::Walcast, clients, p50, figures))
            };
            runs.push(walcast(Scenario::Idle, 0, &memory));
            for round in 0..3_u64 {
                runs.push(labelled(
                    label::VISIBLE,
                    walcast(Scenario::Wake, (880.0 * own) as u64 + round * 50, &cpu),
                ));
            }
            runs.push(walcast(Scenario::Storm, clients * 12, &last));
            runs.push(walcast(Scenario::Fanout, 2_000 + clients, &fanout));
            runs.push(walcast(Scenario::Arrive, 0, &arrive));
        }
        let peers =
            [(System::Redis, 9_700.0, 7_000.0, 40.0, 3.5), (System::Nchan, 11_800.0, 14_000.0, 130.0, 2.5)];
        for (system, memory, arrive, cpu, delivery) in peers {
            let us = 150.0 + n * 0.05 + cpu;
            let peer = |scenario, p50, figures: &[_]| run(scenario, system, clients, p50, figures);
            runs.push(peer(
                Scenario::Idle,
                0,
                &[(figure::MEMORY_PER_CLIENT_BYTES, memory), (figure::CPU_PERCENT, 3.0)],
            ));
            runs.push(peer(Scenario::Wake, us as u64, &[(figure::CPU_US_PER_EVENT, cpu * grown * grown)]));
            runs.push(peer(Scenario::Storm, clients * 9, &[(figure::COMMIT_TO_LAST_MS, n * 0.019)]));
            let figures =
                [(figure::DELIVERIES_PER_SECOND, 250_000.0), (figure::CPU_US_PER_DELIVERY, delivery)];
            runs.push(peer(Scenario::Fanout, 3_000 + clients, &figures));
            runs.push(peer(Scenario::Arrive, 0, &[(figure::CONNECTIONS_PER_SECOND, arrive)]));
        }
    }
    for (clients, us, cpu) in [(10, 900, 270.0), (100, 1_300, 1_500.0), (380, 2_800, 4_800.0)] {
        runs.push(run(Scenario::Wake, System::Listen, clients, us, &[(figure::CPU_US_PER_EVENT, cpu)]));
    }
    let gate = run(Scenario::Wake, System::Walcast, 100, 790, &[(figure::CPU_US_PER_EVENT, 190.0)]);
    runs.push(labelled(label::FAST, over(Transport::Ws, gate)));
    for writers in [32, 64] {
        for (system, method, ratio) in [
            (System::Postgres, label::NOOP, 1.0),
            (System::Walcast, label::MESSAGE, 0.94),
            (System::Walcast, label::PUBLISH, 0.78),
            (System::Listen, label::NOTIFY, 0.27),
        ] {
            let figures =
                [(figure::TRANSACTIONS_PER_SECOND, 10_500.0 * ratio), (figure::RATIO_TO_NOOP, ratio)];
            runs.push(labelled(method, run(Scenario::Commit, system, writers, 0, &figures)));
        }
    }
    for writers in [8, 32] {
        for (system, method, ratio) in [
            (System::Postgres, label::NOTHING, 1.1),
            (System::Listen, label::NOTIFY, 0.3),
            (System::Walcast, label::PUBLISH_WAL, 0.9),
            (System::Walcast, label::PUBLISH_OUTBOX, 0.75),
            (System::Walcast, label::PUBLISH_OUTBOX_IN_USE, 0.66),
        ] {
            let figures = [
                (figure::TRANSACTIONS_PER_SECOND, 9_000.0 * ratio),
                (figure::RATIO_TO_NOOP, ratio),
                (figure::RATIO_TO_NOTIFY, ratio / 0.3),
            ];
            let figures = &figures[..if system == System::Walcast { 3 } else { 2 }];
            runs.push(labelled(method, run(Scenario::Sources, system, writers, 0, figures)));
        }
    }
    for (name, us) in [(label::WAL, 1_800), (label::OUTBOX, 6_200), (label::BEHIND_SILENCE, 260_000)] {
        let steady = run(Scenario::Sources, System::Walcast, 1, us, &[(figure::PUBLISHERS, 2.0)]);
        runs.push(labelled(name, over(Transport::Ws, steady)));
    }
    runs.push(run(Scenario::Sources, System::Listen, 1, 1_500, &[(figure::PUBLISHERS, 2.0)]));
    let left = [(figure::OUTBOX_LEFT_BYTES, 400_000.0), (figure::DEAD_ROWS, 0.0)];
    let emptied = run(Scenario::Sources, System::Walcast, 8, 0, &left);
    runs.push(labelled(label::EMPTIED, over(Transport::Ws, emptied)));
    for (system, speed, cpu) in [(System::Walcast, 139_000.0, 5.1), (System::Recvlogical, 146_000.0, 0.9)] {
        let figures = [
            (figure::CHANGES_PER_SECOND, speed),
            (figure::CONSUMER_CPU_SECONDS, cpu),
            (figure::WALSENDER_CPU_SECONDS, 6.3),
        ];
        runs.push(run(Scenario::Ingest, system, 1, 0, &figures));
    }
    for (name, us) in [(label::GOOD, 1_900), (label::STALLED, 2_000)] {
        let figures = [(figure::MEMORY_PEAK_BYTES, 91e6), (figure::MEMORY_ALLOWED_BYTES, 400e6)];
        runs.push(labelled(
            name,
            over(Transport::Sse, run(Scenario::Slow, System::Walcast, 100, us, &figures)),
        ));
    }
    for (name, gap) in [(label::PUBLISHED, 4_100.0), (label::UNPUBLISHED, 2_300.0)] {
        let stall = run(Scenario::Stall, System::Walcast, 1, 9_000, &[(figure::LONGEST_GAP_MS, gap)]);
        runs.push(labelled(name, over(Transport::Ws, stall)));
    }
    let mut churn = run(Scenario::Churn, System::Walcast, 200, 1_200, &[(figure::POLLS_PER_SECOND, 8_300.0)]);
    churn.checks = Checks { expected: 10_000, delivered: 9_998, lost: 2, ..Checks::default() };
    runs.push(over(Transport::Poll, churn));
    Report {
        version: "0.1.0".to_owned(),
        started: "2026-01-31T12:00:00Z".to_owned(),
        machine: Machine {
            cpu: "A processor <of some kind>".to_owned(),
            cores: 2,
            memory_bytes: 8_000_000_000,
            kernel: "Linux 6.1".to_owned(),
            versions: BTreeMap::from([("Postgres".to_owned(), "15.20".to_owned())]),
        },
        runs,
        notes: vec!["listen stops at 380 clients: max_connections".to_owned()],
    }
}

#[test]
fn a_complaint_names_the_run_and_why() {
    let mut whole = over(Transport::Sse, run(Scenario::Idle, System::Walcast, 10_000, 0, &[]));
    assert!(whole.checks.held());
    whole.checks.failed = 2;
    assert!(!whole.checks.held(), "a client that cannot go on is a fault, also where it missed nothing");
    whole.checks.resets = 3;
    whole.fault = Some("client 7: the server closed the connection".to_owned());
    let complaint = labelled(label::HEARTBEATS, whole).complaint();
    for part in
        ["idle walcast sse, 10,000 clients", label::HEARTBEATS, "2 clients failed", "3 times", "client 7"]
    {
        assert!(complaint.contains(part), "{complaint}");
    }
}

#[test]
fn reports_of_before_are_read() {
    let mut report = serde_json::to_value(sample()).unwrap();
    for run in report["runs"].as_array_mut().unwrap() {
        let checks = run["checks"].as_object_mut().unwrap();
        checks.retain(|name, _| !matches!(name.as_str(), "failed" | "resets"));
    }
    let read = Report::from_json(&report.to_string()).unwrap();
    assert!(table::render(&read) == table::render(&sample()));
}

#[test]
fn a_report_survives_json() {
    let report = sample();
    let again = Report::from_json(&report.to_json()).unwrap();
    assert!(table::render(&again) == table::render(&report) && again.runs.len() == report.runs.len());
    assert!(Report::from_json("{}").unwrap_err().to_string().contains("version"));
}

#[test]
fn reports_add_up() {
    let mut later = Report { notes: vec!["a".to_owned()], ..Report::default() };
    let earlier = Report { notes: vec!["a".to_owned(), "b".to_owned()], ..sample() };
    later.add(earlier.clone());
    assert_eq!(
        (&later.machine, later.runs.len(), later.notes.len()),
        (&earlier.machine, earlier.runs.len(), 2)
    );
    later.started = "later".to_owned();
    later.add(Report { runs: earlier.runs[..1].to_vec(), ..Report::default() });
    assert_eq!((later.started.as_str(), later.runs.len()), ("later", earlier.runs.len() + 1));
}

#[test]
fn medians_are_of_the_middle() {
    for (values, expected) in [
        (vec![], None),
        (vec![3.0], Some(3.0)),
        (vec![9.0, 1.0, 2.0], Some(2.0)),
        (vec![4.0, 1.0, 2.0, 100.0], Some(3.0)),
    ] {
        let mut sorted = values.clone();
        assert_eq!(median(&mut sorted), expected, "{values:?}");
    }
}

#[test]
fn rounds_are_taken_together_and_their_faults_added() {
    let round =
        |p50, speed| run(Scenario::Fanout, System::Redis, 10, p50, &[(figure::DELIVERIES_PER_SECOND, speed)]);
    let mut rounds = vec![round(100, 5.0), round(900, 1.0), round(200, 3.0)];
    rounds[1].checks.lost = 4;
    let other = labelled("other", round(1, 1.0));
    let summaries = summarise(&[rounds, vec![other]].concat());
    assert_eq!(summaries.len(), 2);
    let all = &summaries[0];
    let latency = all.latency.as_ref().unwrap();
    assert_eq!((all.rounds, all.figure(figure::DELIVERIES_PER_SECOND)), (3, Some(3.0)));
    assert_eq!((latency.p50_us, latency.max_us, latency.count), (200, 8_100, 30_000));
    assert_eq!(all.spread.get(figure::DELIVERIES_PER_SECOND), Some(&(1.0, 5.0)));
    assert_eq!(
        (all.spread.get("p50_us"), all.spread.get("p99_us")),
        (Some(&(100.0, 900.0)), Some(&(400.0, 3_600.0)))
    );
    assert_eq!((all.checks.expected, all.checks.lost), (30_000, 4));
}

/// Taking the better one of each quantile would flatter whoever has an even number of rounds.
#[test]
fn of_two_rounds_the_quantiles_meet_in_the_middle() {
    let round = |p50| run(Scenario::Slow, System::Walcast, 10, p50, &[]);
    let summaries = summarise(&[round(100), round(300)]);
    let latency = summaries[0].latency.as_ref().unwrap();
    assert_eq!((latency.p50_us, latency.p99_us), (200, 800));
    let text = table::render(&Report { runs: vec![round(100), round(300)], ..Report::default() });
    assert!(text.contains("200 µs [100 µs … 300 µs]"), "{text}");
}

/// The outcomes of the target whose name begins with `what`.
fn outcomes(report: &Report, what: &str) -> Vec<(String, String, Verdict)> {
    let all = judge(&summarise(&report.runs)).into_iter().filter(|outcome| outcome.what.starts_with(what));
    all.map(|outcome| (outcome.of, outcome.value, outcome.verdict)).collect()
}

#[test]
fn targets_are_computed_from_the_runs() {
    let report = sample();
    let held = |of: &str, value: &str| (of.to_owned(), value.to_owned(), Verdict::Held);
    for (what, of, value) in [
        ("memory per waiting client after", "poll, 10,000 clients", "1.15"),
        ("CPU while all wait", "poll, 10,000 clients", "0.55 %"),
        ("`wake` p50 ÷", "poll, 100 clients", "0.72"),
        ("`wake` p50 at", "poll, 10,000 clients", "1.11"),
        ("server CPU per event", "poll, 10,000 clients", "1.12"),
        ("broker CPU per event", "poll, 10,000 clients", "89.6 µs"),
        ("`storm`: commit", "poll, 10,000 clients", "269 ms"),
        ("`storm` ÷ nchan", "poll, 10,000 clients", "1.41"),
        ("`commit`: bare", "32 writers", "0.94"),
        ("`commit`: walcast.publish ÷ no-op", "32 writers", "0.78"),
        ("`commit`: walcast.publish ÷ pg", "32 writers", "2.89"),
        ("`sources`: walcast.publish by the outbox ÷ no-op", "", "0.75"),
        ("`sources`: walcast.publish by the outbox ÷ pg", "", "2.50"),
        ("`sources`: walcast.publish by the outbox ÷ pg_notify, 32 writers, 100 wait", "", "2.20"),
        ("`sources`: p50", "", "6.20 ms"),
        ("`ingest`: changes", "", "0.95"),
        ("`ingest`: CPU", "", "0.81"),
        ("`slow`: p99", "sse, 100 clients", "1.05"),
        ("`slow`: memory", "sse, 100 clients", "0.23"),
    ] {
        assert_eq!(outcomes(&report, what).first(), Some(&held(of, value)), "{what}");
    }
    // Rounds vary, so the gate's cost is beside the median of the usual runs.
    assert_eq!(outcomes(&report, "cost of the visibility").len(), 1);
    let missed = |what: &str| {
        outcomes(&report, what).iter().all(|(.., verdict)| matches!(verdict, Verdict::Missed(_)))
    };
    assert!(missed("`fanout` CPU of") && missed("events lost") && missed("`arrive`"));
    let hoped =
        judge(&summarise(&report.runs)).into_iter().filter(|outcome| outcome.what.ends_with("hoped for"));
    for outcome in hoped {
        assert!(matches!(outcome.verdict, Verdict::Missed(_)) && !outcome.fails(), "{outcome:?}");
    }
    let fanout = &outcomes(&report, "`fanout` CPU of")[0];
    assert_eq!((fanout.1.as_str(), fanout.2.text().as_str()), ("2.30 µs", "missed by 53 %"));
}

#[test]
fn what_was_not_played_is_unmeasured() {
    let mut report = sample();
    report.runs.retain(|run| run.scenario == Scenario::Commit && run.system != System::Listen);
    for outcome in judge(&summarise(&report.runs)) {
        let played = ["`commit`: bare", "`commit`: walcast.publish ÷ no-op", "events lost"];
        let expected = played.iter().any(|what| outcome.what.starts_with(what));
        assert_eq!(outcome.verdict != Verdict::Unmeasured, expected, "{outcome:?}");
    }
}

#[test]
fn every_form_shows_every_scenario_fault_and_note() {
    let report = sample();
    let page = html::render(&report);
    let markdown = markdown::render(&report, "benchmarks");
    for (form, text) in [("text", &table::render(&report)), ("markdown", &markdown.text), ("html", &page)] {
        for scenario in Scenario::ALL {
            assert!(text.contains(scenario.about()), "{form}: {scenario}");
        }
        for part in
            ["A processor", "2 lost", "held", "missed by 53 %", "380 clients", "pg_recvlogical", "× 1.05"]
        {
            assert!(text.contains(part), "{form}: {part}");
        }
    }
    // Nothing is fetched, and no text of a machine's becomes markup.
    assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("<link"));
    assert!(page.contains("&lt;of some kind&gt;") && page.contains("prefers-color-scheme:dark"));
    for id in [
        "memory",
        "cpu",
        "wake-p50",
        "storm",
        "fanout-throughput",
        "arrive",
        "commit",
        "sources",
        "latency-wake-100",
    ] {
        assert!(page.contains(&format!("<figure id=\"{id}\">")), "{id}");
        assert!(
            markdown.plots.iter().any(|(name, svg)| *name == format!("{id}.svg") && svg.contains("</svg>")),
            "{id}"
        );
    }
}

/// What has no figures in common does not share a table: it would be mostly gaps.
#[test]
fn parts_of_a_scenario_have_tables_of_their_own() {
    let grids = grid::scenarios(&summarise(&sample().runs));
    let parts: Vec<_> = grids.iter().filter(|grid| grid.title == Scenario::Sources.name()).collect();
    let firsts: Vec<_> = parts.iter().map(|part| part.columns[0].title.as_str()).collect();
    assert_eq!(firsts, ["writers", "clients", "writers"]);
    for (part, rows) in parts.iter().zip([10, 4, 1]) {
        assert_eq!(part.rows.len(), rows, "{}", part.about);
    }
    let heads: Vec<_> = parts[0].columns.iter().map(|column| column.title.as_str()).collect();
    assert_eq!(heads[2..], ["ratio to no-op", "ratio to pg_notify", "transactions", "checked"]);
    assert!(parts[1].about.ends_with("× is beside walcast ws, outbox"), "{}", parts[1].about);
    let beside = parts[1].rows.last().unwrap().iter().filter_map(|cell| cell.ratio.as_deref());
    assert!(beside.clone().any(|ratio| ratio == "× 0.24"), "{:?}", beside.collect::<Vec<_>>());
}

#[test]
fn drawings_hold_only_finite_places() {
    let mut report = sample();
    for run in &mut report.runs {
        for value in run.figures.values_mut().step_by(2) {
            *value = 0.0;
        }
        if let Some(latency) = &mut run.latency {
            latency.cdf = vec![(0.0, 0), (1.0, 0)];
        }
    }
    report.runs.push(run(
        Scenario::Idle,
        System::Nchan,
        0,
        0,
        &[(figure::MEMORY_PER_CLIENT_BYTES, f64::NAN)],
    ));
    let page = html::render(&report);
    assert!(!page.contains("NaN") && !page.contains("inf"), "a place that is no number");
    assert!(html::render(&Report::default()).contains("not measured"));
}
