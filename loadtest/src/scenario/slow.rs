//! What stalled readers do to good ones: clients that follow a steady stream, alone and beside others that have
//! subscribed to the same and read nothing.
//!
//! The broker must hold little for a stalled reader, and cuts it once it has taken nothing for a while, so a
//! slice is shorter than that.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{interval, sleep, timeout};

use super::steady::Steady;
use super::{Draft, Plan};
use crate::Error;
use crate::client;
use crate::lab::{Lab, Postgres, Settings, Stand};
use crate::latency::{Clock, Latencies, Sent};
use crate::publish::payload;
use crate::report::figure::{self, label};
use crate::report::{Run, Scenario, System};

const TOPIC: &str = "slow";
/// Large messages, in one transaction, after which whoever does not read has no room left.
const FILL: u32 = 100;
const FILL_BYTES: i32 = 4_000;
/// Of the steady stream.
const PER_SECOND: u32 = 100;
/// Less than it takes until stalled readers are cut.
const SECONDS_MAX: u64 = 6;
/// What the broker may take for a connection: its state, and places in the history; no messages, which all share.
const CONNECTION_BYTES: u64 = 4 << 10;
/// What it may take for a message beside its payload.
const EVENT_BYTES: u64 = 1 << 10;
/// What it may take on its own account while it works: buffers that are filled and freed.
const WORK_BYTES: u64 = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(30);
/// How long stalled readers take until they are full, and more.
const SETTLE: Duration = Duration::from_secs(1);

/// Plays it over each transport, with each number of stalled readers.
///
/// # Errors
/// Clients cannot connect, or the broker went away.
pub async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    let (good, rounds) = plan.amount((10, 1), (100, 5));
    let mut runs = Vec::new();
    for (transport, clients) in
        plan.transports.iter().flat_map(|way| plan.clients.iter().map(move |n| (way, n)))
    {
        let all = lab.clients_for(System::Walcast, clients + good as u64).await?;
        let stalled = all.saturating_sub(good);
        let settings = Settings::clients(all).without_beats();
        let stand = lab.stand(System::Walcast, Some(*transport), &settings).await?;
        let postgres = lab.postgres().await?;
        lab.doing("a first time, not measured");
        // It meets cold caches, and a broker that has taken no memory yet for what it is about to do.
        let first = Slice { stand: &stand, postgres: &postgres, good, stalled };
        let mut first = Some(first.play(&Plan { quick: true, ..plan.clone() }, stalled, None).await?);
        let mut alone = None;
        for round in 0..rounds * 2 {
            lab.doing(if round % 2 == 0 { "good readers alone" } else { "good readers beside stalled ones" });
            let beside = if round % 2 == 0 { 0 } else { stalled };
            let slice = Slice { stand: &stand, postgres: &postgres, good, stalled: beside };
            let mut run = slice.play(plan, stalled, alone).await?;
            if let Some(first) = first.take() {
                // Nor is it left unchecked.
                run.checks = run.checks.and(first.checks);
                run.fault = run.fault.or(first.fault);
            }
            alone = run.figures.get(figure::MEMORY_PEAK_BYTES).copied();
            runs.push(run);
        }
    }
    Ok(runs)
}

struct Slice<'a> {
    stand: &'a Stand,
    postgres: &'a Postgres,
    good: usize,
    stalled: usize,
}

