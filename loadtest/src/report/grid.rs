//! A report as tables of text: what the terminal, Markdown and HTML all show, each in its own way.
//!
//! Pure. Decides what is shown and beside what; must not know how it is drawn.

use super::summary::{QUANTILES, Summary};
use super::targets::{self, Verdict};
use super::unit::{self, count, significant};
use super::{Report, Scenario, System, Transport, figure};

/// How a cell is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As it stands.
    #[default]
    Plain,
    /// Good: a target was held.
    Good,
    /// Bad: a target was missed, or an event lost.
    Bad,
    /// Less important than the rest.
    Faint,
}

/// One cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// What it says.
    pub text: String,
    /// In a peer's row, how its figure compares with ours: `× 3.2`.
    pub ratio: Option<String>,
    /// How it is meant.
    pub tone: Tone,
}

/// A column's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// What it says.
    pub title: String,
    /// Numbers stand to the right.
    pub number: bool,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Its name; for the table of a scenario, the scenario's.
    pub title: String,
    /// What it shows, in a line.
    pub about: String,
    /// Heads.
    pub columns: Vec<Column>,
    /// As many cells in each as there are columns.
    pub rows: Vec<Vec<Cell>>,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, ..Self::default() }
    }
}

fn column(title: &str, number: bool) -> Column {
    Column { title: title.to_owned(), number }
}

/// The machine, and the versions of what took part.
#[must_use]
pub fn machine(report: &Report) -> Vec<(String, String)> {
    let machine = &report.machine;
    let mut facts = vec![
        ("walcast".to_owned(), report.version.clone()),
        ("started".to_owned(), report.started.clone()),
        (
            "processor".to_owned(),
            format!("{}, {} cores for servers and clients together", machine.cpu, machine.cores),
        ),
        ("memory".to_owned(), unit::show("memory_bytes", machine.memory_bytes as f64)),
        ("kernel".to_owned(), machine.kernel.clone()),
    ];
    facts.extend(machine.versions.iter().map(|(name, version)| (name.clone(), version.clone())));
    facts
}

/// The figures beside their targets; those that were not measured stand last.
#[must_use]
pub fn targets(summaries: &[Summary]) -> Grid {
    let mut outcomes = targets::judge(summaries);
    outcomes.sort_by_key(|outcome| outcome.verdict == Verdict::Unmeasured);
    let mut above = "";
    let rows = outcomes.into_iter().map(|outcome| {
        // Values of the same figure stand below each other; its name need not be repeated.
        let what = if outcome.what == above { "" } else { outcome.what };
        above = outcome.what;
        let tone = match outcome.verdict {
            Verdict::Held => Tone::Good,
            Verdict::Missed(_) if outcome.fails() => Tone::Bad,
            Verdict::Missed(_) => Tone::Plain,
            Verdict::Unmeasured => Tone::Faint,
        };
        vec![
            what.to_owned().into(),
            outcome.of.into(),
            outcome.value.into(),
            outcome.limit.into(),
            Cell { text: outcome.verdict.text(), tone, ratio: None },
        ]
    });
    Grid {
        title: "targets".to_owned(),
        about: "the figures that walcast must show on two cores that also run the clients".to_owned(),
        columns: vec![
            column("figure", false),
            column("of", false),
            column("measured", true),
            column("target", true),
            column("", false),
        ],
        rows: rows.collect(),
    }
}

/// One table for each scenario that was played, and for each part of it.
#[must_use]
pub fn scenarios(summaries: &[Summary]) -> Vec<Grid> {
    let of = |scenario| summaries.iter().filter(move |run| run.scenario == scenario).collect::<Vec<_>>();
    Scenario::ALL
        .into_iter()
        .map(|scenario| (scenario, of(scenario)))
        .filter(|(_, runs)| !runs.is_empty())
        .flat_map(|(scenario, runs)| {
            parts(scenario, runs).into_iter().map(move |(part, runs)| grid(scenario, part, &runs))
        })
        .collect()
}

/// What a scenario consists of that has no figures in common, and what each part shows of it.
fn parts(scenario: Scenario, runs: Vec<&Summary>) -> Vec<(Option<&'static str>, Vec<&Summary>)> {
    if scenario != Scenario::Sources {
        return vec![(None, runs)];
    }
    let (delivery, others): (Vec<_>, Vec<_>) = runs.into_iter().partition(|run| run.latency.is_some());
    let (emptied, publishing): (Vec<_>, Vec<_>) =
        others.into_iter().partition(|run| run.figure(figure::OUTBOX_LEFT_BYTES).is_some());
    let mut parts = vec![
        (Some("what publishing costs a transaction"), publishing),
        (Some("how long events take to a client"), delivery),
        (Some("what is left of very many events"), emptied),
    ];
    parts.retain(|(_, runs)| !runs.is_empty());
    parts
}

