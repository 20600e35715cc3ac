//! `when`: a CEL expression over a row.
//!
//! It is compiled once, and may name columns only as `data.status`, `data["status"]`, `old.…` or `has(…)`.
//! So the columns that it needs are known before any row comes, a misspelt one is found at start, and no
//! other cell is ever converted. Evaluation reaches no clock, no environment and no other row.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cel::common::ast::{CallExpr, EntryExpr, Expr, LiteralValue, operators};
use cel::common::types::CelBool;
use cel::{Context, Env, ExecutionError, IdedExpr, Program, Value};

use super::cel_row::{CelRow, Columns, Rows};
use super::notice::Reason;
use super::row::RowView;
use crate::event::Relation;

/// Names that stand for types.
const TYPES: [&str; 10] =
    ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

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
    program: Program,
    env: Arc<Env>,
    columns: Vec<Arc<str>>,
    of_old: Vec<Arc<str>>,
}

impl std::fmt::Debug for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Condition").field("columns", &self.columns).finish_non_exhaustive()
    }
}

impl Condition {
    /// Compiles an expression.
    ///
    /// # Errors
    /// Cause and remedy.
    pub(super) fn compile(text: &str) -> Result<Self, (String, String)> {
        // Optional values would turn "not sent" into "not there".
        let env = Arc::new(Env::stdlib().with_optional_support(false));
        let program = env.compile(text).map_err(|errors| {
            let cause = errors.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            (format!("no CEL expression: {cause}"), "write for example data.status == 'running'".to_owned())
        })?;
        let mut names = Names { env: &env, columns: Vec::new(), of_old: Vec::new() };
        names.walk(program.expression(), &mut Vec::new())?;
        let Names { columns, of_old, .. } = names;
        Ok(Self { program, env, columns, of_old })
    }

    /// The columns that it names, of `data` or `old`, each once.
    pub(super) fn columns(&self) -> &[Arc<str>] {
        &self.columns
    }

    /// The columns that it names of `old`.
    pub(super) fn of_old(&self) -> &[Arc<str>] {
        &self.of_old
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
        let columns = Columns { names: &self.columns, indexes, relation, unknown: &unknown };
        let rows = Rows { data: CelRow::new(columns, Some(data)), old: CelRow::new(columns, old) };
        let mut context = Context::with_env(Arc::clone(&self.env));
        context.set_variable_resolver(&rows);
        match Value::resolve_val(self.program.expression(), &context) {
            Ok(value) => match value.downcast_ref::<CelBool>().map(|value| *value.inner()) {
                Some(true) => Verdict::Holds,
                Some(false) => Verdict::Fails,
                None => Verdict::Broken(Reason::WhenNotBool, value.get_type().name().to_owned()),
            },
            Err(_) if unknown.load(Ordering::Relaxed) => Verdict::Unknown,
            Err(error) => Verdict::Broken(Reason::WhenError, describe(&error)),
        }
    }
}

/// The error without the values in it: rows may hold what no log may.
fn describe(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchOverload(overload) => overload.to_string(),
        ExecutionError::NoSuchKey(_) => "no such key".into(),
        ExecutionError::ValuesNotComparable(..) => "values of different types were compared".into(),
        ExecutionError::FunctionError { function, .. } => format!("the function `{function}` failed"),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "division by zero".into(),
        ExecutionError::IndexOutOfBounds(_) => "index out of bounds".into(),
        _ => "evaluation failed".into(),
    }
}

/// Collects the columns that an expression names, and refuses names that nothing stands behind.
struct Names<'e> {
    env: &'e Arc<Env>,
    columns: Vec<Arc<str>>,
    of_old: Vec<Arc<str>>,
}

