//! A table, its log, readings of it that break off, rules that change and restarts, in every order that chance
//! brings: in the end the hub's values, and what followers made of what they were told, are the table.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::*;

const IDS: u64 = 5;

/// Numbers that look random; the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// `doc` is stored out of line: it is sent where it is written, or where the row is new.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    n: u64,
    live: bool,
    kind: u64,
    doc: u64,
}

impl Row {
    fn member(self, rule: usize) -> bool {
        self.live
            && match rule {
                0 => true,
                1 => self.kind.is_multiple_of(2),
                _ => self.doc.is_multiple_of(2),
            }
    }

    fn json(self, id: u64) -> Value {
        json!({"id": id, "n": self.n, "doc": self.doc})
    }
}

type Table = BTreeMap<u64, Row>;

#[derive(Clone, Debug)]
enum Record {
    Put { from: Option<u64>, id: u64, row: Row, doc_sent: bool },
    Delete(u64),
    Truncate,
}

#[derive(Clone, Debug)]
struct Transaction {
    xid: u32,
    records: Vec<Record>,
}

impl Transaction {
    fn major(index: usize) -> u64 {
        110 + 10 * index as u64
    }

    fn apply(&self, table: &mut Table) {
        for record in &self.records {
            match record {
                Record::Put { from, id, row, .. } => {
                    from.map(|from| table.remove(&from));
                    table.insert(*id, *row);
                }
                Record::Delete(id) => _ = table.remove(id),
                Record::Truncate => table.clear(),
            }
        }
    }

    /// Whether one waits for the other's end.
    fn conflicts(&self, other: &Self) -> bool {
        let ids = |records: &[Record]| -> Option<BTreeSet<u64>> {
            let mut ids = BTreeSet::new();
            for record in records {
                match record {
                    Record::Put { from, id, .. } => ids.extend(from.iter().chain([id])),
                    Record::Delete(id) => _ = ids.insert(*id),
                    Record::Truncate => return None,
                }
            }
            Some(ids)
        };
        match (ids(&self.records), ids(&other.records)) {
            (Some(a), Some(b)) => !a.is_disjoint(&b),
            _ => true,
        }
    }
}

/// A reading under way.
struct Reading {
    snapshot: Option<(Arc<Snapshot>, Vec<Event>)>,
    /// What was streamed when it began, it contains.
    streamed: usize,
}

/// What a client makes of what it is told.
struct Mirror {
    subscription: Subscription,
    values: BTreeMap<String, Value>,
    /// Told without a column, and not known before.
    lacking: BTreeSet<String>,
}

impl Mirror {
    /// What it was told.
    fn follow(&mut self, at_most: usize) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..at_most {
            let events: Vec<_> = match self.subscription.next(2).now_or_never() {
                None => break,
                Some(Delivery::Events(events)) => events,
                Some(Delivery::Values(values)) => values.collect(),
                Some(Delivery::Reset(_)) => {
                    told.push("reset".into());
                    self.values.clear();
                    self.lacking.clear();
                    continue;
                }
            };
            for event in events {
                let event: walcast_wire::Event<Value> = serde_json::from_slice(&event.json()).unwrap();
                let topic = event.topic.to_string();
                told.push(format!("{} {} {topic} {}", event.cursor.position, event.op.as_str(), event.data));
                if matches!(event.op, Op::Delete | Op::Truncate) {
                    self.values.remove(&topic);
                    self.lacking.remove(&topic);
                    continue;
                }
                let mut data = event.data;
                self.lacking.remove(&topic);
                if !event.unchanged.is_empty() {
                    match self.values.get(&topic).and_then(|known| known.get("doc")) {
                        Some(known) => data["doc"] = known.clone(),
                        None => _ = self.lacking.insert(topic.clone()),
                    }
                }
                self.values.insert(topic, data);
            }
        }
        told
    }
}

struct Simulation {
    numbers: Numbers,
    /// Out of a thousand that might be.
    truncates: u64,
    feed: Feed,
    rule: usize,
    table: Table,
    log: Vec<Transaction>,
    streamed: usize,
    reading: Option<Reading>,
    /// What some snapshot contained: all later ones do.
    seen: BTreeSet<usize>,
    due: bool,
    settle: Position,
    /// Where the rules changed last.
    reloaded: Position,
    mirrors: Vec<Mirror>,
    /// What happened, where somebody wants to read it.
    story: Option<Vec<String>>,
}

