//! `docs/protocol.md` shows what is really sent: every JSON block in it names its type and parses as that.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use walcast_wire::{ClientFrame, Event, EventsReply, Problem, ProblemCode, Reset, ServerFrame};

const DOCUMENT: &str = include_str!("../../../docs/protocol.md");

/// Parses and writes again: nothing in the block is unknown to the type.
fn check<T: Serialize + DeserializeOwned>(block: &str) {
    let parsed: T = serde_json::from_str(block).unwrap_or_else(|error| panic!("{error}:\n{block}"));
    let shown: Value = serde_json::from_str(block).unwrap();
    assert_eq!(serde_json::to_value(parsed).unwrap(), shown, "{block}");
}

#[test]
fn every_frame_shown_is_a_frame() {
    let mut seen = std::collections::BTreeSet::new();
    for part in DOCUMENT.split("\n```json").skip(1) {
        let (kind, rest) = part.split_once('\n').unwrap();
        let (block, _) = rest.split_once("\n```").unwrap();
        match kind.trim() {
            "Event" => check::<Event<Value>>(block),
            "EventsReply" => check::<EventsReply<Value>>(block),
            "Problem" => check::<Problem>(block),
            "Reset" => check::<Reset>(block),
            "ClientFrame" => check::<ClientFrame>(block),
            "ServerFrame" => check::<ServerFrame<Value>>(block),
            // Bodies that the wire crate does not know; `http.rs` and `waiters.rs` send and receive them.
            "Publish" | "Published" | "Waiters" => drop(serde_json::from_str::<Value>(block).unwrap()),
            other => panic!("a JSON block names no type of the protocol: {other:?}"),
        }
        seen.insert(kind.trim());
    }
    assert_eq!(seen.len(), 9, "{seen:?}");
}

#[test]
fn every_code_is_explained() {
    for code in ProblemCode::ALL {
        let row = format!("| `{code}` | {} |", code.status());
        assert!(DOCUMENT.contains(&row), "{row}");
    }
}
