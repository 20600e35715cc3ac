//! A database of a test's own, what its slot holds, and what seeding reads of it.
//!
//! Messages are fetched from the slot by SQL, which needs no replication connection and gives the same bytes.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_postgres::Client;
use walcast::event::{
    Cell, Change, ChangeKind, Changes, Commit, OldRow, Relation, Row, SeedRows, Snapshot, TransactionPart,
};
use walcast::postgres::RENDERING;
use walcast::source::types;
use walcast::source::wal::assemble::{Assembler, Output};
use walcast::source::wal::seed::{self, SeedError, SeedTable};
use walcast::value::write_json;

use super::server;

/// A database with a publication and a slot.
pub(crate) struct Db {
    pub(crate) name: String,
    pub(crate) sql: Client,
    /// Has the settings of a replication session.
    stream: Client,
}

impl Db {
    /// Runs `ddl`, which creates a publication `p` among the rest, and then makes the slot.
    pub(crate) async fn new(name: &str, ddl: &str) -> Self {
        let name = name.to_owned();
        server::create(&name).await;
        let sql = server::connect(&name, "postgres").await;
        let stream = server::connect(&name, "postgres").await;
        for (setting, value) in RENDERING {
            stream.batch_execute(&format!("SET {setting} = '{value}'")).await.unwrap();
        }
        let db = Self { name, sql, stream };
        db.run(ddl).await;
        let slot = format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", db.name);
        db.sql.query_one(&slot, &[]).await.unwrap();
        db
    }

    pub(crate) async fn run(&self, sql: &str) {
        if let Err(error) = self.sql.batch_execute(sql).await {
            panic!("{sql}: {error:?}");
        }
    }

    pub(crate) async fn bodies(&self, function: &str) -> Vec<Bytes> {
        let sql = format!(
            "SELECT data FROM {function}('{}', NULL, NULL, 'proto_version', '1', 'publication_names', 'p',
                                         'messages', 'true')",
            self.name
        );
        let rows = self.stream.query(&sql, &[]).await.unwrap();
        rows.iter().map(|row| Bytes::from(row.get::<_, Vec<u8>>(0))).collect()
    }

    pub(crate) async fn assemble(&self, bodies: Vec<Bytes>) -> Vec<TransactionPart> {
        let mut assembler = Assembler::new("secret");
        let mut parts = Vec::new();
        let mut announced: Option<Arc<Commit>> = None;
        for body in bodies {
            if !assembler.unknown_types().is_empty() {
                let answer = types::look_up(&self.sql, assembler.unknown_types()).await.unwrap();
                assembler.learn(&answer);
            }
            match assembler.push(body).unwrap() {
                Some(Output::Begin(commit)) => announced = Some(commit),
                Some(Output::Part(part)) => {
                    assert_eq!(Some(&part.commit), announced.as_ref());
                    parts.push(part);
                }
                None => {}
            }
        }
        assert!(!assembler.in_transaction());
        parts
    }

    /// All that was committed since the last call, oldest first.
    pub(crate) async fn parts(&self) -> Vec<TransactionPart> {
        let bodies = self.bodies("pg_logical_slot_get_binary_changes").await;
        self.assemble(bodies).await
    }

    /// Their changes as lines: the ordinal, which starts at 1 in each transaction, and what happened.
    pub(crate) async fn lines(&self) -> Vec<String> {
        self.parts().await.iter().flat_map(|part| &part.changes).map(line).collect()
    }

    pub(crate) async fn seed(&self, tables: &[&str]) -> Result<Seeded, SeedError> {
        let tables: Vec<_> =
            tables.iter().map(|name| SeedTable { name: (*name).into(), columns: None }).collect();
        let mut client = server::connect(&self.name, "postgres").await;
        seed_tables(&mut client, &tables).await
    }
}

#[derive(Debug, Default)]
pub(crate) struct Seeded {
    pub(crate) pieces: Vec<SeedRows>,
    pub(crate) settle: u64,
}

impl Seeded {
    pub(crate) fn lines(&self) -> Vec<String> {
        let rows = self.pieces.iter().flat_map(|piece| piece.rows.iter().map(|row| (&piece.relation, row)));
        rows.map(|(relation, row)| format!("{} {}", relation.name, json(relation, row))).collect()
    }

    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.pieces[0].snapshot
    }
}

pub(crate) async fn seed_tables(client: &mut Client, tables: &[SeedTable]) -> Result<Seeded, SeedError> {
    let (sender, mut receiver) = mpsc::channel(4);
    let config = seed::Config::default();
    let collect = async {
        let mut seeded = Seeded::default();
        let Some(Changes::SeedBegin(names)) = receiver.recv().await else { return seeded };
        assert!(names.iter().eq(tables.iter().map(|table| &table.name)));
        while let Some(changes) = receiver.recv().await {
            match changes {
                Changes::Seed(piece) => seeded.pieces.push(piece),
                Changes::SeedEnd(end) => {
                    assert!(seeded.pieces.iter().all(|piece| Arc::ptr_eq(&piece.snapshot, &end.snapshot)));
                    seeded.settle = end.settle;
                }
                other => panic!("{other:?}"),
            }
        }
        seeded
    };
    let read = async {
        let result = seed::seed(client, tables, &[], &config, &sender).await;
        drop(sender);
        result
    };
    let (seeded, result) = tokio::join!(collect, read);
    result.map(|()| seeded)
}

pub(crate) fn json(relation: &Relation, row: &Row) -> String {
    let mut out = vec![b'{'];
    assert_eq!(relation.columns.len(), row.len());
    for (column, cell) in relation.columns.iter().zip(row) {
        if out.len() > 1 {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(format!("{}: ", column.name).as_bytes());
        match cell {
            Cell::Null => out.extend_from_slice(b"null"),
            Cell::Unchanged | Cell::Omitted => out.push(b'-'),
            Cell::Text(text) => write_json(&column.kind, text, &mut out),
        }
    }
    out.push(b'}');
    String::from_utf8(out).unwrap()
}

pub(crate) fn line(change: &Change) -> String {
    let old_text = |relation: &Relation, old: &OldRow| match old {
        OldRow::Key(row) => format!("key {}", json(relation, row)),
        OldRow::Full(row) => format!("full {}", json(relation, row)),
    };
    let text = match &change.kind {
        ChangeKind::Insert { relation, new } => format!("insert {} {}", relation.name, json(relation, new)),
        ChangeKind::Update { relation, old: None, new } => {
            format!("update {} {}", relation.name, json(relation, new))
        }
        ChangeKind::Update { relation, old: Some(old), new } => {
            format!("update {} {} to {}", relation.name, old_text(relation, old), json(relation, new))
        }
        ChangeKind::Delete { relation, old } => {
            format!("delete {} {}", relation.name, old_text(relation, old))
        }
        ChangeKind::Truncate { relation } => format!("truncate {}", relation.name),
        ChangeKind::Message { content } => format!("message {}", String::from_utf8_lossy(content)),
    };
    format!("{} {text}", change.ordinal)
}
