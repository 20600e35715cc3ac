//! What can go wrong, split where a caller would do something different.

use std::io;
use std::time::Duration;

use walcast_wire::{Cursor, Problem, ProblemCode, Reset, ResetReason, Topic, TopicError};

/// Why a call or a stream failed.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
/// use walcast_client::Error;
///
/// match client.state("vm/host-17").await {
///     Ok(state) => println!("{state:?}"),
///     Err(error @ (Error::Refused { .. } | Error::Certificate { .. })) => panic!("{error}"),
///     Err(error) => println!("not now: {error}"),
/// }
/// # Ok(())
/// # }
/// ```
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
    /// A topic or pattern breaks the rules of topics; nothing was sent.
    #[error("{text:?} is no topic: {source}")]
    Topic {
        /// As given.
        text: String,
        /// The rule.
        source: TopicError,
    },
    /// What the client was built with cannot be used; nothing was sent.
    #[error("the client cannot be set up: {0}")]
    Setup(String),
    /// The name of the host is not known, or nobody answers who knows names.
    #[error("the host name of {address} does not resolve: {source}; check the name and this machine's DNS")]
    Resolve {
        /// Host and port.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The host proved to be somebody else, or nobody whom we trust says who it is.
    #[error(
        "the certificate of {address} does not verify: {reason}; trust its issuer by `root_certificates`, \
         or use the name that it is made for"
    )]
    Certificate {
        /// Host and port.
        address: String,
        /// Why not.
        reason: String,
    },
    /// No connection came about; also where a certificate is not valid yet, or no longer, as the clock may be wrong.
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
    /// An answer with an error status that is not walcast's, as proxies give it.
    #[error("{address} answered with status {status}{}", suffix(code.as_deref(), detail))]
    Status {
        /// Host and port.
        address: String,
        /// The HTTP status.
        status: u16,
        /// A code that this version does not know, where the answer had one.
        code: Option<String>,
        /// What the answer said, for people; may be empty.
        detail: String,
        /// When to come back, where the answer said so.
        retry_after: Option<Duration>,
    },
    /// A refusal that repeating does not change: the caller has to. Where it is about who we are (401, 403), all
    /// brokers said so; this is the last one's.
    #[error("{cause} (asked {address} for {topics})")]
    Refused {
        /// Host and port.
        address: String,
        /// What it was asked for.
        topics: String,
        /// [`Error::Problem`] or [`Error::Status`], which have status and code.
        cause: Box<Error>,
    },
    /// Events may have been missed, and the caller named the place after which it wants all.
    #[error("events may be missing ({}): go on from {}", reset.reason.code(), reset.resume)]
    Missed {
        /// Why, and from where to go on.
        reset: Reset,
    },
    /// The data of an event is not of the type that was asked for.
    #[error("the data of {topic} at {cursor} is of another type: {reason}")]
    Data {
        /// Where it was published.
        topic: Topic,
        /// The event's.
        cursor: Cursor,
        /// What is different.
        reason: String,
    },
    /// What came at once is larger than the last transport that was left to try reads: 16 MiB by a WebSocket or
    /// server-sent events, 128 MiB by long-poll.
    #[error(
        "the broker at {address} sent more than the limit of {bytes_max} bytes at once: name fewer topics, lower its \
         `router.event_bytes_max`, or leave the transport open, as long-poll reads most"
    )]
    TooLarge {
        /// Host and port.
        address: String,
        /// The limit.
        bytes_max: usize,
    },
    /// The current values take more memory than allowed.
    #[error(
        "the current values of {topics} take more than {bytes_max} bytes: name fewer topics, or raise the limit \
         by `values_bytes_max`"
    )]
    TooBroad {
        /// What was asked for.
        topics: String,
        /// The limit.
        bytes_max: usize,
    },
    /// The place to go on from cannot be read or written.
    #[error("the cursor cannot be kept: {0}")]
    Store(io::Error),
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
    /// Redis refuses, or what it holds is of another version than this client reads.
    #[cfg(any(feature = "redis", feature = "fred"))]
    #[error("Redis does not serve: {reason}")]
    Redis {
        /// As Redis or its client says it.
        reason: String,
    },
    /// What was to be sent cannot be written as a request.
    #[error("cannot make a request of this: {0}")]
    Request(String),
}

