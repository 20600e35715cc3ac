//! HTTP/1.1 connections to one broker: opening, reusing, and reading an answer.
//!
//! Idle connections are few and reused youngest first. A connection whose answer was not read to its end
//! is closed, never reused.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use hyper::http::request;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use walcast_wire::Problem;

use crate::Error;
use crate::dial::Target;
#[cfg(feature = "tls")]
use crate::tls::Tls;

/// How long an answer may take that must come at once, connecting included.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The broker sends something at least every 25 s on a stream; this allows for one loss and some delay.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The largest answer that is read: a full page of the largest events.
const ANSWER_BYTES_MAX: usize = 128 << 20;
/// What nobody waits for; no clock is too short for it.
const FOR_EVER: Duration = Duration::from_secs(30 * 365 * 86_400);
/// Idle connections kept.
const IDLE_MAX: usize = 4;

/// What is the same for all brokers of a client.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `Bearer …`, marked as sensitive, so that nothing prints it.
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) connect_timeout: Duration,
    pub(crate) silence_max: Duration,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Tls>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            authorization: None,
            connect_timeout: CONNECT_TIMEOUT,
            silence_max: SILENCE_MAX,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

/// Where the broker is, and the idle connections to it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    target: Target,
    /// What precedes `/v1`.
    prefix: String,
    settings: Settings,
    idle: Mutex<Vec<Connection>>,
}

