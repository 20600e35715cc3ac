//! One session that listens on a channel.
//!
//! It must never lose a notification that arrived: what is not taken yet is left to the server, which holds it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_postgres::{AsyncMessage, Connection};

use super::dsn::Target;
use super::error::{ConnectError, ConnectErrorKind};
use super::overheard::Overheard;
use super::session::{Closed, Session};

/// How many notifications wait to be taken, before the rest waits in the socket.
const WAITING_MAX: usize = 4096;
/// How long the statements that begin may take.
const BEGIN_MAX: Duration = Duration::from_secs(10);

/// A notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What it says.
    pub payload: String,
    /// When it arrived.
    pub at: Instant,
}

/// A session that listens. Dropping it ends the connection.
#[derive(Debug)]
pub struct Listener {
    session: Session,
    heard: mpsc::Receiver<Notice>,
    /// What came while it began.
    early: VecDeque<Notice>,
    /// How far the server's log was once it listened, as a number. Whatever commits behind that is heard.
    pub from: u64,
}

impl Listener {
    /// Connects and listens on `channel`, which is taken as it is, whatever case its letters have.
    ///
    /// # Errors
    /// See [`ConnectError::kind`].
    pub async fn connect(
        target: &Target,
        application_name: &str,
        channel: &str,
    ) -> Result<Self, ConnectError> {
        let (tell, mut heard) = mpsc::channel(WAITING_MAX);
        let session = Session::connect_and_hear(target, application_name, tell).await?;
        let mut early = VecDeque::new();
        let listen = format!("LISTEN {}", postgres_protocol::escape::escape_identifier(channel));
        let begun = {
            let mut begin = Box::pin(timeout(BEGIN_MAX, async {
                session.batch_execute(&listen).await?;
                let sql = "SELECT (pg_catalog.pg_current_wal_insert_lsn() - '0/0')::int8";
                session.query_typed_one(sql, &[]).await?.try_get::<_, i64>(0)
            }));
            loop {
                tokio::select! {
                    begun = &mut begin => break begun,
                    // An answer may stand behind them.
                    Some(notice) = heard.recv(), if early.len() < WAITING_MAX => early.push_back(notice),
                }
            }
        };
        let from = match begun {
            Ok(Ok(from)) => from.unsigned_abs(),
            Ok(Err(error)) => return Err(ConnectError::from_client("LISTEN", &error)),
            Err(_) => {
                return Err(ConnectError::new(ConnectErrorKind::Network, "LISTEN", "no answer in time"));
            }
        };
        Ok(Self { session, heard, early, from })
    }

    /// The next notification; `None` once the session has ended. May be dropped and called again without loss.
    pub async fn next(&mut self) -> Option<Notice> {
        match self.early.pop_front() {
            Some(notice) => Some(notice),
            None => self.heard.recv().await,
        }
    }

    /// Resolves as soon as the session has ended.
    pub async fn closed(&self) -> Closed {
        self.session.closed().await
    }
}

/// Drives a connection, and tells its notifications.
pub(super) async fn drive(
    mut connection: Box<Connection<Overheard, Overheard>>,
    tell: mpsc::Sender<Notice>,
) -> Result<(), tokio_postgres::Error> {
    while let Some(message) = std::future::poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notification(notification) = message? {
            let notice = Notice { payload: notification.payload().to_owned(), at: Instant::now() };
            // Nobody takes it any more: the session is about to go.
            let _ = tell.send(notice).await;
        }
    }
    Ok(())
}
