//! What went wrong with single rows: counted each time, logged the first time.
//!
//! A row that cannot be routed is never an error, for the next million rows may be alike. Nothing of a
//! row's values is logged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use metrics::counter;
use tracing::warn;

use crate::telemetry::{
    LABEL_REASON, LABEL_TABLE, ROUTER_DROPPED_TOTAL, ROUTER_INCOMPLETE_TOTAL, ROUTER_MALFORMED_TOTAL,
};

/// Why something was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Null,
    Empty,
    Unchanged,
    Omitted,
    NotSent,
    Absent,
    TooLong,
    Invalid,
    Truncate,
    WhenError,
    WhenNotBool,
    TooLarge,
    ColumnAbsent,
    NoLineBreak,
    BadTopic,
    NotJson,
    MessageTooLarge,
}

impl Reason {
    /// The value of the label.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Empty => "empty",
            Self::Unchanged => "unchanged",
            Self::Omitted => "omitted",
            Self::NotSent => "not_sent",
            Self::Absent => "absent",
            Self::TooLong => "too_long",
            Self::Invalid => "invalid",
            Self::Truncate => "truncate",
            Self::WhenError => "when_error",
            Self::WhenNotBool => "when_not_bool",
            Self::TooLarge => "too_large",
            Self::ColumnAbsent => "column_absent",
            Self::NoLineBreak => "no_line_break",
            Self::BadTopic => "bad_topic",
            Self::NotJson => "not_json",
            Self::MessageTooLarge => "too_large",
        }
    }

    const fn explanation(self) -> &'static str {
        match self {
            Self::Null => "a column of the topic is NULL: the row has no topic",
            Self::Empty => "a column of the topic is empty: the row has no topic",
            Self::Unchanged => {
                "a column of the topic is stored out of line and was not sent: set REPLICA IDENTITY FULL"
            }
            Self::Omitted => "a column of the topic was too large to be sent: the row has no topic",
            Self::NotSent => {
                "a column of the topic is not in the replica identity: deleted rows have no topic; set \
                 REPLICA IDENTITY FULL"
            }
            Self::Absent => "a column of the topic did not exist when the row was written",
            Self::TooLong => "the topic would exceed 255 bytes",
            Self::Invalid => "the values do not make a valid topic",
            Self::Truncate => "TRUNCATE has no topic, because the template names columns",
            Self::WhenError => "`when` could not be evaluated and counts as false",
            Self::WhenNotBool => "`when` is neither true nor false and counts as false",
            Self::TooLarge => {
                "an event exceeds event_bytes_max and carries its key only, or a trigger left columns out: `omitted` names \
                 what is missing"
            }
            Self::ColumnAbsent => "a published column did not exist when the row was written",
            Self::NoLineBreak => "a message has no first line and is dropped",
            Self::BadTopic => "a message has no valid topic and is dropped",
            Self::NotJson => "a message is not JSON and is dropped",
            Self::MessageTooLarge => "a message exceeds event_bytes_max and is sent without its data",
        }
    }

    const fn metric(self) -> &'static str {
        match self {
            Self::TooLarge | Self::ColumnAbsent | Self::MessageTooLarge => ROUTER_INCOMPLETE_TOTAL,
            Self::NoLineBreak | Self::BadTopic | Self::NotJson => ROUTER_MALFORMED_TOTAL,
            _ => ROUTER_DROPPED_TOTAL,
        }
    }
}

/// Remembers which reasons were logged: one of these per rule, and one for messages.
#[derive(Debug, Default)]
pub(super) struct Notices(AtomicU32);

impl Notices {
    /// Counts a row of `table`.
    pub(super) fn row(&self, table: &Arc<str>, reason: Reason, detail: &str) {
        counter!(reason.metric(), LABEL_TABLE => Arc::clone(table), LABEL_REASON => reason.as_str())
            .increment(1);
        if self.first(reason) {
            warn!(%table, reason = reason.as_str(), detail, "{} (said once; counted in {})",
                reason.explanation(), reason.metric());
        }
    }

    /// Counts a message.
    pub(super) fn message(&self, reason: Reason) {
        counter!(reason.metric(), LABEL_REASON => reason.as_str()).increment(1);
        if self.first(reason) {
            warn!(
                reason = reason.as_str(),
                "{} (said once; counted in {})",
                reason.explanation(),
                reason.metric()
            );
        }
    }

    /// Whether this reason has come up.
    #[cfg(test)]
    pub(super) fn seen(&self, reason: Reason) -> bool {
        self.0.load(Ordering::Relaxed) & (1 << reason as u32) != 0
    }

    fn first(&self, reason: Reason) -> bool {
        let bit = 1 << reason as u32;
        self.0.load(Ordering::Relaxed) & bit == 0 && self.0.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }
}
