//! A transaction's changes become entries.

use std::sync::Arc;

use walcast_wire::{Op, Position};

use super::Router;
use super::binding::{Binding, Bindings};
use super::bound::{Bound, Sink};
use super::message::{self, Once};
use super::notice::Reason;
use crate::event::{Change, ChangeKind, Commit, Entry, Event, Relation};

/// Routes one stream of transactions. Holds what is remembered from row to row, beside an immutable
/// [`Router`].
#[derive(Debug)]
pub struct Routing {
    router: Arc<Router>,
    bindings: Bindings,
    once: Once,
    scratch: Vec<u8>,
}

/// The largest buffer kept from one transaction to the next.
const SCRATCH_KEPT: usize = 64 << 10;

impl Routing {
    /// Routes by these rules.
    #[must_use]
    pub fn new(router: Arc<Router>) -> Self {
        Self { router, bindings: Bindings::default(), once: Once::default(), scratch: Vec::new() }
    }

    /// The rules that are in force.
    #[must_use]
    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// A transaction begins, and with it these rules, if they are other ones. To be called before the
    /// first part of each transaction, also of one that begins again after a reconnect, and never between
    /// the parts of one.
    pub fn begin(&mut self, router: &Arc<Router>) {
        if !Arc::ptr_eq(&self.router, router) {
            self.router = Arc::clone(router);
            self.bindings.clear();
        }
        self.once.clear();
        if self.scratch.capacity() > SCRATCH_KEPT {
            self.scratch = Vec::new();
        }
    }

    /// Appends what one change makes, in order; possibly nothing. All of it has the change's position.
    pub fn route(&mut self, commit: &Arc<Commit>, change: &Change, out: &mut Vec<Entry>) {
        let position = Position::new(commit.major, change.ordinal);
        match &change.kind {
            ChangeKind::Insert { relation, new } => {
                self.row(relation, position, commit, out, |bound, sink| bound.insert(new, sink));
            }
            ChangeKind::Update { relation, old, new } => {
                self.row(relation, position, commit, out, |bound, sink| {
                    bound.update(old.as_ref(), new, sink);
                });
            }
            ChangeKind::Delete { relation, old } => {
                self.row(relation, position, commit, out, |bound, sink| bound.delete(old, sink));
            }
            ChangeKind::Truncate { relation } => {
                self.row(relation, position, commit, out, |bound, sink| bound.truncate(sink));
            }
            ChangeKind::Message { content } => self.message(content, position, commit, out),
        }
    }

    fn row(
        &mut self,
        relation: &Arc<Relation>,
        position: Position,
        commit: &Arc<Commit>,
        out: &mut Vec<Entry>,
        make: impl FnOnce(&Bound<'_>, &mut Sink<'_>),
    ) {
        let router = &*self.router;
        let binding = self.bindings.get(relation, || {
            let (number, rule) = router.rule(&relation.name)?;
            Some(Binding::new(number, rule, relation))
        });
        let Some((binding, rule)) = binding.and_then(|b| Some((b, router.rules.get(b.rule)?))) else {
            return;
        };
        let bound = Bound { rule, binding, relation, bytes_max: router.config.event_bytes_max };
        make(&bound, &mut Sink { position, commit, scratch: &mut self.scratch, out });
    }

    fn message(
        &mut self,
        content: &bytes::Bytes,
        position: Position,
        commit: &Arc<Commit>,
        out: &mut Vec<Entry>,
    ) {
        let message = match message::parse(content, self.router.config.event_bytes_max) {
            Ok(message) => message,
            Err(reason) => return self.router.notices.message(reason),
        };
        if message.once && !self.once.first(commit.xid, &message.topic, &content[message.body..]) {
            return;
        }
        if message.too_large {
            self.router.notices.message(Reason::MessageTooLarge);
        }
        out.push(Entry::Event(Event {
            position,
            topic: message.topic,
            op: Op::Message,
            data: message.data,
            commit: Some(Arc::clone(commit)),
            unchanged: [].into(),
            omitted: if message.too_large { message::omitted() } else { [].into() },
            partial: false,
            state: None,
        }));
    }
}
