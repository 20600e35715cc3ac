//! A node among others: what it is there for, and the tasks that this takes.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::{Node, NodeError};
use crate::health::Part;
use crate::hub::Lane;
use crate::hub::roll::Elsewhere;
use crate::pipeline::fleet::{self, Carrier, Fleet, Lead};
use crate::pipeline::roll::{Asking, Herald};
use crate::transport::Others;

/// Where the system says what the machine is called.
const HOST_NAME: &str = "/proc/sys/kernel/hostname";

/// `[node]`: what this broker is there for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What it does among others.
    pub role: Role,
    /// How it calls itself where people look; `None`: as the machine is called.
    pub name: Option<String>,
}

impl Config {
    fn name(&self) -> String {
        let host = || std::fs::read_to_string(HOST_NAME).ok().map(|name| name.trim().to_owned());
        let name = self.name.clone().or_else(host).filter(|name| !name.is_empty());
        name.unwrap_or_else(|| format!("node-{:08x}", rand::random::<u32>()))
    }
}

/// What a broker does among others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Serves clients, and leads if nobody else does.
    #[default]
    Any,
    /// Serves clients and never leads; needs Postgres for publishing over HTTP alone.
    Edge,
    /// Leads, or waits to; serves nobody.
    Leader,
}

impl FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "any" => Ok(Self::Any),
            "edge" => Ok(Self::Edge),
            "leader" => Ok(Self::Leader),
            _ => Err("any, edge or leader"),
        }
    }
}

/// Starts what a node does because there are others; by what its publish loop says that it leads.
pub(super) fn spawn(node: &mut Node) -> Result<Option<Lead>, NodeError> {
    let parts = Arc::clone(&node.parts);
    let config = &parts.config;
    if config.redis.url.is_none() {
        return Ok(None);
    }
    let (hub, health) = (Arc::clone(&parts.hub), Arc::clone(&parts.health));
    let fleet = Fleet {
        redis: config.redis.clone(),
        source: config.source.slot.clone(),
        hub,
        health,
        // A leader gives a sign of life each second; another one may take so long to come.
        silence_max: config.source.lease * 2 + Duration::from_secs(5),
    };
    let (carrier, lead, follows) = Carrier::new(fleet.clone());
    let end = parts.end.clone();
    node.spawn("follow", {
        let (fleet, end) = (fleet.clone(), end.clone());
        async move { Ok(end.run_until_cancelled(fleet::follow(fleet, follows)).await.unwrap_or(Ok(()))?) }
    });
    for (name, lane) in [("ask for topics", Lane::Topics), ("ask for patterns", Lane::Patterns)] {
        let (fleet, end) = (fleet.clone(), end.clone());
        node.spawn(name, async move {
            Ok(end.run_until_cancelled(fleet::ask(fleet, lane)).await.unwrap_or(Ok(()))?)
        });
    }
    if config.node.role == Role::Edge {
        parts.health.well(Part::Stream);
        parts.health.unwell(Part::Lease, "this broker is an edge: it never leads");
        parts.begun.cancel();
        parts.released.cancel();
        // It follows for as long as somebody could say otherwise.
        node.spawn("carry", async move {
            end.cancelled().await;
            drop(carrier);
            Ok(())
        });
        return Ok(None);
    }
    node.spawn("carry", async move {
        end.run_until_cancelled(carrier.run()).await;
        Ok(())
    });
    Ok(Some(lead))
}

/// What this node knows of who waits at others.
struct Known {
    name: String,
    /// None: it is alone.
    asking: Option<Asking>,
}

impl Others for Known {
    fn name(&self) -> &str {
        &self.name
    }

    fn elsewhere(&self) -> BoxFuture<'_, Arc<Elsewhere>> {
        match &self.asking {
            Some(asking) => asking.elsewhere().boxed(),
            None => std::future::ready(Arc::default()).boxed(),
        }
    }
}

/// Starts to tell others who waits here; by what they are asked.
pub(super) fn others(node: &mut Node) -> Result<Arc<dyn Others>, NodeError> {
    let parts = Arc::clone(&node.parts);
    let (redis, name) = (&parts.config.redis, parts.config.node.name());
    let signed_off = parts.signed_off.clone().drop_guard();
    if redis.url.is_none() {
        return Ok(Arc::new(Known { name, asking: None }));
    }
    let source = &parts.config.source.slot;
    let (herald, asking) = Herald::new(redis, source, Arc::clone(&parts.hub), name.clone())?;
    let drain = parts.drain.clone();
    node.spawn("roll", async move {
        let _signed_off = signed_off;
        herald.run(drain).await;
        Ok(())
    });
    Ok(Arc::new(Known { name, asking: Some(asking) }))
}
