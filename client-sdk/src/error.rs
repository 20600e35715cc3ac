//! What can go wrong, split where a caller would do something different.

use std::io;
use std::time::Duration;

use walcast_wire::Problem;

/// Why a call or a stream failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker's URL cannot be used; nothing was sent.
    #[error("the broker's URL {url:?} cannot be used: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection came about.
    #[error("cannot connect to the broker at {address}: {source}")]
    Connect {
        /// Host and port.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The connection broke, or what came was not HTTP.
    #[error("the connection to the broker at {address} broke: {reason}")]
    Broken {
        /// Host and port.
        address: String,
        /// How.
        reason: String,
    },
    /// Nothing came for longer than the broker stays silent.
    #[error("nothing came from the broker at {address} for {} seconds", after.as_secs())]
    Silent {
        /// Host and port.
        address: String,
        /// How long was waited.
        after: Duration,
    },
    /// The broker refused, and said why.
    #[error("the broker refused ({}): {}", problem.code, problem.detail)]
    Problem {
        /// What it said; branch on its code.
        problem: Box<Problem>,
        /// When to come back, where the broker said so.
        retry_after: Option<Duration>,
    },
    /// A WebSocket was closed with a code other than that of a normal end or a drain.
    #[error("the broker closed the WebSocket with code {code}: {reason}")]
    Closed {
        /// As `walcast_wire::CloseCode`.
        code: u16,
        /// For people.
        reason: String,
    },
    /// The answer is not one of walcast's.
    #[error("the answer of {address} is not walcast's: {reason}")]
    Protocol {
        /// Host and port.
        address: String,
        /// What was unexpected.
        reason: String,
    },
    /// What was to be sent cannot be written as a request.
    #[error("cannot make a request of this: {0}")]
    Request(String),
}

impl Error {
    /// Whether the same call may succeed later, unchanged.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Broken { .. } | Self::Silent { .. } => true,
            // 502 and 504 are a balancer's.
            Self::Problem { problem, .. } => matches!(problem.status, 429 | 502..=504),
            Self::Closed { code, .. } => *code != 1002 && *code != 1009,
            Self::Url { .. } | Self::Protocol { .. } | Self::Request(_) => false,
        }
    }

    /// What the broker said, if it refused.
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem { problem, .. } => Some(problem),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use walcast_wire::ProblemCode;

    use super::*;

    #[test]
    fn what_may_succeed_later() {
        let check = |status: u16, expected: bool| {
            let problem = Box::new(Problem { status, ..Problem::new(ProblemCode::Unavailable, "") });
            let error = Error::Problem { problem, retry_after: None };
            assert_eq!(error.is_unavailable(), expected, "{status}");
        };
        check(400, false);
        check(410, false);
        check(429, true);
        check(502, true);
        check(503, true);
        check(504, true);
        check(505, false);
    }
}
