//! Waiting for what must come, with a limit that only a broken broker reaches.

use std::time::Duration;

/// Longer than anything takes that works, on a machine that does much else.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Waits for `what`, named for the one who reads the failure.
#[track_caller]
pub(crate) fn within<T>(what: &str, future: impl Future<Output = T>) -> impl Future<Output = T> {
    within_limit(LIMIT, what, future)
}

/// The same for what may take longer.
#[track_caller]
pub(crate) fn within_limit<T>(
    limit: Duration,
    what: &str,
    future: impl Future<Output = T>,
) -> impl Future<Output = T> {
    let at = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(limit, future).await {
            Ok(value) => value,
            Err(_) => panic!("{at}: not within {limit:?}: {what}"),
        }
    }
}

/// Polls until `condition` holds.
#[track_caller]
pub(crate) fn until(what: &str, condition: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    until_limit(LIMIT, what, condition)
}

/// The same for what may take longer.
#[track_caller]
pub(crate) fn until_limit(
    limit: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> bool,
) -> impl Future<Output = ()> {
    within_limit(limit, what, async move {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !condition().await {
            tick.tick().await;
        }
    })
}
