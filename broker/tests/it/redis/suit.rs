//! What a Redis must be and let us do, and what is said where it is not or does not.

use std::time::Duration;

use walcast::backbone::redis::{Asker, Book, Config, Reader, RedisError, Writer};
use walcast::event::Fence;
use walcast::hub::page::AllValues;
use walcast::hub::roll::Roll;

use super::{EPOCH, FENCE, Lab, SOURCE, at, begins, cursor, page, same, value};
use crate::edge::Edge;
use crate::wait::{until, within};

const OPERATIONS: &str = include_str!("../../../../docs/operations.md");

#[tokio::test]
async fn a_redis_that_drops_keys_is_refused() {
    let lab = Lab::tuned(&[("maxmemory-policy", "allkeys-lru")]).await;
    let error = within("an answer", Writer::connect(&lab.config(), SOURCE)).await.unwrap_err();
    let RedisError::Unsuitable(why) = &error else { panic!("{error}") };
    assert!(why.contains("allkeys-lru") && why.contains("noeviction"), "{why}");
    // Also where CONFIG may not be asked, as managed services do.
    let _: () = lab.say("ACL SETUSER guest on nopass ~* +@all -config").await;
    let url = Some(lab.server.url().replace("redis://", "redis://guest:x@"));
    let hidden = Config { url, ..Config::default() };
    let refused = within("an answer", Writer::connect(&hidden, SOURCE)).await.unwrap_err();
    assert_eq!(refused, error);
    let _: () = lab.say("CONFIG SET maxmemory-policy noeviction").await;
    within("a writer", Writer::connect(&hidden, SOURCE)).await.unwrap();
}

#[tokio::test]
async fn what_an_operator_has_to_do_is_said_without_the_password() {
    let lab = Lab::tuned(&[("requirepass", "swordfish")]).await;
    let at = lab.server.url();
    let check = async |url: &str, expected: &str| {
        let config = Config { url: Some(url.to_owned()), ..Config::default() };
        let error = within("an answer", Writer::connect(&config, SOURCE)).await.unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("flounder") && !error.contains('\n'), "{error}");
    };
    check(&at, "NOAUTH").await;
    check(&at.replace("//", "//:flounder@"), "does not take the user or password").await;
    check(&at.replace("redis:", "http:"), "redis.url").await;
    check(&format!("{}/999", at.replace("//", "//:swordfish@")), "out of range").await;
    let away = Config { url: Some("redis://:flounder@127.0.0.1:1".into()), ..Config::default() };
    let error = within("an answer", Writer::connect(&away, SOURCE)).await.unwrap_err();
    assert!(matches!(&error, RedisError::Away(why) if why.contains("127.0.0.1:1")), "{error}");
}

/// A command with its rights, of those that the document lists.
fn documented() -> (Vec<String>, Vec<String>) {
    let line = OPERATIONS.lines().find(|line| line.starts_with("ACL SETUSER walcast ")).unwrap();
    let words = line.split(' ').map(|word| word.replace(">PASSWORD", ">secret"));
    words.partition(|word| !word.starts_with('+'))
}

/// The rights that it lists for one that never leads.
fn of_an_edge() -> Vec<String> {
    let (_, line) = OPERATIONS.split_once("For a broker with the role `edge`,\n`").unwrap();
    line.split_once('`').unwrap().0.split(' ').map(str::to_owned).collect()
}

/// A user with these rights.
async fn allow(lab: &Lab, head: &[String], rights: &[String]) {
    let mut words = head.iter().chain(rights);
    let mut command = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        command.arg(word);
    });
    let _: () = lab.say("ACL DELUSER walcast").await;
    let _: () = lab.ask(&command).await;
}

/// A user with all documented rights, and more.
pub(super) async fn allow_documented(lab: &Lab, more: &[&str]) {
    let (head, mut rights) = documented();
    rights.extend(more.iter().map(|right| (*right).to_owned()));
    allow(lab, &head, &rights).await;
}

/// The command by which a sentinel knows us.
pub(super) fn documented_for_sentinel() -> redis::Cmd {
    let mut lines = OPERATIONS.lines().filter(|line| line.starts_with("ACL SETUSER walcast "));
    let line = lines.find(|line| line.contains("+sentinel|")).unwrap();
    let mut command = redis::cmd("ACL");
    line.split(' ').skip(1).for_each(|word| {
        command.arg(word.replace(">PASSWORD", ">secret"));
    });
    command
}

