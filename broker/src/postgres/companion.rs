//! The companion: the one SQL session that floor moving, monitoring and publishing share, so that the number of
//! connections does not depend on what the broker has to do.
//!
//! What the broker writes down for itself waits for no standby: one that is missing must not stop what lets WAL
//! go. A publish brings the server's own `synchronous_commit` back for its transaction ([`LASTING`]). Behind a pooler
//! ([`Target::pooled`]) the session is left as it is.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMappedMutexGuard, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::dsn::Target;
use super::error::ConnectError;
use super::session::{Session, SessionState};

/// What the broker writes down is right also where it is lost.
const OWN_COMMITS: &str = "SET synchronous_commit = local";

/// In a FROM clause: this transaction commits as the server's own setting says, which [`OWN_COMMITS`] put aside.
pub const LASTING: &str = "pg_catalog.set_config('synchronous_commit', \
     (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'synchronous_commit'), true)";

/// The handle to the companion session. It connects on demand and connects again once the session has ended.
///
/// The session does one thing at a time by its nature, so its queue is a tokio `Mutex`, which is fair: first
/// come, first served. It is held across await points on purpose, for what it guards *is* the right to
/// wait for the server.
#[derive(Debug)]
pub struct Companion {
    target: Target,
    application_name: String,
    session: Arc<Mutex<Option<Session>>>,
    state: Arc<watch::Sender<SessionState>>,
    publishers: Arc<Semaphore>,
    /// The publisher that is in line for the session: one, so that others wait for one publish at most.
    next_publisher: Arc<Semaphore>,
    /// Ends the present session.
    cut: parking_lot::Mutex<CancellationToken>,
}

/// Why a publisher does not get its turn.
#[derive(Debug, thiserror::Error)]
pub enum Busy {
    /// As many wait already as may; try again later.
    #[error("too many publishes wait for Postgres; try again later")]
    Full,
    /// There is no session, and none can be had.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// The session, for as long as this is held. Whoever leaves a transaction open must do it through
/// `tokio_postgres`'s transaction object, which rolls back when it is dropped.
#[derive(Debug)]
pub struct Guard {
    session: OwnedMappedMutexGuard<Option<Session>, Session>,
    _publisher: Option<[OwnedSemaphorePermit; 2]>,
}

impl Deref for Guard {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl DerefMut for Guard {
    fn deref_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

impl Companion {
    /// Connects to nothing yet. At most `publishers_max` publishes wait or run at a time.
    #[must_use]
    pub fn new(target: Target, application_name: impl Into<String>, publishers_max: usize) -> Self {
        Self {
            target,
            application_name: application_name.into(),
            session: Arc::new(Mutex::new(None)),
            state: Arc::new(watch::Sender::new(SessionState::None)),
            publishers: Arc::new(Semaphore::new(publishers_max)),
            next_publisher: Arc::new(Semaphore::new(1)),
            cut: parking_lot::Mutex::new(CancellationToken::new()),
        }
    }

    /// Waits for its turn, then for a connection if there is none. Cancel safe.
    ///
    /// # Errors
    /// No session can be had; the next call tries again.
    pub async fn lock(&self) -> Result<Guard, ConnectError> {
        let mut session = Arc::clone(&self.session).lock_owned().await;
        loop {
            if session.as_ref().is_none_or(|session| session.is_closed()) {
                // The old one must have told of its end before the new one tells of its beginning.
                if let Some(old) = session.take() {
                    old.close().await;
                }
                let tell = Arc::clone(&self.state);
                let fresh = Session::connect_and_tell(&self.target, &self.application_name, tell);
                let fresh = fresh.await?;
                if !self.target.pooled {
                    let set = fresh.batch_execute(OWN_COMMITS).await;
                    set.map_err(|error| ConnectError::from_client("the companion session", &error))?;
                }
                *self.cut.lock() = fresh.cutter();
                *session = Some(fresh);
            }
            match OwnedMutexGuard::try_map(session, Option::as_mut) {
                Ok(session) => return Ok(Guard { session, _publisher: None }),
                Err(back) => session = back,
            }
        }
    }

    /// As [`Companion::lock`], unless too many publishers are in line already.
    ///
    /// # Errors
    /// The line is full, or no session can be had.
    pub async fn lock_for_publish(&self) -> Result<Guard, Busy> {
        let permit = Arc::clone(&self.publishers).try_acquire_owned().map_err(|_| Busy::Full)?;
        // Never closed.
        let turn = Arc::clone(&self.next_publisher).acquire_owned().await.map_err(|_| Busy::Full)?;
        let guard = self.lock().await?;
        Ok(Guard { _publisher: Some([permit, turn]), ..guard })
    }

    /// Tells of each session's beginning and end, also while nobody uses it.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<SessionState> {
        self.state.subscribe()
    }

    /// Ends the session without waiting for its user, who hears that it is lost; the next one connects again. For
    /// a link that seems dead: an answer that never comes would hold up everybody in line.
    pub fn cut(&self) {
        self.cut.lock().cancel();
    }

    /// Where it connects to.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Ends the session, once its present user is done with it.
    pub async fn close(&self) {
        let session = self.session.lock().await.take();
        if let Some(session) = session {
            session.close().await;
        }
    }
}
