//! The lease: who holds the live slot leads; everybody else waits here, on the companion session alone.
//!
//! The server keeps the lease: the slot goes with the connection that made it, and the server ends a connection
//! that is silent for `source.lease`. Nothing here decides that a leader is dead. A leader is asked to go by a
//! row in `walcast.source`; only one that was asked and stays is ended, and only by a broker that was started for
//! that. Each broker asks once at most, so that two cannot drive each other out for ever.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::health::{Health, Part};
use crate::postgres::{Companion, Session, describe};
use crate::source::Config;
use crate::source::failure::{Failure, Kind, NOT_GRANTED};

/// Between two looks at who leads, and of the leader at whether it is asked to go.
const LOOK: Duration = Duration::from_millis(250);
/// The same while we have asked for the lease.
const LOOK_ASKING: Duration = Duration::from_millis(50);
/// A leader that was asked has so long before its connection is ended,
const PATIENCE: Duration = Duration::from_secs(2);
/// again and again, for one signal may be lost on a walsender that cannot send.
const AGAIN: Duration = Duration::from_millis(250);
/// No look takes so long on a link that works.
const LOOK_MAX: Duration = Duration::from_secs(5);
/// The name by which our walsenders are known to the server.
pub(super) const WALSENDER: &str = "walcast";

/// What it takes to look.
#[derive(Debug)]
struct Line {
    companion: Arc<Companion>,
    slot: String,
    live: String,
    /// Who we are in `walcast.source`.
    id: String,
}

/// A broker's place in the line.
#[derive(Debug)]
pub(super) struct Lease {
    line: Arc<Line>,
    health: Arc<Health>,
    takeover: Takeover,
    /// Who had asked for the lease when we got it; `None`: we never led.
    led_after: Option<Option<String>>,
    /// Our last walsender.
    own: Option<i32>,
    /// The leader that we told of.
    told: Option<Option<i32>>,
}

/// Whether we may ask for the lease.
#[derive(Debug)]
enum Takeover {
    /// Not, or not any more.
    No,
    /// If somebody leads.
    Due,
    /// We have asked.
    Asked { since: Instant, ended: Option<Instant> },
}

/// What the server says about the lease.
#[derive(Debug)]
struct Look {
    held: bool,
    pid: Option<i32>,
    since: Option<String>,
    /// The broker that asked for the lease last,
    asked_by: Option<String>,
    /// and whether that was a moment ago.
    asked_now: bool,
}

impl Line {
    /// Somebody else asked since `before` was read.
    fn is_asked(&self, by: Option<&String>, before: &Option<String>) -> bool {
        by.is_some_and(|by| *by != self.id) && by != before.as_ref()
    }

    /// Who asked for the lease last.
    async fn asked_by(&self, session: &Session) -> Result<Option<String>, tokio_postgres::Error> {
        const ASKED: &str = "SELECT takeover_by::text FROM walcast.source WHERE slot = $1";
        let row = session.query_typed_opt(ASKED, &[(&self.slot, Type::TEXT)]).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?.flatten())
    }

    /// Until somebody else asks for the lease. On the gate's session where there is one: on the companion's, a large
    /// table or a slow move of the floor would hold up the answer until patience ends.
    async fn until_asked(&self, gate: Option<Arc<Session>>, before: Option<String>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let by = match &gate {
                Some(session) => self.asked_by(session).await.ok(),
                None => match self.companion.lock().await {
                    Ok(session) => self.asked_by(&session).await.ok(),
                    Err(_) => None,
                },
            };
            // A session that ended is the stream's to judge.
            if self.is_asked(by.flatten().as_ref(), &before) {
                return;
            }
        }
    }

    async fn look(&self) -> Result<Look, Failure> {
        const LOOK: &str = "
            SELECT s.takeover_by::text,
                   coalesce(s.takeover_at > pg_catalog.clock_timestamp() - interval '5 s', false),
                   l.slot_name IS NOT NULL, l.active_pid,
                   pg_catalog.date_trunc('second', a.backend_start)::text
            FROM (SELECT) AS one
            LEFT JOIN walcast.source s ON s.slot = $1
            LEFT JOIN pg_catalog.pg_replication_slots l ON l.slot_name = $2
            LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.active_pid";
        let session = self.companion.lock().await?;
        let row = session.query_typed_one(LOOK, &[(&self.slot, Type::TEXT), (&self.live, Type::TEXT)]).await;
        let row = row.map_err(|error| refused(&error))?;
        let read = || {
            Ok(Look {
                asked_by: row.try_get(0)?,
                asked_now: row.try_get(1)?,
                held: row.try_get(2)?,
                pid: row.try_get(3)?,
                since: row.try_get(4)?,
            })
        };
        read().map_err(|error| refused(&error))
    }
}

