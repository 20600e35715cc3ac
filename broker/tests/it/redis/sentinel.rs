//! A Redis that sentinels know of: it is found, and found again when another has taken its place.

use std::net::TcpListener;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use walcast::backbone::redis::{Asker, Reader, RedisError, Writer};

use super::{Lab, SOURCE, at, begins, carry, config, cursor, page, read_on, same};
use crate::redis_group::{Sentinel, Watched, say, sentinel_url};
use crate::wait::{until, within};

/// Takes connections and says nothing, for as long as it is held; and its port.
fn silent() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port where nobody listens.
const DEAD: u16 = 1;

/// A sentinel that answers each question with what these bytes are by then.
async fn stub(answer: &Arc<Mutex<String>>) -> u16 {
    let answer = Arc::clone(answer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut asked = [0; 1024];
                while peer.read(&mut asked).await.is_ok_and(|length| length > 0) {
                    let answer = answer.lock().clone();
                    peer.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    port
}

async fn saying(answer: &str) -> u16 {
    stub(&Arc::new(Mutex::new(answer.to_owned()))).await
}

/// The master is there.
fn there(port: u16) -> String {
    let text = port.to_string();
    format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{text}\r\n", text.len())
}

async fn pointing(port: u16) -> u16 {
    saying(&there(port)).await
}

async fn connect(ports: &[u16]) -> Result<Writer, RedisError> {
    within("an answer", Writer::connect(&config(sentinel_url(ports)), SOURCE)).await
}

#[tokio::test]
async fn a_promoted_replica_is_found() {
    let group = Watched::start("redis-sentinel").await;
    let (_held, silent) = silent();
    let config = config(group.url(&[silent, DEAD]));
    let mut writer = within("a writer", Writer::connect(&config, SOURCE)).await.unwrap();
    let mut reader = Reader::new(&config, SOURCE).unwrap();
    let (first, second) = (begins(at(6, 0), at(7, 1)), page(at(7, 1), at(8, 1)));
    carry(&mut writer, &[&first]).await;
    same(&within("a page", reader.next(None)).await.unwrap().unwrap(), &first);
    until("the replica has it", async || {
        say::<usize>(group.replica.port(), "XLEN walcast:{orders}:00000000000000ab:log").await == 1
    })
    .await;

    let master = Arc::clone(&group.master);
    tokio::task::spawn_blocking(move || master.stop()).await.unwrap();
    let away = writer.append(&second).await.unwrap_err();
    let old = format!("127.0.0.1:{}", group.master.port());
    assert!(matches!(&away, RedisError::Away(why) if why.contains(&old)), "{away}");
    carry(&mut writer, &[&first, &second]).await;
    same(&read_on(&mut reader, cursor(7, 1)).await, &second);
    let role: Vec<redis::Value> = say(group.replica.port(), "ROLE").await;
    assert_eq!(role[0], redis::Value::BulkString(b"master".to_vec()));

    // Whoever comes now finds it at once.
    let mut late = Reader::new(&config, SOURCE).unwrap();
    same(&within("a page", late.next(None)).await.unwrap().unwrap(), &first);
}

#[tokio::test]
async fn a_sentinel_that_does_not_know_better_is_not_believed() {
    let (lab, replica) = (Lab::start().await, Lab::start().await);
    let _: () = replica.say(&format!("REPLICAOF 127.0.0.1 {}", lab.server.port())).await;
    let stale = pointing(replica.server.port()).await;
    let error = connect(&[stale]).await.unwrap_err();
    assert!(matches!(&error, RedisError::Away(why) if why.contains("is no master")), "{error}");
    let right = pointing(lab.server.port()).await;
    connect(&[stale, right]).await.unwrap();
}

#[tokio::test]
async fn a_master_that_does_not_know_of_its_successor_is_left() {
    let (old, new) = (Lab::start().await, Lab::start().await);
    let (first, second) = (begins(at(6, 0), at(7, 1)), page(at(7, 1), at(8, 1)));
    carry(&mut old.writer().await, &[&first]).await;
    carry(&mut new.writer().await, &[&first, &second]).await;
    let master = Arc::new(Mutex::new(there(old.server.port())));
    let config = config(sentinel_url(&[stub(&master).await]));
    let mut reader = Reader::new(&config, SOURCE).unwrap();
    let asker = Asker::new(&config, SOURCE).unwrap();
    let asked = ["vm/a".parse().unwrap()];
    same(&within("a page", reader.next(None)).await.unwrap().unwrap(), &first);
    assert_eq!(within("an answer", asker.values(&asked)).await.unwrap().at, at(7, 1));

    *master.lock() = there(new.server.port());
    same(&read_on(&mut reader, cursor(7, 1)).await, &second);
    until("the other is asked", async || asker.values(&asked).await.unwrap().at == at(8, 1)).await;
}

#[tokio::test]
async fn a_sentinel_that_is_of_no_use_keeps_nobody_from_the_next() {
    let lab = Lab::start().await;
    let (_held, silent) = silent();
    let right = pointing(lab.server.port()).await;
    let unknown = saying("*-1\r\n").await;
    let nonsense = saying("+what\r\n").await;
    let lost = pointing(DEAD).await;
    connect(&[DEAD, silent, unknown, nonsense, lost, right]).await.unwrap();

    let check = async |ports: &[u16], expected: &str| {
        let error = connect(ports).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        matches!(error, RedisError::Unsuitable(_))
    };
    assert!(!check(&[DEAD], "the sentinel at 127.0.0.1:").await);
    assert!(!check(&[silent], "did not answer in time").await);
    assert!(!check(&[lost], "Redis at 127.0.0.1:").await);
    // What an operator has to correct is told first.
    assert!(check(&[DEAD, unknown, lost], "knows no service \"orders\"").await);
}

#[tokio::test]
async fn the_documented_rights_are_enough_with_sentinels() {
    let lab = Lab::start().await;
    let sentinel = Sentinel::start("redis-sentinel-rights", lab.server.port(), 1).await;
    let at_sentinel = format!("redis://127.0.0.1:{}", sentinel.port);
    let mut at_sentinel = super::raw(&at_sentinel).await;
    let url = sentinel_url(&[sentinel.port]).replace("//", "//walcast:secret@");
    let url = format!("{url}&sentinel_user=walcast&sentinel_password=secret");
    let config = config(url);
    let attempt = async || within("an answer", Writer::connect(&config, SOURCE)).await;

    let refused = attempt().await.unwrap_err();
    assert!(
        matches!(&refused, RedisError::Unsuitable(why) if why.contains("sentinel_password")),
        "{refused}"
    );
    super::suit::documented_for_sentinel().query_async::<()>(&mut at_sentinel).await.unwrap();
    super::suit::allow_documented(&lab, &[]).await;
    let refused = attempt().await.unwrap_err();
    assert!(
        matches!(&refused, RedisError::Unsuitable(why) if why.contains("docs/operations.md")),
        "{refused}"
    );
    super::suit::allow_documented(&lab, &["+role"]).await;
    attempt().await.unwrap();
    let mut fewer = redis::cmd("ACL");
    fewer.arg("SETUSER").arg("walcast").arg("-sentinel|get-master-addr-by-name");
    let _: () = fewer.query_async(&mut at_sentinel).await.unwrap();
    let refused = attempt().await.unwrap_err();
    assert!(
        matches!(&refused, RedisError::Unsuitable(why) if why.contains("docs/operations.md")),
        "{refused}"
    );
    assert!(!refused.to_string().contains("secret"), "{refused}");
}
