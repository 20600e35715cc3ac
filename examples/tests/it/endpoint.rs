//! The Python fleet's own request, answered by the broker through HAProxy, which cuts what is silent for 15 s.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::watch;
use walcast::endpoint::EndpointConfig;

use crate::fleet::{Server, serves};
use crate::place::{Place, Program, curl, directory, file, free_port, haproxy, until, within};
use crate::python::python;

/// What the balancer cuts.
const IDLE: Duration = Duration::from_secs(15);
const HOSTS: usize = 4;
/// Assignments that each host is to be told.
const RUNS: usize = 6;

/// A broker with the endpoint of the example, of which this says more.
async fn place(name: &'static str, keepalive: Duration) -> Place {
    #[derive(Deserialize)]
    struct Example {
        endpoint: Vec<EndpointConfig>,
    }
    let text = std::fs::read_to_string(file("python-fleet/endpoint/walcast.toml")).unwrap();
    let Example { mut endpoint } = toml::from_str(&text).unwrap();
    endpoint[0].keepalive = keepalive;
    Place::of(name, |config| config.endpoint = endpoint).await
}

/// The example's balancer, but less patient, before a broker alone.
async fn balancer(place: &Place, name: &str) -> Server {
    let text = std::fs::read_to_string(file("python-fleet/haproxy.cfg")).unwrap();
    let patience = format!("{}s", IDLE.as_secs());
    let impatient = text.replace("client 90s", &format!("client {patience}"));
    let impatient = impatient.replace("server 90s", &format!("server {patience}"));
    assert_eq!(impatient.matches(&patience).count(), text.matches(&patience).count() + 2);
    let config = format!("{}/haproxy.cfg", directory(name));
    std::fs::write(&config, impatient).unwrap();
    let address = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(haproxy());
    command.args(["-db", "-f", &config]).env("FLEET", &address);
    command.env("BROKER", place.url().replace("http://", "")).env("APPLICATION", "127.0.0.1:1");
    let program = Program::run(command);
    until("the balancer listens", async || TcpStream::connect(&address).await.is_ok()).await;
    Server::of(format!("http://{address}"), program)
}

#[tokio::test]
async fn the_fleet_waits_at_the_broker_by_the_requests_it_always_sent() {
    let place = place("fleet_endpoint", Duration::from_secs(20)).await;
    let server = balancer(&place, "fleet_endpoint").await;
    let two_wait = async || {
        place.somebody_waits("vm/host-1").await;
        place.somebody_waits("vm/host-2").await;
    };
    serves(&place, &server, two_wait).await;
}

#[tokio::test]
async fn who_waits_for_long_is_not_cut() {
    let place = place("fleet_long", Duration::from_secs(5)).await;
    let server = balancer(&place, "fleet_long").await;
    place.execute("INSERT INTO vms (hostname) VALUES ('host-1')").await;
    let mut command = Command::new(python());
    command.args([&file("python-fleet/before/client.py"), "host-1", &server.url]).kill_on_drop(true);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    place.somebody_waits("vm/host-1").await;
    // That it outlasts the balancer's patience takes the balancer's patience.
    tokio::time::sleep(IDLE + Duration::from_secs(3)).await;
    place.execute("UPDATE vms SET crdcommand = 'start', pin = 1").await;
    let output = within("the client ends", child.wait_with_output()).await.unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "start (pin 1)\n");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "it had to ask again");
}

/// When an assignment began to be one, and since when it is known at the broker to be none any more.
struct Assigned {
    from: Instant,
    gone: Option<Instant>,
}

/// What a client was told, by which pin, and when it asked and ended.
struct Told {
    pin: i32,
    asked: Instant,
    ended: Instant,
}

/// Assigns a host, takes it back, deletes it, makes it again, until all has been told; then it stays assigned.
async fn change(place: &Place, host: &str, done: watch::Receiver<bool>) -> BTreeMap<i32, Assigned> {
    let state = format!("{}/v1/state/vm/{host}", place.url());
    let mut all: BTreeMap<i32, Assigned> = BTreeMap::new();
    let (mut there, mut pin) = (false, 0);
    loop {
        let last = *done.borrow();
        let assign = last || rand::random_bool(0.4);
        let delete = !assign && there && rand::random_bool(0.5);
        if assign {
            pin += 1;
            all.insert(pin, Assigned { from: Instant::now(), gone: None });
        }
        let sql = match (assign, delete) {
            (true, _) => format!(
                "INSERT INTO vms (hostname, crdcommand, pin) VALUES ('{host}', 'run-{pin}', {pin})
                ON CONFLICT (hostname) DO UPDATE SET crdcommand = excluded.crdcommand, pin = excluded.pin"
            ),
            (_, true) => format!("DELETE FROM vms WHERE hostname = '{host}'"),
            // Half of an assignment is none.
            _ => format!(
                "INSERT INTO vms (hostname, crdcommand) VALUES ('{host}', 'half')
                ON CONFLICT (hostname) DO UPDATE SET crdcommand = 'half', pin = NULL"
            ),
        };
        place.execute(&sql).await;
        there = !delete;
        let wanted = (!delete).then(|| assign.then_some(i64::from(pin)));
        until("the broker knows it", async || {
            let value: Value = serde_json::from_str(&curl(&[&state]).await).unwrap();
            // A problem document has no host.
            value.get("hostname").map(|_| value["pin"].as_i64()) == wanted
        })
        .await;
        let known = Instant::now();
        let before = all.iter_mut().filter(|(other, _)| !assign || **other != pin);
        for (_, assigned) in before.filter(|(_, assigned)| assigned.gone.is_none()) {
            assigned.gone = Some(known);
        }
        if last {
            return all;
        }
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(20..1_500))).await;
    }
}

/// Runs the client again and again.
async fn ask(server: &Server, host: &str) -> Vec<Told> {
    let mut told = Vec::new();
    while told.len() < RUNS {
        let asked = Instant::now();
        let line = server.client(host).line().await.expect("it is told");
        let pin = line.strip_prefix("run-").and_then(|line| line.split_once(' ')).unwrap().0.parse().unwrap();
        assert_eq!(line, format!("run-{pin} (pin {pin})"));
        told.push(Told { pin, asked, ended: Instant::now() });
    }
    told
}

#[tokio::test]
async fn nobody_is_told_what_is_not_so() {
    let place = place("fleet_changes", Duration::from_secs(1)).await;
    let server = balancer(&place, "fleet_changes").await;
    let (done, finish) = watch::channel(false);
    let host = |number: usize| format!("host-{number}");
    let hosts: Vec<String> = (0..HOSTS).map(host).collect();
    let changing =
        futures_util::future::join_all(hosts.iter().map(|host| change(&place, host, finish.clone())));
    let asking = async {
        let told = futures_util::future::join_all(hosts.iter().map(|host| ask(&server, host))).await;
        done.send(true).unwrap();
        told
    };
    let (changed, told) = futures_util::future::join(changing, asking).await;
    for ((host, assigned), told) in hosts.iter().zip(&changed).zip(&told) {
        for Told { pin, asked, ended } in told {
            let Assigned { from, gone } = &assigned[pin];
            assert!(from <= ended, "{host} was told {pin} before it was assigned");
            assert!(
                gone.is_none_or(|gone| gone >= *asked),
                "{host} was told {pin}, which was gone when it asked"
            );
        }
    }
    let assigned: usize = changed.iter().map(BTreeMap::len).sum();
    println!("{assigned} assignments, {} told", HOSTS * RUNS);
}