impl Lease {
    /// Nobody's yet.
    pub(super) fn new(config: &Config, companion: Arc<Companion>, health: Arc<Health>) -> Self {
        let id = Uuid::new_v4().to_string();
        let line = Line { companion, slot: config.slot.clone(), live: config.live_slot(), id };
        Self {
            line: Arc::new(line),
            health,
            takeover: if config.takeover { Takeover::Due } else { Takeover::No },
            led_after: None,
            own: None,
            told: None,
        }
    }

    /// Waits, for ever if need be, until nobody holds the lease. Cancel safe.
    ///
    /// # Errors
    /// The server cannot be asked; or we led, and another broker was to take over.
    pub(super) async fn wait(&mut self) -> Result<(), Failure> {
        loop {
            let look =
                tokio::time::timeout(LOOK_MAX, self.line.look()).await.unwrap_or_else(|_| Err(late()))?;
            if self
                .led_after
                .as_ref()
                .is_some_and(|before| self.line.is_asked(look.asked_by.as_ref(), before))
            {
                return Err(handed_over());
            }
            let others_turn = look.asked_now && look.asked_by.as_ref() != Some(&self.line.id);
            if !look.held && !others_turn {
                if self.told.take().is_some() {
                    tracing::info!(slot = self.line.slot, "nobody leads any more: taking the lead");
                    self.health.unwell(Part::Stream, "taking the lead");
                    self.health.well(Part::Lease);
                }
                return Ok(());
            }
            self.tell(&look);
            self.press(&look).await?;
            let asking = matches!(self.takeover, Takeover::Asked { .. });
            tokio::time::sleep(if asking { LOOK_ASKING } else { LOOK }).await;
        }
    }

    /// Another broker was quicker.
    pub(super) async fn lost_the_race(&self) {
        tokio::time::sleep(LOOK_ASKING).await;
    }

    /// The lease is ours from here on; whoever asks for it later gets it. `asked_by` as it was before.
    pub(super) async fn won(
        &mut self,
        walsender: i32,
        gate: Option<Arc<Session>>,
        asked_by: Option<String>,
    ) -> Result<Handover, Failure> {
        if !matches!(std::mem::replace(&mut self.takeover, Takeover::No), Takeover::No) {
            // Others need not wait for us any more, should we end soon.
            const SERVED: &str = "UPDATE walcast.source SET takeover_at = NULL
                                  WHERE slot = $1 AND takeover_by = $2::text::uuid";
            let session = self.line.companion.lock().await?;
            session
                .execute_typed(SERVED, &[(&self.line.slot, Type::TEXT), (&self.line.id, Type::TEXT)])
                .await
                .map_err(|error| refused(&error))?;
        }
        (self.own, self.led_after) = (Some(walsender), Some(asked_by.clone()));
        let line = Arc::clone(&self.line);
        let watch = async move { line.until_asked(gate, asked_by).await };
        Ok(Handover(AbortOnDropHandle::new(tokio::spawn(watch))))
    }

