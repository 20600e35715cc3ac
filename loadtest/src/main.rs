//! The place of the load tester; until its scenarios arrive it points at `walcast demo`.

use std::process::ExitCode;

fn main() -> ExitCode {
    use std::io::Write as _;
    let _ = writeln!(
        std::io::stderr(),
        "walcast-loadtest has no scenario in this release; `walcast demo` measures a small fleet"
    );
    ExitCode::from(64)
}
