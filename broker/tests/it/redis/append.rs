//! What an append promises: all of a page or nothing, at the end of the log, by the leader.

use bytes::Bytes;
use walcast::backbone::redis::{Place, RedisError, Writer};
use walcast::event::Fence;
use walcast::hub::page::{Outgoing, Remark};
use walcast_wire::{Epoch, Position, Topic};

use super::{EPOCH, FENCE, Lab, at, begins, event_of, page, same, value};
use crate::wait::within;

fn topic(text: &str) -> Topic {
    text.parse().unwrap()
}

#[tokio::test]
async fn pages_are_read_as_they_were_appended() {
    let lab = Lab::start().await;
    let (mut writer, mut reader) = (lab.leader().await, lab.reader());
    let mut second = page(at(7, 1), at(8, 2));
    second.page.events.push(super::event(at(8, 2), "vm/größe"));
    let told =
        [Remark::Values, Remark::Gap(at(7, 0)), Remark::Withdrawn(at(7, 1), vec!["vm/*".parse().unwrap()])];
    second.page.remarks.extend(told);
    // Above what Lua's numbers can tell apart, and without an event.
    let high = at(u64::MAX - 1, u64::MAX);
    let mut last = page(high.predecessor(), high);
    last.page.events.clear();
    let pages = [begins(at(6, 0), at(7, 1)), second, page(at(8, 2), high.predecessor()), last];
    let mut stands = None;
    for sent in &pages {
        writer.append(sent).await.unwrap();
        let found = within("a page", reader.next(stands)).await.unwrap();
        same(&found, sent);
        stands = Some(walcast_wire::Cursor::new(found.epoch, found.upto));
    }
    // Who comes later finds the same.
    let (mut reader, mut stands) = (lab.reader(), None);
    for sent in &pages {
        let found = within("a page", reader.next(stands)).await.unwrap();
        same(&found, sent);
        stands = Some(walcast_wire::Cursor::new(found.epoch, found.upto));
    }
}

/// Appends, and expects that nothing at all happens.
async fn refused(lab: &Lab, writer: &mut Writer, outgoing: &Outgoing, expected: RedisError) {
    let before = lab.dump().await;
    assert_eq!(writer.append(outgoing).await, Err(expected));
    assert_eq!(lab.dump().await, before);
}

#[tokio::test]
async fn an_older_leader_changes_nothing() {
    let lab = Lab::start().await;
    let mut old = lab.leader().await;
    let mut first = begins(at(6, 0), at(7, 1));
    first.values.push((topic("vm/a"), Some(value(at(7, 1), "vm/a"))));
    old.append(&first).await.unwrap();
    let later = Fence::new(1, 101);
    let mut new = lab.writer().await;
    let place = Place { epoch: EPOCH, head: at(7, 1) };
    assert_eq!(new.claim(later).await, Ok(Some(place)));

    let fenced = RedisError::Fenced { ours: FENCE, theirs: later };
    let mut next = page(at(7, 1), at(8, 1));
    next.values.push((topic("vm/a"), None));
    refused(&lab, &mut old, &next, fenced.clone()).await;
    refused(&lab, &mut old, &begins(at(7, 1), at(8, 1)), fenced.clone()).await;
    let before = lab.dump().await;
    assert_eq!(old.claim(FENCE).await, Err(fenced));
    assert_eq!(lab.dump().await, before);
    // A later timeline wins whatever its LSN is, and the same fence may claim again.
    assert_eq!(old.claim(Fence::new(2, 1)).await, Ok(Some(place)));
    assert_eq!(old.claim(Fence::new(2, 1)).await, Ok(Some(place)));
    assert!(matches!(new.append(&next).await, Err(RedisError::Fenced { .. })));
    old.append(&next).await.unwrap();
}

#[tokio::test]
async fn a_page_that_does_not_follow_changes_nothing() {
    let lab = Lab::start().await;
    let mut writer = lab.leader().await;
    refused(&lab, &mut writer, &page(at(6, 0), at(7, 1)), RedisError::Moved(None)).await;
    writer.append(&begins(at(6, 0), at(7, 1))).await.unwrap();
    let moved = RedisError::Moved(Some(Place { epoch: EPOCH, head: at(7, 1) }));
    refused(&lab, &mut writer, &page(at(7, 0), at(8, 1)), moved.clone()).await;
    refused(&lab, &mut writer, &page(at(7, 2), at(8, 1)), moved.clone()).await;
    let mut other = page(at(7, 1), at(8, 1));
    other.page.epoch = Epoch(1);
    refused(&lab, &mut writer, &other, moved).await;

    // What would never reach anybody is not taken either.
    let mut still = page(at(7, 1), at(7, 1));
    still.page.remarks.push(Remark::Values);
    let before = lab.dump().await;
    assert!(matches!(writer.append(&still).await, Err(RedisError::Unsuitable(_))));
    assert_eq!(lab.dump().await, before);
}