impl Slice<'_> {
    /// `alone` is what the broker took for the same before, without stalled readers.
    async fn play(&self, plan: &Plan, clients: usize, alone: Option<f64>) -> Result<Run, Error> {
        self.subscriptions(|count| count == 0).await?;
        let name = if self.stalled > 0 { label::STALLED } else { label::GOOD };
        let mut draft = Draft::at(Scenario::Slow, self.stand, clients).label(name);
        let seconds = if plan.quick { 1 } else { plan.seconds.clamp(2, SECONDS_MAX) };
        let last = FILL + PER_SECOND * u32::try_from(seconds).unwrap_or(1);
        let clock = Clock::default();
        let sent = Sent::new(clock, last as usize);
        let crowd = self.stand.crowd(clock, self.good, |_| TOPIC.to_owned());
        self.stand.waiting(&crowd).await?;
        let held = self.stall().await?;
        self.subscriptions(|count| count >= (self.good + self.stalled) as u64).await?;
        self.fill().await?;
        let good = self.good as u64;
        crowd.until_delivered(good * u64::from(FILL), PATIENCE).await;
        // What the others take before they are full is still on its way to them: that is work, and not their stalling.
        sleep(plan.amount(SETTLE / 20, SETTLE)).await;
        let mut publisher = self.stand.publisher().await?;
        let mut steady = Steady::new(PER_SECOND);
        let mut peak = self.stand.memory_bytes();
        for seq in FILL..last {
            steady.one(&mut publisher, TOPIC, seq, &sent).await?;
            if seq % PER_SECOND == 0 {
                peak = self.stand.memory_bytes().max(peak);
            }
        }
        crowd.until_delivered(good * u64::from(last), PATIENCE).await;
        drop(held);
        if let Some(peak) = peak {
            draft.figure(figure::MEMORY_PEAK_BYTES, peak as f64);
        }
        if let Some(alone) = alone.filter(|_| self.stalled > 0) {
            draft.figure(
                figure::MEMORY_ALLOWED_BYTES,
                alone + allowed_beside(self.stalled as u64, last) as f64,
            );
        }
        let received = crowd.finish().await;
        let mut latencies = Latencies::default();
        for receipt in received.inboxes.iter().flat_map(|inbox| &inbox.receipts) {
            // What filled the others up is not part of the stream.
            if let Some(took) = sent.took(*receipt).filter(|_| receipt.seq >= FILL) {
                latencies.add(took);
            }
        }
        draft.judge(&received, |_| 0..last);
        Ok(draft.end(latencies.summary()))
    }

    /// Connects readers that have asked and read nothing.
    async fn stall(&self) -> Result<Vec<TcpStream>, Error> {
        let mut held = Vec::new();
        for number in 0..self.stalled {
            held.push(client::stalled(self.stand.target(), number, TOPIC).await?);
        }
        Ok(held)
    }

    async fn fill(&self) -> Result<(), Error> {
        let session = self.postgres.session().await?;
        let sql = "select count(walcast.publish($1, jsonb_build_object('seq', i, 'fill', repeat('x', $2))))
                   from generate_series(0, $3::int8 - 1) i";
        let filled = session.execute(sql, &[&TOPIC, &FILL_BYTES, &i64::from(FILL)]).await;
        filled.map_err(Error::sql("publish large messages"))?;
        session.close().await;
        Ok(())
    }

    async fn subscriptions(&self, wanted: impl Fn(u64) -> bool) -> Result<(), Error> {
        let Some(broker) = self.stand.broker() else { return Ok(()) };
        let known = async {
            let mut tick = interval(Duration::from_millis(10));
            loop {
                tick.tick().await;
                if wanted(broker.metric("walcast_subscriptions").await? as u64) {
                    return Ok(());
                }
            }
        };
        let late = || Error::failed(format!("not all clients came or went within {PATIENCE:?}"));
        timeout(PATIENCE, known).await.unwrap_or_else(|_| Err(late()))
    }
}

/// What the broker may take for so many stalled readers, and for `messages` more in its history.
fn allowed_beside(stalled: u64, messages: u32) -> u64 {
    let steady = u64::from(messages - FILL) * payload(messages).len() as u64;
    let filling = u64::from(FILL) * u64::try_from(FILL_BYTES).unwrap_or(0);
    filling + steady + u64::from(messages) * EVENT_BYTES + stalled * CONNECTION_BYTES + WORK_BYTES
}
