//! The commands of `walcast`.
//!
//! Each command is a file: its arguments and a `run` that answers how it ended. Only this module reads
//! the process's arguments, builds a runtime and turns the end into an exit code.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod access;
pub mod brokers;
pub mod demo;
pub mod dev;
pub mod exit;
pub mod local;
pub mod publish;
pub mod schema;
pub mod serve;
pub mod settings;
pub mod setup;
pub mod shadow;
pub mod tail;
pub mod teardown;
pub mod token;

use exit::Failure;

/// A notification broker that replaces Postgres LISTEN/NOTIFY.
#[derive(Debug, Parser)]
#[command(name = "walcast", version, propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::command::Args),
    Dev(dev::Args),
    Serve(serve::Args),
    Setup(schema::SetupCommand),
    Shadow(shadow::Args),
    Teardown(schema::TeardownCommand),
    Tail(tail::Args),
    Publish(publish::Args),
    Token(token::Args),
}

/// Runs the command that the process's arguments name.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // To a closed pipe there is nothing to say.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(exit::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let ended = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(exit::OTHER, format!("cannot start: {error}")))
        .and_then(|runtime| runtime.block_on(dispatch(cli.command)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.message.lines() {
                let _ = writeln!(io::stderr(), "walcast: {line}");
            }
            ExitCode::from(failure.code)
        }
    }
}

async fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo(args) => demo::command::run(&args, &mut io::stdout(), interrupt()).await,
        Command::Dev(args) => dev::run(&args, &mut io::stdout(), interrupt()).await,
        Command::Serve(args) => serve::run(&args).await,
        Command::Setup(command) => schema::set_up(&command, &mut io::stdout()).await,
        Command::Teardown(command) => schema::take_down(&command, &mut io::stdout()).await,
        Command::Tail(args) => {
            let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            tail::run(&args, colour, &mut io::stdout(), &mut io::stderr(), interrupt()).await
        }
        Command::Shadow(args) => {
            let terminal = io::stderr().is_terminal();
            shadow::run(&args, terminal, &mut io::stdout(), &mut io::stderr(), interrupt()).await
        }
        Command::Publish(args) => publish::run(&args, io::stdin()).await,
        Command::Token(args) => token::run(&args, io::stdin(), &mut io::stdout(), &mut io::stderr()),
    }
}

/// Completes on Ctrl-C.
async fn interrupt() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without a handler, Ctrl-C ends the process as it always did.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_arguments_say_what_is_wrong() {
        let check = |args: &[&str], part: &str| {
            let error = Cli::try_parse_from(args).unwrap_err().to_string();
            assert!(error.contains(part), "{args:?}: {error}");
        };
        check(&["walcast", "tail"], "TOPIC");
        check(&["walcast", "tail", "a//b"], "no empty segment");
        check(&["walcast", "tail", "a", "--after", "yesterday"], "not a cursor");
        check(&["walcast", "tail", "a", "--transport", "fax"], "poll, sse or ws");
        check(&["walcast", "publish", "vm/*", "{}"], "no '*'");
        check(&["walcast", "setup", "--source", "pigeon"], "wal or outbox");
        check(&["walcast", "publish", "vm/a"], "JSON");
        check(&["walcast", "shadow", "--channel", ""], "at least one character");
        check(&["walcast", "setup", "--carrier", "pigeon"], "notify, both, walcast");
    }
}
