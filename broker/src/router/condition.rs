//! `when`: a CEL expression over a row.
//!
//! It is compiled once, and may name columns only as `data.status`, `data["status"]`, `old.…` or `has(…)`.
//! So the columns that it needs are known before any row comes, a misspelt one is found at start, and no
//! other cell is ever converted. Evaluation reaches no clock, no environment and no other row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cel::common::types::CelBool;

use super::cel_row::{CelRow, Columns, Rows};
use super::notice::Reason;
use super::row::RowView;
use crate::event::Relation;
use crate::expression::{self, Expression, Fault};

/// What a condition says of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// True.
    Holds,
    /// False.
    Fails,
    /// It depends on a cell that was not sent.
    Unknown,
    /// Counts as false; why, and a detail that holds no value of the row.
    Broken(Reason, String),
}

/// A compiled `when`.
pub(super) struct Condition {
    expression: Expression,
    names: Names,
}

impl std::fmt::Debug for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Condition").field("columns", &self.names.columns).finish_non_exhaustive()
    }
}

impl Condition {
    /// Compiles an expression.
    ///
    /// # Errors
    /// Cause and remedy.
    pub(super) fn compile(text: &str) -> Result<Self, Fault> {
        let mut names = Names::default();
        let expression = Expression::compile(text, "data.status == 'running'", &mut names)?;
        Ok(Self { expression, names })
    }

    /// The columns that it names, of `data` or `old`, each once.
    pub(super) fn columns(&self) -> &[Arc<str>] {
        &self.names.columns
    }

    /// The columns that it names of `old`.
    pub(super) fn of_old(&self) -> &[Arc<str>] {
        &self.names.of_old
    }

    /// Evaluates. `indexes` says where each of [`Self::columns`] is in the rows.
    pub(super) fn evaluate(
        &self,
        relation: &Relation,
        indexes: &[Option<usize>],
        data: RowView<'_>,
        old: Option<RowView<'_>>,
    ) -> Verdict {
        let unknown = AtomicBool::new(false);
        let columns = Columns { names: &self.names.columns, indexes, relation, unknown: &unknown };
        let rows = Rows { data: CelRow::new(columns, Some(data)), old: CelRow::new(columns, old) };
        self.expression.evaluate(&rows, |outcome| match outcome {
            Ok(value) => match value.downcast_ref::<CelBool>().map(|value| *value.inner()) {
                Some(true) => Verdict::Holds,
                Some(false) => Verdict::Fails,
                None => Verdict::Broken(Reason::WhenNotBool, value.get_type().name().to_owned()),
            },
            Err(_) if unknown.load(Ordering::Relaxed) => Verdict::Unknown,
            Err(error) => Verdict::Broken(Reason::WhenError, expression::describe(error)),
        })
    }
}

/// The columns that an expression names.
#[derive(Default)]
struct Names {
    columns: Vec<Arc<str>>,
    of_old: Vec<Arc<str>>,
}

impl expression::Names for Names {
    fn field(&mut self, name: &str, field: &str) -> bool {
        let of_old = match name {
            "data" => false,
            "old" => true,
            _ => return false,
        };
        let add = |list: &mut Vec<Arc<str>>| {
            if !list.iter().any(|known| &**known == field) {
                list.push(field.into());
            }
        };
        add(&mut self.columns);
        if of_old {
            add(&mut self.of_old);
        }
        true
    }

    fn alone(&self, name: &str) -> Result<(), Fault> {
        match name {
            "data" | "old" => Err((
                format!("`{name}` stands alone"),
                format!("name the columns that matter: {name}.status or {name}[\"status\"]"),
            )),
            _ => Err((format!("`{name}` is unknown"), format!("a column is written data.{name}"))),
        }
    }
}
