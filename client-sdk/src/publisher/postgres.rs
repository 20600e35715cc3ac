//! Publishing in the caller's own transaction, over tokio-postgres.
//!
//! No statement gets a name, so a transaction pooler may stand in between.

use serde::Serialize;
use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

use super::message::{Message, PublishError};

/// Publishes `data` on `topic` when the transaction commits, and not at all if it is rolled back; on a `Client` without
/// a transaction, at once. All that can be checked is, before the transaction hears of it: behind an error of that kind
/// ([`PublishError::nothing_was_sent`]) it may go on. At most [`EVENT_BYTES_MAX`](super::EVENT_BYTES_MAX); for another
/// limit see [`send`].
///
/// ```no_run
/// use serde_json::json;
/// use walcast_client::publisher;
///
/// # async fn example(client: &mut tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let tx = client.transaction().await?;
/// tx.execute("UPDATE vms SET status = 'ready' WHERE hostname = 'host-17'", &[]).await?;
/// publisher::publish(&tx, "vm/host-17", &json!({"status": "ready"})).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`Message::new`], and then [`PublishError::NotSetUp`], [`PublishError::NotAllowed`], [`PublishError::Database`].
pub fn publish<'c, C: GenericClient, T: AsRef<str>, D: Serialize + ?Sized>(
    client: &'c C,
    topic: T,
    data: &D,
) -> impl Future<Output = Result<(), PublishError>> + use<'c, C, T, D> {
    let message = Message::new(topic, data);
    async move { send(client, &message?).await }
}

/// Stands in for `pg_notify`, with [`publish`]'s promises: the channel becomes one segment of a topic, the payload a JSON
/// string, and the same pair arrives once, however often a transaction sends it.
///
/// ```no_run
/// use walcast_client::publisher;
///
/// # async fn example(tx: &tokio_postgres::Transaction<'_>) -> Result<(), publisher::PublishError> {
/// publisher::notify(tx, "cache", "users:42").await
/// # }
/// ```
///
/// # Errors
/// As [`Message::notification`], and then as [`publish`].
pub fn notify<'c, C: GenericClient>(
    client: &'c C,
    channel: &str,
    payload: &str,
) -> impl Future<Output = Result<(), PublishError>> + use<'c, C> {
    let message = Message::notification(channel, payload);
    async move { send(client, &message?).await }
}

/// Publishes a [`Message`] that was made before, by another limit for example.
///
/// ```no_run
/// use walcast_client::publisher::{self, Message, PublishError};
///
/// # async fn example(tx: &tokio_postgres::Transaction<'_>, page: &str) -> Result<(), PublishError> {
/// publisher::send(tx, &Message::limited("pages/home", page, 4 << 20)?).await
/// # }
/// ```
///
/// # Errors
/// [`PublishError::NotSetUp`], [`PublishError::NotAllowed`], [`PublishError::Database`].
pub async fn send<C: GenericClient>(client: &C, message: &Message) -> Result<(), PublishError> {
    let (statement, [first, second]) = message.statement();
    let parameters = [(&first as _, Type::TEXT), (&second as _, Type::TEXT)];
    match client.execute_typed(statement, &parameters).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let said = error.as_db_error();
            let code = said.map(|said| said.code().code().to_owned());
            let message = said.map_or_else(|| error.to_string(), |said| said.message().to_owned());
            Err(PublishError::of(code.as_deref(), message, Box::new(error)))
        }
    }
}
