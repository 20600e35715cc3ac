//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::Error;
use crate::lab;
use crate::report::{Scenario, System, Transport};
use crate::run::{Job, Options};
use crate::scenario::Plan;

/// `walcast-loadtest …`
#[derive(Clone, Debug, Parser)]
#[command(
    name = "walcast-loadtest",
    version,
    about = "Proves walcast on a database of your own: figures, and that nothing is lost",
    after_help = "Examples:
  walcast-loadtest list                                    # what can be played
  walcast-loadtest wake --clients 100,10000 --peer listen
  walcast-loadtest idle fanout --transport ws --json figures.json --html figures.html
  walcast-loadtest storm --database-url postgres://me@db.example/postgres
  walcast-loadtest bench                                   # the set of `make bench`, 7 to 8 minutes
  walcast-loadtest sources --html sources.html             # the write-ahead log beside the outbox, some 8 minutes
  walcast-loadtest bench growth --html figures.html        # and how waiting grows to 15,000 clients
  walcast-loadtest report --add a.json,b.json --html figures.html

All load goes to this machine, except to the database that you name: there it makes a database of its own, a
slot and a publication, and removes them at the end.

Exit codes: 0 all held, 1 events were lost, repeated or out of order (with --check also: a figure was missed),
64 wrong arguments, 69 something needed is not there."
)]
pub struct Args {
    /// Scenarios, `bench` for the set of `make bench`, `growth` for more and more clients, `list`, or `report` to
    /// play nothing and show what `--add` names
    #[arg(required = true, value_name = "SCENARIO")]
    pub scenarios: Vec<String>,
    /// Numbers of clients, each a run of its own: of writers for `commit` and `sources`, of stalled readers for `slow`;
    /// of no meaning for `ingest` and `stall`
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub clients: Vec<u64>,
    /// How walcast's clients wait; of no meaning for `commit`, `sources` and `ingest`
    #[arg(long, value_name = "T,…", value_delimiter = ',')]
    pub transport: Vec<TransportArg>,
    /// What to play beside walcast; without it all that are installed. `commit` and `sources` know `listen` alone, `ingest` has
    /// a peer of its own, `slow`, `stall` and `churn` have none
    #[arg(long, value_name = "P,…", value_delimiter = ',')]
    pub peer: Vec<PeerArg>,
    /// How long a measurement lasts, where its length is free
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: Option<u64>,
    /// Play everything so many times; the middle counts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub rounds: u32,
    /// As short as it can be; the figures mean little
    #[arg(long)]
    pub quick: bool,
    /// Fail where a figure is missed, too, unless it was only hoped for
    #[arg(long)]
    pub check: bool,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML page with plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the report as Markdown, with its plots in a directory beside it
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Show the runs of these JSON reports too
    #[arg(long, value_name = "FILE,…", value_delimiter = ',')]
    pub add: Vec<PathBuf>,
    /// A Postgres to use instead of a throwaway one; the role needs CREATEDB and REPLICATION. LISTEN clients speak no
    /// TLS: where the server wants it, leave them out by `--peer`
    #[arg(long, value_name = "URL", env = "WALCAST_DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// The broker's program; without it `walcast` beside this one
    #[arg(long, value_name = "BIN")]
    pub broker: Option<PathBuf>,
}

/// How walcast's clients wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TransportArg {
    /// Long-poll.
    Poll,
    /// Server-sent events.
    Sse,
    /// WebSocket.
    Ws,
}

/// What is played beside walcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PeerArg {
    /// LISTEN/NOTIFY on the same Postgres.
    Listen,
    /// Redis publish/subscribe.
    Redis,
    /// nginx with nchan.
    Nchan,
    /// Nothing.
    None,
}

impl From<TransportArg> for Transport {
    fn from(transport: TransportArg) -> Self {
        match transport {
            TransportArg::Poll => Self::Poll,
            TransportArg::Sse => Self::Sse,
            TransportArg::Ws => Self::Ws,
        }
    }
}

impl PeerArg {
    fn system(self) -> Option<System> {
        match self {
            Self::Listen => Some(System::Listen),
            Self::Redis => Some(System::Redis),
            Self::Nchan => Some(System::Nchan),
            Self::None => None,
        }
    }
}

impl Args {
    /// Whether only a list of scenarios is wanted.
    #[must_use]
    pub fn list(&self) -> bool {
        self.scenarios.iter().any(|name| name == "list")
    }

