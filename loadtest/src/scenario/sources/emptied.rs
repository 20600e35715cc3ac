//! What very many events leave behind in the outbox, once its broker has let go of them all.
//!
//! Events are needed for a second, and lanes are as short as they can be. Nobody else cleans up: autovacuum is off for
//! the outbox, so a row that anything had deleted would be found.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::time::{interval, sleep, timeout};
use walcast::postgres::Session;
use walcast::source::SourceKind;

use super::super::{Draft, Plan, SHARED};
use super::{QUIET, judge, of_source, shares};
use crate::Error;
use crate::client::Crowd;
use crate::lab::{Lab, Settings};
use crate::latency::{Clock, Sent};
use crate::publish::{Publisher, Topics};
use crate::report::figure::{self, label};
use crate::report::{Run, Scenario, System, Transport};

const WRITERS: u32 = 8;
/// Events of one transaction.
const TRANSACTION: u32 = 10;
/// The client may be so far behind: what is published faster than it reads would be let go of before it has it.
const AHEAD_MAX: u64 = 2_000;
/// How often it is looked how far the client is, how large the tables are, and whether they are empty.
const LOOK: Duration = Duration::from_millis(2);
const LOOK_AT_TABLES: Duration = Duration::from_millis(250);
/// A broker lets go every half minute where little comes.
const PATIENCE: Duration = Duration::from_secs(180);
/// How late the server's statistics may be.
const STATISTICS: Duration = Duration::from_secs(30);

/// The tables that events and ticks lie in.
const TABLES: &str = "(select relid from pg_partition_tree('walcast.outbox') where isleaf
    union all select relid from pg_partition_tree('walcast.tick') where isleaf) as tables";
const PREPARE: &str = "update walcast.settings set lane_seconds = 1;
    do $$
    declare one regclass;
    begin
        for one in select relid from pg_partition_tree('walcast.outbox') where isleaf
            union all select relid from pg_partition_tree('walcast.tick') where isleaf
        loop
            execute format('alter table %s set (autovacuum_enabled = off)', one);
        end loop;
    end $$";

/// Plays it; numbers of clients do not count.
pub(super) async fn play(lab: &mut Lab, plan: &Plan) -> Result<Run, Error> {
    let each = plan.amount(5_000, 1_000_000) / WRITERS / TRANSACTION * TRANSACTION;
    // A client that is held up for longer misses events; where time does not count, it has more of it.
    let age = plan.amount(Duration::from_secs(4), Duration::from_secs(1));
    let settings = Settings { history_age: Some(age), ..of_source(SourceKind::Outbox, 1) };
    let stand = lab.stand(System::Walcast, Some(Transport::Ws), &settings).await?;
    let session = lab.postgres().await?.session().await?;
    session.batch_execute(PREPARE).await.map_err(Error::sql("prepare the outbox"))?;
    let fresh = size(&session).await?;
    let mut draft = Draft::at(Scenario::Sources, &stand, WRITERS as usize).label(label::EMPTIED);
    let crowd = stand.crowd(Clock::default(), 1, |_| SHARED.to_owned());
    stand.waiting(&crowd).await?;
    let mut publishers = Vec::new();
    for _ in 0..WRITERS {
        publishers.push(stand.publisher().await?);
    }
    lab.doing("events are published");
    let writers = shares(0, WRITERS, each);
    let began = Instant::now();
    let peak = publish_all(&session, &mut publishers, &writers, &crowd).await?;
    let told = u64::from(WRITERS * each);
    draft.figure(figure::PUBLISHED_PER_SECOND, told as f64 / began.elapsed().as_secs_f64());
    draft.figure(figure::OUTBOX_FRESH_BYTES, fresh);
    draft.figure(figure::OUTBOX_PEAK_BYTES, peak);
    let since = Instant::now();
    crowd.until_delivered(told, QUIET).await;
    let received = crowd.finish().await;
    draft.checks(judge(&received, &writers));
    draft.fault(&received);

    lab.doing("the broker lets go of them");
    emptied(&session).await?;
    draft.figure(figure::LET_GO_MS, since.elapsed().as_secs_f64() * 1e3);
    draft.figure(figure::OUTBOX_LEFT_BYTES, size(&session).await?);
    draft.figure(figure::DEAD_ROWS, known_dead(&session).await?);
    if let Some(dead) = counted_dead(&session).await {
        draft.figure(figure::DEAD_ROWS_COUNTED, dead);
    }
    session.close().await;
    Ok(draft.end(None))
}

