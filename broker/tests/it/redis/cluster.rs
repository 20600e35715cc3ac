//! A Redis Cluster: the member that has the keys of the source is found, and found again when they have moved.

use futures_util::StreamExt;
use walcast::backbone::redis::{Config, Reader, RedisError, Writer};

use super::{Lab, SOURCE, at, begins, carry, config, cursor, page, read_on, same};
use crate::edge::Edge;
use crate::redis_group::{Cluster, say};
use crate::wait::within;

const META: &str = "walcast:{orders}:meta";

async fn connect(config: &Config) -> Result<Writer, RedisError> {
    within("an answer", Writer::connect(config, SOURCE)).await
}

#[tokio::test]
async fn the_member_with_the_keys_is_found_and_found_again() {
    let cluster = Cluster::start(META).await;
    let config = Config { pubsub: true, ..config(Cluster::url(&[cluster.other.port()])) };
    let mut writer = connect(&config).await.unwrap();
    let mut reader = Reader::new(&config, SOURCE).unwrap();
    let (first, second) = (begins(at(6, 0), at(7, 1)), page(at(7, 1), at(8, 1)));
    let client = redis::Client::open(cluster.other.url()).unwrap();
    let mut channels = client.get_async_pubsub().await.unwrap();
    channels.subscribe("walcast:{orders}:vm/a").await.unwrap();

    carry(&mut writer, &[&first]).await;
    same(&within("a page", reader.next(None)).await.unwrap().unwrap(), &first);
    assert_eq!(say::<usize>(cluster.owner.port(), "DBSIZE").await, 3);
    let heard = within("a message", channels.on_message().next()).await.unwrap();
    assert_eq!(heard.get_payload_bytes(), &first.page.events[0].json()[..]);

    cluster.fail_over().await;
    carry(&mut writer, &[&first, &second]).await;
    same(&read_on(&mut reader, cursor(7, 1)).await, &second);
    assert_eq!(say::<usize>(cluster.replica.port(), &format!("EXISTS {META}")).await, 1);
    // Whoever comes now finds it at once, also by the one that has given it away.
    let mut late = Reader::new(&super::config(Cluster::url(&[cluster.owner.port()])), SOURCE).unwrap();
    same(&within("a page", late.next(None)).await.unwrap().unwrap(), &first);
}

#[tokio::test]
async fn a_member_is_told_from_a_single_server_and_a_slot_that_moves_from_one_that_stays() {
    let cluster = Cluster::start(META).await;
    let mut plain = connect(&config(cluster.other.url())).await.unwrap();
    let refused = plain.claim(super::FENCE).await.unwrap_err();
    assert!(matches!(&refused, RedisError::Unsuitable(why) if why.contains("redis-cluster://")), "{refused}");

    let config = config(Cluster::url(&[cluster.owner.port()]));
    let mut writer = connect(&config).await.unwrap();
    carry(&mut writer, &[&begins(at(6, 0), at(7, 1))]).await;
    let (from, to) = (cluster.owner.port(), cluster.other.port());
    let ids: [String; 2] = [say(from, "CLUSTER MYID").await, say(to, "CLUSTER MYID").await];
    let slot = cluster.slot;
    let _: () = say(to, &format!("CLUSTER SETSLOT {slot} IMPORTING {}", ids[0])).await;
    let _: () = say(from, &format!("CLUSTER SETSLOT {slot} MIGRATING {}", ids[1])).await;
    let mut keys: Vec<String> = say(from, &format!("CLUSTER GETKEYSINSLOT {slot} 10")).await;
    // The one that is looked at goes first.
    keys.sort_unstable_by_key(|key| key != META);
    for key in &keys {
        let _: () = say(from, &format!("MIGRATE 127.0.0.1 {to} {key} 0 5000")).await;
        let moving = writer.check().await;
        assert!(matches!(moving, Err(RedisError::Away(_))), "{moving:?}");
        let moving = connect(&config).await.unwrap_err();
        assert!(matches!(&moving, RedisError::Away(why) if why.contains("moves")), "{moving}");
    }
    for member in [to, from] {
        let _: () = say(member, &format!("CLUSTER SETSLOT {slot} NODE {}", ids[1])).await;
    }
    let second = page(at(7, 1), at(8, 1));
    carry(&mut writer, &[&second]).await;
    assert_eq!(say::<usize>(to, "XLEN walcast:{orders}:00000000000000ab:log").await, 2);
}

#[tokio::test]
async fn the_documented_rights_are_enough_in_a_cluster() {
    let cluster = Cluster::start(META).await;
    let edge = Edge::start().await;
    edge.put("vm/a", "1");
    let values = super::values::all(&edge).await;
    for member in cluster.members() {
        super::suit::allow_documented(&Lab::of(member).await, &[]).await;
    }
    let url = Cluster::url(&[cluster.other.port()]).replace("//", "//walcast:secret@");
    let owner = Lab::of(&cluster.owner).await;
    within("everything", super::suit::everything(&owner, url, &values)).await.unwrap();
}
