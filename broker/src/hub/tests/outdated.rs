//! Rules that change, and what followers turn out to hold that is not there.

use super::*;

#[test]
fn only_what_overlaps_waits_for_a_table_that_is_read_again() {
    let mut feed = Feed::settled(1);
    feed.send(vec![put(101, 10, "vm/a", "1")]);
    feed.send(vec![message(103, 1, "x")]);
    let value = |feed: &Feed, topic: &str| match feed.hub.current(&Topic::new(topic).unwrap()) {
        Current::Unsettled => "unsettled".to_owned(),
        Current::None => "none".to_owned(),
        Current::Value(value) => String::from_utf8(value.data().to_vec()).unwrap(),
    };
    feed.note(outdated("public.other", &["old/*", "new/*/x"], false));
    // From the moment on when the rules change, and until it was read to the end.
    for step in 0..3 {
        match step {
            0 => {}
            1 => feed.note(reads("public.other", "other/*")),
            _ => feed.end_seed("20:20:", Position::before(110)),
        }
        let found = ["vm/a", "vm/b", "old/1", "new/1/x", "new/1"].map(|topic| value(&feed, topic));
        assert_eq!(found, ["1", "none", "unsettled", "unsettled", "none"], "{step}");
        let check = |topics: &[&str], expected: &[&str]| {
            assert_eq!(events(&mut feed.subscribe(topics, From::Current), 10), expected, "{step}");
        };
        check(&["vm/*"], &["101:1 vm/a snapshot 1"]);
        check(&["vm/*", "new/**"], &[]);
        check(&["**"], &[]);
        assert_eq!((feed.hub.status().settled, feed.hub.outdated()), (false, vec!["public.other".into()]));
    }
    feed.send_upto(vec![], Position::before(110));
    assert_eq!(events(&mut feed.subscribe(&["**"], From::Current), 10), ["101:1 vm/a snapshot 1"]);
    assert!(feed.hub.status().settled);
}

#[test]
fn rules_that_change_before_a_table_settles_have_it_read_again() {
    let mut feed = Feed::settled(1);
    let read = |feed: &mut Feed, settle| {
        feed.begin_seed();
        feed.seed("20:20:", vec![seeded("vm/a", "1")]);
        feed.end_seed("20:20:", Position::before(settle));
    };
    feed.note(outdated("public.vms", &["vm/*"], false));
    read(&mut feed, 110);
    feed.note(outdated("public.vms", &["vm/*", "new/*"], false));
    feed.send_upto(vec![], Position::before(110));
    assert_eq!(feed.hub.outdated(), [Arc::from("public.vms")]);
    read(&mut feed, 120);
    feed.send_upto(vec![], Position::before(120));
    assert!(feed.hub.status().settled);
}

#[test]
fn who_followed_topics_of_a_rule_that_changed_begins_anew() {
    let mut feed = Feed::settled(100);
    feed.send(vec![put(101, 10, "vm/a", "1"), put(101, 10, "vm/b", "1")]);
    let mut live = feed.subscribe(&["vm/*"], From::Now);
    let mut other = feed.subscribe(&["x"], From::Now);
    // A long-poll that is between two requests.
    let between = From::After(feed.hub.head().unwrap());
    assert_eq!(events(&mut live, 10), [""; 0]);
    feed.note(outdated("public.vms", &["vm/*"], true));
    let mut newcomer = feed.subscribe(&["vm/*"], From::Current);
    assert_eq!(events(&mut newcomer, 10), [""; 0]);
    feed.begin_seed();
    feed.seed("20:20:", vec![seeded("vm/b", "1")]);
    feed.end_seed("20:20:", Position::before(110));
    // The next transaction may lie where the last one ended.
    feed.send_upto(vec![message(102, 1, "x")], Position::before(103));
    assert_eq!(events(&mut live, 10), ["reset Gap"]);
    assert_eq!(events(&mut other, 10), ["102:1 x message 1"]);
    feed.send_upto(vec![], Position::before(110));
    for mut told_before in [live, feed.subscribe(&["vm/*", "x"], between)] {
        if told_before.topics().len() > 1 {
            assert_eq!(events(&mut told_before, 10), ["reset Gap"]);
        }
        assert_eq!(events(&mut told_before, 10), ["110:0 vm/b snapshot 1"]);
        assert_eq!(events(&mut told_before, 10), [""; 0]);
        let mut again = feed.subscribe(&["vm/*"], From::After(told_before.bookmark()));
        assert_eq!(events(&mut again, 10), [""; 0]);
    }
    assert_eq!(events(&mut newcomer, 10), ["110:0 vm/b snapshot 1"]);
    assert_eq!(events(&mut newcomer, 10), [""; 0]);
    assert_eq!(events(&mut feed.subscribe(&["vm/*"], From::Earliest), 10), ["110:0 vm/b snapshot 1"]);
    // Others go on from where they were, but not over a restart.
    assert_eq!(events(&mut feed.subscribe(&["x"], between), 10), ["102:1 x message 1"]);
    let withdrawn =
        Window { quiet_from: Position::before(103), replay_from: 103, withdrawn: 103, waits: false };
    assert_eq!(feed.hub.window(), Some(withdrawn));
    feed.note(outdated("public.vms", &["vm/*"], true));
    assert_eq!(feed.hub.window(), Some(Window { waits: true, ..withdrawn }), "cursors may be here");
}

