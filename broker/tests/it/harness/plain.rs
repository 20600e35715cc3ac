//! An HTTP client so plain that it shows every byte and can also misbehave.

use std::collections::HashMap;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use walcast_wire::Cursor;

use super::wait::within;

/// Whoever listens there; a connection per request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain {
    pub(crate) address: SocketAddr,
}

impl Plain {
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and reads the answer to the end.
    pub(crate) async fn raw(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut stream = self.connect().await;
        // The broker may answer and close before it has read everything.
        let _ = stream.write_all(request.as_ref()).await;
        Answer::read(&mut stream).await
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.get_with(target, "").await
    }

    pub(crate) async fn get_with(&self, target: &str, headers: &str) -> Answer {
        self.raw(format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n")).await
    }

    pub(crate) async fn post(&self, headers: &str, body: &str) -> Answer {
        let length = body.len();
        self.raw(format!(
            "POST /v1/publish HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        ))
        .await
    }

    /// Begins a request whose answer is read later. HTTP/1.0, so that a stream is not chunked.
    pub(crate) async fn begin(&self, target: &str, headers: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(format!("GET {target} HTTP/1.0\r\n{headers}\r\n").as_bytes()).await.unwrap();
        stream
    }
}

/// Status and body of a plain GET.
pub(crate) async fn get(address: &str, target: &str) -> (u16, String) {
    let answer = Plain { address: address.parse().unwrap() }.get(target).await;
    (answer.status, answer.body)
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) async fn read(stream: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        within("the answer ends", stream.read_to_end(&mut bytes)).await.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Self { status, headers, body: body.to_owned() }
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The cursor of a long-poll's answer.
    #[track_caller]
    pub(crate) fn cursor(&self) -> Cursor {
        assert_eq!(self.status, 200, "{self:?}");
        let json = self.json();
        assert_eq!(json["cursor"], self.headers["walcast-cursor"].as_str());
        json["cursor"].as_str().unwrap().parse().unwrap()
    }

    /// Topic and data of each event.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<String> {
        assert_eq!(self.status, 200, "{self:?}");
        let reply: walcast_wire::EventsReply<Value> = serde_json::from_str(&self.body).unwrap();
        reply.events.iter().map(|event| format!("{} {}", event.topic, event.data)).collect()
    }

    /// The code of a problem document; every other form is a failure.
    #[track_caller]
    pub(crate) fn problem(&self) -> walcast_wire::Problem {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        let problem: walcast_wire::Problem = serde_json::from_str(&self.body).unwrap();
        assert_eq!(problem.status, self.status);
        problem
    }
}
