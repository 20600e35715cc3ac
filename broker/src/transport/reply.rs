//! A whole answer, to be written by hyper or by the wait path: its length is known before it is written.

use std::fmt::Write as _;
use std::time::SystemTime;

use axum::body::Body;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::pieces::Pieces;

/// Status, headers, body.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Pieces,
}

impl Reply {
    pub(super) fn new(status: StatusCode) -> Self {
        Self { status, headers: Vec::with_capacity(6), body: Pieces::default() }
    }

    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// As it stands on the wire, in pieces.
    pub(super) fn into_wire(self, close: bool) -> Vec<Bytes> {
        let mut wire = Pieces::default();
        head(&mut wire, self.status, &self.headers, close);
        let body = self.status != StatusCode::NOT_MODIFIED;
        if body {
            wire.copy(format!("content-length: {}\r\n", self.body.len()).as_bytes());
        }
        wire.copy(b"\r\n");
        if body {
            wire.append(self.body);
        }
        wire.into_chunks().collect()
    }
}

/// Status line and headers, without the empty line that ends them.
pub(super) fn head(
    wire: &mut Pieces,
    status: StatusCode,
    headers: &[(HeaderName, HeaderValue)],
    close: bool,
) {
    let mut line = String::with_capacity(96);
    let reason = status.canonical_reason().unwrap_or_default();
    let date = httpdate::HttpDate::from(SystemTime::now());
    // Writing to a String does not fail.
    let _ = write!(line, "HTTP/1.1 {} {reason}\r\ndate: {date}\r\n", status.as_u16());
    wire.copy(line.as_bytes());
    for (name, value) in headers {
        wire.copy(name.as_str().as_bytes());
        wire.copy(b": ");
        wire.copy(value.as_bytes());
        wire.copy(b"\r\n");
    }
    if close {
        wire.copy(b"connection: close\r\n");
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let headers = HeaderMap::from_iter(self.headers);
        (self.status, headers, Body::new(self.body.into_body())).into_response()
    }
}

/// Keeps proxies and browsers from storing or holding back what is said once.
pub(super) fn streamed() -> [(HeaderName, HeaderValue); 2] {
    [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ]
}
