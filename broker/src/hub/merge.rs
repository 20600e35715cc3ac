//! Columns that Postgres did not send, filled in from what else is known of the row. Never looks into a value.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

/// The object `fresh` with those of its `unchanged` columns that `old` has, in the order of `old`, so that equal
/// rows have equal bytes; and the columns that are still unknown. `None`: nothing to do.
pub(super) fn merge(fresh: &[u8], unchanged: &[Arc<str>], old: &[u8]) -> Option<(Bytes, Box<[Arc<str>]>)> {
    if unchanged.is_empty() {
        return None;
    }
    let (Ok(new), Ok(old)) = (serde_json::from_slice::<Fields<'_>>(fresh), serde_json::from_slice(old))
    else {
        return None;
    };
    let (new, old): (Fields<'_>, Fields<'_>) = (new, old);
    let missing = |name: &str| unchanged.iter().any(|unchanged| **unchanged == *name);
    let mut out = Vec::with_capacity(fresh.len() + 64);
    let mut write = |name: &str, value: &RawValue| {
        out.push(if out.is_empty() { b'{' } else { b',' });
        // Writing to a Vec does not fail.
        let _ = serde_json::to_writer(&mut out, name);
        out.push(b':');
        out.extend_from_slice(value.get().as_bytes());
    };
    for (name, value) in &old.0 {
        match new.0.iter().find(|(other, _)| other == name) {
            Some((_, value)) => write(name, value),
            None if missing(name) => write(name, value),
            None => {}
        }
    }
    for (name, value) in &new.0 {
        if !old.0.iter().any(|(other, _)| other == name) {
            write(name, value);
        }
    }
    if out.is_empty() {
        return None;
    }
    out.push(b'}');
    let unchanged = unchanged.iter().filter(|name| !old.0.iter().any(|(other, _)| **other == ***name));
    Some((Bytes::from(out), unchanged.cloned().collect()))
}

/// The fields of a JSON object in their order, values untouched.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> serde::Deserialize<'de> for Fields<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
