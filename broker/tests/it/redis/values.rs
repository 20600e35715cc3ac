//! What is promised of current values: of one moment where that is said, marked where they do not hold, and replaced
//! as a whole.

use std::sync::Arc;

use bytes::Bytes;
use walcast::backbone::redis::{Asker, Place, RedisError, Writer};
use walcast::event::Fence;
use walcast::event::{Effect, Event};
use walcast::hub::page::{AllValues, Answer};
use walcast::hub::{Delivery, From};
use walcast_wire::{Epoch, Op, Position, TopicPattern};

use super::{EPOCH, FENCE, Lab, SOURCE, at, begins, page, value};
use crate::edge::{self, Edge, state};
use crate::wait::within;

fn asker(lab: &Lab) -> Asker {
    Asker::new(&lab.config(), SOURCE).unwrap()
}

fn patterns(texts: &[&str]) -> Vec<TopicPattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

async fn ask(asker: &Asker, topics: &[&str]) -> Answer {
    within("values", asker.values(&patterns(topics))).await.unwrap()
}

/// By what was asked, the topics that have a value, and where it is from.
fn shown(answer: &Answer) -> Vec<(String, Vec<(String, Position)>)> {
    let of = |values: &Vec<Arc<walcast::hub::Encoded>>| {
        values.iter().map(|value| (value.topic().to_string(), value.position())).collect()
    };
    answer.values.iter().map(|(pattern, values)| (pattern.to_string(), of(values))).collect()
}

/// A log at 7-1 with a value of each of these topics.
async fn filled(lab: &Lab, topics: &[&str]) -> Writer {
    let mut writer = lab.leader().await;
    let mut first = begins(at(6, 0), at(7, 1));
    let values = topics.iter().map(|topic| (topic.parse().unwrap(), Some(value(at(7, 1), topic))));
    first.values.extend(values);
    writer.append(&first).await.unwrap();
    writer
}

#[tokio::test]
async fn values_are_found_by_topic_and_by_pattern() {
    let lab = Lab::start().await;
    let topics = ["vm/a", "vm/b", "vm/a/disk", "größe/[x]-^1", "größe/[y]-^1", "host"];
    let mut writer = filled(&lab, &topics).await;
    let asker = asker(&lab);
    let asked = ["host", "vm/*", "none", "vm/**", "größe/[x]-^1", "größe/*", "*/b", "none/**"];
    let answer = ask(&asker, &asked).await;
    assert_eq!((answer.epoch, answer.at, &answer.inexact), (EPOCH, at(7, 1), &vec![]));
    let expected: [(&str, &[&str]); 8] = [
        ("host", &["host"]),
        ("vm/*", &["vm/a", "vm/b"]),
        ("none", &[]),
        ("vm/**", &["vm/a", "vm/a/disk", "vm/b"]),
        ("größe/[x]-^1", &["größe/[x]-^1"]),
        ("größe/*", &["größe/[x]-^1", "größe/[y]-^1"]),
        ("*/b", &["vm/b"]),
        ("none/**", &[]),
    ];
    let topics =
        |topics: &[&str]| topics.iter().map(|topic| ((*topic).to_owned(), at(7, 1))).collect::<Vec<_>>();
    let expected = expected.map(|(pattern, found)| (pattern.to_owned(), topics(found)));
    assert_eq!(shown(&answer), expected);
    assert_eq!(answer.values[0].1[0].json(), value(at(7, 1), "host"));

    // They follow the log.
    let mut next = page(at(7, 1), at(8, 1));
    next.values =
        vec![("vm/a".parse().unwrap(), Some(value(at(8, 1), "vm/a"))), ("vm/b".parse().unwrap(), None)];
    next.inexact = patterns(&["host", "x/**"]);
    writer.append(&next).await.unwrap();
    let answer = ask(&asker, &["vm/*", "vm/b"]).await;
    assert_eq!((answer.at, answer.inexact.clone()), (at(8, 1), next.inexact.clone()));
    assert_eq!(shown(&answer)[0].1, [("vm/a".to_owned(), at(8, 1))]);
    assert_eq!(shown(&answer)[1].1, []);
    // Who has claimed the log has not yet said that they hold.
    writer.claim(Fence::new(1, 101)).await.unwrap();
    assert_eq!(ask(&asker, &["host"]).await.inexact, patterns(&["**"]));
}

