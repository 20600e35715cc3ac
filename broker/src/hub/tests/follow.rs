//! A hub that follows another one over a store that may lose everything tells its subscribers the same.

use std::collections::{BTreeMap, VecDeque};
use std::task::{Context, Poll};

use super::*;
use crate::hub::page::{AllValues, Answer, Outgoing, Page};
use crate::hub::relay::What;

/// What lies between two hubs: what a Redis would hold.
#[derive(Clone, Debug, Default)]
struct Store {
    place: Option<Cursor>,
    log: VecDeque<Page>,
    values: BTreeMap<Topic, Bytes>,
    inexact: Vec<TopicPattern>,
}

impl Store {
    fn append(&mut self, out: Outgoing) {
        let Outgoing { page, begins, floor, values, inexact } = out;
        if begins {
            *self = Self::default();
        } else {
            assert_eq!(self.place, Some(Cursor::new(page.epoch, page.after)), "pages join");
        }
        assert!(page.upto > page.after || page.events.is_empty() && page.remarks.is_empty());
        self.place = Some(Cursor::new(page.epoch, page.upto));
        let mut topics: Vec<_> = values.iter().map(|(topic, _)| topic.clone()).collect();
        topics.sort_unstable();
        topics.dedup();
        assert_eq!(topics.len(), values.len(), "each topic once");
        for (topic, value) in values {
            match value {
                Some(value) => self.values.insert(topic, value),
                None => self.values.remove(&topic),
            };
        }
        self.inexact = inexact;
        if page.upto > page.after {
            self.log.push_back(page);
        }
        while self.log.front().is_some_and(|page| page.upto <= floor) {
            self.log.pop_front();
        }
    }

    fn take_all(&mut self, all: AllValues) {
        assert_eq!(self.place.map(|place| place.position), Some(all.at));
        self.values = all.values.map(|value| (value.topic().clone(), value.json())).collect();
        self.inexact = all.inexact;
    }

    fn answer(&self, question: Vec<TopicPattern>) -> Option<Answer> {
        let place = self.place?;
        let find = |pattern: TopicPattern| {
            let values = self.values.iter().filter(|(topic, _)| pattern.matches(topic));
            let values = values.map(|(_, json)| Arc::new(Encoded::read(json).unwrap())).collect();
            (pattern, values)
        };
        let values = question.into_iter().map(find).collect();
        let (since, at) = (place.position, place.position);
        Some(Answer { epoch: place.epoch, since, at, inexact: self.inexact.clone(), values })
    }
}

/// A hub that leads, and one that follows.
struct Pair {
    leader: Feed,
    store: Store,
    follower: Arc<Hub>,
    /// Where it is in the store's log.
    read: Position,
}

impl Pair {
    fn new(events: usize) -> Self {
        let leader = Feed::settled(events);
        leader.hub.lead();
        assert!(leader.hub.claim(None));
        let mut pair = Self { leader, store: Store::default(), follower: hub(events), read: Position::ZERO };
        pair.follower.follow_others();
        pair.pass_on();
        pair
    }

    /// Carries what there is, at most so many things.
    fn carry(&mut self, most: usize) {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..most {
            let Poll::Ready(Some(relayed)) = self.leader.hub.poll_relay(&mut cx) else { return };
            match relayed.what.clone() {
                What::Page(out) => self.store.append(out),
                What::Values(all) => self.store.take_all(all),
            }
            self.leader.hub.carried(&relayed, self.leader.now);
        }
    }

    /// The follower reads what is new to it.
    fn read(&mut self) {
        let read = self.read;
        for page in self.store.log.iter().filter(|page| page.upto > read) {
            self.follower.follow(page, self.leader.now);
            self.read = page.upto;
        }
        // The head says what a log without entries does not.
        if let Some(Cursor { epoch, position }) = self.store.place
            && (position > self.read || self.follower.head().is_none())
        {
            let page = Page { epoch, after: position, upto: position, remarks: vec![], events: vec![] };
            self.follower.follow(&page, self.leader.now);
            self.read = position;
        }
    }

    fn ask(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        for lane in [Lane::Topics, Lane::Patterns] {
            while let Poll::Ready(question) = self.follower.poll_wanted(lane, &mut cx)
                && let Some(answer) = self.store.answer(question)
            {
                self.follower.answer(answer);
            }
        }
    }

    fn pass_on(&mut self) {
        self.carry(usize::MAX);
        self.read();
        self.ask();
    }