impl Error {
    /// Whether the same call may succeed later, unchanged.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// if let Err(error) = client.state("vm/host-17").await {
    ///     println!("{}: {error}", if error.is_unavailable() { "later" } else { "never" });
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Resolve { .. } | Self::Broken { .. } | Self::Silent { .. } => true,
            // 502 and 504 are a balancer's.
            Self::Problem { .. } | Self::Status { .. } => {
                self.status().is_some_and(|status| matches!(status, 408 | 429 | 502..=504))
            }
            Self::Closed { code, .. } => *code != 1002 && *code != 1009,
            Self::Url { .. }
            | Self::Topic { .. }
            | Self::Setup(_)
            | Self::Certificate { .. }
            | Self::Refused { .. }
            | Self::Missed { .. }
            | Self::Data { .. }
            | Self::TooLarge { .. }
            | Self::TooBroad { .. }
            | Self::Store(_)
            | Self::Protocol { .. }
            | Self::Request(_) => false,
            #[cfg(any(feature = "redis", feature = "fred"))]
            Self::Redis { .. } => false,
        }
    }

    /// The HTTP status of a refusal.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// if let Err(error) = client.state("vm/host-17").await {
    ///     println!("{:?}", error.status());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Problem { problem, .. } => Some(problem.status),
            Self::Status { status, .. } => Some(*status),
            Self::Refused { cause, .. } => cause.status(),
            _ => None,
        }
    }

    /// The stable code of a refusal, such as `bad_topic`.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// if let Err(error) = client.publish("jobs/7", "new").await {
    ///     if error.code() == Some("idempotency_conflict") {
    ///         println!("the key was used for something else");
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Problem { problem, .. } => Some(problem.code.as_str()),
            Self::Status { code, .. } => code.as_deref(),
            Self::Refused { cause, .. } => cause.code(),
            _ => None,
        }
    }

    /// When the broker, or what stands before it, wants to be asked again, where it said so.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// if let Err(error) = client.state("vm/host-17").await {
    ///     tokio::time::sleep(error.retry_after().unwrap_or_default()).await;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Problem { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// A 410 says on a plain request what a stream says as a reset.
    pub(crate) fn reset(&self) -> Option<Reset> {
        let problem = self.problem()?;
        let reason = match problem.code {
            ProblemCode::CursorExpired => ResetReason::CursorExpired,
            ProblemCode::EpochChanged => ResetReason::EpochChanged,
            ProblemCode::Gap => ResetReason::Gap,
            _ => return None,
        };
        Some(Reset { reason, resume: problem.resume? })
    }

    /// With who refused what.
    pub(crate) fn refused(self, address: &str, topics: &str) -> Self {
        match self {
            Self::Problem { .. } | Self::Status { .. } => Self::Refused {
                address: address.to_owned(),
                topics: topics.to_owned(),
                cause: Box::new(self),
            },
            other => other,
        }
    }

    /// What the broker said, if it refused.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// # let client = walcast_client::Client::new("http://127.0.0.1:8480")?;
    /// if let Err(error) = client.state("vm/host-17").await {
    ///     if let Some(problem) = error.problem() {
    ///         println!("{}: {}", problem.code, problem.detail);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem { problem, .. } => Some(problem),
            Self::Refused { cause, .. } => cause.problem(),
            _ => None,
        }
    }
}

/// What an answer said beside its status.
fn suffix(code: Option<&str>, detail: &str) -> String {
    let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
    let colon = if detail.is_empty() { "" } else { ": " };
    format!("{code}{colon}{detail}")
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_refusal_names_who_refused_what_and_why() {
        let status = Error::Status {
            address: "a:1".to_owned(),
            status: 401,
            code: Some("unauthorized".to_owned()),
            detail: "no token".to_owned(),
            retry_after: None,
        };
        let error = status.refused("a:1", "vm/x");
        assert_eq!((error.status(), error.code()), (Some(401), Some("unauthorized")));
        let text = error.to_string();
        for part in ["a:1", "vm/x", "401", "unauthorized", "no token"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
