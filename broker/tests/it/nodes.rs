//! `walcast dev` and `walcast demo` with several brokers.

use serde_json::Value;
use tokio::process::Command;

use crate::broker::until;
use crate::commands::printed;
use crate::plain::get;
use crate::process::{Running, directory, run, shell, walcast};

#[tokio::test]
async fn dev_with_several_names_each_and_all_of_them_serve() {
    let mut dev = Running::start(walcast(&["dev", "--port", "0", "--nodes", "3"]));
    dev.until("/readyz'\n").await;
    let out = dev.out();
    let places: Vec<(&str, &str, &str)> = out
        .lines()
        .filter(|line| line.starts_with("leader ") || line.starts_with("edge "))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [role, http, "health", health] = words[..] else { panic!("{line}") };
            let admin = health.strip_suffix("/readyz").unwrap();
            (role, http.strip_prefix("http://").unwrap(), admin.strip_prefix("http://").unwrap())
        })
        .collect();
    let roles: Vec<&str> = places.iter().map(|place| place.0).collect();
    assert_eq!(roles, ["leader", "edge", "edge"], "{out}");

    let lines = printed(&out);
    let [follow, wait, assign, by_sql, by_http, _health] = &lines[..] else { panic!("{lines:?}") };
    let start = |line: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", line]).kill_on_drop(true);
        Running::start(command)
    };
    let (waiting, mut following) = (start(wait), start(follow));
    let leader = format!("http://{}/v1/events?topic=hello&after=now&wait=5m", places[0].1);
    let polling = start(&format!("exec curl -s '{leader}'"));
    for (_, _, admin) in &places {
        let mut metrics = String::new();
        until("the metrics are those of all", async || {
            metrics = get(admin, "/metrics").await.1;
            metrics.contains("\nwalcast_subscriptions 3\n")
        })
        .await;
        assert!(metrics.contains("\nwalcast_leads 1\n"), "{metrics}");
    }
    shell(assign).await.succeeded();
    assert!(waiting.end().await.succeeded().contains("\"host-17\""));
    following.until("host-17").await;
    for (role, http, admin) in &places {
        assert_eq!(get(admin, "/readyz").await.0, 200, "{role}");
        let state = get(http, "/v1/state/vm/host-17?wait=10s").await;
        assert!(state.0 == 200 && state.1.contains("\"host-17\""), "{role}: {state:?}");
    }
    shell(by_sql).await.succeeded();
    assert!(polling.end().await.succeeded().contains("\"psql\""));
    following.until("psql").await;
    shell(by_http).await.succeeded();
    following.until("\"curl\"").await;
    dev.signal("INT");
    let ended = dev.end().await;
    assert!(ended.code == Some(0) && ended.err.lines().count() == 1, "{ended:?}");
}

#[tokio::test]
async fn demo_with_several_says_what_each_delivered() {
    let ended = run(&["demo", "--vms=30", "--seconds=2", "--json", "--nodes=3"]).await;
    let report: Value = serde_json::from_str(ended.succeeded()).unwrap();
    let delivered: Vec<u64> =
        report["delivered_by_node"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert!(delivered.len() == 3 && delivered.iter().all(|n| *n > 0), "{ended:?}");
    assert_eq!(report["delivered"], delivered.iter().sum::<u64>());
    assert_eq!(report["assigned"], report["delivered"]);
    assert_eq!((&report["missed"], &report["duplicates"]), (&0.into(), &0.into()));
    assert_eq!(report["postgres_connections"], 3, "edges hold none");
}

#[tokio::test]
async fn what_several_need_is_said_in_one_line() {
    for command in ["dev", "demo"] {
        for number in ["0", "17"] {
            let ended = run(&[command, "--nodes", number]).await;
            assert!(ended.code == Some(64) && ended.err.contains("1..=16"), "{ended:?}");
        }
        let mut without = walcast(&[command, "--nodes=2"]);
        if command == "dev" {
            without.args(["--port", "0"]);
        }
        without.env("PATH", directory(&format!("nodes_without_{command}")));
        let ended = Running::start(without).end().await;
        ended.failed(69, &["--nodes 2", "no redis-server", "scripts/setup"]);
    }
    let many = ["dev", "--nodes=16", "--port=65520"];
    run(&many).await.failed(64, &["takes 33 ports", "65503"]);
}
