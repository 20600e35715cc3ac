//! Why a connection to Postgres failed, typed by what the caller can do about it.

use std::fmt;

use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;
use tokio_postgres::error::{DbError, SqlState};

/// An error that the server itself reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// Its SQLSTATE.
    pub code: SqlState,
    /// Its message.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server advises.
    pub hint: Option<String>,
}

impl ServerError {
    /// Reads an ErrorResponse. What is missing or broken is left empty.
    #[must_use]
    pub fn read(mut fields: ErrorFields<'_>) -> Self {
        let mut error =
            Self { code: SqlState::from_code(""), message: String::new(), detail: None, hint: None };
        while let Ok(Some(field)) = fields.next() {
            let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => error.code = SqlState::from_code(&value),
                b'M' => error.message = value,
                b'D' => error.detail = Some(value),
                b'H' => error.hint = Some(value),
                _ => {}
            }
        }
        error
    }
}

impl From<&DbError> for ServerError {
    fn from(error: &DbError) -> Self {
        Self {
            code: error.code().clone(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code.code())?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// What the server said, with code, detail and hint, or why it could not say anything. One line; the client's
/// own `Display` leaves out both.
#[must_use]
pub fn describe(error: &tokio_postgres::Error) -> String {
    let text = match error.as_db_error() {
        Some(error) => ServerError::from(error).to_string(),
        None => with_causes(error),
    };
    text.replace(['\r', '\n'], " ")
}

/// The error and what it stems from, without repetitions.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

/// Whether this code says that the server, not this session alone, is going away, was told to drop the
/// session, or is not up yet: 57P01, 57P02, 57P03.
#[must_use]
pub fn is_shutdown(code: &SqlState) -> bool {
    [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW].contains(code)
}

/// What stood in the way of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectErrorKind {
    /// The settings, or the files that they name, cannot be used.
    Configuration,
    /// The server cannot be reached, or did not answer in time.
    Network,
    /// TLS was refused by the server, or the server is not the one that we trust.
    Tls,
    /// The password is wrong or missing, the role unknown, or `pg_hba.conf` refuses.
    Authentication,
    /// The role may not do this.
    Privilege,
    /// The database does not exist.
    DatabaseMissing,
    /// No connection slot is free, or no walsender.
    TooManyConnections,
    /// The server starts, stops, or its administrator ended the session (57P01, 57P02, 57P03).
    Shutdown,
    /// Reached, but not of the kind that `target_session_attrs` asks for.
    WrongServer,
    /// A connection pooler, where the server itself is needed.
    Pooler,
    /// Any other error of the server.
    Server,
}

/// What to do about a pooler, which takes neither settings nor `replication` at the start of a session.
const AT_POOLER: &str = "; this is a connection pooler, which passes no replication on: name the server itself in \
     `postgres.url`, or set `source.kind = \"outbox\"` (and no `options` in the connection string)";

/// A connection failed. `Display` is one line: who, where, why, and what to do.
#[derive(Clone, Debug)]
pub struct ConnectError {
    /// What stood in the way.
    pub kind: ConnectErrorKind,
    /// The SQLSTATE, where the server gave one.
    pub code: Option<SqlState>,
    message: String,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConnectError {}

impl ConnectError {
    /// An error before the server spoke. `at` says where, `cause` why.
    pub(crate) fn new(kind: ConnectErrorKind, at: &str, cause: impl fmt::Display) -> Self {
        let remedy = match kind {
            ConnectErrorKind::Network => "; check that it runs and can be reached from here",
            ConnectErrorKind::Pooler => AT_POOLER,
            _ => "",
        };
        Self { kind, code: None, message: format!("cannot connect to Postgres at {at}: {cause}{remedy}") }
    }

    /// An error that the server answered with.
    pub(crate) fn server(at: &str, error: &ServerError) -> Self {
        let (kind, remedy) = classify(error);
        Self {
            kind,
            code: Some(error.code.clone()),
            message: format!("cannot connect to Postgres at {at}: {error}{remedy}"),
        }
    }

    /// What `tokio_postgres` reports of the startup.
    pub(crate) fn from_client(at: &str, error: &tokio_postgres::Error) -> Self {
        if let Some(error) = error.as_db_error() {
            return Self::server(at, &ServerError::from(error));
        }
        let cause = with_causes(error);
        if cause.contains("password missing") {
            return Self::no_password(at);
        }
        let network = error.is_closed() || cause.contains("communicating");
        let kind = if network { ConnectErrorKind::Network } else { ConnectErrorKind::Authentication };
        Self::new(kind, at, cause)
    }

    /// The server asks for a password and there is none.
    pub(crate) fn no_password(at: &str) -> Self {
        let cause = "the server asks for a password and none is set; set password_file, or give one in the \
                     connection string or a passfile";
        Self::new(ConnectErrorKind::Authentication, at, cause)
    }

    /// Adds to the message, for example why a passfile was not used.
    pub(crate) fn with_note(mut self, note: Option<&str>) -> Self {
        if let Some(note) = note.filter(|_| self.kind == ConnectErrorKind::Authentication) {
            self.message = format!("{} ({note})", self.message);
        }
        self
    }

    /// Whether another host of the list may do better. As in libpq, a server that was reached and refuses
    /// ends the search, unless it is starting or stopping.
    pub(crate) fn try_next_host(&self) -> bool {
        use ConnectErrorKind::{Network, Shutdown, WrongServer};
        matches!(self.kind, Network | Shutdown | WrongServer)
    }
}

fn classify(error: &ServerError) -> (ConnectErrorKind, &'static str) {
    use ConnectErrorKind as Kind;
    let code = &error.code;
    if is_shutdown(code) {
        return (Kind::Shutdown, "; it will be tried again");
    }
    match code.code() {
        "28P01" => (Kind::Authentication, "; check the user, and the password, password_file or passfile"),
        "28000" => (Kind::Authentication, "; check the user, sslmode, and the server's pg_hba.conf"),
        "42501" => (Kind::Privilege, "; the role needs LOGIN and REPLICATION, and CONNECT on the database"),
        "3D000" => (Kind::DatabaseMissing, "; create it, or correct dbname"),
        "53300" => (
            Kind::TooManyConnections,
            "; raise max_connections, max_wal_senders or the role's CONNECTION LIMIT, or free one",
        ),
        // As PgBouncer says it; a server would name a setting that it does not know.
        "08P01" if error.message.contains("startup parameter") => (Kind::Pooler, AT_POOLER),
        // Likewise: it has one code for all that it refuses.
        "08P01" if error.message.contains("authentication failed") => (
            Kind::Authentication,
            "; check the user and the password, here and in the pooler's list of users",
        ),
        "08P01" if error.message.contains("no such database") => {
            (Kind::DatabaseMissing, "; add it to the pooler's list of databases, or correct dbname")
        }
        _ => (Kind::Server, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str) -> ConnectError {
        said(code, "refused")
    }

    fn said(code: &str, message: &str) -> ConnectError {
        let code = SqlState::from_code(code);
        let error = ServerError { code, message: message.into(), detail: None, hint: None };
        ConnectError::server("db:5432", &error)
    }

    #[test]
    fn what_a_pooler_refuses_is_told_apart_by_its_words() {
        let check = |message: &str, expected: ConnectErrorKind| {
            assert_eq!(said("08P01", message).kind, expected, "{message}");
        };
        check("password authentication failed", ConnectErrorKind::Authentication);
        check("SASL authentication failed", ConnectErrorKind::Authentication);
        check("no such database: app", ConnectErrorKind::DatabaseMissing);
        check("unsupported startup parameter: replication", ConnectErrorKind::Pooler);
        check("pgbouncer cannot connect to server", ConnectErrorKind::Server);
    }

    #[test]
    fn codes_have_kinds() {
        let check =
            |code: &str, expected: ConnectErrorKind| assert_eq!(server(code).kind, expected, "{code}");
        check("28P01", ConnectErrorKind::Authentication);
        check("28000", ConnectErrorKind::Authentication);
        check("3D000", ConnectErrorKind::DatabaseMissing);
        check("53300", ConnectErrorKind::TooManyConnections);
        check("42501", ConnectErrorKind::Privilege);
        check("57P01", ConnectErrorKind::Shutdown);
        check("57P02", ConnectErrorKind::Shutdown);
        check("57P03", ConnectErrorKind::Shutdown);
        check("57014", ConnectErrorKind::Server);
    }

    #[test]
    fn a_pooler_is_known_by_what_it_does_not_take() {
        let said = |message: &str| {
            let error = ServerError {
                code: SqlState::PROTOCOL_VIOLATION,
                message: message.into(),
                detail: None,
                hint: None,
            };
            ConnectError::server("db:6432", &error)
        };
        for parameter in [": options", ": replication", " in options: search_path"] {
            let error = said(&format!("unsupported startup parameter{parameter}"));
            assert_eq!(error.kind, ConnectErrorKind::Pooler, "{error}");
            assert!(error.to_string().contains("postgres.url"), "{error}");
            assert!(!error.try_next_host());
        }
        assert_eq!(said("invalid startup packet layout").kind, ConnectErrorKind::Server);
    }

    #[test]
    fn only_some_errors_are_worth_another_host() {
        assert!(server("57P03").try_next_host());
        assert!(!server("28P01").try_next_host());
        assert!(ConnectError::new(ConnectErrorKind::Network, "db", "refused").try_next_host());
    }

    #[test]
    fn a_message_is_one_line_with_the_code() {
        let text = server("3D000").to_string();
        assert_eq!(
            text,
            "cannot connect to Postgres at db:5432: refused (3D000); create it, or correct dbname"
        );
    }
}
