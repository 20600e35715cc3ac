//! What is played. A scenario takes a lab and a plan, and answers runs.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::Error;
use crate::client::Received;
use crate::lab::{Lab, Stand};
use crate::report::{Checks, Latency, Run, Scenario, System, Transport};

pub mod arrive;
pub mod churn;
pub mod commit;
pub mod fanout;
pub mod idle;
pub mod ingest;
pub mod slow;
pub mod sources;
pub mod stall;
mod steady;
pub mod storm;
pub mod wake;

/// How much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Numbers of clients, each a run of its own.
    pub clients: Vec<u64>,
    /// How walcast's clients wait, each a run of its own.
    pub transports: Vec<Transport>,
    /// What to play beside walcast.
    pub peers: Vec<System>,
    /// How long a measurement lasts, where its length is free.
    pub seconds: u64,
    /// As short as it can be and still run: for tests, and to try it out. Its figures mean little.
    pub quick: bool,
}

impl Plan {
    /// `quick` where that is asked for, else `full`.
    #[must_use]
    pub fn amount<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Everything that waiting clients are played against: walcast's transports, then the peers.
    fn systems(&self) -> Vec<(System, Option<Transport>)> {
        let ours = self.transports.iter().map(|transport| (System::Walcast, Some(*transport)));
        let ws = self.transports.contains(&Transport::Ws);
        let way = if ws { Transport::Ws } else { Transport::Sse };
        let peers = self.peers.iter().filter_map(|peer| match peer {
            System::Nchan => Some((*peer, Some(way))),
            System::Listen | System::Redis => Some((*peer, None)),
            System::Walcast | System::Recvlogical | System::Postgres => None,
        });
        ours.chain(peers).collect()
    }

    /// Which runs there are: for each number of clients all systems side by side, so that they meet the
    /// machine in the same mood. Numbers that a system cannot hold are cut down, and told.
    async fn runs(&self, lab: &mut Lab) -> Result<Vec<(System, Option<Transport>, usize)>, Error> {
        let mut runs = Vec::new();
        for clients in &self.clients {
            for (system, transport) in self.systems() {
                let clients = lab.clients_for(system, *clients).await?;
                let run = (system, transport, clients);
                if !runs.contains(&run) {
                    runs.push(run);
                }
            }
        }
        Ok(runs)
    }
}

/// Plays each system with each number of clients by `one`. A peer that failed is a note: the rest is worth its time.
async fn each(
    lab: &mut Lab,
    plan: &Plan,
    scenario: Scenario,
    one: impl AsyncFn(&mut Lab, System, Option<Transport>, usize) -> Result<Vec<Run>, Error>,
) -> Result<Vec<Run>, Error> {
    let mut runs = Vec::new();
    for (system, transport, clients) in plan.runs(lab).await? {
        match one(lab, system, transport, clients).await {
            Ok(played) => runs.extend(played),
            Err(error) if system == System::Walcast => return Err(error),
            Err(error) => lab.note(format!("{scenario}: {system} failed: {error}")),
        }
    }
    Ok(runs)
}

/// The topic of a client that has one of its own.
fn own_topic(client: usize) -> String {
    format!("{OWN}{client}")
}

/// What the topics of clients with one of their own begin with.
const OWN: &str = "lt/";
/// The topic of all, where they share one.
const SHARED: &str = "lt/all";

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A run being made.
#[derive(Debug)]
pub struct Draft {
    run: Run,
    began: Instant,
}

impl Draft {
    /// Begins now.
    #[must_use]
    pub fn new(scenario: Scenario, system: System, transport: Option<Transport>, clients: usize) -> Self {
        let run = Run {
            scenario,
            system,
            transport,
            clients: clients as u64,
            label: None,
            figures: BTreeMap::new(),
            latency: None,
            checks: Checks::default(),
            fault: None,
            seconds: 0.0,
        };
        Self { run, began: Instant::now() }
    }

    /// Begins now, with clients of a stand.
    #[must_use]
    pub fn at(scenario: Scenario, stand: &Stand, clients: usize) -> Self {
        Self::new(scenario, stand.system(), stand.transport(), clients)
    }

    /// Tells it from others.
    #[must_use]
    pub fn label(mut self, label: &str) -> Self {
        self.run.label = Some(label.to_owned());
        self
    }

    /// Adds a figure, from [`report::figure`](crate::report::figure).
    pub fn figure(&mut self, name: &str, value: f64) {
        self.run.figures.insert(name.to_owned(), value);
    }

    /// Judges what clients received; `due` is what each must have, by its number. Which of them failed counts.
    pub fn judge<I: IntoIterator<Item = u32>>(
        &mut self,
        received: &Received,
        due: impl Fn(usize) -> I,
    ) -> Checks {
        self.checks(received.judge(due));
        self.fault(received);
        self.run.checks
    }

    /// Takes down why the first of these clients that failed did.
    pub fn fault(&mut self, received: &Received) {
        self.run.fault = self.run.fault.take().or_else(|| received.fault.clone());
    }

    /// Adds what was checked.
    pub fn checks(&mut self, checks: Checks) {
        self.run.checks = self.run.checks.and(checks);
    }

    /// Ends now.
    #[must_use]
    pub fn end(mut self, latency: Option<Latency>) -> Run {
        self.run.latency = latency;
        self.run.seconds = self.began.elapsed().as_secs_f64();
        self.run
    }
}

/// Plays one scenario.
///
/// # Errors
/// Something that it needs is missing, or failed.
pub async fn play(scenario: Scenario, lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    match scenario {
        Scenario::Idle => idle::play(lab, plan).await,
        Scenario::Wake => wake::play(lab, plan).await,
        Scenario::Storm => storm::play(lab, plan).await,
        Scenario::Fanout => fanout::play(lab, plan).await,
        Scenario::Arrive => arrive::play(lab, plan).await,
        Scenario::Commit => commit::play(lab, plan).await,
        Scenario::Sources => sources::play(lab, plan).await,
        Scenario::Ingest => ingest::play(lab, plan).await,
        Scenario::Slow => slow::play(lab, plan).await,
        Scenario::Stall => stall::play(lab, plan).await,
        Scenario::Churn => churn::play(lab, plan).await,
    }
}
