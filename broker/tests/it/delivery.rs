//! What is committed arrives, and nothing else: the whole way from SQL to each transport.

use walcast_client::{After, Transport};

use crate::broker::{Broker, line, until};

const VMS: &str =
    "CREATE TABLE vms (hostname text PRIMARY KEY, crdcommand text, pin int, status text, logs text)";
const RULE: &str = r#"
[[table]]
name = "public.vms"
topic = "vm/{hostname}"
columns = ["hostname", "crdcommand", "pin"]
state = true
"#;

#[tokio::test]
async fn an_assignment_wakes_its_vm_on_every_transport() {
    let broker = Broker::start("delivery_assignment", VMS, RULE).await;
    for transport in [Transport::Poll, Transport::Sse, Transport::WebSocket] {
        let mut vm = broker.follow(transport, &["vm/host-17"]).await;
        broker.run("INSERT INTO vms VALUES ('host-16', 'x', 1), ('host-17', 'start', 4711)").await;
        broker.run("DELETE FROM vms").await;
        assert_eq!(
            vm.lines(2).await,
            [
                r#"vm/host-17 insert {"crdcommand":"start","hostname":"host-17","pin":4711}"#,
                r#"vm/host-17 delete {"hostname":"host-17"}"#
            ]
        );
    }
}

#[tokio::test]
async fn a_vm_that_boots_late_gets_its_assignment_at_once() {
    let mut broker = Broker::start("delivery_late", VMS, RULE).await;
    broker.run("INSERT INTO vms VALUES ('host-17', 'start', 4711)").await;
    broker.catch_up().await;
    let late = broker.poll(&["vm/host-17"], After::Current).await;
    assert_eq!(late.iter().map(line).collect::<Vec<_>>(), [SNAPSHOT]);
    // Also when the broker came after the assignment: seeding reads it.
    broker.stop().await.unwrap();
    let sql = broker.session().await;
    let broker = Broker::on(&broker.name, broker.config, sql).await;
    let late = broker.poll(&["vm/host-17"], After::Current).await;
    assert_eq!(late.iter().map(line).collect::<Vec<_>>(), [SNAPSHOT]);
    until("one value is kept", async || broker.metric("walcast_state_values").await >= 1.0).await;
    assert_eq!(broker.readiness().await.0, 200);
}
const SNAPSHOT: &str = r#"vm/host-17 snapshot {"crdcommand":"start","hostname":"host-17","pin":4711}"#;
