//! The form in which all of it is written, held against bytes that were written down and against a reader that shares
//! no code with the writer.

use std::collections::BTreeMap;

use fred::interfaces::{ClientLike, EventInterface, HashesInterface, PubsubInterface, StreamsInterface};
use serde_json::{Value, json};
use walcast::backbone::redis::{Config, Writer};
use walcast::hub::page::{Outgoing, Remark};

use super::{FENCE, Lab, SOURCE, at, begins, event, page, value};
use crate::wait::within;

const VECTOR: &str = include_str!("../../vectors/redis-stream-1.json");
const PROTOCOL: &str = include_str!("../../../../docs/protocol.md");

/// Pages that use all of the form.
fn pages() -> Vec<Outgoing> {
    let mut first = begins(at(24_373_648, 0), at(24_373_704, 2));
    first.page.events = vec![event(at(24_373_704, 2), "vm/host-17")];
    first.values.push(("vm/host-17".parse().unwrap(), Some(value(at(24_373_704, 2), "vm/host-17"))));
    let mut second = page(at(24_373_704, 2), at(u64::MAX - 1, u64::MAX));
    second.page.events = vec![event(at(1 << 53, 1), "vm/größe"), event(at(u64::MAX - 1, 3), "vm/a\\\"b")];
    second.page.remarks = vec![
        Remark::Gap(at(24_373_704, 2)),
        Remark::Withdrawn(at(24_373_704, 2), vec!["vm/*".parse().unwrap(), "host/**".parse().unwrap()]),
        Remark::Values,
    ];
    second.inexact = vec!["host/**".parse().unwrap()];
    second.values.push(("vm/größe".parse().unwrap(), Some(value(at(1 << 53, 1), "vm/größe"))));
    second.values.push(("vm/none".parse().unwrap(), None));
    let mut third = page(at(u64::MAX - 1, u64::MAX), at(u64::MAX, 0));
    third.page.events.clear();
    third.inexact = vec!["host/**".parse().unwrap()];
    vec![first, second, third]
}

async fn written(lab: &Lab) -> Vec<Outgoing> {
    let config = Config { pubsub: true, ..lab.config() };
    let mut writer = within("a writer", Writer::connect(&config, SOURCE)).await.unwrap();
    writer.claim(FENCE).await.unwrap();
    let pages = pages();
    for sent in &pages {
        writer.append(sent).await.unwrap();
    }
    pages
}

#[tokio::test]
async fn version_1_is_what_was_written_down() {
    let lab = Lab::start().await;
    written(&lab).await;
    let mut found = serde_json::Map::new();
    for key in lab.keys().await {
        let shown = if key.ends_with(":log") {
            let entries: Vec<(String, Vec<String>)> = lab.say(&format!("XRANGE {key} - +")).await;
            json!(entries)
        } else {
            let fields: BTreeMap<String, String> = lab.say(&format!("HGETALL {key}")).await;
            json!(fields)
        };
        found.insert(key, shown);
    }
    let expected: Value = serde_json::from_str(VECTOR).unwrap();
    let found = Value::Object(found);
    assert_eq!(found, expected, "{}", serde_json::to_string_pretty(&found).unwrap());
}

#[test]
fn the_entry_in_the_document_is_one() {
    let vector: Value = serde_json::from_str(VECTOR).unwrap();
    let entry = &vector["walcast:{orders}:00000000000000ab:log"][0];
    let mut words = vec![entry[0].as_str().unwrap()];
    words.extend(entry[1].as_array().unwrap().iter().map(|word| word.as_str().unwrap()));
    for word in words {
        let shown = format!("\"{}\"", word.replace('"', "\\\""));
        assert!(PROTOCOL.contains(&shown), "{shown}");
    }
}

#[tokio::test]
async fn another_library_reads_the_same() {
    let lab = Lab::start().await;
    let config = fred::types::config::Config::from_url(&lab.server.url()).unwrap();
    let mut builder = fred::types::Builder::from_config(config);
    builder.with_performance_config(|settings| settings.broadcast_channel_capacity = 1_000);
    let (client, listener) = (builder.build().unwrap(), builder.build().unwrap());
    within("a client", client.init()).await.unwrap();
    within("a listener", listener.init()).await.unwrap();
    let mut heard = listener.message_rx();
    within("a subscription", listener.psubscribe("walcast:{orders}:*")).await.unwrap();
    let pages = written(&lab).await;

    let log = "walcast:{orders}:00000000000000ab:log";
    type Entry = (String, BTreeMap<String, Vec<u8>>);
    let entries: Vec<Entry> = within("entries", client.xrange(log, "-", "+", None)).await.unwrap();
    assert_eq!(entries.len(), pages.len());
    for ((id, fields), sent) in entries.iter().zip(&pages) {
        assert_eq!(*id, format!("{}-{}", sent.page.upto.major, sent.page.upto.ordinal));
        let lines: Vec<Vec<u8>> = sent.page.events.iter().map(|event| event.json().to_vec()).collect();
        assert_eq!(fields.get("events").cloned().unwrap_or_default(), lines.join(&b'\n'));
        assert_eq!(fields.contains_key("remarks"), !sent.page.remarks.is_empty());
    }
    let state = "walcast:{orders}:00000000000000ab:state";
    let found: Vec<u8> = within("a value", client.hget(state, "vm/host-17")).await.unwrap();
    assert_eq!(found, value(at(24_373_704, 2), "vm/host-17"));

    for event in pages.iter().flat_map(|sent| &sent.page.events) {
        let message = within("a message", heard.recv()).await.unwrap();
        assert_eq!(&*message.channel, format!("walcast:{{orders}}:{}", event.topic()));
        assert_eq!(message.value.as_bytes().unwrap(), event.json());
    }
    within("its end", client.quit()).await.unwrap();
    within("its end", listener.quit()).await.unwrap();
}
