//! A row as a CEL value: a cell is converted when the expression asks for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cel::ExecutionError;
use cel::common::traits::Indexer;
use cel::common::types::{CelBool, CelDouble, CelInt, CelNull, CelString, DYN_TYPE, Type};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;

use super::row::{RowView, Seen};
use crate::event::Relation;
use crate::expression::from_json;
use crate::value::{ValueKind, write_json};

/// What `data` and `old` stand for.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    pub(super) data: CelRow<'a>,
    pub(super) old: CelRow<'a>,
}

impl VariableResolver for Rows<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        match variable {
            "data" => Some(CowVal::Borrowed(&self.data)),
            "old" => Some(CowVal::Borrowed(&self.old)),
            _ => None,
        }
    }
}

/// The columns that the condition names, and where they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns<'a> {
    pub(super) names: &'a [Arc<str>],
    pub(super) indexes: &'a [Option<usize>],
    pub(super) relation: &'a Relation,
    /// Set when a cell is asked for that Postgres did not send.
    pub(super) unknown: &'a AtomicBool,
}

/// A row; without one it has no key at all, as `old` of an insert.
#[derive(Clone, Copy, Debug)]
pub(super) struct CelRow<'a> {
    columns: Columns<'a>,
    row: Option<RowView<'a>>,
}

impl<'a> CelRow<'a> {
    pub(super) fn new(columns: Columns<'a>, row: Option<RowView<'a>>) -> Self {
        Self { columns, row }
    }

    fn cell(&self, name: &str) -> Result<CowVal<'a, 'a>, ExecutionError> {
        let Some(row) = self.row else {
            return Err(ExecutionError::no_such_key(name));
        };
        let place = self.columns.names.iter().position(|known| &**known == name);
        let index = place.and_then(|place| self.columns.indexes.get(place).copied().flatten());
        match index.map_or(Seen::Absent, |index| row.cell(index)) {
            Seen::Null => Ok(CowVal::Borrowed(&CelNull)),
            Seen::Text(text) => {
                let kind = index.and_then(|index| self.columns.relation.columns.get(index));
                Ok(convert(kind.map_or(&ValueKind::Text, |column| &column.kind), text).into())
            }
            // Not "no such key": `has()` would call that false.
            Seen::Unchanged | Seen::Omitted | Seen::NotSent | Seen::Absent => {
                self.columns.unknown.store(true, Ordering::Relaxed);
                Err(ExecutionError::InternalError("the column was not sent".into()))
            }
        }
    }
}

impl Indexer for CelRow<'_> {
    fn get<'b, 'v>(&'b self, name: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        match name.downcast_ref::<CelString<'_>>() {
            Some(name) => self.cell(name.inner()),
            None => Err(ExecutionError::no_such_key("?")),
        }
    }

    fn steal<'v>(self: Box<Self>, name: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(name).map(CowVal::into_owned)
    }
}

impl Val for CelRow<'_> {
    fn get_type(&self) -> &Type {
        &DYN_TYPE
    }

    fn cel_type() -> &'static Type {
        &DYN_TYPE
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(*self)
    }
}

/// A cell's text as the value that its JSON form stands for, but for numbers: these keep their type however
/// large they grow, so that an expression does not break on the day an id passes 2^53.
fn convert<'v>(kind: &ValueKind, text: &'v [u8]) -> Box<dyn Val + 'v> {
    let utf8 = std::str::from_utf8(text);
    match (kind, utf8) {
        (ValueKind::Text, Ok(text)) => return Box::new(CelString::from(text)),
        (ValueKind::Bool, Ok("t")) => return Box::new(CelBool::from(true)),
        (ValueKind::Bool, Ok("f")) => return Box::new(CelBool::from(false)),
        (ValueKind::Integer, Ok(text)) => {
            if let Ok(number) = text.parse::<i64>() {
                return Box::new(CelInt::from(number));
            }
        }
        (ValueKind::Float, Ok(text)) => {
            if let Ok(number) = text.parse::<f64>() {
                return Box::new(CelDouble::from(number));
            }
        }
        _ => {}
    }
    let mut json = Vec::with_capacity(text.len() + 16);
    if matches!(kind, ValueKind::Json) {
        json.extend_from_slice(text);
    } else {
        write_json(kind, text, &mut json);
    }
    match serde_json::from_slice(&json) {
        Ok(value) => from_json(value),
        Err(_) => Box::new(CelString::from(String::from_utf8_lossy(text).into_owned())),
    }
}
