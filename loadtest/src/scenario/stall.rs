//! The delivery gap behind a huge transaction: a waiter follows a steady stream while somebody else commits very
//! many rows at once, of a table that is published and of one that is not.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use walcast::postgres::Session;

use super::steady::Steady;
use super::{Draft, Plan};
use crate::Error;
use crate::lab::{Lab, Settings, Stand};
use crate::latency::{Clock, Sent};
use crate::report::figure::{self, label};
use crate::report::{Run, Scenario, System};
use crate::verify::Receipt;

const DDL: &str = "drop table if exists public.loadtest_published, public.loadtest_unpublished;
    create table public.loadtest_published (id bigint primary key, shard int not null);
    create table public.loadtest_unpublished (id bigint primary key, shard int not null)";
const RULES: &str = "[[table]]\nname = 'public.loadtest_published'\ntopic = 'big/{shard}'\n";
const TOPIC: &str = "steady";
const PER_SECOND: u32 = 50;
/// How long the stream runs before, and again once all is delivered.
const CALM: Duration = Duration::from_secs(1);
/// How long it may run in all.
const LONGEST: Duration = Duration::from_secs(300);
const PATIENCE: Duration = Duration::from_secs(60);

/// Plays it over each transport; the numbers of clients do not count.
///
/// # Errors
/// The client cannot connect, or a server went away.
pub async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    let rows = plan.amount(20_000_i64, 1_000_000);
    let mut runs = Vec::new();
    for transport in &plan.transports {
        let settings = Settings { ddl: DDL.to_owned(), rules: RULES.to_owned(), ..Settings::clients(10) };
        let stand = lab.stand(System::Walcast, Some(*transport), &settings).await?;
        for name in [label::PUBLISHED, label::UNPUBLISHED] {
            let session = lab.postgres().await?.session().await?;
            lab.doing("a huge transaction passes");
            runs.push(gap(&stand, session, name, rows).await?);
        }
    }
    Ok(runs)
}

async fn gap(stand: &Stand, session: Session, name: &str, rows: i64) -> Result<Run, Error> {
    let mut draft = Draft::at(Scenario::Stall, stand, 1).label(name);
    let clock = Clock::default();
    let most = PER_SECOND * u32::try_from(LONGEST.as_secs()).unwrap_or(1);
    let sent = Sent::new(clock, most as usize);
    let crowd = stand.crowd(clock, 1, |_| TOPIC.to_owned());
    stand.waiting(&crowd).await?;
    let table = format!("public.loadtest_{name}");
    // Ends with us, whatever comes between.
    let mut huge = JoinSet::new();
    huge.spawn(async move {
        tokio::time::sleep(CALM).await;
        let sql = format!("insert into {table} select i, i % 1000 from generate_series(1, $1::int8) i");
        let done = session.execute(&sql, &[&rows]).await;
        session.close().await;
        done
    });
    let mut publisher = stand.publisher().await?;
    let mut steady = Steady::new(PER_SECOND);
    let (mut seq, mut calm) = (0, None);
    let mut peak = stand.memory_bytes();
    while seq < most {
        steady.one(&mut publisher, TOPIC, seq, &sent).await?;
        seq += 1;
        if seq % PER_SECOND == 0 {
            peak = stand.memory_bytes().max(peak);
        }
        // Until the transaction is through, and the stream has been close behind for a while.
        let close = crowd.delivered() + u64::from(PER_SECOND / 10) >= u64::from(seq);
        if let Some(done) = huge.try_join_next() {
            done.map_err(Error::of("the huge transaction"))?.map_err(Error::sql("the huge transaction"))?;
        }
        calm = match (huge.is_empty() && close, calm) {
            (true, None) => Some(Instant::now()),
            (true, since) => since,
            (false, _) => None,
        };
        if calm.is_some_and(|since| since.elapsed() > CALM) {
            break;
        }
    }
    if !huge.is_empty() {
        return Err(Error::failed(format!("the huge transaction has not ended after {LONGEST:?}")));
    }
    crowd.until_delivered(u64::from(seq), PATIENCE).await;
    let received = crowd.finish().await;
    let longest = received.inboxes.iter().filter_map(|inbox| longest_gap(&inbox.receipts)).max();
    draft.figure(figure::LONGEST_GAP_MS, longest.unwrap_or(Duration::ZERO).as_secs_f64() * 1e3);
    if let Some(peak) = peak {
        draft.figure(figure::MEMORY_PEAK_BYTES, peak as f64);
    }
    draft.judge(&received, |_| 0..seq);
    Ok(draft.end(received.latencies(&sent).summary()))
}

/// The longest time in which nothing came.
fn longest_gap(receipts: &[Receipt]) -> Option<Duration> {
    let pairs = receipts.windows(2).map(|pair| pair[1].at_us.saturating_sub(pair[0].at_us));
    pairs.max().map(|gap| Duration::from_micros(gap.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps() {
        let check = |times: &[u32], expected: Option<u64>| {
            let receipts: Vec<_> = times.iter().map(|at_us| Receipt { seq: 0, at_us: *at_us }).collect();
            assert_eq!(longest_gap(&receipts), expected.map(Duration::from_micros), "{times:?}");
        };
        check(&[], None);
        check(&[5], None);
        check(&[5, 5, 30, 40], Some(25));
    }
}
