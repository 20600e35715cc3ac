//! One broker of one's own or several over a Redis of their own, in this process: for `dev` and `demo`.

use std::future::ready;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::exit::{self, Failure};
use super::local;
use crate::config::Config;
use crate::node::{Node, NodeError, Role};
use crate::throwaway::redis::Server as Redis;

/// The flag that says how many.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct NodesFlag {
    /// Brokers: one leads, the others are edges that follow it over a throwaway Redis
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: u16,
}

impl NodesFlag {
    /// The Redis that they need: none for one.
    ///
    /// # Errors
    /// It cannot be started; the message says what to install.
    pub async fn redis(self) -> Result<Option<Redis>, Failure> {
        if self.nodes == 1 {
            return Ok(None);
        }
        match tokio::task::spawn_blocking(Redis::start).await {
            Ok(Ok(redis)) => Ok(Some(redis)),
            Ok(Err(error)) => {
                Err(Failure::new(exit::UNAVAILABLE, format!("--nodes {}: {error}", self.nodes)))
            }
            Err(error) => Err(Failure::new(exit::OTHER, error.to_string())),
        }
    }
}

/// Running brokers on one source.
#[derive(Debug)]
pub struct Brokers {
    /// The first leads.
    nodes: Vec<Node>,
    redis: Option<Redis>,
}

impl Brokers {
    /// Starts a broker with each of these settings and waits until all are ready. The first one leads; of the others,
    /// for which a Redis is needed, none ever does.
    ///
    /// # Errors
    /// One does not start, or is not ready in time.
    pub async fn start(
        configs: impl IntoIterator<Item = Config>,
        redis: Option<Redis>,
    ) -> Result<Self, Failure> {
        let mut brokers = Self { nodes: Vec::new(), redis };
        for mut config in configs {
            config.redis.url = brokers.redis.as_ref().map(|redis| redis.url());
            match brokers.nodes.len() {
                0 => config.node.name = brokers.redis.as_ref().map(|_| "leader".to_owned()),
                n => (config.node.role, config.node.name) = (Role::Edge, Some(format!("edge-{n}"))),
            }
            match local::start(config).await {
                Ok(node) => brokers.nodes.push(node),
                Err(failure) => {
                    // The first failure is the one to tell.
                    let _ = brokers.join(ready(())).await;
                    return Err(failure);
                }
            }
        }
        Ok(brokers)
    }

    /// All of them, the leader first.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Runs until `stop`, or until one of them fails; then drains them all, and removes the Redis.
    ///
    /// # Errors
    /// What ended the first that failed.
    pub async fn join(self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        let over = CancellationToken::new();
        let all = join_all(self.nodes.into_iter().map(|node| {
            let over = over.clone();
            async move {
                // Whichever ends takes the others with it.
                let _over = over.clone().drop_guard();
                node.join(over.cancelled()).await
            }
        }));
        let stopped = async {
            over.run_until_cancelled(stop).await;
            over.cancel();
        };
        let (ended, ()) = tokio::join!(all, stopped);
        if let Some(redis) = self.redis {
            // Blocks until it is gone.
            let _ = tokio::task::spawn_blocking(move || drop(redis)).await;
        }
        ended.into_iter().collect()
    }
}
