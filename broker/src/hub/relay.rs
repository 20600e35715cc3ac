//! What the hubs of other nodes still lack, and its way out.
//!
//! History itself is the queue: nothing leaves it before it was carried. Beside it lie the values that events
//! changed, and remarks. Where all values became exact at once they are carried whole, behind everything that
//! lies before them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use walcast_wire::{Cursor, Epoch, Position, Topic, TopicPattern};

use super::encoded::Encoder;
use super::page::{AllValues, Outgoing, Page, Remark};
use super::subscription::{CurrentValues, Held};
use super::{Encoded, Hub, Inner};
use crate::event::Event;

/// Events of one page; more only to complete a unit.
const EVENTS_MAX: usize = 1_000;
/// Bytes of one page's events, beyond which no further unit is taken.
const BYTES_MAX: usize = 1 << 20;

/// Where nothing is told for so long, others hear that. Of a log that is bytes: who takes over begins where it stands, and
/// must not have to read again what was quiet.
const QUIET_MAX: u64 = 16 << 20;

/// What is to be carried next.
#[derive(Clone, Debug)]
pub struct Relayed {
    /// What it is.
    pub what: What,
    /// Which claim it belongs to.
    claim: u64,
    /// Which of the times that all values became exact.
    round: u64,
}

/// A page, or values.
#[derive(Clone, Debug)]
pub enum What {
    /// A page.
    Page(Outgoing),
    /// All current values.
    Values(AllValues),
}

/// A value that an event changed.
#[derive(Debug)]
struct Changed {
    position: Position,
    topic: Topic,
    value: Option<Arc<Event>>,
}

/// What others lack.
#[derive(Debug)]
pub(super) struct Relay {
    /// Counts claims; 0: nobody knows yet what others have, so nothing is carried.
    claim: u64,
    /// What was carried before is of no use: the line begins at `carried`.
    begins: bool,
    /// Others have everything up to here.
    carried: Position,
    /// Nothing lies between `carried` and here.
    empty_until: Position,
    changed: VecDeque<Changed>,
    /// All values, as of a position that is yet to be carried.
    whole: Option<(Position, Vec<Arc<Event>>)>,
    /// They are to be taken anew.
    values_due: bool,
    /// Counts the times that they were taken.
    round: u64,
    remarks: Vec<(Position, Remark)>,
    /// Of which topics it was last said that their values do not hold.
    inexact: Vec<TopicPattern>,
    waker: Option<Waker>,
    /// Who waits for room.
    blocked: Option<Waker>,
}

impl Relay {
    fn new(floor: Position) -> Self {
        Self {
            claim: 0,
            begins: false,
            carried: floor,
            empty_until: floor,
            changed: VecDeque::new(),
            whole: None,
            values_due: true,
            round: 0,
            remarks: Vec::new(),
            inexact: vec![TopicPattern::everything()],
            waker: None,
            blocked: None,
        }
    }

    /// What lies behind this must stay in history.
    pub(super) fn keep_from(&self) -> Position {
        self.empty_until
    }

    pub(super) fn changed(&mut self, position: Position, topic: Topic, value: Option<Arc<Event>>) {
        if self.claim > 0 && position > self.carried {
            self.changed.push_back(Changed { position, topic, value });
        }
    }

    /// Others are told of it with the page that comes to this position.
    pub(super) fn remark(&mut self, at: Position, remark: Remark) {
        if self.claim > 0 {
            self.remarks.push((at, remark));
        }
    }

    /// All values became exact.
    pub(super) fn settled(&mut self) {
        self.values_due = true;
    }

    /// Another line: nobody has anything of it.
    pub(super) fn begin_anew(&mut self, floor: Position, woken: &mut Vec<Waker>) {
        self.release(woken);
        *self = Self::new(floor);
    }

    /// Nobody is to wait for it any more.
    pub(super) fn release(&mut self, woken: &mut Vec<Waker>) {
        woken.extend(self.waker.take());
        woken.extend(self.blocked.take());
    }

    pub(super) fn wake(&mut self, woken: &mut Vec<Waker>) {
        woken.extend(self.waker.take());
    }
}

