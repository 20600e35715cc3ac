//! Reading from a broker as an application does.

use serde_json::Value;
use walcast_client::wire::{Event, TopicPattern};
use walcast_client::{Message, Stream};

use super::wait::within;

/// The topic of marks.
pub(crate) const MARK: &str = "test/mark";

/// A stream of events.
pub(crate) struct Follower(pub(crate) Stream);

impl Follower {
    /// The next event.
    #[track_caller]
    pub(crate) fn next(&mut self) -> impl Future<Output = Event<Value>> {
        let at = std::panic::Location::caller();
        async move {
            loop {
                match within(&format!("an event for {at}"), self.0.next()).await {
                    Ok(Some(Message::Event(event))) => return value(&event),
                    Ok(Some(Message::Subscribed { .. })) => {}
                    other => panic!("{at}: no event but {other:?}"),
                }
            }
        }
    }

    /// The next `n` events, as `topic op data`.
    pub(crate) async fn lines(&mut self, n: usize) -> Vec<String> {
        let mut lines = Vec::with_capacity(n);
        for _ in 0..n {
            lines.push(line(&self.next().await));
        }
        lines
    }
}

/// `topic op data`.
pub(crate) fn line(event: &Event<Value>) -> String {
    format!("{} {} {}", event.topic, event.op.as_str(), event.data)
}

/// The event with its data parsed.
pub(crate) fn value(event: &Event<walcast_client::Data>) -> Event<Value> {
    serde_json::from_str(&serde_json::to_string(event).unwrap()).unwrap()
}

/// Topics as patterns.
pub(crate) fn patterns(topics: &[&str]) -> Vec<TopicPattern> {
    topics.iter().map(|topic| topic.parse().unwrap()).collect()
}
