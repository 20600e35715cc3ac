//! Ticks and their rows: which row belongs to which, and in which order they are told. Pure.
//!
//! A tick is a snapshot. Its rows are those that it sees and the one before does not, in the order of their ids, which
//! are drawn when rows are written: what has seen another transaction's effect comes behind it. So positions follow
//! from what the table holds, whenever it is read.

use std::sync::Arc;

use crate::event::{Change, ChangeKind, Changes, Commit, Snapshot, TransactionPart};

/// A tick as the table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tick {
    /// Its number, which is the major part of its rows' positions.
    pub(super) id: u64,
    /// Which transactions were over.
    pub(super) snapshot: Snapshot,
    /// The same as Postgres writes it.
    pub(super) text: String,
    /// No row of it or of an earlier one has a higher id.
    pub(super) high_id: i64,
    /// When it was made, in microseconds since 1970-01-01 UTC, by the server's clock.
    pub(super) made_us: i64,
}

impl Tick {
    /// `None`: that is no snapshot.
    pub(super) fn new(id: u64, text: &str, high_id: i64, made_us: i64) -> Option<Self> {
        Some(Self { id, snapshot: Snapshot::parse(text)?, text: text.to_owned(), high_id, made_us })
    }

    /// Everything of it lies before this.
    pub(super) fn end(&self) -> u64 {
        self.id + 1
    }
}

/// What a row says, with the transaction that wrote it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Written<T> {
    pub(super) xid: u64,
    pub(super) what: T,
}

/// The rows of several ticks that follow one another, as the rows of each. What none of them sees is left out.
pub(super) fn by_tick<T>(ticks: &[Tick], rows: Vec<Written<T>>) -> Vec<Vec<Written<T>>> {
    let mut of: Vec<Vec<Written<T>>> = ticks.iter().map(|_| Vec::new()).collect();
    for row in rows {
        // A snapshot sees all that an earlier one does.
        let first = ticks.partition_point(|tick| !tick.snapshot.sees(row.xid));
        if let Some(rows) = of.get_mut(first) {
            rows.push(row);
        }
    }
    of
}

/// Numbers the rows of one tick.
#[derive(Debug)]
pub(super) struct Numbering {
    major: u64,
    time_us: i64,
    ordinal: u64,
    commit: Option<(u64, Arc<Commit>)>,
}

impl Numbering {
    pub(super) fn new(tick: &Tick) -> Self {
        Self { major: tick.id, time_us: tick.made_us, ordinal: 0, commit: None }
    }

    /// The next rows of the tick, one part for each run of a transaction's. `None` stands for a row that says nothing;
    /// it has its number all the same.
    pub(super) fn take(
        &mut self,
        rows: impl IntoIterator<Item = Written<Option<ChangeKind>>>,
    ) -> Vec<Changes> {
        let mut parts: Vec<TransactionPart> = Vec::new();
        for Written { xid, what } in rows {
            self.ordinal += 1;
            let Some(kind) = what else { continue };
            let change = Change { ordinal: self.ordinal, kind };
            let commit = self.commit(xid);
            match parts.last_mut() {
                Some(part) if Arc::ptr_eq(&part.commit, &commit) => part.changes.push(change),
                _ => parts.push(TransactionPart { commit, changes: vec![change], end: None }),
            }
        }
        parts.into_iter().map(Changes::Transaction).collect()
    }

    /// Says that the tick is over, behind what it was told to be.
    pub(super) fn end(self, told: &mut Vec<Changes>) {
        let end = self.major + 1;
        match (told.last_mut(), self.commit) {
            (Some(Changes::Transaction(part)), _) if part.commit.major == self.major => part.end = Some(end),
            (_, Some((_, commit))) => {
                told.push(Changes::Transaction(TransactionPart {
                    commit,
                    changes: Vec::new(),
                    end: Some(end),
                }));
            }
            (_, None) => told.push(Changes::Idle(end)),
        }
    }

