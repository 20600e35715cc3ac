//! Decoder of pgoutput, protocol version 1: one message in, one value out, no input or output.
//!
//! Cells and contents are slices of the message's own bytes, never copies. Bytes that are no message are an
//! error, never a panic: they come over a network.

use std::sync::Arc;

use bytes::{Buf, Bytes};

use crate::event::{Cell, OldRow, Row};

/// Microseconds from 1970-01-01, where our times start, to 2000-01-01, where Postgres's do.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// What one message says.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// A transaction starts. It has committed; its changes follow, then `Commit`.
    Begin {
        /// Where its commit record lies.
        commit_lsn: u64,
        /// When it committed, in microseconds since 1970-01-01 UTC.
        time_us: i64,
        /// The top-level transaction id.
        xid: u32,
    },
    /// The transaction ends.
    Commit {
        /// As in `Begin`.
        commit_lsn: u64,
        /// The LSN just behind the commit record.
        end_lsn: u64,
    },
    /// The transaction came from another server.
    Origin,
    /// Describes a table, before its first change on this connection and whenever it may have changed.
    Relation(Described),
    /// Describes a type.
    Type,
    /// A new row.
    Insert {
        /// The table's oid.
        relation: u32,
        /// The row.
        new: Row,
    },
    /// A changed row.
    Update {
        /// The table's oid.
        relation: u32,
        /// Present if the replica identity changed or is FULL.
        old: Option<OldRow>,
        /// The row after the change.
        new: Row,
    },
    /// A deleted row.
    Delete {
        /// The table's oid.
        relation: u32,
        /// What is known of it.
        old: OldRow,
    },
    /// Emptied tables.
    Truncate {
        /// The tables' oids, in the statement's order.
        relations: Vec<u32>,
    },
    /// From `pg_logical_emit_message`.
    Emitted {
        /// Whether it belongs to the transaction; otherwise it survives ROLLBACK.
        transactional: bool,
        /// Says whose it is.
        prefix: Bytes,
        /// What it carries.
        content: Bytes,
    },
}

/// A table as the stream describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its oid, by which changes name it.
    pub oid: u32,
    /// Schema and name, joined by a dot.
    pub name: Arc<str>,
    /// In the order in which rows carry them.
    pub columns: Vec<DescribedColumn>,
}

/// A column of a [`Described`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedColumn {
    /// The column's name.
    pub name: Arc<str>,
    /// Whether it belongs to the replica identity.
    pub key: bool,
    /// The oid of its type.
    pub type_oid: u32,
}

/// The stream holds something that pgoutput version 1 does not send, so nothing behind it can be trusted:
/// connect again, and the same transaction is sent anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message is shorter than its fields, or a name has no end.
    #[error("replication stream: message {0:?} is cut short; reconnecting reads it again")]
    Short(char),
    /// The message is longer than its fields.
    #[error("replication stream: message {0:?} is longer than its fields; reconnecting reads it again")]
    Long(char),
    /// A message of protocol 2 or later, or none at all.
    #[error("replication stream: {0:?} starts no message of pgoutput protocol 1; is the plugin pgoutput?")]
    Unknown(char),
    /// A field has a value that it cannot have.
    #[error("replication stream: message {tag:?} has {found:?} as {field}; reconnecting reads it again")]
    Field {
        /// The message.
        tag: char,
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: char,
    },
    /// A message at a place where it cannot stand.
    #[error("replication stream: message {0:?} is out of order; reconnecting reads the transaction again")]
    OutOfOrder(char),
    /// A change of a table that was not described.
    #[error(
        "replication stream: a change of table {0}, which was not described; reconnecting reads it again"
    )]
    UnknownRelation(u32),
    /// A row whose cells are not as many as its table's columns.
    #[error(
        "replication stream: {cells} cells in a row of table {relation}, which has {columns} columns; reconnecting reads it again"
    )]
    RowWidth {
        /// The table's oid.
        relation: u32,
        /// Columns as described.
        columns: usize,
        /// Cells as sent.
        cells: usize,
    },
}

/// Decodes one message.
///
/// # Errors
/// The bytes are no message of pgoutput protocol 1.
pub fn decode(body: Bytes) -> Result<Message, DecodeError> {
    let Some(tag) = body.first().copied() else {
        return Err(DecodeError::Short('\0'));
    };
    let mut reader = Reader { tag: char::from(tag), rest: body };
    reader.rest.advance(1);
    let message = reader.message()?;
    if reader.rest.is_empty() { Ok(message) } else { Err(DecodeError::Long(reader.tag)) }
}

struct Reader {
    tag: char,
    rest: Bytes,
}

