//! What happens when Redis loses what it had: nobody is told a gap that is none, and nothing is lost in silence.

use std::sync::Arc;

use walcast::backbone::redis::{Place, RedisError};
use walcast::event::Fence;

use super::{EPOCH, FENCE, Lab, at, begins, cursor, page, same};
use crate::wait::{until, within};

#[tokio::test]
async fn an_emptied_redis_is_filled_again_without_a_gap() {
    let lab = Lab::start().await;
    let (mut writer, mut reader) = (lab.leader().await, lab.reader());
    let (first, second) = (begins(at(6, 0), at(7, 1)), page(at(7, 1), at(8, 1)));
    writer.append(&first).await.unwrap();
    same(&within("a page", reader.next(None)).await.unwrap(), &first);
    let _: () = lab.say("FLUSHALL").await;
    assert_eq!(writer.append(&second).await, Err(RedisError::Moved(None)));
    assert!(lab.keys().await.is_empty());
    let none = within("an answer", reader.next(Some(cursor(7, 1)))).await;
    assert_eq!(none.unwrap_err(), RedisError::Moved(None));

    // The leader tells again what it has, and the reader goes on where it stood.
    writer.append(&first).await.unwrap();
    writer.append(&second).await.unwrap();
    same(&within("a page", reader.next(Some(cursor(7, 1)))).await.unwrap(), &second);
}

#[tokio::test]
async fn a_redis_that_restarts_empty_is_found_again() {
    let lab = Lab::start().await;
    let (mut writer, mut reader) = (lab.leader().await, lab.reader());
    let first = begins(at(6, 0), at(7, 1));
    writer.append(&first).await.unwrap();
    same(&within("a page", reader.next(None)).await.unwrap(), &first);
    let server = Arc::clone(&lab.server);
    tokio::task::spawn_blocking(move || server.stop()).await.unwrap();
    let next = page(at(7, 1), at(8, 1));
    assert!(matches!(writer.append(&next).await, Err(RedisError::Away(_))));
    let away = within("an answer", reader.next(Some(cursor(7, 1)))).await.unwrap_err();
    assert!(matches!(&away, RedisError::Away(why) if why.contains("127.0.0.1")), "{away}");
    let server = Arc::clone(&lab.server);
    tokio::task::spawn_blocking(move || server.start_again().unwrap()).await.unwrap();
    until("it is back", async || match writer.append(&next).await {
        Ok(()) => panic!("nothing may be appended to nothing"),
        Err(RedisError::Away(_)) => false,
        Err(error) => {
            assert_eq!(error, RedisError::Moved(None));
            true
        }
    })
    .await;
    assert_eq!(writer.claim(FENCE).await, Ok(None));
    writer.append(&first).await.unwrap();
    writer.append(&next).await.unwrap();
    until("it is back", async || match reader.next(Some(cursor(7, 1))).await {
        Ok(found) => {
            same(&found, &next);
            true
        }
        Err(RedisError::Away(_)) => false,
        Err(error) => panic!("{error}"),
    })
    .await;
}

#[tokio::test]
async fn an_older_state_of_redis_is_brought_up_to_date() {
    let lab = Lab::start().await;
    let (mut writer, mut reader) = (lab.leader().await, lab.reader());
    let (first, second) = (begins(at(6, 0), at(7, 1)), page(at(7, 1), at(8, 1)));
    writer.append(&first).await.unwrap();
    let older = lab.dump().await;
    writer.append(&second).await.unwrap();
    same(&within("a page", reader.next(None)).await.unwrap(), &first);
    same(&within("a page", reader.next(Some(cursor(7, 1)))).await.unwrap(), &second);
    lab.restore(&older).await;

    let third = page(at(8, 1), at(9, 1));
    let place = Place { epoch: EPOCH, head: at(7, 1) };
    assert_eq!(writer.append(&third).await, Err(RedisError::Moved(Some(place))));
    assert_eq!(lab.dump().await, older);
    writer.append(&second).await.unwrap();
    writer.append(&third).await.unwrap();
    same(&within("a page", reader.next(Some(cursor(8, 1)))).await.unwrap(), &third);
}

#[tokio::test]
async fn a_claim_is_lost_with_all_else() {
    let lab = Lab::start().await;
    let mut old = lab.leader().await;
    let mut new = lab.writer().await;
    assert_eq!(new.claim(Fence::new(1, 101)).await, Ok(None));
    // A claim of nothing stores nothing: the first who fills it holds it,
    old.append(&begins(at(6, 0), at(7, 1))).await.unwrap();
    let place = Place { epoch: EPOCH, head: at(7, 1) };
    // and the later one takes it over by its first append.
    new.append(&page(at(7, 1), at(8, 1))).await.unwrap();
    let fenced = RedisError::Fenced { ours: FENCE, theirs: Fence::new(1, 101) };
    assert_eq!(old.append(&page(at(8, 1), at(9, 1))).await, Err(fenced));
    assert_eq!(new.claim(Fence::new(1, 101)).await, Ok(Some(Place { head: at(8, 1), ..place })));
}
