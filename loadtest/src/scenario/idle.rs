//! Memory and CPU of clients that wait, and memory again once a burst of events has gone out to all of them.
//!
//! The broker keeps next to no history here, so that what is measured is the waiters' own; and its streams beat so
//! seldom that what is measured is waiting. What beating costs is a run of its own.

use std::time::Duration;

use tokio::time::sleep;

use super::{Draft, OWN, Plan, each, own_topic};
use crate::Error;
use crate::lab::{Lab, Settings};
use crate::latency::{Clock, Sent};
use crate::publish::Topics;
use crate::report::{Checks, Run, Scenario, System, Transport, figure};

/// What the broker keeps: long enough for a burst to reach everybody.
const HISTORY: Duration = Duration::from_secs(5);
/// Long enough for what a connect leaves behind to be freed.
const SETTLE: Duration = Duration::from_secs(2);
/// The shortest time over which CPU means something,
const CPU_SECONDS_MIN: u64 = 10;
/// and that in which every stream that beats does so, or nearly.
const BEAT_SECONDS_MIN: u64 = 20;
/// The longest there is between two beats of a stream.
const HEARTBEAT_MAX: Duration = Duration::from_secs(600);
/// The same where it must be quick.
const QUICK: Duration = Duration::from_millis(200);
/// How long nothing may come of a burst.
const QUIET: Duration = Duration::from_secs(10);

/// Plays it.
///
/// # Errors
/// A server does not start, or clients fail.
pub async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    lab.note("idle: the broker keeps 5 s of history, so that waiters are measured and not history");
    each(lab, plan, Scenario::Idle, async |lab, system, transport, clients| {
        let mut runs = vec![one(lab, plan, system, transport, clients).await?];
        if system == System::Walcast && transport != Some(Transport::Poll) {
            runs.push(beating(lab, plan, transport, clients).await?);
        }
        Ok(runs)
    })
    .await
}

/// Lets streams beat as they do by default.
async fn beating(
    lab: &mut Lab,
    plan: &Plan,
    transport: Option<Transport>,
    clients: usize,
) -> Result<Run, Error> {
    let stand = lab.stand(System::Walcast, transport, &Settings::clients(clients)).await?;
    let mut draft = Draft::at(Scenario::Idle, &stand, clients).label(figure::label::HEARTBEATS);
    lab.doing("clients arrive");
    let crowd = stand.crowd(Clock::default(), clients, own_topic);
    stand.waiting(&crowd).await?;
    sleep(plan.amount(SETTLE / 20, SETTLE)).await;
    lab.doing("all wait");
    if let Some(load) = stand.load(window(plan, BEAT_SECONDS_MIN)).await {
        draft.figure(figure::CPU_PERCENT, load * 100.0);
    }
    Ok(draft
        .end(Checks::default(), crowd.finish().await.latencies(&Sent::new(Clock::default(), 0)).summary()))
}

fn window(plan: &Plan, seconds_min: u64) -> Duration {
    plan.amount(QUICK, Duration::from_secs(plan.seconds.max(seconds_min)))
}

async fn one(
    lab: &mut Lab,
    plan: &Plan,
    system: System,
    transport: Option<Transport>,
    clients: usize,
) -> Result<Run, Error> {
    let settings = Settings {
        history_age: Some(plan.amount(Duration::from_secs(1), HISTORY)),
        heartbeat: Some(HEARTBEAT_MAX),
        ..Settings::clients(clients)
    };
    let stand = lab.stand(system, transport, &settings).await?;
    let mut publisher = stand.publisher().await?;
    let mut draft = Draft::at(Scenario::Idle, &stand, clients);
    let settle = plan.amount(SETTLE / 20, SETTLE);

    sleep(settle).await;
    let without = stand.memory_bytes();
    lab.doing("clients arrive");
    let rounds = plan.amount(2, 5);
    let count = u32::try_from(clients).unwrap_or(u32::MAX);
    let sent = Sent::new(Clock::default(), clients * rounds as usize);
    let crowd = stand.crowd(sent.clock(), clients, own_topic);
    stand.waiting(&crowd).await?;
    sleep(settle).await;
    let per_client = |bytes: Option<u64>| Some((bytes? as f64 - without? as f64) / clients as f64);
    if let Some(bytes) = per_client(stand.memory_bytes()) {
        draft.figure(figure::MEMORY_PER_CLIENT_BYTES, bytes);
    }

    lab.doing("a burst to all");
    for round in 0..rounds {
        let first = round * count;
        publisher.burst(Topics::Each(OWN, first), first..first + count, &sent).await?;
        crowd.until_delivered(u64::from(first + count), QUIET).await;
    }
    // What the burst was read from leaves the history within its age.
    sleep(plan.amount(SETTLE / 20, HISTORY + SETTLE)).await;

    lab.doing("all wait");
    if let Some(load) = stand.load(window(plan, CPU_SECONDS_MIN)).await {
        draft.figure(figure::CPU_PERCENT, load * 100.0);
    }
    if let Some(bytes) = per_client(stand.memory_bytes()) {
        draft.figure(figure::MEMORY_PER_CLIENT_AFTER_BURST_BYTES, bytes);
    }
    if let Some(bytes) = stand.memory_bytes() {
        draft.figure(figure::MEMORY_BYTES, bytes as f64);
    }
    let received = crowd.finish().await;
    let checks = received.judge(|client| (0..rounds).map(move |round| round * count + client as u32));
    Ok(draft.end(checks, received.latencies(&sent).summary()))
}
