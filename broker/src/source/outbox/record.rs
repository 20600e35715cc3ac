//! What triggers write of a changed row: its columns' names and types, and the row as Postgres writes a record.
//!
//! Values are in the text form of their types' output functions, as in the write-ahead log, so whatever comes behind
//! need not know which of the two was read.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::event::{Cell, ChangeKind, Column, OldRow, Relation, Row};
use crate::source::types::{TypeMap, TypeRow};
use crate::value::ValueKind;

/// Shapes of tables that are remembered; each change of a table makes another one.
const SHAPES_MAX: usize = 1_000;

/// `data` of a row of the outbox that tells of a table's row.
#[derive(Debug, Deserialize)]
struct Told<'a> {
    #[serde(borrow)]
    columns: Option<&'a RawValue>,
    #[serde(default)]
    new: Option<String>,
    #[serde(default)]
    old: Option<String>,
    #[serde(default)]
    full: bool,
    #[serde(default)]
    omitted: Omitted,
}

/// The fields that were too large and have NULL in their place, by their numbers.
#[derive(Debug, Default, Deserialize)]
struct Omitted {
    #[serde(default)]
    new: Vec<usize>,
    #[serde(default)]
    old: Vec<usize>,
}

/// Name, type, and whether it belongs to the replica identity; `None`: not published.
type Field = Option<(String, u32, bool)>;

/// What the fields of a record are.
#[derive(Debug)]
struct Shape {
    /// Which of them are columns.
    published: Box<[bool]>,
    relation: Arc<Relation>,
}

/// Makes changes of what triggers wrote.
#[derive(Debug, Default)]
pub(super) struct Records {
    types: TypeMap,
    /// By table, and by its columns as they are written.
    shapes: HashMap<(String, String), Shape>,
}

/// Why a row says nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    /// Not for long: the catalog is to be asked, and then again.
    #[error("the types {0:?} are not known yet")]
    Types(Vec<u32>),
    #[error("its data is not what our triggers write: {0}")]
    Data(String),
    #[error("its operation {0:?} is unknown to this version")]
    Operation(String),
    #[error("a record has {found} fields, its columns are {expected}")]
    Width { found: usize, expected: usize },
    #[error("a record is not closed")]
    Open,
}

impl Records {
    /// The catalog's answer about [`RecordError::Types`].
    pub(super) fn learn(&mut self, asked: &[u32], answer: &[TypeRow]) {
        self.types.learn(asked, answer);
    }

    /// The change that a trigger wrote down.
    pub(super) fn change(
        &mut self,
        table: &str,
        operation: &str,
        data: &str,
    ) -> Result<ChangeKind, RecordError> {
        let wrong = |error: serde_json::Error| RecordError::Data(error.to_string());
        let told: Told<'_> = serde_json::from_str(data).map_err(wrong)?;
        let shape = self.shape(table, told.columns.map_or("[]", RawValue::get))?;
        let relation = Arc::clone(&shape.relation);
        let row = |text: Option<String>, omitted: &[usize]| {
            text.map(|text| read(&text, &shape.published, omitted)).transpose()
        };
        let missing = || RecordError::Data(format!("no row of {operation}"));
        let (new, old) = (row(told.new, &told.omitted.new)?, row(told.old, &told.omitted.old)?);
        let old = old.map(|old| if told.full { OldRow::Full(old) } else { OldRow::Key(old) });
        Ok(match operation {
            "insert" => ChangeKind::Insert { relation, new: new.ok_or_else(missing)? },
            "update" => ChangeKind::Update { relation, old, new: new.ok_or_else(missing)? },
            "delete" => ChangeKind::Delete { relation, old: old.ok_or_else(missing)? },
            "truncate" => ChangeKind::Truncate { relation },
            other => return Err(RecordError::Operation(other.to_owned())),
        })
    }

