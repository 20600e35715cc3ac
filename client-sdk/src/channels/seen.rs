//! What was handed out, so that nothing is twice.
//!
//! Events of one unit share a cursor, and Redis tells each of them by itself, without a word at the unit's end. So of the
//! last unit it is known which topics came, and not whether these are all.

use walcast_wire::{Cursor, Epoch, Op, Position, Topic};

use crate::Event;

/// How far events were handed out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    place: Option<Cursor>,
    /// Those that came of the unit at `place`; `None` if all of it did.
    topics: Option<Vec<Topic>>,
}

/// Whether an event is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    New,
    Known,
    /// It is of another order: nobody knows what is between.
    Elsewhere,
}

impl Seen {
    /// Everything up to there.
    pub(crate) fn all(place: Option<Cursor>) -> Self {
        Self { place, topics: None }
    }

    /// Everything up to there, and of what these are the last, what came of it: brokers tell units event by event, and
    /// it may be known of more of them than of the place that there is nothing before.
    pub(crate) fn all_and(place: Option<Cursor>, last: Self) -> Self {
        let behind = last.place.is_some_and(|last| {
            place.is_none_or(|place| place.epoch == last.epoch && place.position < last.position)
        });
        if behind { last } else { Self::all(place) }
    }

    /// From where the rest is asked for.
    pub(crate) fn place(&self) -> Option<Cursor> {
        let place = self.place?;
        Some(match &self.topics {
            None => place,
            Some(_) => Cursor::new(place.epoch, place.position.predecessor()),
        })
    }

    /// Whether nothing can have come up to `head` that is not known.
    pub(crate) fn reaches(&self, head: Cursor) -> bool {
        self.topics.is_none() && reached(self.place, head)
    }

    /// Takes an event of a channel.
    pub(crate) fn take(&mut self, event: &Event) -> Verdict {
        let topic = || event.topic.clone();
        match self.place {
            Some(place) if place.epoch != event.cursor.epoch => return Verdict::Elsewhere,
            Some(place) if event.cursor.position < place.position => return Verdict::Known,
            Some(place) if event.cursor.position == place.position => match &mut self.topics {
                None => return Verdict::Known,
                Some(topics) if topics.contains(&event.topic) => return Verdict::Known,
                Some(topics) => topics.push(topic()),
            },
            _ => (self.place, self.topics) = (Some(event.cursor), Some(vec![topic()])),
        }
        Verdict::New
    }

    /// Whether an event that was asked for by [`place`](Self::place) came before.
    pub(crate) fn knows(&self, event: &Event) -> bool {
        let of_the_unit = self.topics.as_ref().is_some_and(|topics| topics.contains(&event.topic));
        of_the_unit && event.op != Op::Snapshot && self.place == Some(event.cursor)
    }
}

/// Whether a place is `head` or behind it.
pub(crate) fn reached(place: Option<Cursor>, head: Cursor) -> bool {
    place.is_some_and(|place| place.epoch == head.epoch && place.position >= head.position)
}

/// Reads what Redis holds of how far its log goes: an epoch and a position.
pub(crate) fn head(epoch: &str, position: &str) -> Option<Cursor> {
    let (major, ordinal) = position.split_once('-')?;
    let position = Position::new(major.parse().ok()?, ordinal.parse().ok()?);
    Some(Cursor::new(Epoch(u64::from_str_radix(epoch, 16).ok()?), position))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(major: u64) -> Cursor {
        Cursor::new(Epoch(0xAB), Position::new(major, 2))
    }

    fn event(cursor: Cursor, topic: &str, op: &str) -> Event {
        let json = format!(r#"{{"cursor":"{cursor}","topic":"{topic}","op":"{op}","data":1}}"#);
        serde_json::from_str(&json).unwrap()
    }

    fn take(seen: &mut Seen, major: u64, topic: &str) -> Verdict {
        seen.take(&event(cursor(major), topic, "update"))
    }

    #[test]
    fn nothing_is_twice_and_a_unit_is_whole() {
        let mut seen = Seen::default();
        for (major, topic, expected) in [
            (5, "a", Verdict::New),
            (5, "a", Verdict::Known),
            (5, "b", Verdict::New),
            (5, "b", Verdict::Known),
            (7, "a", Verdict::New),
            (5, "c", Verdict::Known),
            (7, "b", Verdict::New),
        ] {
            assert_eq!(take(&mut seen, major, topic), expected, "{major} {topic}");
        }
        let other = Cursor::new(Epoch(1), Position::new(9, 1));
        assert_eq!(seen.take(&event(other, "a", "update")), Verdict::Elsewhere);
    }

    #[test]
    fn the_rest_of_a_unit_is_asked_for_and_what_came_of_it_is_known() {
        let mut seen = Seen::all(Some(cursor(5)));
        assert_eq!(seen.place(), Some(cursor(5)));
        assert!(seen.reaches(cursor(5)) && !seen.reaches(cursor(6)));
        assert_eq!(take(&mut seen, 5, "a"), Verdict::Known);
        take(&mut seen, 6, "a");
        assert!(!seen.reaches(cursor(6)));
        assert_eq!(seen.place(), Some(Cursor::new(Epoch(0xAB), Position::new(6, 1))));
        assert!(seen.knows(&event(cursor(6), "a", "update")));
        assert!(!seen.knows(&event(cursor(6), "b", "update")));
        assert!(!seen.knows(&event(cursor(6), "a", "snapshot")));
        assert!(!seen.knows(&event(cursor(7), "a", "update")));
    }

    #[test]
    fn a_unit_that_is_told_in_part_behind_the_place_is_known_in_part() {
        let mut last = Seen::default();
        take(&mut last, 6, "a");
        take(&mut last, 7, "a");
        for place in [None, Some(cursor(5)), Some(cursor(6))] {
            let mut seen = Seen::all_and(place, last.clone());
            assert_eq!(take(&mut seen, 6, "b"), Verdict::Known, "{place:?}");
            assert_eq!(take(&mut seen, 7, "a"), Verdict::Known, "{place:?}");
            assert_eq!(take(&mut seen, 7, "b"), Verdict::New, "{place:?}");
        }
        let mut seen = Seen::all_and(Some(cursor(7)), last);
        assert_eq!(take(&mut seen, 7, "b"), Verdict::Known);
        let mut seen = Seen::all_and(Some(cursor(5)), Seen::default());
        assert_eq!(take(&mut seen, 6, "a"), Verdict::New);
    }

    #[test]
    fn heads() {
        let text = "00000000000024373704-00000000000000000002";
        assert_eq!(
            head("00000000000000ab", text),
            Some(Cursor::new(Epoch(0xAB), Position::new(24_373_704, 2)))
        );
        assert_eq!(head("x", text), None);
        assert_eq!(head("ab", "1"), None);
        let other = Cursor::new(Epoch(1), Position::new(9, 1));
        assert!(!reached(Some(cursor(5)), other) && !reached(None, other));
    }
}
