//! Instructions that each case takes, counted by callgrind and compared with `instructions.json`: unlike
//! times, they say the same on a busy machine.
//!
//! This program runs itself under valgrind, once with so many repetitions and once with twice as many; the
//! difference is free of what it takes to start and to prepare.
//!
//! `cargo bench -p walcast --bench instructions`; with `-- --write` the counts become the new baseline.
//! Exit codes: 0 nothing rose, 1 something did or cannot be compared, 64 unknown argument, 69 no valgrind.

mod cases;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::{env, fs, io};

use walcast::cli::exit::{Failure, OTHER, UNAVAILABLE, USAGE};

use cases::Case;

/// More than the hub's history holds, so that it is full before the difference begins; and so many that it
/// does not matter where tables of waiters, hashed by chance, happen to be crowded.
const REPETITIONS: u64 = 5_000;

/// How much more than the baseline is let pass, in per cent.
const RISE_MAX: f64 = 10.0;

/// Memory is not given back by time or on another thread: the same is counted every time.
const ALLOCATOR: (&str, &str) =
    ("_RJEM_MALLOC_CONF", "background_thread:false,dirty_decay_ms:-1,muzzy_decay_ms:-1");

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json");

/// Instructions per operation, by case.
type Counts = BTreeMap<String, u64>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args[..] {
        ["--case", name, repetitions] => repeat(name, repetitions),
        ["--bench"] => compare(),
        ["--write", "--bench"] => count_all().and_then(|counts| write(&counts)),
        // As cargo does to see whether it runs at all.
        [] | ["--test"] => Ok(()),
        _ => Err(Failure::new(USAGE, "usage: cargo bench -p walcast --bench instructions [-- --write]")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "instructions: {failure}");
            ExitCode::from(failure.code)
        }
    }
}

/// What runs under valgrind.
fn repeat(name: &str, repetitions: &str) -> Result<(), Failure> {
    let case = cases::ALL.into_iter().find(|case| case.name == name);
    let (Some(case), Ok(repetitions)) = (case, repetitions.parse::<u64>()) else {
        return Err(Failure::new(USAGE, format!("no case {name:?}, or no number: {repetitions:?}")));
    };
    let mut operation = (case.make)();
    (0..repetitions).for_each(|_| operation());
    Ok(())
}

fn count_all() -> Result<Counts, Failure> {
    let count = |case: &Case| {
        let (once, twice) = (count(case, REPETITIONS)?, count(case, 2 * REPETITIONS)?);
        Ok((case.name.to_owned(), twice.saturating_sub(once) / REPETITIONS))
    };
    cases::ALL.iter().map(count).collect()
}

/// Instructions of a process that prepares the case and repeats it.
fn count(case: &Case, repetitions: u64) -> Result<u64, Failure> {
    let myself = env::current_exe().map_err(|error| other("cannot find myself", &error))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(myself)
        .args(["--case", case.name, &repetitions.to_string()])
        .env(ALLOCATOR.0, ALLOCATOR.1)
        .output()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                Failure::new(UNAVAILABLE, "valgrind is not on PATH; install it by: scripts/setup --bench")
            }
            _ => other("cannot run valgrind", &error),
        })?;
    let said = String::from_utf8_lossy(&output.stderr);
    let counted = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    counted
        .filter(|_| output.status.success())
        .ok_or_else(|| Failure::new(OTHER, format!("{} failed under valgrind:\n{said}", case.name)))
}

fn compare() -> Result<(), Failure> {
    let text = fs::read(BASELINE).map_err(|error| other("cannot read benches/instructions.json", &error))?;
    let baseline: Counts = serde_json::from_slice(&text)
        .map_err(|error| Failure::new(OTHER, format!("benches/instructions.json: {error}")))?;
    let counts = count_all()?;
    println!("{:18} {:>12} {:>9} {:>8}", "case", "instructions", "baseline", "change");
    let mut risen = Vec::new();
    for (name, count) in &counts {
        let Some(before) = baseline.get(name) else {
            println!("{name:18} {count:>12} {:>9}", "none");
            risen.push(name.as_str());
            continue;
        };
        let change = (*count as f64 / *before as f64 - 1.0) * 100.0;
        println!("{name:18} {count:>12} {before:>9} {change:>+6.1} %");
        if change > RISE_MAX {
            risen.push(name);
        }
    }
    if risen.is_empty() {
        return Ok(());
    }
    let message = format!(
        "over {RISE_MAX} % above the baseline, or without one: {}; if that is meant, add `-- --write`",
        risen.join(", ")
    );
    Err(Failure::new(OTHER, message))
}

fn write(counts: &Counts) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(counts).map_err(|error| other("cannot write", &error.into()))?;
    fs::write(BASELINE, text + "\n")
        .map_err(|error| other("cannot write benches/instructions.json", &error))?;
    println!("{} counts written to {}", counts.len(), Path::new(BASELINE).display());
    Ok(())
}

fn other(what: &str, error: &io::Error) -> Failure {
    Failure::new(OTHER, format!("{what}: {error}"))
}