impl Simulation {
    fn new(seed: u64, tell: bool) -> Self {
        let mut this = Self {
            numbers: Numbers(seed),
            truncates: [100, 500, 1000][seed as usize / 9 % 3],
            feed: Feed::new(1000),
            rule: seed as usize / 3 % 3,
            table: Table::new(),
            log: Vec::new(),
            streamed: 0,
            reading: None,
            seen: BTreeSet::new(),
            due: true,
            settle: Position::ZERO,
            reloaded: Position::ZERO,
            mirrors: Vec::new(),
            story: tell.then(Vec::new),
        };
        this.read();
        this.mirror(From::Current);
        this.mirror(From::After(Cursor::new(Epoch(1), Position::before(100))));
        this
    }

    fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(what());
        }
    }

    fn mirror(&mut self, from: From) {
        let subscription = self.feed.subscribe(&["item/*"], from);
        self.mirrors.push(Mirror { subscription, values: BTreeMap::new(), lacking: BTreeSet::new() });
    }

    fn record(&mut self) -> Option<Record> {
        let (id, other, n) = (self.numbers.below(IDS), self.numbers.below(IDS), self.numbers.below(1000));
        let known = self.table.get(&id).copied();
        let free = !self.table.contains_key(&other);
        let record = match (self.numbers.below(10), known) {
            (0..3, None) => {
                let row = Row { n, live: n % 4 > 0, kind: n, doc: n };
                Record::Put { from: None, id, row, doc_sent: true }
            }
            (3..5, Some(row)) => Record::Put { from: None, id, row: Row { n, ..row }, doc_sent: false },
            (5, Some(row)) => Record::Put { from: None, id, row: Row { doc: n, ..row }, doc_sent: true },
            (6, Some(row)) => {
                let row = Row { live: !row.live, kind: n, ..row };
                Record::Put { from: None, id, row, doc_sent: true }
            }
            (7..9, Some(row)) if free => {
                Record::Put { from: Some(id), id: other, row: Row { n, ..row }, doc_sent: false }
            }
            (9, Some(_)) => Record::Delete(id),
            (9, None) if n < self.truncates => Record::Truncate,
            _ => return None,
        };
        Transaction { xid: 0, records: vec![record.clone()] }.apply(&mut self.table);
        Some(record)
    }

    fn commit(&mut self) {
        let mut records = Vec::new();
        for _ in 0..=self.numbers.below(3) {
            records.extend(self.record());
        }
        // Ids are drawn in another order than commits have.
        let xid = 1000 + 4 * self.log.len() as u32 + self.numbers.below(9) as u32;
        let taken = |xid| self.log.iter().any(|known| known.xid == xid);
        let xid = (xid..).find(|xid| !taken(*xid)).unwrap();
        self.log.push(Transaction { xid, records });
    }

    fn stream(&mut self, count: u64) {
        let upto = self.log.len().min(self.streamed + count as usize);
        let mut entries = Vec::new();
        for index in self.streamed..upto {
            let (major, transaction) = (Transaction::major(index), &self.log[index]);
            for (ordinal, record) in (1..).zip(&transaction.records) {
                self.route(Position::new(major, ordinal), transaction.xid, record, &mut entries);
            }
        }
        if upto > self.streamed {
            for index in self.streamed..upto {
                let transaction = self.log[index].clone();
                self.tell(|| format!("stream {index}, {transaction:?}"));
            }
            self.streamed = upto;
            self.feed.send_upto(entries, Position::before(Transaction::major(upto - 1) + 5));
        }
        // Nothing more: the stream comes as far as the server is.
        if upto == self.log.len() && self.settle > self.feed.head {
            self.feed.send_upto(vec![], self.settle);
        }
    }

    fn route(&self, position: Position, xid: u32, record: &Record, out: &mut Vec<Entry>) {
        let commit = commit(position.major, xid);
        let mut emit = |id: u64, op, effect, data: Value, unchanged: Box<[Arc<str>]>| {
            let state = Some(State { table: "public.items".into(), effect });
            out.push(Entry::Event(Event {
                position,
                topic: Topic::new(&format!("item/{id}")).unwrap(),
                op,
                data: Bytes::from(data.to_string()),
                commit: Some(Arc::clone(&commit)),
                unchanged,
                omitted: Box::default(),
                partial: false,
                state,
            }));
        };
        match record {
            Record::Put { from, id, row, doc_sent } => {
                // Whether a row is a member by a column that was not sent, the hub has to know.
                let untold = self.rule == 2 && row.live && !doc_sent;
                let member = untold || row.member(self.rule);
                let effect = if untold { Effect::PutIfPresent } else { Effect::Put };
                let left = from.or((!member).then_some(*id));
                if let Some(left) = left {
                    emit(left, Op::Delete, Effect::Clear, json!({"id": left}), Box::default());
                }
                if member {
                    let (mut data, mut unchanged) = (row.json(*id), Box::default());
                    if !doc_sent {
                        data.as_object_mut().unwrap().remove("doc");
                        unchanged = Box::from(["doc".into()]);
                    }
                    emit(*id, Op::Update, effect, data, unchanged);
                }
            }
            Record::Delete(id) => emit(*id, Op::Delete, Effect::Clear, json!({"id": id}), Box::default()),
            Record::Truncate => {
                out.push(Entry::ClearTable {
                    position,
                    table: "public.items".into(),
                    commit,
                    partial: false,
                });
            }
        }
    }

    fn read(&mut self) {
        let Some(reading) = &mut self.reading else {
            if self.due && self.feed.head >= self.settle {
                self.due = false;
                self.tell(|| "begin".into());
                self.feed.note(reads("public.items", "item/*"));
                self.reading = Some(Reading { snapshot: None, streamed: self.streamed });
            }
            return;
        };
        let Some((snapshot, rows)) = &mut reading.snapshot else {
            let until = self.log.len();
            let mut contained: Vec<bool> = vec![true; until];
            for index in (reading.streamed..until).rev().take(3) {
                let later = (index + 1..until).filter(|later| contained[*later]);
                let waited_for = later.into_iter().any(|later| self.log[index].conflicts(&self.log[later]));
                let seen = self.seen.contains(&index);
                contained[index] = seen || waited_for || self.numbers.below(3) > 0;
            }
            self.seen.extend((0..until).filter(|index| contained[*index]));
            let mut table = Table::new();
            let of = |wanted| {
                (0..until).filter({
                    let contained = contained.clone();
                    move |index| contained[*index] == wanted
                })
            };
            let (inside, outside) = (of(true), of(false));
            inside.for_each(|index| self.log[index].apply(&mut table));
            let mut xip: Vec<_> = outside.map(|index| u64::from(self.log[index].xid)).collect();
            let xmax = 1000 + 4 * until as u64 + 100;
            let known: Vec<_> = self.log.iter().map(|known| u64::from(known.xid)).collect();
            xip.extend((1000..xmax).filter(|xid| !known.contains(xid)));
            xip.sort_unstable();
            let snapshot = Arc::new(Snapshot { xmin: 1000, xmax, xip });
            let what = format!("snapshot with {contained:?}: {table:?}");
            let mut rows: Vec<_> = table
                .into_iter()
                .filter(|(_, row)| row.member(self.rule))
                .map(|(id, row)| Event {
                    position: Position::ZERO,
                    topic: Topic::new(&format!("item/{id}")).unwrap(),
                    op: Op::Snapshot,
                    data: Bytes::from(row.json(id).to_string()),
                    commit: None,
                    unchanged: Box::default(),
                    omitted: Box::default(),
                    partial: false,
                    state: Some(State { table: "public.items".into(), effect: Effect::Put }),
                })
                .collect();
            for index in (1..rows.len()).rev() {
                rows.swap(index, self.numbers.below(index as u64 + 1) as usize);
            }
            reading.snapshot = Some((snapshot, rows));
            self.tell(|| what);
            return;
        };
        if rows.is_empty() {
            let settle = Position::before(Transaction::major(self.log.len()));
            self.feed.note(Note::SeedEnd { snapshot: Arc::clone(snapshot), settle });
            self.tell(|| format!("end, settles at {settle}"));
            (self.reading, self.settle) = (None, settle);
            return;
        }
        let piece = rows.split_off(rows.len() - (self.numbers.below(2) as usize + 1).min(rows.len()));
        let what = format!("piece {:?}", piece.iter().map(|row| &row.data).collect::<Vec<_>>());
        self.feed.note(Note::Seed { snapshot: Arc::clone(snapshot), events: piece.into() });
        self.tell(|| what);
    }

    fn reload(&mut self) {
        let withdrawn = self.numbers.below(2) == 0;
        // Where cursors may be: there followers begin anew.
        self.reloaded = self.feed.head.max(self.feed.hub.status().replay_until);
        if withdrawn {
            self.rule = (self.rule + 1 + self.numbers.below(2) as usize) % 3;
        }
        self.tell(|| format!("reload, withdrawn: {withdrawn}"));
        (self.reading, self.due) = (None, true);
        let topics = vec!["item/*".parse().unwrap()];
        self.feed.note(Note::Outdated(Arc::from([Outdated {
            table: "public.items".into(),
            topics,
            withdrawn,
            state: true,
        }])));
    }

    /// As much of the log comes again as the hub held.
    fn restart(&mut self) {
        let Some(window) = self.feed.hub.window() else { return };
        // Of rules that changed where the log ended, or what was found out there, a restart knows nothing.
        if self.feed.head <= self.reloaded.max(self.settle) {
            return;
        }
        let from = (0..self.streamed).find(|index| Transaction::major(*index) >= window.replay_from);
        self.streamed = from.unwrap_or(self.streamed);
        let head = match self.streamed {
            0 => Position::before(100),
            streamed => Position::before(Transaction::major(streamed - 1) + 5),
        };
        let head = head.max(Position::before(window.replay_from));
        self.tell(|| format!("restart from {head}"));
        let end =
            self.log.len().checked_sub(1).map_or(head, |last| Position::before(Transaction::major(last) + 5));
        self.feed = Feed { hub: hub(1000), epoch: Epoch(1), head, now: self.feed.now };
        self.feed.note(Note::Start { replay_until: end.max(head), quiet_from: window.quiet_from });
        (self.reading, self.due, self.settle) = (None, true, Position::ZERO);
        self.read();
        self.again();
    }

    /// Followers present their cursors.
    fn again(&mut self) {
        self.tell(|| "again".into());
        for mirror in &mut self.mirrors {
            let from = if mirror.subscription.unsettled() {
                From::Current
            } else {
                From::After(mirror.subscription.bookmark())
            };
            if from == From::Current {
                mirror.values.clear();
                mirror.lacking.clear();
            }
            mirror.subscription = self.feed.subscribe(&["item/*"], from);
        }
    }

    fn step(&mut self, reloads: u64) {
        match self.numbers.below(40) {
            0..14 => self.commit(),
            14..24 => {
                let count = self.numbers.below(4);
                self.stream(count);
            }
            24..34 => self.read(),
            34 if self.numbers.below(4) < reloads => self.reload(),
            35 if self.numbers.below(8) < reloads => self.restart(),
            36 => self.again(),
            _ => {
                let at_most = self.numbers.below(6) as usize;
                let which = self.numbers.below(self.mirrors.len() as u64) as usize;
                let told = self.mirrors[which].follow(at_most);
                self.tell(|| format!("follower {which}: {told:?}"));
            }
        }
    }

    /// Brings everything to its end; what is not as it should be.
    fn check(&mut self) -> Result<(), String> {
        for _ in 0..100 {
            self.stream(10);
            self.read();
        }
        if !self.feed.hub.status().settled {
            return Err("values are not exact".into());
        }
        // Who was told what does not hold begins anew behind what is known.
        let end = Transaction::major(self.log.len() + 1);
        self.feed.send_upto(vec![message(end, 1, "x")], Position::before(end + 5));
        self.mirror(From::Current);
        self.mirror(From::Earliest);
        let table = self.table.iter().filter(|(_, row)| row.member(self.rule));
        let table: BTreeMap<_, _> = table.map(|(id, row)| (format!("item/{id}"), row.json(*id))).collect();
        for (index, mut mirror) in std::mem::take(&mut self.mirrors).into_iter().enumerate() {
            let told = mirror.follow(1000);
            self.tell(|| format!("follower {index}: {told:?}"));
            // Of these topics a client asks for the value.
            for topic in &mirror.lacking {
                if let (Some(value), Some(row)) = (mirror.values.get_mut(topic), table.get(topic)) {
                    value["doc"] = row["doc"].clone();
                }
            }
            if mirror.values != table {
                return Err(format!("follower {index}: {:?} is not {table:?}", mirror.values));
            }
        }
        let mut now = self.feed.subscribe(&["item/*"], From::Current);
        let values: BTreeMap<String, Value> = match now.next(10).now_or_never() {
            Some(Delivery::Values(values)) => values
                .map(|value| (value.topic().to_string(), serde_json::from_slice(&value.data()).unwrap()))
                .collect(),
            _ => BTreeMap::new(),
        };
        if values == table { Ok(()) } else { Err(format!("values: {values:?} are not {table:?}")) }
    }

    fn run(seed: u64, tell: bool) -> Result<(), String> {
        let mut this = Self::new(seed, tell);
        for _ in 0..100 {
            this.step(seed % 3);
        }
        this.check().map_err(|error| {
            format!(
                "{}\nseed {seed}, {error}",
                this.story.iter().flatten().cloned().collect::<Vec<_>>().join("\n")
            )
        })
    }
}

#[test]
fn values_and_followers_end_up_with_what_the_table_holds() {
    let runs = if std::env::var_os("WALCAST_SOAK").is_some() { 100_000 } else { 1_000 };
    for seed in 0..runs {
        if Simulation::run(seed, false).is_err() {
            panic!("{}", Simulation::run(seed, true).unwrap_err());
        }
    }
}