impl Names<'_> {
    fn walk<'x>(&mut self, expr: &'x IdedExpr, scope: &mut Vec<&'x str>) -> Result<(), (String, String)> {
        match &expr.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.ident(name, scope),
            Expr::Select(select) => match row(&select.operand, scope) {
                Some(of) => {
                    self.column(of, &select.field);
                    Ok(())
                }
                None => self.walk(&select.operand, scope),
            },
            Expr::Call(call) => self.call(call, scope),
            Expr::List(list) => list.elements.iter().try_for_each(|element| self.walk(element, scope)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.walk(&entry.key, scope)?;
                    self.walk(&entry.value, scope)
                }
                EntryExpr::StructField(field) => self.walk(&field.value, scope),
            }),
            Expr::Comprehension(loops) => {
                self.walk(&loops.iter_range, scope)?;
                self.walk(&loops.accu_init, scope)?;
                let depth = scope.len();
                scope.push(&loops.accu_var);
                scope.push(&loops.iter_var);
                scope.extend(loops.iter_var2.as_deref());
                let body = [&loops.loop_cond, &loops.loop_step, &loops.result];
                let outcome = body.into_iter().try_for_each(|part| self.walk(part, scope));
                scope.truncate(depth);
                outcome
            }
            Expr::Struct(_) | Expr::Unspecified => {
                Err(("there are no structures".into(), "compare single columns".into()))
            }
        }
    }

    fn ident(&self, name: &str, scope: &[&str]) -> Result<(), (String, String)> {
        match name {
            _ if scope.contains(&name) || TYPES.contains(&name) => Ok(()),
            "data" | "old" => Err((
                format!("`{name}` stands alone"),
                format!("name the columns that matter: {name}.status or {name}[\"status\"]"),
            )),
            _ => Err((format!("`{name}` is unknown"), format!("a column is written data.{name}"))),
        }
    }

    fn call<'x>(&mut self, call: &'x CallExpr, scope: &mut Vec<&'x str>) -> Result<(), (String, String)> {
        if let (operators::INDEX, [operand, index]) = (call.func_name.as_str(), call.args.as_slice())
            && let Some(of) = row(operand, scope)
            && let Expr::Literal(LiteralValue::String(name)) = &index.expr
        {
            self.column(of, name.inner());
            return Ok(());
        }
        if self.undeclared(call) {
            return Err((
                format!("there is no function `{}`", call.func_name),
                "use the standard functions of CEL".into(),
            ));
        }
        call.target.iter().try_for_each(|target| self.walk(target, scope))?;
        call.args.iter().try_for_each(|arg| self.walk(arg, scope))
    }

    /// Whether a call can never succeed, found by calling it with nulls: an operation that exists complains
    /// of its arguments instead.
    fn undeclared(&self, call: &CallExpr) -> bool {
        if !call.func_name.chars().all(|c| c.is_alphanumeric() || c == '_') {
            return false;
        }
        let null = || IdedExpr { id: 0, expr: Expr::Literal(LiteralValue::Null) };
        let probe = CallExpr {
            func_name: call.func_name.clone(),
            target: call.target.is_some().then(|| Box::new(null())),
            args: call.args.iter().map(|_| null()).collect(),
        };
        let probe = IdedExpr { id: 0, expr: Expr::Call(probe) };
        let context = Context::with_env(Arc::clone(self.env));
        matches!(Value::resolve_val(&probe, &context), Err(ExecutionError::UndeclaredReference(_)))
    }

    fn column(&mut self, of: Of, name: &str) {
        let add = |list: &mut Vec<Arc<str>>| {
            if !list.iter().any(|known| &**known == name) {
                list.push(name.into());
            }
        };
        add(&mut self.columns);
        if matches!(of, Of::Old) {
            add(&mut self.of_old);
        }
    }
}

/// Which row an expression names.
#[derive(Clone, Copy)]
enum Of {
    Data,
    Old,
}

fn row(expr: &IdedExpr, scope: &[&str]) -> Option<Of> {
    match &expr.expr {
        Expr::Ident(name) if scope.contains(&name.as_str()) => None,
        Expr::Ident(name) if name == "data" => Some(Of::Data),
        Expr::Ident(name) if name == "old" => Some(Of::Old),
        _ => None,
    }
}