fn grid(scenario: Scenario, part: Option<&str>, runs: &[&Summary]) -> Grid {
    let names = columns(runs);
    let latency = runs.iter().any(|run| run.latency.is_some());
    let writers = matches!(scenario, Scenario::Commit | Scenario::Sources) && !latency;
    let who = if writers { "writers" } else { "clients" };
    let mut heads = vec![column(who, true), column("system", false)];
    heads.extend(names.iter().map(|name| column(&unit::title(name), true)));
    if latency {
        heads.extend(["p50", "p99", "p99.9", "max"].map(|title| column(title, true)));
    }
    heads.push(column("checked", false));
    Grid {
        title: scenario.name().to_owned(),
        about: about(scenario, part, runs),
        columns: heads,
        rows: runs.iter().map(|run| row(run, baseline(run, runs), &names, latency)).collect(),
    }
}

fn about(scenario: Scenario, part: Option<&str>, runs: &[&Summary]) -> String {
    let rounds = runs.iter().map(|run| run.rounds).max().unwrap_or_default();
    let mut about = scenario.about().to_owned();
    if let Some(part) = part {
        about = format!("{about}: {part}");
    }
    if rounds > 1 {
        about = format!("{about}; medians of {rounds} rounds [least … most]");
    }
    let ours = runs.iter().find_map(|run| baseline(run, runs));
    match ours {
        Some(ours) => format!("{about}; × is beside {}", ours.name()),
        None => about,
    }
}

/// The names of all figures, those about everything first.
fn columns(runs: &[&Summary]) -> Vec<String> {
    let mut names: Vec<String> = runs.iter().flat_map(|run| run.figures.keys().cloned()).collect();
    names.sort_by_key(|name| (!name.starts_with("ratio_") && !name.ends_with("_per_second"), name.clone()));
    names.dedup();
    names
}

fn row(run: &Summary, beside: Option<&Summary>, names: &[String], latency: bool) -> Vec<Cell> {
    let compared = |text: String, value: Option<f64>, ours: Option<f64>| {
        let quotient = value.zip(ours).map(|(value, ours)| value / ours).filter(|ratio| ratio.is_finite());
        Cell { text, ratio: quotient.map(|ratio| format!("× {}", significant(ratio))), tone: Tone::Plain }
    };
    let mut cells = vec![count(run.clients).into(), run.name().into()];
    cells.extend(names.iter().map(|name| {
        let value = run.figure(name);
        // A ratio says already what it stands beside.
        let ours = beside.filter(|_| !name.starts_with("ratio_")).and_then(|ours| ours.figure(name));
        compared(shown(run, name, value), value, ours)
    }));
    if latency {
        cells.extend(QUANTILES.into_iter().map(|(name, of)| {
            let of = |run: &Summary| run.latency.as_ref().map(|latency| of(latency) as f64);
            let value = of(run);
            compared(shown(run, name, value), value, beside.and_then(of))
        }));
    }
    cells.push(checked(run));
    cells
}

/// A figure's value, and how far its rounds lie apart.
fn shown(run: &Summary, name: &str, value: Option<f64>) -> String {
    let Some(value) = value else { return "–".to_owned() };
    let text = unit::show(name, value);
    match run.spread.get(name) {
        Some((least, most)) => format!("{text} [{} … {}]", unit::show(name, *least), unit::show(name, *most)),
        None => text,
    }
}

fn checked(run: &Summary) -> Cell {
    let checks = run.checks;
    if checks.held() {
        let text = match (checks.expected, checks.resets) {
            (0, _) => "–".to_owned(),
            (expected, 0) => format!("{} whole", count(expected)),
            (expected, resets) => format!("{} whole, {} resets", count(expected), count(resets)),
        };
        return Cell { text, tone: Tone::Faint, ratio: None };
    }
    Cell { text: checks.faults().join(", "), tone: Tone::Bad, ratio: None }
}

/// What peers are compared with, where there is more than one way to do the same.
const USUAL: [&str; 3] = [figure::label::PUBLISH, figure::label::PUBLISH_OUTBOX, figure::label::OUTBOX];

/// What of ours a peer's row is compared with: the same number of clients and, where there is a choice, the
/// transport that is most like the peers' connections.
fn baseline<'a>(run: &Summary, runs: &[&'a Summary]) -> Option<&'a Summary> {
    if run.system == System::Walcast {
        return None;
    }
    let rank = |ours: &Summary| {
        let label = ours.label.as_deref().unwrap_or_default();
        let usual = ours.usual() || USUAL.contains(&label);
        let transport = match ours.transport {
            Some(Transport::Ws) => 0,
            Some(Transport::Sse) => 1,
            Some(Transport::Poll) => 2,
            None => 3,
        };
        (ours.label != run.label, !usual, ours.transport != run.transport, transport)
    };
    let ours = runs.iter().filter(|ours| ours.system == System::Walcast && ours.clients == run.clients);
    ours.min_by_key(|ours| rank(ours)).copied()
}
