//! A topic for each client, and one client woken at a time, at a fixed rate.

use std::time::{Duration, Instant};

use super::{Draft, Plan, each, own_topic, steady};
use crate::Error;
use crate::lab::{Lab, Settings};
use crate::latency::{Clock, Sent};
use crate::report::{Run, Scenario, System, Transport, figure};

/// Events a second: few enough that each finds a server at rest.
const RATE: u32 = 100;
/// Far apart, so that neighbours are not woken one after the other. Prime to all numbers of clients but its
/// own multiples.
const STRIDE: usize = 7919;
/// How long nothing may come.
const QUIET: Duration = Duration::from_secs(10);

/// Plays it; once more without the visibility gate for the fewest clients, so that its cost shows.
///
/// # Errors
/// A server does not start, or clients fail.
pub async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    let fewest = plan.clients.iter().min().copied();
    each(lab, plan, Scenario::Wake, async |lab, system, transport, clients| {
        let settings = Settings::clients(clients).without_beats();
        let label = (system == System::Walcast).then_some(figure::label::VISIBLE);
        let mut runs = vec![one(lab, plan, system, transport, &settings, label).await?];
        if system == System::Walcast && fewest == Some(clients as u64) {
            let settings = Settings { fast: true, ..settings };
            runs.push(one(lab, plan, system, transport, &settings, Some(figure::label::FAST)).await?);
        }
        Ok(runs)
    })
    .await
}

async fn one(
    lab: &mut Lab,
    plan: &Plan,
    system: System,
    transport: Option<Transport>,
    settings: &Settings,
    label: Option<&str>,
) -> Result<Run, Error> {
    let clients = settings.clients;
    let stand = lab.stand(system, transport, settings).await?;
    let mut publisher = stand.publisher().await?;
    let mut draft = Draft::at(Scenario::Wake, &stand, clients);
    if let Some(label) = label {
        draft = draft.label(label);
    }
    let seconds = u32::try_from(plan.seconds.clamp(2, 600)).unwrap_or(600);
    let events = plan.amount(RATE / 2, RATE * seconds);
    // Before them a few that are not measured: they fill caches.
    let warm = RATE / 4;
    let sent = Sent::new(Clock::default(), (warm + events) as usize);
    let woken = |seq: u32| seq as usize * STRIDE % clients;
    lab.doing("clients arrive");
    let crowd = stand.crowd(sent.clock(), clients, own_topic);
    stand.waiting(&crowd).await?;

    lab.doing("one is woken at a time");
    for seq in 0..warm {
        sent.now(seq);
        publisher.one(&own_topic(woken(seq)), seq).await?;
    }
    crowd.until_delivered(u64::from(warm), QUIET).await;
    // What servers do anyway, heartbeats among it, is not the events' cost.
    let window = plan.amount(Duration::from_millis(200), Duration::from_secs(2));
    let (idle, idle_all) = tokio::join!(stand.load(window), stand.load_with_database(window));

    let (cpu, cpu_all, began) = (stand.cpu(), stand.cpu_with_database(), Instant::now());
    let topic = |seq| own_topic(woken(seq));
    steady::publish(&mut publisher, RATE, warm..warm + events, topic, &sent).await?;
    crowd.until_delivered(u64::from(warm + events), QUIET).await;
    let elapsed = began.elapsed().as_secs_f64();
    let per_event = |after: Option<Duration>, before: Option<Duration>, idle: Option<f64>| {
        let used = after?.saturating_sub(before?).as_secs_f64() - idle? * elapsed;
        Some(used.max(0.0) * 1e6 / f64::from(events))
    };
    let broker = per_event(stand.cpu(), cpu, idle);
    if let Some(us) = per_event(stand.cpu_with_database(), cpu_all, idle_all) {
        draft.figure(figure::CPU_US_PER_EVENT, us);
    }
    if let (System::Walcast, Some(us)) = (system, broker) {
        draft.figure(figure::BROKER_CPU_US_PER_EVENT, us);
    }
    let mut received = crowd.finish().await;
    let mut due = vec![Vec::new(); clients];
    (0..warm + events).for_each(|seq| due[woken(seq)].push(seq));
    draft.judge(&received, |client| due[client].iter().copied());
    for inbox in &mut received.inboxes {
        inbox.receipts.retain(|receipt| receipt.seq >= warm);
    }
    Ok(draft.end(received.latencies(&sent).summary()))
}
