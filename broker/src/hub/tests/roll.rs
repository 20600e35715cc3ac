//! Who waits is counted as it is, and named as far as there is room.

use crate::hub::roll::Name;

use super::*;

/// As many as names, and as many as one look goes through.
const ROOM: usize = 10_000;

fn patterns(texts: &[&str]) -> Vec<TopicPattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn called(subscription: Subscription, client: &str) -> Subscription {
    subscription.name(Name { client: client.into(), transport: "poll".into(), since_ms: 7 });
    subscription
}

/// How many wait for these, and who of them by name.
fn who(hub: &Hub, asked: &[&str]) -> (usize, Vec<String>) {
    let asked = patterns(asked);
    let roll = hub.roll(&asked);
    let mut named: Vec<String> = roll
        .named_for(&asked)
        .flat_map(|(name, topics)| topics.into_iter().map(move |topic| format!("{} {topic}", name.client)))
        .collect();
    named.sort();
    (roll.waiting_for(&asked), named)
}

#[track_caller]
fn check(hub: &Hub, asked: &[&str], waiting: usize, named: &[&str]) {
    let (found, names) = who(hub, asked);
    assert_eq!((found, names.iter().map(String::as_str).collect()), (waiting, named.to_vec()), "{asked:?}");
}

#[test]
fn waits_are_counted_and_named_ones_shown() {
    let feed = Feed::settled(100);
    let hub = Arc::clone(&feed.hub);
    check(&hub, &[], 0, &[]);
    let x = called(feed.subscribe(&["vm/a", "jobs"], From::Now), "x");
    let unnamed = feed.subscribe(&["vm/a"], From::Now);
    let y = called(feed.subscribe(&["vm/*"], From::Now), "y");
    check(&hub, &[], 3, &["x jobs", "x vm/a", "y vm/*"]);
    check(&hub, &["vm/a"], 3, &["x vm/a", "y vm/*"]);
    check(&hub, &["vm/b"], 1, &["y vm/*"]);
    check(&hub, &["vm/**", "jobs"], 4, &["x jobs", "x vm/a", "y vm/*"]);
    check(&hub, &["*"], 1, &["x jobs"]);
    check(&hub, &["none"], 0, &[]);
    drop(unnamed);
    check(&hub, &["vm/a"], 2, &["x vm/a", "y vm/*"]);
    drop(x);
    check(&hub, &[], 1, &["y vm/*"]);
    drop(y);
    check(&hub, &["**"], 0, &[]);
}

#[test]
fn a_name_goes_with_topics_that_come_and_go() {
    let feed = Feed::settled(100);
    let mut main = called(feed.subscribe(&["a"], From::Now), "x");
    let joining = called(feed.subscribe(&["b", "a"], From::Now), "x");
    check(&feed.hub, &[], 2, &["x a", "x a", "x b"]);
    assert!(main.add(joining).is_ok());
    check(&feed.hub, &[], 1, &["x a", "x b"]);
    main.remove(&patterns(&["a"]));
    check(&feed.hub, &[], 1, &["x b"]);
    // Whoever takes the place next has no name.
    drop(main);
    let _next = feed.subscribe(&["a"], From::Now);
    check(&feed.hub, &[], 1, &[]);
}

#[test]
fn names_without_room_are_counted_and_room_comes_back() {
    let feed = Feed::settled(100);
    let mut kept: Vec<_> = (0..ROOM).map(|_| called(feed.subscribe(&["a"], From::Now), "x")).collect();
    assert!(!feed.hub.roll(&[]).truncated);
    let late = called(feed.subscribe(&["a"], From::Now), "late");
    let roll = feed.hub.roll(&[]);
    assert_eq!((roll.waiting, roll.named.len(), roll.truncated), (ROOM + 1, ROOM, true));
    drop(late);
    kept.pop();
    assert!(!feed.hub.roll(&[]).truncated);
    // Of two topics there is room for one.
    kept.push(called(feed.subscribe(&["b", "c"], From::Now), "two"));
    check(&feed.hub, &["b", "c"], 2, &["two b"]);
    assert!(feed.hub.roll(&[]).truncated);
    kept.clear();
    let _new = called(feed.subscribe(&["a"], From::Now), "new");
    check(&feed.hub, &[], 1, &["new a"]);
    assert!(!feed.hub.roll(&[]).truncated);
}

#[test]
fn a_look_has_an_end_and_says_so() {
    let feed = Feed::settled(100);
    let topics: Vec<String> = (0..=ROOM).map(|n| format!("vm/{n}")).collect();
    let _kept: Vec<_> = topics.iter().map(|topic| feed.subscribe(&[topic.as_str()], From::Now)).collect();
    let roll = feed.hub.roll(&patterns(&["**"]));
    assert_eq!((roll.waiting, roll.topics.len(), roll.truncated), (ROOM + 1, ROOM, true));
    // A topic is found without a look at others.
    for topic in &topics {
        let asked = patterns(&[topic]);
        let roll = feed.hub.roll(&asked);
        assert_eq!((roll.waiting_for(&asked), roll.truncated), (1, false));
    }
}

proptest! {
    #[test]
    fn counts_agree_with_what_was_subscribed_to(
        waits in prop::collection::vec(
            prop::collection::btree_set("([ab]|\\*)(/([ab]|\\*)){0,2}(/\\*\\*)?|\\*\\*", 1..4), 0..12),
        left in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        asked in prop::collection::btree_set("([ab]|\\*)(/([ab]|\\*)){0,2}(/\\*\\*)?|\\*\\*", 1..4),
    ) {
        let feed = Feed::settled(100);
        let subscribe = |(n, topics): (usize, std::collections::BTreeSet<String>)| {
            let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
            called(feed.subscribe(&topics, From::Now), &n.to_string())
        };
        let mut waits: Vec<Subscription> = waits.into_iter().enumerate().map(subscribe).collect();
        for index in left {
            if !waits.is_empty() {
                waits.swap_remove(index.index(waits.len()));
            }
        }
        let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
        let concerned = patterns(&asked);
        let topics = waits.iter().flat_map(|wait| wait.topics());
        let expected = topics.filter(|topic| concerned.iter().any(|asked| asked.overlaps(topic))).count();
        let (waiting, named) = who(&feed.hub, &asked);
        prop_assert_eq!((waiting, named.len()), (expected, expected));
        prop_assert_eq!(who(&feed.hub, &[]).0, waits.len());
    }
}
