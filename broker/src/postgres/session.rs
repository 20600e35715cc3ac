//! One SQL session: the client, the task that drives its connection, and the news of its end.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_postgres::config::{ChannelBinding, SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::connect::{Attempts, Failed, check_server};
use super::dsn::Target;
use super::error::{ConnectError, ConnectErrorKind};
use super::listener::{Notice, drive};
use super::overheard::{Established, LastWords, Overheard};
use super::password::Secret;
use super::socket::Socket;
use super::tls::Binding;
use super::{after_connect, startup_options};

/// How long a session that is closed may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Its server stops, crashed, or an administrator ended it: 57P01, 57P02, 57P03.
    Shutdown(SqlState),
    /// The connection broke, or the server ended it for another reason.
    Lost(String),
    /// We ended it.
    ByUs,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown(code) => write!(f, "the server is shutting down ({})", code.code()),
            Self::Lost(cause) => write!(f, "the connection is lost: {cause}"),
            Self::ByUs => f.write_str("the session was closed"),
        }
    }
}

/// Whether there is a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Not yet.
    None,
    /// Open.
    Open,
    /// It ended, and this is how.
    Closed(Closed),
}

/// One SQL session. Derefs to the client. Dropping it ends the connection at once; [`Session::close`] does
/// so politely.
#[derive(Debug)]
pub struct Session {
    client: Client,
    state: watch::Receiver<SessionState>,
    cut: CancellationToken,
    task: AbortOnDropHandle<()>,
    /// Which of the target's servers it is on; known once it is open.
    place: Option<Failed>,
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Session {
    /// Connects, sets what we rely on (but see [`Target::pooled`]), and makes sure that the server is of the kind that is wanted.
    ///
    /// # Errors
    /// See [`ConnectError::kind`].
    pub async fn connect(target: &Target, application_name: &str) -> Result<Self, ConnectError> {
        Self::connect_and_tell(target, application_name, Arc::new(watch::Sender::new(SessionState::None)))
            .await
    }

    /// As [`Session::connect`]; `tell` learns of the beginning and the end.
    pub(super) async fn connect_and_tell(
        target: &Target,
        application_name: &str,
        tell: Arc<watch::Sender<SessionState>>,
    ) -> Result<Self, ConnectError> {
        Self::reach(target, application_name, tell, None).await
    }

    /// As [`Session::connect`]; `hear` gets its notifications, and ends with the session.
    pub(super) async fn connect_and_hear(
        target: &Target,
        application_name: &str,
        hear: mpsc::Sender<Notice>,
    ) -> Result<Self, ConnectError> {
        let tell = Arc::new(watch::Sender::new(SessionState::None));
        Self::reach(target, application_name, tell, Some(hear)).await
    }

    async fn reach(
        target: &Target,
        application_name: &str,
        tell: Arc<watch::Sender<SessionState>>,
        hear: Option<mpsc::Sender<Notice>>,
    ) -> Result<Self, ConnectError> {
        let mut attempts = Attempts::new(target).await?;
        loop {
            let mut attempt = attempts.next().await?;
            let rest = attempt.split();
            let at = attempt.at.clone();
            let config = client_config(target, application_name, &attempt.socket, attempt.password.as_ref());
            let startup = startup(target, &at, &config, attempt.socket, &tell, hear.clone());
            let late =
                || ConnectError::new(ConnectErrorKind::Network, &at, "no answer to the startup in time");
            match tokio::time::timeout_at(attempt.deadline, startup).await.unwrap_or_else(|_| Err(late())) {
                Ok(session) => return Ok(Self { place: Some(rest), ..session }),
                Err(error) => attempts.failed(&rest, error)?,
            }
        }
    }

    /// Resolves as soon as the session has ended, also while it is idle.
    pub async fn closed(&self) -> Closed {
        let mut state = self.state.clone();
        let ended = state.wait_for(|state| matches!(state, SessionState::Closed(_))).await;
        match ended.as_deref() {
            Ok(SessionState::Closed(closed)) => closed.clone(),
            _ => Closed::ByUs,
        }
    }

    /// Whether it lives, and how it ended.
    #[must_use]
    pub fn state(&self) -> SessionState {
        self.state.borrow().clone()
    }

    /// Ends the session at once when cancelled, whatever it is doing and whoever waits for an answer.
    pub(super) fn cutter(&self) -> CancellationToken {
        self.cut.clone()
    }

    /// Asks the server to cancel what the session is doing; tries once, and tells nobody whether that helped.
    pub async fn cancel(&self, target: &Target) {
        let token = self.client.cancel_token();
        let asked = async {
            // Of several hosts only this session's knows its key.
            let mut attempts = match &self.place {
                Some(place) => Attempts::back(target, place).await?,
                None => Attempts::new(target).await?,
            };
            let attempt = attempts.next().await?;
            let (socket, _) = Overheard::new(attempt.socket);
            Ok::<_, ConnectError>(token.cancel_query_raw(socket, Established).await)
        };
        if let Err(error) = asked.await {
            tracing::debug!("the server cannot be asked to cancel: {error}");
        }
    }

    /// Ends the session and waits for it.
    pub async fn close(self) {
        let Self { client, state: _, cut: _, task, place: _ } = self;
        drop(client);
        // A server that does not take the goodbye loses the connection; `task` aborts when it is dropped.
        let _ = tokio::time::timeout(GOODBYE, task).await;
    }
}

async fn startup(
    target: &Target,
    at: &str,
    config: &tokio_postgres::Config,
    socket: Socket,
    tell: &Arc<watch::Sender<SessionState>>,
    hear: Option<mpsc::Sender<Notice>>,
) -> Result<Session, ConnectError> {
    let failed = |error| ConnectError::from_client(at, &error);
    let (socket, last_words) = Overheard::new(socket);
    let (client, connection) = config.connect_raw(socket, Established).await.map_err(failed)?;
    let mut connection = Box::new(connection);
    let rows = tokio::select! {
        rows = client.simple_query(after_connect(target.pooled)) => rows.map_err(failed)?,
        ended = &mut connection => {
            let lost = || ConnectError::new(ConnectErrorKind::Network, at, "the server hung up");
            return Err(ended.map_or_else(failed, |()| lost()));
        }
    };
    let row = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    check_server(target, at, |column| row.and_then(|row| row.get(column)))?;
    tell.send_replace(SessionState::Open);
    let state = tell.subscribe();
    let tell = Arc::clone(tell);
    let cut = CancellationToken::new();
    let task = AbortOnDropHandle::new(tokio::spawn({
        let cut = cut.clone();
        async move {
            let driven = async {
                match hear {
                    None => connection.await,
                    Some(hear) => drive(connection, hear).await,
                }
            };
            let closed = match cut.run_until_cancelled(driven).await {
                Some(result) => how_it_ended(result, &last_words),
                None => Closed::Lost("it no longer answers".to_owned()),
            };
            tell.send_replace(SessionState::Closed(closed));
        }
    }));
    Ok(Session { client, state, cut, task, place: None })
}

fn how_it_ended(result: Result<(), tokio_postgres::Error>, last_words: &LastWords) -> Closed {
    match (last_words.get(), result) {
        (Some(code), _) => Closed::Shutdown(code.clone()),
        (None, Ok(())) => Closed::ByUs,
        (None, Err(error)) => Closed::Lost(error.to_string()),
    }
}

fn client_config(
    target: &Target,
    application_name: &str,
    socket: &Socket,
    password: Option<&Secret>,
) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config.user(&target.user).dbname(&target.database).application_name(application_name);
    if !target.pooled {
        config.options(startup_options(target.options.as_deref(), &[]));
    } else if let Some(own) = &target.options {
        config.options(own);
    }
    if let Some(password) = password {
        config.password(password.expose());
    }
    config.channel_binding(match target.tls.binding {
        Binding::Disable => ChannelBinding::Disable,
        Binding::Prefer => ChannelBinding::Prefer,
        Binding::Require => ChannelBinding::Require,
    });
    if socket.encrypted() {
        // The socket is encrypted already; this is how to say that without being asked for it again.
        config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    } else {
        config.ssl_mode(SslMode::Disable);
    }
    config
}