    fn subscribe(&self, topics: &[&str], from: From) -> Subscription {
        let topics = topics.iter().map(|topic| topic.parse().unwrap()).collect();
        self.follower.subscribe(topics, from).unwrap()
    }

    /// What a follower's subscriber is told, asking for values where that is needed.
    #[track_caller]
    fn told(&mut self, subscription: &mut Subscription) -> Vec<String> {
        match events(subscription, 10) {
            told if told.is_empty() => {
                self.ask();
                events(subscription, 10)
            }
            told => told,
        }
    }
}

#[test]
fn events_and_values_are_the_same_on_both() {
    let mut pair = Pair::new(100);
    pair.leader.send(vec![put(101, 5, "vm/a", r#"{"n":1}"#), message(102, 1, "b")]);
    pair.pass_on();
    let mut current = pair.subscribe(&["vm/*", "b"], From::Current);
    assert_eq!(pair.told(&mut current), [r#"101:1 vm/a snapshot {"n":1}"#]);
    let mut earliest = pair.subscribe(&["vm/a", "b"], From::Earliest);
    assert_eq!(pair.told(&mut earliest), [r#"101:1 vm/a update {"n":1}"#, "102:1 b message 1"]);
    pair.leader.send(vec![clear(103, 6, "vm/a")]);
    pair.pass_on();
    assert_eq!(pair.told(&mut current), [r#"103:1 vm/a delete {"id":1}"#]);
    let mut late = pair.subscribe(&["vm/a"], From::Current);
    assert_eq!(pair.told(&mut late), [""; 0]);
    assert_eq!(pair.follower.head(), pair.leader.hub.head());
}

#[test]
fn values_are_those_of_the_followers_own_head() {
    let mut pair = Pair::new(100);
    pair.leader.send(vec![put(101, 5, "vm/a", "1")]);
    pair.pass_on();
    let mut early = pair.subscribe(&["vm/a"], From::Current);
    // The store goes on before the follower does: the value is told by the event.
    pair.leader.send(vec![put(102, 5, "vm/a", "2")]);
    pair.carry(usize::MAX);
    assert_eq!(events(&mut early, 10), [""; 0]);
    pair.ask();
    assert_eq!(events(&mut early, 10), [""; 0], "it has not come there yet");
    pair.read();
    assert_eq!(events(&mut early, 10), ["102:1 vm/a update 2"]);
    // What was answered is known now, as long as nothing changes it.
    let mut next = pair.subscribe(&["vm/a"], From::Current);
    assert_eq!(events(&mut next, 10), ["102:1 vm/a snapshot 2"]);
    pair.leader.send(vec![put(103, 5, "vm/b", "1"), put(104, 5, "vm/a", "3")]);
    pair.pass_on();
    let mut last = pair.subscribe(&["vm/a"], From::Current);
    assert_eq!(events(&mut last, 10), [""; 0]);
    assert_eq!(pair.told(&mut last), ["104:1 vm/a snapshot 3"]);
}

#[test]
fn values_that_took_a_while_are_for_those_who_stood_there_before() {
    let mut pair = Pair::new(100);
    pair.leader.send(vec![put(101, 5, "vm/a", "1")]);
    pair.pass_on();
    let mut before = pair.subscribe(&["vm/*"], From::Current);
    assert_eq!(events(&mut before, 10), [""; 0]);
    // Its topic was read, and changed before the rest was.
    let answer = pair.store.answer(vec!["vm/*".parse().unwrap()]).unwrap();
    pair.leader.send(vec![put(102, 5, "vm/a", "2")]);
    pair.carry(usize::MAX);
    pair.read();
    let mut during = pair.subscribe(&["vm/*"], From::Current);
    pair.follower.answer(Answer { at: pair.store.place.unwrap().position, ..answer });
    assert_eq!(events(&mut before, 10), ["102:1 vm/a update 2"]);
    assert_eq!(events(&mut during, 10), [""; 0]);
    pair.ask();
    assert_eq!(events(&mut during, 10), ["102:1 vm/a snapshot 2"]);
}

#[test]
fn values_wait_until_they_are_exact() {
    let mut pair = Pair::new(100);
    pair.leader.note(outdated("public.vms", &["vm/*"], false));
    pair.leader.send(vec![message(101, 1, "b")]);
    pair.pass_on();
    let mut waits = pair.subscribe(&["vm/a"], From::Current);
    assert_eq!(pair.told(&mut waits), [""; 0]);
    pair.leader.begin_seed();
    pair.leader.seed("9:9:", vec![seeded("vm/a", "7")]);
    pair.leader.end_seed("9:9:", pair.leader.head);
    pair.pass_on();
    pair.pass_on();
    assert_eq!(pair.told(&mut waits).len(), 1);
    assert_eq!(pair.follower.status().values, 1);
}

#[test]
fn values_that_changed_without_an_event_are_asked_for_anew() {
    let mut pair = Pair::new(100);
    let mut state = pair.subscribe(&["vm/a"], From::Current);
    assert_eq!(pair.told(&mut state), [""; 0], "there is none, and that is known now");
    pair.leader.begin_seed();
    pair.leader.seed("9:9:", vec![seeded("vm/a", "7")]);
    pair.leader.end_seed("9:9:", pair.leader.head);
    pair.leader.send(vec![message(101, 1, "b")]);
    pair.pass_on();
    let mut state = pair.subscribe(&["vm/a"], From::Current);
    assert_eq!(pair.told(&mut state).len(), 1);
    pair.follower.forget_values();
    assert_eq!(pair.follower.status().values, 0);
}

#[test]
fn a_store_that_lost_everything_is_filled_from_history() {
    let mut pair = Pair::new(100);
    pair.leader.send(vec![message(101, 1, "a")]);
    pair.pass_on();
    let mut subscription = pair.subscribe(&["a"], From::Now);
    pair.leader.send(vec![message(102, 1, "a"), put(103, 5, "vm/a", "1")]);
    pair.store = Store::default();
    assert!(pair.leader.hub.claim(None));
    pair.pass_on();
    assert_eq!(pair.told(&mut subscription), ["102:1 a message 1"], "no reset");
    let late = hub(100);
    late.follow_others();
    for page in &pair.store.log {
        late.follow(page, pair.leader.now);
    }
    let mut earliest = late
        .subscribe(vec!["a".parse().unwrap()], From::After(Cursor::new(Epoch(1), Position::before(100))))
        .unwrap();
    assert_eq!(events(&mut earliest, 10), ["101:1 a message 1", "102:1 a message 1"]);
    let mut state = pair.subscribe(&["vm/*"], From::Current);
    assert_eq!(pair.told(&mut state), ["103:1 vm/a snapshot 1"]);
}

#[test]
fn what_the_log_no_longer_has_is_told_as_a_reset() {
    let mut pair = Pair::new(100);
    let mut subscription = pair.subscribe(&["a"], From::Now);
    pair.leader.send(vec![message(101, 1, "a")]);
    pair.carry(usize::MAX);
    pair.store.log.clear();
    pair.read();
    assert_eq!(pair.told(&mut subscription), ["reset Gap"]);
}

#[test]
fn what_is_withdrawn_or_void_is_so_on_both() {
    let mut pair = Pair::new(100);
    pair.leader.send(vec![message(101, 1, "vm/a"), message(101, 2, "b")]);
    pair.pass_on();
    let (mut a, mut b) = (pair.subscribe(&["vm/a"], From::Now), pair.subscribe(&["b"], From::Now));
    pair.leader.note(outdated("public.vms", &["vm/*"], true));
    pair.leader.send(vec![message(105, 1, "b")]);
    pair.pass_on();
    assert_eq!(pair.told(&mut a), ["reset Gap"]);
    assert_eq!(pair.told(&mut b), ["105:1 b message 1"]);
}

#[test]
fn a_cursor_that_is_ahead_waits() {
    let mut pair = Pair::new(100);
    let ahead = Cursor::new(Epoch(1), Position::new(105, 1));
    let mut subscription = pair.subscribe(&["a"], From::After(ahead));
    pair.leader.send(vec![message(104, 1, "a"), message(105, 1, "a"), message(106, 1, "a")]);
    pair.pass_on();
    assert_eq!(pair.told(&mut subscription), ["106:1 a message 1"]);
}

#[test]
fn a_cursor_that_is_ahead_waits_for_the_stream_of_a_new_leader() {
    let mut pair = Pair::new(100);
    pair.leader.send(vec![message(101, 1, "a")]);
    pair.pass_on();
    // The leader told more than it carried, and was gone.
    let ahead = Cursor::new(Epoch(1), Position::new(105, 1));
    let mut feed = Feed { hub: Arc::clone(&pair.follower), head: Position::before(101), ..pair.leader };
    assert!(feed.hub.lead());
    let mut early = feed.subscribe(&["a"], From::After(ahead));
    assert_eq!(events(&mut early, 10), [""; 0]);
    feed.note(Note::Start { replay_until: Position::before(108), quiet_from: feed.head });
    feed.send(vec![message(101, 1, "a"), message(105, 1, "a"), message(107, 1, "a")]);
    assert_eq!(events(&mut early, 10), ["107:1 a message 1"]);
    let beyond = Cursor::new(Epoch(1), Position::new(109, 1));
    let mut beyond = feed.subscribe(&["a"], From::After(beyond));
    assert_eq!(events(&mut beyond, 10), ["reset Gap"], "of a log that nobody knows");
}

#[test]
fn who_follows_hears_of_a_long_quiet_stretch() {
    let mut pair = Pair::new(100);
    pair.leader.send(vec![message(101, 1, "a")]);
    pair.pass_on();
    let before = pair.follower.head();
    let mut go_to = |lsn: u64| {
        pair.leader.send_upto(Vec::new(), Position::before(lsn));
        pair.pass_on();
        pair.follower.head().map(|head| head.position)
    };
    assert_eq!(go_to(1_000), before.map(|head| head.position), "not of each step");
    assert_eq!(go_to(17 << 20), Some(Position::before(17 << 20)));
}

#[test]
fn what_was_not_carried_stays() {
    let mut pair = Pair::new(2);
    let mut cx = Context::from_waker(Waker::noop());
    for lsn in 101..105 {
        assert!(pair.leader.hub.poll_room(&mut cx).is_ready() || lsn > 103);
        pair.leader.send(vec![message(lsn, 1, "a")]);
    }
    assert!(pair.leader.hub.poll_room(&mut cx).is_pending());
    assert_eq!((pair.leader.hub.status().events, pair.leader.hub.status().uncarried), (4, 4));
    pair.pass_on();
    assert!(pair.leader.hub.poll_room(&mut cx).is_ready());
    assert_eq!(pair.leader.hub.status().events, 2);
    assert_eq!(pair.follower.status().events, 2, "its own window");
}

#[test]
fn who_followed_leads_without_a_gap() {
    let mut pair = Pair::new(100);
    pair.leader.send(vec![put(101, 5, "vm/a", "1")]);
    pair.pass_on();
    let mut subscription = pair.subscribe(&["vm/a"], From::Now);
    // The log went on, quietly, and the new leader begins there.
    let mut feed = Feed { hub: Arc::clone(&pair.follower), head: Position::before(110), ..pair.leader };
    let start = Note::Start { replay_until: feed.head, quiet_from: Position::new(101, 1) };
    feed.note(start.clone());
    assert_eq!(feed.hub.head(), pair.store.place, "it follows, and takes no batches");
    assert!(feed.hub.lead() && !feed.hub.lead());
    feed.note(start);
    assert!(feed.hub.claim(pair.store.place));
    feed.send(vec![put(111, 6, "vm/a", "2")]);
    assert_eq!(events(&mut subscription, 10), ["111:1 vm/a update 2"]);
    let mut current = feed.subscribe(&["vm/a"], From::Current);
    assert_eq!(events(&mut current, 10), [""; 0], "values are not read yet");
    feed.begin_seed();
    feed.seed("9:9:", vec![seeded("vm/a", "2")]);
    feed.end_seed("9:9:", feed.head);
    assert_eq!(events(&mut current, 10).len(), 1);
    // What is carried now joins what the leader before it carried.
    let other = hub(100);
    other.follow_others();
    let mut pair = Pair { leader: feed, store: pair.store, follower: other, read: Position::ZERO };
    pair.pass_on();
    let mut state = pair.subscribe(&["vm/a"], From::Current);
    assert_eq!(pair.told(&mut state).len(), 1);
}

#[test]
fn who_leads_again_carries_values_as_new_as_what_another_carried() {
    let mut pair = Pair::new(100);
    pair.leader.send(vec![put(101, 5, "vm/a", "1")]);
    pair.pass_on();
    // Another one led for a moment, and knew little of the values.
    let place = Cursor::new(Epoch(1), Position::before(106));
    pair.store.place = Some(place);
    pair.store.values.clear();
    // As whoever claims does.
    pair.store.inexact = vec![TopicPattern::everything()];
    assert!(pair.leader.hub.claim(Some(place)));
    pair.carry(usize::MAX);
    assert_eq!(pair.store.inexact, [TopicPattern::everything()], "what is known is of before");
    pair.leader.send(vec![put(105, 5, "vm/a", "2"), put(107, 5, "vm/b", "1")]);
    pair.carry(usize::MAX);
    assert_eq!(pair.store.inexact, [] as [TopicPattern; 0]);
    let values: Vec<_> = pair.store.values.keys().map(Topic::as_str).collect();
    assert_eq!(values, ["vm/a", "vm/b"]);
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize),
    Clear(usize),
    Message,
    Carry(usize),
    Read,
    Ask,
    Lose,
    Restore,
    Keep,
    Reconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3_usize).prop_map(Step::Put),
        2 => (0..3_usize).prop_map(Step::Clear),
        3 => Just(Step::Message),
        3 => (1..4_usize).prop_map(Step::Carry),
        3 => Just(Step::Read),
        2 => Just(Step::Ask),
        1 => Just(Step::Lose),
        1 => Just(Step::Restore),
        1 => Just(Step::Keep),
        2 => Just(Step::Reconnect),
    ];
    prop::collection::vec(step, 1..60)
}

/// A client that follows everything, and what it knows.
struct Client {
    subscription: Subscription,
    values: BTreeMap<String, String>,
    messages: Vec<u64>,
    cursor: Cursor,
}

impl Client {
    fn take(&mut self) {
        while let Some(delivery) = ready(&mut self.subscription, 2) {
            match delivery {
                Delivery::Values(values) => {
                    self.values.clear();
                    values.for_each(|value| self.set(&value));
                }
                Delivery::Events(events) => events.iter().for_each(|event| self.set(event)),
                Delivery::Reset(reset) => panic!("nothing is missing: {reset:?}"),
            }
            self.cursor = self.subscription.cursor();
        }
    }

    fn set(&mut self, event: &Encoded) {
        let wire: walcast_wire::Event<serde_json::Value> = serde_json::from_slice(&event.json()).unwrap();
        match wire.op {
            Op::Message => self.messages.push(wire.cursor.position.major),
            Op::Delete => drop(self.values.remove(wire.topic.as_str())),
            _ => drop(self.values.insert(wire.topic.to_string(), wire.data.to_string())),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_client_of_the_follower_knows_what_the_leader_knows(steps in steps()) {
        let mut pair = Pair::new(10_000);
        let everything = || vec![TopicPattern::everything()];
        let subscription = pair.follower.subscribe(everything(), From::Current).unwrap();
        let cursor = subscription.cursor();
        let mut client = Client { subscription, values: BTreeMap::new(), messages: Vec::new(), cursor };
        let (mut lsn, mut sent, mut kept) = (100_u64, Vec::new(), pair.store.clone());
        for step in steps {
            lsn += 1;
            match step {
                Step::Put(topic) => {
                    let data: &'static str = ["1", "2", "3", "4"][usize::try_from(lsn % 4).unwrap()];
                    pair.leader.send(vec![put(lsn, 5, ["vm/a", "vm/b", "vm/c"][topic], data)]);
                }
                Step::Clear(topic) => pair.leader.send(vec![clear(lsn, 5, ["vm/a", "vm/b", "vm/c"][topic])]),
                Step::Message => {
                    pair.leader.send(vec![message(lsn, 1, "m")]);
                    sent.push(lsn);
                }
                Step::Carry(most) => pair.carry(most),
                Step::Read => pair.read(),
                Step::Ask => pair.ask(),
                Step::Lose => {
                    pair.store = Store::default();
                    pair.leader.hub.claim(None);
                }
                Step::Keep => kept = pair.store.clone(),
                Step::Restore => {
                    pair.store = kept.clone();
                    // As whoever claims does.
                    pair.store.inexact = everything();
                    pair.leader.hub.claim(pair.store.place);
                }
                Step::Reconnect => {
                    client.take();
                    client.subscription = pair.follower.subscribe(everything(), From::After(client.cursor)).unwrap();
                }
            }
            client.take();
        }
        for _ in 0..3 {
            pair.pass_on();
            client.take();
        }
        prop_assert_eq!(client.messages, sent);
        let mut check = pair.leader.subscribe(&["vm/*"], From::Current);
        let mut expected = BTreeMap::new();
        if let Some(Delivery::Values(values)) = ready(&mut check, 10) {
            for value in values {
                expected.insert(value.topic().to_string(), String::from_utf8(value.data().to_vec()).unwrap());
            }
        }
        prop_assert_eq!(client.values, expected);
    }
}
