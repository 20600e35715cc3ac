//! One rule on one relation: from rows to events. What an operation means is decided here.

use std::sync::Arc;

use bytes::Bytes;
use walcast_wire::{Op, Position, Topic};

use super::binding::Binding;
use super::condition::Verdict;
use super::notice::Reason;
use super::payload;
use super::row::RowView;
use super::rule::Rule;
use super::topic::topic;
use crate::event::{Cell, Commit, Effect, Entry, Event, OldRow, Relation, State};

/// A rule with its binding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound<'a> {
    pub(super) rule: &'a Rule,
    pub(super) binding: &'a Binding,
    pub(super) relation: &'a Relation,
    pub(super) bytes_max: usize,
}

/// Where a change's entries go, and what they have in common.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    pub(super) position: Position,
    pub(super) commit: &'a Arc<Commit>,
    pub(super) scratch: &'a mut Vec<u8>,
    pub(super) out: &'a mut Vec<Entry>,
}

impl Bound<'_> {
    /// A row came into being.
    pub(super) fn insert(&self, new: &[Cell], sink: &mut Sink<'_>) {
        let row = RowView::whole(self.relation, new);
        if self.verdict(row, None) != Membership::No
            && let Some(topic) = self.topic(&row)
        {
            self.emit(sink, topic, Op::Insert, &row, Effect::Put);
        }
    }

    /// A row changed.
    pub(super) fn update(&self, old: Option<&OldRow>, new: &[Cell], sink: &mut Sink<'_>) {
        let row = RowView::updated(self.relation, new, old);
        let before = match old {
            Some(old) => RowView::old(self.relation, old),
            None => RowView::same_key(self.relation, new),
        };
        let membership = self.verdict(row, Some(before));
        if !self.rule.state {
            if membership != Membership::No
                && let Some(topic) = self.topic(&row)
            {
                self.emit(sink, topic, Op::Update, &row, Effect::Put);
            }
            return;
        }
        let to = if membership == Membership::No { None } else { self.topic(&row) };
        // Without an old row the key is unchanged, and with it the topic.
        let from = match old {
            Some(_) => self.topic(&before),
            None if to.is_none() && membership == Membership::No => self.topic(&row),
            None => None,
        };
        let moved = from.filter(|from| to.as_ref() != Some(from));
        // What the condition does not tell stays as it was, where the row was.
        let effect = match membership {
            Membership::AsBefore => Effect::PutIfPresent,
            _ => Effect::Put,
        };
        if let Some(from) = moved {
            self.emit(sink, from, Op::Delete, &before, Effect::Clear);
        }
        if let Some(to) = to {
            self.emit(sink, to, Op::Update, &row, effect);
        }
    }

    /// A row went away.
    pub(super) fn delete(&self, old: &OldRow, sink: &mut Sink<'_>) {
        let row = RowView::old(self.relation, old);
        if (self.rule.state || self.verdict(row, Some(row)) != Membership::No)
            && let Some(topic) = self.topic(&row)
        {
            self.emit(sink, topic, Op::Delete, &row, Effect::Clear);
        }
    }

    /// The table was emptied.
    pub(super) fn truncate(&self, sink: &mut Sink<'_>) {
        if self.rule.state {
            sink.out.push(Entry::ClearTable {
                position: sink.position,
                table: Arc::clone(&self.rule.table),
                commit: Arc::clone(sink.commit),
                partial: false,
            });
        } else if let Some(topic) = self.rule.template.fixed() {
            let payload = payload::Payload { data: Bytes::from_static(b"null"), ..Default::default() };
            sink.out.push(Entry::Event(self.event(
                sink.position,
                Some(Arc::clone(sink.commit)),
                topic,
                Op::Truncate,
                payload,
                Effect::Clear,
            )));
        } else {
            self.note(Reason::Truncate, "");
        }
    }

    /// A row as it is, read by seeding.
    pub(super) fn seed(&self, cells: &[Cell], scratch: &mut Vec<u8>) -> Option<Event> {
        let row = RowView::whole(self.relation, cells);
        if self.verdict(row, None) == Membership::No {
            return None;
        }
        let topic = self.topic(&row)?;
        let payload = self.payload(&row, scratch);
        Some(self.event(Position::ZERO, None, topic, Op::Snapshot, payload, Effect::Put))
    }

    fn verdict(&self, data: RowView<'_>, old: Option<RowView<'_>>) -> Membership {
        let Some(when) = &self.rule.when else {
            return Membership::Yes;
        };
        match when.evaluate(self.relation, &self.binding.when, data, old) {
            Verdict::Holds => Membership::Yes,
            Verdict::Fails => Membership::No,
            Verdict::Unknown => Membership::AsBefore,
            Verdict::Broken(reason, detail) => {
                self.note(reason, &detail);
                Membership::No
            }
        }
    }

    fn topic(&self, row: &RowView<'_>) -> Option<Topic> {
        topic(&self.rule.template, &self.binding.topic, row).map_err(|reason| self.note(reason, "")).ok()
    }

    fn payload(&self, row: &RowView<'_>, scratch: &mut Vec<u8>) -> payload::Payload {
        if self.binding.lacks {
            self.note(Reason::ColumnAbsent, "");
        }
        let payload = payload::write(self.binding, row, self.bytes_max, scratch);
        if !payload.omitted.is_empty() {
            self.note(Reason::TooLarge, "");
        }
        payload
    }

    fn emit(&self, sink: &mut Sink<'_>, topic: Topic, op: Op, row: &RowView<'_>, effect: Effect) {
        let payload = self.payload(row, sink.scratch);
        let commit = Some(Arc::clone(sink.commit));
        sink.out.push(Entry::Event(self.event(sink.position, commit, topic, op, payload, effect)));
    }

    fn event(
        &self,
        position: Position,
        commit: Option<Arc<Commit>>,
        topic: Topic,
        op: Op,
        payload: payload::Payload,
        effect: Effect,
    ) -> Event {
        let payload::Payload { data, unchanged, omitted } = payload;
        let state = self.rule.state.then(|| State { table: Arc::clone(&self.rule.table), effect });
        Event { position, topic, op, data, commit, unchanged, omitted, partial: false, state }
    }

    fn note(&self, reason: Reason, detail: &str) {
        self.rule.notices.row(&self.rule.table, reason, detail);
    }
}

/// Whether the condition lets a row be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Membership {
    Yes,
    No,
    /// It depends on what was not sent. State topics keep what they hold; others get the event, for
    /// nothing may be hidden.
    AsBefore,
}
