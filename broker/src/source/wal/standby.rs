//! Standbys: whether each has a copy of the floor that would outlive a failover to it.
//!
//! From Postgres 17 on a standby can copy the floor, but only the standby knows whether it does. So the other hosts
//! of the connection string are asked now and then, each on a session that is opened for the question. It only
//! tells; nothing waits for a standby.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_postgres::SimpleQueryMessage;
use tokio_util::task::AbortOnDropHandle;

use super::connect::literal;
use crate::facts::{Copy, StandbyFacts};
use crate::postgres::dsn::{Attributes, HostPort};
use crate::postgres::{Session, Target, describe};

/// Between two looks,
const PAUSE: Duration = Duration::from_secs(30);
/// and while a copy is missing.
const PAUSE_MISSING: Duration = Duration::from_secs(3);
/// For one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What was seen last; empty before the first look, and where there is nobody to ask.
pub(super) type Seen = watch::Receiver<Vec<StandbyFacts>>;

/// Asks until the handle is dropped.
pub(super) fn watch(target: &Target, slot: &str) -> (AbortOnDropHandle<()>, Seen) {
    let (sender, seen) = watch::channel(Vec::new());
    let (target, slot) = (target.clone(), slot.to_owned());
    let task = async move {
        let mut hosts = if target.hosts.len() > 1 { target.hosts.clone() } else { Vec::new() };
        while !hosts.is_empty() {
            let mut facts = Vec::new();
            for host in std::mem::take(&mut hosts) {
                // A primary stays one for as long as this stream lasts, or is none of ours.
                let Some(copy) = ask(&target, &host, &slot).await else { continue };
                facts.push(StandbyFacts { host: host.to_string(), copy });
                hosts.push(host);
            }
            let missing = facts.iter().any(|standby| standby.copy != Copy::Lasting);
            sender.send_replace(facts);
            sleep(if missing { PAUSE_MISSING } else { PAUSE }).await;
        }
    };
    (AbortOnDropHandle::new(tokio::spawn(task)), seen)
}

/// `None`: it is no standby.
async fn ask(target: &Target, host: &HostPort, slot: &str) -> Option<Copy> {
    let target = Target { hosts: vec![host.clone()], attributes: Attributes::Any, ..target.clone() };
    let answer = async {
        let session =
            Session::connect(&target, "walcast standby").await.map_err(|error| error.to_string())?;
        // Columns of later versions are read through jsonb, where absent ones are null.
        let sql = format!(
            "SELECT CASE WHEN NOT pg_is_in_recovery() THEN 'primary'
                 WHEN s.slot_name IS NULL OR to_jsonb(s)->>'synced' IS DISTINCT FROM 'true'
                     OR to_jsonb(s)->>'invalidation_reason' IS NOT NULL THEN 'none'
                 WHEN s.temporary THEN 'passing' ELSE 'lasting' END
             FROM (SELECT) AS one LEFT JOIN pg_replication_slots s ON s.slot_name = {}",
            literal(slot)
        );
        let messages = session.simple_query(&sql).await.map_err(|error| describe(&error))?;
        let found = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        session.close().await;
        Ok(found.unwrap_or_default())
    };
    match timeout(ANSWER, answer).await.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
        Ok(found) => match found.as_str() {
            "primary" => None,
            "lasting" => Some(Copy::Lasting),
            "passing" => Some(Copy::Passing),
            _ => Some(Copy::None),
        },
        Err(error) => Some(Copy::Unknown(error)),
    }
}
