//! Topics of which what was told does not hold, since the rules changed or a seed knew better: who followed them
//! begins anew.
//!
//! A rule that changes tells nobody of the rows that are no members any more. So its topics get a floor of their
//! own. It lies at a position that no cursor can have yet, or those who were told before could not be told
//! from those who were told after.

use walcast_wire::{Position, TopicPattern};

use super::Batch;
use super::page::Remark;

/// Floors kept; beyond it the two oldest become one.
const FLOORS_MAX: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Withdrawn {
    /// Waits for a major number above this one.
    pending: Option<(Position, Vec<TopicPattern>)>,
    /// In order.
    floors: Vec<(Position, Vec<TopicPattern>)>,
}

impl Withdrawn {
    /// What was told of these is void. Cursors up to `newest` may exist.
    pub(super) fn withdraw(&mut self, newest: Position, topics: impl IntoIterator<Item = TopicPattern>) {
        let (above, pending) = self.pending.get_or_insert_default();
        *above = newest.max(*above);
        pending.extend(topics);
    }

    /// Gives what is withdrawn its floor, if this batch goes on far enough; then how others are told.
    pub(super) fn place(&mut self, batch: &Batch) -> Option<(Position, Remark)> {
        let (above, _) = self.pending.as_ref()?;
        let major = above.major;
        let beyond = |position: &Position| position.major > major;
        let next = batch.entries.iter().map(|entry| Position::before(entry.position().major)).find(beyond);
        let floor = next.or(Some(batch.upto).filter(beyond))?;
        let (_, topics) = self.pending.take()?;
        self.floors.push((floor, topics.clone()));
        self.bound();
        Some((floor, Remark::Withdrawn(floor, topics)))
    }

    fn bound(&mut self) {
        if self.floors.len() > FLOORS_MAX {
            let (_, topics) = self.floors.remove(0);
            self.floors[0].1.extend(topics);
        }
        for (_, topics) in &mut self.floors {
            topics.sort_unstable();
            topics.dedup();
        }
    }

    /// Floors at or below that of all history say nothing more.
    pub(super) fn forget(&mut self, floor: Position) {
        self.floors.retain(|(own, _)| *own > floor);
    }

    /// Where, above `position`, the newest thing ends that is void of what was told of these topics; else `position`.
    pub(super) fn floor_of(&self, topics: &[TopicPattern], position: Position) -> Position {
        let overlap = |withdrawn: &[TopicPattern]| {
            withdrawn.iter().any(|withdrawn| topics.iter().any(|topic| withdrawn.overlaps(topic)))
        };
        let mut above = self.floors.iter().rev().take_while(|(floor, _)| *floor > position);
        above.find(|(_, topics)| overlap(topics)).map_or(position, |(floor, _)| *floor)
    }

    /// As others are told of them.
    pub(super) fn remarks(&self) -> Vec<(Position, Remark)> {
        let remark = |(floor, topics): &(Position, Vec<TopicPattern>)| {
            (*floor, Remark::Withdrawn(*floor, topics.clone()))
        };
        self.floors.iter().map(remark).collect()
    }

    /// Takes what another hub has withdrawn; whether that is news.
    pub(super) fn take(&mut self, floor: Position, topics: &[TopicPattern]) -> bool {
        let place = self.floors.partition_point(|(own, _)| *own < floor);
        if self.floors.get(place).is_some_and(|(own, told)| *own == floor && *told == topics) {
            return false;
        }
        self.floors.insert(place, (floor, topics.to_vec()));
        self.bound();
        true
    }

    /// Something waits for the log to go on.
    pub(super) fn waits(&self) -> bool {
        self.pending.is_some()
    }

    /// The newest floor.
    pub(super) fn newest(&self) -> Position {
        self.floors.last().map_or(Position::ZERO, |floor| floor.0)
    }
}
