//! Anything may be sent to a broker. It answers in HTTP or hangs up, logs no error, and serves on.

use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::broker::within;
use crate::plain::get;
use crate::process::{file, run};
use crate::server;
use crate::serving::{Process, settings};

const REQUESTS: u64 = 4_000;
const AT_ONCE: usize = 64;
/// How long an answer is waited for. Too short only means that fewer answers are looked at.
const GLANCE: std::time::Duration = std::time::Duration::from_millis(200);

/// Numbers that are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll(from.len())]
    }
}

const METHODS: &[&str] = &["GET", "POST", "HEAD", "PUT", "OPTIONS", "get", "", "G\0T"];
const PATHS: &[&str] = &[
    "/v1/events",
    "/v1/ws",
    "/v1/publish",
    "/v1/state/vm/a",
    "/v1/state/",
    "/v1/state/%",
    "/v1/state/%ff%fe",
    "/v1/state/a%2Fb%00",
    "/v1/openapi.json",
    "/",
    "*",
    "//",
    "/../..",
    "http://a/v1/events",
    "/v1/events/",
];
const NAMES: &[&str] =
    &["topic", "after", "wait", "limit", "client", "top%69c", "%", "", "TOPIC", "topic[]", "x"];
const VALUES: &[&str] = &[
    "a",
    "vm/*",
    "**",
    "*/**/a",
    "%2F",
    "%",
    "%ff",
    "%00",
    "+",
    "",
    "now",
    "earliest",
    "0",
    "1",
    "-1",
    "5m",
    "99999999999999999999",
    "1e9",
    "NaN",
    "50s",
    "0000000000000001-0000000000000001-0000000000000001",
    "=",
    "&&",
    "\u{fc}",
    "%F0%9F%92%A9",
];
const HEADERS: &[&str] = &[
    "Host: a",
    "Accept: text/event-stream",
    "Accept: */*;q=z",
    "Last-Event-ID: x",
    "If-None-Match: \"",
    "If-None-Match: *",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 7\r\nSec-WebSocket-Key: x",
    "Content-Type: application/json",
    "Content-Type: text/\u{fc}",
    "Content-Length: 20",
    "Content-Length: 0\r\nContent-Length: 20",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Idempotency-Key: k",
    "Idempotency-Key: \u{7f}",
    "Expect: 100-continue",
    "Connection: close",
    ": x",
    " folded",
    "X:\0",
];
const BODIES: &[&str] = &[
    "",
    "{}",
    "{\"topic\":\"a\",\"data\":1}",
    "{\"topic\":\"a\",\"data\":\"\\ud800\"}",
    "{\"topic\":\"a\",\"data\":\"\\u0000\"}",
    "{\"topic\":\"\",\"data\":null}",
    "[[[[[[[[",
    "5\r\nhello\r\n0\r\n\r\n",
    "fffffffffffffffff\r\n",
    "\u{0}\u{1}\u{2}",
    // Frames of a WebSocket: text, ping, close, too long, reserved bits.
    "\u{1}\u{5}abcde",
    "\u{9}\u{0}",
    "\u{8}\u{2}\u{3}",
    "\u{1}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}",
    "\u{71}\u{1}a",
];

fn request(dice: &mut Dice) -> Vec<u8> {
    let mut text = format!("{} {}", dice.pick(METHODS), dice.pick(PATHS));
    // Mostly well-formed, or nothing would get beyond the first look.
    if dice.roll(4) > 0 {
        text = format!("{} {}", dice.pick(&METHODS[..2]), dice.pick(&PATHS[..5]));
    }
    for i in 0..dice.roll(5) {
        let mark = if i == 0 { '?' } else { '&' };
        let (name, known) = (dice.pick(NAMES), dice.pick(&NAMES[..5]));
        let name = if dice.roll(3) > 0 { known } else { name };
        text.push_str(&format!("{mark}{name}={}", dice.pick(VALUES)));
    }
    text.push_str(dice.pick(&[" HTTP/1.1", " HTTP/1.1", " HTTP/1.1", " HTTP/1.0", " HTTP/2", ""]));
    text.push_str("\r\n");
    for _ in 0..dice.roll(5) {
        text.push_str(dice.pick(HEADERS));
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text.push_str(dice.pick(BODIES));
    let mut bytes = text.into_bytes();
    // Some lose or gain a byte.
    if dice.roll(4) == 0 {
        let at = dice.roll(bytes.len());
        bytes[at] = u8::try_from(dice.roll(256)).unwrap();
    }
    if dice.roll(8) == 0 {
        bytes.truncate(dice.roll(bytes.len()));
    }
    bytes
}

async fn send(address: &str, bytes: &[u8]) -> Option<String> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    // A broker that has seen enough closes while we write.
    let _ = socket.write_all(bytes).await;
    let mut answer = vec![0; 4096];
    let n = tokio::time::timeout(GLANCE, socket.read(&mut answer)).await.ok()?.ok()?;
    (n > 0).then(|| String::from_utf8_lossy(&answer[..n]).into_owned())
}

#[tokio::test]
async fn a_broker_survives_whatever_it_is_sent() {
    let name = "fuzz";
    let path = file(name, &settings(&server::create(name).await, name, "", ""));
    run(&["setup", "--config", &path]).await.succeeded();
    let broker = Process::on(&path).await;
    broker.ready().await;
    let answers = futures_util::stream::iter(1..=REQUESTS).map(|seed| {
        let bytes = request(&mut Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let address = &broker.http;
        async move { (send(address, &bytes).await, bytes) }
    });
    let mut answers = answers.buffer_unordered(AT_ONCE);
    let mut seen = std::collections::BTreeMap::<String, u64>::new();
    while let Some((answer, request)) = within("the next answer", answers.next()).await {
        let Some(answer) = answer else { continue };
        let request = String::from_utf8_lossy(&request);
        let status = answer.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).unwrap_or_default();
        let known = ["101", "200", "304", "400", "404", "405", "410", "413", "415", "422", "431", "503"];
        assert!(known.contains(&status), "{request}\n{answer}");
        assert!(status < "400" || answer.contains("application/problem+json"), "{request}\n{answer}");
        *seen.entry(status.to_owned()).or_default() += 1;
    }
    drop(answers);
    // It got beyond the first look.
    for status in ["101", "200", "400", "404", "405"] {
        assert!(seen.contains_key(status), "{seen:?}");
    }
    assert_eq!(get(&broker.admin, "/readyz").await.0, 200);
    let url = broker.url();
    run(&["publish", "fuzz/end", "1", "--url", &url]).await.succeeded();
    run(&["tail", "fuzz/end", "--url", &url, "--after=earliest", "--limit=1"]).await.succeeded();
    let ended = broker.stop().await;
    ended.succeeded();
    assert!(!ended.err.contains("panicked") && !ended.err.contains(" ERROR "), "{ended:?}");
    run(&["teardown", "--config", &path]).await.succeeded();
}
