//! The decoder: a transaction of one change, from the bytes that Postgres sends to a part of a transaction.

use std::hint::black_box;

use bytes::Bytes;
use walcast::event::{Cell, TransactionPart};
use walcast::source::wal::assemble::{Assembler, Output};
use walcast::source::wal::encode;

use super::Operation;

const KEY: &str = "secret";
const TABLE: u32 = 16_384;
const COLUMNS: [(&str, bool, u32); 6] = [
    ("id", true, 20),
    ("hostname", false, 25),
    ("crdcommand", false, 25),
    ("pin", false, 25),
    ("online", false, 16),
    ("changed_at", false, 1184),
];
const ROW: [&str; 6] =
    ["4711", "host-004711", "start --code=4/0AX", "123456", "t", "2026-01-02 03:04:05.678+00"];

/// Makes the message of a change.
pub(super) type Encode = fn() -> Bytes;

/// A new row.
pub(super) const INSERT: Encode = || encode::insert(TABLE, &row());

/// A changed row whose old one is known whole.
pub(super) const UPDATE: Encode = || {
    let mut old = row();
    old[3] = Cell::Null;
    encode::update(TABLE, Some((b'O', &old)), &row())
};

/// What `walcast.publish` writes.
pub(super) const MESSAGE: Encode = || {
    encode::emitted(true, &format!("walcast:{KEY}"), b"vm/host-004711\n{\"job\":4711,\"state\":\"assigned\"}")
};

/// Reads the transaction again and again.
pub(super) fn read(change: Encode) -> Operation {
    let mut stream = Stream::of(change);
    Box::new(move || {
        black_box(stream.read());
    })
}

/// A transaction as bytes, and what reads it. The table was described before.
pub(super) struct Stream {
    assembler: Assembler,
    begin: Bytes,
    change: Bytes,
    commit: Bytes,
}

impl Stream {
    pub(super) fn of(change: Encode) -> Self {
        let mut assembler = Assembler::new(KEY);
        assembler.push(encode::relation(TABLE, "public", "vms", &COLUMNS)).expect("a table");
        assert!(assembler.unknown_types().is_empty(), "the catalog would be asked");
        let (begin, commit) = (encode::begin(0x10, 7), encode::commit(0x10, 0x40));
        Self { assembler, begin, change: change(), commit }
    }

    pub(super) fn read(&mut self) -> TransactionPart {
        self.push(self.begin.clone());
        self.push(self.change.clone());
        match self.push(self.commit.clone()) {
            Some(Output::Part(part)) if part.changes.len() == 1 => part,
            other => panic!("not a transaction of one change: {other:?}"),
        }
    }

    fn push(&mut self, body: Bytes) -> Option<Output> {
        self.assembler.push(black_box(body)).expect("a message in its place")
    }
}

fn row() -> [Cell; 6] {
    ROW.map(|text| Cell::Text(Bytes::from_static(text.as_bytes())))
}
