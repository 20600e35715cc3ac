//! What is known of a row: the cells that Postgres sent, and those that it left out.

use crate::event::{Cell, OldRow, Relation};

/// A row, with knowledge of which of its cells can be believed.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowView<'a> {
    relation: &'a Relation,
    cells: &'a [Cell],
    /// Where cells that the update left as they were may be found.
    under: Option<&'a OldRow>,
    /// Only cells of the replica identity are known.
    keys_only: bool,
}

/// One cell as seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen<'a> {
    /// SQL NULL.
    Null,
    /// The text form.
    Text(&'a [u8]),
    /// Stored out of line and left as it was.
    Unchanged,
    /// Too large to be sent.
    Omitted,
    /// Outside the replica identity of an old row.
    NotSent,
    /// The row has no such column.
    Absent,
}

impl<'a> RowView<'a> {
    /// A row that was sent whole: inserted, or read by seeding.
    pub(super) fn whole(relation: &'a Relation, cells: &'a [Cell]) -> Self {
        Self { relation, cells, under: None, keys_only: false }
    }

    /// A row after an update.
    pub(super) fn updated(relation: &'a Relation, cells: &'a [Cell], old: Option<&'a OldRow>) -> Self {
        Self { relation, cells, under: old, keys_only: false }
    }

    /// A row before an update, or a deleted one.
    pub(super) fn old(relation: &'a Relation, old: &'a OldRow) -> Self {
        Self { relation, cells: old.row(), under: None, keys_only: matches!(old, OldRow::Key(_)) }
    }

    /// What an update that sent no old row says of it: its replica identity is that of the new one.
    pub(super) fn same_key(relation: &'a Relation, new: &'a [Cell]) -> Self {
        Self { relation, cells: new, under: None, keys_only: true }
    }

    /// The cell of the relation's column `index`.
    pub(super) fn cell(&self, index: usize) -> Seen<'a> {
        let key = self.relation.columns.get(index).is_some_and(|column| column.key);
        if self.keys_only && !key {
            return Seen::NotSent;
        }
        match (self.cells.get(index), self.under) {
            (None, _) => Seen::Absent,
            (Some(Cell::Null), _) => Seen::Null,
            (Some(Cell::Text(text)), _) => Seen::Text(text),
            (Some(Cell::Unchanged), Some(old)) if key || matches!(old, OldRow::Full(_)) => {
                match old.row().get(index) {
                    Some(Cell::Text(text)) => Seen::Text(text),
                    _ => Seen::Unchanged,
                }
            }
            (Some(Cell::Unchanged), _) => Seen::Unchanged,
            (Some(Cell::Omitted), _) => Seen::Omitted,
        }
    }
}
