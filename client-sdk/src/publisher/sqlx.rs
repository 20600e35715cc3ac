//! Publishing in the caller's own transaction, over sqlx.
//!
//! What [`publish`] and its siblings promise is what those for tokio-postgres do. No statement gets a name,
//! so a transaction pooler may stand in between.

use ::sqlx::PgExecutor;
use serde::Serialize;

use super::message::{Message, PublishError};

/// Publishes `data` on `topic` when the transaction commits, and not at all if it is rolled back; on a pool or a
/// connection without a transaction, at once. All that can be checked is, before the transaction hears of it: behind an
/// error of that kind ([`PublishError::nothing_was_sent`]) it may go on. At most
/// [`EVENT_BYTES_MAX`](super::EVENT_BYTES_MAX); for another limit see [`send`].
///
/// ```no_run
/// use serde_json::json;
/// use walcast_client::publisher;
///
/// # async fn example(pool: &sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let mut tx = pool.begin().await?;
/// sqlx::query("UPDATE vms SET status = 'ready' WHERE hostname = 'host-17'").execute(&mut *tx).await?;
/// publisher::sqlx::publish(&mut *tx, "vm/host-17", &json!({"status": "ready"})).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`Message::new`], and then [`PublishError::NotSetUp`], [`PublishError::NotAllowed`], [`PublishError::Database`].
pub fn publish<'e, E: PgExecutor<'e>, T: AsRef<str>, D: Serialize + ?Sized>(
    executor: E,
    topic: T,
    data: &D,
) -> impl Future<Output = Result<(), PublishError>> + use<'e, E, T, D> {
    let message = Message::new(topic, data);
    async move { send(executor, &message?).await }
}

/// Stands in for `pg_notify`, with [`publish`]'s promises: the channel becomes one segment of a topic, the payload a JSON
/// string, and the same pair arrives once, however often a transaction sends it.
///
/// ```no_run
/// use walcast_client::publisher;
///
/// # async fn example(tx: &mut sqlx::PgTransaction<'_>) -> Result<(), publisher::PublishError> {
/// publisher::sqlx::notify(&mut **tx, "cache", "users:42").await
/// # }
/// ```
///
/// # Errors
/// As [`Message::notification`], and then as [`publish`].
pub fn notify<'e, E: PgExecutor<'e>>(
    executor: E,
    channel: &str,
    payload: &str,
) -> impl Future<Output = Result<(), PublishError>> + use<'e, E> {
    let message = Message::notification(channel, payload);
    async move { send(executor, &message?).await }
}

/// Publishes a [`Message`] that was made before, by another limit for example.
///
/// ```no_run
/// use walcast_client::publisher::{self, Message, PublishError};
///
/// # async fn example(pool: &sqlx::PgPool, page: &str) -> Result<(), PublishError> {
/// publisher::sqlx::send(pool, &Message::limited("pages/home", page, 4 << 20)?).await
/// # }
/// ```
///
/// # Errors
/// [`PublishError::NotSetUp`], [`PublishError::NotAllowed`], [`PublishError::Database`].
pub async fn send<'e, E: PgExecutor<'e>>(executor: E, message: &Message) -> Result<(), PublishError> {
    let (statement, [first, second]) = message.statement();
    let (first, second) = (first.to_owned(), second.to_owned());
    // Without a name, as a pooler needs it.
    let query = ::sqlx::query(statement).bind(first).bind(second).persistent(false);
    match query.execute(executor).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let said = error.as_database_error();
            let code = said.and_then(|said| said.code()).map(|code| code.into_owned());
            let message = said.map_or_else(|| error.to_string(), |said| said.message().to_owned());
            Err(PublishError::of(code.as_deref(), message, Box::new(error)))
        }
    }
}
