//! A subscription: a cursor into the hub's history that can be awaited.
//!
//! It registers first and reads then, under one lock, so no wake-up is lost. It holds no events but those
//! current values that it still has to hand out.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use walcast_wire::{Cursor, Epoch, Position, Reset, ResetReason, Topic, TopicPattern};

use super::registry::{Waiter, WaiterId};
use super::roll::Name;
use super::{Encoded, Encoder, Hub, Inner, SubscribeError};
use crate::event::Event;
use crate::sabotage::{Fault, sabotaged};

/// Entries of history that one look goes through, so that no subscriber holds the hub for long.
const SCAN_MAX: usize = 4096;

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Current values of state topics, then what comes.
    Current,
    /// What comes.
    Now,
    /// Current values that history does not tell, then all of history.
    Earliest,
    /// What lies behind this cursor.
    After(Cursor),
}

/// What a subscription yields.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// Events, in order, never ending inside a unit (events that share a position).
    Events(Vec<Arc<Encoded>>),
    /// All current values that were asked for, if any, and that no event behind [`Subscription::cursor`] tells. Their
    /// own cursors say where they were set; from there one cannot go on.
    Values(CurrentValues),
    /// Events may be missing before what follows; the subscription goes on from `resume` by itself.
    Reset(Reset),
}

/// Current values, encoded as they are taken, so that a slow reader holds no more bytes than the hub does.
#[derive(Clone, Debug)]
pub struct CurrentValues {
    encoder: Encoder,
    values: std::vec::IntoIter<Held>,
}

/// A current value as this hub holds it, or as it was told by another one.
#[derive(Clone, Debug)]
pub(super) enum Held {
    Event(Arc<Event>),
    Encoded(Arc<Encoded>),
}

impl Held {
    fn topic(&self) -> &Topic {
        match self {
            Self::Event(event) => &event.topic,
            Self::Encoded(event) => event.topic(),
        }
    }

    fn position(&self) -> Position {
        match self {
            Self::Event(event) => event.position,
            Self::Encoded(event) => event.position(),
        }
    }

    /// About how many bytes it takes, encoded.
    fn bytes(&self) -> u64 {
        /// Cursor, time and the like, with their names.
        const AROUND: usize = 192;
        let data = match self {
            Self::Event(event) => event.data.len(),
            Self::Encoded(event) => event.data().len(),
        };
        (data + self.topic().as_str().len() + AROUND) as u64
    }
}

impl CurrentValues {
    pub(super) fn new(epoch: Epoch, mut values: Vec<Held>) -> Self {
        values.sort_unstable_by(|a, b| (a.position(), a.topic()).cmp(&(b.position(), b.topic())));
        values.dedup_by(|a, b| a.topic() == b.topic());
        Self { encoder: Encoder::new(epoch), values: values.into_iter() }
    }
}

impl Iterator for CurrentValues {
    type Item = Arc<Encoded>;

    fn next(&mut self) -> Option<Arc<Encoded>> {
        self.values.next().map(|value| match value {
            Held::Event(event) => Arc::new(self.encoder.snapshot(&event)),
            Held::Encoded(encoded) => encoded,
        })
    }
}

/// A place in the history of some topics.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    id: WaiterId,
    topics: Vec<TopicPattern>,
    epoch: Epoch,
    /// Everything up to here is delivered or does not concern it.
    position: Position,
    reset: Option<ResetReason>,
    values: Values,
    /// The cursor of the last thing that `next` returned.
    cursor: Cursor,
}

/// The current values that come before events.
#[derive(Debug)]
enum Values {
    /// To be taken as soon as they are exact.
    Wanted,
    /// To be handed out; one may be there twice, where patterns overlap.
    Taken(Vec<Held>),
    /// Handed out, or not asked for.
    Done,
}

impl Subscription {
    pub(super) fn new(
        hub: Arc<Hub>,
        inner: &mut Inner,
        mut topics: Vec<TopicPattern>,
        from: From,
    ) -> Result<Self, SubscribeError> {
        // Kept for as long as it waits.
        topics.shrink_to_fit();
        let line = inner.line.as_ref().ok_or(SubscribeError::NotStarted)?;
        let floor = line.withdrawn.floor_of(&topics, inner.history.floor());
        // During a replay `now` is where the server is, not where the replay is.
        let now = line.head.max(line.replay_until);
        let (mut epoch, mut reset) = (line.epoch, None);
        let (position, values) = match from {
            From::Current => (now, Values::Wanted),
            From::Now => (now, Values::Done),
            From::Earliest => (floor, Values::Wanted),
            From::After(cursor) if cursor.epoch == epoch && cursor.position == Position::ZERO => {
                (floor, Values::Wanted)
            }
            From::After(cursor) => {
                epoch = cursor.epoch;
                // Until our own stream begins we may know less than others were told.
                if epoch == line.epoch && cursor.position > now && !line.others_led {
                    reset = Some(ResetReason::Gap);
                }
                (cursor.position, Values::Done)
            }
        };
        let pending = position < line.head && !sabotaged(Fault::LateWaiter);
        let waiter = Waiter { pending_after: pending.then_some(position), waker: None };
        let cursor = match values {
            Values::Done => Cursor::new(epoch, position),
            _ => Cursor::new(epoch, Position::ZERO),
        };
        let id = inner.registry.add(&topics, waiter);
        Ok(Self { hub, id, topics, epoch, position, reset, values, cursor })
    }

