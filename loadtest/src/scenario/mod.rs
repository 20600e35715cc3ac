//! What is played. A scenario takes a lab and a plan, and answers runs.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::Error;
use crate::lab::{Lab, Stand};
use crate::report::{Checks, Latency, Run, Scenario, System, Transport};

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
    /// `quick` events where that is asked for, else `full`.
    #[must_use]
    pub fn events(&self, quick: u32, full: u32) -> u32 {
        if self.quick { quick } else { full }
    }
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
    pub fn new(scenario: Scenario, stand: &Stand, clients: u64) -> Self {
        let run = Run {
            scenario,
            system: stand.system(),
            transport: stand.transport(),
            clients,
            label: None,
            figures: BTreeMap::new(),
            latency: None,
            checks: Checks::default(),
            seconds: 0.0,
        };
        Self { run, began: Instant::now() }
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

    /// Ends now.
    #[must_use]
    pub fn end(mut self, checks: Checks, latency: Option<Latency>) -> Run {
        self.run.checks = checks;
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
    let _ = (lab, plan);
    Err(Error::usage(format!("{scenario} is not there yet")))
}
