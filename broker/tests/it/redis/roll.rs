//! Who waits at which node, as nodes tell each other.

use std::sync::Arc;

use walcast::backbone::redis::{Book, STANDS};
use walcast::hub::roll::{Name, Named, Roll};

use super::{Lab, SOURCE};

const NODES: &str = "walcast:{orders}:nodes";

fn roll() -> Roll {
    let name = Name { client: "x \"ü".into(), transport: "sse".into(), since_ms: 1_700_000_000_123 };
    let topics = vec!["vm/*".parse().unwrap(), "jobs".parse().unwrap()];
    let counts = topics.iter().cloned().zip([2, 1]).collect();
    Roll { waiting: 5, topics: counts, named: vec![Arc::new(Named { name, topics })], truncated: true }
}

#[tokio::test]
async fn others_read_what_a_node_says() {
    let lab = Lab::start().await;
    let book = || Book::new(&lab.config(), SOURCE).unwrap();
    let (a, b, reader) = (book(), book(), book());
    assert_eq!(reader.read().await.unwrap().rolls, []);
    a.write("a", &roll()).await.unwrap();
    b.write("b", &Roll::default()).await.unwrap();
    let elsewhere = reader.read().await.unwrap();
    assert!(!elsewhere.partial && elsewhere.rolls.iter().all(|told| told.age < STANDS), "{elsewhere:?}");
    let told: Vec<_> = elsewhere.rolls.into_iter().map(|told| (told.node, told.roll)).collect();
    assert_eq!(told, [("a".to_owned(), roll()), ("b".to_owned(), Roll::default())]);
    // Its own is not elsewhere.
    assert_eq!(a.read().await.unwrap().rolls.len(), 1);
    a.leave().await.unwrap();
    assert_eq!(reader.read().await.unwrap().rolls.len(), 1);
    let members: usize = lab.say(&format!("SCARD {NODES}")).await;
    assert_eq!(members, 1);
}

#[tokio::test]
async fn a_word_that_cannot_be_read_or_is_gone_hides_no_other() {
    let lab = Lab::start().await;
    let book = || Book::new(&lab.config(), SOURCE).unwrap();
    let (a, reader) = (book(), book());
    let _: usize = lab.say(&format!("SADD {NODES} gone newer")).await;
    let _: String = lab.say("SET walcast:{orders}:node:newer {} PX 60000").await;
    a.write("a", &roll()).await.unwrap();
    let elsewhere = reader.read().await.unwrap();
    assert!(elsewhere.partial);
    assert_eq!(elsewhere.rolls.len(), 1);
    let members: usize = lab.say(&format!("SCARD {NODES}")).await;
    assert_eq!(members, 2, "who is gone is forgotten");
}
