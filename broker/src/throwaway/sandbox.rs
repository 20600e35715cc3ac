//! What holds a throwaway server: whom it runs as, its directory, and the watchdog that removes both.
//!
//! The watchdog must outlive us however we end, and must not remove anything but that directory.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rand::RngExt;

use super::ThrowawayError;

/// Whom the server runs as when we are root.
#[derive(Clone, Copy, Debug)]
pub(super) struct User {
    uid: u32,
    gid: u32,
}

/// A command in a process group of its own, which a terminal's Ctrl-C does not reach, run as `user`.
pub(super) fn unprivileged(program: &Path, dir: &Path, user: Option<User>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir).process_group(0).stdin(Stdio::null());
    // PGPORT and its kin would point the programs elsewhere.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    // Its words are searched for, and shown.
    command.env("LC_ALL", "C");
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command
}

/// Starts the shell that cleans up once our end of its standard input closes. The server works in `data` below `dir`
/// and says its process id in `pid_file` there; it is stopped by the `pg_ctl` in `bin_dir`, or killed.
pub(super) fn watchdog(
    bin_dir: Option<&Path>,
    dir: &Path,
    pid_file: &str,
    user: Option<User>,
) -> io::Result<Child> {
    // The loop outlasts an initdb or a start that was under way when we were killed. A process id is only
    // signalled while its working directory says that it still is this server's.
    const SCRIPT: &str = r#"
        trap '' INT TERM HUP QUIT
        read -r _
        data=$(cd "$2" && pwd -P)/data
        cd /
        tries=0
        while [ -e "$2" ] && [ $tries -lt 50 ]; do
            pid=$(head -n 1 "$data/$3")
            if [ -n "$pid" ] && [ "$(readlink "/proc/$pid/cwd")" = "$data" ]; then
                [ -n "$1" ] && "$1/pg_ctl" stop -D "$data" -m immediate -t 10 || kill -KILL "$pid"
            fi
            rm -rf "$2"
            [ -e "$2" ] && sleep 0.2
            tries=$((tries + 1))
        done
    "#;
    unprivileged(Path::new("/bin/sh"), dir, user)
        .args(["-c", SCRIPT, "walcast-watchdog"])
        .args([bin_dir.unwrap_or(Path::new("")), dir, Path::new(pid_file)])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// Makes the directory, owned by `user`.
pub(super) fn make_dir(parent: Option<&Path>, user: Option<User>) -> Result<PathBuf, ThrowawayError> {
    let mut base = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
    // Another user cannot work in root's private directory.
    let open = |path: &Path| fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o003 == 0o003);
    if parent.is_none() && user.is_some() && !open(&base) {
        base = PathBuf::from("/tmp");
    }
    let dir = base.join(format!("walcast-{:08x}", rand::rng().random::<u32>()));
    let failed = |what| move |source: io::Error| (what, source);
    let made = fs::DirBuilder::new().mode(0o700).create(&dir).map_err(failed("make the directory"));
    made.and_then(|()| match user {
        Some(user) => chown(&dir, Some(user.uid), Some(user.gid)).map_err(failed("hand over the directory")),
        None => Ok(()),
    })
    .map_err(|(what, source)| ThrowawayError::Io { what, path: dir.clone(), source })?;
    Ok(dir)
}

/// `None` if we are not root; otherwise whom to run Postgres as.
pub(super) fn unprivileged_user() -> Result<Option<User>, ThrowawayError> {
    let id = |args: &[&str]| -> Option<u32> {
        let output = Command::new("id").args(args).stderr(Stdio::null()).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    if id(&["-u"]) != Some(0) {
        return Ok(None);
    }
    let user = |name| Some(User { uid: id(&["-u", name])?, gid: id(&["-g", name])? });
    user("postgres").or_else(|| user("nobody")).map(Some).ok_or(ThrowawayError::NoUser)
}
