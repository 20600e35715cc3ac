//! Clients that come and go: each follows its topic by its cursor over connections that it gives up after a
//! moment, wherever it stands in them, while messages come. Nothing may be lost or repeated, and a client that cannot go on counts as failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Draft, Plan, steady};
use crate::Error;
use crate::client::{Ear, Fault, Inbox, Manner, Received, Target, connect};
use crate::lab::{Lab, Settings, Stand, http};
use crate::latency::{Clock, Sent};
use crate::report::figure;
use crate::report::{Run, Scenario, System, Transport};

/// How long a connection is kept, in milliseconds.
const KEPT: std::ops::Range<u64> = 5..200;
/// How long a client stays away, in milliseconds.
const AWAY: std::ops::Range<u64> = 0..50;
/// Messages a second, to one topic after another.
const PER_SECOND: u32 = 200;
const READ_BYTES: usize = 16 << 10;
/// How long the last messages may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Plays it over each transport.
///
/// # Errors
/// A client fails for good, or a server went away.
pub async fn play(lab: &mut Lab, plan: &Plan) -> Result<Vec<Run>, Error> {
    let mut runs = Vec::new();
    for clients in &plan.clients {
        // A connection that was given up is there until the broker notices.
        let clients = lab.clients_for(System::Walcast, clients * 2).await? / 2;
        for transport in &plan.transports {
            let settings = Settings::clients(clients * 2);
            let stand = lab.stand(System::Walcast, Some(*transport), &settings).await?;
            lab.doing("clients come and go");
            runs.push(churn(&stand, *transport, clients, plan).await?);
        }
    }
    Ok(runs)
}

/// What all clients share.
struct Field {
    target: Target,
    clock: Clock,
    /// Where all clients begin.
    cursor: String,
    delivered: AtomicU64,
    connections: AtomicU64,
    answers: AtomicU64,
    over: AtomicBool,
}

async fn churn(stand: &Stand, transport: Transport, clients: usize, plan: &Plan) -> Result<Run, Error> {
    let mut draft = Draft::at(Scenario::Churn, stand, clients);
    let seconds = if plan.quick { 1 } else { plan.seconds.max(2) };
    let messages = PER_SECOND * u32::try_from(seconds).unwrap_or(1);
    let clock = Clock::default();
    let sent = Sent::new(clock, messages as usize);
    let field = Arc::new(Field {
        target: stand.target().clone(),
        clock,
        cursor: cursor(stand).await?,
        delivered: AtomicU64::new(0),
        connections: AtomicU64::new(0),
        answers: AtomicU64::new(0),
        over: AtomicBool::new(false),
    });
    let mut publisher = stand.publisher().await?;
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        let field = Arc::clone(&field);
        tasks.spawn(async move {
            let (inbox, fault) = client(&field, number).await;
            (number, inbox, fault)
        });
    }
    let began = Instant::now();
    let count = u32::try_from(clients).unwrap_or(u32::MAX);
    let topic = |seq: u32| topic((seq % count) as usize);
    steady::publish(&mut publisher, PER_SECOND, 0..messages, topic, &sent).await?;
    let took = began.elapsed().as_secs_f64();
    let (connections, answers) = (&field.connections, &field.answers);
    draft.figure(figure::RECONNECTS_PER_SECOND, connections.load(Ordering::Relaxed) as f64 / took);
    if transport == Transport::Poll {
        draft.figure(figure::POLLS_PER_SECOND, answers.load(Ordering::Relaxed) as f64 / took);
    }
    until(|| field.delivered.load(Ordering::Relaxed) >= u64::from(messages)).await;
    field.over.store(true, Ordering::Relaxed);
    let mut received = Received { inboxes: vec![Inbox::default(); clients], ..Received::default() };
    while let Some(done) = tasks.join_next().await {
        let (number, inbox, fault) = done.map_err(Error::of("a client"))?;
        received.inboxes[number] = inbox;
        if let Some(fault) = fault {
            received.failed += 1;
            received.fault.get_or_insert_with(|| format!("client {number}: {fault}"));
        }
    }
    let due = |number: usize| (0..messages).filter(move |seq| (seq % count) as usize == number);
    draft.judge(&received, due);
    Ok(draft.end(received.latencies(&sent).summary()))
}

/// The place where the broker's order has come to.
async fn cursor(stand: &Stand) -> Result<String, Error> {
    let Target::Walcast(address, _) = stand.target() else { return Ok(String::new()) };
    let path = format!("/v1/events?topic={}&wait=0", topic(0));
    let (_, body) = http::get(*address, &path).await.map_err(Error::of("ask for a cursor"))?;
    let rest = body.split_once(r#""cursor":""#).map(|(_, rest)| rest);
    let cursor = rest.and_then(|rest| rest.split_once('"')).map(|(cursor, _)| cursor.to_owned());
    cursor.ok_or_else(|| Error::failed(format!("no cursor in the broker's answer: {body}")))
}

fn topic(number: usize) -> String {
    format!("churn/{number}")
}

/// Waits for a condition, as long as it may take; what is then still missing is judged.
async fn until(condition: impl Fn() -> bool) {
    let reached = async {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        while !condition() {
            tick.tick().await;
        }
    };
    let _ = timeout(PATIENCE, reached).await;
}

/// One client, over all its connections: what it received, and why it could not go on.
async fn client(field: &Field, number: usize) -> (Inbox, Option<Fault>) {
    let mut inbox = Inbox { cursor: Some(field.cursor.clone()), ..Inbox::default() };
    let mut buffer = vec![0; READ_BYTES];
    while !field.over.load(Ordering::Relaxed) {
        let (kept, away) = {
            let mut random = rand::rng();
            (random.random_range(KEPT), random.random_range(AWAY))
        };
        let until = Instant::now() + Duration::from_millis(kept);
        if let Err(fault) = stay(field, number, &mut inbox, until, &mut buffer).await {
            return (inbox, Some(fault));
        }
        field.connections.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(away)).await;
    }
    (inbox, None)
}

/// One connection.
async fn stay(
    field: &Field,
    number: usize,
    inbox: &mut Inbox,
    until: Instant,
    buffer: &mut [u8],
) -> Result<(), Fault> {
    let manner = Manner { after: inbox.cursor.clone(), ..Manner::default() };
    let Some((address, mut dialect)) = field.target.dialect(&topic(number), &manner) else { return Ok(()) };
    let mut stream = connect(number, address).await?;
    let (mut reply, mut carry) = (Vec::new(), Vec::new());
    dialect.hello(address, &mut reply);
    loop {
        stream.write_all(&reply).await?;
        let Ok(read) = timeout_at(until, stream.read(buffer)).await else { return Ok(()) };
        let read = read?;
        if read == 0 {
            return Err(Fault::new("the server closed the connection"));
        }
        let before = inbox.receipts.len();
        let mut ear = Ear::new(inbox, field.clock.us());
        dialect.hear(&buffer[..read], &mut carry, &mut ear)?;
        (reply, _) = ear.end();
        let fresh = inbox.receipts.len() - before;
        field.delivered.fetch_add(fresh as u64, Ordering::Relaxed);
        if !reply.is_empty() {
            field.answers.fetch_add(1, Ordering::Relaxed);
        }
    }
}
