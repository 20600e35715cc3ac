//! How long an event takes to a client: a steady stream by each source and by LISTEN/NOTIFY at the same rate, and by
//! the outbox single events behind a silence, in which its broker looks ever more seldom.

use std::ops::Range;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::time::sleep_until;
use walcast::source::SourceKind;

use super::super::{Draft, Plan, SHARED, median};
use super::{QUIET, judge, of_source, shares};
use crate::Error;
use crate::lab::{Lab, Stand};
use crate::latency::{Clock, Sent};
use crate::publish::Publisher;
use crate::report::figure::{self, label};
use crate::report::{Checks, Run, Scenario, System, Transport};

/// Events a second.
const RATE: u32 = 1_000;
/// Events that fill caches, and tell how many sessions the rate takes; and as many again in all for the other sessions,
/// each of which plans its statements at first.
const WARM: u32 = 160;
/// Sessions that publish, at most.
const PUBLISHERS_MAX: usize = 16;
/// They keep the rate if they reach this share of it.
const KEPT: f64 = 0.95;
/// Of the others each publishes so many before.
const WARM_OTHERS: u32 = 10;
/// As much of their time may be spent waiting for the server.
const BUSY: f64 = 0.7;
/// How long nothing is published before a single event,
const SILENCE: Duration = Duration::from_secs(2);
/// and over which time the moment behind it is spread: the longest pause between two looks, or all would fall into
/// the same part of one.
const SPREAD: Duration = Duration::from_millis(500);

/// Plays it; numbers of clients do not count.
pub(super) async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    let mut runs = Vec::new();
    for (source, name) in [(SourceKind::Wal, label::WAL), (SourceKind::Outbox, label::OUTBOX)] {
        let settings = of_source(source, 1).without_beats();
        let stand = lab.stand(System::Walcast, Some(Transport::Ws), &settings).await?;
        lab.doing(format!("{RATE} events a second by the {}", source.as_str()));
        runs.push(steady(&stand, plan, Some(name)).await?);
        if source == SourceKind::Outbox {
            lab.doing("single events by the outbox");
            runs.push(behind_silence(&stand, plan).await?);
        }
    }
    if plan.peers.contains(&System::Listen) {
        let stand = lab.stand(System::Listen, None, &of_source(SourceKind::Wal, 1)).await?;
        lab.doing(format!("{RATE} events a second"));
        runs.push(steady(&stand, plan, None).await?);
    }
    Ok(runs)
}

/// Once more with twice as many sessions while they do not keep the rate: a publish takes longer where a broker reads.
async fn steady(stand: &Stand, plan: &Plan, name: Option<&str>) -> Result<Run, Error> {
    let (mut least, mut checks) = (1, Checks::default());
    loop {
        let mut run = stream(stand, plan, name, least).await?;
        let figure = |name: &str| run.figures.get(name).copied().unwrap_or_default();
        let publishers = figure(figure::PUBLISHERS) as usize;
        let kept = figure(figure::PUBLISHED_PER_SECOND) >= f64::from(RATE) * KEPT;
        // All that was sent is checked.
        checks = checks.and(run.checks);
        if kept || publishers >= PUBLISHERS_MAX || !checks.held() {
            run.checks = checks;
            return Ok(run);
        }
        least = (publishers * 2).min(PUBLISHERS_MAX);
    }
}

