//! From decoded messages to parts of transactions: keeps the tables that the stream described, numbers
//! records, and tells our messages from others'.
//!
//! # Ordinals
//! A record's number must be the same on every replay and must not depend on what is routed, so it counts
//! all raw records of the transaction: inserts, updates, deletes, truncates (one, however many tables) and
//! transactional messages of whatever prefix. Not counted is what a replay may lack or repeat:
//! - Descriptions of tables and types: sent once per connection and again whenever a cache was dropped.
//! - Non-transactional messages: they are sent when they are read, between transactions, and only if they
//!   lie behind the acknowledged position. They survive ROLLBACK, so they are ignored altogether.
//! - Origins: they name the server that a transaction came from, and change nothing.
//!
//! No input or output. One assembler per connection: the stream describes tables once per connection, and
//! starts whatever transaction was cut by the previous one from its first record.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::pgoutput::{self, DecodeError, Described, Message};
use crate::event::{Change, ChangeKind, Column, Commit, Relation, Row, TransactionPart};
use crate::source::types::{TypeMap, TypeRow};
use crate::telemetry;
use crate::value::ValueKind;

/// A part ends with the record that brings it to this many changes,
pub const PART_CHANGES_MAX: usize = 1_000;
/// or to this many bytes as sent.
pub const PART_BYTES_MAX: usize = 1 << 20;

/// What prefixes of our messages begin with; the key follows.
const PREFIX: &[u8] = b"walcast:";

/// What a message completes.
#[derive(Clone, Debug)]
pub enum Output {
    /// A transaction begins. Whoever delivers only what is visible waits here, before reading on.
    Begin(Arc<Commit>),
    /// Some of its changes, or, with `end`, all that remain (perhaps none).
    Part(TransactionPart),
}

/// See the module.
pub struct Assembler {
    prefix: Vec<u8>,
    types: TypeMap,
    unknown_types: Vec<u32>,
    relations: HashMap<u32, Known>,
    open: Option<Open>,
}

/// A table that the stream described. `relation` is built when a change first needs it.
struct Known {
    described: Described,
    relation: Option<Arc<Relation>>,
}

/// The transaction that the stream is in.
struct Open {
    commit: Arc<Commit>,
    /// Of the newest record.
    ordinal: u64,
    changes: Vec<Change>,
    bytes: usize,
}

impl Assembler {
    /// For one connection. `key` is what proves a message to be ours.
    #[must_use]
    pub fn new(key: &str) -> Self {
        Self {
            prefix: [PREFIX, key.as_bytes()].concat(),
            types: TypeMap::default(),
            unknown_types: Vec::new(),
            relations: HashMap::new(),
            open: None,
        }
    }

    /// Types that the catalog has to explain before the next [`push`](Self::push); mostly none. They stay
    /// until [`learn`](Self::learn), so asking may be cut short and done again. Without it they are text.
    #[must_use]
    pub fn unknown_types(&self) -> &[u32] {
        &self.unknown_types
    }

    /// Takes the catalog's answer about [`unknown_types`](Self::unknown_types).
    pub fn learn(&mut self, answer: &[TypeRow]) {
        self.types.learn(&self.unknown_types, answer);
        self.unknown_types.clear();
    }