/// All writers at once; the most that the tables were seen to take meanwhile.
async fn publish_all(
    session: &Session,
    publishers: &mut [Publisher],
    writers: &[Range<u32>],
    crowd: &Crowd,
) -> Result<f64, Error> {
    let told = AtomicU64::new(0);
    let streams = publishers.iter_mut().zip(writers);
    let publishing = try_join_all(streams.map(|(own, seqs)| publish(own, seqs.clone(), &told, crowd)));
    tokio::pin!(publishing);
    let (mut look, mut peak) = (interval(LOOK_AT_TABLES), 0.0);
    loop {
        tokio::select! {
            done = &mut publishing => {
                done?;
                return Ok(size(session).await?.max(peak));
            }
            _ = look.tick() => peak = size(session).await?.max(peak),
        }
    }
}

/// One writer: transaction after transaction, as long as the client is close behind.
async fn publish(
    publisher: &mut Publisher,
    seqs: Range<u32>,
    told: &AtomicU64,
    crowd: &Crowd,
) -> Result<(), Error> {
    // Nobody asks how long they took.
    let sent = Sent::new(Clock::default(), 0);
    for first in seqs.step_by(TRANSACTION as usize) {
        let mut came = (crowd.delivered(), Instant::now());
        while told.load(Ordering::Relaxed) > crowd.delivered() + AHEAD_MAX {
            let delivered = crowd.delivered();
            if delivered > came.0 {
                came = (delivered, Instant::now());
            } else if came.1.elapsed() > QUIET {
                return Err(Error::failed(format!(
                    "a client waits for events, and received {delivered} of {} and no more for {QUIET:?}",
                    told.load(Ordering::Relaxed)
                )));
            }
            sleep(LOOK).await;
        }
        publisher.burst(Topics::One(SHARED), first..first + TRANSACTION, &sent).await?;
        told.fetch_add(TRANSACTION.into(), Ordering::Relaxed);
    }
    Ok(())
}

async fn number(session: &Session, doing: &str, sql: &str) -> Result<f64, Error> {
    let row = session.query_one(sql, &[]).await.map_err(Error::sql(doing))?;
    Ok(row.get::<_, i64>(0) as f64)
}

/// With indexes.
async fn size(session: &Session) -> Result<f64, Error> {
    let sql = format!("select sum(pg_total_relation_size(relid))::int8 from {TABLES}");
    number(session, "ask for the size of the outbox", &sql).await
}

/// Waits until no event is left.
async fn emptied(session: &Session) -> Result<(), Error> {
    let gone = async {
        let mut look = interval(LOOK_AT_TABLES);
        loop {
            look.tick().await;
            let sql = "select exists (select from walcast.outbox)::int::int8";
            if number(session, "look whether the outbox is empty", sql).await? == 0.0 {
                return Ok(());
            }
        }
    };
    timeout(PATIENCE, gone).await.unwrap_or_else(|_| {
        Err(Error::failed(format!("the broker has not let go of all events after {PATIENCE:?}")))
    })
}

/// As the server's statistics have it, once they know that the events are gone: sessions tell them now and then.
async fn known_dead(session: &Session) -> Result<f64, Error> {
    let sum = |what: &str| {
        format!(
            "select coalesce(sum({what}), 0)::int8 from {TABLES} join pg_stat_all_tables as s using (relid)"
        )
    };
    let known = async {
        let mut look = interval(LOOK_AT_TABLES);
        loop {
            look.tick().await;
            let anew = session.batch_execute("select pg_stat_clear_snapshot()").await;
            anew.map_err(Error::sql("read statistics anew"))?;
            let sql = sum("s.n_live_tup") + " where s.relname like 'outbox%'";
            if number(session, "ask for statistics", &sql).await? == 0.0 {
                return Ok::<_, Error>(());
            }
        }
    };
    // Statistics may be lost on the way; what they say is then said all the same.
    timeout(STATISTICS, known).await.unwrap_or(Ok(()))?;
    number(session, "ask for statistics", &sum("s.n_dead_tup")).await
}

/// As they lie in the tables; `None` where the server cannot count them, or the role may not.
async fn counted_dead(session: &Session) -> Option<f64> {
    session.batch_execute("create extension pgstattuple with schema public").await.ok()?;
    let sql = format!("select sum(f.dead_tuple_count)::int8 from {TABLES}, public.pgstattuple(relid) as f");
    let counted = number(session, "count dead rows", &sql).await;
    // Else it goes with the database.
    let _ = session.batch_execute("drop extension pgstattuple").await;
    counted.ok()
}
