//! Judges what clients received: loss, duplicates, order.
//!
//! A publisher numbers all messages of a run with a sequence number, and knows which of them each client must
//! receive, in which order. Clients only note what came and when; everything else happens here, afterwards,
//! so that judging costs the measurement nothing.

use std::collections::HashSet;

use memchr::memmem::Finder;

use crate::report::Checks;

/// What stands before the number in every payload.
pub const KEY: &[u8] = br#""seq":"#;

/// A message that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Which.
    pub seq: u32,
    /// When, in microseconds of the run's [`Clock`](crate::latency::Clock).
    pub at_us: u32,
}

/// Finds sequence numbers in text without parsing it.
#[derive(Clone, Debug)]
pub struct Finds(Finder<'static>);

impl Default for Finds {
    fn default() -> Self {
        Self(Finder::new(KEY))
    }
}

impl Finds {
    /// Calls `found` with every number in `text`, in order. `text` is whole: no number goes on behind it.
    pub fn all(&self, text: &[u8], mut found: impl FnMut(u32)) {
        let mut rest = text;
        while let Some(at) = self.0.find(rest) {
            rest = &rest[at + KEY.len()..];
            // Postgres writes a space behind the colon.
            let digits = rest.strip_prefix(b" ").unwrap_or(rest);
            let (seq, length) = number(digits);
            if length > 0 {
                found(seq);
            }
        }
    }
}

fn number(text: &[u8]) -> (u32, usize) {
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let value = text[..length]
        .iter()
        .fold(0u32, |value, digit| value.wrapping_mul(10).wrapping_add(u32::from(digit - b'0')));
    (value, length)
}

/// What one client received, against what it must have: `due` in their order.
#[must_use]
pub fn client(received: &[Receipt], due: impl IntoIterator<Item = u32>) -> Checks {
    let mut due = due.into_iter();
    let mut checks = Checks::default();
    // As long as all goes well, which is nearly always, nothing is allocated.
    let mut same = 0;
    let mut next = due.next();
    while let (Some(receipt), Some(seq)) = (received.get(same), next) {
        if receipt.seq != seq {
            break;
        }
        same += 1;
        next = due.next();
    }
    checks.expected = same as u64;
    checks.delivered = same as u64;
    let left: Vec<u32> = next.into_iter().chain(due).collect();
    checks.expected += left.len() as u64;
    if same == received.len() {
        checks.lost = left.len() as u64;
        return checks;
    }
    let mut missing: HashSet<u32> = left.iter().copied().collect();
    let mut newest = received[..same].iter().map(|receipt| receipt.seq).max();
    for receipt in &received[same..] {
        if !missing.remove(&receipt.seq) {
            // Also what was never due: nothing else than a fault delivers it.
            checks.duplicates += 1;
            continue;
        }
        checks.delivered += 1;
        if newest.is_some_and(|newest| newest > receipt.seq) {
            checks.disordered += 1;
        }
        newest = newest.max(Some(receipt.seq));
    }
    checks.lost = missing.len() as u64;
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judged() {
        let check = |received: &[u32], due: &[u32], expected: (u64, u64, u64, u64, u64)| {
            let received: Vec<_> = received.iter().map(|seq| Receipt { seq: *seq, at_us: 0 }).collect();
            let checks = client(&received, due.iter().copied());
            let found =
                (checks.expected, checks.delivered, checks.lost, checks.duplicates, checks.disordered);
            assert_eq!(found, expected, "{received:?} of {due:?}");
        };
        check(&[], &[], (0, 0, 0, 0, 0));
        check(&[1, 2, 5], &[1, 2, 5], (3, 3, 0, 0, 0));
        check(&[1, 2], &[1, 2, 5], (3, 2, 1, 0, 0));
        check(&[1, 5], &[1, 2, 5], (3, 2, 1, 0, 0));
        check(&[1, 1, 2, 5], &[1, 2, 5], (3, 3, 0, 1, 0));
        check(&[1, 5, 2], &[1, 2, 5], (3, 3, 0, 0, 1));
        check(&[1, 2, 5, 5, 9], &[1, 2, 5], (3, 3, 0, 2, 0));
        check(&[5], &[1, 2, 5], (3, 1, 2, 0, 0));
    }

    #[test]
    fn numbers_in_text() {
        let check = |text: &str, expected: &[u32]| {
            let mut found = Vec::new();
            Finds::default().all(text.as_bytes(), |seq| found.push(seq));
            assert_eq!(found, expected, "{text}");
        };
        check("", &[]);
        check(r#"{"data":{"seq": 12},"xid":3}{"seq":4294967295}"#, &[12, u32::MAX]);
        check(r#"{"seq":null} "seq":"#, &[]);
    }
}