    /// Whether the stream is inside a transaction.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// It is none, or cannot stand here. The connection is of no further use.
    pub fn push(&mut self, body: Bytes) -> Result<Option<Output>, DecodeError> {
        let bytes = body.len();
        match pgoutput::decode(body)? {
            Message::Begin { commit_lsn, time_us, xid } => {
                if self.open.is_some() {
                    return Err(DecodeError::OutOfOrder('B'));
                }
                let commit = Arc::new(Commit { major: commit_lsn, lsn: Some(commit_lsn), xid, time_us });
                let open = Open { commit: Arc::clone(&commit), ordinal: 0, changes: Vec::new(), bytes: 0 };
                self.open = Some(open);
                Ok(Some(Output::Begin(commit)))
            }
            Message::Commit { commit_lsn, end_lsn } => match self.open.take() {
                Some(open) if open.commit.major == commit_lsn => Ok(Some(Output::Part(TransactionPart {
                    commit: open.commit,
                    changes: open.changes,
                    end: Some(end_lsn),
                }))),
                _ => Err(DecodeError::OutOfOrder('C')),
            },
            Message::Relation(described) => {
                self.describe(described);
                Ok(None)
            }
            Message::Origin | Message::Type | Message::Emitted { transactional: false, .. } => Ok(None),
            Message::Insert { relation, new } => {
                let relation = self.relation(relation, &[&new])?;
                self.record('I', bytes, [ChangeKind::Insert { relation, new }])
            }
            Message::Update { relation, old, new } => {
                let relation = match &old {
                    Some(old) => self.relation(relation, &[&new, old.row()])?,
                    None => self.relation(relation, &[&new])?,
                };
                self.record('U', bytes, [ChangeKind::Update { relation, old, new }])
            }
            Message::Delete { relation, old } => {
                let relation = self.relation(relation, &[old.row()])?;
                self.record('D', bytes, [ChangeKind::Delete { relation, old }])
            }
            Message::Truncate { relations } => {
                let relations = relations
                    .into_iter()
                    .map(|oid| self.relation(oid, &[]))
                    .collect::<Result<Vec<_>, _>>()?;
                let changes = relations.into_iter().map(|relation| ChangeKind::Truncate { relation });
                self.record('T', bytes, changes)
            }
            Message::Emitted { prefix, content, .. } => {
                let ours = prefix == self.prefix;
                if !ours && prefix.starts_with(PREFIX) {
                    metrics::counter!(telemetry::MESSAGES_FORGED_TOTAL).increment(1);
                }
                self.record('M', bytes, ours.then_some(ChangeKind::Message { content }))
            }
        }
    }

    /// Numbers one raw record, and ends the part when it is large enough: always behind a whole record.
    fn record(
        &mut self,
        tag: char,
        bytes: usize,
        changes: impl IntoIterator<Item = ChangeKind>,
    ) -> Result<Option<Output>, DecodeError> {
        let open = self.open.as_mut().ok_or(DecodeError::OutOfOrder(tag))?;
        open.ordinal += 1;
        let (ordinal, before) = (open.ordinal, open.changes.len());
        open.changes.extend(changes.into_iter().map(|kind| Change { ordinal, kind }));
        if open.changes.len() > before {
            open.bytes += bytes;
        }
        if open.changes.len() < PART_CHANGES_MAX && open.bytes < PART_BYTES_MAX {
            return Ok(None);
        }
        open.bytes = 0;
        let changes = std::mem::take(&mut open.changes);
        Ok(Some(Output::Part(TransactionPart { commit: Arc::clone(&open.commit), changes, end: None })))
    }

    fn describe(&mut self, described: Described) {
        for column in &described.columns {
            let oid = column.type_oid;
            if self.types.kind(oid).is_none() && !self.unknown_types.contains(&oid) {
                self.unknown_types.push(oid);
            }
        }
        let same = self.relations.get(&described.oid).is_some_and(|known| known.described == described);
        // Descriptions are repeated whenever a cache of the server's was dropped. What did not change stays
        // the same `Arc`, so that others may recognise it.
        if !same {
            self.relations.insert(described.oid, Known { described, relation: None });
        }
    }

    /// The table of a change that brings these rows.
    fn relation(&mut self, oid: u32, rows: &[&Row]) -> Result<Arc<Relation>, DecodeError> {
        let known = self.relations.get_mut(&oid).ok_or(DecodeError::UnknownRelation(oid))?;
        let columns = known.described.columns.len();
        if let Some(row) = rows.iter().find(|row| row.len() != columns) {
            return Err(DecodeError::RowWidth { relation: oid, columns, cells: row.len() });
        }
        let types = &self.types;
        let relation = known.relation.get_or_insert_with(|| Arc::new(build(&known.described, types)));
        Ok(Arc::clone(relation))
    }
}

