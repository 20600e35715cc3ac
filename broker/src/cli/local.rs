//! A broker of one's own for a while: for `dev` and `demo`.

use std::net::{Ipv4Addr, SocketAddr};

use super::exit::{self, Failure};
use super::settings::{connect, published_tables};
use super::setup::{SetupOptions, setup};
use super::teardown::{TeardownOptions, teardown};
use crate::config::Config;
use crate::node::{Node, NodeError};
use crate::throwaway::{Options, Throwaway};

/// Starts a throwaway server; it goes when the handle is dropped, or the process ends.
///
/// # Errors
/// No server can be started; the message says what to install.
pub async fn throwaway(options: Options) -> Result<Throwaway, Failure> {
    let started = tokio::task::spawn_blocking(move || Throwaway::start(&options)).await;
    match started {
        Ok(Ok(server)) => Ok(server),
        Ok(Err(error)) => Err(Failure::new(exit::UNAVAILABLE, error.to_string())),
        Err(error) => Err(Failure::new(exit::OTHER, error.to_string())),
    }
}

/// The configuration of a broker on this database; `port` 0 is any free one.
#[must_use]
pub fn config(url: &str, port: u16) -> Config {
    let mut config = Config::default();
    config.postgres.url = Some(url.into());
    config.http.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    config.admin.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config
}

/// Sets up what the configuration needs.
///
/// # Errors
/// See [`setup`].
pub async fn set_up(config: &Config, accept_unbounded_wal: bool) -> Result<(), Failure> {
    let options = SetupOptions {
        kind: config.source.kind,
        history_age: config.history.age,
        source: config.source.slot.clone(),
        publication: config.source.publication.clone(),
        tables: published_tables(config, "the built-in rules")?,
        accept_unbounded_wal,
        ..SetupOptions::default()
    };
    let mut session = connect(config).await?;
    setup(&mut session, &options).await?;
    session.close().await;
    Ok(())
}

/// Takes down what [`set_up`] made.
///
/// # Errors
/// See [`teardown`].
pub async fn take_down(config: &Config) -> Result<(), Failure> {
    let options = TeardownOptions {
        kind: config.source.kind,
        source: config.source.slot.clone(),
        publication: config.source.publication.clone(),
        ..TeardownOptions::default()
    };
    let mut session = connect(config).await?;
    teardown(&mut session, &options).await?;
    session.close().await;
    Ok(())
}

/// A started node that is ready.
///
/// # Errors
/// It does not start, or is not ready in time.
pub async fn start(config: Config) -> Result<Node, Failure> {
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
    let failed = |error: &NodeError| Failure::of_node("the built-in rules", error);
    let node = Node::start(config).map_err(|error| failed(&error))?;
    let ready = async {
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(20));
        while !node.ready() {
            tick.tick().await;
        }
    };
    if tokio::time::timeout(PATIENCE, ready).await.is_err() {
        let why = node.problems();
        let failure = Failure::new(exit::UNAVAILABLE, format!("the broker is not ready: {why}"));
        return Err(match node.join(std::future::ready(())).await {
            Err(error) => failed(&error),
            Ok(()) => failure,
        });
    }
    Ok(node)
}