impl Hub {
    /// From now on the hub takes batches, and keeps what others lack until it was carried. Whether it followed another
    /// one until now, and holds no values.
    pub fn lead(&self) -> bool {
        let mut inner = self.inner.lock();
        let floor = inner.history.floor();
        inner.relay.get_or_insert_with(|| Relay::new(floor));
        inner.asked.forget();
        std::mem::replace(&mut inner.follows, false)
    }

    /// Whether it follows another one, and holds no values.
    #[must_use]
    pub fn follows(&self) -> bool {
        self.inner.lock().follows
    }

    /// Others have everything up to `place`; what to carry is made for them from now on. Whether the hub leads on a
    /// line.
    pub fn claim(&self, place: Option<Cursor>) -> bool {
        self.inner.lock().claim(place)
    }

    /// The next thing to carry; ready with `None` where the hub does not lead. The same comes again until
    /// [`Self::carried`]. One task asks.
    pub fn poll_relay(&self, cx: &mut Context<'_>) -> Poll<Option<Relayed>> {
        let (piece, claim, round) = {
            let mut inner = self.inner.lock();
            let piece = inner.outgoing();
            let Some(relay) = &mut inner.relay else { return Poll::Ready(None) };
            if relay.claim == 0 {
                return Poll::Ready(None);
            }
            let Some(piece) = piece else {
                relay.waker = Some(cx.waker().clone());
                return Poll::Pending;
            };
            (piece, relay.claim, relay.round)
        };
        Poll::Ready(Some(Relayed { what: piece.encode(), claim, round }))
    }

    /// Others have this.
    pub fn carried(&self, relayed: &Relayed, now: Instant) {
        let blocked = self.inner.lock().carried(relayed, now);
        blocked.into_iter().for_each(Waker::wake);
    }

    /// Ready once history has room for more: what others lack is not forgotten for it.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        match &mut inner.relay {
            Some(relay) if inner.history.stuck(relay.keep_from()) => {
                relay.blocked = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}

/// What is taken from the hub while it is locked, and encoded behind that.
enum Piece {
    Page {
        page: Page,
        begins: bool,
        floor: Position,
        values: Vec<(Topic, Option<Arc<Event>>)>,
        inexact: Vec<TopicPattern>,
    },
    Values {
        epoch: Epoch,
        at: Position,
        values: Vec<Arc<Event>>,
        inexact: Vec<TopicPattern>,
    },
}

impl Piece {
    fn encode(self) -> What {
        match self {
            Self::Page { page, begins, floor, values, inexact } => {
                let mut encoder = Encoder::new(page.epoch);
                // Of each topic the last counts.
                let last: HashMap<_, _> = values.into_iter().collect();
                let encode = |(topic, value): (Topic, Option<Arc<Event>>)| {
                    (topic, value.map(|value| encoder.snapshot(&value).json()))
                };
                let values = last.into_iter().map(encode).collect();
                What::Page(Outgoing { page, begins, floor, values, inexact })
            }
            Self::Values { epoch, at, values, inexact } => {
                let values = values.into_iter().map(Held::Event).collect();
                What::Values(AllValues { epoch, at, values: CurrentValues::new(epoch, values), inexact })
            }
        }
    }
}

impl Inner {
    fn claim(&mut self, place: Option<Cursor>) -> bool {
        let floor = self.history.floor();
        let Some((line, relay)) = self.line.as_ref().zip(self.relay.as_mut()) else { return false };
        let place = place.filter(|place| place.epoch == line.epoch && place.position >= floor);
        // Else somebody may have led in between, and have known less of the values.
        let goes_on = place.is_some_and(|place| relay.claim > 0 && relay.carried == place.position);
        relay.claim += 1;
        (relay.begins, relay.carried) = (place.is_none(), place.map_or(floor, |place| place.position));
        relay.empty_until = relay.carried;
        // Whoever claims marks all of them.
        relay.inexact = vec![TopicPattern::everything()];
        if !goes_on {
            relay.changed.clear();
            relay.remarks = line.withdrawn.remarks();
            relay.whole = None;
            relay.values_due = true;
        }
        self.take_values_whole();
        true
    }

