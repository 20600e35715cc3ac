//! Why a load test stopped.
//!
//! What clients lost or saw twice is no error but a finding: see [`verify`](crate::verify).

use std::fmt;

/// What the caller may do about it; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The arguments are wrong.
    Usage,
    /// A program that is needed is not installed, or the database does not fit.
    Missing,
    /// Something that ran failed.
    Failed,
}

/// One line: the thing, the cause, the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What may be done about it.
    pub kind: Kind,
    /// For people.
    pub message: String,
}

impl Error {
    /// The arguments are wrong.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: message.into() }
    }

    /// Something needed is not there.
    #[must_use]
    pub fn missing(message: impl Into<String>) -> Self {
        Self { kind: Kind::Missing, message: message.into() }
    }

    /// Something that ran failed.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, message: message.into() }
    }

    /// `what` failed because of `error`; for `map_err`.
    pub fn of<E: fmt::Display>(what: &str) -> impl FnOnce(E) -> Self {
        move |error| Self::failed(format!("{what}: {error}"))
    }

    /// A statement failed while `doing` something.
    pub fn sql(doing: &str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |error| Self::failed(format!("{doing}: {}", walcast::postgres::describe(&error)))
    }

    /// The process's exit code for it, as in `sysexits.h`.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Usage => 64,
            Kind::Missing => 69,
            Kind::Failed => 1,
        }
    }
}
