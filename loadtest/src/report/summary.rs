//! Rounds of the same thing taken together, and found again: what tables, plots and targets are made from.
//!
//! Of each figure the median of its rounds counts, for a neighbour's noise spoils some rounds, not most.

use std::collections::BTreeMap;

use super::{Checks, Latency, Run, Scenario, System, Transport, figure};

/// A quantile of a distribution, in microseconds.
pub type Quantile = fn(&Latency) -> u64;

/// The quantiles that tables show, by the names of their fields.
pub const QUANTILES: [(&str, Quantile); 4] = [
    ("p50_us", |latency| latency.p50_us),
    ("p99_us", |latency| latency.p99_us),
    ("p999_us", |latency| latency.p999_us),
    ("max_us", |latency| latency.max_us),
];

/// All rounds of one thing.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// What was played.
    pub scenario: Scenario,
    /// Against what.
    pub system: System,
    /// How walcast's clients waited.
    pub transport: Option<Transport>,
    /// How many clients took part.
    pub clients: u64,
    /// What else tells it apart.
    pub label: Option<String>,
    /// How many rounds there were.
    pub rounds: usize,
    /// The median of each figure.
    pub figures: BTreeMap<String, f64>,
    /// The least and the most of each figure, and under the names of [`Latency`]'s fields of each quantile, where
    /// there was more than one round.
    pub spread: BTreeMap<String, (f64, f64)>,
    /// The medians of the quantiles; the curve of the middle round.
    pub latency: Option<Latency>,
    /// Of all rounds together.
    pub checks: Checks,
}

impl Summary {
    /// The figure `name`.
    #[must_use]
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied()
    }

    /// What this is, beside others of its scenario and number of clients: `walcast ws`, `walcast poll, fast`.
    #[must_use]
    pub fn name(&self) -> String {
        let mut name = self.system.name().to_owned();
        if let Some(transport) = self.transport {
            name = format!("{name} {transport}");
        }
        match &self.label {
            Some(label) => format!("{name}, {label}"),
            None => name,
        }
    }

    /// Whether it was played in the usual way, as far as its label tells.
    #[must_use]
    pub fn usual(&self) -> bool {
        self.label.as_deref().is_none_or(|label| label == figure::label::VISIBLE)
    }

    fn new(rounds: &[&Run]) -> Option<Self> {
        let first = rounds.first()?;
        let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (name, value) in rounds.iter().flat_map(|run| &run.figures) {
            values.entry(name).or_default().push(*value);
        }
        let mut spread: BTreeMap<String, (f64, f64)> =
            values.iter().filter_map(|(name, all)| Some(((*name).to_owned(), span(all)?))).collect();
        for (name, of) in QUANTILES {
            let all = rounds.iter().filter_map(|run| run.latency.as_ref()).map(|latency| of(latency) as f64);
            let all: Vec<f64> = all.collect();
            spread.extend(span(&all).map(|span| (name.to_owned(), span)));
        }
        let figures =
            values.into_iter().filter_map(|(name, mut all)| Some((name.to_owned(), median(&mut all)?)));
        Some(Self {
            scenario: first.scenario,
            system: first.system,
            transport: first.transport,
            clients: first.clients,
            label: first.label.clone(),
            rounds: rounds.len(),
            figures: figures.collect(),
            spread,
            latency: together(rounds.iter().filter_map(|run| run.latency.as_ref()).collect()),
            checks: rounds.iter().fold(Checks::default(), |all, run| all.and(run.checks)),
        })
    }
}

/// The summaries of `runs`: by scenario and number of clients, ours first.
#[must_use]
pub fn summarise(runs: &[Run]) -> Vec<Summary> {
    let mut groups: BTreeMap<_, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        let key = (run.scenario, run.clients, run.system, run.transport, run.label.as_deref());
        groups.entry(key).or_default().push(run);
    }
    groups.values().filter_map(|rounds| Summary::new(rounds)).collect()
}

/// The median; of an even number, the mean of the middle two. `None` of nothing. Sorts `values`.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some(f64::midpoint(*values.get(low)?, *values.get(high)?))
}

/// The least and the most of several.
fn span(values: &[f64]) -> Option<(f64, f64)> {
    let (least, most) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| {
        (least.min(*value), most.max(*value))
    });
    (values.len() > 1).then_some((least, most))
}

fn together(mut rounds: Vec<&Latency>) -> Option<Latency> {
    rounds.sort_by_key(|round| round.p50_us);
    let middle = *rounds.get(rounds.len().checked_sub(1)? / 2)?;
    let of = |field: fn(&Latency) -> u64| {
        let mut values: Vec<f64> = rounds.iter().map(|round| field(round) as f64).collect();
        median(&mut values).map_or(0, |middle| middle.round() as u64)
    };
    let mut means: Vec<f64> = rounds.iter().map(|round| round.mean_us).collect();
    Some(Latency {
        count: rounds.iter().map(|round| round.count).sum(),
        min_us: rounds.iter().map(|round| round.min_us).min()?,
        p50_us: of(|round| round.p50_us),
        p90_us: of(|round| round.p90_us),
        p99_us: of(|round| round.p99_us),
        p999_us: of(|round| round.p999_us),
        max_us: rounds.iter().map(|round| round.max_us).max()?,
        mean_us: median(&mut means)?,
        cdf: middle.cdf.clone(),
    })
}