    /// All values are to be carried, once they are exact and as new as what was carried.
    pub(super) fn take_values_whole(&mut self) {
        let Some((line, relay)) = self.line.as_ref().zip(self.relay.as_mut()) else { return };
        if relay.values_due && relay.claim > 0 && line.head >= relay.carried && self.retained.known() {
            relay.values_due = false;
            relay.round += 1;
            relay.whole = Some((line.head, self.retained.all()));
        }
    }

    /// What others lack, if anything can be said at all.
    fn outgoing(&mut self) -> Option<Piece> {
        let (line, relay) =
            self.line.as_ref().zip(self.relay.as_mut()).filter(|(_, relay)| relay.claim > 0)?;
        let whole = relay.whole.as_ref().map_or(Position::MAX, |(at, _)| *at);
        let end = line.head.min(whole);
        let mut inexact = self.retained.inexact();
        if relay.whole.is_some() || relay.values_due {
            // They are, but others do not have them yet.
            inexact.extend(
                relay.inexact.iter().filter(|said| !inexact.contains(said)).cloned().collect::<Vec<_>>(),
            );
        }
        let (events, upto) = page_of(self.history.all(relay.empty_until), end);
        let upto = upto.max(relay.carried);
        let mut remarks = Vec::new();
        if upto > relay.carried {
            let due = relay.remarks.iter().filter(|(at, _)| *at <= upto);
            remarks.extend(due.map(|(_, remark)| remark.clone()));
        }
        let quiet = upto.major.saturating_sub(relay.carried.major);
        let tells = !events.is_empty() || !remarks.is_empty() || quiet >= QUIET_MAX;
        if tells || relay.begins || inexact != relay.inexact {
            let after = relay.carried;
            let upto = if tells { upto } else { after };
            let values = relay.changed.iter().take_while(|changed| changed.position <= upto);
            let values = values.map(|changed| (changed.topic.clone(), changed.value.clone())).collect();
            let page = Page { epoch: line.epoch, after, upto, remarks, events };
            let floor = self.history.floor().min(upto);
            return Some(Piece::Page { page, begins: relay.begins, floor, values, inexact });
        }
        relay.empty_until = relay.empty_until.max(upto);
        let (at, values) = relay.whole.as_ref().filter(|(at, _)| upto >= *at || *at <= relay.carried)?;
        debug_assert!(relay.changed.iter().all(|changed| changed.position > *at));
        let (at, inexact) = (relay.carried, self.retained.inexact());
        Some(Piece::Values { epoch: line.epoch, at, values: values.clone(), inexact })
    }

    fn carried(&mut self, relayed: &Relayed, now: Instant) -> Option<Waker> {
        let relay = self.relay.as_mut().filter(|relay| relay.claim == relayed.claim)?;
        match &relayed.what {
            What::Page(Outgoing { page, inexact, .. }) => {
                relay.begins = false;
                relay.carried = page.upto;
                relay.empty_until = page.upto.max(relay.empty_until);
                relay.inexact.clone_from(inexact);
                if page.upto > page.after {
                    relay.remarks.retain(|(at, _)| *at > page.upto);
                }
                while relay.changed.front().is_some_and(|changed| changed.position <= page.upto) {
                    relay.changed.pop_front();
                }
            }
            What::Values(values) => {
                if relay.round == relayed.round {
                    relay.whole = None;
                }
                relay.remarks.push((relay.carried, Remark::Values));
                relay.inexact.clone_from(&values.inexact);
            }
        }
        let (blocked, keep_from) = (relay.blocked.take(), relay.keep_from());
        self.history.evict(now, keep_from);
        blocked
    }
}

/// A page's worth of these events, up to `end`, and where it ends.
fn page_of<'a>(
    events: impl Iterator<Item = &'a Arc<Encoded>>,
    end: Position,
) -> (Vec<Arc<Encoded>>, Position) {
    let mut page: Vec<Arc<Encoded>> = Vec::new();
    let mut bytes = 0;
    for event in events.take_while(|event| event.position() <= end) {
        if let Some(last) = page.last()
            && last.position() != event.position()
            && (page.len() >= EVENTS_MAX || bytes >= BYTES_MAX)
        {
            let upto = last.position();
            return (page, upto);
        }
        bytes += event.cost_bytes();
        page.push(Arc::clone(event));
    }
    (page, end)
}
