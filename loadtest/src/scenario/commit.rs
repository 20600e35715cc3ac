//! What publishing costs a transaction: {insert one row; statement} with each statement, against the same with
//! a statement that does nothing. First where no broker runs and nobody listens; then in use, where clients wait,
//! each for something of its own, and all that it takes to reach them is paid for too.
//!
//! Slices are short, and each has no-ops right before and right after it, for the speed of a machine drifts. What
//! clients wait for has come to all of them before the next slice begins.

use std::time::Duration;

use walcast::postgres::Session;

use self::writers::Writers;
use super::{Draft, Plan, own_topic};
use crate::Error;
use crate::client::Crowd;
use crate::lab::{Lab, Postgres, Settings};
use crate::latency::Clock;
use crate::report::figure::{self, label};
use crate::report::{Checks, Run, Scenario, System, Transport};

mod writers;

const DDL: &str = "drop table if exists public.loadtest_commit;
    create table public.loadtest_commit (id bigint generated always as identity, method text)";

/// A way to tell somebody.
struct Method {
    system: System,
    name: &'static str,
    statement: &'static str,
}

const NOOP: usize = 0;
const METHODS: [Method; 7] = [
    Method { system: System::Postgres, name: label::NOOP, statement: "select 1" },
    Method {
        system: System::Walcast,
        name: label::MESSAGE,
        statement: "select pg_logical_emit_message(true, 'plain', 'vm/x {}')",
    },
    Method {
        system: System::Walcast,
        name: label::PUBLISH,
        statement: r#"select walcast.publish('vm/x', '{"a": 1}')"#,
    },
    Method { system: System::Walcast, name: label::STAND_IN, statement: "select walcast.notify('vm', 'x')" },
    Method { system: System::Listen, name: label::NOTIFY, statement: "select pg_notify('vm', 'x')" },
    Method {
        system: System::Walcast,
        name: label::PUBLISH_IN_USE,
        statement: "select walcast.publish($1::text, $2::text::jsonb)",
    },
    Method {
        system: System::Listen,
        name: label::NOTIFY_IN_USE,
        statement: "select pg_notify($1::text, $2::text)",
    },
];
/// The methods that are played while nobody waits.
const ALONE: std::ops::Range<usize> = 1..5;
/// The others, and how many wait then.
const IN_USE: std::ops::Range<usize> = 5..7;
const WAITING: usize = 100;
/// How long nothing may come to them.
const QUIET: Duration = Duration::from_secs(10);

/// Plays it with each number of writers; `pg_notify` only where LISTEN is a peer.
///
/// # Errors
/// There are too few connections, or the server went away.
pub async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    let (slice, rounds) = match plan.quick {
        true => (Duration::from_millis(100), 1),
        false => (Duration::from_millis(700), (plan.seconds / 2).clamp(3, 20)),
    };
    // Leaves the functions that publish, and a slot, and then goes out of the way.
    lab.broker(&Settings { ddl: DDL.to_owned(), ..Settings::clients(0) }).await?;
    let postgres = lab.postgres().await?;
    let mut runs = Vec::new();
    let notify = plan.peers.contains(&System::Listen);
    let methods: Vec<usize> =
        ALONE.filter(|method| notify || METHODS[*method].system != System::Listen).collect();
    for count in &plan.clients {
        lab.stop_broker().await;
        let room = lab.clients_for(System::Postgres, count + WAITING as u64).await?;
        let count = room.saturating_sub(WAITING);
        if count == 0 {
            return Err(Error::missing(format!(
                "writers and {WAITING} listeners need a connection each, and {room} are left; raise \
                 max_connections"
            )));
        }
        let writers = Writers::connect(&postgres, count).await?;
        lab.doing(format!("{count} writers commit"));
        writers.write(NOOP, slice).await?;
        for _ in 0..rounds {
            runs.extend(round(&postgres, &writers, &methods, slice, None).await?);
        }
        // Their connections are needed again.
        writers.close().await;
        for method in IN_USE.filter(|method| notify || METHODS[*method].system != System::Listen) {
            let system = METHODS[method].system;
            let stand = lab.stand(system, Some(Transport::Ws), &Settings::clients(WAITING)).await?;
            let writers = Writers::connect(&postgres, count).await?;
            let crowd = stand.crowd(Clock::default(), WAITING, own_topic);
            stand.waiting(&crowd).await?;
            lab.doing(format!("{count} writers commit"));
            writers.write(NOOP, slice).await?;
            for _ in 0..rounds {
                let played = round(&postgres, &writers, &[method], slice, Some(&crowd)).await?;
                runs.extend(played.into_iter().filter(|run| run.system == system));
            }
            let received = crowd.finish().await;
            if let Some(last) = runs.last_mut() {
                last.checks = last.checks.and(writers.judge(&received));
                last.fault = received.fault;
            }
            writers.close().await;
        }
    }
    lab.stop_broker().await;
    Ok(runs)
}

async fn round(
    postgres: &Postgres,
    writers: &Writers,
    methods: &[usize],
    slice: Duration,
    waiting: Option<&Crowd>,
) -> Result<Vec<Run>, Error> {
    let session = postgres.session().await?;
    session.batch_execute("truncate public.loadtest_commit").await.map_err(Error::sql("begin a round"))?;
    // Only a superuser may; without it a checkpoint may disturb one slice or another.
    let _ = session.batch_execute("checkpoint").await;
    let mut slices = vec![(NOOP, writers.write(NOOP, slice).await?)];
    for method in methods {
        slices.push((*method, writers.write(*method, slice).await?));
        if let Some(crowd) = waiting {
            // What is still on its way would slow down the no-ops. If it never comes, it is judged.
            crowd.until_delivered(writers.told(), QUIET).await;
        }
        slices.push((NOOP, writers.write(NOOP, slice).await?));
    }
    let mut runs = Vec::new();
    for index in [NOOP].iter().chain(methods).copied() {
        let method = &METHODS[index];
        let own = slices.iter().filter(|(method, _)| *method == index);
        let (mut commits, mut seconds) = (0, 0.0);
        own.for_each(|(_, slice)| (commits, seconds) = (commits + slice.commits, seconds + slice.seconds));
        let beside = slices.windows(3).find(|three| three[1].0 == index && index != NOOP);
        let ratio = beside
            .map_or(1.0, |three| three[1].1.speed() / f64::midpoint(three[0].1.speed(), three[2].1.speed()));
        let mut draft = Draft::new(Scenario::Commit, method.system, None, writers.count()).label(method.name);
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