    /// What is to be run.
    ///
    /// # Errors
    /// There is no such scenario, or nothing to play and nothing to show.
    pub fn options(&self) -> Result<Options, Error> {
        let mut jobs = Vec::new();
        for name in &self.scenarios {
            if name == "report" {
                continue;
            }
            if name == "bench" {
                jobs.extend(Job::bench());
                continue;
            }
            if name == "growth" {
                jobs.extend(Job::growth());
                continue;
            }
            let scenario = Scenario::ALL.into_iter().find(|scenario| scenario.name() == name);
            let scenario = scenario.ok_or_else(|| {
                let all: Vec<&str> = Scenario::ALL.iter().map(|scenario| scenario.name()).collect();
                Error::usage(format!(
                    "no scenario `{name}`; there are: {}, bench, growth, list and report",
                    all.join(", ")
                ))
            })?;
            jobs.push(Job::usual(scenario));
        }
        if jobs.is_empty() && self.add.is_empty() {
            return Err(Error::usage(
                "`report` shows what `--add` names: give it JSON reports of earlier runs",
            ));
        }
        let notes = self.ignored(&jobs);
        for Job { plan, .. } in &mut jobs {
            self.change(plan);
        }
        let lab = lab::Options {
            database_url: self.database_url.clone(),
            broker: self.broker.clone(),
            fsync: true,
        };
        Ok(Options { jobs, rounds: self.rounds, peers_asked: !self.peer.is_empty(), notes, lab })
    }

    /// What was asked for that some of the jobs have no use for.
    fn ignored(&self, jobs: &[Job]) -> Vec<String> {
        use Scenario::{Churn, Commit, Ingest, Slow, Sources, Stall};
        let options: [(&str, bool, &[Scenario]); 3] = [
            ("--clients", !self.clients.is_empty(), &[Ingest, Stall]),
            ("--transport", !self.transport.is_empty(), &[Commit, Sources, Ingest]),
            ("--peer", !self.peer.is_empty(), &[Ingest, Slow, Stall, Churn]),
        ];
        let mut notes = Vec::new();
        for (option, given, useless) in options {
            for scenario in
                useless.iter().filter(|scenario| given && jobs.iter().any(|job| job.scenario == **scenario))
            {
                notes.push(format!("{scenario}: {option} has no meaning here"));
            }
        }
        notes
    }

    fn change(&self, plan: &mut Plan) {
        if !self.clients.is_empty() {
            plan.clients.clone_from(&self.clients);
        }
        if !self.transport.is_empty() {
            plan.transports = self.transport.iter().map(|transport| Transport::from(*transport)).collect();
        }
        if !self.peer.is_empty() {
            plan.peers = self.peer.iter().filter_map(|peer| peer.system()).collect();
        }
        plan.seconds = self.seconds.unwrap_or(plan.seconds);
        plan.quick |= self.quick;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options, Error> {
        let words = std::iter::once("walcast-loadtest").chain(line.split_whitespace());
        Args::try_parse_from(words).unwrap().options()
    }

    #[test]
    fn arguments_change_the_usual_plan() {
        let options = options("wake storm --clients 7,9 --transport ws --peer none --quick").unwrap();
        let scenarios: Vec<_> = options.jobs.iter().map(|job| job.scenario).collect();
        assert_eq!(scenarios, [Scenario::Wake, Scenario::Storm]);
        for Job { plan, .. } in &options.jobs {
            assert_eq!((&plan.clients[..], &plan.transports[..]), (&[7, 9][..], &[Transport::Ws][..]));
            assert!(plan.quick && plan.peers.is_empty());
        }
        assert!(options.peers_asked);
    }

    #[test]
    fn what_has_no_meaning_is_told() {
        let told = |line| options(line).unwrap().notes.join("; ");
        assert_eq!(told("wake --clients 7 --peer none"), "");
        assert_eq!(told("slow wake --peer listen"), "slow: --peer has no meaning here");
        assert_eq!(told("ingest --clients 7 --transport ws").matches("ingest:").count(), 2);
    }

    #[test]
    fn a_report_of_nothing_is_refused() {
        let error = options("report").unwrap_err();
        assert!(error.exit_code() == 64 && error.message.contains("--add"), "{error}");
        assert!(options("report --add a.json").unwrap().jobs.is_empty());
    }

    #[test]
    fn sets_are_sets_of_jobs() {
        let jobs = options("bench growth").unwrap().jobs;
        for scenario in Scenario::ALL {
            // It takes as long as all the others.
            let expected = scenario != Scenario::Sources;
            assert_eq!(jobs.iter().any(|job| job.scenario == scenario), expected, "{scenario}");
        }
        assert!(jobs.iter().any(|job| job.plan.clients.contains(&15_000)));
    }

    #[test]
    fn an_unknown_scenario_is_named() {
        let error = options("wake sleep").unwrap_err();
        assert_eq!(error.exit_code(), 64);
        assert!(error.message.contains("`sleep`") && error.message.contains("fanout"), "{error}");
    }

    #[test]
    fn the_command_line_is_sound() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }
}
