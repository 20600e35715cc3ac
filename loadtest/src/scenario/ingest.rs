//! How fast the log becomes events: rows written while no broker runs, then taken in by one that starts, beside
//! `pg_recvlogical` to /dev/null from a slot of the same place. Both read the same log, round by round.
//!
//! One clock for both: from when the server streams to them until they have the last row. What they do before is
//! no ingest. Afterwards a client reads all that the broker holds, and every row must be there, in order.

use std::time::{Duration, Instant};

use tokio::time::{interval, timeout};
use walcast::postgres::Session;

use super::{Draft, Plan};
use crate::Error;
use crate::client::{Crowd, Manner, Received, Target};
use crate::lab::{Broker, Lab, Postgres, Settings, usage};
use crate::latency::Clock;
use crate::report::figure;
use crate::report::{Checks, Run, Scenario, System, Transport};
use crate::verify::{self, Receipt};

mod peer;

const DDL: &str = "drop table if exists public.loadtest_ingest;
    create table public.loadtest_ingest (seq bigint primary key, shard int not null, payload text not null)";
const RULES: &str = "[[table]]\nname = 'public.loadtest_ingest'\ntopic = 'ingest/{shard}'\n";
/// What whoever reads all of them asks for.
const ALL: &str = "ingest/*";
/// Rows of one transaction, each of a topic of its own.
const TRANSACTION: u32 = 100;
/// Keeps all rows in memory, so that they can be read back.
const HISTORY_BYTES: u64 = 2 << 30;
/// How often it is looked how far a reader is.
const LOOK: Duration = Duration::from_millis(10);
/// How long one reading may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long nothing may come to the client that reads all.
const QUIET: Duration = Duration::from_secs(10);

/// Plays it; numbers of clients and transports do not count.
///
/// # Errors
/// The server went away, or the log is not read to its end.
pub async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    let rows = plan.amount(20_000, 1_000_000);
    let rounds = plan.amount(1, (plan.seconds / 2).clamp(1, 10));
    let settings = Settings {
        ddl: DDL.to_owned(),
        rules: RULES.to_owned(),
        history_bytes: Some(HISTORY_BYTES),
        ..Settings::clients(10)
    };
    // Makes the slot and the publication; the log is kept from here on.
    lab.broker(&settings).await?;
    lab.stop_broker().await;
    let postgres = lab.postgres().await?;
    let slot = format!("{}_peer", postgres.name());
    let session = postgres.session().await?;
    make_slot(&session, &slot).await?;
    let work = async {
        lab.doing("rows are written");
        let log = Log::write(&session, rows).await?;
        let mut runs = Vec::new();
        for _ in 0..rounds {
            lab.doing("pg_recvlogical reads them");
            runs.extend(peer::play(&postgres, &session, &slot, &log).await?);
            lab.doing("the broker reads them");
            runs.push(ours(lab, &settings, &postgres, &session, &log).await?);
        }
        Ok(runs)
    };
    let runs: Result<_, Error> = work.await;
    let dropped = drop_slot(&session, &slot).await;
    session.close().await;
    let runs = runs?;
    dropped?;
    Ok(runs)
}

/// Rows in the log.
struct Log {
    rows: u32,
    /// Where they end.
    to: u64,
}

impl Log {
    async fn write(session: &Session, rows: u32) -> Result<Self, Error> {
        let sql = format!(
            "set synchronous_commit = off;
             do $$ begin
                 for i in 0 .. {last} loop
                     insert into public.loadtest_ingest select i * {TRANSACTION} + n, n, repeat('x', 80)
                         from generate_series(0, {TRANSACTION} - 1) n;
                     commit;
                 end loop;
             end $$;
             set synchronous_commit = on",
            last = rows / TRANSACTION - 1
        );
        // One by one: a block that commits must not be part of a larger transaction.
        for statement in sql.split_inclusive("$$;").flat_map(|part| part.split_inclusive("off;")) {
            session.batch_execute(statement).await.map_err(Error::sql("write rows"))?;
        }
        let row = session.query_one("select (pg_current_wal_insert_lsn() - '0/0')::int8", &[]).await;
        let to = row.map_err(Error::sql("ask for the log's end"))?.get::<_, i64>(0);
        // So that the log goes on behind them.
        let end = session.batch_execute("select walcast.publish('end', '{}')").await;
        end.map_err(Error::sql("write rows"))?;
        Ok(Self { rows, to: u64::try_from(to).unwrap_or(0) })
    }

    /// Rows a second, if all were read in this time.
    fn speed(&self, since: Instant, until: Instant) -> f64 {
        f64::from(self.rows) / until.saturating_duration_since(since).as_secs_f64()
    }
}

