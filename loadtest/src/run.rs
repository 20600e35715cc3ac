//! Plays scenarios one after the other and collects what they found.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Error;
use crate::lab::{self, Lab, nginx, redis};
use crate::report::{Report, Scenario, System, Transport};
use crate::scenario::{self, Plan};

/// A scenario, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// What.
    pub scenario: Scenario,
    /// How much.
    pub plan: Plan,
}

impl Job {
    /// As it is played unless arguments say otherwise.
    #[must_use]
    pub fn usual(scenario: Scenario) -> Self {
        let clients = match scenario {
            Scenario::Idle | Scenario::Storm | Scenario::Arrive => vec![10_000],
            Scenario::Wake => vec![100, 10_000],
            Scenario::Fanout | Scenario::Slow | Scenario::Churn => vec![1_000],
            Scenario::Commit => vec![32, 64],
            Scenario::Sources => vec![1, 8, 32, 64],
            Scenario::Ingest | Scenario::Stall => vec![1],
        };
        let plan = Plan {
            clients,
            transports: Transport::ALL.to_vec(),
            peers: vec![System::Listen, System::Redis, System::Nchan],
            seconds: 10,
            quick: false,
        };
        Self { scenario, plan }
    }

    /// How waiting grows with the number of clients, walcast alone: about 3 minutes.
    #[must_use]
    pub fn growth() -> Vec<Self> {
        let job = |scenario, transport| {
            let mut job = Self::usual(scenario);
            (job.plan.clients, job.plan.seconds) = (vec![100, 1_000, 5_000, 15_000], 4);
            (job.plan.transports, job.plan.peers) = (vec![transport], Vec::new());
            job
        };
        vec![job(Scenario::Idle, Transport::Poll), job(Scenario::Wake, Transport::Ws)]
    }

    /// The set of `make bench`: 7 to 8 minutes. Without `sources`, which alone takes as long.
    #[must_use]
    pub fn bench() -> Vec<Self> {
        let job = |scenario, seconds, transports: &[Transport]| {
            let mut job = Self::usual(scenario);
            (job.plan.seconds, job.plan.transports) = (seconds, transports.to_vec());
            job
        };
        let (all, ws) = (&Transport::ALL, &[Transport::Ws]);
        let mut jobs = vec![
            job(Scenario::Idle, 5, all),
            job(Scenario::Wake, 4, ws),
            job(Scenario::Storm, 5, ws),
            job(Scenario::Fanout, 5, ws),
            job(Scenario::Arrive, 5, all),
            job(Scenario::Commit, 2, ws),
            job(Scenario::Ingest, 5, ws),
            job(Scenario::Slow, 2, ws),
            job(Scenario::Stall, 5, ws),
            job(Scenario::Churn, 4, ws),
        ];
        for job in &mut jobs {
            if !matches!(job.scenario, Scenario::Wake | Scenario::Commit) {
                // A few hundred sessions at most: it is shown where it can be compared.
                job.plan.peers.retain(|peer| *peer != System::Listen);
            }
        }
        jobs
    }
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Options {
    /// In this order.
    pub jobs: Vec<Job>,
    /// How often all of it.
    pub rounds: u32,
    /// A peer that is not installed is an error, not a note.
    pub peers_asked: bool,
    /// What a reader must know of how this was asked for.
    pub notes: Vec<String>,
    /// Where.
    pub lab: lab::Options,
}

/// Plays all of it, until the end or `stop`. What was found before something failed comes with the failure.
pub async fn run(options: &Options, stop: impl Future<Output = ()>) -> (Report, Result<(), Error>) {
    let now = OffsetDateTime::now_utc();
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started: now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default(),
        ..Report::default()
    };
    let mut lab = match Lab::new(options.lab.clone()) {
        Ok(lab) => lab,
        Err(error) => return (report, Err(error)),
    };
    if let Some(url) = &options.lab.database_url {
        // Also for whoever has to clear up by hand, should we be killed.
        let (place, name) = (lab::postgres::place(url), lab.name());
        let _ = writeln!(
            std::io::stderr(),
            "walcast-loadtest: plays on the server at {place}, in a database {name} and with slots whose names begin \
             with that; removes them at the end"
        );
    }
    options.notes.iter().for_each(|note| lab.note(note.as_str()));
    let played = tokio::select! {
        played = play(options, &mut lab, &mut report) => played,
        () = stop => Err(Error::failed("interrupted; what was measured until then is in the report")),
    };
    report.notes.extend_from_slice(lab.notes());
    let ended = lab.end().await;
    (report, both(played, ended))
}

/// What failed, be it both.
fn both(played: Result<(), Error>, ended: Result<(), Error>) -> Result<(), Error> {
    match (played, ended) {
        (Err(played), Err(ended)) => {
            Err(Error { message: format!("{}; and {}", played.message, ended.message), ..played })
        }
        (played, ended) => played.and(ended),
    }
}

async fn play(options: &Options, lab: &mut Lab, report: &mut Report) -> Result<(), Error> {
    let jobs = with_peers(options, lab)?;
    let postgres = lab.postgres().await?;
    let version = postgres.version().await?;
    report.machine = lab::machine::describe(lab.binary(), Some(&version));
    if let Some(version) = report.machine.versions.remove("walcast") {
        report.version = version;
    }
    if options.lab.database_url.is_some() {
        lab.note("Postgres was there: its memory and CPU are not measured");
    }
    lab.note(format!("{} clients are possible here (limit of open files)", lab.clients_max()));
    let total = jobs.len() as u64 * u64::from(options.rounds);
    let progress = progress(total);
    lab.show(progress.clone());
    for _ in 0..options.rounds {
        for Job { scenario, plan } in &jobs {
            progress.set_prefix(scenario.name());
            progress.set_message("");
            report.runs.extend(scenario::play(*scenario, lab, plan).await?);
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    Ok(())
}

/// The jobs without peers that are not installed.
fn with_peers(options: &Options, lab: &mut Lab) -> Result<Vec<Job>, Error> {
    let mut jobs = options.jobs.clone();
    for (peer, missing) in [(System::Redis, redis::missing()), (System::Nchan, nginx::missing())] {
        let wanted = jobs.iter().any(|job| job.plan.peers.contains(&peer));
        let Some(error) = missing.filter(|_| wanted) else { continue };
        if options.peers_asked {
            return Err(error);
        }
        lab.note(format!("without {peer}: {error}"));
        jobs.iter_mut().for_each(|job| job.plan.peers.retain(|other| *other != peer));
    }
    Ok(jobs)
}

fn progress(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let progress = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos}/{len} [{bar:24}] {prefix:.bold} {msg}") {
        progress.set_style(style);
    }
    progress.enable_steady_tick(Duration::from_millis(100));
    progress
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_removed_is_told_beside_why_it_ended() {
        let failed = |message: &str| Err(Error::failed(message));
        let check = |played, ended, expected: Option<&str>| {
            assert_eq!(both(played, ended).err().map(|error| error.message).as_deref(), expected);
        };
        check(Ok(()), Ok(()), None);
        check(failed("a"), Ok(()), Some("a"));
        check(Ok(()), failed("b"), Some("b"));
        check(failed("a"), failed("b"), Some("a; and b"));
    }
}
