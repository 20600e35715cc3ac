//! The truth as a second slot tells it: the few messages of pgoutput, read once more by other hands.
//!
//! The broker has a decoder too. This one shares nothing with it but the documentation of the protocol, and gives
//! up at the first thing that it does not know.

use std::collections::HashMap;

use walcast_client::wire::Topic;

use super::{Commit, Record};

/// A record as the log has it.
#[derive(Debug)]
pub(crate) enum Raw<'a> {
    /// A new row: table, and its columns by name.
    Insert(&'a str, HashMap<&'a str, &'a str>),
    /// A message: prefix and content.
    Message(&'a str, &'a str),
}

/// Names the event that a record is; `None`: it is none.
pub(crate) type Name<'a> = &'a dyn Fn(&Raw<'_>) -> Option<(Topic, u64)>;

/// Transactions of `pg_logical_slot_peek_binary_changes` with protocol version 1.
pub(crate) fn commits<'a>(lines: impl IntoIterator<Item = &'a [u8]>, name: Name<'_>) -> Vec<Commit> {
    let mut commits: Vec<Commit> = Vec::new();
    let mut tables: HashMap<u32, (String, Vec<String>)> = HashMap::new();
    let mut ordinal = 0;
    for line in lines {
        let mut rest = Reader(line);
        let raw = match rest.u8() {
            b'B' => {
                let (lsn, _, xid) = (rest.u64(), rest.u64(), rest.u32());
                commits.push(Commit { lsn, xid, records: Vec::new() });
                ordinal = 0;
                continue;
            }
            b'C' | b'Y' | b'O' => continue,
            b'R' => {
                let id = rest.u32();
                let (schema, table) = (rest.text(), rest.text());
                rest.u8();
                let columns = (0..rest.u16()).map(|_| {
                    rest.u8();
                    let column = rest.text().to_owned();
                    rest.u64();
                    column
                });
                let columns = columns.collect();
                tables.insert(id, (format!("{schema}.{table}"), columns));
                continue;
            }
            b'M' => {
                // What is not transactional stands outside of transactions and is no event.
                let (flags, _) = (rest.u8(), rest.u64());
                if flags & 1 == 0 {
                    continue;
                }
                let prefix = rest.text();
                let length = rest.u32() as usize;
                Raw::Message(prefix, rest.utf8(length))
            }
            b'I' => {
                let (table, columns) = &tables[&rest.u32()];
                assert_eq!((rest.u8(), rest.u16() as usize), (b'N', columns.len()), "{table}");
                let row = columns.iter().map(|column| {
                    assert_eq!(rest.u8(), b't', "{table}: a ledger holds no NULL");
                    let length = rest.u32() as usize;
                    (column.as_str(), rest.utf8(length))
                });
                let row = row.collect();
                Raw::Insert(table, row)
            }
            other => panic!("the judge does not know {:?}", char::from(other)),
        };
        ordinal += 1;
        if let Some((topic, digest)) = name(&raw) {
            let commit = commits.last_mut().expect("a record lies in a transaction");
            commit.records.push(Record { ordinal, topic, digest });
        }
    }
    commits
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().expect("a whole message");
        self.0 = rest;
        *head
    }

    fn u8(&mut self) -> u8 {
        u8::from_be_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }

    fn utf8(&mut self, length: usize) -> &'a str {
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        std::str::from_utf8(text).unwrap()
    }

    /// Up to a zero byte.
    fn text(&mut self) -> &'a str {
        let length = self.0.iter().position(|byte| *byte == 0).expect("a text ends");
        let text = self.utf8(length);
        self.0 = &self.0[1..];
        text
    }
}