/// The stream, by `least` sessions or more.
async fn stream(stand: &Stand, plan: &Plan, name: Option<&str>, least: usize) -> Result<Run, Error> {
    let seconds = u32::try_from(plan.seconds.clamp(2, 60)).unwrap_or(60);
    let events = plan.amount(RATE / 2, RATE * seconds);
    let mut draft = Draft::at(Scenario::Sources, stand, 1);
    if let Some(name) = name {
        draft = draft.label(name);
    }
    // Writers each have the same number of them, so there may be a few less.
    let sent = Sent::new(Clock::default(), (2 * WARM + events) as usize);
    let crowd = stand.crowd(sent.clock(), 1, |_| SHARED.to_owned());
    stand.waiting(&crowd).await?;

    let mut first = stand.publisher().await?;
    let mut took = Vec::new();
    for seq in 0..WARM {
        let began = Instant::now();
        first.one(SHARED, seq).await?;
        took.push(began.elapsed().as_secs_f64());
    }
    let mut warm = WARM;
    let mut publishers = vec![first];
    for _ in 1..needed(median(took)).max(least) {
        let mut publisher = stand.publisher().await?;
        for seq in warm..warm + WARM_OTHERS {
            publisher.one(SHARED, seq).await?;
        }
        warm += WARM_OTHERS;
        publishers.push(publisher);
    }
    crowd.until_delivered(u64::from(warm), QUIET).await;

    let count = u32::try_from(publishers.len()).unwrap_or(1);
    let writers = shares(warm, count, events / count);
    let (every, began) = (Duration::from_secs(1) / RATE, Instant::now());
    let due = (0..count).map(|writer| began + every * writer);
    let streams = publishers.iter_mut().zip(&writers).zip(due);
    let streams =
        streams.map(|((publisher, seqs), due)| paced(publisher, seqs.clone(), due, every * count, &sent));
    try_join_all(streams).await?;
    let elapsed = began.elapsed().as_secs_f64();
    let published = events / count * count;
    draft.figure(figure::PUBLISHED_PER_SECOND, f64::from(published) / elapsed);
    draft.figure(figure::PUBLISHERS, f64::from(count));
    crowd.until_delivered(u64::from(warm + published), QUIET).await;
    let mut received = crowd.finish().await;
    // Before that they took turns.
    let all: Vec<_> = std::iter::once(0..warm).chain(writers).collect();
    draft.checks(judge(&received, &all));
    draft.fault(&received);
    for inbox in &mut received.inboxes {
        inbox.receipts.retain(|receipt| receipt.seq >= warm);
    }
    Ok(draft.end(received.latencies(&sent).summary()))
}

/// How many sessions publish at the rate, if one event takes so many seconds.
fn needed(took: f64) -> usize {
    (took * f64::from(RATE) / BUSY).ceil().clamp(1.0, PUBLISHERS_MAX as f64) as usize
}

/// One publisher's part of the stream. What is late because the one before took long counts from when it was due; what
/// the timer is late does not, for a publisher that kept a core busy until the moment would take it from the server.
async fn paced(
    publisher: &mut Publisher,
    seqs: Range<u32>,
    mut due: Instant,
    every: Duration,
    sent: &Sent,
) -> Result<(), Error> {
    for seq in seqs {
        let in_time = Instant::now() <= due;
        sleep_until(due.into()).await;
        sent.at(seq, if in_time { Instant::now() } else { due });
        publisher.one(SHARED, seq).await?;
        due += every;
    }
    Ok(())
}

async fn behind_silence(stand: &Stand, plan: &Plan) -> Result<Run, Error> {
    let events = plan.amount(2, 9);
    let mut draft = Draft::at(Scenario::Sources, stand, 1).label(label::BEHIND_SILENCE);
    let sent = Sent::new(Clock::default(), events as usize);
    let crowd = stand.crowd(sent.clock(), 1, |_| SHARED.to_owned());
    stand.waiting(&crowd).await?;
    let mut publisher = stand.publisher().await?;
    for seq in 0..events {
        tokio::time::sleep(SILENCE + SPREAD * seq / events).await;
        sent.now(seq);
        publisher.one(SHARED, seq).await?;
        crowd.until_delivered(u64::from(seq) + 1, QUIET).await;
    }
    let received = crowd.finish().await;
    draft.judge(&received, |_| 0..events);
    Ok(draft.end(received.latencies(&sent).summary()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_publish_as_the_rate_takes() {
        for (took, expected) in [(0.0, 1), (0.000_6, 1), (0.001, 2), (0.005, 8), (1.0, 16)] {
            assert_eq!(needed(took), expected, "{took}");
        }
    }
}
