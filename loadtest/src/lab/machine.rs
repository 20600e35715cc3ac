//! What the figures were measured on.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::report::Machine;

/// This machine, and the versions of the programs that may take part; those that are missing are left out.
#[must_use]
pub fn describe(broker: &Path, postgres: Option<&str>) -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (cpus, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let value = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let kib = value(&memory, "MemTotal").and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    let mut machine = Machine {
        cpu: value(&cpus, "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
        memory_bytes: kib.unwrap_or(0) * 1024,
        kernel: format!(
            "{} {}",
            read("/proc/sys/kernel/ostype").trim(),
            read("/proc/sys/kernel/osrelease").trim()
        ),
        ..Machine::default()
    };
    let programs: [(&str, &Path, &str); 3] = [
        ("walcast", broker, "--version"),
        ("Redis", Path::new("redis-server"), "--version"),
        ("nginx", Path::new("nginx"), "-v"),
    ];
    for (name, program, flag) in programs {
        if let Some(version) = version(program, flag) {
            machine.versions.insert(name.to_owned(), version);
        }
    }
    if let Some(postgres) = postgres {
        machine.versions.insert("Postgres".to_owned(), postgres.to_owned());
    }
    machine
}

fn version(program: &Path, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    number(&String::from_utf8_lossy(&said))
}

/// The first word that begins with a number, as in `Redis server v=7.0.15 sha=…` or `nginx/1.22.1`.
fn number(text: &str) -> Option<String> {
    let mut words = text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+')));
    let word = words
        .find(|word| word.strip_prefix('v').unwrap_or(word).starts_with(|c: char| c.is_ascii_digit()))?;
    Some(word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let check =
            |text: &str, expected: &str| assert_eq!(number(text).as_deref(), Some(expected), "{text}");
        check("Redis server v=7.0.15 sha=0:0 malloc=jemalloc", "7.0.15");
        check("nginx version: nginx/1.22.1", "1.22.1");
        check("walcast 0.1.0\n", "0.1.0");
        assert_eq!(number("none"), None);
    }

    #[test]
    fn this_machine_has_memory_and_a_core() {
        let machine = describe(Path::new("/nonexistent"), Some("15"));
        assert!(machine.cores > 0 && machine.memory_bytes > 0, "{machine:?}");
        assert_eq!(machine.versions.get("Postgres").map(String::as_str), Some("15"));
    }
}
