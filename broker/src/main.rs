//! The `walcast` command.

use std::process::ExitCode;

/// Gives memory of a burst back once it is over: the system's own keeps what lies between things that live on.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    walcast::cli::main()
}
