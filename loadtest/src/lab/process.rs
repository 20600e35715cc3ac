//! A server as a child of ours, in a directory of its own, that cannot outlive us.
//!
//! A small shell starts it and holds the reading end of a pipe from us. When the pipe closes, because
//! [`Process`] was dropped or because our process ended in whatever way, the shell ends the server, by its id,
//! and removes the directory.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use parking_lot::Mutex;

use crate::Error;

/// Signals are ignored only once the server has started, for it would inherit that.
const GUARD: &str = r#"
    dir=$1
    shift
    "$@" >"$dir/log" 2>&1 &
    pid=$!
    trap '' INT TERM HUP QUIT
    echo "$pid"
    read -r _
    kill -TERM "$pid"
    tries=0
    while grep -qs '^State:.[^ZX]' "/proc/$pid/status" && [ $tries -lt 300 ]; do
        sleep 0.05
        tries=$((tries + 1))
    done
    kill -KILL "$pid"
    rm -rf "$dir"
"#;

/// A directory that nobody else reads; removed when dropped.
#[derive(Debug)]
pub struct Dir(PathBuf);

impl Deref for Dir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // Where a guard had it, it is gone already.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes a directory.
///
/// # Errors
/// The system's place for temporary files cannot be written.
pub fn make_dir() -> Result<Dir, Error> {
    let dir = std::env::temp_dir().join(format!("walcast-loadtest-{:08x}", rand::random::<u32>()));
    let made = fs::DirBuilder::new().mode(0o700).create(&dir);
    made.map_err(Error::of(&format!("cannot make the directory {}", dir.display())))?;
    Ok(Dir(dir))
}

/// A running server.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    pid: u32,
    dir: Dir,
    /// Its standard input is the pipe.
    guard: Mutex<Child>,
}

impl Process {
    /// Starts `command` with what it says going to a log in `dir`, which goes with it.
    ///
    /// # Errors
    /// There is no shell, or no process can be made.
    pub fn start(name: &'static str, dir: Dir, command: &Command) -> Result<Self, Error> {
        let failed = || format!("cannot start {name}");
        let mut guard = Command::new("/bin/sh");
        guard
            .args(["-c", GUARD, "walcast-guard"])
            .arg(&*dir)
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => guard.env(key, value),
                None => guard.env_remove(key),
            };
        }
        let mut guard = guard
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::of(&failed()))?;
        let mut line = String::new();
        if let Some(out) = guard.stdout.take() {
            BufReader::new(out).read_line(&mut line).map_err(Error::of(&failed()))?;
        }
        let pid = line.trim().parse().map_err(Error::of(&failed()))?;
        Ok(Self { name, pid, dir, guard: Mutex::new(guard) })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// An error if it has ended: with the last that it said.
    ///
    /// # Errors
    /// It has ended.
    pub fn check(&self) -> Result<(), Error> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let state = status.lines().find_map(|line| line.strip_prefix("State:"));
        if state.is_some_and(|state| !state.trim().starts_with(['Z', 'X'])) {
            return Ok(());
        }
        Err(Error::failed(format!("{} ended: {}", self.name, self.last_words())))
    }

    /// The end of its log.
    #[must_use]
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(4).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let guard = self.guard.get_mut();
        drop(guard.stdin.take());
        // It is our child; that it cannot be waited for would mean that it is gone.
        let _ = guard.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_its_directory_go_together() {
        let dir = make_dir().unwrap();
        let path = dir.to_path_buf();
        let mut command = Command::new("sh");
        command.args(["-c", "echo here; exec sleep 600"]);
        let process = Process::start("sleep", dir, &command).unwrap();
        process.check().unwrap();
        let pid = process.pid();
        drop(process);
        assert!(!path.exists() && !Path::new(&format!("/proc/{pid}")).exists());
        let unused = make_dir().unwrap();
        let path = unused.to_path_buf();
        drop(unused);
        assert!(!path.exists());
    }

    #[test]
    fn one_that_ended_says_why() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no luck; exit 3"]);
        let process = Process::start("a shell", make_dir().unwrap(), &command).unwrap();
        let error = loop {
            if let Err(error) = process.check() {
                break error;
            }
        };
        assert_eq!(error.message, "a shell ended: no luck");
    }
}
