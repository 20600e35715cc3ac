//! What publishing costs a transaction, by each source, while its broker reads: slices as those of `commit`.
//!
//! One client waits for a mark behind each slice, which comes when all before it was read; what was published is
//! read back from the broker at the end, so that checking it costs no slice anything.

use std::sync::atomic::{AtomicU32, Ordering};

use walcast::postgres::Session;
use walcast::source::SourceKind;

use super::super::commit::slices::{DDL, Method, NOOP, measure, round};
use super::super::commit::writers::{WAITING, Writers};
use super::super::{Plan, median, own_topic};
use super::{QUIET, judge, of_source};
use crate::Error;
use crate::client::{Crowd, Manner};
use crate::lab::{Lab, Postgres, Settings, Stand};
use crate::latency::Clock;
use crate::report::figure::{self, label};
use crate::report::{Checks, Run, Scenario, System, Transport};

const PUBLISH: &str = "select walcast.publish($1::text, $2::text::jsonb)";
/// The first is what the others stand beside.
const METHODS: [Method; 5] = [
    Method { system: System::Postgres, name: label::NOOP, statement: Some("select 1") },
    Method { system: System::Postgres, name: label::NOTHING, statement: None },
    Method {
        system: System::Listen,
        name: label::NOTIFY,
        statement: Some("select pg_notify($1::text, $2::text)"),
    },
    Method { system: System::Walcast, name: label::PUBLISH_WAL, statement: Some(PUBLISH) },
    Method { system: System::Walcast, name: label::PUBLISH_OUTBOX, statement: Some(PUBLISH) },
];
/// Without a broker.
const NOTHING: usize = 1;
const NOTIFY: usize = 2;
/// With that of the source.
const SOURCES: [(usize, SourceKind); 2] = [(3, SourceKind::Wal), (4, SourceKind::Outbox)];

/// Keeps all that is published until it is read back.
const HISTORY_BYTES: u64 = 1 << 30;
/// The topic of what stands behind each slice; no writer has it.
const MARKS: &str = "settled";

/// Plays it with each number of writers.
pub(super) async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    // Leaves the table, and the functions that publish.
    lab.broker(&Settings { ddl: DDL.to_owned(), ..Settings::clients(0) }).await?;
    let mut runs = Vec::new();
    for count in &plan.clients {
        let writers = lab.clients_for(System::Postgres, *count).await?;
        if writers == 0 {
            return Err(Error::missing("no connection is left for a writer; raise max_connections"));
        }
        let mut played = alone(lab, plan, writers).await?;
        for (method, source) in SOURCES {
            played.extend(by(lab, plan, writers, method, source).await?);
        }
        beside_notify(&mut played);
        runs.extend(played);
    }
    Ok(runs)
}

/// What there is without walcast.
async fn alone(lab: &mut Lab, plan: &Plan, count: usize) -> Result<Vec<Run>, Error> {
    let (slice, rounds) = measure(plan.quick, plan.seconds);
    lab.stop_broker().await;
    lab.doing(format!("{count} writers commit"));
    let postgres = lab.postgres().await?;
    let writers = Writers::connect(&postgres, count, &METHODS).await?;
    let methods = match plan.peers.contains(&System::Listen) {
        true => vec![NOTHING, NOTIFY],
        false => vec![NOTHING],
    };
    writers.write(NOOP, slice).await?;
    let mut runs = Vec::new();
    for _ in 0..rounds {
        runs.extend(round(Scenario::Sources, &postgres, &writers, &methods, slice, async || Ok(())).await?);
    }
    writers.close().await;
    Ok(runs)
}

/// Publishing by one source.
async fn by(
    lab: &mut Lab,
    plan: &Plan,
    count: usize,
    method: usize,
    source: SourceKind,
) -> Result<Vec<Run>, Error> {
    let (slice, rounds) = measure(plan.quick, plan.seconds);
    let settings = Settings { history_bytes: Some(HISTORY_BYTES), ..of_source(source, WAITING) };
    let stand = lab.stand(System::Walcast, Some(Transport::Ws), &settings).await?;
    let postgres = lab.postgres().await?;
    let writers = Writers::connect(&postgres, count, &METHODS).await?;
    let marks = Marks::start(&stand, &postgres).await?;
    lab.doing(format!("{count} writers publish by the {}", source.as_str()));
    writers.write(NOOP, slice).await?;
    // The first publishers of a schema that is new plan its functions, and all pages of its tables are new.
    writers.write(method, slice).await?;
    marks.settled().await?;
    let mut runs = Vec::new();
    for _ in 0..rounds {
        let settled = async || marks.settled().await;
        let played = round(Scenario::Sources, &postgres, &writers, &[method], slice, settled).await?;
        runs.extend(played.into_iter().filter(|run| run.system == System::Walcast));
    }
    lab.doing("all is read back");
    let manner = Manner { after: Some("earliest".to_owned()), ..Manner::default() };
    let crowd = stand.crowd_that(&manner, Clock::default(), WAITING, own_topic);
    stand.waiting(&crowd).await?;
    crowd.until_delivered(writers.told(), QUIET).await;
    let received = crowd.finish().await;
    let marked = marks.finish().await;
    if let Some(last) = runs.last_mut() {
        last.checks = last.checks.and(writers.judge(&received)).and(marked.0);
        last.fault = received.fault.or(marked.1);
    }
    writers.close().await;
    Ok(runs)
}

/// Sets ours beside `pg_notify`.
fn beside_notify(runs: &mut [Run]) {
    let of = |run: &Run| run.figures.get(figure::RATIO_TO_NOOP).copied();
    let notify = runs.iter().filter(|run| run.system == System::Listen).filter_map(of);
    let notify = median(notify.collect());
    // There is none if nobody asked for it.
    for run in runs.iter_mut().filter(|run| run.system == System::Walcast && notify.is_finite()) {
        if let Some(ratio) = of(run) {
            run.figures.insert(figure::RATIO_TO_NOTIFY.to_owned(), ratio / notify);
        }
    }
}

/// Marks behind slices, and the client that waits for them.
struct Marks {
    session: Session,
    crowd: Crowd,
    count: AtomicU32,
}

impl Marks {
    async fn start(stand: &Stand, postgres: &Postgres) -> Result<Self, Error> {
        let crowd = stand.crowd(Clock::default(), 1, |_| MARKS.to_owned());
        stand.waiting(&crowd).await?;
        Ok(Self { session: postgres.session().await?, crowd, count: AtomicU32::new(0) })
    }

    /// Waits until the broker has read all that was committed before.
    async fn settled(&self) -> Result<(), Error> {
        let mark = self.count.fetch_add(1, Ordering::Relaxed);
        let payload = format!(r#"{{"seq": {mark}}}"#);
        let done = self.session.execute(PUBLISH, &[&MARKS, &payload]).await;
        done.map_err(Error::sql("publish a mark"))?;
        // If it never comes, it is judged.
        self.crowd.until_delivered(u64::from(mark) + 1, QUIET).await;
        Ok(())
    }

    /// All marks came, in order; and if the client failed, why.
    async fn finish(self) -> (Checks, Option<String>) {
        let received = self.crowd.finish().await;
        self.session.close().await;
        let count = self.count.load(Ordering::Relaxed);
        (judge(&received, std::slice::from_ref(&(0..count))), received.fault)
    }
}
