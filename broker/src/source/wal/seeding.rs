//! When state tables are read, and what of it is still due: at the start, after a part of the log was not
//! seen, and when the rules change.
//!
//! A reading runs as a task beside the stream, on a session of its own, which ends with it: a large table must not
//! keep the companion from letting WAL go. If it breaks off, what it was to read
//! stays due; once all values were known, the stream goes on meanwhile.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::connect::Failure;
use super::{Wal, YIELDED_AGE_MAX, seed};
use crate::event::{Changes, SeedEnd};
use crate::health::Part;
use crate::postgres::Session;
use crate::router::TableRule;

/// Pieces of a seed that may wait.
const SEED_PIECES: usize = 4;
/// Pause before values that could not be read while the stream runs are read again.
const SEED_PAUSE: Duration = Duration::from_secs(5);

/// A seeding under way.
pub(super) struct Seeding {
    pub(super) pieces: mpsc::Receiver<Changes>,
    task: AbortOnDropHandle<Result<(), Failure>>,
    /// Its begin was yielded; until then the stream is not read on.
    pub(super) begun: bool,
    tables: Vec<TableRule>,
    forget: Vec<Arc<str>>,
}

impl Wal {
    /// Starts a seeding if one is due and none runs.
    pub(super) fn start_seeding(&mut self) {
        let Some(live) = &mut self.live else { return };
        // One after the other: until the first settles, it says what the stream still brings of its rows.
        if self.line.is_some_and(|(_, upto)| upto < self.settle) {
            return;
        }
        if live.seeding.is_some() || self.reread_after.is_some_and(|after| Instant::now() < after) {
            return;
        }
        self.reread_after = None;
        let (tables, forget) = if self.seeded {
            (std::mem::take(&mut self.reread), std::mem::take(&mut self.forget))
        } else {
            // Reading everything covers whatever the rules changed meanwhile, but not what they no longer name.
            self.reread.clear();
            (self.tables.clone(), std::mem::take(&mut self.forget))
        };
        if tables.is_empty() && forget.is_empty() {
            if !self.seeded {
                (self.seeded, self.begun) = (true, true);
                live.ready.push_back(Changes::SeedBegin(Arc::from([])));
                live.ready.push_back(Changes::SeedEnd(SeedEnd { snapshot: Arc::default(), settle: 0 }));
            }
            return;
        }
        let wanted: Vec<_> = tables.iter().cloned().map(seed::SeedTable::from).collect();
        let forgotten = forget.clone();
        let (sender, pieces) = mpsc::channel(SEED_PIECES);
        let bytes_per_second = NonZeroU64::new(self.config.seed_bytes_per_second).unwrap_or(NonZeroU64::MIN);
        self.yielded.retain(|(_, at)| at.elapsed() < YIELDED_AGE_MAX);
        let yielded = self.yielded.iter().map(|(xid, _)| *xid).collect();
        let config = seed::Config { yielded, bytes_per_second };
        let target = self.target.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut session = Session::connect(&target, "walcast seed").await?;
            seed::seed(&mut session, &wanted, &forgotten, &config, &sender).await.map_err(|error| {
                if error.is_permanent() {
                    Failure::needs_operator(error.to_string())
                } else {
                    Failure::again(error.to_string())
                }
            })
        }));
        live.seeding = Some(Seeding { pieces, task, begun: false, tables, forget });
    }

    /// A reading broke off: what it was to read is due again, unless the rules have since said otherwise.
    pub(super) fn take_back(&mut self, seeding: Seeding) {
        let Seeding { tables, forget, .. } = seeding;
        // Before everything was read once, everything is read anew.
        let tables = if self.seeded { tables } else { Vec::new() };
        let due = |this: &Self, name: &Arc<str>| {
            this.forget.contains(name) || this.reread.iter().any(|table| table.name == *name)
        };
        for table in tables {
            if !due(self, &table.name) {
                self.reread.push(table);
            }
        }
        for name in forget {
            if !due(self, &name) {
                self.forget.push(name);
            }
        }
    }

    /// Values could not be read while the stream runs: it goes on, for others wait for it.
    pub(super) fn postpone_seeding(&mut self, failure: &Failure) {
        if let Some(seeding) = self.live.as_mut().and_then(|live| live.seeding.take()) {
            self.take_back(seeding);
        }
        tracing::warn!("current values cannot be read, trying again: {}", failure.message);
        self.health.unwell(Part::Seed, failure.message.clone());
        self.reread_after = Some(Instant::now() + SEED_PAUSE);
    }

    /// See [`Source::keep_values_of`](crate::source::Source::keep_values_of).
    pub(super) fn rules_changed(&mut self, all: Vec<TableRule>, changed: Vec<Arc<str>>) {
        // A reading of what is no longer right starts over.
        let outdated = |seeding: &Seeding| seeding.tables.iter().any(|table| changed.contains(&table.name));
        if let Some(live) = &mut self.live
            && live.seeding.as_ref().is_some_and(outdated)
            && let Some(seeding) = live.seeding.take()
        {
            self.take_back(seeding);
        }
        for name in changed {
            self.reread.retain(|table| table.name != name);
            self.forget.retain(|forgotten| *forgotten != name);
            match all.iter().find(|table| table.name == name) {
                Some(table) => self.reread.push(table.clone()),
                None => self.forget.push(name),
            }
        }
        (self.tables, self.reread_after) = (all, None);
        self.health.well(Part::Seed);
    }
}

/// The next piece of the seeding, if one runs. Its end without [`Changes::SeedEnd`] is a failure.
pub(super) async fn next_piece(seeding: &mut Option<Seeding>) -> Result<Option<Changes>, Failure> {
    let Some(running) = seeding else { return std::future::pending().await };
    match running.pieces.recv().await {
        Some(piece) => {
            running.begun = true;
            Ok(Some(piece))
        }
        None => {
            let result = (&mut running.task).await;
            Err(match result {
                Ok(Err(failure)) => failure,
                _ => Failure::again("reading current values ended early"),
            })
        }
    }
}

impl From<TableRule> for seed::SeedTable {
    fn from(table: TableRule) -> Self {
        let names = |columns: Vec<Arc<str>>| columns.iter().map(|name| name.to_string()).collect();
        Self { name: table.name, columns: table.columns.map(names) }
    }
}
