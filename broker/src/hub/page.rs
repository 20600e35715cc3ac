//! What a hub made of what it took in, as plain data for the hubs of other nodes.
//!
//! A batch says what was routed; only the hub that holds the current values knows which of it is told, and of
//! whom. So what travels between nodes is the outcome: encoded events, and what holds beside them.

use std::sync::Arc;

use bytes::Bytes;
use walcast_wire::{Epoch, Position, Topic, TopicPattern};

use super::Encoded;

/// A claim about an interval: `events` is everything told in `(after, upto]` of `epoch`.
#[derive(Clone, Debug)]
pub struct Page {
    /// The number line.
    pub epoch: Epoch,
    /// Exclusive start.
    pub after: Position,
    /// Inclusive end; equal to `after` where there are only remarks.
    pub upto: Position,
    /// What holds from here on, said before the events.
    pub remarks: Vec<Remark>,
    /// In order; all events of one position are in one page.
    pub events: Vec<Arc<Encoded>>,
}

/// What holds beside events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// Of what lies up to here some is missing or void: whoever stands before it begins anew.
    Gap(Position),
    /// What was told of these topics up to here is void.
    Withdrawn(Position, Vec<TopicPattern>),
    /// Current values may differ from what events told: none that was fetched before holds.
    Values,
}

/// A page on its way out, with what it does to the current values that are shared.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// What followers are told.
    pub page: Page,
    /// Nothing that was carried before is to be kept: the line begins at [`Page::after`].
    pub begins: bool,
    /// Everything up to here, inclusive, need not be kept for followers.
    pub floor: Position,
    /// Values that changed, each topic once; `None`: there is none any more.
    pub values: Vec<(Topic, Option<Bytes>)>,
    /// Topics of which the shared values do not hold, as of [`Page::upto`].
    pub inexact: Vec<TopicPattern>,
}

/// All current values, as of a position.
#[derive(Clone, Debug)]
pub struct AllValues {
    /// The number line.
    pub epoch: Epoch,
    /// As of here.
    pub at: Position,
    /// Each as an encoded event, `op` snapshot.
    pub values: super::CurrentValues,
    /// Topics of which they still do not hold.
    pub inexact: Vec<TopicPattern>,
}

/// What shared values answer to a question.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The number line.
    pub epoch: Epoch,
    /// From here on values of patterns were read, which takes a while: each holds at some position from here to `at`.
    /// Who stands behind it may have been told already what some of them do not show.
    pub since: Position,
    /// Values of topics hold at this position. Who uses any has to have come here.
    pub at: Position,
    /// Topics of which they do not hold.
    pub inexact: Vec<TopicPattern>,
    /// By what was asked.
    pub values: Vec<(TopicPattern, Vec<Arc<Encoded>>)>,
}
