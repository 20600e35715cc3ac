//! The examples in Rust, and the shell.

use crate::place::{Place, Program, curl, directory, file, until};

const VM: &str = env!("CARGO_BIN_EXE_vm");
const ALLOCATOR: &str = env!("CARGO_BIN_EXE_allocator");

#[tokio::test]
async fn vms_and_services_follow_assignments() {
    let place = Place::new("assignments").await;
    let broker = place.url();
    // Assigned before anybody waits.
    place.execute("INSERT INTO vms (hostname, crdcommand, pin) VALUES ('host-17', 'start', 1)").await;
    until("the broker knows it", async || {
        curl(&[&format!("{broker}/v1/state/vm/host-17")]).await.contains("\"pin\":1")
    })
    .await;
    let mut vm = Program::start(VM, ["host-17", &broker]);
    let mut shell = Program::start(&file("shell/vm.sh"), ["host-17", &broker]);
    let mut service = Program::start(env!("CARGO_BIN_EXE_follow"), ["vm/*", &broker]);
    vm.says("start (pin 1)").await;
    shell.says(r#"run {"hostname":"host-17","crdcommand":"start","pin":1}"#).await;
    service.says("snapshot vm/host-17 (1 known)").await;

    place.execute("UPDATE vms SET pin = 2").await;
    vm.says("start (pin 2)").await;
    shell.says(r#"run {"hostname":"host-17","crdcommand":"start","pin":2}"#).await;
    service.says("update vm/host-17 (1 known)").await;

    place.execute("DELETE FROM vms; INSERT INTO vms (hostname, crdcommand) VALUES ('host-18', 'stop')").await;
    shell.says("free").await;
    service.says("delete vm/host-17 (0 known)").await;
    service.says("insert vm/host-18 (1 known)").await;

    // Half of an assignment is none, and one that was done is not done again.
    place.execute("INSERT INTO vms (hostname, pin) VALUES ('host-17', 2)").await;
    place.execute("UPDATE vms SET crdcommand = 'start'").await;
    place.execute("UPDATE vms SET crdcommand = 'stop', pin = 3 WHERE hostname = 'host-17'").await;
    vm.says("stop (pin 3)").await;
}

#[tokio::test]
async fn an_assignment_that_is_rolled_back_wakes_nobody() {
    let place = Place::new("allocator").await;
    let broker = place.url();
    place.execute("INSERT INTO vms (hostname) VALUES ('host-1'), ('host-2')").await;
    let mut vm = Program::start(VM, ["host-1", &broker]);
    let mut service = Program::start(env!("CARGO_BIN_EXE_follow"), ["assigned/*", &broker]);
    place.somebody_waits("vm/host-1").await;
    place.somebody_waits("assigned/*").await;
    let allocate = async |email: &str, pin: &str, more: &[&str]| {
        let args = [&["--database-url", &place.database, "--pin", pin, email], more].concat();
        Program::start(ALLOCATOR, args).ends().await
    };
    assert_eq!(allocate("ada@example.org", "1", &["--roll-back"]).await, ["rolled back host-1"]);
    // What came first was the second.
    assert_eq!(allocate("ada@example.org", "2", &[]).await, ["assigned host-1"]);
    vm.says("start (pin 2)").await;
    service.says("message assigned/host-1 (1 known)").await;
    assert_eq!(allocate("bob@example.org", "3", &[]).await, ["assigned host-2"]);
    service.says("message assigned/host-2 (2 known)").await;
}

#[tokio::test]
async fn allocators_do_not_wait_for_each_other() {
    let place = Place::new("allocators").await;
    place.execute("INSERT INTO vms (hostname) VALUES ('host-1'), ('host-2')").await;
    // Another one has the first VM in its hands.
    place.execute("BEGIN; SELECT FROM vms WHERE hostname = 'host-1' FOR UPDATE").await;
    let other = Program::start(ALLOCATOR, ["--database-url", &place.database, "ada@example.org"]);
    assert_eq!(other.ends().await, ["assigned host-2"]);
    place.execute("ROLLBACK").await;
}

#[tokio::test]
async fn every_bot_wakes_once_and_in_its_own_time() {
    let place = Place::new("hour").await;
    let args = ["--bots", "200", "--spread", "2", &place.url()].map(str::to_owned);
    let lines = Program::start(env!("CARGO_BIN_EXE_top-of-the-hour"), args).ends().await;
    assert_eq!(lines.first().unwrap(), "200 bots wait");
    assert!(lines.last().unwrap().starts_with("200 bots woke, 0 of them twice,"), "{lines:?}");
    let bars: Vec<usize> = lines[1..lines.len() - 1]
        .iter()
        .map(|line| line.split(' ').filter(|word| !word.is_empty()).nth(2).unwrap().parse().unwrap())
        .collect();
    assert_eq!(bars.iter().sum::<usize>(), 200, "{lines:?}");
    // All at once would be one bar. Of 200 that draw their moment by themselves, some draw each quarter.
    assert!(bars.chunks(5).all(|quarter| quarter.iter().sum::<usize>() > 0), "{lines:?}");
}

#[tokio::test]
async fn the_shell_goes_on_where_it_was() {
    let mut place = Place::new("shell").await;
    place.execute("INSERT INTO vms (hostname, pin) VALUES ('host-1', 1)").await;
    let broker = place.url();
    let path = format!("{}/cursor", directory("shell"));
    let script = file("shell/follow.sh");
    let follow = || Program::start(&script, ["vm/*", &path, &broker]);
    let pins = |line: Option<String>| -> Vec<i64> {
        let reply: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        reply["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|event| event["data"]["pin"].as_i64().unwrap())
            .collect()
    };
    let mut follower = follow();
    assert_eq!(pins(follower.line().await), [1]);
    // Now it waits behind its place, which it has kept.
    place.somebody_waits("vm/*").await;
    let _ = follower.child.kill().await;
    for pin in 2..=4 {
        place.execute(&format!("UPDATE vms SET pin = {pin}")).await;
    }
    let mut follower = follow();
    let mut heard = pins(follower.line().await);
    while heard.len() < 3 {
        heard.extend(pins(follower.line().await));
    }
    assert_eq!(heard, [2, 3, 4]);
    place.stop().await;
    place.start().await;
    place.execute("UPDATE vms SET pin = 5").await;
    assert_eq!(pins(follower.line().await), [5]);
    let _ = follower.child.kill().await;

    // A place of another order.
    let mut elsewhere = std::fs::read_to_string(&path).unwrap();
    let other = if elsewhere.as_bytes()[3] == b'A' { "B" } else { "A" };
    elsewhere.replace_range(3..4, other);
    std::fs::write(&path, elsewhere).unwrap();
    let mut follower = follow();
    follower.says("reset").await;
    let mut heard = pins(follower.line().await);
    while heard.last() != Some(&5) {
        heard.extend(pins(follower.line().await));
    }
}
