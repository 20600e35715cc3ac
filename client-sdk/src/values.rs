//! Current values, held until the place behind them is known.
//!
//! A cut among them leaves no place to go on from: asked again, the broker tells the values as they are then, and a
//! row that went away meanwhile is in neither half. So they are handed out whole or, asked again, not at all.

use walcast_wire::{Cursor, Position};

use crate::Event;

/// About what an event takes beside its data and topic.
const AROUND: usize = 256;

/// Values that came, and events right behind them.
#[derive(Debug)]
pub(crate) struct Values {
    /// What was presented when values were asked for; as long as it stands, nothing is behind them. `None`: nothing
    /// was.
    asked: Option<Cursor>,
    held: Vec<Event>,
    bytes: usize,
    bytes_max: usize,
}

impl Values {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { asked: None, held: Vec::new(), bytes: 0, bytes_max }
    }

    /// All values are told anew from `asked` on.
    pub(crate) fn again(&mut self, asked: Option<Cursor>) {
        self.asked = asked;
        self.discard();
    }

    /// The connection was cut: what is held will come again.
    pub(crate) fn discard(&mut self) {
        (self.held, self.bytes) = (Vec::new(), 0);
    }

    /// Whether `cursor` is a place behind the values.
    pub(crate) fn behind(&self, cursor: Option<Cursor>) -> bool {
        cursor.is_some_and(|cursor| cursor.position != Position::ZERO) && cursor != self.asked
    }

    /// Holds an event.
    pub(crate) fn hold(&mut self, event: Event) {
        self.bytes += event.data.get().len() + event.topic.as_str().len() + AROUND;
        self.held.push(event);
    }

    /// More is held than may be.
    pub(crate) fn too_many(&self) -> bool {
        self.bytes > self.bytes_max
    }

    /// Nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// What was held; the place behind it is known.
    pub(crate) fn take(&mut self) -> Vec<Event> {
        self.bytes = 0;
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use walcast_wire::Epoch;

    use super::*;

    fn cursor(n: u64) -> Cursor {
        Cursor::new(Epoch(1), Position::new(n, 0))
    }

    fn event() -> Event {
        let json = format!(r#"{{"cursor":"{}","topic":"a","op":"snapshot","data":"0123456789"}}"#, cursor(1));
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_place_is_behind_them_if_it_is_one_and_another_than_was_asked_from() {
        let mut values = Values::new(1 << 20);
        let check = |values: &Values, at: Option<Cursor>, expected| assert_eq!(values.behind(at), expected);
        check(&values, None, false);
        check(&values, Some(cursor(0)), false);
        check(&values, Some(cursor(5)), true);
        values.again(Some(cursor(5)));
        check(&values, Some(cursor(5)), false);
        check(&values, Some(cursor(6)), true);
    }

    #[test]
    fn they_are_bounded() {
        let mut values = Values::new(2 * (AROUND + 13));
        for _ in 0..2 {
            values.hold(event());
            values.hold(event());
            assert!(!values.too_many());
            assert_eq!(values.take().len(), 2);
        }
        for _ in 0..3 {
            values.hold(event());
        }
        assert!(values.too_many());
        values.discard();
        assert!(!values.too_many() && values.is_empty());
    }
}
