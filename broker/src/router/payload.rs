//! `data`: a row as a JSON object, written straight from Postgres's text.

use std::sync::Arc;

use bytes::Bytes;

use super::binding::{Binding, Field};
use super::row::{RowView, Seen};
use crate::value::write_json;

/// The part of an event that comes from a row.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Payload {
    pub(super) data: Bytes,
    pub(super) unchanged: Box<[Arc<str>]>,
    pub(super) omitted: Box<[Arc<str>]>,
}

/// How much of a row is sent, from most to least. The columns of the replica identity are all columns
/// under REPLICA IDENTITY FULL; those of the topic are short by nature.
#[derive(Clone, Copy)]
enum Extent {
    All,
    Key,
    Topic,
    Nothing,
}

impl Extent {
    fn holds(self, field: &Field) -> bool {
        match self {
            Self::All => true,
            Self::Key => field.key,
            Self::Topic => field.in_topic,
            Self::Nothing => false,
        }
    }
}

/// Writes the published columns of `row` that are known, cut down if they exceed `bytes_max`.
pub(super) fn write(
    binding: &Binding,
    row: &RowView<'_>,
    bytes_max: usize,
    scratch: &mut Vec<u8>,
) -> Payload {
    let extent = [Extent::All, Extent::Key, Extent::Topic]
        .into_iter()
        .find(|extent| object(binding, row, *extent, bytes_max, scratch))
        .unwrap_or(Extent::Nothing);
    if matches!(extent, Extent::Nothing) {
        scratch.clear();
        scratch.extend_from_slice(b"{}");
    }
    let (mut unchanged, mut omitted) = (Vec::new(), Vec::new());
    for field in &binding.fields {
        match row.cell(field.index) {
            Seen::Unchanged => unchanged.push(Arc::clone(&field.name)),
            Seen::Omitted => omitted.push(Arc::clone(&field.name)),
            Seen::Null | Seen::Text(_) if !extent.holds(field) => omitted.push(Arc::clone(&field.name)),
            _ => {}
        }
    }
    Payload { data: Bytes::copy_from_slice(scratch), unchanged: unchanged.into(), omitted: omitted.into() }
}

/// Writes the object into `out`; false if it does not fit.
fn object(binding: &Binding, row: &RowView<'_>, extent: Extent, bytes_max: usize, out: &mut Vec<u8>) -> bool {
    out.clear();
    out.push(b'{');
    for field in binding.fields.iter().filter(|field| extent.holds(field)) {
        let text = match row.cell(field.index) {
            Seen::Text(text) => Some(text),
            Seen::Null => None,
            Seen::Unchanged | Seen::Omitted | Seen::NotSent | Seen::Absent => continue,
        };
        // JSON is at least half as long as the text (bytea in hex shrinks most), so a value that cannot
        // fit is not even written: one large row must not take a multiple of its size in memory.
        if out.len() > bytes_max || text.is_some_and(|text| text.len() / 2 > bytes_max) {
            return false;
        }
        if out.len() > 1 {
            out.push(b',');
        }
        out.extend_from_slice(&field.label);
        match text {
            Some(text) => write_json(&field.kind, text, out),
            None => out.extend_from_slice(b"null"),
        }
    }
    out.push(b'}');
    out.len() <= bytes_max
}