impl Reader {
    fn message(&mut self) -> Result<Message, DecodeError> {
        Ok(match self.tag {
            'B' => Message::Begin { commit_lsn: self.u64()?, time_us: self.time()?, xid: self.u32()? },
            'C' => {
                let _flags = self.u8()?;
                let message = Message::Commit { commit_lsn: self.u64()?, end_lsn: self.u64()? };
                let _time = self.u64()?;
                message
            }
            'O' => {
                let _commit_lsn = self.u64()?;
                let _name = self.text()?;
                Message::Origin
            }
            'R' => Message::Relation(self.relation()?),
            'Y' => {
                let _oid = self.u32()?;
                let _schema = self.text()?;
                let _name = self.text()?;
                Message::Type
            }
            'I' => {
                let relation = self.u32()?;
                match self.u8()? {
                    b'N' => Message::Insert { relation, new: self.row()? },
                    found => return Err(self.field("kind of row", found)),
                }
            }
            'U' => {
                let relation = self.u32()?;
                let (old, next) = match self.u8()? {
                    b'K' => (Some(OldRow::Key(self.row()?)), self.u8()?),
                    b'O' => (Some(OldRow::Full(self.row()?)), self.u8()?),
                    next => (None, next),
                };
                match next {
                    b'N' => Message::Update { relation, old, new: self.row()? },
                    found => return Err(self.field("kind of row", found)),
                }
            }
            'D' => {
                let relation = self.u32()?;
                let old = match self.u8()? {
                    b'K' => OldRow::Key(self.row()?),
                    b'O' => OldRow::Full(self.row()?),
                    found => return Err(self.field("kind of row", found)),
                };
                Message::Delete { relation, old }
            }
            'T' => {
                let count = self.u32()?;
                let _options = self.u8()?;
                Message::Truncate { relations: (0..count).map(|_| self.u32()).collect::<Result<_, _>>()? }
            }
            'M' => {
                let flags = self.u8()?;
                let _lsn = self.u64()?;
                let prefix = self.bytes_to_zero()?;
                let length = self.u32()?;
                Message::Emitted { transactional: flags & 1 == 1, prefix, content: self.take(length)? }
            }
            other => return Err(DecodeError::Unknown(other)),
        })
    }

    fn relation(&mut self) -> Result<Described, DecodeError> {
        let oid = self.u32()?;
        let schema = self.text()?;
        let name = self.text()?;
        let _replica_identity = self.u8()?;
        let count = self.u16()?;
        let columns = (0..count)
            .map(|_| {
                let key = self.u8()? & 1 == 1;
                let name = self.text()?.into();
                let type_oid = self.u32()?;
                let _modifier = self.u32()?;
                Ok(DescribedColumn { name, key, type_oid })
            })
            .collect::<Result<_, _>>()?;
        // An empty schema stands for this one.
        let schema = if schema.is_empty() { "pg_catalog" } else { &schema };
        Ok(Described { oid, name: format!("{schema}.{name}").into(), columns })
    }

    fn row(&mut self) -> Result<Row, DecodeError> {
        let count = usize::from(self.u16()?);
        if count > self.rest.len() {
            return Err(self.short());
        }
        let mut cells = Vec::with_capacity(count);
        for _ in 0..count {
            cells.push(match self.u8()? {
                b'n' => Cell::Null,
                b'u' => Cell::Unchanged,
                b't' => {
                    let length = self.u32()?;
                    Cell::Text(self.take(length)?)
                }
                found => return Err(self.field("kind of cell", found)),
            });
        }
        Ok(cells.into())
    }

    /// A count of microseconds since 2000.
    fn time(&mut self) -> Result<i64, DecodeError> {
        Ok(self.u64()?.cast_signed().saturating_add(POSTGRES_EPOCH_US))
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.rest.try_get_u8().map_err(|_| self.short())
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.rest.try_get_u16().map_err(|_| self.short())
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.rest.try_get_u32().map_err(|_| self.short())
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.rest.try_get_u64().map_err(|_| self.short())
    }

    fn take(&mut self, length: u32) -> Result<Bytes, DecodeError> {
        match usize::try_from(length) {
            Ok(length) if length <= self.rest.len() => Ok(self.rest.split_to(length)),
            _ => Err(self.short()),
        }
    }

    /// Up to a zero byte, which is skipped.
    fn bytes_to_zero(&mut self) -> Result<Bytes, DecodeError> {
        let end = self.rest.iter().position(|byte| *byte == 0).ok_or(self.short())?;
        let bytes = self.rest.split_to(end);
        self.rest.advance(1);
        Ok(bytes)
    }

    fn text(&mut self) -> Result<String, DecodeError> {
        Ok(String::from_utf8_lossy(&self.bytes_to_zero()?).into_owned())
    }

