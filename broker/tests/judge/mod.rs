//! The judge: reads what clients wrote down and what Postgres knows, and says which guarantee was broken.
//!
//! It knows nothing of brokers, so that what it says of one does not depend on that one's code, and but for
//! [`receiver`] it is pure. What a test has to bring: a [`History`] of each client, and the [`Truth`], received from
//! the log through a slot of the judge's own and read from a table that was written in the transactions that
//! published.
//!
//! - [`history`]: what a client writes down
//! - [`truth`]: what was committed, in which order
//! - [`receiver`]: `pg_recvlogical` on a second slot
//! - [`slot`]: the truth as that slot tells it
//! - [`laws`]: one client held against the truth
//!
//! Current values (`snapshot`) are no happenings and no part of a history.

use std::collections::BTreeMap;
use std::fmt;

use walcast_client::wire::Position;

pub(crate) mod history;
mod laws;
pub(crate) mod receiver;
pub(crate) mod slot;
#[cfg(test)]
mod tests;
pub(crate) mod truth;

pub(crate) use history::{Entry, History, Seen, What};
pub(crate) use truth::{Commit, Noted, Record, Truth, digest};

/// What is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Law {
    /// In the order of commits.
    Ordered,
    /// Cursor and topic once to a connection; again on another one only beyond what was presented, and identical.
    Unique,
    /// Nothing is missing unless a reset covers it, and what comes is what was published.
    Reliable,
    /// The last event of a transaction on a topic says so, and no other does.
    Atomic,
    /// What was presented is where it goes on.
    Resumable,
    /// A cursor stands for everything up to it, and there always is one.
    Bookmarkable,
    /// On delivery, the row can be read.
    Visible,
    /// Nothing comes that was not committed on this number line, and no line comes back.
    Fenced,
    /// The two sources of the truth agree; else the test is at fault, or Postgres.
    Truth,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) law: Law,
    /// Whose history shows it.
    pub(crate) client: String,
    /// Where and how.
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}: {}", self.law, self.client, self.what)
    }
}

/// What this run entitles clients to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Whether a client may be told that events are missing: only where history was given up.
    pub(crate) resets: bool,
    /// Every client got as far as this.
    pub(crate) until: Position,
}

/// Everything that is wrong; empty if nothing is.
pub(crate) fn judge(truth: &Truth, histories: &[History], terms: &Terms) -> Vec<Violation> {
    let index = truth::Index::new(truth);
    let told = truth.contradictions().into_iter();
    let of_truth = told.map(|what| Violation { law: Law::Truth, client: "truth".to_owned(), what });
    of_truth.chain(histories.iter().flat_map(|history| laws::hold(history, &index, terms))).collect()
}

/// How often each law was broken, and the first violations in words.
pub(crate) fn summary(violations: &[Violation]) -> String {
    let mut counts = BTreeMap::new();
    for violation in violations {
        *counts.entry(violation.law).or_insert(0_usize) += 1;
    }
    let first: Vec<String> = violations.iter().take(12).map(|violation| format!("\n  {violation}")).collect();
    format!("{} violations {counts:?}{}", violations.len(), first.concat())
}
