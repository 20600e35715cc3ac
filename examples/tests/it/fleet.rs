//! The Python fleet, on LISTEN and on walcast.

use tokio::net::TcpStream;
use tokio::process::Command;

use crate::place::{Place, Program, curl, file, free_port, haproxy, until};
use crate::python::python;

/// What answers the fleet: the application, or whatever took its place.
pub(crate) struct Server {
    pub(crate) url: String,
    _program: Program,
}

impl Server {
    /// Whatever answers there.
    pub(crate) fn of(url: String, program: Program) -> Self {
        Self { url, _program: program }
    }

    /// `before` or `after`, with these variables.
    async fn start(which: &str, place: &Place, variables: &[(&str, &str)]) -> Self {
        let port = free_port();
        let mut command = Command::new(python());
        command.arg(file(&format!("python-fleet/{which}/server.py"))).arg(port.to_string());
        command.env("DATABASE_URL", &place.database).env("PYTHONDONTWRITEBYTECODE", "1");
        command.envs(variables.iter().copied());
        let program = Program::run(command);
        until("the server listens", async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
        Self { url: format!("http://127.0.0.1:{port}"), _program: program }
    }

    /// Status and body of an answer that comes at once.
    async fn asked(&self, body: &str) -> String {
        let url = format!("{}/vm_startup", self.url);
        let json = "Content-Type: application/json";
        curl(&["-w", " %{http_code}", "-H", json, "-d", body, &url]).await.replace('\n', "")
    }

    pub(crate) fn client(&self, hostname: &str) -> Program {
        Program::start(python(), [&file("python-fleet/before/client.py"), hostname, &self.url])
    }
}

async fn allocate(place: &Place, args: [&str; 3]) {
    let mut command = Command::new(python());
    command.arg(file("python-fleet/before/allocate.py")).args(args).env("DATABASE_URL", &place.database);
    assert_eq!(Program::run(command).ends().await, [format!("assigned {}", args[0])]);
}

/// How many connections of the database listen.
async fn listening(place: &Place) -> i64 {
    const LISTENING: &str = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
            AND application_name NOT LIKE 'walcast%'";
    place.sql.query_typed(LISTENING, &[]).await.unwrap()[0].get(0)
}

/// What the fleet relies on, by whichever way it waits.
pub(crate) async fn serves(place: &Place, server: &Server, waits: impl AsyncFn()) {
    for body in ["{}", r#"{"hostname": ""}"#] {
        assert_eq!(server.asked(body).await, r#"{"error":"Hostname is required."} 400"#);
    }
    for hostname in ["nobody", "a/b", "*", ".."] {
        let said = server.asked(&format!(r#"{{"hostname": "{hostname}"}}"#)).await;
        assert_eq!(said, r#"{"error":"VM not found."} 404"#, "{hostname}");
    }
    place.execute("INSERT INTO vms (hostname) VALUES ('host-1'), ('host-2')").await;
    let mut first = server.client("host-1");
    let mut second = server.client("host-2");
    waits().await;
    // Another's assignment, and half of one's own, are nothing to go by.
    place.execute("UPDATE vms SET crdcommand = 'start' WHERE hostname = 'host-1'").await;
    allocate(place, ["host-2", "stop", "2"]).await;
    second.says("stop (pin 2)").await;
    allocate(place, ["host-1", "start", "1"]).await;
    first.says("start (pin 1)").await;
    // Whoever comes later is answered at once.
    server.client("host-1").says("start (pin 1)").await;
    let said = server.asked(r#"{"hostname": "host-2"}"#).await;
    assert_eq!(said, r#"{"command":"stop","pin":2,"status":"success"} 200"#);
}

#[tokio::test]
async fn the_fleet_waits_by_listen() {
    let place = Place::new("fleet_before").await;
    let server = Server::start("before", &place, &[]).await;
    let two_listen = async || until("both listen", async || listening(&place).await == 2).await;
    serves(&place, &server, two_listen).await;
}

#[tokio::test]
async fn at_nought_per_cent_nothing_changes_and_no_broker_is_needed() {
    let mut place = Place::new("fleet_nought").await;
    place.stop().await;
    let variables = [("WALCAST_URLS", &*place.url()), ("WALCAST_PERCENT", "0")];
    let server = Server::start("after", &place, &variables).await;
    let two_listen = async || until("both listen", async || listening(&place).await == 2).await;
    serves(&place, &server, two_listen).await;
}

#[tokio::test]
async fn at_a_hundred_per_cent_nobody_holds_a_connection() {
    let place = Place::new("fleet_after").await;
    let variables = [("WALCAST_URLS", &*place.url()), ("WALCAST_PERCENT", "100")];
    let server = Server::start("after", &place, &variables).await;
    let two_wait = async || {
        place.somebody_waits("vm/host-1").await;
        place.somebody_waits("vm/host-2").await;
        assert_eq!(listening(&place).await, 0);
    };
    serves(&place, &server, two_wait).await;
}

#[tokio::test]
async fn in_between_each_host_waits_where_the_canary_says() {
    let place = Place::new("fleet_canary").await;
    let variables = [("WALCAST_URLS", &*place.url()), ("WALCAST_PERCENT", "5")];
    let server = Server::start("after", &place, &variables).await;
    place.execute("INSERT INTO vms (hostname) VALUES ('host-40'), ('host-41')").await;
    // 41 is of the 5 %, and 40 is not.
    let (mut stays, mut moved) = (server.client("host-40"), server.client("host-41"));
    place.somebody_waits("vm/host-41").await;
    until("the other listens", async || listening(&place).await == 1).await;
    allocate(&place, ["host-40", "start", "1"]).await;
    allocate(&place, ["host-41", "start", "2"]).await;
    stays.says("start (pin 1)").await;
    moved.says("start (pin 2)").await;
}

#[tokio::test]
async fn a_balancer_sends_one_path_to_the_broker() {
    let place = Place::new("fleet_balancer").await;
    let server = Server::start("before", &place, &[]).await;
    let balancer = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(haproxy());
    command.args(["-db", "-f", &file("python-fleet/haproxy.cfg")]).env("FLEET", &balancer);
    command.env("BROKER", place.url().replace("http://", ""));
    command.env("APPLICATION", server.url.replace("http://", ""));
    let _balancer = Program::run(command);
    until("the balancer listens", async || TcpStream::connect(&balancer).await.is_ok()).await;
    let asked = async |path: &str| curl(&[&format!("http://{balancer}{path}")]).await;
    // This broker has no endpoint: its refusal shows who was asked.
    let said = asked("/vm_startup").await;
    assert!(said.contains(r#""code":"#), "{said}");
    for path in ["/", "/vm_startup_of_another_kind"] {
        let said = asked(path).await;
        assert!(said.contains("<title>404 Not Found</title>"), "{said}");
    }
}
