//! How long the server may be silent before the stream is connected again: longer each time in a row that this
//! brought nothing, for the server may only be slow. Pure.

use std::time::Duration;

/// The tolerance doubles so often.
const DOUBLINGS_MAX: u32 = 4;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// How often the server was silent in a row.
    silences: u32,
}

impl Patience {
    /// The silence that is tolerated.
    pub(super) fn silence_max(&self, lease: Duration) -> Duration {
        lease / 2 * 2_u32.pow(self.silences.min(DOUBLINGS_MAX))
    }

    /// The server was silent for that long.
    pub(super) fn silent(&mut self) {
        self.silences = self.silences.saturating_add(1);
    }

    /// Something came on a stream that began `age` ago. What only answers its begin proves nothing: it counts if it
    /// brought the stream on, or came when the last one would have been given up.
    pub(super) fn heard(&mut self, progress: bool, age: Duration, lease: Duration) {
        if progress || age > self.silence_max(lease) {
            self.silences = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerance_doubles_until_the_server_is_heard() {
        const LEASE: Duration = Duration::from_secs(2);
        let check = |silences: u32, heard: &[(bool, u64)], expected_seconds: u64| {
            let mut patience = Patience::default();
            (0..silences).for_each(|_| patience.silent());
            for (progress, age) in heard {
                patience.heard(*progress, Duration::from_secs(*age), LEASE);
            }
            let max = patience.silence_max(LEASE);
            assert_eq!(max, Duration::from_secs(expected_seconds), "{silences} {heard:?}");
        };
        check(0, &[], 1);
        check(1, &[], 2);
        check(3, &[], 8);
        check(9, &[], 16);
        check(3, &[(true, 0)], 1);
        check(3, &[(false, 0), (false, 8)], 8); // the answer to the begin, and then nothing new
        check(3, &[(false, 9)], 1); // an idle server that answers
    }
}
