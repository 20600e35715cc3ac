//! `walcast setup` and `walcast teardown` as commands: from flags and configuration to what they do.

use std::io::Write;

use super::exit::{self, Failure};
use super::settings::{Settings, SourceFlag, check_rules, connect, published_tables};
use super::setup::{self, SetupArgs, SetupOptions};
use super::teardown::{self, TeardownArgs, TeardownOptions};
use crate::postgres::Session;
use crate::source::SourceKind;

/// Arguments of `setup`.
#[derive(clap::Args, Clone, Debug)]
#[command(about = "Make in the database what the broker and publishers need")]
pub struct SetupCommand {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    source: SourceFlag,
    #[command(flatten)]
    args: SetupArgs,
}

/// Arguments of `teardown`.
#[derive(clap::Args, Clone, Debug)]
#[command(about = "Remove from the database all that setup made")]
pub struct TeardownCommand {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    source: SourceFlag,
    #[command(flatten)]
    args: TeardownArgs,
}

/// Runs `setup`.
///
/// # Errors
/// See [`SetupError`](setup::SetupError).
pub async fn set_up(command: &SetupCommand, out: &mut impl Write) -> Result<(), Failure> {
    let loader = command.source.over(command.settings.loader());
    let file = loader.file().display().to_string();
    let loaded = loader.load_all()?;
    let (said, config) = (loaded.sets("source", "kind"), loaded.config);
    let args = &command.args;
    if args.no_tables && loader.found() {
        let message =
            format!("--no-tables: {file} says what is published; leave out the flag, or the file's rules");
        return Err(Failure::new(exit::USAGE, message));
    }
    let mut options = SetupOptions {
        kind: config.source.kind,
        history_age: config.history.age,
        source: config.source.slot.clone(),
        publication: config.source.publication.clone(),
        tables: published_tables(&config, &file)?,
        rules_missing: (!loader.found() && !args.no_tables)
            .then(|| format!("there is no {file} in the working directory")),
        broker_role: args.broker_role.clone(),
        publishers: args.publisher.clone(),
        accept_unbounded_wal: args.accept_unbounded_wal,
        carrier: args.carrier,
        compat: args.compat,
        lock_timeout: args.lock_timeout,
    };
    if args.print_sql.is_some() && config.postgres.url.is_none() {
        return Ok(setup::run(args, &options, None, out).await?);
    }
    let mut session = connect(&config).await?;
    // Nobody said by which way: then it stays as it is. Publishers are switched over only where that is asked for.
    if !said && let Some(kind) = carried(&session).await {
        options.kind = kind;
    }
    let done = async {
        check_rules(&session, &config, &file).await?;
        Ok(setup::run(args, &options, Some(&mut session), out).await?)
    }
    .await;
    session.close().await;
    done
}

/// Runs `teardown`.
///
/// # Errors
/// See [`SetupError`](setup::SetupError).
pub async fn take_down(command: &TeardownCommand, out: &mut impl Write) -> Result<(), Failure> {
    let config = command.source.over(command.settings.loader()).load()?;
    let args = &command.args;
    let options = TeardownOptions {
        kind: config.source.kind,
        source: config.source.slot.clone(),
        publication: config.source.publication.clone(),
        wait: args.wait,
        lock_timeout: args.lock_timeout,
    };
    let mut session = connect(&config).await?;
    let done = teardown::run(args, &options, &mut session, out).await;
    session.close().await;
    Ok(done?)
}

/// By which way publishers send now, where that was ever set up.
async fn carried(session: &Session) -> Option<SourceKind> {
    let row = session.query_typed_one("SELECT carry FROM walcast.settings", &[]).await.ok()?;
    row.try_get::<_, &str>(0).ok()?.parse().ok()
}
