//! CEL expressions: compiled once, and refused where they name what nothing stands behind.
//!
//! What a name stands for is its user's business ([`Names`] at the start, a resolver at each evaluation). Evaluation
//! reaches no clock, no environment and nothing else that it was not given.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use cel::common::ast::{CallExpr, EntryExpr, Expr, LiteralValue, operators};
use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt,
};
use cel::common::value::Val;
use cel::context::VariableResolver;
use cel::{Context, Env, ExecutionError, IdedExpr, Program, Value};

/// Names that stand for types.
const TYPES: [&str; 10] =
    ["bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"];

/// Cause and remedy.
pub type Fault = (String, String);

/// What the names of an expression stand for.
pub trait Names {
    /// `name.field`, or `name["field"]`. If it is no business of its own, the name alone is asked for.
    fn field(&mut self, name: &str, field: &str) -> bool;

    /// A name by itself.
    ///
    /// # Errors
    /// It stands for nothing.
    fn alone(&self, name: &str) -> Result<(), Fault>;
}

/// A compiled expression.
pub struct Expression {
    program: Program,
    env: Arc<Env>,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expression").finish_non_exhaustive()
    }
}

impl Expression {
    /// Compiles; `example` is what a remedy shows.
    ///
    /// # Errors
    /// It is no CEL, or a name or a function in it stands for nothing.
    pub fn compile(text: &str, example: &str, names: &mut impl Names) -> Result<Self, Fault> {
        // Optional values would turn "not sent" into "not there".
        let env = Arc::new(Env::stdlib().with_optional_support(false));
        let program = env.compile(text).map_err(|errors| {
            let cause = errors.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            // A dozen tokens of the grammar help nobody.
            let cause = cause.split(" expecting {").next().unwrap_or_default();
            (format!("no CEL expression: {cause}"), format!("write for example {example}"))
        })?;
        Walk { env: &env, names }.walk(program.expression(), &mut Vec::new())?;
        Ok(Self { program, env })
    }

    /// Evaluates, and hands the outcome to `use_it`: a value may borrow from what `names` resolves to.
    pub fn evaluate<T>(
        &self,
        names: &dyn VariableResolver,
        use_it: impl FnOnce(Result<&dyn Val, &ExecutionError>) -> T,
    ) -> T {
        let mut context = Context::with_env(Arc::clone(&self.env));
        context.set_variable_resolver(names);
        match Value::resolve_val(self.program.expression(), &context) {
            Ok(value) => use_it(Ok(value.as_ref())),
            Err(error) => use_it(Err(&error)),
        }
    }

    /// The field, if the expression is nothing but that field of `name`.
    #[must_use]
    pub fn field_of(&self, name: &str) -> Option<&str> {
        let expr = self.program.expression();
        // `has(…)` is a question about a field.
        let asks = matches!(&expr.expr, Expr::Select(select) if select.test);
        field(expr).filter(|(of, _)| !asks && *of == name).map(|(_, field)| field)
    }
}

/// The error without the values in it: they may be what no log may hold.
#[must_use]
pub fn describe(error: &ExecutionError) -> String {
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

/// JSON as CEL takes it.
#[must_use]
pub fn from_json<'v>(value: serde_json::Value) -> Box<dyn Val + 'v> {
    match value {
        serde_json::Value::Null => Box::new(CelNull),
        serde_json::Value::Bool(value) => Box::new(CelBool::from(value)),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Box::new(CelInt::from(number)),
            (None, Some(number)) => Box::new(CelUInt::from(number)),
            (None, None) => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        serde_json::Value::String(text) => Box::new(CelString::from(text)),
        serde_json::Value::Array(items) => {
            Box::new(CelList::from(items.into_iter().map(from_json).collect::<Vec<_>>()))
        }
        serde_json::Value::Object(members) => {
            let members = members.into_iter().map(|(name, value)| (CelMapKey::from(name), from_json(value)));
            Box::new(CelMap::from(members.collect::<HashMap<_, _>>()))
        }
    }
}

/// A value as JSON; `None` where JSON has nothing like it.
#[must_use]
pub fn to_json(value: &dyn Val) -> Option<serde_json::Value> {
    match Value::try_from(value).ok()? {
        Value::Float(number) if !number.is_finite() => None,
        value => value.json().ok(),
    }
}

/// Goes through an expression, and refuses names that nothing stands behind.
struct Walk<'e, N> {
    env: &'e Arc<Env>,
    names: &'e mut N,
}

impl<N: Names> Walk<'_, N> {
    fn walk<'x>(&mut self, expr: &'x IdedExpr, scope: &mut Vec<&'x str>) -> Result<(), Fault> {
        if let Some((name, field)) = field(expr).filter(|(name, _)| !scope.contains(name))
            && self.names.field(name, field)
        {
            return Ok(());
        }
        match &expr.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) if scope.contains(&name.as_str()) || TYPES.contains(&name.as_str()) => Ok(()),
            Expr::Ident(name) => self.names.alone(name),
            Expr::Select(select) => self.walk(&select.operand, scope),
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
                Err(("there are no structures".into(), "compare single fields".into()))
            }
        }
    }

    fn call<'x>(&mut self, call: &'x CallExpr, scope: &mut Vec<&'x str>) -> Result<(), Fault> {
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
}

/// `name.field`, or `name["field"]`; also inside `has(…)`.
fn field(expr: &IdedExpr) -> Option<(&str, &str)> {
    match &expr.expr {
        Expr::Select(select) => Some((ident(&select.operand)?, &select.field)),
        Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::INDEX, [operand, index]) => match &index.expr {
                Expr::Literal(LiteralValue::String(name)) => Some((ident(operand)?, name.inner())),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

fn ident(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Ident(name) => Some(name),
        _ => None,
    }
}
