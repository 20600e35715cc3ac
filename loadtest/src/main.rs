//! `walcast-loadtest`: arguments, one call, the report, an exit code.

use std::io::Write as _;
use std::process::ExitCode;
use std::task::Poll;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use walcast_loadtest::Error;
use walcast_loadtest::args::Args;
use walcast_loadtest::outputs::Outputs;
use walcast_loadtest::report::summary::summarise;
use walcast_loadtest::report::targets::{Outcome, judge};
use walcast_loadtest::report::{Report, Scenario, System, table};
use walcast_loadtest::run::{self, Options};

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    if args.list() {
        let mut out = std::io::stdout();
        for scenario in Scenario::ALL {
            let _ = writeln!(out, "{scenario:8} {}", scenario.about());
        }
        return ExitCode::SUCCESS;
    }
    match args.options().and_then(|options| load(&args, &options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(&error.message);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Runs, and writes what was found; whether all held. What is read and written is opened first: nobody plays for
/// minutes to hear that there was no such directory.
fn load(args: &Args, options: &Options) -> Result<bool, Error> {
    let mut earlier = Vec::new();
    for path in &args.add {
        let read = std::fs::read_to_string(path).map_err(|error| error.to_string());
        let read = read.and_then(|text| Report::from_json(&text).map_err(|error| error.to_string()));
        earlier
            .push(read.map_err(|error| Error::usage(format!("no report in {}: {error}", path.display())))?);
    }
    let outputs = Outputs::open(args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Error::of("cannot start"))?;
    let (mut report, played) = match options.jobs.is_empty() {
        true => (Report::default(), Ok(())),
        false => runtime.block_on(run::run(options, interrupted())),
    };
    for report_of_before in earlier.into_iter().rev() {
        report.add(report_of_before);
    }
    let mut out = std::io::stdout();
    if !report.runs.is_empty() {
        let _ = write!(out, "{}", table::render(&report));
        outputs.write(&report)?;
    }
    played?;
    let mut held = true;
    for run in report.runs.iter().filter(|run| !run.checks.held()) {
        // What a peer loses is for the reader to judge.
        held &= run.system != System::Walcast;
        complain(&run.complaint());
    }
    let missed = judge(&summarise(&report.runs)).iter().any(Outcome::fails);
    Ok(held && !(args.check && missed))
}

/// By whoever sits there, or by whatever ends services and sessions.
async fn interrupted() {
    let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    // Without a handler the signal ends us by itself, and the guards end what we started.
    let mut handlers: Vec<_> = signals.into_iter().filter_map(|kind| signal(kind).ok()).collect();
    std::future::poll_fn(|context| {
        let came = handlers.iter_mut().any(|handler| handler.poll_recv(context).is_ready());
        if came { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "walcast-loadtest: {message}");
}
