//! Who waits, as people see it: on one broker by every transport, and over several.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::edge::Edge;
use crate::fleet::Place;
use crate::plain::Plain;
use crate::serving::Process;
use crate::streams::{Sse, Ws};
use crate::wait::until;

/// Topic, client, transport and node of each waiter.
fn rows(answer: &Value) -> Vec<String> {
    let waiters = answer["waiters"].as_array().unwrap().iter();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    waiters.map(|row| ["topic", "client", "transport", "node"].map(|key| text(row, key)).join(" ")).collect()
}

/// Name, waits and named waits of each node.
fn nodes(answer: &Value) -> Value {
    let nodes = answer["nodes"].as_array().unwrap().iter();
    nodes.map(|node| json!([node["node"], node["waiting"], node["clients"]])).collect()
}

/// What `docs/protocol.md` shows.
fn documented() -> Value {
    const DOCUMENT: &str = include_str!("../../../docs/protocol.md");
    let (_, rest) = DOCUMENT.split_once("```json Waiters\n").unwrap();
    serde_json::from_str(rest.split_once("```").unwrap().0).unwrap()
}

/// Names of members, of the answer and of the first of its lists.
fn members(answer: &Value) -> [Vec<&String>; 3] {
    [answer, &answer["nodes"][0], &answer["waiters"][0]]
        .map(|part| part.as_object().unwrap().keys().collect())
}

fn moment(text: &Value) -> SystemTime {
    humantime::parse_rfc3339(text.as_str().unwrap()).unwrap()
}

