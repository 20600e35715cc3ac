//! A node among others: what it is there for, and the tasks that this takes.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::{Node, NodeError};
use crate::health::Part;
use crate::hub::Lane;
use crate::pipeline::fleet::{self, Carrier, Fleet, Lead};

/// `[node]`: what this broker is there for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What it does among others.
    pub role: Role,
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
