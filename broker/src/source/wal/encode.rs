//! Builds pgoutput messages for tests and benchmarks; the broker itself never writes any.

use bytes::{BufMut, Bytes};

use crate::event::Cell;

pub fn cell(text: &str) -> Cell {
    Cell::Text(Bytes::copy_from_slice(text.as_bytes()))
}

pub fn begin(commit_lsn: u64, xid: u32) -> Bytes {
    message(b'B', |out| {
        out.put_u64(commit_lsn);
        out.put_u64(7);
        out.put_u32(xid);
    })
}

pub fn commit(commit_lsn: u64, end_lsn: u64) -> Bytes {
    message(b'C', |out| {
        out.put_u8(0);
        out.put_u64(commit_lsn);
        out.put_u64(end_lsn);
        out.put_u64(7);
    })
}

pub fn origin() -> Bytes {
    message(b'O', |out| {
        out.put_u64(1);
        text(out, "elsewhere");
    })
}

pub fn type_() -> Bytes {
    message(b'Y', |out| {
        out.put_u32(16_400);
        text(out, "public");
        text(out, "mood");
    })
}

pub fn relation(oid: u32, schema: &str, name: &str, columns: &[(&str, bool, u32)]) -> Bytes {
    message(b'R', |out| {
        out.put_u32(oid);
        text(out, schema);
        text(out, name);
        out.put_u8(b'd');
        out.put_u16(columns.len() as u16);
        for (name, key, type_oid) in columns {
            out.put_u8(u8::from(*key));
            text(out, name);
            out.put_u32(*type_oid);
            out.put_i32(-1);
        }
    })
}

pub fn insert(relation: u32, new: &[Cell]) -> Bytes {
    message(b'I', |out| {
        out.put_u32(relation);
        row(out, b'N', new);
    })
}

pub fn update(relation: u32, old: Option<(u8, &[Cell])>, new: &[Cell]) -> Bytes {
    message(b'U', |out| {
        out.put_u32(relation);
        if let Some((kind, cells)) = old {
            row(out, kind, cells);
        }
        row(out, b'N', new);
    })
}

pub fn delete(relation: u32, kind: u8, old: &[Cell]) -> Bytes {
    message(b'D', |out| {
        out.put_u32(relation);
        row(out, kind, old);
    })
}

pub fn truncate(relations: &[u32]) -> Bytes {
    message(b'T', |out| {
        out.put_u32(relations.len() as u32);
        out.put_u8(0);
        relations.iter().for_each(|oid| out.put_u32(*oid));
    })
}

pub fn emitted(transactional: bool, prefix: &str, content: &[u8]) -> Bytes {
    message(b'M', |out| {
        out.put_u8(u8::from(transactional));
        out.put_u64(9);
        text(out, prefix);
        out.put_u32(content.len() as u32);
        out.put_slice(content);
    })
}

fn message(tag: u8, fields: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = vec![tag];
    fields(&mut out);
    out.into()
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn row(out: &mut Vec<u8>, kind: u8, cells: &[Cell]) {
    out.put_u8(kind);
    out.put_u16(cells.len() as u16);
    for cell in cells {
        match cell {
            Cell::Null => out.put_u8(b'n'),
            // The log knows no such thing; this is the nearest.
            Cell::Unchanged | Cell::Omitted => out.put_u8(b'u'),
            Cell::Text(text) => {
                out.put_u8(b't');
                out.put_u32(text.len() as u32);
                out.put_slice(text);
            }
        }
    }
}
