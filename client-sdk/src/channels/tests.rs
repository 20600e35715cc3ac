//! Listening without brokers, to a Redis that is none.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::timeout;
use walcast_wire::{Cursor, Epoch, Position, ResetReason};

use super::inbox::{Inbox, Outlet, inbox};
use super::link::{Answer, Ask, Dial, Line};
use super::names::Names;
use super::{RedisSubscriber, RedisUpdates};
use crate::{Error, Update};

type Meta = [Option<String>; 3];

/// Connections in their order, and what each answers; behind the last one it never connects again.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<VecDeque<(Outlet, Meta)>>>);

struct Answers(Meta);

impl Fake {
    /// The next connection.
    fn line(&self, meta: Meta) -> Inbox {
        let (inbox, outlet) = inbox();
        self.0.lock().unwrap().push_back((outlet, meta));
        inbox
    }

    fn updates(&self, topics: &[&str]) -> RedisUpdates {
        RedisSubscriber::over(Box::new(self.clone()), "orders".to_owned(), topics).stream()
    }
}

impl Dial for Fake {
    fn open(&self, _: &Names) -> Answer<Line> {
        let fake = self.clone();
        Box::pin(async move {
            let line = fake.0.lock().unwrap().pop_front();
            match line {
                Some((outlet, meta)) => Ok(Line::new(outlet, Arc::new(Answers(meta)))),
                None => pending().await,
            }
        })
    }
}

impl Ask for Answers {
    fn meta(&self, key: &str) -> Answer<Meta> {
        assert_eq!(key, "walcast:{orders}:meta");
        let meta = self.0.clone();
        Box::pin(async move { Ok(meta) })
    }

    fn ping(&self) -> Answer<()> {
        Box::pin(pending())
    }
}

fn head(major: u64) -> Meta {
    let head = format!("{major:020}-{:020}", 0);
    ["1".to_owned(), "00000000000000ab".to_owned(), head].map(Some)
}

fn cursor(epoch: u64, major: u64) -> Cursor {
    Cursor::new(Epoch(epoch), Position::new(major, 0))
}

fn tell(inbox: &Inbox, epoch: u64, major: u64, topic: &str) {
    let cursor = cursor(epoch, major);
    inbox.put(format!(r#"{{"cursor":"{cursor}","topic":"{topic}","op":"message","data":{major}}}"#).into());
}

async fn next(updates: &mut RedisUpdates) -> Result<Update, Error> {
    timeout(Duration::from_secs(60), updates.next()).await.unwrap().unwrap()
}

async fn event(updates: &mut RedisUpdates) -> String {
    match next(updates).await.unwrap() {
        Update::Event(event) => format!("{} {}", event.topic, event.data),
        Update::Reset(reset) => panic!("{reset:?}"),
    }
}

#[tokio::test]
async fn it_begins_where_redis_is_and_hands_on_what_was_asked_for_once() {
    let redis = Fake::default();
    let line = redis.line(head(5));
    for (major, topic) in [(5, "vm/a"), (6, "vm/a"), (6, "vm/a"), (6, "vm/b"), (7, "vm/a/deep"), (8, "jobs")]
    {
        tell(&line, 0xAB, major, topic);
    }
    line.put(b"of somebody else".to_vec());
    let mut updates = redis.updates(&["vm/*", "jobs"]);
    for expected in ["vm/a 6", "vm/b 6", "jobs 8"] {
        assert_eq!(event(&mut updates).await, expected);
    }
    let before = Cursor::new(Epoch(0xAB), Position::new(8, 0).predecessor());
    assert_eq!(updates.cursor(), Some(before));
}

#[tokio::test]
async fn a_cut_speaks_where_something_may_be_missing() {
    let redis = Fake::default();
    let first = redis.line(head(5));
    tell(&first, 0xAB, 6, "a");
    first.close();
    let second = redis.line(head(9));
    tell(&second, 0xAB, 10, "a");
    let dial = Box::new(redis.clone());
    let subscriber = RedisSubscriber::over(dial, "orders".to_owned(), ["a"]).after(cursor(0xAB, 5));
    let mut updates = subscriber.stream();
    // The log did not move since that place.
    assert_eq!(event(&mut updates).await, "a 6");
    match next(&mut updates).await.unwrap() {
        Update::Reset(reset) => {
            assert_eq!(reset.reason, ResetReason::Gap);
            assert!(
                reset.resume.position < Position::new(6, 0) && reset.resume.position > Position::new(5, 0)
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(event(&mut updates).await, "a 10");
}

#[tokio::test]
async fn another_order_speaks() {
    let redis = Fake::default();
    let line = redis.line([None, None, None]);
    tell(&line, 0xAB, 6, "a");
    tell(&line, 0xCD, 3, "a");
    let mut updates = redis.updates(&["a"]);
    assert_eq!(event(&mut updates).await, "a 6");
    match next(&mut updates).await.unwrap() {
        Update::Reset(reset) => assert_eq!(reset.reason, ResetReason::EpochChanged),
        other => panic!("{other:?}"),
    }
    assert_eq!(event(&mut updates).await, "a 3");
}

#[tokio::test]
async fn what_cannot_mend_ends_it() {
    let redis = Fake::default();
    let mut meta = head(5);
    meta[0] = Some("2".to_owned());
    let _line = redis.line(meta);
    let mut updates = redis.updates(&["a"]);
    let error = next(&mut updates).await.unwrap_err();
    assert!(matches!(&error, Error::Redis { reason } if reason.contains("version 2")), "{error}");
    assert!(updates.next().await.is_none());
    assert!(matches!(next(&mut redis.updates(&["a//b"])).await, Err(Error::Topic { .. })));
    assert!(matches!(next(&mut redis.updates(&[])).await, Err(Error::Request(_))));
}
