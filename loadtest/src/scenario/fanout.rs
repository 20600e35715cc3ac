//! One topic to which all clients subscribe, and events at full speed.

use std::time::Duration;

use super::{Draft, Plan, SHARED, each};
use crate::Error;
use crate::lab::{Lab, Settings};
use crate::latency::{Clock, Sent};
use crate::publish::Topics;
use crate::report::{Run, Scenario, System, Transport, figure};

/// Events at full speed; a tenth of them where it must be quick.
const EVENTS: u32 = 1000;
/// Of them in a transaction, or in one go.
const AT_ONCE: u32 = 100;
/// How long nothing may come.
const QUIET: Duration = Duration::from_secs(10);

/// Plays it.
///
/// # Errors
/// A server does not start, or clients fail.
pub async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    lab.note(format!("fanout: {AT_ONCE} events in a transaction, or written together to a peer"));
    each(lab, plan, Scenario::Fanout, async |lab, system, transport, clients| {
        Ok(vec![one(lab, plan, system, transport, clients).await?])
    })
    .await
}

async fn one(
    lab: &mut Lab,
    plan: &Plan,
    system: System,
    transport: Option<Transport>,
    clients: usize,
) -> Result<Run, Error> {
    let stand = lab.stand(system, transport, &Settings::clients(clients)).await?;
    let mut publisher = stand.publisher().await?;
    let mut draft = Draft::at(Scenario::Fanout, &stand, clients);
    // The first round, not measured, is a tenth.
    let (warm, events) = (AT_ONCE, plan.amount(EVENTS / 10, EVENTS));
    let sent = Sent::new(Clock::default(), (warm + events) as usize);
    lab.doing("clients arrive");
    let crowd = stand.crowd(sent.clock(), clients, |_| SHARED.to_owned());
    stand.waiting(&crowd).await?;

    lab.doing("events at full speed");
    publisher.burst(Topics::One(SHARED), 0..warm, &sent).await?;
    crowd.until_delivered(u64::from(warm) * clients as u64, QUIET).await;
    let cpu = stand.cpu();
    for first in (warm..warm + events).step_by(AT_ONCE as usize) {
        publisher.burst(Topics::One(SHARED), first..first + AT_ONCE, &sent).await?;
    }
    crowd.until_delivered(u64::from(warm + events) * clients as u64, QUIET).await;
    let after = stand.cpu();

    let mut received = crowd.finish().await;
    draft.judge(&received, |_| 0..warm + events);
    for inbox in &mut received.inboxes {
        inbox.receipts.retain(|receipt| receipt.seq >= warm);
    }
    let deliveries: usize = received.inboxes.iter().map(|inbox| inbox.receipts.len()).sum();
    if let (Some(after), Some(before)) = (after, cpu) {
        let used = after.saturating_sub(before).as_secs_f64() * 1e6;
        draft.figure(figure::CPU_US_PER_DELIVERY, used / deliveries.max(1) as f64);
    }
    if let Some((first, last)) = received.span_us() {
        let seconds = f64::from((last - first).max(1)) / 1e6;
        draft.figure(figure::DELIVERIES_PER_SECOND, deliveries as f64 / seconds);
    }
    Ok(draft.end(received.latencies(&sent).summary()))
}