    fn short(&self) -> DecodeError {
        DecodeError::Short(self.tag)
    }

    fn field(&self, field: &'static str, found: u8) -> DecodeError {
        DecodeError::Field { tag: self.tag, field, found: char::from(found) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::encode::{self, cell};
    use super::*;

    fn valid() -> Vec<(Bytes, Message)> {
        let row = |cells: &[Cell]| Row::from(cells);
        vec![
            (
                encode::begin(0x10, 5),
                Message::Begin { commit_lsn: 0x10, time_us: POSTGRES_EPOCH_US + 7, xid: 5 },
            ),
            (encode::commit(0x10, 0x40), Message::Commit { commit_lsn: 0x10, end_lsn: 0x40 }),
            (encode::origin(), Message::Origin),
            (encode::type_(), Message::Type),
            (
                encode::relation(7, "public", "vms", &[("id", true, 23), ("größe", false, 25)]),
                Message::Relation(Described {
                    oid: 7,
                    name: "public.vms".into(),
                    columns: vec![
                        DescribedColumn { name: "id".into(), key: true, type_oid: 23 },
                        DescribedColumn { name: "größe".into(), key: false, type_oid: 25 },
                    ],
                }),
            ),
            (
                encode::insert(7, &[cell("1"), Cell::Null]),
                Message::Insert { relation: 7, new: row(&[cell("1"), Cell::Null]) },
            ),
            (
                encode::update(7, None, &[cell(""), Cell::Unchanged]),
                Message::Update { relation: 7, old: None, new: row(&[cell(""), Cell::Unchanged]) },
            ),
            (
                encode::update(7, Some((b'K', &[cell("1"), Cell::Null])), &[cell("2"), Cell::Null]),
                Message::Update {
                    relation: 7,
                    old: Some(OldRow::Key(row(&[cell("1"), Cell::Null]))),
                    new: row(&[cell("2"), Cell::Null]),
                },
            ),
            (
                encode::delete(7, b'O', &[cell("1"), cell("x")]),
                Message::Delete { relation: 7, old: OldRow::Full(row(&[cell("1"), cell("x")])) },
            ),
            (encode::truncate(&[7, 8]), Message::Truncate { relations: vec![7, 8] }),
            (
                encode::emitted(true, "walcast:k", b"a\n{}"),
                Message::Emitted {
                    transactional: true,
                    prefix: Bytes::from_static(b"walcast:k"),
                    content: Bytes::from_static(b"a\n{}"),
                },
            ),
        ]
    }

    #[test]
    fn every_message_is_read() {
        for (body, expected) in valid() {
            assert_eq!(decode(body), Ok(expected));
        }
    }

    #[test]
    fn a_message_cut_or_stretched_anywhere_is_an_error() {
        for (body, message) in valid() {
            for end in 0..body.len() {
                assert!(decode(body.slice(..end)).is_err(), "{message:?} cut at {end}");
            }
            let longer = Bytes::from([&body[..], b"\0"].concat());
            assert_eq!(decode(longer), Err(DecodeError::Long(char::from(body[0]))));
        }
    }

    #[test]
    fn foreign_messages_are_named() {
        let check = |body: &'static [u8], expected| {
            assert_eq!(decode(Bytes::from_static(body)), Err(expected));
        };
        check(b"", DecodeError::Short('\0'));
        check(b"S\0\0\0\x05\x01", DecodeError::Unknown('S'));
        check(b"I\0\0\0\x07X", DecodeError::Field { tag: 'I', field: "kind of row", found: 'X' });
        check(b"I\0\0\0\x07N\0\x01b", DecodeError::Field { tag: 'I', field: "kind of cell", found: 'b' });
    }

    #[test]
    fn cells_are_slices_of_the_message() {
        let body = encode::insert(7, &[cell("value")]);
        let range = body.as_ptr_range();
        let Ok(Message::Insert { new, .. }) = decode(body.clone()) else { panic!("no insert") };
        let [Cell::Text(text)] = &new[..] else { panic!("no text") };
        assert!(range.contains(&text.as_ptr()));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(tag in prop::sample::select(b"BCORYIUDTM".to_vec()), rest: Vec<u8>) {
            let _ = decode(Bytes::from([vec![tag], rest].concat()));
        }

        #[test]
        fn mutated_messages_never_panic(
            which: prop::sample::Index,
            mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let messages = valid();
            let mut body = messages[which.index(messages.len())].0.to_vec();
            for (at, byte) in mutations {
                let at = at.index(body.len());
                body[at] = byte;
            }
            let _ = decode(Bytes::from(body));
        }
    }
}
