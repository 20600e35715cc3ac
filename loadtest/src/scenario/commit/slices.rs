//! Transactions by one way to tell somebody, in short slices, each right between two with a statement that does
//! nothing: the speed of a machine drifts, and a ratio to what came right before and behind it does not.

use std::time::Duration;

use walcast::postgres::Session;

use super::super::Draft;
use super::writers::Writers;
use crate::Error;
use crate::lab::Postgres;
use crate::report::figure;
use crate::report::{Checks, Run, Scenario, System};

/// The table that all transactions write to.
pub(in crate::scenario) const DDL: &str = "drop table if exists public.loadtest_commit;
    create table public.loadtest_commit (id bigint generated always as identity, method text)";

/// A way to tell somebody.
#[derive(Debug)]
pub(in crate::scenario) struct Method {
    pub(in crate::scenario) system: System,
    pub(in crate::scenario) name: &'static str,
    /// `None`: the insert is all. With parameters they are a topic and a numbered payload.
    pub(in crate::scenario) statement: Option<&'static str>,
}

/// How long slices are, and how many rounds of them there are.
pub(in crate::scenario) fn measure(quick: bool, seconds: u64) -> (Duration, u64) {
    match quick {
        true => (Duration::from_millis(100), 1),
        false => (Duration::from_millis(700), (seconds / 2).clamp(3, 20)),
    }
}

/// Where the statement that does nothing stands among the writers' methods.
pub(in crate::scenario) const NOOP: usize = 0;

/// Plays each of `methods` once. `settled` waits, after each, until what was told is no work for anybody any more: it
/// would slow down what is played next.
pub(in crate::scenario) async fn round(
    scenario: Scenario,
    postgres: &Postgres,
    writers: &Writers,
    methods: &[usize],
    slice: Duration,
    settled: impl AsyncFn() -> Result<(), Error>,
) -> Result<Vec<Run>, Error> {
    let session = postgres.session().await?;
    session.batch_execute("truncate public.loadtest_commit").await.map_err(Error::sql("begin a round"))?;
    // Only a superuser may; without it a checkpoint may disturb one slice or another.
    let _ = session.batch_execute("checkpoint").await;
    let mut slices = vec![(NOOP, writers.write(NOOP, slice).await?)];
    for method in methods {
        slices.push((*method, writers.write(*method, slice).await?));
        settled().await?;
        slices.push((NOOP, writers.write(NOOP, slice).await?));
    }
    let mut runs = Vec::new();
    for index in [NOOP].iter().chain(methods).copied() {
        let Some(method) = writers.methods().get(index) else { continue };
        let own = slices.iter().filter(|(method, _)| *method == index);
        let (mut commits, mut seconds) = (0, 0.0);
        own.for_each(|(_, slice)| (commits, seconds) = (commits + slice.commits, seconds + slice.seconds));
        let beside = slices.windows(3).find(|three| three[1].0 == index && index != NOOP);
        let ratio = beside
            .map_or(1.0, |three| three[1].1.speed() / f64::midpoint(three[0].1.speed(), three[2].1.speed()));
        let mut draft = Draft::new(scenario, method.system, None, writers.count()).label(method.name);
        draft.figure(figure::TRANSACTIONS_PER_SECOND, commits as f64 / seconds);
        draft.figure(figure::RATIO_TO_NOOP, ratio);
        draft.checks(committed(&session, method.name, commits).await?);
        let mut run = draft.end(None);
        run.seconds = seconds;
        runs.push(run);
    }
    session.close().await;
    Ok(runs)
}

/// What writers counted against the rows that are there.
async fn committed(session: &Session, method: &str, commits: u64) -> Result<Checks, Error> {
    let sql = "select count(*) from public.loadtest_commit where method = $1";
    let row = session.query_one(sql, &[&method]).await.map_err(Error::sql("count rows"))?;
    let rows = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
    Ok(Checks {
        expected: commits,
        delivered: rows.min(commits),
        lost: commits.saturating_sub(rows),
        duplicates: rows.saturating_sub(commits),
        ..Checks::default()
    })
}