async fn make_slot(session: &Session, slot: &str) -> Result<(), Error> {
    let made = session.execute("select pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await;
    made.map(|_| ()).map_err(Error::sql("make a slot for pg_recvlogical"))
}

async fn drop_slot(session: &Session, slot: &str) -> Result<(), Error> {
    let done = session.execute("select pg_drop_replication_slot($1)", &[&slot]).await;
    done.map(|_| ()).map_err(Error::sql(&format!("cannot drop the slot {slot}; drop it by hand")))
}

/// A broker that starts below the rows.
async fn ours(
    lab: &Lab,
    settings: &Settings,
    postgres: &Postgres,
    session: &Session,
    log: &Log,
) -> Result<Run, Error> {
    let mut draft = Draft::new(Scenario::Ingest, System::Walcast, None, 1);
    let broker = Broker::resume(lab.binary(), postgres, settings)?;
    let slot = format!("{}_live", postgres.name());
    let reading = async {
        let mut tick = interval(LOOK);
        let streaming = loop {
            tick.tick().await;
            broker.check()?;
            if let Some(streaming) = walsender(session, &slot).await? {
                break streaming;
            }
        };
        loop {
            tick.tick().await;
            // It may not answer yet; if it never does, patience ends.
            if broker.head_lsn().await.is_ok_and(|head| head >= log.to) {
                return Ok::<_, Error>((streaming, Instant::now()));
            }
        }
    };
    let late = || Error::failed(format!("the broker has not read the log to its end after {PATIENCE:?}"));
    let ((since, walsender), until) = timeout(PATIENCE, reading).await.map_err(|_| late())??;
    draft.figure(figure::CHANGES_PER_SECOND, log.speed(since, until));
    draft.figure(figure::CONSUMER_CPU_SECONDS, broker.cpu().as_secs_f64());
    if postgres.pid().is_some() {
        draft.figure(figure::WALSENDER_CPU_SECONDS, usage::cpu(walsender).as_secs_f64());
    }
    draft.figure(figure::MEMORY_BYTES, broker.memory_bytes() as f64);
    let received = all(&broker, log.rows).await?;
    draft.checks(judge(&received, log.rows));
    draft.fault(&received);
    Ok(draft.end(None))
}

/// The process that streams from the slot, and when it was first seen to.
async fn walsender(session: &Session, slot: &str) -> Result<Option<(Instant, u32)>, Error> {
    // Other sessions hold a slot, too, while they make or copy it.
    let sql =
        "select s.active_pid from pg_replication_slots s join pg_stat_replication r on r.pid = s.active_pid
               where s.slot_name = $1";
    let row = session.query_opt(sql, &[&slot]).await.map_err(Error::sql("look for the walsender"))?;
    let pid = row.and_then(|row| u32::try_from(row.get::<_, i32>(0)).ok());
    Ok(pid.map(|pid| (Instant::now(), pid)))
}

/// What one client receives that reads everything there is.
async fn all(broker: &Broker, rows: u32) -> Result<Received, Error> {
    let target = Target::Walcast(broker.http(), Transport::Ws);
    let manner = Manner { after: Some("earliest".to_owned()), ..Manner::default() };
    let crowd = Crowd::start(&target, &manner, Clock::default(), 1, |_| ALL.to_owned());
    crowd.all_ready(QUIET).await?;
    crowd.until_delivered(u64::from(rows), QUIET).await;
    Ok(crowd.finish().await)
}

/// Every row once, and those of each topic in order.
fn judge(received: &Received, rows: u32) -> Checks {
    let mut topics = vec![Vec::<Receipt>::new(); TRANSACTION as usize];
    for receipt in received.inboxes.iter().flat_map(|inbox| &inbox.receipts) {
        topics[(receipt.seq % TRANSACTION) as usize].push(*receipt);
    }
    let each = (0..).zip(&topics);
    each.fold(received.clients(), |checks, (first, receipts)| {
        checks.and(verify::client(receipts, (first..rows).step_by(TRANSACTION as usize)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Inbox;

    #[test]
    fn one_lost_row_shows() {
        let received = |seqs: &[u32]| {
            let receipts = seqs.iter().map(|seq| Receipt { seq: *seq, at_us: 0 }).collect();
            Received { inboxes: vec![Inbox { receipts, ..Inbox::default() }], ..Received::default() }
        };
        // Topics may overtake each other; within one they may not.
        let mut seqs: Vec<u32> = (0..300).collect();
        seqs.swap(7, 8);
        assert!(judge(&received(&seqs), 300).held());
        seqs.swap(10, 110);
        assert_eq!(judge(&received(&seqs), 300).disordered, 1);
        seqs.swap(10, 110);
        seqs.remove(299);
        let checks = judge(&received(&seqs), 300);
        assert_eq!((checks.lost, checks.delivered, checks.expected), (1, 299, 300));
    }
}
