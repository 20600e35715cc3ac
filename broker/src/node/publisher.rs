//! `POST /v1/publish` over the companion session.
//!
//! A publish has its time. One that waits longer (for a synchronous standby, most likely, which its commit waits for
//! as the server is told to) is cancelled, since everything else that the companion does waits behind it. What became
//! of it is unknown then, and the client is told so.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::value::RawValue;
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use walcast_wire::Topic;

use crate::postgres::{Busy, Companion, LASTING, Session, describe};
use crate::transport::{PublishError, Published, Publisher};

/// Longest wait for the session, and then for the answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// After it was cancelled the session has so long to become free; then it is cut.
const CANCEL_MAX: Duration = Duration::from_secs(1);

/// Publishes one message per transaction.
#[derive(Debug)]
pub(super) struct OverCompanion {
    companion: Arc<Companion>,
}

impl OverCompanion {
    pub(super) fn new(companion: Arc<Companion>) -> Self {
        Self { companion }
    }

    async fn commit(
        &self,
        topic: &Topic,
        data: &RawValue,
        key: Option<&str>,
    ) -> Result<Published, PublishError> {
        let waited = timeout(PATIENCE, self.companion.lock_for_publish()).await;
        let session = waited.map_err(|_| PublishError::Busy)?.map_err(|busy| match busy {
            Busy::Full => PublishError::Busy,
            Busy::Connect(error) => PublishError::Unavailable(error.to_string()),
        })?;
        let companion = Arc::clone(&self.companion);
        let (topic, data, key) = (topic.to_string(), data.to_owned(), key.map(str::to_owned));
        // A client that hangs up must not leave the session to others while it still waits for the commit.
        let running = tokio::spawn(async move {
            let mut running = pin!(publish(&session, &topic, data.get(), key.as_deref()));
            if let Ok(result) = timeout(PATIENCE, &mut running).await {
                return result;
            }
            let cancelled = async {
                session.cancel(companion.target()).await;
                running.await
            };
            if timeout(CANCEL_MAX, cancelled).await.is_err() {
                companion.cut();
            }
            Err(late())
        });
        running.await.unwrap_or_else(|_| Err(late()))
    }
}

fn late() -> PublishError {
    PublishError::Unavailable(format!(
        "the outcome is unknown, for the commit was not answered within {} s: is a synchronous standby missing?",
        PATIENCE.as_secs()
    ))
}

/// The parameter is cast from text, so that Postgres parses the JSON and not the client library.
async fn publish(
    session: &Session,
    topic: &str,
    data: &str,
    key: Option<&str>,
) -> Result<Published, PublishError> {
    let Some(key) = key else {
        let sql = format!(
            "SELECT pg_current_xact_id()::xid::text::int8 FROM {LASTING}, walcast.publish($1, $2::text::jsonb)"
        );
        let row =
            session.query_typed_one(&sql, &[(&topic, Type::TEXT), (&data, Type::TEXT)]).await.map_err(why)?;
        return published(&row, false);
    };
    let sql = format!(
        "SELECT (result->>'xid')::int8, outcome FROM {LASTING}, walcast.publish_once($1, $2, $3::text::jsonb)"
    );
    let row = session
        .query_typed_one(&sql, &[(&key, Type::TEXT), (&topic, Type::TEXT), (&data, Type::TEXT)])
        .await
        .map_err(why)?;
    match row.try_get(1).map_err(why)? {
        "published" => published(&row, false),
        "replayed" => published(&row, true),
        _ => Err(PublishError::Conflict),
    }
}

fn published(row: &Row, duplicate: bool) -> Result<Published, PublishError> {
    let xid: Option<i64> = row.try_get(0).map_err(why)?;
    Ok(Published { xid: xid.and_then(|xid| u32::try_from(xid).ok()), duplicate })
}

fn why(error: tokio_postgres::Error) -> PublishError {
    match error.as_db_error() {
        Some(db) if *db.code() == SqlState::INSUFFICIENT_PRIVILEGE => PublishError::Unavailable(format!(
            "{}: run `walcast setup --publisher` for the broker's role",
            db.message()
        )),
        // What the data itself brings about: bad or too deep JSON for jsonb, a topic that the function refuses.
        Some(db) if ["22", "54"].iter().any(|class| db.code().code().starts_with(class)) => {
            PublishError::Rejected(describe(&error))
        }
        _ => PublishError::Unavailable(describe(&error)),
    }
}

impl Publisher for OverCompanion {
    fn publish<'a>(
        &'a self,
        topic: &'a Topic,
        data: &'a RawValue,
        key: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Published, PublishError>> {
        self.commit(topic, data, key).boxed()
    }
}
