//! `walcast serve` as a process on free ports, from its file to its exit code.

use std::time::{Duration, Instant};

use walcast_client::Client;

use super::plain::get;
use super::process::{Ended, Running, directory, file, walcast};
use super::wait::until;

/// A running broker; killed when dropped.
pub(crate) struct Process {
    running: Running,
    pub(crate) client: Client,
    pub(crate) http: String,
    pub(crate) admin: String,
    /// Where its settings are.
    pub(crate) file: String,
}

/// Everything that a file of rules and settings needs, as a user writes it: slot and publication are named after the
/// test, `source` is more of their section, and `rest` goes below.
pub(crate) fn settings(url: &str, name: &str, source: &str, rest: &str) -> String {
    format!("postgres.url = '{url}'\n[source]\nslot = '{name}'\npublication = '{name}'\n{source}\n{rest}\n")
}

impl Process {
    /// Starts it with these settings and waits until it listens; `name` is unique among all that run.
    pub(crate) async fn start(name: &str, text: &str) -> Self {
        Self::start_with(name, text, &[]).await
    }

    /// The same with more arguments.
    pub(crate) async fn start_with(name: &str, text: &str, args: &[&str]) -> Self {
        Self::start_as(name, text, args, &[]).await
    }

    /// The same with these variables in its environment, too.
    pub(crate) async fn start_as(name: &str, text: &str, args: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::launch(&file(name, text), args, variables).await
    }

    /// Starts it with a file that is there.
    pub(crate) async fn on(file: &str) -> Self {
        Self::launch(file, &[], &[]).await
    }

    /// Starts it in a directory that holds these settings as `walcast.toml`, which no flag names.
    pub(crate) async fn beside(name: &str, text: &str) -> Self {
        let directory = directory(name);
        let file = directory.join("walcast.toml").display().to_string();
        std::fs::write(&file, text).unwrap();
        let mut command = walcast(&["serve"]);
        command.current_dir(directory);
        Self::watch(command, &file).await
    }

    async fn launch(file: &str, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = walcast(&["serve", "--config", file]);
        command.args(args).envs(variables.iter().copied());
        Self::watch(command, file).await
    }

    async fn watch(mut command: tokio::process::Command, file: &str) -> Self {
        command.args(["--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"]);
        let mut running = Running::start(command);
        running.until("listening http=").await;
        let said = running.said();
        let address = |key: &str| {
            let (_, rest) = said.split_once(key).unwrap();
            rest.split_whitespace().next().unwrap().to_owned()
        };
        let (http, admin) = (address("listening http="), address(" admin="));
        let client = Client::new(&format!("http://{http}")).unwrap();
        Self { running, client, http, admin, file: file.to_owned() }
    }

    /// Status and body of `/readyz`.
    pub(crate) async fn readiness(&self) -> (u16, String) {
        get(&self.admin, "/readyz").await
    }

    /// Until it is not ready for a reason that holds `text`.
    pub(crate) async fn unready(&self, text: &str) {
        until(text, async || {
            let (status, body) = self.readiness().await;
            status == 503 && body.contains(text)
        })
        .await;
    }

    /// Until it is ready.
    pub(crate) async fn ready(&self) {
        until("the process is ready", async || self.readiness().await.0 == 200).await;
    }

    /// Everything that it said so far.
    pub(crate) fn log(&self) -> String {
        self.running.said()
    }

    /// Until it said this.
    pub(crate) async fn said(&mut self, text: &str) {
        self.running.until(text).await;
    }

    /// Changes the file.
    pub(crate) fn rewrite(&self, text: &str) {
        std::fs::write(&self.file, text).unwrap();
    }

    /// Sends a signal by its name, to this process alone.
    pub(crate) fn signal(&self, name: &str) {
        self.running.signal(name);
    }

    /// Drains it.
    pub(crate) async fn stop(self) -> Ended {
        self.signal("TERM");
        self.running.end().await
    }

    /// Its exit code, how long it took to end from now, and its log.
    pub(crate) async fn ended(self) -> (Option<i32>, Duration, String) {
        let start = Instant::now();
        let ended = self.running.end().await;
        (ended.code, start.elapsed(), ended.err)
    }

    /// Where clients reach it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// The most memory that it ever had, in bytes.
    pub(crate) fn memory_peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.running.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }
}