    fn shape(&mut self, table: &str, columns: &str) -> Result<&Shape, RecordError> {
        let key = (table.to_owned(), columns.to_owned());
        if self.shapes.len() >= SHAPES_MAX && !self.shapes.contains_key(&key) {
            self.shapes.clear();
        }
        match self.shapes.entry(key) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => {
                let fields: Vec<Field> =
                    serde_json::from_str(columns).map_err(|error| RecordError::Data(error.to_string()))?;
                let oids = fields.iter().flatten().map(|(_, oid, _)| *oid);
                let unknown: Vec<_> = oids.filter(|oid| self.types.kind(*oid).is_none()).collect();
                if !unknown.is_empty() {
                    return Err(RecordError::Types(unknown));
                }
                let published = fields.iter().map(Option::is_some).collect();
                let types = &self.types;
                let columns = fields.into_iter().flatten().map(|(name, oid, key)| Column {
                    name: name.into(),
                    kind: types.kind(oid).unwrap_or(ValueKind::Text),
                    key,
                });
                let relation = Arc::new(Relation { name: table.into(), columns: columns.collect() });
                Ok(place.insert(Shape { published, relation }))
            }
        }
    }
}

/// The published fields of a record as `record_out` writes it: in parentheses, split by commas; nothing at all is NULL;
/// in quotes, two quotes or two backslashes are one.
fn read(text: &str, published: &[bool], omitted: &[usize]) -> Result<Row, RecordError> {
    let mut rest = text.strip_prefix('(').ok_or(RecordError::Open)?.as_bytes();
    // Never longer than its written form, so this is the only allocation.
    let mut buffer = BytesMut::with_capacity(rest.len());
    let mut cells = Vec::with_capacity(published.len());
    let mut found = 0;
    loop {
        let mut null = true;
        let mut quoted = false;
        let end = loop {
            let (&byte, behind) = rest.split_first().ok_or(RecordError::Open)?;
            rest = behind;
            match byte {
                b',' | b')' if !quoted => break byte,
                b'"' if quoted && rest.first() == Some(&b'"') => {
                    buffer.extend_from_slice(b"\"");
                    rest = &rest[1..];
                }
                b'"' => quoted = !quoted,
                b'\\' => {
                    let (&escaped, behind) = rest.split_first().ok_or(RecordError::Open)?;
                    buffer.extend_from_slice(&[escaped]);
                    rest = behind;
                }
                _ => buffer.extend_from_slice(&[byte]),
            }
            null = false;
        };
        let value: Bytes = buffer.split().freeze();
        if published.get(found).copied().unwrap_or_default() {
            cells.push(match null {
                true if omitted.contains(&found) => Cell::Omitted,
                true => Cell::Null,
                false => Cell::Text(value),
            });
        }
        found += 1;
        if end == b')' {
            break;
        }
    }
    // A record without fields looks like one with a NULL.
    if found != published.len() && !(published.is_empty() && text == "()") {
        return Err(RecordError::Width { found, expected: published.len() });
    }
    Ok(cells.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cells(row: &Row) -> Vec<Option<&str>> {
        row.iter()
            .map(|cell| match cell {
                Cell::Text(text) => Some(std::str::from_utf8(text).unwrap()),
                Cell::Null => None,
                Cell::Unchanged | Cell::Omitted => panic!(),
            })
            .collect()
    }

    #[test]
    fn records_are_read_as_postgres_writes_them() {
        let check = |text: &str, expected: &[Option<&str>]| {
            let row = read(text, &vec![true; expected.len()], &[]).unwrap();
            assert_eq!(cells(&row), expected, "{text}");
        };
        check("(1,foo)", &[Some("1"), Some("foo")]);
        check("(,)", &[None, None]);
        check("()", &[None]);
        check(r#"("")"#, &[Some("")]);
        check(r#"("a b","say ""hi""",C:\\x)"#, &[Some("a b"), Some("say \"hi\""), Some("C:\\x")]);
        check(r#"("back\\slash","(1,2)")"#, &[Some("back\\slash"), Some("(1,2)")]);
        check("(ä,\"line\nbreak\")", &[Some("ä"), Some("line\nbreak")]);
        assert_eq!(read("()", &[], &[]).unwrap().len(), 0);
        assert_eq!(cells(&read("(1,2,3)", &[true, false, true], &[]).unwrap()), [Some("1"), Some("3")]);
    }

    #[test]
    fn what_is_no_record_is_an_error() {
        let check = |text: &str, expected: RecordError| {
            assert_eq!(read(text, &[true, true], &[]).unwrap_err(), expected, "{text}");
        };
        check("", RecordError::Open);
        check("(1,2", RecordError::Open);
        check("(1,\"2)", RecordError::Open);
        check("(1,\\", RecordError::Open);
        check("(1)", RecordError::Width { found: 1, expected: 2 });
        check("(1,2,3)", RecordError::Width { found: 3, expected: 2 });
    }

    #[test]
    fn changes_are_those_of_the_log() {
        let mut records = Records::default();
        let columns = r#"[["id",23,true],null,["mood",16400,false]]"#;
        let data = |rest: &str| format!(r#"{{"columns":{columns},{rest}}}"#);
        let insert = data(r#""new":"(1,x,ok)""#);
        let asked = records.change("public.vms", "insert", &insert).unwrap_err();
        assert_eq!(asked, RecordError::Types(vec![16400]));
        records.learn(&[16400], &[TypeRow { oid: 16400, inner: Some(16), delimiter: None }]);
        let ChangeKind::Insert { relation, new } = records.change("public.vms", "insert", &insert).unwrap()
        else {
            panic!()
        };
        assert_eq!(&*relation.name, "public.vms");
        let described: Vec<_> = relation.columns.iter().map(|c| (&*c.name, c.kind.clone(), c.key)).collect();
        assert_eq!(described, [("id", ValueKind::Integer, true), ("mood", ValueKind::Bool, false)]);
        assert_eq!(cells(&new), [Some("1"), Some("ok")]);

        let update = data(r#""new":"(2,x,)","old":"(1,,)""#);
        let change = records.change("public.vms", "update", &update).unwrap();
        let ChangeKind::Update { relation: same, old: Some(OldRow::Key(old)), new } = change else {
            panic!()
        };
        assert!(Arc::ptr_eq(&relation, &same), "so that bindings are found again");
        assert_eq!((cells(&old), cells(&new)), (vec![Some("1"), None], vec![Some("2"), None]));

        let delete = data(r#""old":"(1,x,ok)","full":true"#);
        let change = records.change("public.vms", "delete", &delete).unwrap();
        assert!(matches!(change, ChangeKind::Delete { old: OldRow::Full(_), .. }));
        let change = records.change("public.vms", "truncate", "{}").unwrap();
        assert!(matches!(change, ChangeKind::Truncate { .. }));

        assert!(matches!(
            records.change("t", "insert", &data(r#""old":"(1,,)""#)),
            Err(RecordError::Data(_))
        ));
        assert!(matches!(records.change("t", "merge", "{}"), Err(RecordError::Operation(_))));
        assert!(matches!(records.change("t", "insert", "[1]"), Err(RecordError::Data(_))));
    }

    #[test]
    fn what_is_omitted_is_not_null() {
        let mut records = Records::default();
        let columns = r#""columns":[["id",23,true],null,["x",25,false],["y",25,false]]"#;
        let mut check = |data: &str, expected_new: [Cell; 3], expected_old: OldRow| {
            let change = records.change("t", "update", &format!("{{{columns},{data}}}")).unwrap();
            let ChangeKind::Update { old, new, .. } = change else { panic!() };
            assert_eq!(*new, expected_new, "{data}");
            assert_eq!(old, Some(expected_old), "{data}");
        };
        let text = |text: &'static str| Cell::Text(Bytes::from_static(text.as_bytes()));
        // Numbers count fields that are not published, too.
        check(
            r#""new":"(1,,,)","old":"(1,,,)","omitted":{"new":[1,2]}"#,
            [text("1"), Cell::Omitted, Cell::Null],
            OldRow::Key(Box::new([text("1"), Cell::Null, Cell::Null])),
        );
        check(
            r#""new":"(1,,,\"\")","old":"(,,,)","full":true,"omitted":{"new":[2],"old":[0,3]}"#,
            [text("1"), Cell::Omitted, text("")],
            OldRow::Full(Box::new([Cell::Omitted, Cell::Null, Cell::Omitted])),
        );
    }

    proptest! {
        #[test]
        fn any_values_come_back(values in prop::collection::vec(prop::option::of(any::<String>()), 1..6)) {
            // As record_out quotes; it quotes less, which the tests above cover.
            let written: Vec<_> = values.iter().map(|value| match value {
                None => String::new(),
                Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\"")),
            }).collect();
            let row = read(&format!("({})", written.join(",")), &vec![true; values.len()], &[]).unwrap();
            let expected: Vec<_> = values.iter().map(Option::as_deref).collect();
            prop_assert_eq!(cells(&row), expected);
        }

        #[test]
        fn nothing_panics(text in "\\PC*", width in 0_usize..4) {
            let _ = read(&text, &vec![true; width], &[width / 2, 9]);
            let _ = Records::default().change("t", "insert", &text);
        }
    }
}
