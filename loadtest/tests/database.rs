//! Scenarios about the database and the broker's readers, as small as they get: they run, lose nothing, and
//! find the figures from which targets are computed.

use walcast_loadtest::Error;
use walcast_loadtest::lab::{Lab, Options};
use walcast_loadtest::report::{Checks, Run, Scenario, System, Transport, figure};
use walcast_loadtest::scenario::{self, Plan};

async fn play(scenario: Scenario, clients: &[u64], transports: &[Transport]) -> Vec<Run> {
    let runs =
        try_to(scenario, clients, transports).await.unwrap_or_else(|error| panic!("{scenario}: {error}"));
    for run in &runs {
        let Checks { expected, delivered, .. } = run.checks;
        assert!(run.checks.held() && expected == delivered, "{run:?}");
        assert!(run.figures.values().all(|value| value.is_finite() && *value >= 0.0), "{run:?}");
    }
    runs
}

async fn try_to(scenario: Scenario, clients: &[u64], transports: &[Transport]) -> Result<Vec<Run>, Error> {
    let plan = Plan {
        clients: clients.to_vec(),
        transports: transports.to_vec(),
        peers: vec![System::Listen],
        seconds: 1,
        quick: true,
    };
    let mut lab = Lab::new(Options { fsync: false, ..Options::default() })?;
    let runs = scenario::play(scenario, &mut lab, &plan).await;
    lab.end().await?;
    runs
}

fn value(run: &Run, name: &str) -> f64 {
    *run.figures.get(name).unwrap_or_else(|| panic!("no {name} in {run:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_are_compared_with_those_that_tell_nobody() {
    let runs = play(Scenario::Commit, &[4], &[]).await;
    let labels: Vec<_> = runs.iter().filter_map(|run| run.label.as_deref()).collect();
    use figure::label;
    let alone = [label::NOOP, label::MESSAGE, label::PUBLISH, label::STAND_IN, label::NOTIFY];
    assert_eq!(labels, [&alone[..], &[label::PUBLISH_IN_USE, label::NOTIFY_IN_USE]].concat());
    for run in &runs {
        assert!(run.checks.expected > 0 && value(run, figure::TRANSACTIONS_PER_SECOND) > 0.0, "{run:?}");
        // Where clients wait, what reached them is checked beside what was committed.
        let commits = (value(run, figure::TRANSACTIONS_PER_SECOND) * run.seconds).round() as u64;
        let waited_for =
            run.label.as_deref().is_some_and(|label| label.ends_with("wait") || label.ends_with("listen"));
        assert_eq!(run.checks.expected, if waited_for { commits * 2 } else { commits }, "{run:?}");
        assert!(value(run, figure::RATIO_TO_NOOP) > 0.0, "{run:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_are_compared() {
    let runs = play(Scenario::Sources, &[3], &[]).await;
    use figure::label;
    let labels: Vec<_> = runs.iter().map(|run| run.label.as_deref()).collect();
    let alone = [label::NOOP, label::NOTHING, label::NOTIFY, label::PUBLISH_WAL, label::PUBLISH_OUTBOX];
    let in_use = [label::NOTIFY_IN_USE, label::PUBLISH_WAL_IN_USE, label::PUBLISH_OUTBOX_IN_USE];
    let publishing: Vec<_> = alone.into_iter().chain(in_use).map(Some).collect();
    let delivery = [Some(label::WAL), Some(label::OUTBOX), Some(label::BEHIND_SILENCE), None];
    assert_eq!(labels, [&publishing[..], &delivery, &[Some(label::EMPTIED)]].concat());
    for (run, waited_for) in runs.iter().zip([false; 5].into_iter().chain([true; 3])) {
        assert!(run.clients == 3 && value(run, figure::RATIO_TO_NOOP) > 0.0, "{run:?}");
        // Where clients wait, what reached them is checked beside what was committed.
        let commits = (value(run, figure::TRANSACTIONS_PER_SECOND) * run.seconds).round() as u64;
        assert_eq!(run.checks.expected, if waited_for { commits * 2 } else { commits }, "{run:?}");
        let ours = run.system == System::Walcast;
        assert_eq!(run.figures.contains_key(figure::RATIO_TO_NOTIFY), ours, "{run:?}");
    }
    for run in &runs[8..12] {
        // Those of a stream that fill caches are checked, and not measured.
        let warm = if run.figures.contains_key(figure::PUBLISHERS) { 160 } else { 0 };
        let measured = run.latency.as_ref().map_or(0, |latency| latency.count);
        assert!(measured > 0 && measured + warm <= run.checks.expected, "{run:?}");
    }
    let emptied = &runs[12];
    assert!(emptied.checks.expected > 4_900 && value(emptied, figure::DEAD_ROWS) < 0.5, "{emptied:?}");
    let (peak, left) = (value(emptied, figure::OUTBOX_PEAK_BYTES), value(emptied, figure::OUTBOX_LEFT_BYTES));
    assert!(left < peak, "{emptied:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_read_by_both() {
    let runs = play(Scenario::Ingest, &[1], &[]).await;
    let systems: Vec<_> = runs.iter().map(|run| run.system).collect();
    assert_eq!(systems, [System::Recvlogical, System::Walcast]);
    for run in &runs {
        assert!(value(run, figure::CHANGES_PER_SECOND) > 0.0, "{run:?}");
    }
    assert_eq!(runs[1].checks.delivered, 20_000, "every row, read back: {runs:?}");
    assert!(value(&runs[1], figure::CONSUMER_CPU_SECONDS) > 0.0, "{runs:?}");
    assert!(value(&runs[1], figure::WALSENDER_CPU_SECONDS) > 0.0, "{runs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn good_readers_receive_all_beside_stalled_ones() {
    let runs = play(Scenario::Slow, &[20], &[Transport::Ws]).await;
    assert_eq!(runs.len(), 2);
    for run in &runs {
        assert!(run.latency.as_ref().is_some_and(|latency| latency.count == 1_000), "{run:?}");
    }
    let beside = &runs[1];
    assert!(
        value(beside, figure::MEMORY_PEAK_BYTES) < value(beside, figure::MEMORY_ALLOWED_BYTES),
        "{beside:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_steady_stream_is_whole_behind_a_huge_transaction() {
    let runs = play(Scenario::Stall, &[1], &[Transport::Ws]).await;
    let labels: Vec<_> = runs.iter().filter_map(|run| run.label.as_deref()).collect();
    assert_eq!(labels, [figure::label::PUBLISHED, figure::label::UNPUBLISHED]);
    for run in &runs {
        // It is a stream of one in 20 ms.
        assert!(value(run, figure::LONGEST_GAP_MS) >= 19.0 && run.checks.expected >= 50, "{run:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_and_goes_misses_nothing() {
    let runs = play(Scenario::Churn, &[50], &Transport::ALL).await;
    assert_eq!(runs.len(), 3);
    for run in &runs {
        assert!(run.checks.expected == 200 && value(run, figure::RECONNECTS_PER_SECOND) > 0.0, "{run:?}");
    }
}
