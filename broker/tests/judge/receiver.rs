//! `pg_recvlogical` on a slot of the judge's own: nothing of what it tells has passed through the broker's code.
//!
//! The program ends when the server goes away, and is started again until the server is back. Each connection writes
//! a file of its own, for the next one tells again what was not confirmed, and a message may be cut off.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Commit;
use super::slot::{Name, commits, join};

/// Between two looks at the files, and between two tries to connect.
const PACE: Duration = Duration::from_millis(50);

/// A slot that is listened to.
pub(crate) struct Receiver {
    slot: String,
    /// One for each connection, in their order.
    files: Arc<Mutex<Vec<PathBuf>>>,
    stop: CancellationToken,
    listening: JoinHandle<()>,
}

/// What every call of the program needs.
struct Program {
    path: PathBuf,
    url: String,
    slot: String,
}

impl Program {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(["--dbname", &self.url, "--slot", &self.slot]).args(args);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Writes what the slot tells to this file, until the server goes away or it is time to stop.
    async fn listen(&self, publication: &str, file: &Path, stop: &CancellationToken) {
        let names = format!("publication_names={publication}");
        let options = ["-o", "proto_version=1", "-o", &names, "-o", "messages=true"];
        let mut command = self.command(&["--start", "--no-loop", "--file"]);
        // What it says of a server that is away is no news.
        let mut child = command.arg(file).args(options).stderr(Stdio::null()).spawn().unwrap();
        tokio::select! {
            _ = child.wait() => {}
            () = stop.cancelled() => {
                if let Some(pid) = child.id() {
                    let _ = Command::new("kill").args(["-s", "INT", &pid.to_string()]).status().await;
                }
                let _ = child.wait().await;
            }
        }
    }
}

impl Receiver {
    /// Creates the slot, from whose place on everything is told, and begins to listen; `bin_dir` has the programs of
    /// the server's version, and in `directory` the files come to lie.
    pub(crate) async fn start(
        bin_dir: &Path,
        url: &str,
        slot: &str,
        publication: &str,
        directory: &Path,
    ) -> Self {
        let path = bin_dir.join("pg_recvlogical");
        let program = Program { path, url: url.to_owned(), slot: slot.to_owned() };
        let mut create = program.command(&["--create-slot", "--plugin", "pgoutput"]);
        assert!(create.status().await.unwrap().success(), "the judge has no slot");
        let (files, stop) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
        let (written, stopped) = (Arc::clone(&files), stop.clone());
        let (publication, directory) = (publication.to_owned(), directory.to_owned());
        let listening = tokio::spawn(async move {
            for number in 1_u32.. {
                let file = directory.join(format!("{}.{number}", program.slot));
                // The program appends to what is there.
                let _ = std::fs::remove_file(&file);
                written.lock().push(file.clone());
                program.listen(&publication, &file, &stopped).await;
                if stopped.run_until_cancelled(tokio::time::sleep(PACE)).await.is_none() {
                    return;
                }
            }
        });
        Self { slot: slot.to_owned(), files, stop, listening }
    }

    /// Everything told so far, in the order of commits, each once.
    fn commits(&self, name: Name<'_>) -> Vec<Commit> {
        let mut known = Vec::new();
        for file in &*self.files.lock() {
            // There is none where no connection came about.
            let told = std::fs::read(file).unwrap_or_default();
            join(&mut known, commits(&told, name));
        }
        known
    }

    /// Everything up to the commit of this transaction, for which it waits, and perhaps more.
    pub(crate) async fn told(&self, xid: u32, name: Name<'_>) -> Vec<Commit> {
        let mut pace = tokio::time::interval(PACE);
        loop {
            pace.tick().await;
            assert!(!self.listening.is_finished(), "{}: nobody listens", self.slot);
            let commits = self.commits(name);
            if commits.iter().any(|commit| commit.xid == xid) {
                return commits;
            }
        }
    }

    /// Stops listening; how many connections it took.
    pub(crate) async fn end(self) -> usize {
        self.stop.cancel();
        self.listening.await.unwrap();
        let files = std::mem::take(&mut *self.files.lock());
        for file in &files {
            let _ = std::fs::remove_file(file);
        }
        files.len()
    }
}
