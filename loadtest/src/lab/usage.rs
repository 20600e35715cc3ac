//! Memory and CPU of a server: of a process and of all its children.
//!
//! Memory is the proportional set size: what several processes share counts once. CPU is what the scheduler
//! counted, in nanoseconds, for ticks of 10 ms are too coarse for a few events; of children that have ended
//! only ticks are known.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// A tick of `/proc/PID/stat`: Linux shows 100 a second to programs, whatever it uses itself.
const TICK: Duration = Duration::from_millis(10);

/// `root` and all that descends from it.
#[must_use]
pub fn tree(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in numbers("/proc") {
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut all = vec![root];
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        all.extend(children.remove(pid).unwrap_or_default());
        at += 1;
    }
    all
}

/// Memory of `root` and its children, in bytes.
#[must_use]
pub fn memory_bytes(root: u32) -> u64 {
    tree(root).into_iter().map(pss).sum()
}

/// CPU of `root` and its children since they began, user's and system's.
#[must_use]
pub fn cpu(root: u32) -> Duration {
    tree(root).into_iter().map(|pid| alive(pid) + ended(pid)).sum()
}

fn pss(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Of all threads that run.
fn alive(pid: u32) -> Duration {
    let threads = numbers(&format!("/proc/{pid}/task"));
    let each = threads.into_iter().filter_map(|thread| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok()?;
        Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
    });
    each.sum()
}

/// Of children that have ended.
fn ended(pid: u32) -> Duration {
    let Some(fields) = stat(pid) else { return Duration::ZERO };
    let ticks = fields.get(13..15).unwrap_or_default().iter().filter_map(|field| field.parse::<u32>().ok());
    TICK * ticks.sum::<u32>()
}

/// The fields behind the name in `/proc/PID/stat`: state, parent, …
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn numbers(dir: &str) -> Vec<u32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_its_child() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = std::process::id();
        let all = tree(own);
        assert!(all.contains(&own) && all.contains(&child.id()), "{all:?}");
        assert!(memory_bytes(own) > pss(child.id()));
        let before = cpu(own);
        let began = std::time::Instant::now();
        let mut sum = 0u64;
        while began.elapsed() < Duration::from_millis(50) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(cpu(own) > before);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
