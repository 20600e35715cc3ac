//! A page as an entry of a stream, and back.

use std::sync::Arc;

use redis::streams::StreamId;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use walcast_wire::{Epoch, Position, TopicPattern};

use super::keys::{read_id, read_wide, wide};
use crate::hub::Encoded;
use crate::hub::page::{Page, Remark};

/// A position in JSON.
#[derive(Clone, Copy, Debug)]
struct Wide(Position);

impl Serialize for Wide {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&wide(self.0))
    }
}

impl<'de> Deserialize<'de> for Wide {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        read_wide(&text).map(Self).ok_or_else(|| de::Error::custom("a position has two numbers of 20 digits"))
    }
}

/// A remark in JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Form {
    Gap(Wide),
    Withdrawn(Wide, Vec<TopicPattern>),
    Values,
}

/// Remarks as they are written; nothing where there are none.
pub(super) fn remarks(remarks: &[Remark]) -> String {
    if remarks.is_empty() {
        return String::new();
    }
    let forms = remarks.iter().map(|remark| match remark {
        Remark::Gap(upto) => Form::Gap(Wide(*upto)),
        Remark::Withdrawn(upto, topics) => Form::Withdrawn(Wide(*upto), topics.clone()),
        Remark::Values => Form::Values,
    });
    // Strings and lists of strings do not fail.
    serde_json::to_string(&forms.collect::<Vec<_>>()).unwrap_or_default()
}

fn read_remarks(text: &[u8]) -> Result<Vec<Remark>, String> {
    let forms: Vec<Form> = serde_json::from_slice(text).map_err(|error| format!("its remarks: {error}"))?;
    let remark = |form| match form {
        Form::Gap(Wide(upto)) => Remark::Gap(upto),
        Form::Withdrawn(Wide(upto), topics) => Remark::Withdrawn(upto, topics),
        Form::Values => Remark::Values,
    };
    Ok(forms.into_iter().map(remark).collect())
}

