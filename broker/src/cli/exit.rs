//! How a command ends: exit codes after `sysexits.h`, each with one line that says why.

use std::fmt;

use walcast_client::{Error, wire::ProblemCode};

/// Anything that the other codes do not name.
pub const OTHER: u8 = 1;
/// Two things that were compared differ.
pub const DIFFERS: u8 = 2;
/// The command or its configuration is wrong; trying again changes nothing.
pub const USAGE: u8 = 64;
/// The input data is wrong.
pub const DATA: u8 = 65;
/// The broker does not know the token, or does not grant this to it; trying again changes nothing.
pub const NO_PERMISSION: u8 = 77;
/// A service that is needed cannot be reached, or is busy; trying again may succeed.
pub const UNAVAILABLE: u8 = 69;

/// Why a command did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The process's exit code.
    pub code: u8,
    /// One line for people: what, why, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure with this exit code.
    #[must_use]
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The broker refused, and said so within a stream.
    pub(super) fn refused(code: ProblemCode, detail: &str) -> Self {
        Self::new(of_refusal(code), format!("the broker refused ({code}): {detail}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What a refusal ends a command with, whether it came as an answer's status or within a stream.
fn of_refusal(code: ProblemCode) -> u8 {
    match code {
        ProblemCode::BodyTooLarge | ProblemCode::Rejected | ProblemCode::IdempotencyConflict => DATA,
        _ => match code.status() {
            400 => USAGE,
            401 | 403 => NO_PERMISSION,
            429 | 503 => UNAVAILABLE,
            _ => OTHER,
        },
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Url { .. } | Error::Setup(_) | Error::Topic { .. } | Error::Request(_) => USAGE,
            Error::Problem { problem, .. } => of_refusal(problem.code),
            Error::Refused { cause, .. } => cause.problem().map_or(OTHER, |problem| of_refusal(problem.code)),
            _ if error.is_unavailable() => UNAVAILABLE,
            _ => OTHER,
        };
        let remedy = match &error {
            Error::Connect { .. } => "; is `walcast serve` running there? --url names another",
            _ if code == NO_PERMISSION => "; the token is that of WALCAST_TOKEN or --token-file",
            _ => "",
        };
        let said = match &error {
            // What the library calls its remedy is none of the command's.
            Error::Certificate { address, reason } => format!(
                "the certificate of {address} does not verify: {reason}; name the certificate of its issuer by --ca-file, \
                 or use the name that it is made for"
            ),
            error => error.to_string(),
        };
        Self::new(code, format!("{said}{remedy}"))
    }
}
