//! The `walcast` command as people run it: a process with arguments, two outputs and an exit code.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::wait::{LIMIT, until, within};

/// The command, with nothing of this process's settings.
pub(crate) fn walcast(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walcast"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("WALCAST_") || text.starts_with("PG") || text == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command.args(args).current_dir(env!("CARGO_TARGET_TMPDIR")).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A program of the machine's, also from where distributions keep what is not on everybody's path.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join(name))
        .find(|program| program.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed: run scripts/setup"))
}

/// A configuration file; `name` is unique among all tests.
pub(crate) fn file(name: &str, text: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.toml"));
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// A directory to run in, empty at first; `name` is unique among all tests.
pub(crate) fn directory(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A process that ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None`: by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// Its one line on stderr, which names all of `parts`.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, parts: &[&str]) {
        let told: Vec<&str> = self.err.lines().filter(|line| line.starts_with("walcast: ")).collect();
        assert_eq!((self.code, told.len()), (Some(code), 1), "{self:?}");
        assert!(parts.iter().all(|part| told[0].contains(part)), "{parts:?}: {self:?}");
        // What a library says of an error when nobody translates it.
        for bad in ["db error", "Error {", "Some(", "panicked"] {
            assert!(!self.err.contains(bad), "{bad}: {self:?}");
        }
    }

    #[track_caller]
    pub(crate) fn succeeded(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        &self.out
    }
}

/// A process that runs.
pub(crate) struct Running {
    child: Child,
    out: Arc<Mutex<String>>,
    err: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (Arc::default(), Arc::default());
        let readers = vec![
            tokio::spawn(collect(child.stdout.take().unwrap(), Arc::clone(&out))),
            tokio::spawn(collect(child.stderr.take().unwrap(), Arc::clone(&err))),
        ];
        Self { child, out, err, readers }
    }

    /// Everything said so far, on stdout and on stderr.
    pub(crate) fn said(&self) -> String {
        format!("{}{}", self.out.lock(), self.err.lock())
    }

    pub(crate) fn out(&self) -> String {
        self.out.lock().clone()
    }

    /// Waits until it said `text`.
    #[track_caller]
    pub(crate) fn until(&mut self, text: &str) -> impl Future<Output = ()> {
        let at = std::panic::Location::caller();
        async move {
            until(&format!("{at}: {text}"), async || {
                let ended = self.child.try_wait().unwrap();
                // The pipes may hold more than was read when the process ended.
                if ended.is_some() {
                    for reader in &mut self.readers {
                        if !reader.is_finished() {
                            reader.await.unwrap();
                        }
                    }
                }
                let said = self.said();
                assert!(ended.is_none() || said.contains(text), "{at}: {text}: {ended:?}: {said}");
                said.contains(text)
            })
            .await;
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Sends a signal, named as for `kill`, to this process alone.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for its end.
    pub(crate) async fn end(mut self) -> Ended {
        let ended = tokio::time::timeout(LIMIT, self.child.wait()).await;
        let Ok(status) = ended else { panic!("it runs on: {}", self.said()) };
        for reader in self.readers.drain(..) {
            within("its outputs close", reader).await.unwrap();
        }
        let (out, err) = (self.out.lock().clone(), self.err.lock().clone());
        Ended { code: status.unwrap().code(), out, err }
    }
}

async fn collect(mut pipe: impl AsyncRead + Unpin, into: Arc<Mutex<String>>) {
    let mut buffer = [0; 8192];
    // Characters that are cut in two do not matter here.
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        into.lock().push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

/// Runs a command to its end.
pub(crate) async fn run(args: &[&str]) -> Ended {
    Running::start(walcast(args)).end().await
}

/// Runs a line of shell to its end.
pub(crate) async fn shell(line: &str) -> Ended {
    let mut command = Command::new("sh");
    command.args(["-c", line]).stdin(Stdio::null()).kill_on_drop(true);
    Running::start(command).end().await
}