/// Events as they are written: one object a line, since they hold no raw line break.
pub(super) fn events(events: &[Arc<Encoded>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(events.iter().map(|event| event.cost_bytes()).sum());
    for (at, event) in events.iter().enumerate() {
        if at > 0 {
            out.push(b'\n');
        }
        out.extend_from_slice(&event.json());
    }
    out
}

/// Patterns as they are written.
pub(super) fn patterns(patterns: &[TopicPattern]) -> String {
    serde_json::to_string(patterns).unwrap_or_default()
}

/// Reads an entry.
///
/// # Errors
/// What of it cannot be read, in words that go behind its name.
pub(super) fn read(epoch: Epoch, entry: &StreamId) -> Result<Page, String> {
    let field = |name: &str| match entry.map.get(name) {
        Some(redis::Value::BulkString(bytes)) => Some(bytes.as_slice()),
        _ => None,
    };
    let upto = read_id(&entry.id).ok_or("its id is no position")?;
    let after = field("after").and_then(|bytes| read_wide(std::str::from_utf8(bytes).ok()?));
    let after = after.filter(|after| *after < upto).ok_or("its field `after` is no position before it")?;
    let lines = field("events").into_iter().flat_map(|bytes| bytes.split(|byte| *byte == b'\n'));
    let mut events = Vec::new();
    let mut last = after;
    for line in lines {
        let number = events.len() + 1;
        let event = Encoded::read(line).map_err(|error| format!("event {number}: {error}"))?;
        let position = event.position();
        let follows = position > after && position >= last && position <= upto;
        if event.cursor().epoch != epoch || !follows {
            return Err(format!("event {number} does not belong to it"));
        }
        last = position;
        events.push(Arc::new(event));
    }
    let remarks = field("remarks").map_or(Ok(Vec::new()), read_remarks)?;
    Ok(Page { epoch, after, upto, remarks, events })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use walcast_wire::Cursor;

    use super::super::keys::id;
    use super::*;

    const EPOCH: Epoch = Epoch(5);

    fn event(major: u64) -> String {
        let cursor = Cursor::new(EPOCH, Position::new(major, 1));
        format!(r#"{{"cursor":"{cursor}","topic":"vm/a","op":"insert","data":{{"n":{major}}}}}"#)
    }

    fn entry(id: &str, fields: &[(&str, &str)]) -> StreamId {
        let value = |text: &str| redis::Value::BulkString(text.as_bytes().to_vec());
        let map: HashMap<_, _> = fields.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect();
        let mut entry = StreamId::default();
        (entry.id, entry.map) = (id.to_owned(), map);
        entry
    }

    #[test]
    fn a_page_is_read_as_it_was_written() {
        let (after, upto) = (Position::new(6, 2), Position::new(9, u64::MAX));
        let told = vec![
            Remark::Gap(Position::new(7, 0)),
            Remark::Withdrawn(Position::new(8, 1), vec!["vm/*".parse().unwrap(), "a\"b/**".parse().unwrap()]),
            Remark::Values,
        ];
        let sent: Vec<_> =
            [7, 9].map(|major| Arc::new(Encoded::read(event(major).as_bytes()).unwrap())).into();
        let text = String::from_utf8(events(&sent)).unwrap();
        let fields = [("after", &*wide(after)), ("events", &text), ("remarks", &remarks(&told))];
        let page = read(EPOCH, &entry(&id(upto), &fields)).unwrap();
        assert_eq!((page.epoch, page.after, page.upto, page.remarks), (EPOCH, after, upto, told));
        let read: Vec<_> = page.events.iter().map(|event| event.json()).collect();
        assert_eq!(read, [event(7), event(9)]);
    }

    #[test]
    fn remarks_have_these_forms() {
        let check = |remark: Remark, expected: &str| {
            assert_eq!(remarks(std::slice::from_ref(&remark)), expected);
            assert_eq!(read_remarks(expected.as_bytes()), Ok(vec![remark]));
        };
        let (at, text) = (Position::new(7, 1), "00000000000000000007-00000000000000000001");
        check(Remark::Gap(at), &format!(r#"[{{"gap":"{text}"}}]"#));
        let topics = vec!["vm/*".parse().unwrap()];
        check(Remark::Withdrawn(at, topics), &format!(r#"[{{"withdrawn":["{text}",["vm/*"]]}}]"#));
        check(Remark::Values, r#"["values"]"#);
        assert_eq!(remarks(&[]), "");
        assert!(read_remarks(br#"["more"]"#).is_err());
        assert!(read_remarks(br#"[{"gap":"7-1"}]"#).is_err());
    }

    #[test]
    fn what_is_no_page_is_said() {
        let zero = &*wide(Position::ZERO);
        let check = |id: &str, fields: &[(&str, &str)], expected: &str| {
            let error = read(EPOCH, &entry(id, fields)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check("x", &[("after", zero)], "id");
        check("7-1", &[], "`after`");
        check("7-1", &[("after", "6-1")], "`after`");
        check("7-1", &[("after", &wide(Position::new(7, 1)))], "`after`");
        check("7-1", &[("after", zero), ("events", "{")], "event 1: ");
        check("7-1", &[("after", zero), ("events", &format!("{}\n", event(7)))], "event 2: ");
        check("7-1", &[("after", zero), ("events", &event(8))], "event 1 does not belong");
        check(
            "7-1",
            &[("after", &wide(Position::new(7, 0))), ("events", &event(6))],
            "event 1 does not belong",
        );
        check(
            "9-1",
            &[("after", zero), ("events", &format!("{}\n{}", event(8), event(7)))],
            "event 2 does not",
        );
        check("7-1", &[("after", zero), ("remarks", "[")], "its remarks");
        assert!(read(Epoch(6), &entry("7-1", &[("after", zero), ("events", &event(7))])).is_err());
        assert!(read(EPOCH, &entry("7-1", &[("after", zero)])).unwrap().events.is_empty());
    }
}
