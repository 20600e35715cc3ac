//! The topic of a row.

use walcast_wire::topic::TOPIC_BYTES_MAX;
use walcast_wire::{Topic, encode_segment};

use super::notice::Reason;
use super::row::{RowView, Seen};
use crate::template::Template;

/// The topic of a row. `indexes` says where each of [`Template::names`] is in it.
///
/// # Errors
/// Why the row has none.
pub(super) fn topic(
    template: &Template,
    indexes: &[Option<usize>],
    row: &RowView<'_>,
) -> Result<Topic, Reason> {
    let text = template.fill(|name| {
        let index = indexes.get(name).copied().flatten().ok_or(Reason::Absent)?;
        match row.cell(index) {
            Seen::Text([]) => Err(Reason::Empty),
            // The encoding never shortens, so nothing longer can fit, and is not worth encoding.
            Seen::Text(text) if text.len() > TOPIC_BYTES_MAX => Err(Reason::TooLong),
            Seen::Text(text) => Ok(encode_segment(std::str::from_utf8(text).map_err(|_| Reason::Invalid)?)),
            Seen::Null => Err(Reason::Null),
            Seen::Unchanged => Err(Reason::Unchanged),
            Seen::Omitted => Err(Reason::Omitted),
            Seen::NotSent => Err(Reason::NotSent),
            Seen::Absent => Err(Reason::Absent),
        }
    })?;
    if text.len() > TOPIC_BYTES_MAX {
        return Err(Reason::TooLong);
    }
    Topic::new(&text).map_err(|_| Reason::Invalid)
}
