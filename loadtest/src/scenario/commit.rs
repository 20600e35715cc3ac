//! What publishing costs a transaction: {insert one row; statement} with each statement, against the same with
//! a statement that does nothing. First where no broker runs and nobody listens; then in use, where clients wait,
//! each for something of its own, and all that it takes to reach them is paid for too.
//!
//! Slices are short, and each has no-ops right before and right after it, for the speed of a machine drifts. What
//! clients wait for has come to all of them before the next slice begins.

use std::time::Duration;

use self::slices::{DDL, Method, NOOP, measure, round};
use self::writers::{WAITING, Writers};
use super::{Plan, own_topic};
use crate::Error;
use crate::lab::{Lab, Settings};
use crate::latency::Clock;
use crate::report::figure::label;
use crate::report::{Run, Scenario, System, Transport};

pub(super) mod slices;
pub(super) mod writers;

/// The first is what the others stand beside.
const METHODS: [Method; 7] = [
    Method { system: System::Postgres, name: label::NOOP, statement: Some("select 1") },
    Method {
        system: System::Walcast,
        name: label::MESSAGE,
        statement: Some("select pg_logical_emit_message(true, 'plain', 'vm/x {}')"),
    },
    Method {
        system: System::Walcast,
        name: label::PUBLISH,
        statement: Some(r#"select walcast.publish('vm/x', '{"a": 1}')"#),
    },
    Method {
        system: System::Walcast,
        name: label::STAND_IN,
        statement: Some("select walcast.notify('vm', 'x')"),
    },
    Method { system: System::Listen, name: label::NOTIFY, statement: Some("select pg_notify('vm', 'x')") },
    Method {
        system: System::Walcast,
        name: label::PUBLISH_IN_USE,
        statement: Some("select walcast.publish($1::text, $2::text::jsonb)"),
    },
    Method {
        system: System::Listen,
        name: label::NOTIFY_IN_USE,
        statement: Some("select pg_notify($1::text, $2::text)"),
    },
];
/// The methods that are played while nobody waits.
const ALONE: std::ops::Range<usize> = 1..5;
/// The others.
const IN_USE: std::ops::Range<usize> = 5..7;
/// How long nothing may come to them.
const QUIET: Duration = Duration::from_secs(10);

/// Plays it with each number of writers; `pg_notify` only where LISTEN is a peer.
///
/// # Errors
/// There are too few connections, or the server went away.
pub async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    let (slice, rounds) = measure(plan.quick, plan.seconds);
    // Leaves the functions that publish, and a slot, and then goes out of the way.
    lab.broker(&Settings { ddl: DDL.to_owned(), ..Settings::clients(0) }).await?;
    let postgres = lab.postgres().await?;
    let mut runs = Vec::new();
    let notify = plan.peers.contains(&System::Listen);
    let methods: Vec<usize> =
        ALONE.filter(|method| notify || METHODS[*method].system != System::Listen).collect();
    for count in &plan.clients {
        lab.stop_broker().await;
        let count = room(lab, *count).await?;
        let writers = Writers::connect(&postgres, count, &METHODS).await?;
        lab.doing(format!("{count} writers commit"));
        writers.write(NOOP, slice).await?;
        for _ in 0..rounds {
            let settled = async || Ok(());
            runs.extend(round(Scenario::Commit, &postgres, &writers, &methods, slice, settled).await?);
        }
        // Their connections are needed again.
        writers.close().await;
        for method in IN_USE.filter(|method| notify || METHODS[*method].system != System::Listen) {
            let settings = Settings::clients(WAITING);
            runs.extend(in_use(Scenario::Commit, lab, plan, &settings, &METHODS, method, count).await?);
        }
    }
    lab.stop_broker().await;
    Ok(runs)
}

/// How many of `count` writers the server has room for, beside those who listen.
///
/// # Errors
/// For none.
pub(super) async fn room(lab: &mut Lab, count: u64) -> Result<usize, Error> {
    let room = lab.clients_for(System::Postgres, count + WAITING as u64).await?;
    match room.saturating_sub(WAITING) {
        0 => Err(Error::missing(format!(
            "writers and {WAITING} listeners need a connection each, and {room} are left; raise max_connections"
        ))),
        count => Ok(count),
    }
}

/// Plays one of `methods` by `count` writers while clients wait for what it tells, or listen. Of the `settings` is the
/// broker.
///
/// # Errors
/// There are too few connections, or a server went away.
pub(super) async fn in_use(
    scenario: Scenario,
    lab: &mut Lab,
    plan: &Plan,
    settings: &Settings,
    methods: &'static [Method],
    method: usize,
    count: usize,
) -> Result<Vec<Run>, Error> {
    let (slice, rounds) = measure(plan.quick, plan.seconds);
    let system = methods[method].system;
    let stand = lab.stand(system, Some(Transport::Ws), settings).await?;
    let postgres = lab.postgres().await?;
    let writers = Writers::connect(&postgres, count, methods).await?;
    let crowd = stand.crowd(Clock::default(), WAITING, own_topic);
    stand.waiting(&crowd).await?;
    lab.doing(format!("{count} writers commit"));
    writers.write(NOOP, slice).await?;
    let mut runs = Vec::new();
    for _ in 0..rounds {
        let settled = async || {
            // If it never comes, it is judged.
            crowd.until_delivered(writers.told(), QUIET).await;
            Ok(())
        };
        let played = round(scenario, &postgres, &writers, &[method], slice, settled).await?;
        runs.extend(played.into_iter().filter(|run| run.system == system));
    }
    let received = crowd.finish().await;
    if let Some(last) = runs.last_mut() {
        last.checks = last.checks.and(writers.judge(&received));
        last.fault = received.fault;
    }
    writers.close().await;
    Ok(runs)
}
