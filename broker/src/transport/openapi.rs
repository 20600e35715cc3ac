//! The API described, OpenAPI 3.1: generated from the handlers, served at `/v1/openapi.json`.
//!
//! The types here only describe what `walcast_wire` defines, which knows no OpenAPI; a test holds the two
//! together.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::openapi::{Info, License, OpenApi, OpenApiBuilder};
use utoipa::{ToSchema, schema};
use walcast_wire::ProblemCode;

use super::App;
use super::problem::Refusal;
use super::query::Ask;

/// Something that happened on a topic. Unique is (cursor, topic).
#[derive(ToSchema)]
#[schema(as = Event)]
#[expect(dead_code, reason = "describes the wire type")]
pub(super) struct EventDoc {
    /// Present it to go on after this event; 33 URL-safe characters, opaque.
    #[schema(min_length = 33, max_length = 33)]
    cursor: String,
    /// Where it was published.
    topic: String,
    /// `insert`, `update`, `delete`, `truncate`, `message`, or `snapshot` for a current value.
    op: OpDoc,
    /// The row, its key (on delete), or the message.
    #[schema(value_type = Object)]
    data: serde_json::Value,
    /// When it was committed: RFC 3339, UTC, microseconds. Absent on a value read by seeding.
    time: Option<String>,
    /// The commit LSN. A reader of a replica waits until `pg_last_wal_replay_lsn() > lsn`.
    lsn: Option<String>,
    /// The transaction id.
    xid: Option<u32>,
    /// The last event of its transaction on this topic.
    last: Option<bool>,
    /// The transaction was too large to mark its last events.
    partial: Option<bool>,
    /// Columns that the change left as they were and whose value is not known.
    unchanged: Option<Vec<String>>,
    /// Columns left out because the event was too large.
    omitted: Option<Vec<String>>,
}

/// What happened.
#[derive(ToSchema)]
#[schema(as = Op, rename_all = "lowercase")]
#[expect(dead_code, reason = "describes the wire type")]
pub(super) enum OpDoc {
    Insert,
    Update,
    Delete,
    Truncate,
    Message,
    Snapshot,
}

/// The answer of a long-poll.
#[derive(ToSchema)]
#[schema(as = EventsReply)]
#[expect(dead_code, reason = "describes the wire type")]
pub(super) struct EventsReplyDoc {
    /// Present it as `after` in the next request, also when there are no events.
    #[schema(min_length = 33, max_length = 33)]
    cursor: String,
    /// In order.
    events: Vec<EventDoc>,
}

/// Every error (RFC 9457).
#[derive(ToSchema)]
#[schema(as = Problem)]
#[expect(dead_code, reason = "describes the wire type")]
pub(super) struct ProblemDoc {
    /// The code, for people.
    title: String,
    /// The HTTP status.
    status: u16,
    /// Stable; branch on this.
    #[schema(schema_with = codes)]
    code: String,
    /// What was wrong and what to do, for people.
    detail: String,
    /// With 410: the cursor to go on from.
    resume: Option<String>,
}

fn codes() -> utoipa::openapi::schema::Schema {
    schema!(String).enum_values(Some(ProblemCode::ALL.map(ProblemCode::as_str))).build().into()
}

/// What to publish.
#[derive(ToSchema)]
#[schema(as = Publish)]
#[expect(dead_code, reason = "describes the body, which is read untouched")]
pub(super) struct PublishDoc {
    /// Where to.
    topic: String,
    /// Any JSON.
    #[schema(value_type = Object)]
    data: serde_json::Value,
}

/// What became of it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Published)]
pub(super) struct PublishedDoc {
    /// Where it was published.
    pub(super) topic: String,
    /// The transaction, as the event carries it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) xid: Option<u32>,
    /// The same key had been published before; nothing new was committed.
    pub(super) duplicate: bool,
}

/// What the description says beside the calls.
pub(super) fn frame() -> OpenApi {
    let mut info = Info::new("walcast", env!("CARGO_PKG_VERSION"));
    info.description = Some("Waits for changes in Postgres, and publishes messages. Every answer of a wait carries a cursor; present it to any broker, on any transport, to go on.".to_owned());
    let mut license = License::new("Apache-2.0");
    license.identifier = Some("Apache-2.0".to_owned());
    info.license = Some(license);
    OpenApiBuilder::new().info(info).build()
}

