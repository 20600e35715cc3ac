//! When state tables are read, and what of it is still due: at the start, after a part of the number line was not
//! seen, and when the rules change.
//!
//! A reading runs as a task beside the stream, on a session of its own, which ends with it: a large table must
//! hold up nothing else. If it breaks off, what it was to read stays due; once all values were known, the stream goes
//! on meanwhile. How a reading is done, the source says.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::failure::{Failure, Kind};
use super::seed::{SeedError, SeedTable};
use crate::event::{Changes, SeedEnd};
use crate::health::{Health, Part};
use crate::router::TableRule;

/// Pieces of a seed that may wait.
const SEED_PIECES: usize = 4;
/// Pause before values that could not be read while the stream runs are read again.
const SEED_PAUSE: Duration = Duration::from_secs(5);

/// What a reading is to do.
#[derive(Debug)]
pub(crate) struct Order {
    /// To read.
    pub(crate) tables: Vec<SeedTable>,
    /// To announce, and not to read.
    pub(crate) forget: Vec<Arc<str>>,
    /// Where the pieces go.
    pub(crate) out: mpsc::Sender<Changes>,
}

/// A reading under way.
#[derive(Debug)]
struct Reading {
    pieces: mpsc::Receiver<Changes>,
    task: AbortOnDropHandle<Result<(), Failure>>,
    /// Its begin was yielded; until then the stream is not read on.
    begun: bool,
    tables: Vec<TableRule>,
    forget: Vec<Arc<str>>,
}

/// Current values: which are kept, which are known, and which are being read.
#[derive(Debug)]
pub(crate) struct Seeding {
    health: Arc<Health>,
    tables: Vec<TableRule>,
    /// Tables to read again, and those to forget, since the rules changed.
    reread: Vec<TableRule>,
    forget: Vec<Arc<str>>,
    /// Not before this: the last attempt failed.
    not_before: Option<Instant>,
    reading: Option<Reading>,
    /// All current values were read on this number line.
    seeded: bool,
    /// Where the reading that ended last settles.
    settle: u64,
    /// They were read once, on whatever line: from then on every failure may pass.
    begun: bool,
}

impl Seeding {
    pub(crate) fn new(health: Arc<Health>) -> Self {
        Self {
            health,
            tables: Vec::new(),
            reread: Vec::new(),
            forget: Vec::new(),
            not_before: None,
            reading: None,
            seeded: false,
            settle: 0,
            begun: false,
        }
    }

    /// All values were read once, on whatever number line.
    pub(crate) fn begun(&self) -> bool {
        self.begun
    }

    /// Another number line, or a part of this one that was not seen: all values are to be read.
    pub(crate) fn all_due(&mut self) {
        (self.seeded, self.settle) = (false, 0);
    }

    /// Whether the stream may be read on.
    pub(crate) fn lets_go_on(&self) -> bool {
        self.reading.as_ref().is_none_or(|reading| reading.begun)
    }

    /// Starts a reading if one is due and none runs, the stream being at `upto`. Where there is nothing to read, what
    /// says so goes to `ready`.
    pub(crate) fn start(
        &mut self,
        upto: Option<u64>,
        ready: &mut VecDeque<Changes>,
        read: impl FnOnce(Order) -> AbortOnDropHandle<Result<(), Failure>>,
    ) {
        // One after the other: until the first settles, it says what the stream still brings of its rows.
        if upto.is_some_and(|upto| upto < self.settle) || self.reading.is_some() {
            return;
        }
        if self.not_before.is_some_and(|after| Instant::now() < after) {
            return;
        }
        self.not_before = None;
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
                ready.push_back(Changes::SeedBegin(Arc::from([])));
                ready.push_back(Changes::SeedEnd(SeedEnd { snapshot: Arc::default(), settle: 0 }));
            }
            return;
        }
        let (out, pieces) = mpsc::channel(SEED_PIECES);
        let wanted = tables.iter().cloned().map(SeedTable::from).collect();
        let task = read(Order { tables: wanted, forget: forget.clone(), out });
        self.reading = Some(Reading { pieces, task, begun: false, tables, forget });
    }

    /// The next piece of the reading, if one runs. Its end without [`Changes::SeedEnd`] is a failure. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Changes, Failure> {
        let Some(reading) = &mut self.reading else { return std::future::pending().await };
        let Some(piece) = reading.pieces.recv().await else {
            let result = (&mut reading.task).await;
            return Err(match result {
                Ok(Err(failure)) => failure,
                _ => Failure::again("reading current values ended early"),
            });
        };
        reading.begun = true;
        if let Changes::SeedEnd(end) = &piece {
            self.reading = None;
            self.settle = end.settle;
            (self.seeded, self.begun) = (true, true);
            self.health.well(Part::Seed);
        }
        Ok(piece)
    }

    /// A reading failed. Once all values were known the stream goes on, for others wait for it.
    ///
    /// # Errors
    /// It cannot go on.
    pub(crate) fn failed(&mut self, failure: Failure) -> Result<(), Failure> {
        if !self.begun || failure.kind == Kind::Shutdown {
            return Err(failure);
        }
        self.interrupt();
        tracing::warn!("current values cannot be read, trying again: {}", failure.message);
        self.health.unwell(Part::Seed, failure.message);
        self.not_before = Some(Instant::now() + SEED_PAUSE);
        Ok(())
    }

    /// Breaks the reading off: what it was to read is due again, unless the rules have since said otherwise.
    pub(crate) fn interrupt(&mut self) {
        let Some(Reading { tables, forget, .. }) = self.reading.take() else { return };
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

    /// See [`Source::keep_values_of`](super::Source::keep_values_of).
    pub(crate) fn rules_changed(&mut self, all: Vec<TableRule>, changed: Vec<Arc<str>>) {
        // A reading of what is no longer right starts over.
        let outdated = |reading: &Reading| reading.tables.iter().any(|table| changed.contains(&table.name));
        if self.reading.as_ref().is_some_and(outdated) {
            self.interrupt();
        }
        for name in changed {
            self.reread.retain(|table| table.name != name);
            self.forget.retain(|forgotten| *forgotten != name);
            match all.iter().find(|table| table.name == name) {
                Some(table) => self.reread.push(table.clone()),
                None => self.forget.push(name),
            }
        }
        (self.tables, self.not_before) = (all, None);
        self.health.well(Part::Seed);
    }
}

impl From<SeedError> for Failure {
    fn from(error: SeedError) -> Self {
        if error.is_permanent() {
            Self::needs_operator(error.to_string())
        } else {
            Self::again(error.to_string())
        }
    }
}

impl From<TableRule> for SeedTable {
    fn from(table: TableRule) -> Self {
        let names = |columns: Vec<Arc<str>>| columns.iter().map(|name| name.to_string()).collect();
        Self { name: table.name, columns: table.columns.map(names) }
    }
}
