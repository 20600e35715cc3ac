//! How a transaction takes locks on the application's tables: it waits shortly, and if it was refused it is rolled back
//! and tried again, until its time is over.
//!
//! One that has some of the locks and waits for the next one keeps writers waiting, and if one of these holds what it
//! waits for, that is a deadlock. It must never wait as long as it takes Postgres to look for one, for the transaction
//! that is ended then may be the application's.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{SetupError, statements};

/// How long one try waits for a lock: less than `deadlock_timeout`, which is 1 s unless somebody changed it.
pub(super) const WAIT_MAX: Duration = Duration::from_millis(500);
/// Between two tries, in milliseconds: what was kept waiting goes on meanwhile.
const PAUSE_MS: RangeInclusive<u64> = 50..=250;

/// The tries of one transaction.
#[derive(Debug)]
pub(in crate::cli) struct Tries {
    deadline: Instant,
}

/// Why a try ended.
#[derive(Debug)]
pub(in crate::cli) enum Refused {
    /// A lock was in the way, so it may be tried again.
    Locked(SetupError),
    /// It would fail again.
    Failed(SetupError),
}

impl Tries {
    pub(in crate::cli) fn new(limit: Duration) -> Self {
        Self { deadline: Instant::now() + limit }
    }

    /// What is left of their time. Never zero, which to Postgres means no limit.
    pub(in crate::cli) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    /// To be called in the transaction, before it locks what others may hold.
    pub(in crate::cli) async fn limit(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        client.batch_execute(&statements::lock_timeout(self.left().min(WAIT_MAX))).await
    }

    /// Whether there is time for another try; pauses before it.
    pub(in crate::cli) async fn again(&self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        sleep(left.min(Duration::from_millis(rand::random_range(PAUSE_MS)))).await;
        true
    }
}

impl Refused {
    /// Whether `error` is about a lock, or about the deadlock that waiting for it was.
    pub(super) fn is_lock(error: &tokio_postgres::Error) -> bool {
        matches!(error.code(), Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED))
    }

    /// What `error` means, which may be explained by `into`.
    pub(in crate::cli) fn new(error: &tokio_postgres::Error, into: SetupError) -> Self {
        if Self::is_lock(error) { Self::Locked(into) } else { Self::Failed(into) }
    }
}

impl From<SetupError> for Refused {
    fn from(error: SetupError) -> Self {
        Self::Failed(error)
    }
}

impl From<Refused> for SetupError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Locked(error) | Refused::Failed(error) => error,
        }
    }
}
