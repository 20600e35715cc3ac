//! Why a source has no stream, or no longer, and what that says of the next attempt.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::{Config, Retry, SourceError};
use crate::postgres::{Closed, ConnectError, ConnectErrorKind};

/// Pause before what needs an operator is tried again, once the broker has been running.
pub(crate) const AFTER_REFUSAL: Duration = Duration::from_secs(5);

/// A role that setup has given nothing.
pub(crate) const NOT_GRANTED: &str =
    "the role may not read the schema walcast: run `walcast setup --broker-role ROLE`, or grant it by hand";

/// Why there is no stream, or no longer.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) kind: Kind,
}

/// What kind of failure it is, as far as the next attempt is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// May pass by itself.
    Passing,
    /// The server stops.
    Shutdown,
    /// The server was silent.
    Silent,
    /// The lease is somebody's.
    Held,
    /// Another broker asked for the lease, and has it.
    HandedOver,
    /// An operator has to act.
    Operator,
}

impl Failure {
    pub(crate) fn again(message: impl Into<String>) -> Self {
        Self { message: message.into(), kind: Kind::Passing }
    }

    pub(crate) fn needs_operator(message: impl Into<String>) -> Self {
        Self { message: message.into(), kind: Kind::Operator }
    }

    /// What needs an operator ends a broker that has not begun, for whoever starts it is there to read why;
    /// one that runs goes on trying.
    pub(crate) fn into_error(self, running: bool, config: &Config) -> SourceError {
        let retry = match self.kind {
            Kind::Passing | Kind::Silent | Kind::Held => Retry::After(Duration::ZERO),
            Kind::Shutdown => Retry::After(config.shutdown_pause),
            Kind::HandedOver => Retry::HandedOver,
            Kind::Operator if running => Retry::After(AFTER_REFUSAL),
            Kind::Operator => Retry::Never,
        };
        SourceError { message: self.message, retry }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let kind = match error.kind {
            ConnectErrorKind::Network | ConnectErrorKind::WrongServer | ConnectErrorKind::Server => {
                Kind::Passing
            }
            ConnectErrorKind::Shutdown => match &error.code {
                // Starting up, or recovering from a crash: it does not wait for us.
                Some(code) if *code == SqlState::CANNOT_CONNECT_NOW => Kind::Passing,
                _ => Kind::Shutdown,
            },
            _ => Kind::Operator,
        };
        Self { message: error.to_string(), kind }
    }
}

impl Failure {
    /// A session that must live has ended.
    pub(crate) fn of_closed(session: &str, closed: &Closed) -> Self {
        let kind = if matches!(closed, Closed::Shutdown(_)) { Kind::Shutdown } else { Kind::Passing };
        Self { message: format!("the {session} session: {closed}"), kind }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::ServerError;

    #[test]
    fn only_a_broker_that_has_not_begun_gives_up() {
        let check = |running: bool, expected: Retry| {
            let error = Failure::needs_operator("x").into_error(running, &Config::default());
            assert_eq!(error.retry, expected);
        };
        check(false, Retry::Never);
        check(true, Retry::After(AFTER_REFUSAL));
    }

    #[test]
    fn a_server_that_stops_is_left_alone_and_one_that_starts_is_not() {
        let check = |code: &str, expected: Kind, at_least: Duration| {
            let error = ServerError {
                code: SqlState::from_code(code),
                message: "refused".into(),
                detail: None,
                hint: None,
            };
            let failure = Failure::from(ConnectError::server("db:5432", &error));
            assert_eq!(failure.kind, expected, "{code}");
            let Retry::After(pause) = failure.into_error(true, &Config::default()).retry else {
                panic!("{code}: given up")
            };
            assert!(pause >= at_least, "{code}: {pause:?}");
        };
        const GRACE: Duration = Duration::from_secs(10);
        check("57P01", Kind::Shutdown, GRACE);
        check("57P02", Kind::Shutdown, GRACE);
        // It starts, or recovers from a crash: what it waits for is not us.
        check("57P03", Kind::Passing, Duration::ZERO);
        let said = Failure::of_closed("gate", &Closed::Shutdown(SqlState::ADMIN_SHUTDOWN));
        assert_eq!(said.into_error(true, &Config::default()).retry, Retry::After(GRACE));
        let starting = Failure::again("x").into_error(true, &Config::default());
        assert_eq!(starting.retry, Retry::After(Duration::ZERO));
    }
}
