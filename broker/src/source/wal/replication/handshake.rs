//! From a connected socket to a walsender that takes commands: startup and authentication.

use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio_postgres::error::SqlState;

use super::{Connection, ReplicationError};
use crate::postgres::connect::{Attempts, check_server};
use crate::postgres::tls::Binding;
use crate::postgres::{
    ConnectError, ConnectErrorKind as Kind, Secret, ServerError, Socket, Target, after_connect,
    startup_options,
};

/// Tries the target's hosts until one lets us in.
pub(super) async fn connect(
    target: &Target,
    application_name: &str,
    lease: Duration,
) -> Result<Connection, ConnectError> {
    let mut attempts = Attempts::new(target).await?;
    loop {
        let mut attempt = attempts.next().await?;
        let rest = attempt.split();
        let at = attempt.at;
        let startup = Startup { target, at: &at, password: attempt.password.as_ref() };
        let connected = startup.run(attempt.socket, application_name, lease);
        let late = || ConnectError::new(Kind::Network, &at, "no answer to the startup in time");
        match tokio::time::timeout_at(attempt.deadline, connected).await.unwrap_or_else(|_| Err(late())) {
            Ok(connection) => return Ok(connection),
            Err(error) => attempts.failed(&rest, error)?,
        }
    }
}

struct Startup<'a> {
    target: &'a Target,
    at: &'a str,
    password: Option<&'a Secret>,
}