fn build(described: &Described, types: &TypeMap) -> Relation {
    let columns = described.columns.iter().map(|column| Column {
        name: Arc::clone(&column.name),
        kind: types.kind(column.type_oid).unwrap_or(ValueKind::Text),
        key: column.key,
    });
    Relation { name: Arc::clone(&described.name), columns: columns.collect() }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use proptest::prelude::*;

    use super::super::encode::{self, cell};
    use super::*;

    const VMS: u32 = 7;

    fn vms() -> Bytes {
        encode::relation(VMS, "public", "vms", &[("id", true, 23), ("mood", false, 16_400)])
    }

    fn row(id: &str) -> Bytes {
        encode::insert(VMS, &[cell(id), cell("x")])
    }

    /// Feeds messages and keeps what they complete.
    fn feed(assembler: &mut Assembler, bodies: impl IntoIterator<Item = Bytes>) -> Vec<Output> {
        bodies.into_iter().filter_map(|body| assembler.push(body).unwrap()).collect()
    }

    fn ordinals(outputs: &[Output]) -> Vec<u64> {
        let parts = outputs.iter().filter_map(|output| match output {
            Output::Part(part) => Some(part),
            Output::Begin(_) => None,
        });
        parts.flat_map(|part| part.changes.iter().map(|change| change.ordinal)).collect()
    }

    #[test]
    fn a_transaction_is_announced_and_then_handed_on_whole() {
        let mut assembler = Assembler::new("k");
        let outputs = feed(&mut assembler, [encode::begin(0x10, 5)]);
        let [Output::Begin(commit)] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!((commit.major, commit.lsn, commit.xid), (0x10, Some(0x10), 5));
        assert!(assembler.in_transaction());
        let outputs = feed(&mut assembler, [vms(), row("1"), row("2"), encode::commit(0x10, 0x40)]);
        let [Output::Part(part)] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!((part.changes.len(), part.end), (2, Some(0x40)));
        assert!(!assembler.in_transaction());
    }

    #[test]
    fn an_empty_transaction_moves_the_position() {
        let mut assembler = Assembler::new("k");
        let outputs = feed(&mut assembler, [encode::begin(0x10, 5), encode::commit(0x10, 0x40)]);
        let [Output::Begin(_), Output::Part(part)] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!((part.changes.len(), part.end), (0, Some(0x40)));
    }

    #[test]
    fn ordinals_count_every_raw_record_and_nothing_else() {
        let bodies = [
            encode::begin(0x10, 5),
            encode::origin(),
            vms(),
            row("1"),                                     // 1
            encode::emitted(true, "someone", b""),        // 2, ignored
            encode::emitted(true, "walcast:forged", b""), // 3, ignored
            encode::emitted(false, "walcast:k", b""),     // not of the transaction
            encode::type_(),
            vms(),
            encode::truncate(&[VMS, VMS]),               // 4, two changes
            encode::emitted(true, "walcast:k", b"a\n1"), // 5
            encode::delete(VMS, b'K', &[cell("1"), crate::event::Cell::Null]), // 6
            encode::commit(0x10, 0x40),
        ];
        let outputs = feed(&mut Assembler::new("k"), bodies);
        assert_eq!(ordinals(&outputs), [1, 4, 4, 5, 6]);
    }

    #[test]
    fn only_messages_with_our_key_pass_and_forged_ones_are_counted() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let mut assembler = Assembler::new("secret");
            let prefixes = ["walcast:secret", "walcast:guess", "walcast:", "walcast.lease", "other", ""];
            let messages = prefixes.map(|prefix| encode::emitted(true, prefix, prefix.as_bytes()));
            let outputs = feed(
                &mut assembler,
                [encode::begin(1, 1)].into_iter().chain(messages).chain([encode::commit(1, 2)]),
            );
            let [Output::Begin(_), Output::Part(part)] = &outputs[..] else { panic!("{outputs:?}") };
            let [Change { ordinal: 1, kind: ChangeKind::Message { content } }] = &part.changes[..] else {
                panic!("{part:?}")
            };
            assert_eq!(content, "walcast:secret");
        });
        assert!(metrics.render().contains("walcast_messages_forged_total 2"), "{}", metrics.render());
    }

    #[test]
    fn large_transactions_come_in_parts_that_end_behind_a_record() {
        let mut assembler = Assembler::new("k");
        let rows = (0..PART_CHANGES_MAX - 1).map(|i| row(&i.to_string()));
        let bodies = [encode::begin(1, 1), vms()].into_iter().chain(rows);
        assert_eq!(feed(&mut assembler, bodies).len(), 1);
        let outputs = feed(&mut assembler, [encode::truncate(&[VMS, VMS])]);
        let [Output::Part(part)] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!((part.changes.len(), part.end), (PART_CHANGES_MAX + 1, None));

        let large = encode::insert(VMS, &[cell(&"x".repeat(PART_BYTES_MAX)), cell("")]);
        let outputs = feed(&mut assembler, [row("1"), large, row("2"), encode::commit(1, 2)]);
        let [Output::Part(first), Output::Part(last)] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!((first.changes.len(), first.end), (2, None));
        assert_eq!((last.changes.len(), last.end), (1, Some(2)));
        assert_eq!(last.changes[0].ordinal, PART_CHANGES_MAX as u64 + 3);
    }

    #[test]
    fn unknown_types_are_asked_once_and_stay_asked() {
        let mut assembler = Assembler::new("k");
        feed(&mut assembler, [encode::begin(1, 1), vms(), vms()]);
        assert_eq!(assembler.unknown_types(), [16_400]);
        assembler.learn(&[TypeRow { oid: 16_400, inner: Some(16), delimiter: None }]);
        assert_eq!(assembler.unknown_types(), [0; 0]);
        let outputs = feed(&mut assembler, [vms(), row("1"), vms(), row("2"), encode::commit(1, 2)]);
        assert_eq!(assembler.unknown_types(), [0; 0]);
        let [Output::Part(part)] = &outputs[..] else { panic!("{outputs:?}") };
        let relations: Vec<_> = part
            .changes
            .iter()
            .map(|change| match &change.kind {
                ChangeKind::Insert { relation, .. } => relation,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(relations[0].columns[1].kind, ValueKind::Bool);
        assert!(Arc::ptr_eq(relations[0], relations[1]));
    }

    #[test]
    fn a_stream_that_makes_no_sense_is_refused() {
        let check = |bodies: &[Bytes], expected: DecodeError| {
            let mut assembler = Assembler::new("k");
            let error = bodies.iter().find_map(|body| assembler.push(body.clone()).err());
            assert_eq!(error, Some(expected));
        };
        check(&[encode::begin(1, 1), encode::begin(2, 2)], DecodeError::OutOfOrder('B'));
        check(&[encode::commit(1, 2)], DecodeError::OutOfOrder('C'));
        check(&[encode::begin(1, 1), encode::commit(3, 4)], DecodeError::OutOfOrder('C'));
        check(&[vms(), row("1")], DecodeError::OutOfOrder('I'));
        check(&[encode::emitted(true, "walcast:k", b"")], DecodeError::OutOfOrder('M'));
        check(&[encode::begin(1, 1), row("1")], DecodeError::UnknownRelation(VMS));
        check(
            &[encode::begin(1, 1), vms(), encode::insert(VMS, &[cell("1")])],
            DecodeError::RowWidth { relation: VMS, columns: 2, cells: 1 },
        );
    }

    proptest! {
        #[test]
        fn any_order_of_messages_never_panics(order in prop::collection::vec(0_usize..8, 0..20)) {
            let bodies = [
                encode::begin(1, 1), encode::commit(1, 2), vms(), row("1"), encode::truncate(&[VMS]),
                encode::emitted(true, "walcast:k", b""), encode::emitted(false, "", b""), encode::type_(),
            ];
            let mut assembler = Assembler::new("k");
            for which in order {
                let _ = assembler.push(bodies[which].clone());
            }
        }
    }
}
