//! A server that answers canned bytes, and the words of the protocol to can.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use walcast_client::wire::{Cursor, Epoch, Position};
use walcast_client::{Client, ClientBuilder};

/// What the server does with one request.
pub(crate) enum Answer {
    /// Sends it and waits for the next request on the same connection.
    Keep(String),
    /// Sends it and closes.
    Close(String),
    /// Sends it and keeps the connection open.
    Hold(String),
    /// Upgrades to a WebSocket, sends these text frames, and a close frame.
    WebSocket(Vec<String>, Option<(u16, &'static str)>),
    /// Upgrades to a WebSocket, sends these text frames, and keeps it open.
    HeldWebSocket(Vec<String>),
    /// Upgrades to a WebSocket, sends these text frames, and so many pings, each once the last is answered; tells each
    /// answer as a request.
    PingingWebSocket(Vec<String>, usize),
    /// Upgrades to a WebSocket, sends those of these events that lie behind the cursor that was named, and keeps it
    /// open; tells as a request that the client left.
    LogWebSocket(Vec<(u64, String)>),
    /// Upgrades to a WebSocket, sends these text frames, and is gone.
    CutWebSocket(Vec<String>),
    /// Closes at once.
    HangUp,
    /// Never says anything.
    Silence,
}

/// A server; behind its last script nobody listens any more.
pub(crate) struct Fake {
    pub(crate) address: String,
    /// Head and body of each request.
    pub(crate) requests: mpsc::Receiver<String>,
}

impl Fake {
    /// Serves the connections' scripts in turn.
    pub(crate) async fn start(connections: Vec<Vec<Answer>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (seen, requests) = mpsc::channel(64);
        tokio::spawn(async move {
            for answers in connections {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(play(stream, answers, seen.clone()));
            }
        });
        Self { address, requests }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn builder(&self) -> ClientBuilder {
        Client::builder().hosts([self.url()])
    }

    pub(crate) fn client(&self) -> Client {
        self.builder().build().unwrap()
    }

    pub(crate) async fn request(&mut self) -> String {
        within(self.requests.recv()).await.unwrap()
    }

    /// The first line of the next request.
    pub(crate) async fn asked(&mut self) -> String {
        first_line(&self.request().await).to_owned()
    }
}

/// Nobody listens there.
pub(crate) async fn dead() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Waits for what must come, with a limit that only a broken client reaches.
#[track_caller]
pub(crate) fn within<F: IntoFuture>(future: F) -> impl Future<Output = F::Output> {
    let at = std::panic::Location::caller();
    async move {
        let limit = std::time::Duration::from_secs(60);
        tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("{at}: not within {limit:?}"))
    }
}

/// Serves one connection.
pub(crate) async fn play(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answers: Vec<Answer>,
    seen: mpsc::Sender<String>,
) {
    for answer in answers {
        let Some(request) = read_request(&mut stream).await else { return };
        let _ = seen.send(request.clone()).await;
        match answer {
            Answer::Keep(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            Answer::Close(text) => {
                stream.write_all(text.as_bytes()).await.unwrap();
                let _ = stream.shutdown().await;
                return;
            }
            Answer::Hold(text) => {
                // A client need not take all of it.
                let _ = stream.write_all(text.as_bytes()).await;
                return until_closed(&mut stream).await;
            }
            Answer::WebSocket(frames, close) => {
                upgrade(&mut stream, &request, &frames, close).await;
                // Until the client's close frame or its end, so that nothing is lost to a reset.
                let _ = stream.read(&mut [0; 256]).await;
                return;
            }
            Answer::HeldWebSocket(frames) => {
                upgrade(&mut stream, &request, &frames, None).await;
                return until_closed(&mut stream).await;
            }
            Answer::PingingWebSocket(frames, pings) => {
                upgrade(&mut stream, &request, &frames, None).await;
                for _ in 0..pings {
                    stream.write_all(&[0x89, 0]).await.unwrap();
                    // An empty pong is masked, as all that a client sends.
                    let mut pong = [0; 6];
                    stream.read_exact(&mut pong).await.unwrap();
                    assert_eq!(pong[..2], [0x8A, 0x80]);
                    let _ = seen.send("pong".to_owned()).await;
                }
                return until_closed(&mut stream).await;
            }
            Answer::LogWebSocket(events) => {
                let after = first_line(&request).split_once("after=").unwrap().1;
                let after: Cursor = after.split([' ', '&']).next().unwrap().parse().unwrap();
                let behind = events.iter().filter(|(n, _)| *n > after.position.major);
                let frames: Vec<_> =
                    std::iter::once(subscribed(after)).chain(behind.map(|(_, event)| frame(event))).collect();
                upgrade(&mut stream, &request, &frames, None).await;
                until_closed(&mut stream).await;
                let _ = seen.send("left".to_owned()).await;
                return;
            }
            Answer::CutWebSocket(frames) => {
                upgrade(&mut stream, &request, &frames, None).await;
                let _ = stream.shutdown().await;
                return;
            }
            Answer::HangUp => return,
            Answer::Silence => return until_closed(&mut stream).await,
        }
    }
}

async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) {
    while stream.read(&mut [0; 256]).await.is_ok_and(|length| length > 0) {}
}

/// `None`: the client left in between.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return Some(text);
            }
        }
        match stream.read_buf(&mut bytes).await {
            Ok(1..) => {}
            _ => return None,
        }
    }
}