    fn commit(&mut self, xid: u64) -> Arc<Commit> {
        if let Some((known, commit)) = &self.commit
            && *known == xid
        {
            return Arc::clone(commit);
        }
        // Events carry the short form, as row headers and the log do.
        let commit =
            Arc::new(Commit { major: self.major, lsn: None, xid: xid as u32, time_us: self.time_us });
        self.commit = Some((xid, Arc::clone(&commit)));
        commit
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn tick(id: u64, snapshot: &str) -> Tick {
        Tick::new(id, snapshot, 0, 5).unwrap()
    }

    fn row(xid: u64) -> Written<Option<ChangeKind>> {
        Written { xid, what: Some(ChangeKind::Message { content: Bytes::from(xid.to_string()) }) }
    }

    /// Transaction, ordinals and end of each part.
    fn told(changes: &[Changes]) -> Vec<(u32, Vec<u64>, Option<u64>)> {
        let told = |changes: &Changes| match changes {
            Changes::Transaction(part) => {
                assert_eq!((part.commit.major, part.commit.lsn, part.commit.time_us), (9, None, 5));
                (part.commit.xid, part.changes.iter().map(|change| change.ordinal).collect(), part.end)
            }
            Changes::Idle(end) => (0, vec![], Some(*end)),
            other => panic!("{other:?}"),
        };
        changes.iter().map(told).collect()
    }

    #[test]
    fn rows_are_numbered_in_order_and_told_by_runs_of_one_transaction() {
        let mut numbering = Numbering::new(&tick(9, "10:20:"));
        let silent = Written { xid: 12, what: None };
        let mut changes = numbering.take([row(12), row(12), silent, row(11), row(12)]);
        numbering.end(&mut changes);
        assert_eq!(told(&changes), [(12, vec![1, 2], None), (11, vec![4], None), (12, vec![5], Some(10))]);
    }

    #[test]
    fn numbers_go_on_from_page_to_page() {
        let mut numbering = Numbering::new(&tick(9, "10:20:"));
        assert_eq!(told(&numbering.take([row(12)])), [(12, vec![1], None)]);
        let mut changes = numbering.take([row(12)]);
        assert_eq!(told(&changes), [(12, vec![2], None)]);
        changes.clear();
        numbering.end(&mut changes);
        assert_eq!(told(&changes), [(12, vec![], Some(10))]);
    }

    #[test]
    fn a_tick_without_rows_moves_the_position() {
        let mut changes = Vec::new();
        Numbering::new(&tick(9, "10:20:")).end(&mut changes);
        assert_eq!(told(&changes), [(0, vec![], Some(10))]);
    }

    #[test]
    fn a_row_belongs_to_the_first_tick_that_sees_it() {
        let ticks = [tick(1, "10:12:10"), tick(2, "10:14:10,13"), tick(3, "14:14:")];
        let of = by_tick(&ticks, [10, 11, 12, 13, 9, 14].map(row).into());
        let xids: Vec<Vec<u64>> = of.iter().map(|rows| rows.iter().map(|row| row.xid).collect()).collect();
        assert_eq!(xids, [vec![11, 9], vec![12], vec![10, 13]]);
    }

    /// Ticks of a server on which transactions begin and end in any order.
    fn history() -> impl Strategy<Value = Vec<Tick>> {
        prop::collection::vec((0_u8..3, 0_usize..8), 1..80).prop_map(|steps| {
            let (mut next, mut open, mut ticks) = (100_u64, Vec::new(), Vec::new());
            for (step, which) in steps {
                match step {
                    0 => {
                        open.push(next);
                        next += 1;
                    }
                    1 if !open.is_empty() => {
                        open.remove(which % open.len());
                    }
                    _ => {
                        let xmin = open.first().copied().unwrap_or(next);
                        let list: Vec<_> = open.iter().map(u64::to_string).collect();
                        let text = format!("{xmin}:{next}:{}", list.join(","));
                        ticks.push(Tick::new(ticks.len() as u64 + 1, &text, 0, 0).unwrap());
                    }
                }
            }
            ticks
        })
    }

    proptest! {
        #[test]
        fn ticks_read_together_have_the_rows_that_they_have_alone(ticks in history()) {
            let rows: Vec<_> = (100..200).map(row).collect();
            let together = by_tick(&ticks, rows.clone());
            let mut before = Snapshot { xmin: 100, xmax: 100, xip: vec![] };
            for (tick, found) in ticks.iter().zip(together) {
                let alone: Vec<_> = rows
                    .iter()
                    .filter(|row| tick.snapshot.sees(row.xid) && !before.sees(row.xid))
                    .cloned()
                    .collect();
                prop_assert_eq!(found, alone);
                before = tick.snapshot.clone();
            }
        }
    }
}
