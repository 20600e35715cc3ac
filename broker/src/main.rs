//! The `walcast` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    walcast::cli::main()
}