/// Everything that brokers do with Redis, once. `lab` looks into the server that the URL leads to.
pub(super) async fn everything(lab: &Lab, url: String, values: &AllValues) -> Result<(), RedisError> {
    let url = Some(url);
    let config = Config { url, pubsub: true, replicas: 1, replicas_timeout: Duration::from_millis(1) };
    let mut writer = Writer::connect(&config, SOURCE).await?;
    writer.claim(FENCE).await?;
    // Nobody replicates; all else is done then.
    let tolerant = |done: Result<(), RedisError>| match done {
        Err(RedisError::Away(why)) if why.contains("0 replicas") => Ok(()),
        other => other,
    };
    let mut first = begins(at(6, 0), at(7, 1));
    first.values =
        vec![("vm/a".parse().unwrap(), Some(value(at(7, 1), "vm/a"))), ("x".parse().unwrap(), None)];
    tolerant(writer.append(&first).await)?;
    // What an append left that rights broke off.
    let next = page(at(7, 1), at(8, 1));
    let mut torn = redis::cmd("XADD");
    torn.arg("walcast:{orders}:00000000000000ab:log").arg("8-1");
    torn.arg("after").arg("00000000000000000007-00000000000000000001");
    torn.arg("events").arg(&next.page.events[0].json()[..]);
    let _: String = lab.ask(&torn).await;
    tolerant(writer.append(&next).await)?;
    let all = AllValues { epoch: EPOCH, at: at(8, 1), ..values.clone() };
    tolerant(writer.put_all(all).await)?;
    writer.check().await?;
    following(&config).await
}

/// What a broker does that never leads.
async fn following(config: &Config) -> Result<(), RedisError> {
    Reader::new(config, SOURCE)?.next(None).await?;
    let asked = [EPOCH.to_string().parse().unwrap(), "vm/*".parse().unwrap()];
    Asker::new(config, SOURCE)?.values(&asked).await?;
    let (here, there) = (Book::new(config, SOURCE)?, Book::new(config, SOURCE)?);
    here.write("here", &Roll::default()).await?;
    assert_eq!(there.read().await?.rolls.len(), 1);
    here.leave().await
}

#[tokio::test]
async fn the_documented_rights_are_enough_and_all_are_needed() {
    let lab = Lab::start().await;
    let edge = Edge::start().await;
    edge.put("vm/a", "1");
    let values = super::values::all(&edge).await;
    let (head, rights) = documented();
    assert!(rights.len() > 10, "{rights:?}");
    allow(&lab, &head, &rights).await;
    let url = lab.server.url().replace("//", "//walcast:secret@");
    within("everything", everything(&lab, url.clone(), &values)).await.unwrap();
    allow(&lab, &head, &of_an_edge()).await;
    let _: () = lab.say("SCRIPT FLUSH").await;
    within("following", following(&super::config(url.clone()))).await.unwrap();
    for missing in &rights {
        let fewer: Vec<String> = rights.iter().filter(|right| *right != missing).cloned().collect();
        allow(&lab, &head, &fewer).await;
        let _: () = lab.say("FLUSHALL").await;
        let _: () = lab.say("SCRIPT FLUSH").await;
        let done = within("everything", everything(&lab, url.clone(), &values)).await;
        let Err(RedisError::Unsuitable(why)) = done else { panic!("without {missing}: {done:?}") };
        assert!(why.contains("docs/operations.md"), "without {missing}: {why}");
    }
}

