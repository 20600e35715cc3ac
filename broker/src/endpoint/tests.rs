//! Endpoints alone: from text to answers.

use super::*;

const STARTUP: &str = r#"
method = "POST"
path = "/vm_startup"
topic = "vm/{body.hostname}"
ready = "data.crdcommand != null && data.pin != null"
response = { status = "'success'", command = "data.crdcommand", pin = "data.pin" }
missing = { status = 404, body = { error = "'VM not found.'" } }
invalid = { status = 400, body = { error = "'Hostname is required.'" } }
"#;

fn endpoint(text: &str) -> Result<Arc<Endpoint>, EndpointError> {
    endpoints(&[text]).map(|all| Arc::clone(&all.endpoints[0]))
}

fn endpoints(texts: &[&str]) -> Result<Endpoints, EndpointError> {
    let configs: Vec<_> = texts.iter().map(|text| toml::from_str(text).unwrap()).collect();
    Endpoints::new(&configs)
}

fn answer(status: u16, body: &'static str) -> Answer {
    Answer { status, body: Bytes::from_static(body.as_bytes()) }
}

#[test]
fn a_value_answers_once_it_is_ready() {
    let startup = endpoint(STARTUP).unwrap();
    let topic = startup.topic(&["host-17".into()]).unwrap();
    assert_eq!(topic.as_str(), "vm/host-17");
    let check = |data: &str, expected: Verdict| {
        assert_eq!(startup.look(&topic, data.as_bytes(), None), expected, "{data}");
    };
    check(r#"{"crdcommand":null,"pin":null}"#, Verdict::Waits);
    check(r#"{"crdcommand":"start","pin":null}"#, Verdict::Waits);
    // The row has no such column (yet).
    check(r#"{"crdcommand":"start"}"#, Verdict::Waits);
    check("null", Verdict::Waits);
    // JSON, but nothing that an expression can hold.
    check(r#"{"crdcommand":"start","pin":7,"x":1e400}"#, Verdict::Waits);
    assert!(startup.reads().iter().map(|name| &**name).eq(["crdcommand", "pin"]));
    check(
        r#"{"crdcommand":"start","pin":7}"#,
        Verdict::Answer(answer(200, r#"{"command":"start","pin":7,"status":"success"}"#)),
    );
    assert_eq!(startup.missing(&topic), Some(answer(404, r#"{"error":"VM not found."}"#)));
    assert_eq!(startup.invalid(), Some(answer(400, r#"{"error":"Hostname is required."}"#)));
}

#[test]
fn what_is_passed_on_keeps_its_form() {
    let text = |response: &str| format!("path = '/a'\ntopic = 'a'\n{response}");
    let check = |response: &str, data: &str, expected: &'static str| {
        let verdict =
            endpoint(&text(response)).unwrap().look(&Topic::new("a").unwrap(), data.as_bytes(), None);
        assert_eq!(verdict, Verdict::Answer(answer(200, expected)), "{response}");
    };
    let numbers = r#"{"n":1.10,"big":123456789012345678901234567890,"list":[1, 2]}"#;
    check("", numbers, numbers);
    check(r#"response = { n = "data.n" }"#, r#"{"gr\u00f6\u00dfe":1,"n":1.10}"#, r#"{"n":1.10}"#);
    check(
        r#"response = { n = "data.n", b = "data['big']" }"#,
        numbers,
        r#"{"b":123456789012345678901234567890,"n":1.10}"#,
    );
    check(
        r#"response = { all = "data.list", has = "has(data.list)", no = "has(data.x)" }"#,
        numbers,
        r#"{"all":[1, 2],"has":true,"no":false}"#,
    );
    check(r#"response = { where = "topic + '!'", null = "null" }"#, numbers, r#"{"null":null,"where":"a!"}"#);
}

#[test]
fn what_cannot_be_made_is_no_success() {
    let broken = endpoint("path = '/a'\ntopic = 'a'\nresponse = { x = 'data.x' }").unwrap();
    let topic = Topic::new("a").unwrap();
    assert_eq!(broken.look(&topic, b"{}", None), Verdict::Broken);
    assert_eq!(broken.look(&topic, br#"{"x":1,"y":1e400}"#, None), Verdict::Broken);
    let infinite = endpoint("path = '/a'\ntopic = 'a'\nresponse = { x = '1.0 / data.x' }").unwrap();
    assert_eq!(infinite.look(&topic, br#"{"x":0.0}"#, None), Verdict::Broken);
    let unsure = endpoint("path = '/a'\ntopic = 'a'\nready = 'data.x'").unwrap();
    assert_eq!(unsure.look(&topic, br#"{"x":1}"#, None), Verdict::Waits);
    assert!(matches!(unsure.look(&topic, br#"{"x":true}"#, None), Verdict::Answer(_)));
}

#[test]
fn events_say_what_happened() {
    let events = endpoint("path = '/a'\ntopic = 'a'\nof = 'events'\nready = \"op != 'delete'\"").unwrap();
    let topic = Topic::new("a").unwrap();
    assert_eq!(events.look(&topic, b"{}", Some("delete")), Verdict::Waits);
    let any = endpoint("path = '/a'\ntopic = 'a'\nof = 'events'").unwrap();
    assert_eq!(any.look(&topic, b"{}", Some("delete")), Verdict::Waits);
    assert_eq!(events.look(&topic, b"{}", Some("message")), Verdict::Answer(answer(200, "{}")));
}

#[test]
fn values_never_add_a_level_to_a_topic() {
    let two = endpoint("path = '/{a}'\ntopic = 'x/{path.a}/{header.B}'").unwrap();
    assert_eq!(two.fields(), [Field::Path(0), Field::Header("b".into())]);
    let topic = |a: &str, b: &str| two.topic(&[a.into(), b.into()]);
    assert_eq!(topic("a/b", "*").unwrap().as_str(), "x/a%2Fb/%2A");
    assert!(topic("", "b").unwrap_err().contains("is empty"));
    assert!(topic("a", &"x".repeat(300)).unwrap_err().contains("the header `b` is too long"));
}

#[test]
fn requests_find_their_endpoint() {
    let all = endpoints(&[
        STARTUP,
        "path = '/vm_startup'\nmethod = 'GET'\ntopic = 'all'",
        "path = '/vms/{a}'\ntopic = 'vm/{path.a}'",
    ])
    .unwrap();
    let check = |method: &str, path: &str, expected: &str| {
        let found = match all.find(method, path) {
            Found::None => "none".to_owned(),
            Found::WrongMethod(allow) => format!("only {allow}"),
            Found::Endpoint(endpoint, values) => {
                format!("{} {values:?}", endpoint.topic.pattern().unwrap().as_str())
            }
        };
        assert_eq!(found, expected, "{method} {path}");
    };
    check("POST", "/vm_startup", "vm/* []");
    check("GET", "/vm_startup", "all []");
    check("DELETE", "/vm_startup", "only POST, GET");
    check("POST", "/vms/x%20y", r#"vm/* ["x%20y"]"#);
    check("POST", "/vms", "none");
    let wide = endpoints(&["path = '/{a}/{b}'\ntopic = 'x'"]).unwrap();
    assert!(matches!(wide.find("POST", "/v1/publish"), Found::None));
    assert!(matches!(wide.find("POST", "/v2/publish"), Found::Endpoint(..)));
}

#[test]
fn mistakes_are_told_by_key() {
    let check = |change: &str, key: &str, part: &str| {
        let mut table: toml::Table = STARTUP.parse().unwrap();
        table.extend(change.parse::<toml::Table>().unwrap());
        let config = table.try_into().unwrap();
        let error = Endpoints::new(&[config]).map(drop).expect_err(change);
        let text = error.to_string();
        assert!(error.key == key && text.contains(part), "{change}: {text}");
        assert!(text.starts_with("[[endpoint]] "), "{text}");
    };
    check("method = 'post'", "method", "in capitals");
    check("path = '/v1/x'", "path", "walcast's own");
    check("topic = 'vm/{hostname}'", "topic", "where in the request");
    check("topic = 'vm/{cookie.a}'", "topic", "no part of a request");
    check("topic = 'vm/{path.a}'", "topic", "the path has no `{a}`");
    check("topic = 'vm/{body.}'", "topic", "where in the request");
    check("topic = 'vm/{body.a..b}'", "topic", "empty name");
    check("topic = 'vm//{body.a}'", "topic", "empty segment");
    check("method = 'GET'", "topic", "a GET has no body");
    check("ready = 'data.a =='", "ready", "no CEL expression");
    check("ready = 'dat.a'", "ready", "`dat` is unknown; there is data, topic");
    check("ready = 'op == 1'", "ready", "`op` is unknown");
    check("ready = 'nosuch(data.a)'", "ready", "no function `nosuch`");
    check("response = { a = 'datum' }", "response.a", "`datum`");
    check("missing = { status = 200 }", "missing.status", "400 to 599");
    check("missing = { status = 404, body = { a = 'data.a' } }", "missing.body.a", "there is topic");
    check("invalid = { status = 400, body = { a = 'topic' } }", "invalid.body.a", "a constant");
    check("of = 'events'", "missing", "only a current value");
    check("hold = '0s'", "hold", "out of range");
    check("keepalive = '1m'", "keepalive", "30s");
    check("topic = 'vm/{header.Cookie}'", "topic", "holds a secret");
    let twice = endpoints(&[STARTUP, STARTUP]).map(drop).unwrap_err();
    assert!(twice.to_string().contains("may be for POST /vm_startup, too"), "{twice}");
    assert!(toml::from_str::<EndpointConfig>("path = '/a'\ntopic = 'a'\nredy = 'true'").is_err());
}