async fn upgrade(
    stream: &mut (impl AsyncWrite + Unpin),
    request: &str,
    frames: &[String],
    close: Option<(u16, &str)>,
) {
    let key = request.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
    let mut bytes = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    )
    .into_bytes();
    let mut frame = |opcode: u8, body: &[u8]| {
        match u16::try_from(body.len()) {
            Ok(length) => {
                bytes.extend([0x80 | opcode, 126]);
                bytes.extend(length.to_be_bytes());
            }
            Err(_) => {
                bytes.extend([0x80 | opcode, 127]);
                bytes.extend((body.len() as u64).to_be_bytes());
            }
        }
        bytes.extend(body);
    };
    for text in frames {
        frame(1, text.as_bytes());
    }
    if let Some((code, reason)) = close {
        // A close frame must be short, and so must be the length's form.
        let body = [&code.to_be_bytes(), reason.as_bytes()].concat();
        bytes.extend([0x88, body.len() as u8]);
        bytes.extend(body);
    }
    // A client need not take all of it.
    let _ = stream.write_all(&bytes).await;
}

pub(crate) fn first_line(request: &str) -> &str {
    request.lines().next().unwrap()
}

pub(crate) fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

pub(crate) fn json(body: &str) -> String {
    answer("200 OK", "content-type: application/json\r\n", body)
}

/// A stream of server-sent events that begins so, and does not end.
pub(crate) fn sse(text: &str) -> String {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    match text.len() {
        0 => head.to_owned(),
        length => format!("{head}{length:x}\r\n{text}\r\n"),
    }
}

pub(crate) fn cursor(n: u64) -> Cursor {
    Cursor::new(Epoch(7), Position::new(n, 1))
}

/// The place before everything.
pub(crate) fn zero() -> Cursor {
    Cursor::new(Epoch(7), Position::ZERO)
}

pub(crate) fn event(n: u64, topic: &str) -> String {
    event_as("update", n, topic)
}

pub(crate) fn event_as(op: &str, n: u64, topic: &str) -> String {
    format!(
        r#"{{"cursor":"{}","topic":"{topic}","op":"{op}","data":{{"n":{n}}},"lsn":"0/{n:X}"}}"#,
        cursor(n)
    )
}

pub(crate) fn page(upto: u64, events: &[String]) -> String {
    format!(r#"{{"cursor":"{}","events":[{}]}}"#, cursor(upto), events.join(","))
}

pub(crate) fn problem(code: &str, status: u16, resume: Option<Cursor>) -> String {
    let resume = resume.map_or(String::new(), |cursor| format!(r#","resume":"{cursor}""#));
    format!(r#"{{"title":"t","status":{status},"code":"{code}","detail":"what to do"{resume}}}"#)
}

pub(crate) fn subscribed(at: Cursor) -> String {
    format!(r#"{{"subscribed":{{"topics":["vm/*"],"cursor":"{at}"}}}}"#)
}

pub(crate) fn frame(event: &str) -> String {
    format!(r#"{{"event":{event}}}"#)
}

pub(crate) fn bookmark(n: u64) -> String {
    format!(r#"{{"bookmark":{{"cursor":"{}"}}}}"#, cursor(n))
}
