//! Memory and CPU of clients that wait, and memory again once a burst of events has gone out to all of them.
//!
//! The broker keeps next to no history here, so that what is measured is the waiters' own; and its streams beat so
//! seldom, and its long-polls are held for so long, that what is measured is waiting. What it costs that streams
//! beat and long-polls ask again are runs of their own.

use std::time::Duration;

use tokio::time::sleep;

use super::{Draft, OWN, Plan, each, own_topic};
use crate::Error;
use crate::client::{Crowd, Manner};
use crate::lab::{Lab, Settings};
use crate::latency::{Clock, Sent};
use crate::publish::{Publisher, Topics};
use crate::report::figure::{self, label};
use crate::report::{Run, Scenario, System, Transport};

/// What the broker keeps: long enough for a burst to reach everybody.
const HISTORY: Duration = Duration::from_secs(3);
/// Long enough for what a connect leaves behind to be freed.
const SETTLE: Duration = Duration::from_secs(2);
/// The shortest time over which CPU means something,
const CPU_SECONDS_MIN: u64 = 6;
/// and that in which every stream that beats does so, or nearly.
const BEAT_SECONDS_MIN: u64 = 20;
/// How long a long-poll is held where asking again is what counts: each asks more than once in the time above.
const HELD: Duration = Duration::from_secs(2);
/// The same where it must be quick.
const QUICK: Duration = Duration::from_millis(200);
/// And for asking again, which knows only whole seconds.
const QUICK_HELD: Duration = Duration::from_secs(1);
/// How long nothing may come of a burst.
const QUIET: Duration = Duration::from_secs(10);

/// Plays it.
///
/// # Errors
/// A server does not start, or clients fail.
pub async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    lab.note("idle: the broker keeps 3 s of history, so that waiters are measured and not history");
    each(lab, plan, Scenario::Idle, async |lab, system, transport, clients| {
        let mut runs = vec![one(lab, plan, system, transport, clients).await?];
        match (system, transport) {
            (System::Walcast, Some(Transport::Poll)) => runs.push(asking(lab, plan, clients).await?),
            (System::Walcast, _) => runs.push(beating(lab, plan, transport, clients).await?),
            _ => {}
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
    let mut publisher = stand.publisher().await?;
    let mut draft = Draft::at(Scenario::Idle, &stand, clients).label(label::HEARTBEATS);
    lab.doing("clients arrive");
    let sent = Sent::new(Clock::default(), clients);
    let crowd = stand.crowd(sent.clock(), clients, own_topic);
    stand.waiting(&crowd).await?;
    sleep(plan.amount(SETTLE / 20, SETTLE)).await;
    lab.doing("all wait");
    if let Some(load) = stand.load(window(plan, BEAT_SECONDS_MIN)).await {
        draft.figure(figure::CPU_PERCENT, load * 100.0);
    }
    burst(&mut publisher, &crowd, 0, &sent).await?;
    let received = crowd.finish().await;
    draft.judge(&received, |client| [number(client)]);
    Ok(draft.end(received.latencies(&sent).summary()))
}

/// Lets long-polls be answered with nothing, and ask again.
async fn asking(lab: &mut Lab, plan: &Plan, clients: usize) -> Result<Run, Error> {
    let stand = lab.stand(System::Walcast, Some(Transport::Poll), &Settings::clients(clients)).await?;
    let mut publisher = stand.publisher().await?;
    let mut draft = Draft::at(Scenario::Idle, &stand, clients).label(label::ASKING);
    let manner = Manner { wait: plan.amount(QUICK_HELD, HELD), ..Manner::default() };
    lab.doing("clients arrive");
    let sent = Sent::new(Clock::default(), clients);
    let crowd = stand.crowd_that(&manner, sent.clock(), clients, own_topic);
    crowd.all_ready(QUIET).await?;
    // Until each has asked again: what it took to connect is over.
    crowd.until_replied(clients as u64, QUIET).await;

    lab.doing("all ask again and again");
    let (before, asked) = (stand.cpu(), crowd.replies());
    sleep(plan.amount(QUICK_HELD * 2, Duration::from_secs(plan.seconds.max(CPU_SECONDS_MIN)))).await;
    let (after, answered) = (stand.cpu(), crowd.replies() - asked);
    if let Some((before, after)) = before.zip(after) {
        let used = after.saturating_sub(before).as_secs_f64() * 1e6;
        draft.figure(figure::CPU_US_PER_QUESTION, used / answered.max(1) as f64);
    }
    burst(&mut publisher, &crowd, 0, &sent).await?;
    let received = crowd.finish().await;
    draft.judge(&received, |client| [number(client)]);
    Ok(draft.end(received.latencies(&sent).summary()))
}

/// Tells every client something, and waits until all have it. Events are numbered from `first`.
async fn burst(publisher: &mut Publisher, crowd: &Crowd, first: u32, sent: &Sent) -> Result<(), Error> {
    let end = first + number(crowd.clients());
    publisher.burst(Topics::Each(OWN, first), first..end, sent).await?;
    crowd.until_delivered(u64::from(end), QUIET).await;
    Ok(())
}

fn number(client: usize) -> u32 {
    u32::try_from(client).unwrap_or(u32::MAX)
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
        ..Settings::clients(clients).without_beats()
    };
    let stand = lab.stand(system, transport, &settings).await?;
    let mut publisher = stand.publisher().await?;
    let mut draft = Draft::at(Scenario::Idle, &stand, clients);
    let settle = plan.amount(SETTLE / 20, SETTLE);

    sleep(settle).await;
    let without = stand.memory_bytes();
    lab.doing("clients arrive");
    let rounds = plan.amount(2, 5);
    let count = number(clients);
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
        burst(&mut publisher, &crowd, round * count, &sent).await?;
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
    draft.judge(&received, |client| (0..rounds).map(move |round| round * count + number(client)));
    Ok(draft.end(received.latencies(&sent).summary()))
}
