//! One transaction wakes all clients: each by an event on a topic of its own, or all by one event that they
//! share. For peers, who know no transactions, it is the latter: one message to all.

use std::time::{Duration, Instant};

use super::{Draft, OWN, Plan, SHARED, each, median, own_topic};
use crate::Error;
use crate::lab::{Lab, Settings};
use crate::latency::{Clock, Sent};
use crate::publish::Topics;
use crate::report::{Run, Scenario, System, Transport, figure};

/// How long nothing may come.
const QUIET: Duration = Duration::from_secs(10);

/// Plays it.
///
/// # Errors
/// A server does not start, or clients fail.
pub async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    each(lab, plan, Scenario::Storm, async |lab, system, transport, clients| {
        let mut runs = Vec::new();
        if system == System::Walcast {
            runs.push(one(lab, plan, system, transport, clients, false).await?);
        }
        runs.push(one(lab, plan, system, transport, clients, true).await?);
        Ok(runs)
    })
    .await
}

async fn one(
    lab: &mut Lab,
    plan: &Plan,
    system: System,
    transport: Option<Transport>,
    clients: usize,
    shared: bool,
) -> Result<Run, Error> {
    let stand = lab.stand(system, transport, &Settings::clients(clients)).await?;
    let mut publisher = stand.publisher().await?;
    let mut draft = Draft::at(Scenario::Storm, &stand, clients);
    if shared {
        draft = draft.label(figure::label::ONE_TOPIC);
    }
    // The first, not measured, meets cold caches.
    let rounds: u32 = plan.amount(2, 6);
    let messages = if shared { 1 } else { u32::try_from(clients).unwrap_or(u32::MAX) };
    let sent = Sent::new(Clock::default(), (messages * rounds) as usize);
    lab.doing("clients arrive");
    let crowd =
        stand.crowd(sent.clock(), clients, |client| if shared { SHARED.into() } else { own_topic(client) });
    stand.waiting(&crowd).await?;

    lab.doing("all are woken at once");
    let mut commits = Vec::new();
    let mut cpu = stand.cpu();
    for round in 0..rounds {
        let first = round * messages;
        let topics = if shared { Topics::One(SHARED) } else { Topics::Each(OWN, first) };
        commits.push(publisher.burst(topics, first..first + messages, &sent).await?);
        crowd.until_delivered(u64::from(round + 1) * clients as u64, QUIET).await;
        if round == 0 {
            cpu = stand.cpu();
        }
    }
    let measured = (rounds - 1) as usize * clients;
    if let (Some(after), Some(before)) = (stand.cpu(), cpu) {
        let used = after.saturating_sub(before).as_secs_f64() * 1e6;
        draft.figure(figure::CPU_US_PER_DELIVERY, used / measured as f64);
    }
    let mut received = crowd.finish().await;
    let checks = draft.judge(&received, |client| due(client, shared, messages, rounds));
    for inbox in &mut received.inboxes {
        inbox.receipts.retain(|receipt| receipt.seq >= messages);
    }
    let to_last = commits.iter().enumerate().skip(1).filter_map(|(round, commit)| {
        let of_round = |seq: u32| (seq / messages) as usize == round;
        let receipts = received.inboxes.iter().flat_map(|inbox| &inbox.receipts);
        let last = receipts.filter(|receipt| of_round(receipt.seq)).map(|receipt| receipt.at_us).max()?;
        Some(f64::from(last.saturating_sub(clock(&sent, *commit))) / 1e3)
    });
    let to_last: Vec<f64> = to_last.collect();
    if checks.lost == 0 && !to_last.is_empty() {
        draft.figure(figure::COMMIT_TO_LAST_MS, median(to_last));
    }
    Ok(draft.end(received.latencies(&sent).summary()))
}

fn clock(sent: &Sent, at: Instant) -> u32 {
    sent.clock().at(at)
}

fn due(client: usize, shared: bool, messages: u32, rounds: u32) -> impl Iterator<Item = u32> {
    let own = if shared { 0 } else { u32::try_from(client).unwrap_or(u32::MAX) };
    (0..rounds).map(move |round| round * messages + own)
}
