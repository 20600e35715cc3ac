//! Every scenario once, with few clients, against servers of its own: it plays to its end, finds the figures
//! that it is for, and nothing is lost.

use walcast_loadtest::Error;
use walcast_loadtest::lab::{self, Lab, Settings, nginx, redis};
use walcast_loadtest::report::{Run, Scenario, System, Transport, figure};
use walcast_loadtest::scenario::{self, Plan};

/// The broker's program is built with the workspace's tests, or by `cargo build -p walcast`.
fn lab() -> Lab {
    Lab::new(lab::Options { fsync: false, ..lab::Options::default() })
        .expect("`cargo build -p walcast` first")
}

async fn check(lab: &mut Lab, scenario: Scenario, transports: &[Transport], figures: &[&str]) {
    let mut peers = vec![System::Listen];
    peers.extend(redis::missing().is_none().then_some(System::Redis));
    peers.extend(nginx::missing().is_none().then_some(System::Nchan));
    check_with(lab, scenario, transports, peers, figures).await;
}

async fn check_with(
    lab: &mut Lab,
    scenario: Scenario,
    transports: &[Transport],
    peers: Vec<System>,
    figures: &[&str],
) {
    let plan = Plan {
        clients: vec![7],
        transports: transports.to_vec(),
        peers: peers.clone(),
        seconds: 1,
        quick: true,
    };
    let played: Result<Vec<Run>, Error> = scenario::play(scenario, lab, &plan).await;
    let runs = played.unwrap_or_else(|error| panic!("{scenario}: {error}"));
    for system in &peers {
        assert!(runs.iter().any(|run| run.system == *system), "{scenario} without {system}");
    }
    for transport in transports {
        let played = |run: &Run| run.system == System::Walcast && run.transport == Some(*transport);
        assert!(runs.iter().any(played), "{scenario} without {transport}");
    }
    for run in &runs {
        assert_eq!(run.clients, 7, "{run:?}");
        assert!(run.checks.held() && run.checks.expected > 0, "{run:?}");
        assert_eq!(run.checks.delivered, run.checks.expected, "{run:?}");
        assert!(run.latency.as_ref().is_some_and(|latency| latency.count > 0), "{run:?}");
        let of_its_own = [figure::label::HEARTBEATS, figure::label::ASKING];
        if run.label.as_deref().is_some_and(|label| of_its_own.contains(&label)) {
            let measured = |name| run.figures.get(name).is_some_and(|value| *value > 0.0);
            assert!(measured(figure::CPU_PERCENT) || measured(figure::CPU_US_PER_QUESTION), "{run:?}");
            continue;
        }
        for name in figures {
            assert!(run.figures.get(*name).is_some_and(|value| value.is_finite()), "{name}: {run:?}");
        }
    }
}

/// One after the other in one lab, as a user plays them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_scenario_of_waiting_clients() {
    let mut lab = lab();
    let all = &Transport::ALL;
    check(&mut lab, Scenario::Idle, all, &[figure::MEMORY_PER_CLIENT_BYTES, figure::CPU_PERCENT]).await;
    check(&mut lab, Scenario::Wake, &[Transport::Poll], &[figure::CPU_US_PER_EVENT]).await;
    check(&mut lab, Scenario::Storm, &[Transport::Sse], &[figure::COMMIT_TO_LAST_MS]).await;
    let figures = [figure::DELIVERIES_PER_SECOND, figure::CPU_US_PER_DELIVERY];
    check(&mut lab, Scenario::Fanout, &[Transport::Ws], &figures).await;
    check(&mut lab, Scenario::Arrive, &[Transport::Ws], &[figure::CONNECTIONS_PER_SECOND]).await;
    lab.end().await.unwrap();
}

/// A broker that nobody uses would take of what a peer is measured with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_broker_runs_beside_a_peer() {
    let mut lab = lab();
    let settings = Settings::clients(1);
    let stand = lab.stand(System::Walcast, Some(Transport::Ws), &settings).await.unwrap();
    let process = format!("/proc/{}", stand.broker().expect("walcast has one").pid());
    drop(stand);
    assert!(std::path::Path::new(&process).exists(), "kept for whoever needs it next");
    let peer = lab.stand(System::Listen, None, &settings).await.unwrap();
    assert!(!std::path::Path::new(&process).exists());
    drop(peer);
    lab.end().await.unwrap();
}
