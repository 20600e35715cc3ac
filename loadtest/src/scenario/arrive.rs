//! Connections per second: from the first connect until the server itself knows that all clients wait.

use std::time::{Duration, Instant};

use super::{Draft, OWN, Plan, each, own_topic};
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
    each(lab, plan, Scenario::Arrive, async |lab, system, transport, clients| {
        Ok(vec![one(lab, system, transport, clients).await?])
    })
    .await
}

async fn one(
    lab: &mut Lab,
    system: System,
    transport: Option<Transport>,
    clients: usize,
) -> Result<Run, Error> {
    let stand = lab.stand(system, transport, &Settings::clients(clients)).await?;
    let mut publisher = stand.publisher().await?;
    let mut draft = Draft::at(Scenario::Arrive, &stand, clients);
    let sent = Sent::new(Clock::default(), clients);
    lab.doing("clients arrive");
    let began = Instant::now();
    let crowd = stand.crowd(sent.clock(), clients, own_topic);
    stand.waiting(&crowd).await?;
    draft.figure(figure::CONNECTIONS_PER_SECOND, clients as f64 / began.elapsed().as_secs_f64());

    // Who waits is told: the proof that the server was right.
    let count = u32::try_from(clients).unwrap_or(u32::MAX);
    publisher.burst(Topics::Each(OWN, 0), 0..count, &sent).await?;
    crowd.until_delivered(u64::from(count), QUIET).await;
    let received = crowd.finish().await;
    draft.judge(&received, |client| [u32::try_from(client).unwrap_or(u32::MAX)]);
    Ok(draft.end(received.latencies(&sent).summary()))
}
