//! `pg_recvlogical` to /dev/null: as fast as a log can be read by one who does nothing with it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::time::interval;
use tokio_postgres::config::Host;
use walcast::postgres::Session;

use super::{Log, PATIENCE, drop_slot, walsender};
use crate::Error;
use crate::lab::{Postgres, installed, usage};
use crate::report::figure;
use crate::report::{Run, Scenario, System};
use crate::scenario::Draft;

const PROGRAM: &str = "pg_recvlogical";
/// How often it is looked after.
const LOOK: Duration = Duration::from_millis(10);
/// How often its CPU is, which is known only while it lives.
const LOOK_AT_CPU: Duration = Duration::from_millis(50);

/// Reads the log once, from a copy of the slot; `None` if it is not installed.
pub(super) async fn play(
    postgres: &Postgres,
    session: &Session,
    slot: &str,
    log: &Log,
) -> Result<Option<Run>, Error> {
    let Some(program) = program(postgres) else { return Ok(None) };
    let copy = format!("{slot}_copy");
    let made = session.execute("select pg_copy_logical_replication_slot($1, $2)", &[&slot, &copy]).await;
    made.map_err(Error::sql("copy the slot for pg_recvlogical"))?;
    let run = read(program, postgres, session, &copy, log).await;
    drop_slot(session, &copy).await?;
    run.map(Some)
}

fn program(postgres: &Postgres) -> Option<PathBuf> {
    let own = postgres.server().map(|server| server.bin_dir().join(PROGRAM)).filter(|path| path.exists());
    own.or_else(|| installed(PROGRAM).then(|| PROGRAM.into()))
}

async fn read(
    program: PathBuf,
    postgres: &Postgres,
    session: &Session,
    slot: &str,
    log: &Log,
) -> Result<Run, Error> {
    let mut draft = Draft::new(Scenario::Ingest, System::Recvlogical, None, 1);
    let mut command = tokio::process::Command::new(program);
    connection(&mut command, postgres.url(), &postgres.application_name())?;
    command.args(["--slot", slot, "--start", "--no-loop", "--file", "/dev/null"]);
    command.args(["--option", "proto_version=1", "--option", "messages=true"]);
    command.args(["--option", &format!("publication_names={}", postgres.name())]);
    command.args(["--endpos", &format!("{:X}/{:X}", log.to >> 32, log.to & 0xFFFF_FFFF)]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(Error::of("cannot run pg_recvlogical"))?;
    let (began, pid) = (Instant::now(), child.id());
    let mut streaming = None;
    let (mut own_cpu, mut sender_cpu) = (Duration::ZERO, None);
    let (mut tick, mut looked) = (interval(LOOK), began);
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.map_err(Error::of("wait for pg_recvlogical"))?,
            _ = tick.tick() => {}
        }
        if streaming.is_none() {
            streaming = walsender(session, slot).await?;
        }
        if looked.elapsed() > LOOK_AT_CPU {
            looked = Instant::now();
            own_cpu = pid.map_or(own_cpu, usage::cpu).max(own_cpu);
            let sender = streaming.filter(|_| postgres.pid().is_some());
            sender_cpu = sender.map(|(_, pid)| usage::cpu(pid)).max(sender_cpu);
        }
        if began.elapsed() > PATIENCE {
            return Err(Error::failed(format!("pg_recvlogical has not ended after {PATIENCE:?}")));
        }
    };
    let ended = Instant::now();
    if !status.success() {
        let said = child.wait_with_output().await.map(|output| output.stderr).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        return Err(Error::failed(format!("pg_recvlogical failed: {said}")));
    }
    // It may have been too quick to be seen.
    let since = streaming.map_or(began, |(since, _)| since);
    draft.figure(figure::CHANGES_PER_SECOND, log.speed(since, ended));
    draft.figure(figure::CONSUMER_CPU_SECONDS, own_cpu.as_secs_f64());
    if let Some(cpu) = sender_cpu {
        draft.figure(figure::WALSENDER_CPU_SECONDS, cpu.as_secs_f64());
    }
    Ok(draft.end(None))
}

/// Where to connect, as arguments; the password, which arguments would show to everybody, apart.
fn connection(command: &mut tokio::process::Command, url: &str, application_name: &str) -> Result<(), Error> {
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
    // So that its session is known as ours, should it be left.
    command.env("PGAPPNAME", application_name);
    Ok(())
}