/// The description of all calls.
pub fn document() -> OpenApi {
    let (_, mut document) = super::api().split_for_parts();
    // The router marks a parameter that spans slashes; OpenAPI has no word for that.
    for (path, item) in std::mem::take(&mut document.paths.paths) {
        document.paths.paths.insert(path.replace("{*", "{"), item);
    }
    document
}

/// This description.
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    tag = "about",
    responses((status = 200, description = "OpenAPI 3.1", body = Object))
)]
pub(super) async fn openapi(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    Ask::parse(query.as_deref(), &[], &app.config)?;
    Ok(Json(document()).into_response())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn doc() -> Value {
        serde_json::to_value(document()).unwrap()
    }

    /// Names of the members of an object.
    fn members(value: &Value) -> Vec<String> {
        let mut names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    }

    #[test]
    fn every_call_is_described() {
        let doc = doc();
        assert!(doc["openapi"].as_str().unwrap().starts_with("3.1."), "{}", doc["openapi"]);
        assert_eq!(
            members(&doc["paths"]),
            ["/v1/events", "/v1/openapi.json", "/v1/publish", "/v1/state/{topic}", "/v1/waiters", "/v1/ws"]
        );
        for (path, item) in doc["paths"].as_object().unwrap() {
            for (method, call) in item.as_object().unwrap() {
                assert!(call["summary"].is_string(), "{method} {path}");
                assert!(call["operationId"].is_string(), "{method} {path}");
                assert!(!call["responses"].as_object().unwrap().is_empty(), "{method} {path}");
                for parameter in call["parameters"].as_array().into_iter().flatten() {
                    assert!(parameter["description"].is_string(), "{method} {path} {parameter}");
                }
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(value: &Value, doc: &Value) {
            match value {
                Value::Object(object) => {
                    if let Some(Value::String(target)) = object.get("$ref") {
                        assert!(doc.pointer(&target[1..]).is_some(), "{target}");
                    }
                    object.values().for_each(|value| walk(value, doc));
                }
                Value::Array(array) => array.iter().for_each(|value| walk(value, doc)),
                _ => {}
            }
        }
        let doc = doc();
        walk(&doc, &doc);
    }

    #[test]
    fn described_types_are_the_wire_types() {
        let doc = doc();
        let cursor = "1--------------------------------";
        let event = json!({
            "cursor": cursor, "topic": "a", "op": "insert", "data": 1, "time": "t", "lsn": "0/1", "xid": 1,
            "last": true, "partial": true, "unchanged": ["a"], "omitted": ["b"],
        });
        let parsed: walcast_wire::Event<Value> = serde_json::from_value(event).unwrap();
        let problem = json!({
            "title": "t", "status": 410, "code": "gap", "detail": "d", "resume": cursor,
        });
        let problem: walcast_wire::Problem = serde_json::from_value(problem).unwrap();
        let check = |name: &str, wire: Value| {
            let described = &doc["components"]["schemas"][name]["properties"];
            assert_eq!(members(described), members(&wire), "{name}");
        };
        check("Event", serde_json::to_value(parsed).unwrap());
        check("Problem", serde_json::to_value(problem).unwrap());
        let listed = &doc["components"]["schemas"]["Problem"]["properties"]["code"]["enum"];
        assert_eq!(listed.as_array().unwrap().len(), ProblemCode::ALL.len());
    }

    #[test]
    fn every_problem_code_is_described_where_it_comes() {
        let text = serde_json::to_string(&doc()["paths"]).unwrap();
        let elsewhere = [
            // In WebSocket frames; for any path; before a call is known; a fault.
            ProblemCode::BadFrame,
            ProblemCode::NoSuchPath,
            ProblemCode::MethodNotAllowed,
            ProblemCode::HeadTooLarge,
            ProblemCode::Internal,
        ];
        for code in ProblemCode::ALL.into_iter().filter(|code| !elsewhere.contains(code)) {
            assert!(text.contains(&format!("`{code}`")), "{code}");
        }
    }
}
