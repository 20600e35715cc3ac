//! How figures come from the runs.

use super::Found;
use crate::report::figure;
use crate::report::summary::Summary;
use crate::report::unit::count;
use crate::report::{Latency, Scenario, System, Transport};

/// How many clients are many, and how many are few, where they are compared.
pub(super) const MANY: u64 = 10_000;
pub(super) const FEW: u64 = 100;

pub(super) fn quantile(run: &Summary, of: fn(&Latency) -> u64) -> Option<f64> {
    run.latency.as_ref().map(|latency| of(latency) as f64)
}

pub(super) fn found(run: &Summary, value: f64) -> Found {
    let transport = run.transport.map(|transport| format!("{transport}, ")).unwrap_or_default();
    let clients = count(run.clients);
    Found { of: format!("{transport}{clients} clients"), value }
}

pub(super) fn single(value: Option<f64>) -> Vec<Found> {
    value.map(|value| Found { of: String::new(), value }).into_iter().collect()
}

pub(super) fn faults(all: &[Summary]) -> Vec<Found> {
    let checked = all.iter().filter(|run| run.system == System::Walcast && run.checks.expected > 0);
    let faults = checked.map(|run| {
        let checks = run.checks;
        checks.lost + checks.duplicates + checks.disordered + checks.failed
    });
    let total = faults.fold(None, |total, faults| Some(total.unwrap_or(0) + faults));
    single(total.map(|total| total as f64))
}

pub(super) fn ours(all: &[Summary], scenario: Scenario, clients: u64) -> impl Iterator<Item = &Summary> {
    let wanted = move |run: &&Summary| run.scenario == scenario && run.clients == clients;
    all.iter().filter(wanted).filter(|run| run.system == System::Walcast && run.usual())
}

/// A figure of each transport.
pub(super) fn figures(
    all: &[Summary],
    scenario: Scenario,
    clients: u64,
    of: impl Fn(&Summary) -> Option<f64>,
) -> Vec<Found> {
    ours(all, scenario, clients).filter_map(|run| Some(found(run, of(run)?))).collect()
}

/// A figure of each transport over that of a peer: by the same transport, if it was played so.
pub(super) fn against(
    all: &[Summary],
    (scenario, clients): (Scenario, u64),
    (peer, its): (System, Scenario),
    of: impl Fn(&Summary) -> Option<f64>,
) -> Vec<Found> {
    let peers =
        || all.iter().filter(|run| run.scenario == its && run.system == peer && run.clients == clients);
    figures(all, scenario, clients, |run| {
        let theirs = peers().min_by_key(|theirs| theirs.transport != run.transport)?;
        Some(of(run)? / of(theirs)?)
    })
}

/// A figure of each transport at many clients over the same at few.
pub(super) fn growth(all: &[Summary], of: impl Fn(&Summary) -> Option<f64>) -> Vec<Found> {
    let few = |transport| ours(all, Scenario::Wake, FEW).find(|run| run.transport == transport);
    figures(all, Scenario::Wake, MANY, |run| Some(of(run)? / of(few(run.transport)?)?))
}

pub(super) fn fanout(all: &[Summary], of: fn(&Summary) -> Option<f64>) -> Vec<Found> {
    let at = ours(all, Scenario::Fanout, 1_000).filter(|run| run.transport == Some(Transport::Ws));
    at.filter_map(|run| Some(found(run, of(run)?))).collect()
}

/// A value at each number of writers.
pub(super) fn writers(all: &[Summary], of: fn(&[Summary], u64) -> Option<f64>) -> Vec<Found> {
    let values =
        [32, 64].map(|writers| Some(Found { of: format!("{writers} writers"), value: of(all, writers)? }));
    values.into_iter().flatten().collect()
}

/// A figure of the scenario that compares sources, under this label and at this number of clients or writers.
pub(super) fn source(
    all: &[Summary],
    clients: u64,
    label: &str,
    of: impl Fn(&Summary) -> Option<f64>,
) -> Option<f64> {
    let mut at = all.iter().filter(|run| run.scenario == Scenario::Sources && run.clients == clients);
    at.find(|run| run.label.as_deref() == Some(label)).and_then(of)
}

pub(super) fn method(all: &[Summary], writers: u64, method: &str) -> Option<f64> {
    let at = all.iter().filter(|run| run.scenario == Scenario::Commit && run.clients == writers);
    at.filter(|run| run.label.as_deref() == Some(method)).find_map(|run| run.figure(figure::RATIO_TO_NOOP))
}

/// A figure of the only run of its kind.
pub(super) fn one(all: &[Summary], scenario: Scenario, system: System, name: &str) -> Option<f64> {
    all.iter().filter(|run| run.scenario == scenario && run.system == system).find_map(|run| run.figure(name))
}

/// A quantile under one label combined with the same under another, of each transport and number of clients.
pub(super) fn paired(
    all: &[Summary],
    scenario: Scenario,
    with: &str,
    without: &str,
    of: fn(&Latency) -> u64,
    combine: fn(f64, f64) -> f64,
) -> Vec<Found> {
    let labelled = |label: &str| {
        let label = label.to_owned();
        let here = move |run: &&Summary| run.scenario == scenario && run.label.as_deref() == Some(&*label);
        all.iter().filter(here)
    };
    let pairs = labelled(with).filter_map(|run| {
        let mut others = labelled(without);
        let other = others.find(|other| other.transport == run.transport && other.clients == run.clients)?;
        Some(found(run, combine(quantile(run, of)?, quantile(other, of)?)))
    });
    pairs.collect()
}
