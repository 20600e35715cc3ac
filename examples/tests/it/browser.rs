//! The page, in a real browser, served from the same origin as the broker.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::place::{Place, Program, curl, directory, file, free_port, haproxy, until, within};

/// A browser without a screen, which is told what to do over a WebSocket.
struct Browser {
    tab: WebSocketStream<MaybeTlsStream<TcpStream>>,
    asked: u64,
    /// Of the answers that the page got.
    statuses: Vec<i64>,
    _program: Program,
}

impl Browser {
    async fn open(url: &str) -> Self {
        let profile = directory("browser");
        let mut command = Command::new(chromium());
        // Root may not have its sandbox, and containers have a small /dev/shm.
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        command.args(["--no-first-run", "--disable-background-networking", "--disable-component-update"]);
        command.arg("--remote-debugging-port=0");
        command.arg(format!("--user-data-dir={profile}")).arg("about:blank");
        let program = Program::run(command);
        let mut port = String::new();
        until("the browser says where it listens", async || {
            let said = std::fs::read_to_string(format!("{profile}/DevToolsActivePort")).unwrap_or_default();
            port = said.lines().next().unwrap_or_default().to_owned();
            !port.is_empty()
        })
        .await;
        let tabs: Value =
            serde_json::from_str(&curl(&[&format!("http://127.0.0.1:{port}/json")]).await).unwrap();
        let tab = tabs.as_array().unwrap().iter().find(|tab| tab["type"] == "page").unwrap();
        let (tab, _) = connect_async(tab["webSocketDebuggerUrl"].as_str().unwrap()).await.unwrap();
        let mut this = Self { tab, asked: 0, statuses: Vec::new(), _program: program };
        this.call("Network.enable", json!({})).await;
        this.call("Page.navigate", json!({"url": url})).await;
        this
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let call = json!({"id": self.asked, "method": method, "params": params});
        self.tab.send(Message::text(call.to_string())).await.unwrap();
        within(method, async {
            loop {
                let said = self.tab.next().await.unwrap().unwrap().into_text().unwrap();
                let said: Value = serde_json::from_str(&said).unwrap();
                let answered = said["method"] == "Network.responseReceived";
                self.statuses.extend(said["params"]["response"]["status"].as_i64().filter(|_| answered));
                if said["id"] == self.asked {
                    return said["result"].clone();
                }
            }
        })
        .await
    }

    /// Until the page shows this, as somebody reads it.
    async fn shows(&mut self, id: &str, expected: &str) {
        let expression = format!("document.getElementById('{id}')?.innerText");
        let mut shown = Value::Null;
        until(&format!("{id} shows {expected:?}"), async || {
            let said = self.call("Runtime.evaluate", json!({"expression": expression})).await;
            shown = said["result"]["value"].clone();
            shown == expected
        })
        .await;
    }
}

/// By whichever name it is installed.
fn chromium() -> String {
    if let Ok(program) = std::env::var("WALCAST_CHROMIUM") {
        return program;
    }
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let runs = |name: &&str| std::process::Command::new(name).arg("--version").output().is_ok();
    let found = names.into_iter().find(runs);
    found
        .expect("there is no Chromium: run scripts/setup --browser, or name one by WALCAST_CHROMIUM")
        .to_owned()
}

#[tokio::test]
async fn a_page_shows_rows_as_they_are() {
    let mut place = Place::new("browser").await;
    place.execute("INSERT INTO vms (hostname, crdcommand, pin) VALUES ('host-1', 'start', 1)").await;
    let page = format!("127.0.0.1:{}", free_port());
    let mut command = Command::new(haproxy());
    command.args(["-db", "-f", "haproxy.cfg"]).current_dir(file("browser"));
    command.env("PAGE", &page).env("BROKER", place.url().replace("http://", ""));
    let _proxy = Program::run(command);
    until("the proxy listens", async || TcpStream::connect(&page).await.is_ok()).await;

    let mut browser = Browser::open(&format!("http://{page}/")).await;
    browser.shows("vms", "host-1\tstart\t1").await;
    browser.shows("line", "live").await;
    place.execute("UPDATE vms SET pin = 2").await;
    browser.shows("vms", "host-1\tstart\t2").await;
    place.execute("INSERT INTO vms (hostname) VALUES ('<b>host</b>')").await;
    browser.shows("vms", "host-1\tstart\t2\n<b>host</b>\t\t").await;

    // What happens while the broker is away is there when it is back, also behind the proxy's 503, which ends an
    // EventSource for ever.
    place.stop().await;
    browser.shows("line", "connecting").await;
    until("the proxy has refused", async || {
        browser.call("Runtime.evaluate", json!({"expression": "0"})).await;
        browser.statuses.contains(&503)
    })
    .await;
    place.execute("DELETE FROM vms WHERE hostname <> 'host-1'; UPDATE vms SET pin = 3").await;
    place.start().await;
    browser.shows("vms", "host-1\tstart\t3").await;
    browser.shows("line", "live").await;
    place.execute("DELETE FROM vms").await;
    browser.shows("vms", "").await;
}
