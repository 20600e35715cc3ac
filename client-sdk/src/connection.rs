//! HTTP/1.1 connections to one broker: opening, reusing, and reading an answer.
//!
//! Idle connections are few and reused youngest first. A connection whose answer was not read to its end
//! is closed, never reused.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{HOST, HeaderMap, RETRY_AFTER};
use hyper::http::request;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use walcast_wire::Problem;

use crate::Error;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The broker sends something at least every 25 s on a stream; this allows for one loss and some delay.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The largest answer that is read: a full page of the largest events.
const ANSWER_BYTES_MAX: usize = 128 << 20;
/// Idle connections kept.
const IDLE_MAX: usize = 4;

/// Where the broker is, and the idle connections to it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Host and port.
    address: String,
    /// What precedes `/v1`.
    prefix: String,
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
    pub(crate) fn parse(url: &str) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::Url { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri =
            url.parse().map_err(|error: hyper::http::uri::InvalidUri| refuse(&error.to_string()))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(refuse("https is not supported yet; use http")),
            _ => return Err(refuse("it must start with http://")),
        }
        let authority = uri.authority().ok_or_else(|| refuse("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(refuse("it must not hold a user name"));
        }
        if uri.query().is_some() {
            return Err(refuse("it must not have a query"));
        }
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
        let prefix = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { address, prefix, idle: Mutex::new(Vec::new()) })
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Starts a request for `target`, a path with its query.
    pub(crate) fn request(&self, method: &str, target: &str) -> request::Builder {
        Request::builder().method(method).uri(format!("{}{target}", self.prefix)).header(HOST, &self.address)
    }

    /// Sends a request and answers the response's head, with the connection that its body comes on.
    pub(crate) async fn send(
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

    /// Sends a request and reads the whole answer within `limit`; refusals become errors.
    pub(crate) async fn call(
        &self,
        request: request::Builder,
        body: Bytes,
        limit: Duration,
    ) -> Result<(StatusCode, HeaderMap, Bytes), Error> {
        let work = async {
            let (connection, response) = self.send(request, body).await?;
            let (head, body) = response.into_parts();
            let body = self.read(body).await?;
            self.keep(connection);
            Ok((head.status, head.headers, body))
        };
        let (status, headers, body) = timeout(limit, work)
            .await
            .map_err(|_| Error::Silent { address: self.address.clone(), after: limit })??;
        if status.is_client_error() || status.is_server_error() {
            return Err(self.refusal(status, &headers, &body));
        }
        Ok((status, headers, body))
    }

    /// Reads a body to its end.
    pub(crate) async fn read(&self, body: Incoming) -> Result<Bytes, Error> {
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| self.broken(error.as_ref()))
    }

    /// What an answer with an error status says.
    pub(crate) fn refusal(&self, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
        match serde_json::from_slice::<Problem>(body) {
            Ok(problem) => Error::Problem { problem: Box::new(problem), retry_after: retry_after(headers) },
            Err(_) => self.protocol(format!("status {status} without a problem document")),
        }
    }

    /// Anything that the protocol does not foresee.
    pub(crate) fn protocol(&self, reason: String) -> Error {
        Error::Protocol { address: self.address.clone(), reason }
    }

    /// A connection that ended amid something. The innermost cause says most.
    pub(crate) fn broken(&self, error: &(dyn std::error::Error + 'static)) -> Error {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        Error::Broken { address: self.address.clone(), reason }
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
        let failed = |source| Error::Connect { address: self.address.clone(), source };
        let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.address)).await {
            Ok(connected) => connected.map_err(failed)?,
            Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
        };
        stream.set_nodelay(true).map_err(failed)?;
        let (sender, connection) =
            Builder::new().handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        // Its errors reach the request that suffers from them.
        let driver = tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(Connection { sender, driver })
    }
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
        let check = |url: &str, expected: Result<(&str, &str), &str>| match (Endpoint::parse(url), expected) {
            (Ok(endpoint), Ok(parts)) => {
                assert_eq!((endpoint.address.as_str(), endpoint.prefix.as_str()), parts);
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, expected) => panic!("{url}: {got:?}, expected {expected:?}"),
        };
        check("http://127.0.0.1:8480", Ok(("127.0.0.1:8480", "")));
        check("http://broker/", Ok(("broker:80", "")));
        check("http://[::1]:8480/walcast/", Ok(("[::1]:8480", "/walcast")));
        check("https://broker", Err("https is not supported yet"));
        check("127.0.0.1:8480", Err("127.0.0.1:8480"));
        check("broker", Err("must start with http://"));
        check("http://me@broker", Err("user name"));
        check("http://broker/?a=b", Err("query"));
        check("http://", Err("http://"));
    }
}
