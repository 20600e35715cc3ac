//! Postgres text values to JSON, by type. Pure.

use bytes::Bytes;

/// How a column's text form becomes JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// `t` / `f` → `true` / `false`.
    Bool,
    /// A number, or a string beyond ±(2^53 − 1), which JavaScript cannot hold.
    Integer,
    /// A number; `NaN` and the infinities are strings.
    Float,
    /// `json`, `jsonb`: embedded as it is.
    Json,
    /// `timestamp` → `2026-01-31T12:00:00.123456`.
    Timestamp,
    /// `timestamptz`, rendered by a session in UTC → `…Z`.
    TimestampTz,
    /// `bytea` in hex output form → base64.
    Bytea,
    /// An array of the element kind, nested as it is.
    Array(Box<ValueKind>, char),
    /// Everything else: a string.
    Text,
}

/// Appends `text` as JSON, without raw line breaks. A value that does not fit its kind is a string.
pub fn write_json(kind: &ValueKind, text: &[u8], out: &mut Vec<u8>) {
    let _ = (kind, text, out, Bytes::new());
}
