//! How fast the log becomes events: rows written while no broker runs, then taken in by one that starts, beside
//! `pg_recvlogical` to /dev/null from a slot of the same place. Both read the same log, round by round.
//!
//! The broker is timed from the first rows that it holds, for what it does before is no ingest.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::time::{interval, timeout};
use tokio_postgres::config::Host;
use walcast::postgres::Session;

use super::{Draft, Plan};
use crate::Error;
use crate::lab::{Broker, Lab, Postgres, Settings, installed, usage};
use crate::report::figure;
use crate::report::{Checks, Run, Scenario, System};

const DDL: &str = "drop table if exists public.loadtest_ingest;
    create table public.loadtest_ingest (id bigint primary key, shard int not null, payload text not null)";
const RULES: &str = "[[table]]\nname = 'public.loadtest_ingest'\ntopic = 'ingest/{shard}'\n";
/// Rows of one transaction.
const TRANSACTION: u32 = 100;
/// Keeps all rows in memory, so that they can be counted.
const HISTORY_BYTES: u64 = 2 << 30;
/// How long one reading may take.
const PATIENCE: Duration = Duration::from_secs(300);

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
            runs.extend(peer(&postgres, &session, &slot, &log).await?);
            lab.doing("the broker reads them");
            runs.push(ours(lab, &settings, &postgres, &session, &log).await?);
        }
        Ok(runs)
    };
    let runs = work.await;
    drop_slot(&session, &slot).await?;
    session.close().await;
    runs
}

/// Rows in the log.
struct Log {
    rows: u32,
    /// Where they begin and end.
    from: u64,
    to: u64,
}