    /// Says once who leads.
    fn tell(&mut self, look: &Look) {
        if look.held && look.pid.is_some() && look.pid == self.own {
            // Nobody else leads: clients stay.
            self.health.unwell(Part::Stream, "the server has not noticed yet that our last connection ended");
            return;
        }
        let mut who = "another broker leads".to_owned();
        if let Some(pid) = look.pid {
            who.push_str(&format!(": pid {pid}"));
        }
        if let Some(since) = &look.since {
            who.push_str(&format!(", since {since}"));
        }
        if !look.held {
            "another broker is taking over".clone_into(&mut who);
        }
        self.health.well(Part::Stream);
        self.health.unwell(Part::Lease, who.clone());
        if self.told != Some(look.pid) {
            tracing::info!(slot = self.line.slot, "standing by: {who}");
            self.told = Some(look.pid);
        }
    }

    /// Asks the leader to go, if that is what we were started for; ends its connection if it stays.
    async fn press(&mut self, look: &Look) -> Result<(), Failure> {
        const ASK: &str = "UPDATE walcast.source
            SET takeover_by = $2::text::uuid, takeover_at = pg_catalog.clock_timestamp() WHERE slot = $1";
        const END: &str = "
            SELECT pg_catalog.pg_terminate_backend(l.active_pid)
            FROM pg_catalog.pg_replication_slots l
            JOIN pg_catalog.pg_stat_activity a ON a.pid = l.active_pid
            WHERE l.slot_name = $1 AND a.application_name = $2";
        match &mut self.takeover {
            Takeover::No => {}
            Takeover::Due => {
                let session = self.line.companion.lock().await?;
                session
                    .execute_typed(ASK, &[(&self.line.slot, Type::TEXT), (&self.line.id, Type::TEXT)])
                    .await
                    .map_err(|error| refused(&error))?;
                tracing::info!(slot = self.line.slot, "asked the leader to hand over");
                self.takeover = Takeover::Asked { since: Instant::now(), ended: None };
            }
            Takeover::Asked { .. } if look.asked_by.as_ref() != Some(&self.line.id) => {
                tracing::warn!(
                    slot = self.line.slot,
                    "yet another broker was told to take over: standing by"
                );
                self.takeover = Takeover::No;
            }
            Takeover::Asked { since, ended } => {
                let due = since.elapsed() > PATIENCE && ended.is_none_or(|ended| ended.elapsed() > AGAIN);
                if !due {
                    return Ok(());
                }
                if ended.replace(Instant::now()).is_none() {
                    tracing::warn!(
                        slot = self.line.slot,
                        "the leader does not hand over: ending its connection"
                    );
                }
                let session = self.line.companion.lock().await?;
                if let Err(error) = session
                    .execute_typed(END, &[(&self.line.live, Type::TEXT), (&WALSENDER, Type::TEXT)])
                    .await
                {
                    let reason = describe(&error);
                    self.health
                        .unwell(Part::Lease, format!("the leader's connection cannot be ended: {reason}"));
                }
            }
        }
        Ok(())
    }
}

/// Completes when another broker asks for the lease.
#[derive(Debug)]
pub(super) struct Handover(AbortOnDropHandle<()>);

impl Handover {
    /// Not to be called again once it has returned. Cancel safe.
    pub(super) async fn asked(&mut self) -> Failure {
        // A task that panicked says nothing about the lease.
        if (&mut self.0).await.is_err() {
            return Failure::again("the watch over the lease broke off");
        }
        handed_over()
    }
}

fn late() -> Failure {
    let message = format!("Postgres did not say within {} s who leads", LOOK_MAX.as_secs());
    Failure { message, kind: Kind::Silent }
}

fn handed_over() -> Failure {
    let message = "another broker was told to take over, and leads from here on: stop this one".to_owned();
    Failure { message, kind: Kind::HandedOver }
}

fn refused(error: &tokio_postgres::Error) -> Failure {
    match error.code() {
        Some(code) if *code == SqlState::UNDEFINED_COLUMN => Failure::needs_operator(
            "the schema walcast is older than this program: run `walcast setup` with it",
        ),
        Some(code) if *code == SqlState::INSUFFICIENT_PRIVILEGE => Failure::needs_operator(NOT_GRANTED),
        _ => Failure::again(format!("looking who leads: {}", describe(error))),
    }
}
