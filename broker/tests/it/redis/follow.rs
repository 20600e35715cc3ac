//! What a reader promises: every page in order, or to show where some are missing.

use walcast::backbone::redis::RedisError;
use walcast_wire::{Cursor, Position};

use super::{EPOCH, Lab, at, begins, cursor, page, same, told};
use crate::wait::{until, within};

#[tokio::test]
async fn a_reader_waits_for_what_comes() {
    let lab = Lab::start().await;
    let (mut writer, mut reader) = (lab.leader().await, lab.reader());
    writer.append(&begins(at(6, 0), at(7, 1))).await.unwrap();
    within("a page", reader.next(None)).await.unwrap();
    let waiting = tokio::spawn(async move { reader.next(Some(cursor(7, 1))).await });
    until("it waits", async || lab.say::<String>("CLIENT LIST").await.contains("cmd=xread")).await;
    let next = page(at(7, 1), at(8, 1));
    writer.append(&next).await.unwrap();
    same(&within("the next page", waiting).await.unwrap().unwrap(), &next);
}

#[tokio::test]
async fn a_wait_that_is_given_up_loses_nothing() {
    let lab = Lab::start().await;
    let (mut writer, mut reader) = (lab.leader().await, lab.reader());
    let mut pages = vec![begins(at(6, 0), at(7, 1))];
    pages.extend((7..200).map(|n| page(at(n, 1), at(n + 1, 1))));
    for sent in &pages {
        writer.append(sent).await.unwrap();
        // Polled once, then dropped.
        let stands = Some(Cursor::new(EPOCH, sent.page.after)).filter(|_| !sent.begins);
        let _ = futures_util::FutureExt::now_or_never(reader.next(stands));
    }
    let mut stands = None;
    for sent in &pages {
        let found = within("a page", reader.next(stands)).await.unwrap();
        same(&found, sent);
        stands = Some(Cursor::new(found.epoch, found.upto));
    }
    // Whoever goes back is told the same again.
    same(&within("a page", reader.next(Some(cursor(7, 1)))).await.unwrap(), &pages[1]);
}

#[tokio::test]
async fn what_was_trimmed_is_seen_as_missing() {
    let lab = Lab::start().await;
    let (mut writer, mut reader) = (lab.leader().await, lab.reader());
    writer.append(&begins(at(6, 0), at(7, 1))).await.unwrap();
    let mut last = page(at(7, 1), at(8, 1));
    last.floor = at(8, 1);
    writer.append(&last).await.unwrap();
    let entries: usize = lab.say("XLEN walcast:{orders}:00000000000000ab:log").await;
    assert_eq!(entries, 0);
    let missing = (EPOCH, at(8, 1), at(8, 1), vec![]);
    let found = within("a gap", reader.next(Some(cursor(7, 1)))).await.unwrap();
    assert_eq!(told(&found), missing);
    let found = within("the end", lab.reader().next(None)).await.unwrap();
    assert_eq!(told(&found), missing);
    // And so is a log that was deleted alone.
    let next = page(at(8, 1), at(9, 1));
    writer.append(&next).await.unwrap();
    same(&within("a page", reader.next(Some(cursor(8, 1)))).await.unwrap(), &next);
    let _: () = lab.say("DEL walcast:{orders}:00000000000000ab:log").await;
    let found = within("a gap", reader.next(Some(cursor(7, 1)))).await.unwrap();
    assert_eq!(told(&found), (EPOCH, at(9, 1), at(9, 1), vec![]));
}

#[tokio::test]
async fn nothing_is_read_from_a_redis_without_a_log() {
    let lab = Lab::start().await;
    let mut reader = lab.reader();
    let none = within("an answer", reader.next(None)).await;
    assert_eq!(none.unwrap_err(), RedisError::Moved(None));
    let none = within("an answer", reader.next(Some(cursor(7, 1)))).await;
    assert_eq!(none.unwrap_err(), RedisError::Moved(None));
}

#[tokio::test]
async fn what_cannot_be_read_is_named() {
    let lab = Lab::start().await;
    let (mut writer, mut reader) = (lab.leader().await, lab.reader());
    let first = begins(at(6, 0), at(7, 1));
    writer.append(&first).await.unwrap();
    let _: String = lab.say("XADD walcast:{orders}:00000000000000ab:log 8-1 something else").await;
    same(&within("a page", reader.next(None)).await.unwrap(), &first);
    for _ in 0..2 {
        let error = within("an answer", reader.next(Some(cursor(7, 1)))).await.unwrap_err();
        assert!(matches!(&error, RedisError::Unsuitable(why) if why.contains("entry 8-1")), "{error}");
    }
    let _: () = lab.say("HSET walcast:{orders}:meta version 2").await;
    let error = within("an answer", lab.reader().next(None)).await.unwrap_err();
    assert!(matches!(&error, RedisError::Unsuitable(why) if why.contains("version \"2\"")), "{error}");
    for error in [
        writer.append(&page(at(7, 1), at(8, 1))).await.unwrap_err(),
        writer.claim(super::FENCE).await.unwrap_err(),
    ] {
        assert!(matches!(&error, RedisError::Unsuitable(why) if why.contains("version \"2\"")), "{error}");
    }
}

#[tokio::test]
async fn a_reader_that_is_ahead_waits() {
    let lab = Lab::start().await;
    let (mut writer, mut reader) = (lab.leader().await, lab.reader());
    writer.append(&begins(Position::ZERO, at(7, 1))).await.unwrap();
    let ahead = page(at(7, 1), at(9, 1));
    let waiting = tokio::spawn(async move { reader.next(Some(cursor(8, 0))).await });
    until("it waits", async || lab.say::<String>("CLIENT LIST").await.contains("cmd=xread")).await;
    writer.append(&ahead).await.unwrap();
    // The hub drops what it has.
    same(&within("the page that reaches beyond", waiting).await.unwrap().unwrap(), &ahead);
}
