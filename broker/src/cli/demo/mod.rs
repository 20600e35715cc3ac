//! `walcast demo`: a lab of simulated VMs that wait for their assignment, and an allocator that assigns
//! them by plain `UPDATE`.
//!
//! It needs the brokers' URLs and a database's, nothing else of either, and it believes neither: what was
//! delivered is checked against what was committed.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use walcast_client::wire::TopicPattern;
use walcast_client::{After, Client, EventsRequest};

pub mod command;
pub mod display;
pub mod fleet;
pub mod lab;
pub mod ledger;

use display::Display;
use fleet::Fleet;
use lab::{Lab, Observer};
use ledger::{Ledger, Report};

use super::exit::{self, Failure};

/// How long all VMs may take to be waiting.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long nothing may arrive before what is outstanding counts as missed.
const QUIET_MAX: Duration = Duration::from_secs(10);
/// How long duplicates are waited for at the end.
const LATE: Duration = Duration::from_millis(500);
/// How often conditions are looked at.
const TICK: Duration = Duration::from_millis(50);

/// How large and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Simulated VMs; a third each waits by long-poll, SSE and WebSocket.
    pub vms: u32,
    /// How long VMs are assigned.
    pub duration: Duration,
    /// Assignments a second.
    pub rate: u32,
}

/// Runs the lab against brokers that serve [`lab::RULE`], the first of which leads, and a database that
/// [`lab::prepare`] prepared, until the plan's end or `stop`, and says what came of it.
///
/// # Errors
/// A broker or the database cannot be used. Missed and duplicate events are no error but in the report.
pub async fn run(
    plan: Plan,
    broker_urls: &[String],
    database_url: &str,
    display: &Display,
    stop: impl Future<Output = ()>,
) -> Result<Report, Failure> {
    let ledger = Arc::new(Ledger::new(plan.vms, broker_urls.len()));
    let mut observer = Observer::connect(database_url).await?;
    let mut stop = pin!(stop);
    let work = async {
        let mut lab = Lab::connect(database_url).await?;
        let start = start(broker_urls).await?;
        let _fleet = Fleet::boot(plan.vms, broker_urls, start, &ledger)?;
        tokio::select! {
            booted = all_waiting(&ledger) => booted?,
            () = stop.as_mut() => return Ok(()),
        }
        allocate(plan, &mut lab, &ledger, stop.as_mut()).await?;
        settle(&ledger).await;
        Ok::<(), Failure>(())
    };
    tokio::select! {
        done = work => done?,
        failure = observe(&mut observer, &ledger, display) => return Err(failure),
    }
    // Once more, so that the shortest run has a figure too.
    ledger.connections(observer.broker_connections().await?);
    Ok(ledger.report())
}

/// Where every VM starts, so that what is assigned while it boots is not missed.
async fn start(broker_urls: &[String]) -> Result<After, Failure> {
    let Some(leader) = broker_urls.first() else {
        return Err(Failure::new(exit::OTHER, "there is no broker"));
    };
    let topic = TopicPattern::new(lab::TOPICS)
        .map_err(|error| Failure::new(exit::OTHER, format!("{}: {error}", lab::TOPICS)))?;
    let mut request = EventsRequest::new([topic]).after(After::Now);
    request.wait = Some(Duration::ZERO);
    Ok(After::Cursor(Client::new(leader)?.poll(&request).await?.cursor))
}

async fn all_waiting(ledger: &Ledger) -> Result<(), Failure> {
    let waiting = async {
        let mut tick = interval(TICK);
        while ledger.waiting() < ledger.vms() {
            tick.tick().await;
        }
    };
    timeout(BOOT_TIMEOUT, waiting).await.map_err(|_| {
        let why = ledger.last_error().unwrap_or_else(|| "no error was told".to_owned());
        let message = format!(
            "only {} of {} VMs are waiting after {} s: {why}",
            ledger.waiting(),
            ledger.vms(),
            BOOT_TIMEOUT.as_secs()
        );
        Failure::new(exit::UNAVAILABLE, message)
    })
}

/// Assigns VMs in random order, at the plan's rate.
async fn allocate(
    plan: Plan,
    lab: &mut Lab,
    ledger: &Ledger,
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), Failure> {
    let mut pace = interval(Duration::from_secs(1) / plan.rate.max(1));
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let end = Instant::now() + plan.duration;
    for pin in 1.. {
        tokio::select! {
            _ = pace.tick() => {}
            () = stop.as_mut() => break,
        }
        if Instant::now() >= end {
            break;
        }
        // Never cut off: an assignment that may or may not be committed cannot be judged.
        lab.assign(rand::random_range(0..plan.vms), pin, ledger).await?;
    }
    Ok(())
}

/// Waits for what is outstanding as long as something still arrives.
async fn settle(ledger: &Ledger) {
    let mut tick = interval(TICK);
    let (mut delivered, mut since) = (ledger.delivered(), Instant::now());
    while ledger.outstanding() > 0 && since.elapsed() < QUIET_MAX {
        tick.tick().await;
        if ledger.delivered() != delivered {
            (delivered, since) = (ledger.delivered(), Instant::now());
        }
    }
    sleep(LATE).await;
}

/// Counts the broker's connections and shows how it goes, for ever.
async fn observe(observer: &mut Observer, ledger: &Ledger, display: &Display) -> Failure {
    let mut tick = interval(Duration::from_millis(200));
    for round in 0_u64.. {
        tick.tick().await;
        if round % 5 == 0 {
            match observer.broker_connections().await {
                Ok(count) => ledger.connections(count),
                Err(failure) => return failure,
            }
        }
        display.show(ledger);
    }
    Failure::new(exit::OTHER, "the demo ran out of numbers")
}