async fn waiters(http: &Plain, query: &str) -> Value {
    let answer = http.get(&format!("/v1/waiters{query}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn who_waits_by_which_way() {
    let edge = Edge::start().await;
    // Shown in seconds.
    let start = SystemTime::now() - Duration::from_secs(1);
    let quiet = edge.begin("/v1/events?topic=jobs&wait=5m", "").await;
    let poll = edge.begin("/v1/events?topic=vm/a&topic=jobs&after=now&wait=5m&client=p%C3%BC", "").await;
    let sse = Sse::open(&edge, "/v1/events?topic=vm/*&client=s", "").await;
    let state = edge.begin("/v1/state/vm/a?wait=5m&client=st", "").await;
    let mut ws = Ws::open(&edge, "?client=w").await;
    ws.send(json!({"subscribe": {"topics": ["vm/b"]}})).await;
    ws.expect("subscribed").await;
    ws.expect("bookmark").await;
    edge.until_waiting(5).await;

    let all = waiters(&edge, "").await;
    assert_eq!(members(&all), members(&documented()));
    assert_eq!(
        rows(&all),
        [
            "jobs pü poll alone",
            "vm/* s sse alone",
            "vm/a pü poll alone",
            "vm/a st state alone",
            "vm/b w ws alone"
        ]
    );
    assert_eq!((&all["waiting"], nodes(&all)), (&json!(5), json!([["alone", 5, 4]])));
    assert_eq!((&all["truncated"], &all["partial"]), (&json!(false), &json!(false)));
    let end = SystemTime::now();
    let times = all["waiters"].as_array().unwrap().iter().map(|row| &row["since"]);
    for time in times.chain([&all["nodes"][0]["seen"]]) {
        assert!((start..=end).contains(&moment(time)), "{time}");
    }

    let few = waiters(&edge, "?limit=2").await;
    assert_eq!((rows(&few).len(), &few["waiting"], &few["truncated"]), (2, &json!(5), &json!(true)));
    let one = waiters(&edge, "?topic=vm%2Fb").await;
    assert_eq!(
        (rows(&one), &one["waiting"]),
        (vec!["vm/* s sse alone".into(), "vm/b w ws alone".into()], &json!(2))
    );
    let jobs = waiters(&edge, "?topic=jobs").await;
    assert_eq!((nodes(&jobs), &jobs["waiting"]), (json!([["alone", 2, 1]]), &json!(2)));
    assert_eq!(waiters(&edge, "?topic=vm/**&topic=jobs").await["waiting"], 6);

    // A WebSocket's topics come and go under its name.
    ws.send(json!({"subscribe": {"topics": ["c"]}})).await;
    ws.expect("subscribed").await;
    ws.expect("bookmark").await;
    assert_eq!(rows(&waiters(&edge, "?topic=c").await), ["c w ws alone"]);
    ws.send(json!({"unsubscribe": {"topics": ["c"]}})).await;
    ws.expect("subscribed").await;
    ws.expect("bookmark").await;
    assert_eq!(waiters(&edge, "?topic=c").await["waiting"], 0);

    drop((quiet, poll, sse, state, ws));
    until("nobody waits", async || {
        let all = waiters(&edge, "").await;
        all["waiting"] == 0 && rows(&all).is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_bad_question_is_told_what_is_wrong() {
    let edge = Edge::start().await;
    let check = async |query: &str, code: &str, named: &str| {
        let problem = edge.get(&format!("/v1/waiters?{query}")).await.problem();
        assert!(problem.code.as_str() == code && problem.detail.contains(named), "{query}: {problem:?}");
    };
    check("topic=a//b", "bad_topic", "empty segment").await;
    check("limit=0", "bad_parameter", "limit").await;
    check("limit=1001", "bad_parameter", "1000").await;
    check("wait=1", "bad_parameter", "this call takes topic, limit").await;
}

/// Asks of a broker until it answers so, and knows of all; the answer.
async fn until_told(what: &str, http: &Plain, query: &str, so: impl Fn(&Value) -> bool) -> Value {
    until_answered(what, http, query, |told| told["partial"] == false && so(told)).await
}

/// The same where it may not know of all.
async fn until_answered(what: &str, http: &Plain, query: &str, so: impl Fn(&Value) -> bool) -> Value {
    let mut told = Value::Null;
    until(what, async || {
        told = waiters(http, query).await;
        so(&told)
    })
    .await;
    told
}

async fn called(place: &Place, node: &str, args: &[&str]) -> (Process, Plain) {
    let process = Process::start_as(&place.name, &place.text, args, &[("WALCAST_NODE__NAME", node)]).await;
    process.ready().await;
    let http = Plain { address: process.http.parse().unwrap() };
    (process, http)
}

#[tokio::test]
async fn who_waits_at_any_broker() {
    let place = Place::new("waiters_any", "lease = '1s'").await;
    let (_leader, here) = called(&place, "here", &[]).await;
    let (edge, there) = called(&place, "there", &["--role=edge"]).await;
    let _here = here.begin("/v1/events?topic=vm/a&after=now&wait=5m&client=x", "").await;
    let _quiet = here.begin("/v1/events?topic=vm/b&after=now&wait=5m", "").await;
    let leaves = there.begin("/v1/events?topic=vm/*&topic=jobs&after=now&wait=5m&client=y", "").await;
    let _crowd = there.begin("/v1/events?topic=vm/a&after=now&wait=5m", "").await;

    for http in [&here, &there] {
        let all = until_told("all four", http, "", |told| told["waiting"] == 4).await;
        assert_eq!(rows(&all), ["jobs y poll there", "vm/* y poll there", "vm/a x poll here"]);
        let mut both = nodes(&all).as_array().unwrap().clone();
        both.sort_by_key(ToString::to_string);
        assert_eq!(
            (json!(both), &all["truncated"]),
            (json!([["here", 2, 1], ["there", 2, 1]]), &json!(false))
        );
        for (query, waiting) in
            [("?topic=vm/a", 3), ("?topic=vm/b", 2), ("?topic=jobs", 1), ("?topic=*/*", 4)]
        {
            until_told(query, http, query, |told| told["waiting"] == waiting).await;
        }
    }
    drop(leaves);
    until_told("who left is gone", &here, "?topic=vm/*", |told| told["waiting"] == 3).await;

    place.redis.stop();
    let alone = until_answered("its own part", &here, "", |told| told["partial"] == true).await;
    assert_eq!((&alone["waiting"], nodes(&alone)), (&json!(2), json!([["here", 2, 1]])));
    place.redis.start_again().unwrap();
    until_told("all again", &here, "", |told| told["waiting"] == 3).await;

    edge.signal("KILL");
    let left = until_told("a killed broker is forgotten", &here, "", |told| told["waiting"] == 2).await;
    assert_eq!(nodes(&left), json!([["here", 2, 1]]));
    let members = ["SCARD", "walcast:{waiters_any}:nodes"];
    until("its id too", async || place.redis_cli(&members).await == "1").await;
    let (edge, _) = called(&place, "again", &["--role=edge"]).await;
    until_told("a new one", &here, "", |told| nodes(told).as_array().unwrap().len() == 2).await;
    edge.stop().await;
    assert_eq!(place.redis_cli(&members).await, "1", "who drains signs off");
    until_told("it alone", &here, "", |told| nodes(told) == json!([["here", 2, 1]])).await;
}
