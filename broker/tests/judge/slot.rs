//! The truth as a second slot tells it: the few messages of pgoutput, read once more by other hands.
//!
//! The broker has a decoder too. This one shares nothing with it but the documentation of the protocol, and gives
//! up at the first thing that it does not know.

use std::collections::HashMap;
use std::convert::Infallible;

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

/// The transactions that one connection told of: messages of protocol version 1, each with a line feed behind it, as
/// `pg_recvlogical` writes them. One that is not committed yet, or cut off, is left out.
pub(crate) fn commits(told: &[u8], name: Name<'_>) -> Vec<Commit> {
    let mut commits = Vec::new();
    // However it ends: there is no more.
    let _ = read(Reader(told), name, &mut commits);
    commits
}

/// Adds what a later connection told, which says again what was not confirmed on an earlier one.
pub(crate) fn join(known: &mut Vec<Commit>, told: Vec<Commit>) {
    let end = known.last().map_or(0, |commit| commit.lsn);
    for commit in told {
        if commit.lsn > end {
            known.push(commit);
        } else {
            assert!(known.contains(&commit), "the log was told differently before: {commit:?}");
        }
    }
}

fn read(mut rest: Reader<'_>, name: Name<'_>, commits: &mut Vec<Commit>) -> Option<Infallible> {
    let mut tables: HashMap<u32, (String, Vec<String>)> = HashMap::new();
    let mut open: Option<Commit> = None;
    let mut ordinal = 0;
    loop {
        let (mut record, mut ended) = (None, None);
        match rest.u8()? {
            b'B' => {
                let (lsn, _, xid) = (rest.u64()?, rest.u64()?, rest.u32()?);
                (open, ordinal) = (Some(Commit { lsn, xid, records: Vec::new() }), 0);
            }
            b'C' => {
                let (_, lsn) = (rest.u8()?, rest.u64()?);
                rest.take::<16>()?;
                let commit = open.take().expect("what ends has begun");
                assert_eq!(commit.lsn, lsn, "transaction {}", commit.xid);
                ended = Some(commit);
            }
            b'Y' => _ = (rest.u32()?, rest.text()?, rest.text()?),
            b'O' => _ = (rest.u64()?, rest.text()?),
            b'R' => {
                let id = rest.u32()?;
                let table = format!("{}.{}", rest.text()?, rest.text()?);
                rest.u8()?;
                let mut columns = Vec::new();
                for _ in 0..rest.u16()? {
                    rest.u8()?;
                    columns.push(rest.text()?.to_owned());
                    rest.u64()?;
                }
                tables.insert(id, (table, columns));
            }
            b'M' => {
                let (flags, _, prefix) = (rest.u8()?, rest.u64()?, rest.text()?);
                let length = rest.u32()? as usize;
                let content = rest.utf8(length)?;
                // What is not transactional stands outside of transactions and is no event.
                if flags & 1 == 1 {
                    record = Some(Raw::Message(prefix, content));
                }
            }
            b'I' => {
                let (table, columns) = &tables[&rest.u32()?];
                assert_eq!((rest.u8()?, rest.u16()? as usize), (b'N', columns.len()), "{table}");
                let mut row = HashMap::new();
                for column in columns {
                    assert_eq!(rest.u8()?, b't', "{table}: a ledger holds no NULL");
                    let length = rest.u32()? as usize;
                    row.insert(column.as_str(), rest.utf8(length)?);
                }
                record = Some(Raw::Insert(table, row));
            }
            other => panic!("the judge does not know {:?}", char::from(other)),
        }
        assert_eq!(rest.u8()?, b'\n', "a message ends where the judge thinks");
        commits.extend(ended);
        let Some(raw) = record else { continue };
        ordinal += 1;
        if let Some((topic, digest)) = name(&raw) {
            let commit = open.as_mut().expect("a record lies in a transaction");
            commit.records.push(Record { ordinal, topic, digest });
        }
    }
}

/// Reads on; `None`: the rest is not there yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn utf8(&mut self, length: usize) -> Option<&'a str> {
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(std::str::from_utf8(text).unwrap())
    }

    /// Up to a zero byte.
    fn text(&mut self) -> Option<&'a str> {
        let length = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.utf8(length)?;
        self.u8()?;
        Some(text)
    }
}