#[test]
fn who_holds_what_no_event_took_away_begins_anew_when_the_values_are_exact() {
    let mut feed = Feed::settled(100);
    feed.send(vec![put(101, 10, "vm/a", "1")]);
    let mut vm = feed.subscribe(&["vm/a"], From::Now);
    feed.begin_seed();
    feed.end_seed("20:20:", feed.head);
    feed.send_upto(vec![], Position::before(110));
    feed.send(vec![message(111, 1, "x")]);
    assert_eq!(events(&mut vm, 10), ["reset Gap"]);
}

#[test]
fn who_waited_for_values_while_rules_changed_is_told_nothing_of_the_old_ones() {
    let mut feed = Feed::new(100);
    let mut early = feed.subscribe(&["vm/*"], From::Current);
    feed.begin_seed();
    feed.end_seed("1:1:", feed.head);
    feed.send(vec![put(101, 10, "vm/a", "1")]);
    feed.note(outdated("public.vms", &["vm/*"], true));
    feed.send(vec![put(103, 11, "vm/b", "1")]);
    feed.begin_seed();
    feed.seed("20:20:", vec![seeded("vm/b", "1")]);
    feed.end_seed("20:20:", feed.head);
    feed.send(vec![put(105, 25, "vm/c", "1")]);
    assert_eq!(events(&mut early, 1), ["reset Gap"]);
    assert_eq!(events(&mut early, 10), ["103:1 vm/b update 1", "105:1 vm/c update 1"]);
}

#[test]
fn who_was_told_of_a_row_that_turns_out_to_be_no_member_begins_anew() {
    let mut feed = Feed::new(100);
    let start = From::After(feed.hub.head().unwrap());
    feed.begin_seed();
    let put = |lsn, xid, topic| state(lsn, xid, topic, Op::Update, Effect::PutIfPresent, "1");
    feed.send(vec![put(101, 25, "vm/a")]);
    feed.seed("20:20:", vec![seeded("vm/c", "1")]);
    feed.send(vec![put(103, 15, "vm/b"), put(103, 15, "vm/c")]);
    let mut followers = ["vm/a", "vm/b", "vm/c"].map(|topic| feed.subscribe(&[topic], start));
    followers.iter_mut().for_each(|follower| assert_eq!(events(follower, 10).len(), 1));
    feed.end_seed("20:20:", Position::before(110));
    feed.send_upto(vec![], Position::before(110));
    feed.send(vec![message(111, 1, "x")]);
    let told = followers.map(|mut follower| events(&mut follower, 10));
    assert_eq!(told, [vec!["reset Gap"], vec!["reset Gap"], vec![]]);
}

/// A seed may find that many who were told of rows hold what is not there: those who follow other tables, or no table,
/// have nothing to do with it.
#[test]
fn however_many_rows_are_no_members_only_their_table_begins_anew() {
    let mut feed = Feed::new(1000);
    let start = From::After(feed.hub.head().unwrap());
    feed.note(Note::SeedBegin(Arc::from(["vm", "host"].map(|kind| Seeded {
        table: format!("public.{kind}s").into(),
        topics: vec![format!("{kind}/*").parse().unwrap()],
    }))));
    let topics: Vec<String> = (0..100).map(|number| format!("vm/{number}")).collect();
    let told = topics.iter().zip(100..).map(|(topic, lsn)| {
        let lsn = lsn * 2 + 1;
        state(lsn, 15, topic, Op::Update, Effect::PutIfPresent, "1")
    });
    feed.send(told.collect());
    let mut followers = ["vm/*", "vm/7", "host/*", "chat/*"].map(|topic| feed.subscribe(&[topic], start));
    followers.iter_mut().for_each(|follower| _ = events(follower, 1000));
    feed.end_seed("20:20:", Position::before(400));
    feed.send_upto(vec![], Position::before(400));
    feed.send(vec![message(401, 1, "chat/a")]);
    let told = followers.map(|mut follower| events(&mut follower, 10));
    assert_eq!(told, [vec!["reset Gap"], vec!["reset Gap"], vec![], vec!["401:1 chat/a message 1"]]);
}