    /// Waits until there is something and returns up to `limit` events, more only to complete a unit.
    /// Cancel safe.
    pub async fn next(&mut self, limit: usize) -> Delivery {
        poll_fn(|cx| self.poll_next(cx, limit)).await
    }

    /// Ready once current values, where they are wanted, are exact and taken.
    pub fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if matches!(self.values, Values::Done | Values::Taken(_)) {
            return Poll::Ready(());
        }
        let hub = Arc::clone(&self.hub);
        let inner = &mut *hub.inner.lock();
        if self.reset_reason(inner).is_some() || self.take_values(inner) {
            return Poll::Ready(());
        }
        park(inner, self.id, cx);
        Poll::Pending
    }

    /// Current values are wanted and not known yet: there is no cursor that would bring them again without
    /// bringing old events, too.
    #[must_use]
    pub fn unsettled(&self) -> bool {
        matches!(self.values, Values::Wanted)
    }

    /// About how many bytes the current values take that are to be handed out.
    #[must_use]
    pub fn values_bytes(&self) -> u64 {
        match &self.values {
            Values::Taken(values) => values.iter().map(Held::bytes).sum(),
            _ => 0,
        }
    }

    /// What to present to go on after what `next` returned last.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// As [`Self::cursor`], but as far on as nothing is pending.
    pub fn bookmark(&mut self) -> Cursor {
        let hub = Arc::clone(&self.hub);
        let inner = &mut *hub.inner.lock();
        if matches!(self.values, Values::Done) && self.reset_reason(inner).is_none() {
            self.cursor = Cursor::new(self.epoch, self.position);
        }
        self.cursor
    }

    /// What is subscribed to.
    #[must_use]
    pub fn topics(&self) -> &[TopicPattern] {
        &self.topics
    }

    /// Is called so from now on, where people look.
    pub fn name(&self, name: Name) {
        self.hub.inner.lock().registry.name(self.id, name, &self.topics);
    }

    /// Joins `other`, if both have handed out everything up to the head; else gives it back.
    ///
    /// # Errors
    /// Something is still pending in one of the two.
    pub fn add(&mut self, mut other: Self) -> Result<(), Self> {
        let hub = Arc::clone(&self.hub);
        let inner = &mut *hub.inner.lock();
        if !(self.caught_up(inner) && other.caught_up(inner)) {
            return Err(other);
        }
        let topics = std::mem::take(&mut other.topics);
        inner.registry.remove(other.id, &topics);
        // Its place is given up already; dropping it must not touch whoever takes the place next.
        other.id = WaiterId::MAX;
        let new: Vec<_> = topics.into_iter().filter(|topic| !self.topics.contains(topic)).collect();
        inner.registry.listen(self.id, &new);
        self.topics.extend(new);
        Ok(())
    }

    /// Stops following these.
    pub fn remove(&mut self, topics: &[TopicPattern]) {
        let mut inner = self.hub.inner.lock();
        inner.registry.unlisten(self.id, topics);
        self.topics.retain(|topic| !topics.contains(topic));
    }

    fn caught_up(&mut self, inner: &mut Inner) -> bool {
        let Some(line) = &inner.line else { return false };
        let nothing_left = matches!(self.values, Values::Done);
        let parked = inner.registry.get(self.id).is_some_and(|waiter| waiter.pending_after.is_none());
        let caught_up = nothing_left && parked && self.epoch == line.epoch && self.reset.is_none();
        if caught_up {
            self.position = self.position.max(line.head);
        }
        caught_up
    }

    fn reset_reason(&mut self, inner: &mut Inner) -> Option<ResetReason> {
        let line = inner.line.as_ref()?;
        let waiter = inner.registry.get(self.id)?;
        // Parked with nothing pending, it is where the head is, wherever the floor went meanwhile.
        match waiter.pending_after {
            Some(after) => self.position = self.position.max(after),
            // What is asked for holds from here on; were that to move, no answer would ever do.
            None if inner.follows && matches!(self.values, Values::Wanted) => {}
            None if self.epoch == line.epoch => self.position = self.position.max(line.head),
            None => {}
        }
        // Who waits for current values was told nothing yet that could be withdrawn.
        let withdrawn = !matches!(self.values, Values::Wanted)
            && line.withdrawn.floor_of(&self.topics, self.position) > self.position;
        let floor = inner.history.floor();
        self.reset.or_else(|| line.reset_reason(floor, withdrawn, self.epoch, self.position))
    }

    /// Takes current values if they are wanted and exact; whether nothing is left to be taken.
    fn take_values(&mut self, inner: &mut Inner) -> bool {
        if !matches!(self.values, Values::Wanted) {
            return true;
        }
        let Some(line) = &inner.line else { return false };
        if line.head < self.position {
            if inner.follows {
                inner.asked.wait(self.id, self.position);
            }
            return false;
        }
        let taken = if inner.follows { self.asked_for(inner, line.head) } else { self.held(inner) };
        let Some(mut values) = taken else {
            self.ask(inner);
            return false;
        };
        // Where nothing lies before the floor of these topics, it need not be told that it lies behind.
        let withdrawn = line.withdrawn.floor_of(&self.topics, self.position);
        if withdrawn > self.position
            && let (next, _) = find(inner, &self.topics, self.position, 1)
            && next.first().is_none_or(|next| next.position() > withdrawn)
        {
            self.position = withdrawn;
        }
        // What history still tells, an event will tell.
        values.retain(|value| !inner.history.has_after(value.topic().as_str(), self.position));
        self.values = if values.is_empty() { Values::Done } else { Values::Taken(values) };
        true
    }

    /// The values that this hub holds, if they are exact.
    fn held(&self, inner: &Inner) -> Option<Vec<Held>> {
        if !inner.retained.exact(&self.topics) {
            return None;
        }
        let mut values = Vec::new();
        for pattern in &self.topics {
            match pattern.as_topic() {
                Some(topic) => values.extend(inner.retained.get(topic.as_str()).cloned().map(Held::Event)),
                None => values.extend(inner.retained.matching(pattern).cloned().map(Held::Event)),
            }
        }
        Some(values)
    }

    /// The values that were answered, if all were.
    fn asked_for(&self, inner: &Inner, head: Position) -> Option<Vec<Held>> {
        let mut values = Vec::new();
        for pattern in &self.topics {
            let known = inner.asked.get(pattern, self.position, head, &inner.history)?;
            values.extend(known.iter().cloned().map(Held::Encoded));
        }
        Some(values)
    }

    /// Asks for the values that are lacking, where they have to be asked for.
    fn ask(&self, inner: &mut Inner) {
        let Some(line) = inner.line.as_ref().filter(|_| inner.follows) else { return };
        let asked = &mut inner.asked;
        for pattern in &self.topics {
            if asked.get(pattern, self.position, line.head, &inner.history).is_none() {
                asked.want(pattern, line.head);
            }
        }
        asked.wait(self.id, Position::ZERO);
    }

    /// Asks for the current values once more, as they are now, if it has handed out those of before; whether it does.
    pub fn ask_again(&mut self) -> bool {
        let hub = Arc::clone(&self.hub);
        let inner = &mut *hub.inner.lock();
        if !matches!(self.values, Values::Done) || self.reset_reason(inner).is_some() {
            return false;
        }
        let Some(head) = inner.line.as_ref().map(|line| line.head) else { return false };
        self.position = self.position.max(head);
        self.values = Values::Wanted;
        if let Some(waiter) = inner.registry.get(self.id) {
            waiter.pending_after = None;
        }
        true
    }

    /// As [`Self::next`]; the task is woken once there is something.
    pub fn poll_next(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<Delivery> {
        let values = {
            let hub = Arc::clone(&self.hub);
            let inner = &mut *hub.inner.lock();
            if let Some(reason) = self.reset_reason(inner) {
                return Poll::Ready(self.begin_again(inner, reason));
            }
            let wanted = self.unsettled();
            if !self.take_values(inner) {
                park(inner, self.id, cx);
                return Poll::Pending;
            }
            match std::mem::replace(&mut self.values, Values::Done) {
                Values::Taken(values) => values,
                // While it waited, what it would now be told of may have become void.
                _ => match self.reset_reason(inner).filter(|_| wanted) {
                    Some(reason) => return Poll::Ready(self.begin_again(inner, reason)),
                    // There are none. Said all the same where events follow: else a client that is cut behind the first
                    // of them had no cursor, and elsewhere history may begin later.
                    None if wanted && self.pending(inner) => Vec::new(),
                    None => return self.poll_events(inner, cx, limit),
                },
            }
        };
        self.cursor = Cursor::new(self.epoch, self.position);
        Poll::Ready(Delivery::Values(CurrentValues::new(self.epoch, values)))
    }

    /// There may be something behind the position.
    fn pending(&self, inner: &mut Inner) -> bool {
        inner.registry.get(self.id).is_some_and(|waiter| waiter.pending_after.is_some())
    }

    fn poll_events(&mut self, inner: &mut Inner, cx: &mut Context<'_>, limit: usize) -> Poll<Delivery> {
        let events = self.collect(inner, limit.max(1));
        if let Some(newest) = events.last() {
            self.cursor = newest.cursor();
            return Poll::Ready(Delivery::Events(events));
        }
        let Some(waiter) = inner.registry.get(self.id) else { return Poll::Pending };
        if waiter.pending_after.is_some() {
            // The look ended early; let others have the hub before the next one.
            cx.waker().wake_by_ref();
        } else {
            park(inner, self.id, cx);
        }
        Poll::Pending
    }

    fn begin_again(&mut self, inner: &mut Inner, reason: ResetReason) -> Delivery {
        let mut floor = inner.history.floor();
        if let Some(line) = &inner.line {
            self.epoch = line.epoch;
            floor = line.withdrawn.floor_of(&self.topics, floor);
        }
        if let Some(waiter) = inner.registry.get(self.id) {
            waiter.pending_after = Some(floor);
        }
        (self.position, self.values, self.reset) = (floor, Values::Wanted, None);
        self.cursor = Cursor::new(self.epoch, Position::ZERO);
        Delivery::Reset(Reset { reason, resume: self.cursor })
    }

    /// Events behind the position, up to `limit` and to the end of a unit; notes how far it looked.
    fn collect(&mut self, inner: &mut Inner, limit: usize) -> Vec<Arc<Encoded>> {
        let Some(head) = inner.line.as_ref().map(|line| line.head) else { return Vec::new() };
        let (mut events, looked_until) = find(inner, &self.topics, self.position, limit);
        let mut end = limit.min(events.len());
        while end > 0 && end < events.len() && events[end].position() == events[end - 1].position() {
            end += 1;
        }
        // Everything before the next event is dealt with.
        let until = events.get(end).map(|next| next.position().predecessor()).or(looked_until);
        events.truncate(end);
        self.position = self.position.max(until.unwrap_or(head));
        if let Some(waiter) = inner.registry.get(self.id) {
            waiter.pending_after = until.map(|_| self.position);
        }
        events
    }
}

