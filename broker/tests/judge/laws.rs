//! One client's history held against the truth.

use std::collections::{HashMap, HashSet};

use walcast_client::wire::{Cursor, Epoch, Position, Topic};

use super::truth::Index;
use super::{Entry, History, Law, Seen, Terms, Violation, What};

/// Everything that is wrong with this history.
pub(super) fn hold(history: &History, truth: &Index, terms: &Terms) -> Vec<Violation> {
    let mut reader = Reader {
        history,
        truth,
        terms,
        epoch: None,
        left: HashSet::new(),
        ever: HashMap::new(),
        given: false,
        connection: Connection::default(),
        span: Span::default(),
        at: String::new(),
        violations: Vec::new(),
    };
    for entry in &history.entries {
        reader.read(entry);
    }
    "at its end".clone_into(&mut reader.at);
    reader.close_span();
    if reader.span.upto.is_none_or(|upto| upto < terms.until) {
        let reached = reader.span.upto.map_or_else(|| "nowhere".to_owned(), |upto| upto.to_string());
        reader.blame(Law::Reliable, format!("it got to {reached}, not to {}", terms.until));
    }
    reader.violations
}

struct Reader<'a> {
    history: &'a History,
    truth: &'a Index,
    terms: &'a Terms,
    epoch: Option<Epoch>,
    /// Epochs that were followed by others.
    left: HashSet<Epoch>,
    /// Everything that ever came.
    ever: HashMap<(Cursor, Topic), u64>,
    /// The broker named a cursor, or an event came that has one.
    given: bool,
    connection: Connection,
    span: Span,
    /// Where in the history, for people.
    at: String,
    violations: Vec<Violation>,
}

/// Since the client connected, or was told a reset.
#[derive(Default)]
struct Connection {
    presented: Option<Position>,
    newest: Option<Position>,
    upto: Option<Position>,
    seen: HashSet<(Position, Topic)>,
}

/// What no reset divides.
#[derive(Default)]
struct Span {
    /// Everything behind this was to come; unknown right after a reset.
    after: Option<Position>,
    upto: Option<Position>,
    received: HashSet<(Position, Topic)>,
}

impl Reader<'_> {
    fn blame(&mut self, law: Law, what: String) {
        let client = self.history.client.clone();
        self.violations.push(Violation { law, client, what: format!("{}: {what}", self.at) });
    }

    fn read(&mut self, entry: &Entry) {
        self.at = format!("after {:?}, connection {}", entry.at, entry.connection);
        match &entry.what {
            What::Presented(cursor) => self.presented(*cursor),
            What::Event(seen) => self.event(seen),
            What::Upto(cursor) => self.upto(*cursor),
            What::Reset(reset) => {
                if !self.terms.resets {
                    self.blame(
                        Law::Resumable,
                        format!("{:?}, although all of history is held", reset.reason),
                    );
                }
                self.close_span();
                (self.connection, self.span) = (Connection::default(), Span::default());
                self.enter(reset.resume.epoch, true);
                self.given = true;
            }
        }
    }

    fn presented(&mut self, cursor: Option<Cursor>) {
        if cursor.is_none() && self.given {
            self.blame(Law::Bookmarkable, "it was here before and has no cursor to present".to_owned());
        }
        let presented = cursor.map(|cursor| cursor.position);
        self.connection = Connection { presented, ..Connection::default() };
        if let (Some(cursor), None) = (cursor, self.epoch) {
            self.epoch = Some(cursor.epoch);
            self.span.after = presented;
        }
    }

    /// What follows is told in this epoch.
    fn enter(&mut self, epoch: Epoch, reset: bool) {
        if self.epoch == Some(epoch) {
            return;
        }
        if self.left.contains(&epoch) {
            self.blame(Law::Fenced, format!("epoch {epoch} is back, which another one had followed"));
        } else if !reset && self.epoch.is_some() {
            self.blame(Law::Fenced, format!("epoch {epoch} begins without a reset"));
        }
        self.left.extend(self.epoch.replace(epoch));
    }

    fn event(&mut self, seen: &Seen) {
        self.enter(seen.cursor.epoch, false);
        let position = seen.cursor.position;
        let key = (position, seen.topic.clone());
        let name = format!("{position} {}", seen.topic);
        if !self.connection.seen.insert(key.clone()) {
            self.blame(Law::Unique, format!("{name} comes twice on one connection"));
        } else if self.connection.newest.is_some_and(|newest| position < newest) {
            self.blame(Law::Ordered, format!("{name} comes behind {:?}", self.connection.newest));
        } else if self.connection.presented.is_some_and(|presented| position <= presented) {
            self.blame(
                Law::Resumable,
                format!("{name} comes to one who presented {:?}", self.connection.presented),
            );
        } else if self.connection.upto.is_some_and(|upto| position <= upto) {
            self.blame(
                Law::Bookmarkable,
                format!("{name} comes behind the cursor {:?}", self.connection.upto),
            );
        }
        self.connection.newest = self.connection.newest.max(Some(position));
        let earlier = self.ever.insert((seen.cursor, seen.topic.clone()), seen.digest);
        if earlier.is_some_and(|digest| digest != seen.digest) {
            self.blame(Law::Unique, format!("{name} comes again as something else"));
        }
        if seen.found == Some(false) {
            self.blame(Law::Visible, format!("{name} comes and its row cannot be read"));
        }
        match self.truth.get(&key) {
            None => self.blame(Law::Fenced, format!("{name} was never committed there")),
            Some(known) if seen.xid != Some(known.xid) => {
                let xid = known.xid;
                self.blame(Law::Fenced, format!("{name} is of transaction {xid}, not of {:?}", seen.xid));
            }
            Some(known) if known.digest != seen.digest => {
                self.blame(Law::Reliable, format!("{name} is not what was published"));
            }
            Some(known) if !seen.partial && known.last != seen.last => {
                self.blame(Law::Atomic, format!("{name} has last = {}", seen.last));
            }
            Some(_) => {}
        }
        self.given = true;
        self.span.after.get_or_insert(position.predecessor());
        self.span.received.insert(key);
    }

    fn upto(&mut self, cursor: Cursor) {
        self.enter(cursor.epoch, false);
        let position = cursor.position;
        let known = self.connection.upto.max(self.connection.presented);
        // Behind a reset, the cursor to go on from stands before everything.
        if known.is_some_and(|known| position < known) {
            self.blame(Law::Fenced, format!("the cursor goes back from {known:?} to {position}"));
        }
        self.connection.upto = self.connection.upto.max(Some(position));
        self.given = true;
        if position > Position::ZERO {
            self.span.after.get_or_insert(position);
            self.span.upto = self.span.upto.max(Some(position));
        }
    }

    /// Everything that had to come has come.
    fn close_span(&mut self) {
        let (Some(after), Some(upto)) = (self.span.after, self.span.upto) else { return };
        let due = self.truth.between(&self.history.topics, after, upto);
        let missing: Vec<_> = due.filter(|key| !self.span.received.contains(*key)).collect();
        if let Some((position, topic)) = missing.first() {
            let count = missing.len();
            let what = format!("{count} missing between {after} and {upto}, first {position} {topic}");
            self.blame(Law::Reliable, what);
        }
    }
}
