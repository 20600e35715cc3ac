//! The judge itself: histories made by hand, each with one thing wrong.

use std::time::Duration;

use serde_json::json;
use walcast_client::wire::{Cursor, Epoch, Position, Reset, ResetReason, Topic};

use super::slot::Raw;
use super::*;

fn cursor(lsn: u64, ordinal: u64) -> Cursor {
    Cursor::new(Epoch(1), Position::new(lsn, ordinal))
}

/// Three transactions: `a` twice and `b` once, then one of each.
fn truth() -> Truth {
    let record = |ordinal, topic: &str| Record { ordinal, topic: topic.parse().unwrap(), digest: ordinal };
    let commit = |lsn: u64, records| Commit { lsn, xid: lsn as u32, records };
    let commits = vec![
        commit(100, vec![record(1, "a"), record(3, "b"), record(4, "a")]),
        commit(200, vec![record(1, "a")]),
        commit(300, vec![record(1, "b")]),
    ];
    let noted = |commit: &Commit| {
        let of =
            |record: &Record| Noted { xid: commit.xid, topic: record.topic.clone(), digest: record.digest };
        commit.records.iter().map(of).collect::<Vec<_>>()
    };
    let ledger = commits.iter().flat_map(noted).collect();
    Truth { commits, ledger }
}

fn presented(cursor: Cursor) -> What {
    What::Presented(Some(cursor))
}

fn event(lsn: u64, ordinal: u64, topic: &str, last: bool) -> What {
    What::Event(Seen {
        cursor: cursor(lsn, ordinal),
        topic: topic.parse().unwrap(),
        digest: ordinal,
        xid: Some(lsn as u32),
        last,
        partial: false,
        found: Some(true),
    })
}

fn upto(lsn: u64) -> What {
    What::Upto(cursor(lsn, 9))
}

fn reset() -> What {
    What::Reset(Reset { reason: ResetReason::CursorExpired, resume: cursor(0, 0) })
}

/// Two connections; the second brings one event again.
fn good() -> Vec<What> {
    vec![
        presented(cursor(50, 0)),
        event(100, 1, "a", false),
        event(100, 3, "b", true),
        event(100, 4, "a", true),
        upto(100),
        event(200, 1, "a", true),
        presented(cursor(100, 9)),
        event(200, 1, "a", true),
        event(300, 1, "b", true),
        upto(300),
    ]
}

fn history(whats: Vec<What>) -> History {
    let mut connection = 0;
    let entries = whats.into_iter().map(|what| {
        connection += u32::from(matches!(what, What::Presented(_)));
        Entry { at: Duration::ZERO, connection, what }
    });
    let entries = entries.collect();
    History { client: "c".to_owned(), topics: vec!["*".parse().unwrap()], entries }
}

const TERMS: Terms = Terms { resets: false, until: Position::new(300, 1) };

#[track_caller]
fn check(change: impl FnOnce(&mut Vec<What>), expected: &[Law]) {
    let mut whats = good();
    change(&mut whats);
    let violations = judge(&truth(), &[history(whats)], &TERMS);
    let laws: Vec<Law> = violations.iter().map(|violation| violation.law).collect();
    assert_eq!(laws, expected, "{}", summary(&violations));
}

fn seen(what: &mut What) -> &mut Seen {
    let What::Event(seen) = what else { panic!("{what:?}") };
    seen
}

#[test]
fn a_history_without_fault_is_left_alone() {
    check(|_| (), &[]);
    // What came on neither side of a cut is not missed if it comes behind it.
    check(|whats| drop(whats.remove(5)), &[]);
}

#[test]
fn each_fault_is_named_by_the_law_that_it_breaks() {
    check(|whats| whats.swap(1, 2), &[Law::Ordered]);
    check(|whats| whats.insert(2, event(100, 1, "a", false)), &[Law::Unique]);
    check(|whats| seen(&mut whats[7]).digest = 7, &[Law::Unique, Law::Reliable]);
    check(|whats| drop(whats.remove(2)), &[Law::Reliable]);
    check(|whats| drop(whats.remove(8)), &[Law::Reliable]);
    check(|whats| whats.truncate(9), &[Law::Reliable]);
    check(|whats| seen(&mut whats[5]).digest = 7, &[Law::Reliable, Law::Unique]);
    check(|whats| seen(&mut whats[1]).last = true, &[Law::Atomic]);
    check(|whats| seen(&mut whats[3]).last = false, &[Law::Atomic]);
    check(|whats| whats[6] = presented(cursor(200, 1)), &[Law::Resumable]);
    check(|whats| whats.insert(8, reset()), &[Law::Resumable]);
    check(|whats| whats[6] = What::Presented(None), &[Law::Bookmarkable]);
    check(|whats| whats.swap(3, 4), &[Law::Bookmarkable]);
    check(|whats| seen(&mut whats[5]).found = Some(false), &[Law::Visible]);
    check(|whats| seen(&mut whats[5]).found = None, &[]);
    check(|whats| seen(&mut whats[8]).xid = Some(1), &[Law::Fenced]);
    check(|whats| whats.insert(9, event(301, 1, "b", true)), &[Law::Fenced]);
    check(|whats| whats.insert(7, upto(99)), &[Law::Fenced]);
    check(|whats| whats.push(What::Upto(Cursor::new(Epoch(2), Position::new(400, 0)))), &[Law::Fenced]);
}

