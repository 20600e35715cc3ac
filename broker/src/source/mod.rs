//! Where changes come from. One implementation per way to read Postgres.
//!
//! - [`wal`]: the write-ahead log; [`outbox`]: a table
//! - [`config`]: which, and what it needs; [`tables`]: what the catalog says of tables, [`types`] of types
//! - [`seed`]: reads current values of state tables; `seeding`: when
//! - `server`: what a server must be; `failure`: why there is no stream, and what that says of the next attempt

use std::sync::Arc;
use std::time::Duration;

use walcast_wire::{Cursor, Epoch, Position};

use crate::event::Changes;
use crate::hub::Hub;
use crate::router::TableRule;

pub mod config;
mod failure;
pub mod outbox;
pub mod seed;
mod seeding;
pub(crate) mod server;
pub mod tables;
pub mod types;
pub mod wal;

pub use config::{Config, SourceKind};

/// What to do after a source failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Connect again, with full jitter, but not before this has passed.
    After(Duration),
    /// Do not try again: nothing changes until an operator acts.
    Never,
    /// Do not try again: another broker was told to take over, and did. No failure.
    HandedOver,
}

/// A source's stream ended. `Display` names the thing, the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// What happened and what the operator can do; holds no password.
    pub message: String,
    /// Whether trying again can help.
    pub retry: Retry,
}

/// A stream of changes on one number line.
pub trait Source: Send {
    /// The next changes. Connects, or connects again after an error, and then yields
    /// [`Changes::Start`]. Cancel safe: nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The stream ended; what to do is in [`SourceError::retry`].
    fn next(&mut self) -> impl Future<Output = Result<Changes, SourceError>> + Send;

    /// Completes when the stream is to be let go at once, although nobody asks for the next changes: a server that
    /// stops must not wait until something else answers. The stream is over then. Cancel safe.
    fn ended(&mut self) -> impl Future<Output = SourceError> + Send;

    /// Everything up to this LSN is published and need not be sent again.
    ///
    /// # Errors
    /// The stream ended; what to do is in [`SourceError::retry`].
    fn ack(&mut self, upto: u64) -> impl Future<Output = Result<(), SourceError>> + Send;

    /// From now on `all` are the tables whose current values are kept. Those of `changed` are read again into
    /// the stream, beside it, or forgotten where they are no longer among `all`.
    fn keep_values_of(&mut self, all: Vec<TableRule>, changed: Vec<Arc<str>>);

    /// Ends the stream and releases what it holds of the server.
    fn close(&mut self) -> impl Future<Output = ()> + Send;
}

/// From where on nothing was published before a stream that begins at `from`. What is `noted` to be quiet lies before the
/// floor; behind it much may have been published up to a stream that begins there.
fn quiet_from(noted: Option<Position>, at_floor: bool, from: u64) -> Position {
    let begin = Position::before(from);
    noted.filter(|_| at_floor).unwrap_or(begin).min(begin)
}

/// On which number line, and up to where, a stream need not repeat what was `published` here: it may have waited for the
/// hub while that began to follow another broker, and not have been taken.
fn known(hub: &Hub, published: Option<(Epoch, u64)>) -> Option<(Epoch, u64)> {
    published.filter(|(epoch, upto)| {
        let reached = |head: Cursor| head.epoch == *epoch && head.position >= Position::before(*upto);
        !hub.follows() || hub.head().is_some_and(reached)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::hub::Config as HubConfig;
    use crate::hub::page::Page;

    #[test]
    fn what_was_published_is_known_unless_a_hub_that_follows_did_not_get_there() {
        let hub = Hub::new(HubConfig::default());
        let published = Some((Epoch(1), 100));
        assert_eq!(known(&hub, published), published);
        hub.follow_others();
        assert_eq!(known(&hub, published), None);
        let follow = |after: Position, upto: Position| {
            let page = Page { epoch: Epoch(1), after, upto, remarks: Vec::new(), events: Vec::new() };
            hub.follow(&page, Instant::now());
        };
        follow(Position::new(50, 1), Position::new(99, 7));
        assert_eq!(known(&hub, published), None);
        follow(Position::new(99, 7), Position::new(100, 0));
        assert_eq!(known(&hub, published), published);
        assert_eq!(known(&hub, Some((Epoch(2), 1))), None);
    }
}
