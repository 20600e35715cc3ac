//! Values that stand anywhere in a request of somebody else's making. What is not understood of the rest is left alone.

use serde_json::Value;

use super::body::is_of_type;
use super::call::Request;
use super::query::decode;
use crate::endpoint::Field;

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyKind {
    Json,
    Form,
}

impl BodyKind {
    /// JSON, unless the request says otherwise.
    pub(super) fn of(request: &Request<'_>) -> Self {
        let kind = request.header("content-type").unwrap_or_default();
        if is_of_type(kind, "application/x-www-form-urlencoded") { Self::Form } else { Self::Json }
    }
}

/// What stands in the head; `None` for what the body has to say. `segments` are those of the path that may vary.
///
/// # Errors
/// What is not there, or not readable.
pub(super) fn of_head(
    fields: &[Field],
    request: &Request<'_>,
    segments: &[&str],
) -> Result<Vec<Option<String>>, String> {
    let read = |field: &Field| match field {
        Field::Body(_) => Ok(None),
        Field::Path(number) => {
            let segment = segments.get(*number).copied().unwrap_or_default();
            decode(segment, false).map(|text| Some(text.into_owned())).map_err(|_| broken(field))
        }
        Field::Query(name) => member(request.query.unwrap_or_default(), name, field).map(Some),
        Field::Header(name) => match (request.headers.nth(name, 0), request.headers.nth(name, 1)) {
            // Whoever stands between may have checked the other one.
            (_, Some(_)) => Err(twice(field)),
            (Some(text), _) => match std::str::from_utf8(text) {
                Ok(text) => Ok(Some(text.to_owned())),
                Err(_) => Err(broken(field)),
            },
            (None, None) => Err(absent(field)),
        },
    };
    fields.iter().map(read).collect()
}

/// All values, of those that stand in the head and the body.
///
/// # Errors
/// See [`of_head`].
pub(super) fn with_body(
    fields: &[Field],
    head: Vec<Option<String>>,
    kind: BodyKind,
    body: &[u8],
) -> Result<Vec<String>, String> {
    let mut parsed: Option<Value> = None;
    let mut read = |(field, known): (&Field, Option<String>)| {
        let (Field::Body(names), None) = (field, &known) else { return known.ok_or_else(|| absent(field)) };
        match (kind, names.as_slice()) {
            (BodyKind::Form, [name]) => {
                let text = std::str::from_utf8(body).map_err(|_| broken(field))?;
                member(text, name, field)
            }
            // A form has no members of members.
            (BodyKind::Form, _) => Err(absent(field)),
            (BodyKind::Json, names) => {
                let mut value = match &mut parsed {
                    Some(parsed) => &*parsed,
                    none => none.insert(
                        serde_json::from_slice(body)
                            .map_err(|error| format!("the body is no JSON: {error}"))?,
                    ),
                };
                for name in names {
                    value = value.get(&**name).ok_or_else(|| absent(field))?;
                }
                match value {
                    Value::String(text) => Ok(text.clone()),
                    // Others are rounded, and two of them would be one.
                    Value::Number(number) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
                    Value::Bool(value) => Ok(value.to_string()),
                    Value::Null => Err(absent(field)),
                    Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                        Err(format!("{field} is neither text nor a whole number of 64 bits"))
                    }
                }
            }
        }
    };
    fields.iter().zip(head).map(&mut read).collect()
}

/// A member of a query or a form. Where it stands twice, servers differ in which one they take.
fn member(pairs: &str, name: &str, field: &Field) -> Result<String, String> {
    let mut found = None;
    for pair in pairs.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decode(key, true).is_ok_and(|key| key == *name) {
            let value = decode(value, true).map_err(|_| broken(field))?;
            if found.replace(value).is_some() {
                return Err(twice(field));
            }
        }
    }
    found.map(std::borrow::Cow::into_owned).ok_or_else(|| absent(field))
}