#[tokio::test]
async fn a_scan_goes_on_while_values_change() {
    const STILL: usize = 3_000;
    let lab = Lab::start().await;
    let still: Vec<String> = (0..STILL).map(|n| format!("still/{n}")).collect();
    let topics: Vec<&str> = still.iter().map(String::as_str).collect();
    let mut writer = filled(&lab, &topics).await;
    let changing = tokio::spawn(async move {
        let mut sent = 0;
        for n in 7.. {
            let mut next = page(at(n, 1), at(n + 1, 1));
            // Enough of them that the hash is moved to a larger table, and back.
            let many = (0..500).map(|m| format!("moving/{m}"));
            let of = |topic: String| {
                let value = (n % 2 == 0).then(|| value(at(n + 1, 1), &topic));
                (topic.parse().unwrap(), value)
            };
            next.values.extend(many.map(of));
            writer.append(&next).await.unwrap();
            sent += 1;
            if sent == 60 {
                return at(n + 1, 1);
            }
        }
        unreachable!()
    });
    let asker = asker(&lab);
    let (mut last, mut rounds) = (at(7, 1), 0);
    while !changing.is_finished() || rounds == 0 {
        let answer = ask(&asker, &["**", "still/7"]).await;
        assert!(answer.at >= last);
        (last, rounds) = (answer.at, rounds + 1);
        let mut found: Vec<_> = answer.values[0].1.iter().map(|value| value.topic().clone()).collect();
        assert_eq!(found.iter().filter(|topic| topic.as_str().starts_with("still/")).count(), STILL);
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), answer.values[0].1.len());
        assert!(answer.values[0].1.iter().all(|value| value.position() <= answer.at));
        assert_eq!(answer.values[1].1.len(), 1);
    }
    let end = within("the writer", changing).await.unwrap();
    assert_eq!(ask(&asker, &["none"]).await.at, end);
}

#[tokio::test]
async fn values_that_were_lost_are_not_taken_for_none() {
    let lab = Lab::start().await;
    let mut writer = filled(&lab, &["vm/a"]).await;
    let asker = asker(&lab);
    let place = Place { epoch: EPOCH, head: at(7, 1) };
    assert_eq!(writer.check().await, Ok(Some(place)));
    let _: () = lab.say("DEL walcast:{orders}:00000000000000ab:state").await;
    for topics in [["vm/a"], ["vm/*"]] {
        let answer = ask(&asker, &topics).await;
        assert_eq!((answer.at, answer.inexact), (at(7, 1), patterns(&["**"])));
    }
    assert_eq!(writer.check().await, Ok(None));
    // Nor once there is one again.
    let mut next = page(at(7, 1), at(8, 1));
    next.values.push(("vm/a".parse().unwrap(), Some(value(at(8, 1), "vm/a"))));
    writer.append(&next).await.unwrap();
    assert_eq!(ask(&asker, &["vm/a"]).await.inexact, patterns(&["**"]));
    assert_eq!(writer.check().await, Ok(None));
    let _: () = lab.say("FLUSHALL").await;
    assert_eq!(writer.check().await, Ok(None));
    let asked = within("an answer", asker.values(&patterns(&["vm/*"]))).await;
    assert_eq!(asked.unwrap_err(), RedisError::Moved(None));
}

/// All values of a hub, as the leader has them.
pub(super) async fn all(edge: &Edge) -> AllValues {
    let mut waiting = edge.hub.subscribe(patterns(&["**"]), From::Current).unwrap();
    let Delivery::Values(values) = within("values", waiting.next(1)).await else { panic!("no values") };
    AllValues { epoch: edge::EPOCH, at: edge.hub.head().unwrap().position, values, inexact: vec![] }
}

fn put(topic: &str, data: &str) -> Event {
    state(topic, data, Op::Update, Effect::Put)
}

