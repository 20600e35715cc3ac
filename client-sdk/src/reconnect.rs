//! What to do after a failure: the next broker at once, and after a round of failures a pause.
//!
//! Pure: it draws random numbers, and knows no clock and no socket. A fleet that lost its brokers at the same
//! moment must not come back at the same moment, so a pause is random over its whole length.

use std::time::Duration;

use crate::Error;

/// The longest pause after the first round in which all brokers failed; it doubles with each round.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Where it stops to double.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A longer delay than this is not taken from anybody.
const HINT_MAX: Duration = Duration::from_secs(300);

/// What a failure means for the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may succeed later, or elsewhere.
    Mends,
    /// Elsewhere, perhaps; here it does not mend by itself.
    Distrusted,
    /// It is the caller's to change something.
    Lasting,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Try the next broker.
    Another,
    /// Wait, then try the next broker.
    Pause(Duration),
    /// Nothing that we could try would help.
    Never,
}

impl Verdict {
    pub(crate) fn of(error: &Error) -> Self {
        match error {
            Error::Connect { .. }
            | Error::Resolve { .. }
            | Error::Broken { .. }
            | Error::Silent { .. }
            // A page of a proxy, or half an answer.
            | Error::Protocol { .. } => Self::Mends,
            Error::Certificate { .. } => Self::Distrusted,
            Error::Problem { .. } | Error::Status { .. } => match error.status() {
                Some(408 | 429 | 500..) => Self::Mends,
                // Keys change on one broker after the other.
                Some(401 | 403) => Self::Distrusted,
                _ => Self::Lasting,
            },
            Error::Closed { .. } if error.is_unavailable() => Self::Mends,
            _ => Self::Lasting,
        }
    }
}

/// How often everything failed.
#[derive(Clone, Debug)]
pub(crate) struct Retry {
    hosts: usize,
    /// Failures in this round.
    failed: usize,
    /// Those that were [`Verdict::Distrusted`].
    distrusted: usize,
    /// Whole rounds that failed.
    rounds: u32,
    /// When the first broker of this round wants to be asked again.
    hint: Option<Duration>,
}

impl Retry {
    /// For so many brokers, at least one.
    pub(crate) fn new(hosts: usize) -> Self {
        Self { hosts, failed: 0, distrusted: 0, rounds: 0, hint: None }
    }

    /// A broker failed, or said that it goes away.
    pub(crate) fn failed(&mut self, verdict: Verdict, hint: Option<Duration>) -> Next {
        self.failed += 1;
        self.distrusted += usize::from(verdict == Verdict::Distrusted);
        self.hint = match (self.hint, hint) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        if self.failed < self.hosts {
            return Next::Another;
        }
        if self.distrusted >= self.hosts {
            return Next::Never;
        }
        let longest = PAUSE_MIN.saturating_mul(1 << self.rounds.min(16)).min(PAUSE_MAX);
        let at_least = self.hint.take().unwrap_or_default().min(HINT_MAX);
        // A proxy tells everybody the same.
        let longest = longest.max(at_least / 2);
        self.rounds += 1;
        (self.failed, self.distrusted) = (0, 0);
        Next::Pause(at_least + longest.mul_f64(rand::random_range(0.0..1.0)))
    }

    /// Something new came: pauses start small again. The round goes on, so that brokers which give a little and
    /// fail are not asked in a tight loop.
    pub(crate) fn progressed(&mut self) {
        self.rounds = 0;
    }

    /// It worked for a while: what was before is forgotten.
    pub(crate) fn recovered(&mut self) {
        *self = Self::new(self.hosts);
    }
}

#[cfg(test)]
mod tests {
    use walcast_wire::{Problem, ProblemCode};

    use super::*;

    fn fail(retry: &mut Retry, hint: Option<u64>) -> Next {
        retry.failed(Verdict::Mends, hint.map(Duration::from_secs))
    }

    fn pause(next: Next) -> Duration {
        match next {
            Next::Pause(pause) => pause,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pause_comes_after_each_round_and_doubles() {
        let mut retry = Retry::new(3);
        for round in 0..20 {
            assert_eq!((fail(&mut retry, None), fail(&mut retry, None)), (Next::Another, Next::Another));
            let longest = PAUSE_MAX.min(PAUSE_MIN * (1 << round.min(10)));
            assert!(pause(fail(&mut retry, None)) < longest, "round {round}");
        }
    }

    #[test]
    fn pauses_differ_over_their_whole_length() {
        let pauses: Vec<_> = (0..200).map(|_| pause(fail(&mut Retry::new(1), None))).collect();
        assert!(pauses.iter().any(|pause| *pause < PAUSE_MIN / 4));
        assert!(pauses.iter().any(|pause| *pause > PAUSE_MIN * 3 / 4));
    }

    #[test]
    fn the_first_broker_that_wants_to_be_asked_again_decides() {
        let mut retry = Retry::new(3);
        fail(&mut retry, Some(9));
        fail(&mut retry, Some(4));
        let waited = pause(fail(&mut retry, None));
        assert!(waited >= Duration::from_secs(4) && waited < Duration::from_secs(6), "{waited:?}");
        assert!(pause(fail(&mut Retry::new(1), Some(86_400))) < HINT_MAX * 2);
    }

    #[test]
    fn progress_shortens_the_pause_but_not_the_round() {
        let mut retry = Retry::new(2);
        for _ in 0..40 {
            assert_eq!(fail(&mut retry, None), Next::Another);
            retry.progressed();
            assert!(pause(fail(&mut retry, None)) < PAUSE_MIN * 2);
            retry.progressed();
        }
        fail(&mut retry, None);
        retry.recovered();
        assert_eq!(fail(&mut retry, None), Next::Another);
    }

    #[test]
    fn certificates_and_keys_end_it_only_if_no_other_broker_is_left() {
        let mut retry = Retry::new(2);
        let distrust = |retry: &mut Retry| retry.failed(Verdict::Distrusted, None);
        assert_eq!(distrust(&mut retry), Next::Another);
        pause(fail(&mut retry, None));
        assert_eq!(distrust(&mut retry), Next::Another);
        assert_eq!(distrust(&mut retry), Next::Never);
    }

    #[test]
    fn verdicts() {
        let address = || "a:1".to_owned();
        let check = |error: Error, expected: Verdict| assert_eq!(Verdict::of(&error), expected, "{error}");
        for (status, expected) in [
            (400, Verdict::Lasting),
            (401, Verdict::Distrusted),
            (403, Verdict::Distrusted),
            (404, Verdict::Lasting),
            (408, Verdict::Mends),
            (429, Verdict::Mends),
            (500, Verdict::Mends),
            (502, Verdict::Mends),
            (503, Verdict::Mends),
        ] {
            let (code, detail) = (None, String::new());
            check(Error::Status { address: address(), status, code, detail, retry_after: None }, expected);
            let problem = Box::new(Problem { status, ..Problem::new(ProblemCode::Internal, "") });
            check(Error::Problem { problem, retry_after: None }, expected);
        }
        check(Error::Certificate { address: address(), reason: String::new() }, Verdict::Distrusted);
        check(Error::Protocol { address: address(), reason: String::new() }, Verdict::Mends);
        check(Error::Closed { code: 1002, reason: String::new() }, Verdict::Lasting);
        check(Error::Closed { code: 4008, reason: String::new() }, Verdict::Mends);
        check(Error::TooLarge { address: address(), bytes_max: 1 }, Verdict::Lasting);
        check(Error::Request(String::new()), Verdict::Lasting);
    }
}