fn absent(field: &Field) -> String {
    format!("{field} is missing")
}

fn twice(field: &Field) -> String {
    format!("{field} stands twice")
}

fn broken(field: &Field) -> String {
    format!("{field} is not readable as UTF-8")
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
    use proptest::prelude::*;

    use super::*;

    fn body(names: &str) -> Field {
        Field::Body(names.split('.').map(Into::into).collect())
    }

    #[test]
    fn bodies_have_values() {
        let check = |field: &str, kind: BodyKind, text: &str, expected: Result<&str, &str>| {
            let read = with_body(&[body(field)], vec![None], kind, text.as_bytes());
            match (&read, expected) {
                (Ok(values), Ok(value)) => assert_eq!(values, &[value], "{text}"),
                (Err(cause), Err(part)) => assert!(cause.contains(part), "{text}: {cause}"),
                _ => panic!("{text}: {read:?}"),
            }
        };
        use BodyKind::{Form, Json};
        check("hostname", Json, r#"{"hostname":"host-17","more":[1]}"#, Ok("host-17"));
        check("vm.id", Json, r#"{"vm":{"id":17}}"#, Ok("17"));
        check("up", Json, r#"{"up":true}"#, Ok("true"));
        check("hostname", Json, r#"{"hostname":null}"#, Err("`hostname` of the body is missing"));
        check("hostname", Json, r#"{"hostname":["a"]}"#, Err("neither text nor a whole number"));
        check("id", Json, r#"{"id":123456789012345678901}"#, Err("neither text nor a whole number"));
        check("hostname", Json, "{}", Err("is missing"));
        check("hostname", Json, "[]", Err("is missing"));
        check("hostname", Json, "", Err("no JSON"));
        check("hostname", Form, "a=1&hostname=host+17%2F", Ok("host 17/"));
        check("hostname", Form, "hostname=a&hostname=b", Err("stands twice"));
        check("hostname", Form, "hostname=%FF", Err("UTF-8"));
        check("vm.id", Form, "vm.id=1", Err("is missing"));
    }

    #[test]
    fn heads_have_values() {
        let header = |name| (HeaderName::from_static(name), HeaderValue::from_static("h"));
        let mut headers = HeaderMap::from_iter([header("x-host"), header("twice")]);
        headers.append("twice", HeaderValue::from_static("i"));
        let request = Request { path: "/", query: Some("a=%2F&b"), headers: &headers };
        let fields = [Field::Query("a".into()), body("b"), Field::Header("x-host".into()), Field::Path(0)];
        let read = of_head(&fields, &request, &["p%20q"]).unwrap();
        assert_eq!(read, [Some("/".into()), None, Some("h".into()), Some("p q".into())]);
        let check = |field: Field, part: &str| {
            let cause = of_head(&[field], &request, &["%FF"]).unwrap_err();
            assert!(cause.contains(part), "{cause}");
        };
        check(Field::Query("c".into()), "the parameter `c` is missing");
        check(Field::Header("y".into()), "the header `y` is missing");
        check(Field::Path(0), "not readable");
        check(Field::Header("twice".into()), "stands twice");
    }

    #[test]
    fn a_form_is_one_only_if_it_says_so() {
        let check = |kind: &'static str, expected: BodyKind| {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
            let request = Request { path: "/", query: None, headers: &headers };
            assert_eq!(BodyKind::of(&request), expected, "{kind}");
        };
        check("application/json", BodyKind::Json);
        check("text/plain", BodyKind::Json);
        check("Application/X-WWW-Form-Urlencoded; charset=utf-8", BodyKind::Form);
    }

    proptest! {
        #[test]
        fn no_body_panics(text in "[ -~]{0,60}", form: bool) {
            let kind = if form { BodyKind::Form } else { BodyKind::Json };
            let _ = with_body(&[body("a.b"), body("c")], vec![None, None], kind, text.as_bytes());
        }
    }
}