#[tokio::test]
async fn all_values_are_replaced_at_once() {
    const MANY: u64 = 2_500;
    let lab = Lab::start().await;
    let edge = Edge::start().await;
    let events = |data: &str| (1..=MANY).map(|n| (n, put(&format!("vm/{n}"), data))).collect::<Vec<_>>();
    let old = edge.commit(events("\"old\"")).position;
    let old_values = all(&edge).await;
    // Large enough to go in several parts by their size, too.
    let new = edge.commit(events(&format!("{:?}", "new".repeat(500)))).position;
    let new_values = all(&edge).await;

    let mut writer = lab.leader().await;
    let mut first = begins(Position::ZERO, old);
    (first.page.epoch, first.page.events) = (edge::EPOCH, vec![]);
    writer.append(&first).await.unwrap();
    let mut stray = begins(old, old);
    stray.begins = false;
    stray.page.epoch = edge::EPOCH;
    stray.values.push(("stray".parse().unwrap(), Some(value(at(1, 1), "stray"))));
    writer.append(&stray).await.unwrap();
    writer.put_all(old_values.clone()).await.unwrap();
    let asker = asker(&lab);
    let answer = ask(&asker, &["stray", "vm/**"]).await;
    assert_eq!((answer.values[0].1.len(), answer.values[1].1.len() as u64), (0, MANY));
    let sent: Vec<Bytes> = old_values.values.clone().map(|value| value.json()).collect();
    let mut found: Vec<_> = answer.values[1].1.iter().map(|value| (value.position(), value.json())).collect();
    found.sort_unstable();
    assert_eq!(found.into_iter().map(|(_, json)| json).collect::<Vec<_>>(), sent);
    assert_eq!(writer.check().await, Ok(Some(Place { epoch: edge::EPOCH, head: old })));

    // Of another place, or of another epoch: nothing of them is to be seen.
    let place = Place { epoch: edge::EPOCH, head: old };
    let before = lab.dump().await;
    let moved = Err(RedisError::Moved(Some(place)));
    assert_eq!(writer.put_all(new_values.clone()).await, moved);
    let mut after = lab.dump().await;
    assert!(after.remove("walcast:{orders}:0000000000000001:state:new").is_some());
    assert_eq!(after, before);
    assert_eq!(writer.put_all(AllValues { epoch: EPOCH, ..old_values.clone() }).await, moved);

    // Whoever asks meanwhile finds all of the old or all of the new.
    let mut next = page(old, new);
    (next.page.epoch, next.page.events) = (edge::EPOCH, vec![]);
    next.inexact = patterns(&["vm/**"]);
    writer.append(&next).await.unwrap();
    let putting = tokio::spawn(async move { (writer.put_all(new_values).await, writer) });
    let asked: Vec<String> = (1..=MANY).map(|n| format!("vm/{n}")).collect();
    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    loop {
        let done = putting.is_finished();
        let answer = ask(&asker, &asked).await;
        let fresh = answer.values.iter().filter(|(_, values)| values[0].position() > old).count() as u64;
        let whole = if answer.inexact.is_empty() { MANY } else { 0 };
        assert_eq!(fresh, whole);
        if done {
            assert_eq!(fresh, MANY);
            break;
        }
    }
    let (put, mut writer) = within("all values", putting).await.unwrap();
    put.unwrap();
    assert!(!lab.keys().await.iter().any(|key| key.ends_with(":new")));

    // A leader that is none any more changes nothing, not even beside.
    let mut later = lab.writer().await;
    later.claim(Fence::new(1, 101)).await.unwrap();
    let before = lab.dump().await;
    let fenced = Err(RedisError::Fenced { ours: FENCE, theirs: Fence::new(1, 101) });
    assert_eq!(writer.put_all(old_values).await, fenced);
    assert_eq!(writer.check().await, Err(RedisError::Fenced { ours: FENCE, theirs: Fence::new(1, 101) }));
    assert_eq!(lab.dump().await, before);
}

#[tokio::test]
async fn no_values_at_all_are_values_too() {
    let lab = Lab::start().await;
    let edge = Edge::start().await;
    edge.put("vm/a", "1");
    let mut none = all(&edge).await;
    assert_eq!(none.values.by_ref().count(), 1);
    let head = none.at;
    let mut writer = lab.leader().await;
    let mut first = begins(head, head);
    first.page.epoch = edge::EPOCH;
    first.values.push(("vm/a".parse().unwrap(), Some(value(at(1, 1), "vm/a"))));
    first.inexact = patterns(&["**"]);
    writer.append(&first).await.unwrap();
    writer.put_all(none).await.unwrap();
    let answer = ask(&asker(&lab), &["vm/a", "**"]).await;
    assert_eq!((answer.at, answer.inexact.len()), (head, 0));
    assert!(answer.values.iter().all(|(_, values)| values.is_empty()));
    let state: Vec<(String, String)> = lab.say("HGETALL walcast:{orders}:0000000000000001:state").await;
    assert_eq!(state, [(String::new(), Epoch(1).to_string())]);
}