impl Log {
    async fn write(session: &Session, rows: u32) -> Result<Self, Error> {
        let from = position(session).await?;
        let sql = format!(
            "set synchronous_commit = off;
             do $$ begin
                 for i in 0 .. {last} loop
                     insert into public.loadtest_ingest
                         select i * {TRANSACTION} + n, n, repeat('x', 80) from generate_series(1, {TRANSACTION}) n;
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
        let to = position(session).await?;
        // So that the log goes on behind them.
        let end = session.batch_execute("select walcast.publish('ingest/end', '{}')").await;
        end.map_err(Error::sql("write rows"))?;
        Ok(Self { rows, from, to })
    }
}

async fn position(session: &Session) -> Result<u64, Error> {
    let row = session.query_one("select (pg_current_wal_insert_lsn() - '0/0')::int8", &[]).await;
    let position = row.map_err(Error::sql("ask for the log's end"))?.get::<_, i64>(0);
    Ok(u64::try_from(position).unwrap_or(0))
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
    let began = Instant::now();
    let reading = async {
        let mut tick = interval(Duration::from_millis(5));
        let mut first = (began, log.from);
        loop {
            tick.tick().await;
            // It does not answer yet; if it never does, patience ends.
            let Ok(head) = broker.head_lsn().await else { continue };
            let now = Instant::now();
            if head >= log.to {
                return (first, now);
            }
            if head > log.from && first.1 == log.from {
                first = (now, head);
            }
        }
    };
    let late = || Error::failed(format!("the broker has not read the log to its end after {PATIENCE:?}"));
    let ((since, at), until) = timeout(PATIENCE, reading).await.map_err(|_| late())?;
    let walsender = walsender(postgres, session, &format!("{}_live", postgres.name())).await?.map(usage::cpu);
    let share = (log.to - at) as f64 / (log.to - log.from) as f64;
    let speed = f64::from(log.rows) * share / until.duration_since(since).as_secs_f64();
    draft.figure(figure::CHANGES_PER_SECOND, speed);
    draft.figure(figure::CONSUMER_CPU_SECONDS, broker.cpu().as_secs_f64());
    if let Some(walsender) = walsender {
        draft.figure(figure::WALSENDER_CPU_SECONDS, walsender.as_secs_f64());
    }
    draft.figure(figure::MEMORY_BYTES, broker.memory_bytes() as f64);
    // The message behind the rows may be there or not; the metric follows within a second.
    let events = counted(&broker, log.rows).await? as u64;
    let rows = u64::from(log.rows);
    let checks = Checks {
        expected: rows,
        delivered: events.min(rows),
        lost: rows.saturating_sub(events),
        duplicates: events.saturating_sub(rows + 1),
        ..Checks::default()
    };
    draft.checks(checks);
    Ok(draft.end(None))
}

/// The events that the broker holds, once they are as many as they should be, or no longer become more.
async fn counted(broker: &Broker, rows: u32) -> Result<f64, Error> {
    let mut tick = interval(Duration::from_millis(50));
    let mut events = 0.0;
    for _ in 0..60 {
        tick.tick().await;
        events = broker.metric("walcast_history_events").await?;
        if events >= f64::from(rows) {
            break;
        }
    }
    Ok(events)
}

/// The process that streams from the slot, if there is one and the server is ours.
async fn walsender(postgres: &Postgres, session: &Session, slot: &str) -> Result<Option<u32>, Error> {
    if postgres.pid().is_none() {
        return Ok(None);
    }
    let sql = "select active_pid from pg_replication_slots where slot_name = $1 and active_pid is not null";
    let row = session.query_opt(sql, &[&slot]).await.map_err(Error::sql("look for the walsender"))?;
    Ok(row.and_then(|row| u32::try_from(row.get::<_, i32>(0)).ok()))
}

/// `pg_recvlogical` on a copy of the slot; `None` if it is not installed.
async fn peer(postgres: &Postgres, session: &Session, slot: &str, log: &Log) -> Result<Option<Run>, Error> {
    const PROGRAM: &str = "pg_recvlogical";
    let own = postgres.server().map(|server| server.bin_dir().join(PROGRAM)).filter(|path| path.exists());
    let program = match own {
        Some(path) => path,
        None if installed(PROGRAM) => PROGRAM.into(),
        None => return Ok(None),
    };
    let copy = format!("{slot}_copy");
    let made = session.execute("select pg_copy_logical_replication_slot($1, $2)", &[&slot, &copy]).await;
    made.map_err(Error::sql("copy the slot for pg_recvlogical"))?;
    let mut draft = Draft::new(Scenario::Ingest, System::Recvlogical, None, 1);
    let mut command = tokio::process::Command::new(program);
    connection(&mut command, postgres.url())?;
    command.args(["--slot", &copy, "--start", "--no-loop", "--file", "/dev/null"]);
    command.args(["--option", "proto_version=1", "--option", "messages=true"]);
    command.args(["--option", &format!("publication_names={}", postgres.name())]);
    command.args(["--endpos", &format!("{:X}/{:X}", log.to >> 32, log.to & 0xFFFF_FFFF)]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let began = Instant::now();
    let mut child = command.spawn().map_err(Error::of("cannot run pg_recvlogical"))?;
    let (pid, mut sender) = (child.id(), None);
    let (mut own_cpu, mut sender_cpu) = (Duration::ZERO, None);
    let mut tick = interval(Duration::from_millis(50));
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.map_err(Error::of("wait for pg_recvlogical"))?,
            _ = tick.tick() => {
                // Known only while they live.
                own_cpu = pid.map_or(own_cpu, usage::cpu).max(own_cpu);
                if sender.is_none() {
                    sender = walsender(postgres, session, &copy).await?;
                }
                sender_cpu = sender.map(usage::cpu).max(sender_cpu);
            }
        }
        if began.elapsed() > PATIENCE {
            return Err(Error::failed(format!("pg_recvlogical has not ended after {PATIENCE:?}")));
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    if !status.success() {
        let said = child.wait_with_output().await.map(|output| output.stderr).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        return Err(Error::failed(format!("pg_recvlogical failed: {said}")));
    }
    drop_slot(session, &copy).await?;
    draft.figure(figure::CHANGES_PER_SECOND, f64::from(log.rows) / seconds);
    draft.figure(figure::CONSUMER_CPU_SECONDS, own_cpu.as_secs_f64());
    if let Some(cpu) = sender_cpu {
        draft.figure(figure::WALSENDER_CPU_SECONDS, cpu.as_secs_f64());
    }
    Ok(Some(draft.end(None)))
}

/// Where to connect, as arguments; the password, which arguments would show to everybody, apart.
fn connection(command: &mut tokio::process::Command, url: &str) -> Result<(), Error> {
    let config: tokio_postgres::Config = url.parse().map_err(Error::of("read the connection string"))?;
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        Some(Host::Unix(dir)) => dir.display().to_string(),
        None => "localhost".to_owned(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    command.args(["--host", &host, "--port", &port.to_string()]);
    command.args(["--dbname", config.get_dbname().unwrap_or_default(), "--no-password"]);
    if let Some(user) = config.get_user() {
        command.args(["--username", user]);
    }
    if let Some(password) = config.get_password() {
        command.env("PGPASSWORD", String::from_utf8_lossy(password).as_ref());
    }
    Ok(())
}