#[test]
fn a_reset_covers_what_lies_before_the_next_event_and_nothing_else() {
    let check = |whats: Vec<What>, expected: &[Law]| {
        let violations = judge(&truth(), &[history(whats)], &Terms { resets: true, ..TERMS });
        let laws: Vec<Law> = violations.iter().map(|violation| violation.law).collect();
        assert_eq!(laws, expected, "{}", summary(&violations));
    };
    let rest = || vec![event(200, 1, "a", true), event(300, 1, "b", true), upto(300)];
    check([vec![presented(cursor(50, 0)), upto(50), reset()], rest()].concat(), &[]);
    // It was promised before the reset.
    check([vec![presented(cursor(50, 0)), upto(100), reset()], rest()].concat(), &[Law::Reliable]);
    // It is promised again behind it.
    let after = || vec![presented(cursor(50, 0)), reset(), event(100, 4, "a", true), upto(300)];
    check(after(), &[Law::Reliable]);
    // Another epoch may begin, and must not end in an older one.
    let other = |epoch, n| Cursor::new(Epoch(epoch), Position::new(n, 0));
    let begin = |epoch| What::Reset(Reset { reason: ResetReason::EpochChanged, resume: other(epoch, 0) });
    let changed =
        |epoch| vec![presented(other(9, 50)), begin(5), begin(epoch), What::Upto(other(epoch, 301))];
    check(changed(1), &[]);
    check(changed(9), &[Law::Fenced]);
}

#[test]
fn the_truth_must_agree_with_itself() {
    let check = |change: &dyn Fn(&mut Truth), expected: &str| {
        let mut truth = truth();
        change(&mut truth);
        let told = truth.contradictions();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains(expected), "{told:?}");
    };
    assert_eq!(truth().contradictions(), Vec::<String>::new());
    check(&|truth| drop(truth.ledger.pop()), "only the log has b of transaction 300");
    check(&|truth| truth.commits[2].records.clear(), "only the ledger has b of transaction 300");
    check(&|truth| truth.commits[1].lsn = 400, "comes after");
}

#[test]
fn a_digest_is_of_the_value() {
    assert_eq!(digest(&json!({"a": 1, "b": [2]})), digest(&json!({"b": [2], "a": 1})));
    assert_ne!(digest(&json!({"a": 1})), digest(&json!({"a": "1"})));
}

/// What `pg_recvlogical` writes of one transaction, with something in front of it that is no event.
fn told(lsn: u64) -> Vec<u8> {
    let begin = [b"B".as_slice(), &lsn.to_be_bytes(), &[0; 8], &5_u32.to_be_bytes()].concat();
    let commit = [b"C\0".as_slice(), &lsn.to_be_bytes(), &[0; 16]].concat();
    let messages: [&[u8]; 6] = [
        b"M\x00\0\0\0\0\0\0\0\x09p\0\0\0\0\x01x",
        &begin,
        b"R\x00\x00\x00\x07public\0t\0d\x00\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\x00x\0\0\0\0\x17\xff\xff\xff\xff",
        b"I\x00\x00\x00\x07N\x00\x02t\x00\x00\x00\x011t\x00\x00\x00\x012",
        b"M\x01\0\0\0\0\0\0\0\x09p\0\0\0\0\x04a\n{}",
        &commit,
    ];
    messages.iter().flat_map(|message| [message, b"\n".as_slice()].concat()).collect()
}

fn name(raw: &Raw<'_>) -> Option<(Topic, u64)> {
    match raw {
        Raw::Insert("public.t", row) if row["id"] == "1" && row["x"] == "2" => {
            Some(("row".parse().unwrap(), 1))
        }
        Raw::Message("p", "a\n{}") => Some(("message".parse().unwrap(), 2)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_slot_is_read_into_commits() {
    let told = told(100);
    let commits = slot::commits(&told, &name);
    let [Commit { lsn: 100, xid: 5, records }] = &commits[..] else { panic!("{commits:?}") };
    let records: Vec<_> = records.iter().map(|it| (it.ordinal, it.topic.as_str(), it.digest)).collect();
    assert_eq!(records, [(1, "row", 1), (2, "message", 2)]);
    // Wherever it is cut off, nothing but whole transactions counts.
    for length in 0..told.len() {
        assert_eq!(slot::commits(&told[..length], &name), [], "{length}");
    }
}

#[test]
fn what_is_told_again_counts_once() {
    let connection =
        |lsns: &[u64]| slot::commits(&lsns.iter().copied().flat_map(told).collect::<Vec<_>>(), &name);
    let mut known = Vec::new();
    for lsns in [&[100, 200][..], &[], &[200, 300], &[100, 200, 300]] {
        slot::join(&mut known, connection(lsns));
    }
    assert_eq!(known, connection(&[100, 200, 300]));
}

#[test]
#[should_panic(expected = "told differently")]
fn what_is_told_again_must_be_the_same() {
    let (mut known, mut other) = (slot::commits(&told(100), &name), slot::commits(&told(100), &name));
    other[0].xid = 6;
    slot::join(&mut known, other);
}