/// Events of `topics` behind `position`: at least `limit` whole units' worth where there are as many. The
/// second value says up to where was looked, if not up to the head.
fn find(
    inner: &Inner,
    topics: &[TopicPattern],
    position: Position,
    limit: usize,
) -> (Vec<Arc<Encoded>>, Option<Position>) {
    let mut found: Vec<Arc<Encoded>> = Vec::new();
    if let [only] = topics
        && let Some(topic) = only.as_topic()
    {
        take_units(inner.history.of_topic(topic.as_str(), position), limit, &mut found);
        return (found, None);
    }
    if topics.iter().all(|topic| topic.as_topic().is_some()) {
        for topic in topics {
            take_units(inner.history.of_topic(topic.as_str(), position), limit, &mut found);
        }
        found.sort_by_key(|event| (event.position(), event.index));
        return (found, None);
    }
    let mut looked = 0_usize;
    let mut last = position;
    for event in inner.history.all(position) {
        let unit_ends = event.position() != last;
        if unit_ends && (looked >= SCAN_MAX || found.len() > limit) {
            return (found, Some(last));
        }
        if topics.iter().any(|pattern| pattern.matches(event.topic())) {
            found.push(Arc::clone(event));
        }
        (looked, last) = (looked + 1, event.position());
    }
    (found, None)
}

/// Takes whole units until there are `limit` events, and one unit more, so that the caller sees that there
/// is more.
fn take_units<'a>(
    events: impl Iterator<Item = &'a Arc<Encoded>>,
    limit: usize,
    found: &mut Vec<Arc<Encoded>>,
) {
    let (mut taken, mut beyond) = (0_usize, false);
    let mut last = None;
    for event in events {
        if taken >= limit && last != Some(event.position()) {
            if beyond {
                break;
            }
            beyond = true;
        }
        (taken, last) = (taken + 1, Some(event.position()));
        found.push(Arc::clone(event));
    }
}

fn park(inner: &mut Inner, id: WaiterId, cx: &Context<'_>) {
    if let Some(waiter) = inner.registry.get(id) {
        match &mut waiter.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => waiter.waker = Some(cx.waker().clone()),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut inner = self.hub.inner.lock();
        inner.registry.remove(self.id, &self.topics);
    }
}
