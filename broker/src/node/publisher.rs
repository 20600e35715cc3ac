//! `POST /v1/publish` over the companion session.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::value::RawValue;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use walcast_wire::Topic;

use crate::postgres::{Busy, Companion, Session, describe};
use crate::transport::{PublishError, Published, Publisher};

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
        let session = self.companion.lock_for_publish().await.map_err(|busy| match busy {
            Busy::Full => PublishError::Busy,
            Busy::Connect(error) => PublishError::Unavailable(error.to_string()),
        })?;
        publish(&session, topic.as_str(), data.get(), key).await
    }
}

/// The parameter is cast from text, so that Postgres parses the JSON and not the client library.
async fn publish(
    session: &Session,
    topic: &str,
    data: &str,
    key: Option<&str>,
) -> Result<Published, PublishError> {
    let Some(key) = key else {
        let sql = "SELECT pg_current_xact_id()::xid::text::int8 FROM walcast.publish($1, $2::text::jsonb)";
        let row = session.query_one(sql, &[&topic, &data]).await.map_err(why)?;
        return published(&row, false);
    };
    let sql = "SELECT (result->>'xid')::int8, outcome FROM walcast.publish_once($1, $2, $3::text::jsonb)";
    let row = session.query_one(sql, &[&key, &topic, &data]).await.map_err(why)?;
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
