//! The visibility gate: holds a transaction back until other sessions can see it.
//!
//! The walsender sends a commit when it is flushed; its row becomes visible to others a moment later, and
//! under synchronous replication only after the standby's answer. A waiter that is woken too early looks and
//! finds nothing. So a session of its own, on which nothing else ever runs that may take long, asks for the current
//! snapshot: one answer serves all transactions that it contains.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_postgres::Error;

use super::connect::two_servers;
use crate::event::Snapshot;
use crate::health::{Health, Part};
use crate::postgres::{ConnectError, Session, Target, describe, is_shutdown};
use crate::sabotage::{Fault, sabotaged};
use crate::source::failure::{Failure, Kind};

/// Whatever else is asked on this session does not wait for locks: the gate would wait behind it.
const NO_LOCKS: &str = "SET lock_timeout = '100ms'";
const LOOK: &str = "SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text";
/// Pause between two looks while a transaction is not visible: first and longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// After so long operators are told what is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Older snapshots are not believed: transaction ids come round after 2^31 others, and a new one would look old.
const AGE_MAX: Duration = Duration::from_secs(60);

type Query = Pin<Box<dyn Future<Output = Result<String, Error>> + Send>>;

/// See the module.
pub(super) struct Gate {
    session: Arc<Session>,
    health: Arc<Health>,
    latest: Seen,
    /// The look under way, and when it counts as unanswered. It is kept here so that a caller who gives up
    /// waiting does not repeat it.
    query: Option<(Query, Instant)>,
    /// How long a look may take; it costs the server nothing, so a late answer means a dead link.
    answer_max: Duration,
    waiting: Option<Waiting>,
}

/// What the last look found.
#[derive(Debug)]
struct Seen {
    snapshot: Snapshot,
    /// When it was asked for.
    at: Instant,
}

impl Seen {
    fn contains(&self, xid: u32, now: Instant) -> bool {
        now.duration_since(self.at) < AGE_MAX && self.snapshot.contains(xid)
    }
}

struct Waiting {
    since: Instant,
    pause: Duration,
    not_before: Instant,
    told: bool,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("latest", &self.latest).finish_non_exhaustive()
    }
}

impl Gate {
    /// Connects the gate's session, to the server that started when `server_start` says: what another one can see
    /// says nothing about this stream.
    pub(super) async fn connect(
        target: &Target,
        server_start: &str,
        answer_max: Duration,
        health: Arc<Health>,
    ) -> Result<Self, Failure> {
        let session = Session::connect(target, "walcast gate").await?;
        let failed = |error| ConnectError::from_client("the gate session", &error);
        session.batch_execute(NO_LOCKS).await.map_err(failed)?;
        let row = session.query_typed_one("SELECT pg_catalog.pg_postmaster_start_time()::text", &[]).await;
        let found: String = row.and_then(|row| row.try_get(0)).map_err(failed)?;
        if found != server_start {
            return Err(two_servers());
        }
        let latest = Seen { snapshot: Snapshot::default(), at: Instant::now() };
        let session = Arc::new(session);
        Ok(Self { session, health, latest, query: None, answer_max, waiting: None })
    }

    /// The session, to watch for its end.
    pub(super) fn session(&self) -> Arc<Session> {
        Arc::clone(&self.session)
    }

    /// Waits until the transaction is visible. Cancel safe.
    pub(super) async fn pass(&mut self, xid: u32) -> Result<(), Failure> {
        while !self.latest.contains(xid, Instant::now()) && !sabotaged(Fault::NoGate) {
            if let Some(waiting) = &self.waiting {
                sleep_until(waiting.not_before).await;
            }
            self.look().await?;
            if !self.latest.contains(xid, Instant::now()) {
                self.wait_longer(xid);
            }
        }
        if self.waiting.take().is_some_and(|waiting| waiting.told) {
            self.health.well(Part::Gate);
        }
        Ok(())
    }

    async fn look(&mut self) -> Result<(), Failure> {
        let (query, end) = self.query.get_or_insert_with(|| {
            let session = Arc::clone(&self.session);
            let query = async move { session.query_typed_one(LOOK, &[]).await?.try_get(0) };
            (Box::pin(query), Instant::now() + self.answer_max)
        });
        let at = *end - self.answer_max;
        let answer = timeout_at(*end, query).await;
        self.query = None;
        let text = match answer {
            Ok(Ok(text)) => text,
            // A session that ends says why in its own words; the query only breaks.
            Ok(Err(error)) if error.is_closed() => {
                return Err(Failure::of_closed("gate", &self.session.closed().await));
            }
            Ok(Err(error)) => {
                let kind = match error.code() {
                    Some(code) if is_shutdown(code) => Kind::Shutdown,
                    _ => Kind::Passing,
                };
                return Err(Failure { message: format!("the gate session: {}", describe(&error)), kind });
            }
            Err(_) => {
                let message = format!("the gate session has not answered for {:?}", self.answer_max);
                return Err(Failure { message, kind: Kind::Silent });
            }
        };
        // Postgres always answers in this form; were it not so, nothing would count as visible.
        self.latest = Seen { snapshot: Snapshot::parse(&text).unwrap_or_default(), at };
        Ok(())
    }

    fn wait_longer(&mut self, xid: u32) {
        let now = Instant::now();
        let waiting =
            self.waiting.get_or_insert(Waiting { since: now, pause: PAUSE.0, not_before: now, told: false });
        waiting.not_before = now + waiting.pause;
        waiting.pause = (waiting.pause * 2).min(PAUSE.1);
        if now.duration_since(waiting.since) >= PATIENCE {
            waiting.told = true;
            let seconds = now.duration_since(waiting.since).as_secs();
            self.health.unwell(
                Part::Gate,
                format!(
                    "transaction {xid} is committed but not visible for {seconds} s, and all later ones wait behind \
                     it: is a synchronous standby missing? (pg_stat_activity: wait_event SyncRep)"
                ),
            );
        }
    }
}

impl Drop for Gate {
    /// What this gate told of ends with it; the next one sees for itself.
    fn drop(&mut self) {
        if self.waiting.as_ref().is_some_and(|waiting| waiting.told) {
            self.health.well(Part::Gate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_not_believed_for_ever() {
        let at = Instant::now();
        // More than half the circle of ids on from here, 5 has come round: it is new.
        let seen = Seen { snapshot: Snapshot::parse("2147483600:2147483600:").unwrap(), at };
        let check = |seconds: u64, xid: u32, expected: bool| {
            assert_eq!(
                seen.contains(xid, at + Duration::from_secs(seconds)),
                expected,
                "{xid} after {seconds} s"
            );
        };
        check(0, 2_147_483_599, true);
        check(0, 2_147_483_600, false);
        check(59, 5, true);
        check(60, 5, false);
    }
}