#[tokio::test]
async fn rights_that_are_withdrawn_in_the_middle_tear_nothing() {
    let lab = Lab::start().await;
    let mut reader = lab.reader();
    let (head, rights) = documented();
    allow(&lab, &head, &rights).await;
    let url = Some(lab.server.url().replace("//", "//walcast:secret@"));
    let config = Config { url, ..Config::default() };
    let mut writer = within("a writer", Writer::connect(&config, SOURCE)).await.unwrap();
    writer.claim(FENCE).await.unwrap();
    let first = begins(at(6, 0), at(7, 1));
    writer.append(&first).await.unwrap();
    let _: () = lab.say("ACL SETUSER walcast -hset").await;
    let next = page(at(7, 1), at(8, 1));
    for _ in 0..2 {
        let refused = writer.append(&next).await;
        assert!(
            matches!(&refused, Err(RedisError::Unsuitable(why)) if why.contains("operations.md")),
            "{refused:?}"
        );
    }
    let _: () = lab.say("ACL SETUSER walcast +hset").await;
    // Another page in its place would be one that readers know otherwise.
    let other = page(at(7, 1), at(7, 9));
    let torn = writer.append(&other).await;
    assert!(matches!(&torn, Err(RedisError::Unsuitable(why)) if why.contains("8-1")), "{torn:?}");
    writer.append(&next).await.unwrap();
    same(&within("a page", reader.next(None)).await.unwrap(), &first);
    same(&within("a page", reader.next(Some(cursor(7, 1)))).await.unwrap(), &next);
    let entries: usize = lab.say("XLEN walcast:{orders}:00000000000000ab:log").await;
    assert_eq!(entries, 2);
}

#[tokio::test]
async fn a_redis_without_memory_takes_nothing_until_it_has_some() {
    let lab = Lab::start().await;
    let mut writer = lab.leader().await;
    writer.append(&begins(at(6, 0), at(7, 1))).await.unwrap();
    let mut next = page(at(7, 1), at(8, 1));
    next.values.push(("vm/a".parse().unwrap(), Some(value(at(8, 1), "vm/a"))));
    let before = lab.dump().await;
    let _: () = lab.say("CONFIG SET maxmemory 1").await;
    let full = writer.append(&next).await;
    assert!(matches!(&full, Err(RedisError::Away(why)) if why.contains("maxmemory")), "{full:?}");
    let _: () = lab.say("CONFIG SET maxmemory 0").await;
    assert_eq!(lab.dump().await, before);
    writer.append(&next).await.unwrap();
}

#[tokio::test]
async fn an_append_is_done_once_enough_replicas_have_it() {
    let (lab, other) = (Lab::start().await, Lab::start().await);
    let config = Config { replicas: 1, replicas_timeout: Duration::from_millis(20), ..lab.config() };
    let mut writer = within("a writer", Writer::connect(&config, SOURCE)).await.unwrap();
    writer.claim(FENCE).await.unwrap();
    let sent = begins(at(6, 0), at(7, 1));
    let away = writer.append(&sent).await;
    assert!(matches!(&away, Err(RedisError::Away(why)) if why.contains("0 replicas")), "{away:?}");
    let next = page(at(7, 1), at(8, 1));
    assert!(matches!(writer.append(&next).await, Err(RedisError::Away(_))));

    let _: () = other.say(&format!("REPLICAOF 127.0.0.1 {}", lab.server.port())).await;
    until("a replica has it", async || match writer.append(&next).await {
        Ok(()) => true,
        Err(RedisError::Away(_)) => false,
        Err(error) => panic!("{error}"),
    })
    .await;
    let head: String = other.say("HGET walcast:{orders}:meta head").await;
    assert_eq!(head, "00000000000000000008-00000000000000000001");
    // A replica takes no append itself; which server does may change.
    let mut wrong = within("a writer", Writer::connect(&other.config(), SOURCE)).await.unwrap();
    let away = wrong.claim(Fence::new(1, 101)).await;
    assert!(matches!(&away, Err(RedisError::Away(why)) if why.contains("READONLY")), "{away:?}");
    let _: () = other.say("REPLICAOF NO ONE").await;
    wrong.claim(Fence::new(1, 101)).await.unwrap();
}

#[tokio::test]
async fn scripts_that_redis_forgot_are_given_again() {
    let lab = Lab::start().await;
    let mut writer = lab.leader().await;
    writer.append(&begins(at(6, 0), at(7, 1))).await.unwrap();
    let _: () = lab.say("SCRIPT FLUSH").await;
    writer.append(&page(at(7, 1), at(8, 1))).await.unwrap();
    let entries: usize = lab.say("XLEN walcast:{orders}:00000000000000ab:log").await;
    assert_eq!(entries, 2);
}
