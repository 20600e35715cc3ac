//! What was committed: transactions in commit order from the log, and the ledger that says the same as rows.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;
use walcast_client::wire::{Position, Topic, TopicPattern};

/// Everything that was published, told twice.
#[derive(Clone, Debug, Default)]
pub(crate) struct Truth {
    /// From the log, in the order of commits.
    pub(crate) commits: Vec<Commit>,
    /// From the table, in any order.
    pub(crate) ledger: Vec<Noted>,
}

/// A transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Where its commit lies.
    pub(crate) lsn: u64,
    pub(crate) xid: u32,
    /// Those that are events, in their order.
    pub(crate) records: Vec<Record>,
}

/// A record of the log that is an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its number among all records of the transaction.
    pub(crate) ordinal: u64,
    pub(crate) topic: Topic,
    pub(crate) digest: u64,
}

/// What the ledger says that a transaction published.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Noted {
    pub(crate) xid: u32,
    pub(crate) topic: Topic,
    pub(crate) digest: u64,
}

impl Truth {
    /// Where table and log differ: a test that reads them wrongly proves nothing.
    pub(super) fn contradictions(&self) -> Vec<String> {
        let mut balance: HashMap<Noted, i64> = HashMap::new();
        for noted in &self.ledger {
            *balance.entry(noted.clone()).or_default() += 1;
        }
        for commit in &self.commits {
            for record in &commit.records {
                let noted = Noted { xid: commit.xid, topic: record.topic.clone(), digest: record.digest };
                *balance.entry(noted).or_default() -= 1;
            }
        }
        let differ = balance.into_iter().filter(|(_, count)| *count != 0);
        let mut differ: Vec<String> = differ
            .map(|(noted, count)| {
                let side = if count > 0 { "ledger" } else { "log" };
                format!("only the {side} has {} of transaction {}", noted.topic, noted.xid)
            })
            .collect();
        let backwards = self.commits.windows(2).filter(|pair| pair[1].lsn <= pair[0].lsn);
        differ
            .extend(backwards.map(|pair| format!("commit {:X} comes after {:X}", pair[1].lsn, pair[0].lsn)));
        differ
    }
}

/// What is known of one event.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) digest: u64,
    pub(super) xid: u32,
    /// No later event of its transaction has its topic.
    pub(super) last: bool,
}

/// The truth by position.
#[derive(Debug)]
pub(super) struct Index(BTreeMap<(Position, Topic), Known>);

impl Index {
    pub(super) fn new(truth: &Truth) -> Self {
        let mut index = BTreeMap::new();
        for commit in &truth.commits {
            for (at, record) in commit.records.iter().enumerate() {
                let last = commit.records[at + 1..].iter().all(|later| later.topic != record.topic);
                let known = Known { digest: record.digest, xid: commit.xid, last };
                index.insert((Position::new(commit.lsn, record.ordinal), record.topic.clone()), known);
            }
        }
        Self(index)
    }

    pub(super) fn get(&self, key: &(Position, Topic)) -> Option<&Known> {
        self.0.get(key)
    }

    /// What must have come to one who follows `topics` between the two, the second included.
    pub(super) fn between<'a>(
        &'a self,
        topics: &'a [TopicPattern],
        after: Position,
        upto: Position,
    ) -> impl Iterator<Item = &'a (Position, Topic)> {
        let within = self.0.keys().skip_while(move |(position, _)| *position <= after);
        let within = within.take_while(move |(position, _)| *position <= upto);
        within.filter(|(_, topic)| topics.iter().any(|pattern| pattern.matches(topic)))
    }
}

/// Of JSON, whatever the order of its keys (FNV-1a, 64 bits).
pub(crate) fn digest(value: &Value) -> u64 {
    fn sorted(value: &Value) -> String {
        match value {
            Value::Object(map) => {
                let map: BTreeMap<_, _> = map.iter().map(|(key, value)| (key, sorted(value))).collect();
                format!("{map:?}")
            }
            Value::Array(values) => format!("{:?}", values.iter().map(sorted).collect::<Vec<_>>()),
            other => other.to_string(),
        }
    }
    let byte = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    sorted(value).bytes().fold(0xcbf2_9ce4_8422_2325, byte)
}