#[tokio::test]
async fn an_append_whose_answer_was_lost_is_found_done() {
    let lab = Lab::start().await;
    let mut writer = lab.leader().await;
    let (first, second) = (begins(at(6, 0), at(7, 1)), page(at(7, 1), at(8, 1)));
    writer.append(&first).await.unwrap();
    writer.append(&second).await.unwrap();
    let before = lab.dump().await;
    writer.append(&second).await.unwrap();
    assert_eq!(lab.dump().await, before);
    // Not so for another leader, for his page may be another one.
    let mut other = lab.writer().await;
    let place = Place { epoch: EPOCH, head: at(8, 1) };
    assert_eq!(other.claim(Fence::new(1, 101)).await, Ok(Some(place)));
    let _: () =
        lab.ask(redis::cmd("HSET").arg("walcast:{orders}:meta").arg("fence").arg(FENCE.to_string())).await;
    assert_eq!(other.append(&second).await, Err(RedisError::Moved(Some(place))));
}

#[tokio::test]
async fn values_and_marks_change_with_a_page_or_beside_one() {
    let lab = Lab::start().await;
    let mut writer = lab.leader().await;
    let state = "HGETALL walcast:{orders}:00000000000000ab:state";
    let mut first = begins(at(6, 0), at(7, 1));
    let (a, b) = (value(at(7, 1), "vm/a"), value(at(7, 1), "vm/b"));
    first.values = vec![(topic("vm/a"), Some(a.clone())), (topic("vm/b"), Some(b.clone()))];
    writer.append(&first).await.unwrap();
    let mut still = page(at(7, 1), at(7, 1));
    still.values = vec![(topic("vm/a"), None), (topic("vm/c"), None)];
    still.inexact = vec!["vm/*".parse().unwrap()];
    writer.append(&still).await.unwrap();
    let mut found: Vec<(String, Bytes)> =
        lab.say::<Vec<(String, Vec<u8>)>>(state).await.into_iter().map(|(k, v)| (k, v.into())).collect();
    found.sort();
    assert_eq!(found, [(String::new(), EPOCH.to_string().into()), ("vm/b".into(), b)]);
    let marks: String = lab.say("HGET walcast:{orders}:meta inexact").await;
    assert_eq!(marks, r#"["vm/*"]"#);
    // As many as no call of a command takes at once.
    let mut many = page(at(7, 1), at(8, 1));
    many.values = (0..20_000).map(|n| (topic(&format!("n/{n}")), Some(a.clone()))).collect();
    writer.append(&many).await.unwrap();
    let count: usize = lab.say("HLEN walcast:{orders}:00000000000000ab:state").await;
    assert_eq!(count, 20_002);
    let mut none = page(at(8, 1), at(9, 1));
    none.values = many.values.into_iter().map(|(topic, _)| (topic, None)).collect();
    writer.append(&none).await.unwrap();
    let count: usize = lab.say("HLEN walcast:{orders}:00000000000000ab:state").await;
    assert_eq!(count, 2);
}

#[tokio::test]
async fn a_line_that_begins_takes_the_place_of_all_before() {
    let lab = Lab::start().await;
    let (mut writer, mut reader) = (lab.leader().await, lab.reader());
    let mut first = begins(at(6, 0), at(7, 1));
    first.values.push((topic("vm/a"), Some(value(at(7, 1), "vm/a"))));
    writer.append(&first).await.unwrap();
    same(&within("a page", reader.next(None)).await.unwrap(), &first);

    let mut other = begins(at(2, 0), at(3, 1));
    other.page.epoch = Epoch(0xCD);
    other.page.events = vec![event_of(Epoch(0xCD), at(3, 1), "vm/b", "insert")];
    writer.append(&other).await.unwrap();
    let base = "walcast:{orders}:00000000000000cd";
    assert_eq!(lab.keys().await, [&format!("{base}:log"), &format!("{base}:state"), "walcast:{orders}:meta"]);
    // Whoever stood in the old one is told the new one from its beginning.
    same(&within("a page", reader.next(Some(super::cursor(7, 1)))).await.unwrap(), &other);

    // The same epoch may begin anew, too, also without anything to say.
    let mut empty = begins(at(4, 0), at(4, 0));
    empty.page.epoch = Epoch(0xCD);
    writer.append(&empty).await.unwrap();
    assert_eq!(lab.keys().await, [&format!("{base}:state"), "walcast:{orders}:meta"]);
    let found = within("a page", lab.reader().next(None)).await.unwrap();
    assert_eq!(super::told(&found), (Epoch(0xCD), at(4, 0), at(4, 0), vec![]));
}

#[tokio::test]
async fn what_lies_below_the_floor_goes() {
    let lab = Lab::start().await;
    let mut writer = lab.leader().await;
    writer.append(&begins(Position::ZERO, at(1, 1))).await.unwrap();
    for n in 1..5 {
        writer.append(&page(at(n, 1), at(n + 1, 1))).await.unwrap();
    }
    let log = "XRANGE walcast:{orders}:00000000000000ab:log - +";
    let ids = |entries: Vec<(String, Vec<String>)>| entries.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    let mut sent = page(at(5, 1), at(6, 1));
    sent.floor = at(3, 1);
    writer.append(&sent).await.unwrap();
    assert_eq!(ids(lab.say(log).await), ["4-1", "5-1", "6-1"]);
    // Who comes late begins with what is left, and sees where that begins.
    let found = within("a page", lab.reader().next(None)).await.unwrap();
    assert_eq!((found.after, found.upto), (at(3, 1), at(4, 1)));
    let mut still = page(at(6, 1), at(6, 1));
    still.floor = at(5, u64::MAX);
    writer.append(&still).await.unwrap();
    assert_eq!(ids(lab.say(log).await), ["6-1"]);
}
