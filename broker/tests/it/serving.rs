//! The real process: `walcast serve`, from its file to its exit code.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use walcast_client::Client;

use crate::broker::{until, within};
use crate::plain::get;

/// A running `walcast serve`; killed when dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) pid: u32,
    pub(crate) client: Client,
    pub(crate) http: String,
    pub(crate) admin: String,
    log: JoinHandle<String>,
    file: PathBuf,
}

/// Everything that a file of rules and settings needs; `rest` is more of it.
pub(crate) fn file(url: &str, name: &str, source: &str, rest: &str) -> String {
    format!(
        "[postgres]\nurl = '{url}'\n[source]\nslot = '{name}'\npublication = '{name}'\n{source}\n{rest}\n"
    )
}

fn command(file: &PathBuf) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walcast"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--config"]).arg(file);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WALCAST_") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn write(name: &str, text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.toml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

impl Process {
    /// Starts it with this file and waits until it listens.
    pub(crate) async fn start(name: &str, text: &str) -> Self {
        Self::start_with(name, text, &[]).await
    }

    /// The same with more arguments.
    pub(crate) async fn start_with(name: &str, text: &str, args: &[&str]) -> Self {
        Self::start_as(name, text, args, &[]).await
    }

    /// The same with these variables in its environment, too.
    pub(crate) async fn start_as(name: &str, text: &str, args: &[&str], variables: &[(&str, &str)]) -> Self {
        let file = write(name, text);
        let mut child = command(&file).args(args).envs(variables.iter().copied()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = String::new();
        let address = |line: &str, key: &str| {
            line.split_whitespace().find_map(|word| word.strip_prefix(key)).map(str::to_owned)
        };
        let (http, admin) = within("the process listens", async {
            loop {
                let Some(line) = lines.next_line().await.unwrap() else { panic!("it ended: {log}") };
                log.push_str(&format!("{line}\n"));
                if line.contains("listening") {
                    break (address(&line, "http=").unwrap(), address(&line, "admin=").unwrap());
                }
            }
        })
        .await;
        let log = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                log.push_str(&format!("{line}\n"));
            }
            log
        });
        let client = Client::new(&format!("http://{http}")).unwrap();
        Self { pid: child.id().unwrap(), child, client, http, admin, log, file }
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

    pub(crate) async fn ready(&self) {
        until("the process is ready", async || self.readiness().await.0 == 200).await;
    }

    /// Changes the file.
    pub(crate) fn rewrite(&self, text: &str) {
        std::fs::write(&self.file, text).unwrap();
    }

    /// Sends a signal by its name, to this process alone.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid.to_string();
        assert!(std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Its exit code, how long it took to end from now, and its log.
    pub(crate) async fn ended(mut self) -> (Option<i32>, Duration, String) {
        let start = std::time::Instant::now();
        let status = within("the process ends", self.child.wait()).await.unwrap();
        let took = start.elapsed();
        let _ = std::fs::remove_file(&self.file);
        (status.code(), took, self.log.await.unwrap())
    }

    /// The most memory that it ever had, in bytes.
    pub(crate) fn memory_peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }
}
