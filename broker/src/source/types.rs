//! How values of user-defined types become JSON: domains as their base type, arrays by their element,
//! everything else (enums, ranges, composites, extensions' types) as text.
//!
//! The stream names types by oid alone, so what does not come with Postgres is looked up in the catalog of
//! today. A type that was dropped since is text. Kinds are kept per connection.

use std::collections::HashMap;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row};

use crate::value::ValueKind;

/// One row per type that can be reached from `$1` (an `oid[]`): what it is made of.
pub const QUERY: &str = "
WITH RECURSIVE reached(oid, inner_oid, delimiter) AS (
    SELECT t.oid, CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE e.oid END,
           CASE t.typtype WHEN 'd' THEN NULL ELSE e.typdelim::text END
    FROM pg_catalog.pg_type t LEFT JOIN pg_catalog.pg_type e ON e.typarray = t.oid
    WHERE t.oid = ANY ($1::pg_catalog.oid[])
  UNION
    SELECT t.oid, CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE e.oid END,
           CASE t.typtype WHEN 'd' THEN NULL ELSE e.typdelim::text END
    FROM reached r JOIN pg_catalog.pg_type t ON t.oid = r.inner_oid
         LEFT JOIN pg_catalog.pg_type e ON e.typarray = t.oid
)
SELECT oid, inner_oid, delimiter FROM reached";

/// A row of [`QUERY`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeRow {
    /// The type.
    pub oid: u32,
    /// A domain's base, an array's element.
    pub inner: Option<u32>,
    /// What separates an array's elements; `None` for a domain.
    pub delimiter: Option<char>,
}

impl TypeRow {
    /// Reads a row of [`QUERY`].
    ///
    /// # Errors
    /// The row is not of that query.
    pub fn from_row(row: &Row) -> Result<Self, Error> {
        let delimiter = row.try_get::<_, Option<&str>>(2)?.and_then(|text| text.chars().next());
        Ok(Self { oid: row.try_get(0)?, inner: row.try_get(1)?, delimiter })
    }
}

/// Asks the catalog about these types.
///
/// # Errors
/// The session's, untouched.
pub async fn look_up(client: &Client, oids: &[u32]) -> Result<Vec<TypeRow>, Error> {
    client.query_typed(QUERY, &[(&oids, Type::OID_ARRAY)]).await?.iter().map(TypeRow::from_row).collect()
}

/// More domains over arrays of domains than anybody has.
const DEPTH_MAX: usize = 16;

/// The kinds of all types that one connection has met.
#[derive(Clone, Debug, Default)]
pub struct TypeMap {
    kinds: HashMap<u32, ValueKind>,
}

impl TypeMap {
    /// The kind of a type; `None` if the catalog has to be asked.
    #[must_use]
    pub fn kind(&self, oid: u32) -> Option<ValueKind> {
        ValueKind::of_builtin(oid).or_else(|| self.kinds.get(&oid).cloned())
    }

    /// Takes the catalog's answer about the types `asked`. Those it does not know any more are text.
    pub fn learn(&mut self, asked: &[u32], answer: &[TypeRow]) {
        let rows: HashMap<u32, &TypeRow> = answer.iter().map(|row| (row.oid, row)).collect();
        for oid in asked {
            let kind = self.resolve(*oid, &rows, DEPTH_MAX);
            self.kinds.insert(*oid, kind);
        }
    }

    fn resolve(&self, oid: u32, rows: &HashMap<u32, &TypeRow>, depth: usize) -> ValueKind {
        if let Some(builtin) = ValueKind::of_builtin(oid) {
            return builtin;
        }
        let Some(TypeRow { inner: Some(inner), delimiter, .. }) = rows.get(&oid).filter(|_| depth > 0) else {
            return ValueKind::Text;
        };
        let inner = self.resolve(*inner, rows, depth - 1);
        match delimiter {
            Some(delimiter) => ValueKind::Array(Box::new(inner), *delimiter),
            None => inner,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_resolved_to_their_base() {
        let row = |oid, inner, delimiter| TypeRow { oid, inner, delimiter };
        let answer = [
            row(20_001, Some(20_002), None),      // domain over a domain
            row(20_002, Some(23), None),          // domain over int4
            row(20_003, Some(20_001), Some(',')), // array of the first
            row(20_004, None, None),              // enum
            row(20_005, Some(20_004), Some(',')), // array of it
            row(20_006, Some(1007), None),        // domain over int4[]
            row(20_007, Some(20_006), Some(',')), // array of that
            row(20_008, Some(20_008), None),      // nonsense
        ];
        let mut types = TypeMap::default();
        assert_eq!(types.kind(20_001), None);
        let asked = [20_001, 20_003, 20_004, 20_005, 20_007, 20_008, 20_099];
        types.learn(&asked, &answer);
        let check = |oid, expected| assert_eq!(types.kind(oid), Some(expected), "{oid}");
        let array = |of| ValueKind::Array(Box::new(of), ',');
        check(23, ValueKind::Integer);
        check(20_001, ValueKind::Integer);
        check(20_003, array(ValueKind::Integer));
        check(20_004, ValueKind::Text);
        check(20_005, array(ValueKind::Text));
        check(20_007, array(array(ValueKind::Integer)));
        check(20_008, ValueKind::Text);
        check(20_099, ValueKind::Text);
    }
}
