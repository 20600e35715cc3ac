//! `walcast.py`, against a broker that is stopped, cut off and hostile.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;
use walcast_client::Canary;
use walcast_client::wire::encode_segment;

use crate::faults::{Proxy, canned};
use crate::place::{Place, Program, curl, directory, file, until, within};

/// A Python that has all that the examples import. The tests have no other place where it is chosen; `scripts/setup`
/// sees that there is one, by the same rule.
pub(crate) fn python() -> &'static str {
    let fits = |python: &&str| {
        let import = ["-c", "import requests, flask, psycopg2"];
        let status = std::process::Command::new(python).args(import).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let found = ["python3", "/usr/bin/python3"].into_iter().find(|python| fits(python));
    found.expect("no python3 has requests, flask and psycopg2: run scripts/setup")
}

/// The command line of `walcast.py`.
fn walcast(url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(python());
    command.arg(file("python/walcast.py")).args(["--url", url]).args(args);
    command
}

/// What a script says that has imported it.
async fn script(text: &str, args: &[&str]) -> Value {
    let mut command = Command::new(python());
    command
        .args(["-c", text])
        .args(args)
        .env("PYTHONPATH", file("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let lines = Program::run(command).ends().await;
    serde_json::from_str(lines.last().unwrap()).unwrap()
}

fn event(line: Option<String>) -> Value {
    serde_json::from_str(&line.expect("it goes on")).unwrap()
}

/// Publishes these numbers, each in a transaction of its own.
async fn publish(place: &Place, numbers: std::ops::Range<i64>) {
    for number in numbers {
        place.execute(&format!("SELECT walcast.publish('log', '{number}')")).await;
    }
}

#[tokio::test]
async fn cuts_and_restarts_lose_nothing_and_repeat_nothing() {
    let mut place = Place::new("python_cuts").await;
    let proxy = Proxy::start(place.port()).await;
    let mut follower = Program::run(walcast(&proxy.url(), &["follow", "log"]));
    place.somebody_waits("log").await;
    let mut expected = 0;
    for round in 0..12 {
        // The next answers are cut here and there, from before their first byte to behind it all.
        proxy.cut_after([0, 1, 40, 200, 300, 700, 1200, 2500][round % 8]);
        publish(&place, expected..expected + 7).await;
        if round % 5 == 4 {
            place.stop().await;
            publish(&place, expected + 7..expected + 9).await;
            place.start().await;
        }
        let until = expected + if round % 5 == 4 { 9 } else { 7 };
        while expected < until {
            let event = event(follower.line().await);
            assert_eq!(event["data"], expected, "{event}");
            expected += 1;
        }
    }
    assert!(proxy.cuts() >= 8, "{} cuts", proxy.cuts());
}

#[tokio::test]
async fn a_cursor_file_outlives_a_kill() {
    let place = Place::new("python_file").await;
    let path = format!("{}/cursor", directory("python-file"));
    let args = ["follow", "log", "--cursor-file", &path];
    let mut expected = 0;
    for _ in 0..3 {
        let mut follower = Program::run(walcast(&place.url(), &args));
        if expected == 0 {
            place.somebody_waits("log").await;
        }
        // From the second time on these come while nobody follows, and are all that comes.
        let mut last = Value::Null;
        for number in expected..expected + 20 {
            if expected == 0 {
                publish(&place, number..number + 1).await;
            }
            last = event(follower.line().await);
            assert_eq!(last["data"], number);
        }
        expected += 20;
        // It asked for the next one, so it is done with this one. Cursors sort as their places do.
        let last = last["cursor"].as_str().unwrap();
        let kept = async || std::fs::read_to_string(&path).is_ok_and(|kept| kept.trim() >= last);
        until("the place is kept", kept).await;
        follower.child.kill().await.unwrap();
        publish(&place, expected..expected + 20).await;
    }
    std::fs::write(&path, "something else").unwrap();
    let output = within("it ends", walcast(&place.url(), &args).output()).await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("holds no cursor"), "{said}");
}

#[tokio::test]
async fn a_crash_repeats_what_was_not_done_and_no_more() {
    let place = Place::new("python_crash").await;
    let directory = directory("python-crash");
    publish(&place, 0..20).await;
    // Takes some events, and dies over the last of them; or ends in good order.
    let text = "import json, os, sys, walcast
url, topic, path, count, orderly = sys.argv[1:]
walcast.SAVE_EVERY_S = 0
events = walcast.follow(url, [topic], after='earliest', cursor_file=path)
taken = [next(events) for _ in range(int(count))]
if orderly == 'yes':
    events.save()
print(json.dumps([[event.op, event.topic, event.data] for event in taken]), flush=True)
os._exit(0)";
    let take = async |topic: &str, count: &str, orderly: &str| {
        let path = format!("{directory}/{}", topic.replace("/*", ""));
        script(text, &[&place.url(), topic, &path, count, orderly]).await
    };
    for (orderly, first) in [("no", 0), ("no", 4), ("yes", 8), ("no", 13)] {
        let expected: Vec<_> = (first..first + 5).map(|number| json!(["message", "log", number])).collect();
        assert_eq!(take("log", "5", orderly).await, json!(expected));
    }

    // One change that is told on two topics is done when both are.
    place.execute("INSERT INTO vms (hostname, pin) VALUES ('a', 1)").await;
    place.execute("UPDATE vms SET hostname = 'b'").await;
    let told = take("vm/*", "3", "no").await;
    assert_eq!([&told[0][0], &told[1][0], &told[1][1]], ["insert", "delete", "vm/a"]);
    assert_eq!(told[2][1], "vm/b");
    let again = take("vm/*", "2", "yes").await;
    assert_eq!(again, json!([told[1], told[2]]));
}

#[tokio::test]
async fn current_values_come_first_and_a_reset_is_told() {
    let place = Place::new("python_reset").await;
    place.execute("INSERT INTO vms (hostname, pin) VALUES ('a', 1), ('b', 2)").await;
    let topics = |mut events: Vec<Value>| {
        events.sort_by_key(|event| event["topic"].to_string());
        events
            .iter()
            .map(|event| format!("{} {}", event["op"], event["topic"]))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let mut follower = Program::run(walcast(&place.url(), &["follow", "vm/*"]));
    let values = vec![event(follower.line().await), event(follower.line().await)];
    assert_eq!(topics(values), r#""snapshot" "vm/a", "snapshot" "vm/b""#);
    place.execute("UPDATE vms SET pin = 3 WHERE hostname = 'b'").await;
    let update = event(follower.line().await);
    assert_eq!((&update["op"], &update["data"]["pin"]), (&"update".into(), &3.into()));

    // A place of another order, as after a restored backup.
    let mut elsewhere = update["cursor"].as_str().unwrap().to_owned();
    let other = if elsewhere.as_bytes()[3] == b'A' { "B" } else { "A" };
    elsewhere.replace_range(3..4, other);
    let mut follower = Program::run(walcast(&place.url(), &["follow", "vm/*", "--after", &elsewhere]));
    let reset = event(follower.line().await);
    assert_eq!(reset["reset"]["reason"], "epoch_changed");
    let mut pins = std::collections::BTreeMap::new();
    while pins.len() < 2 || pins["vm/b"] != 3 {
        let event = event(follower.line().await);
        pins.insert(event["topic"].as_str().unwrap().to_owned(), event["data"]["pin"].clone());
    }
    assert_eq!(pins["vm/a"], 1);
}

#[tokio::test]
async fn what_repeating_does_not_change_is_raised_at_once() {
    let place = Place::of("python_refused", |config| {
        config.role = vec![toml::from_str("name = 'vm'\nsubscribe = ['vm/{sub}']").unwrap()];
        // Of the token `test`.
        let sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        config.key =
            vec![toml::from_str(&format!("sub = 'a'\nsha256 = '{sha256}'\nroles = ['vm']")).unwrap()];
    })
    .await;
    place.execute("INSERT INTO vms (hostname, pin) VALUES ('a', 1)").await;
    let refused = async |url: &str, token: &str, args: &[&str], status: &str| {
        let mut command = walcast(url, args);
        let output = within("it ends", command.env("WALCAST_TOKEN", token).output()).await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && said.contains(&format!("refused with {status}")),
            "{args:?}: {said}"
        );
    };
    let url = place.url();
    for args in [&["follow", "vm/a"][..], &["state", "vm/a"], &["publish", "vm/a", "1"]] {
        refused(&url, "", args, "401").await;
    }
    refused(&url, "test", &["follow", "vm/b"], "403").await;
    refused(&url, "test", &["follow", "vm//b"], "400").await;
    refused(&format!("{url}/elsewhere"), "test", &["follow", "vm/a"], "404").await;
    let mut follower = walcast(&url, &["follow", "vm/a"]);
    follower.env("WALCAST_TOKEN", "test");
    assert_eq!(event(Program::run(follower).line().await)["data"]["pin"], 1);
}

#[tokio::test]
async fn pauses_are_as_long_as_asked_for_and_else_random() {
    let answer =
        r#"{"cursor": "1A", "events": [{"cursor": "1A", "topic": "log", "op": "message", "data": 1}]}"#;
    let busy = "503 Service Unavailable";
    let url = canned(vec![
        (busy, "Retry-After: 7\r\n", "{}"),
        (busy, "", "{}"),
        ("200 OK", "", "<html>Sign in</html>"),
        ("200 OK", "", r#"{"error": "sign in"}"#),
        ("200 OK", "", answer),
    ])
    .await;
    let text = "import json, sys, walcast
pauses = []
walcast.time.sleep = pauses.append
event = next(walcast.follow(sys.argv[1:], ['log']))
print(json.dumps([event.data, pauses]))";
    let said = script(text, &[&url]).await;
    let pauses: Vec<f64> = serde_json::from_value(said[1].clone()).unwrap();
    let [first, second, third, fourth] = pauses[..] else { panic!("{pauses:?}") };
    assert_eq!(said[0], 1);
    assert!((7.0..=10.5).contains(&first) && first > 7.0, "{pauses:?}");
    assert!(second <= 0.4 && third <= 0.8 && fourth <= 1.6, "{pauses:?}");
}

#[tokio::test]
async fn a_broker_that_is_gone_is_passed_over() {
    let place = Place::new("python_hosts").await;
    place.execute("INSERT INTO vms (hostname, pin) VALUES ('a', 1)").await;
    let gone = format!("http://127.0.0.1:{}", crate::place::free_port());
    for _ in 0..4 {
        let mut command = walcast(&gone, &["--url", &place.url(), "state", "vm/a"]);
        let output = within("it ends", command.output()).await.unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["pin"], 1);
    }
}

#[tokio::test]
async fn what_is_published_is_published_once() {
    let place = Place::new("python_publish").await;
    let proxy = Proxy::start(place.port()).await;
    let mut follower = Program::run(walcast(&place.url(), &["follow", "jobs/*"]));
    place.somebody_waits("jobs/*").await;
    // It was done, but the answer did not come.
    proxy.cut_after(10);
    let lines = Program::run(walcast(&proxy.url(), &["publish", "jobs/1", r#"{"größe": 1}"#])).ends().await;
    assert_eq!(event(lines.last().cloned())["duplicate"], true);
    assert_eq!(proxy.cuts(), 1);
    for duplicate in [false, true] {
        let again = walcast(&place.url(), &["publish", "jobs/2", "2", "--key", "run-42"]);
        assert_eq!(event(Program::run(again).ends().await.last().cloned())["duplicate"], duplicate);
    }
    Program::run(walcast(&place.url(), &["publish", "jobs/3", "3"])).ends().await;
    for data in [json!({"größe": 1}), 2.into(), 3.into()] {
        assert_eq!(event(follower.line().await)["data"], data);
    }
}

#[tokio::test]
async fn a_state_is_waited_for() {
    let place = Place::new("python_state").await;
    let text = "import json, sys, walcast
url, said = sys.argv[1], []
topic = 'vm/' + walcast.segment('a/b %')
said.append(walcast.state(url, topic))
first = walcast.state(url, topic, wait=60)
said.append(first.data['pin'])
said.append(walcast.state(url, topic, unless=first.cursor) is walcast.UNCHANGED)
print(json.dumps('waits'), flush=True)
second = walcast.state(url, topic, wait=60, unless=first.cursor)
said.append(second.data['pin'])
print(json.dumps('waits'), flush=True)
said.append(walcast.state(url, topic, wait=60, unless=second.cursor))
print(json.dumps(said))";
    let mut command = Command::new(python());
    command
        .args(["-c", text, &place.url()])
        .env("PYTHONPATH", file("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let mut waiter = Program::run(command);
    place.somebody_waits("vm/*").await;
    place.execute("INSERT INTO vms (hostname, pin) VALUES ('a/b %', 1)").await;
    waiter.says("\"waits\"").await;
    place.execute("UPDATE vms SET pin = 2").await;
    waiter.says("\"waits\"").await;
    place.execute("DELETE FROM vms").await;
    waiter.says("[null, 1, true, 2, null]").await;
    let said = curl(&[&format!("{}/v1/state/vm/x", place.url())]).await;
    assert!(said.contains("not_found"), "{said}");
}

#[tokio::test]
async fn python_and_rust_pick_the_same_hosts() {
    // For whoever writes it in a third language: of host-0 to host-199, salted "walcast", 5 % are these.
    let text = "import json, walcast
print(json.dumps([i for i in range(200) if walcast.picks(5, f'host-{i}', 'walcast')]))";
    let vector = json!([0, 41, 102, 111, 148, 159, 166, 174]);
    assert_eq!(script(text, &[]).await, vector);
    let canary = Canary::new(5.0).salt("walcast");
    let picked: Vec<usize> = (0..200).filter(|i| canary.picks(&format!("host-{i}"))).collect();
    assert_eq!(json!(picked), vector);

    let text = "import json, walcast
print(json.dumps([[walcast.picks(percent, f'{name}-{i}', salt) for i in range(500)]
    for percent in (0, 0.1, 12.5, 50, 99.9, 100, float('nan')) for name in ('', 'vm', 'größe') for salt in ('', 'ß')]))";
    let mut expected = Vec::new();
    for percent in [0.0, 0.1, 12.5, 50.0, 99.9, 100.0, f64::NAN] {
        for name in ["", "vm", "größe"] {
            for salt in ["", "ß"] {
                let canary = Canary::new(percent).salt(salt);
                expected.push((0..500).map(|i| canary.picks(&format!("{name}-{i}"))).collect::<Vec<_>>());
            }
        }
    }
    assert_eq!(script(text, &[]).await, json!(expected));
}

#[tokio::test]
async fn python_and_rust_write_the_same_segments() {
    let names = [
        ".",
        "..",
        "...",
        "a/b",
        "%",
        "a%2Fb",
        "größe 1",
        "日本",
        "a\u{a0}\u{2028}b",
        "*+#?",
        "\u{1}\u{85}\u{9f}",
    ];
    let text = "import json, sys, walcast
print(json.dumps([walcast.segment(name) for name in json.loads(sys.argv[1])]))";
    let expected: Vec<_> = names.iter().map(|name| encode_segment(name)).collect();
    let said = script(text, &[&json!(names).to_string()]).await;
    assert_eq!(said, json!(expected));
}
