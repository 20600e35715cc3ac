//! What publishing costs a transaction, by each source: slices as those of `commit`, first where no broker runs and nobody
//! listens, then in use.

use walcast::source::SourceKind;

use super::super::commit::slices::{DDL, Method, NOOP, measure, round};
use super::super::commit::writers::{WAITING, Writers};
use super::super::commit::{in_use, room};
use super::super::{Plan, median};
use super::of_source;
use crate::Error;
use crate::lab::{Lab, Settings};
use crate::report::figure::{self, label};
use crate::report::{Run, Scenario, System};

const PUBLISH: &str = "select walcast.publish($1::text, $2::text::jsonb)";
const NOTIFY: &str = "select pg_notify($1::text, $2::text)";
/// The first is what the others stand beside.
const METHODS: [Method; 8] = [
    Method { system: System::Postgres, name: label::NOOP, statement: Some("select 1") },
    Method { system: System::Postgres, name: label::NOTHING, statement: None },
    Method { system: System::Listen, name: label::NOTIFY, statement: Some(NOTIFY) },
    Method { system: System::Walcast, name: label::PUBLISH_WAL, statement: Some(PUBLISH) },
    Method { system: System::Walcast, name: label::PUBLISH_OUTBOX, statement: Some(PUBLISH) },
    Method { system: System::Listen, name: label::NOTIFY_IN_USE, statement: Some(NOTIFY) },
    Method { system: System::Walcast, name: label::PUBLISH_WAL_IN_USE, statement: Some(PUBLISH) },
    Method { system: System::Walcast, name: label::PUBLISH_OUTBOX_IN_USE, statement: Some(PUBLISH) },
];
/// What is played while nobody waits, by which way publishers send meanwhile.
const ALONE: [(&[usize], SourceKind); 2] = [(&[1, 2, 3], SourceKind::Wal), (&[4], SourceKind::Outbox)];
/// What is played while clients wait, with a broker of this source.
const IN_USE: [(usize, SourceKind); 3] =
    [(5, SourceKind::Wal), (6, SourceKind::Wal), (7, SourceKind::Outbox)];

/// Plays it with each number of writers; `pg_notify` only where LISTEN is a peer.
pub(super) async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    // Leaves the table, and the functions that publish.
    lab.broker(&Settings { ddl: DDL.to_owned(), ..Settings::clients(0) }).await?;
    let mut runs = Vec::new();
    for count in &plan.clients {
        lab.stop_broker().await;
        let count = room(lab, *count).await?;
        let mut played = alone(lab, plan, count).await?;
        for (method, source) in IN_USE.into_iter().filter(|(method, _)| asked_for(plan, *method)) {
            let settings = of_source(source, WAITING);
            played.extend(in_use(Scenario::Sources, lab, plan, &settings, &METHODS, method, count).await?);
        }
        for (beside, of) in [
            (label::NOTIFY, [label::PUBLISH_WAL, label::PUBLISH_OUTBOX]),
            (label::NOTIFY_IN_USE, [label::PUBLISH_WAL_IN_USE, label::PUBLISH_OUTBOX_IN_USE]),
        ] {
            beside_notify(&mut played, beside, of);
        }
        runs.extend(played);
    }
    Ok(runs)
}

fn asked_for(plan: &Plan, method: usize) -> bool {
    METHODS[method].system != System::Listen || plan.peers.contains(&System::Listen)
}

/// Nobody reads what is published.
async fn alone(lab: &mut Lab, plan: &Plan, count: usize) -> Result<Vec<Run>, Error> {
    let (slice, rounds) = measure(plan.quick, plan.seconds);
    lab.doing(format!("{count} writers commit"));
    let postgres = lab.postgres().await?;
    let session = postgres.session().await?;
    let writers = Writers::connect(&postgres, count, &METHODS).await?;
    writers.write(NOOP, slice).await?;
    let mut runs = Vec::new();
    for _ in 0..rounds {
        for (methods, source) in ALONE {
            let sql = "update walcast.settings set carry = $1";
            session.execute(sql, &[&source.as_str()]).await.map_err(Error::sql("choose a source"))?;
            let methods: Vec<_> = methods.iter().copied().filter(|method| asked_for(plan, *method)).collect();
            let mut played =
                round(Scenario::Sources, &postgres, &writers, &methods, slice, async || Ok(())).await?;
            // The statement that does nothing is beside both.
            if source == SourceKind::Outbox {
                played.retain(|run| run.label.as_deref() != Some(label::NOOP));
            }
            runs.extend(played);
        }
    }
    // Their connections are needed again.
    writers.close().await;
    session.close().await;
    Ok(runs)
}

/// Sets ours beside `pg_notify` under the same circumstances.
fn beside_notify(runs: &mut [Run], notify: &str, ours: [&str; 2]) {
    let figure = |run: &Run| run.figures.get(figure::RATIO_TO_NOOP).copied();
    let notify = runs.iter().filter(|run| run.label.as_deref() == Some(notify)).filter_map(figure);
    let notify = median(notify.collect());
    // There is none if nobody asked for it.
    for run in runs.iter_mut().filter(|_| notify.is_finite()) {
        if run.label.as_deref().is_some_and(|label| ours.contains(&label))
            && let Some(ratio) = figure(run)
        {
            run.figures.insert(figure::RATIO_TO_NOTIFY.to_owned(), ratio / notify);
        }
    }
}
