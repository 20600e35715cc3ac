//! Where the machine keeps Postgres's server programs.
//!
//! It only looks; it installs nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Options, ThrowawayError};

/// The directory of the newest fitting binaries, and their major version.
pub(super) fn find_binaries(options: &Options) -> Result<(PathBuf, u32), ThrowawayError> {
    let candidates = options.bin_dir.as_ref().map_or_else(candidates, |dir| vec![dir.clone()]);
    let mut searched = Vec::new();
    for dir in candidates {
        let version = ["initdb", "pg_ctl", "postgres"]
            .iter()
            .all(|program| dir.join(program).is_file())
            .then(|| server_version(&dir))
            .flatten();
        match version {
            Some(version) if version >= options.version_min => return Ok((dir, version)),
            Some(version) => searched.push(format!("{} (version {version})", dir.display())),
            None => searched.push(dir.display().to_string()),
        }
    }
    Err(ThrowawayError::NoBinaries { version_min: options.version_min, searched: searched.join(", ") })
}

/// Where binaries may be, the likeliest first.
fn candidates() -> Vec<PathBuf> {
    let mut packaged: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin")))
        })
        .collect();
    packaged.sort_by_key(|(version, _)| std::cmp::Reverse(*version));

    let configured = Command::new("pg_config").arg("--bindir").output().ok();
    let configured = configured.and_then(|output| String::from_utf8(output.stdout).ok());
    let configured = configured.map(|dir| PathBuf::from(dir.trim()));

    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).filter_map(|dir| {
        // A link such as /usr/local/bin/postgres leads to the directory that has all three.
        let program = fs::canonicalize(dir.join("postgres")).ok()?;
        program.parent().map(Path::to_path_buf)
    });

    let mut all = Vec::new();
    for dir in packaged.into_iter().map(|(_, dir)| dir).chain(configured).chain(on_path) {
        if !dir.as_os_str().is_empty() && !all.contains(&dir) {
            all.push(dir);
        }
    }
    if all.is_empty() {
        all.push(PathBuf::from("/usr/lib/postgresql/*/bin"));
    }
    all
}

fn server_version(bin_dir: &Path) -> Option<u32> {
    let output = Command::new(bin_dir.join("postgres")).arg("--version").output().ok()?;
    parse_version(&String::from_utf8(output.stdout).ok()?)
}

/// The major version in `postgres (PostgreSQL) 15.20 (Debian 15.20-0)` or `… 19beta1`.
fn parse_version(text: &str) -> Option<u32> {
    let number = text.split(')').nth(1)?.trim();
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let check = |text: &str, expected: Option<u32>| assert_eq!(parse_version(text), expected, "{text}");
        check("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)\n", Some(15));
        check("postgres (PostgreSQL) 19beta1", Some(19));
        check("postgres (PostgreSQL) 18", Some(18));
        check("postgres", None);
        check("mysqld (MySQL) x", None);
    }
}