/// A connection and the task that moves its bytes, which ends with it.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Endpoint {
    /// Takes a base URL apart.
    pub(crate) fn parse(url: &str, settings: &Settings) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::Url { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri =
            url.parse().map_err(|error: hyper::http::uri::InvalidUri| refuse(&error.to_string()))?;
        let port = match uri.scheme_str() {
            Some("http") => 80,
            Some("https") if cfg!(feature = "tls") => 443,
            Some("https") => return Err(refuse("https needs the feature `tls` of this crate")),
            _ => return Err(refuse("it must start with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| refuse("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(refuse("it must not hold a user name"));
        }
        if uri.query().is_some() {
            return Err(refuse("it must not have a query"));
        }
        #[cfg(feature = "tls")]
        let tls = match (port, &settings.tls) {
            (443, None) => return Err(refuse("nobody is trusted; build the client with its hosts")),
            (443, Some(tls)) => Some(tls.clone()),
            _ => None,
        };
        let port = authority.port_u16().unwrap_or(port);
        let target = Target {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port,
            address: format!("{}:{port}", authority.host()),
            #[cfg(feature = "tls")]
            tls,
        };
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { target, prefix, settings: settings.clone(), idle: Mutex::new(Vec::new()) })
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.target.address
    }

    /// How long a stream may be silent.
    pub(crate) fn silence_max(&self) -> Duration {
        self.settings.silence_max
    }

    /// How long an answer may take that must come at once.
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.settings.connect_timeout
    }

    /// Starts a request for `target`, a path with its query.
    pub(crate) fn request(&self, method: &str, target: &str) -> request::Builder {
        let builder = Request::builder()
            .method(method)
            .uri(format!("{}{target}", self.prefix))
            .header(HOST, self.address());
        match &self.settings.authorization {
            Some(authorization) => builder.header(AUTHORIZATION, authorization),
            None => builder,
        }
    }

    /// Sends a request and answers the response's head, which may take `hold` longer than connecting; with the
    /// connection that its body comes on.
    pub(crate) async fn send(
        &self,
        request: request::Builder,
        body: Bytes,
        hold: Duration,
    ) -> Result<(Connection, Response<Incoming>), Error> {
        let limit = self.settings.connect_timeout.saturating_add(hold);
        match timeout(limit, Box::pin(self.exchange(request, body))).await {
            Ok(answer) => answer,
            Err(_) => {
                // What swallowed this one may have swallowed the idle ones, too.
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                Err(self.silent(limit))
            }
        }
    }

    async fn exchange(
        &self,
        request: request::Builder,
        body: Bytes,
    ) -> Result<(Connection, Response<Incoming>), Error> {
        let mut request = request.body(Full::new(body)).map_err(|error| Error::Request(error.to_string()))?;
        // The broker may close an idle connection at any moment. What was not sent, or changes nothing, is
        // sent again on another.
        while let Some(mut connection) = self.reuse() {
            if connection.sender.ready().await.is_err() {
                continue;
            }
            let copy = (request.method() == Method::GET).then(|| request.clone());
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok((connection, response)),
                Err(mut error) => match error.take_message().or(copy) {
                    Some(message) => request = message,
                    None => return Err(self.broken(&error.into_error())),
                },
            }
        }
        let mut connection = self.connect().await?;
        let response = connection.sender.send_request(request).await.map_err(|error| self.broken(&error))?;
        Ok((connection, response))
    }

    /// Sends a request and reads the whole answer, which begins within `hold` and the time of connecting; refusals
    /// become errors.
    pub(crate) async fn call(
        &self,
        request: request::Builder,
        body: Bytes,
        hold: Duration,
    ) -> Result<(StatusCode, HeaderMap, Bytes), Error> {
        let (connection, response) = self.send(request, body, hold).await?;
        let (head, body) = response.into_parts();
        let body = self.read(body).await?;
        self.keep(connection);
        if head.status.is_client_error() || head.status.is_server_error() {
            return Err(self.refusal(head.status, &head.headers, &body));
        }
        Ok((head.status, head.headers, body))
    }

    /// Reads a body to its end.
    pub(crate) async fn read(&self, mut body: Incoming) -> Result<Bytes, Error> {
        // Who says so beforehand is not read at all.
        if body.size_hint().lower() > ANSWER_BYTES_MAX as u64 {
            return Err(self.too_large(ANSWER_BYTES_MAX));
        }
        let mut whole = BytesMut::new();
        loop {
            let frame = timeout(self.settings.silence_max, body.frame()).await;
            let frame = frame.map_err(|_| self.silent(self.settings.silence_max))?;
            let Some(frame) = frame else { return Ok(whole.freeze()) };
            let Ok(data) = frame.map_err(|error| self.broken(&error))?.into_data() else { continue };
            if whole.len() + data.len() > ANSWER_BYTES_MAX {
                return Err(self.too_large(ANSWER_BYTES_MAX));
            }
            whole.extend_from_slice(&data);
        }
    }

    /// What an answer with an error status says.
    pub(crate) fn refusal(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
        /// As much of a problem as another version may have in common with this one.
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Foreign {
            code: Option<String>,
            detail: String,
        }
        let retry_after = retry_after(headers);
        if let Ok(problem) = serde_json::from_slice::<Problem>(body) {
            return Error::Problem { problem: Box::new(problem), retry_after };
        }
        let Foreign { code, detail } = serde_json::from_slice(body).unwrap_or_default();
        Error::Status {
            address: self.address().to_owned(),
            status: status.as_u16(),
            code,
            detail,
            retry_after,
        }
    }

    /// Nothing came for so long.
    pub(crate) fn silent(&self, after: Duration) -> Error {
        Error::Silent { address: self.address().to_owned(), after }
    }

    /// More came at once than is read.
    pub(crate) fn too_large(&self, bytes_max: usize) -> Error {
        Error::TooLarge { address: self.address().to_owned(), bytes_max }
    }

    /// Anything that the protocol does not foresee.
    pub(crate) fn protocol(&self, reason: String) -> Error {
        Error::Protocol { address: self.address().to_owned(), reason }
    }

    /// A connection that ended amid something. The innermost cause says most.
    pub(crate) fn broken(&self, error: &(dyn std::error::Error + 'static)) -> Error {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        // What TLS says to somebody who does not speak it is no HTTP.
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            reason.push_str("; what came is not HTTP: does the URL want https://?");
        }
        Error::Broken { address: self.address().to_owned(), reason }
    }

    fn reuse(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(connection) = idle.pop() {
            if !connection.sender.is_closed() {
                return Some(connection);
            }
        }
        None
    }

    /// Takes back a connection whose answer was read to its end.
    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !connection.sender.is_closed() {
            idle.push(connection);
        }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let wire = self.target.dial(deadline(self.settings.connect_timeout)).await?;
        let (sender, connection) =
            Builder::new().handshake(TokioIo::new(wire)).await.map_err(|error| self.broken(&error))?;
        // Its errors reach the request that suffers from them.
        let driver = tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(Connection { sender, driver })
    }
}

/// When `limit` is over; one that is longer than the clock goes is no limit.
fn deadline(limit: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(limit).unwrap_or_else(|| now + FOR_EVER)
}

/// `Retry-After`, in its form as seconds.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let check = |url: &str, expected: Result<(&str, &str), &str>| match (
            Endpoint::parse(url, &Settings::default()),
            expected,
        ) {
            (Ok(endpoint), Ok(parts)) => {
                assert_eq!((endpoint.address(), endpoint.prefix.as_str()), parts);
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, expected) => panic!("{url}: {got:?}, expected {expected:?}"),
        };
        check("http://127.0.0.1:8480", Ok(("127.0.0.1:8480", "")));
        check("http://broker/", Ok(("broker:80", "")));
        check("http://[::1]:8480/walcast/", Ok(("[::1]:8480", "/walcast")));
        #[cfg(feature = "tls")]
        check("https://broker", Err("nobody is trusted"));
        #[cfg(not(feature = "tls"))]
        check("https://broker", Err("feature `tls`"));
        check("127.0.0.1:8480", Err("127.0.0.1:8480"));
        check("broker", Err("must start with http://"));
        check("http://me@broker", Err("user name"));
        check("http://broker/?a=b", Err("query"));
        check("http://", Err("http://"));
    }
}
