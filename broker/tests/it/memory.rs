//! A transaction of any size passes in little memory.

use std::time::{Duration, Instant};

use walcast_client::{After, Client, Error, EventsRequest};

use crate::broker::{connect, patterns, prepare, run};
use crate::server;
use crate::serving::{self, Process};
use crate::wait::{LIMIT, within_limit};

const ROWS: u64 = 1_000_000;
const HISTORY: u64 = 64 << 20;

/// Follows by long-poll up to the mark: how many events came, and whether the broker said that some are missing.
async fn count(client: Client, mut after: After) -> (u64, bool) {
    let (mut events, mut reset) = (0, false);
    loop {
        let mut request = EventsRequest::new(patterns(&["rows", "mark"])).after(after);
        request.limit = Some(1_000);
        let reply = match client.poll(&request).await {
            Ok(reply) => reply,
            Err(Error::Problem { problem, .. }) if problem.resume.is_some() => {
                (after, reset) = (After::Cursor(problem.resume.unwrap()), true);
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        after = After::Cursor(reply.cursor);
        for event in &reply.events {
            if event.topic.as_str() == "mark" {
                return (events, reset);
            }
            events += 1;
        }
    }
}

#[tokio::test]
async fn a_million_rows_in_one_transaction() {
    let name = "memory_million";
    let url = server::create(name).await;
    let rules = "[[table]]\nname = 'public.rows'\ntopic = 'rows'";
    prepare(&url, name, "CREATE TABLE rows (id int PRIMARY KEY)", rules).await;
    let text = serving::settings(&url, name, "", &format!("[history]\nbytes = {HISTORY}\n{rules}"));
    let broker = Process::start(name, &text).await;
    broker.ready().await;
    let mut now = EventsRequest::new(patterns(&["rows"])).after(After::Now);
    now.wait = Some(Duration::ZERO);
    let after = After::Cursor(broker.client.poll(&now).await.unwrap().cursor);
    let idle = broker.memory_peak();
    let follower = tokio::spawn(count(broker.client.clone(), after));
    let start = Instant::now();
    let sql = connect(&url).await;
    run(&sql, &format!("INSERT INTO rows SELECT generate_series(1, {ROWS})")).await;
    run(&sql, "SELECT walcast.publish('mark', 'null')").await;
    // Without optimisation, on a machine that does much else, this takes a while.
    let (events, reset) = within_limit(LIMIT * 5, "the mark behind the rows", follower).await.unwrap();
    let peak = broker.memory_peak();
    println!(
        "{events} events, reset {reset}, {:?}; {} MB idle, {} MB at most",
        start.elapsed(),
        idle >> 20,
        peak >> 20
    );
    assert!(events == ROWS || (reset && events < ROWS), "{events} events, reset: {reset}");
    assert!(peak < (200 << 20) + HISTORY, "{peak} bytes");
}