impl Startup<'_> {
    async fn run(
        &self,
        socket: Socket,
        application_name: &str,
        lease: Duration,
    ) -> Result<Connection, ConnectError> {
        let mut connection =
            Connection { socket, buffer: BytesMut::new(), at: self.at.to_owned(), pid: 0, busy: false };
        let timeout = format!("{}ms", lease.as_millis());
        let options = startup_options(self.target.options.as_deref(), &[("wal_sender_timeout", &timeout)]);
        let parameters = [
            ("user", self.target.user.as_str()),
            ("database", &self.target.database),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", application_name),
            ("options", &options),
        ];
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(|error| self.configuration(&error))?;
        connection.send(&out).await.map_err(|error| self.error(error))?;
        self.authenticate(&mut connection).await?;
        loop {
            match self.message(&mut connection).await? {
                Message::BackendKeyData(body) => connection.pid = body.process_id(),
                Message::ReadyForQuery(_) => break,
                _ => return Err(self.unexpected()),
            }
        }
        let rows = connection.query(after_connect(false)).await.map_err(|error| self.error(error))?;
        check_server(self.target, self.at, |column| rows.first()?.get(column)?.as_deref())?;
        // Before a slot is made, which an ordinary session could, too.
        match connection.query("IDENTIFY_SYSTEM").await {
            Ok(_) => Ok(connection),
            Err(ReplicationError::Server(error)) if error.code == SqlState::SYNTAX_ERROR => {
                let cause = "the session that was to be for replication is an ordinary one";
                Err(ConnectError::new(Kind::Pooler, self.at, cause))
            }
            Err(error) => Err(self.error(error)),
        }
    }

    async fn authenticate(&self, connection: &mut Connection) -> Result<(), ConnectError> {
        let first = self.message(connection).await?;
        let sasl = matches!(first, Message::AuthenticationSasl(_));
        if !sasl && self.target.tls.binding == Binding::Require {
            let cause = "the server does not use SCRAM, which channel_binding=require needs";
            return Err(ConnectError::new(Kind::Authentication, self.at, cause));
        }
        match first {
            Message::AuthenticationOk => return Ok(()),
            Message::AuthenticationCleartextPassword => {
                let password = self.password()?.expose().as_bytes();
                self.send_password(connection, password).await?;
            }
            Message::AuthenticationMd5Password(body) => {
                let password = self.password()?.expose().as_bytes();
                let hash = md5_hash(self.target.user.as_bytes(), password, body.salt());
                self.send_password(connection, hash.as_bytes()).await?;
            }
            Message::AuthenticationSasl(body) => self.scram(connection, &body).await?,
            Message::AuthenticationGss
            | Message::AuthenticationSspi
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential => {
                let cause = "the server wants GSSAPI, SSPI or Kerberos, which are not supported; use \
                             scram-sha-256 or cert in pg_hba.conf";
                return Err(ConnectError::new(Kind::Authentication, self.at, cause));
            }
            _ => return Err(self.unexpected()),
        }
        match self.message(connection).await? {
            Message::AuthenticationOk => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    async fn scram(
        &self,
        connection: &mut Connection,
        body: &AuthenticationSaslBody,
    ) -> Result<(), ConnectError> {
        let mechanisms: Vec<&str> = body.mechanisms().collect().map_err(|_| self.unexpected())?;
        let (plain, plus) = (mechanisms.contains(&SCRAM_SHA_256), mechanisms.contains(&SCRAM_SHA_256_PLUS));
        let wanted = self.target.tls.binding;
        let end_point = connection.socket.end_point().filter(|_| wanted != Binding::Disable);
        // "Unrequested" tells the server that we could bind: it notices if somebody took its offer away.
        let (mechanism, binding) = match end_point {
            Some(hash) if plus => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash.to_vec())),
            Some(_) if plain => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None if plain => (SCRAM_SHA_256, ChannelBinding::unsupported()),
            _ => {
                let cause = "the server offers no authentication that walcast knows; use scram-sha-256";
                return Err(ConnectError::new(Kind::Authentication, self.at, cause));
            }
        };
        if wanted == Binding::Require && mechanism != SCRAM_SHA_256_PLUS {
            let cause = "channel_binding=require, but the connection has no TLS or the server cannot bind";
            return Err(ConnectError::new(Kind::Authentication, self.at, cause));
        }
        let refused = |error: std::io::Error| ConnectError::new(Kind::Authentication, self.at, error);
        let mut scram = ScramSha256::new(self.password()?.expose().as_bytes(), binding);
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out).map_err(refused)?;
        connection.send(&out).await.map_err(|error| self.error(error))?;
        let Message::AuthenticationSaslContinue(body) = self.message(connection).await? else {
            return Err(self.unexpected());
        };
        scram.update(body.data()).map_err(refused)?;
        out.clear();
        frontend::sasl_response(scram.message(), &mut out).map_err(refused)?;
        connection.send(&out).await.map_err(|error| self.error(error))?;
        // The server's own proof: without it, it may not know the password at all.
        let Message::AuthenticationSaslFinal(body) = self.message(connection).await? else {
            return Err(self.unexpected());
        };
        scram.finish(body.data()).map_err(refused)
    }

    fn password(&self) -> Result<&Secret, ConnectError> {
        self.password.ok_or_else(|| ConnectError::no_password(self.at))
    }

    async fn send_password(&self, connection: &mut Connection, password: &[u8]) -> Result<(), ConnectError> {
        let mut out = BytesMut::new();
        frontend::password_message(password, &mut out).map_err(|error| self.configuration(&error))?;
        connection.send(&out).await.map_err(|error| self.error(error))
    }

    /// The next message; an error of the server is an error here.
    async fn message(&self, connection: &mut Connection) -> Result<Message, ConnectError> {
        match connection.message().await.map_err(|error| self.error(error))? {
            Message::ErrorResponse(body) => {
                Err(ConnectError::server(self.at, &ServerError::read(body.fields())))
            }
            message => Ok(message),
        }
    }

    fn error(&self, error: ReplicationError) -> ConnectError {
        match error {
            ReplicationError::Server(error) => ConnectError::server(self.at, &error),
            ReplicationError::Lost(cause) => ConnectError::new(Kind::Network, self.at, cause),
            ReplicationError::Shutdown(cause) => ConnectError::new(Kind::Shutdown, self.at, cause),
            other => ConnectError::new(Kind::Server, self.at, other),
        }
    }

    fn configuration(&self, error: &std::io::Error) -> ConnectError {
        ConnectError::new(Kind::Configuration, self.at, error)
    }

    fn unexpected(&self) -> ConnectError {
        let cause = "an answer that does not belong into a startup; is this a Postgres server?";
        ConnectError::new(Kind::Server, self.at, cause)
    }
}
