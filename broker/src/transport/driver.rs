//! The wait path: a connection that waits costs a small task and nothing else.
//!
//! Nearly every connection is a parked waiter, so the calls that wait are read and answered here, on the socket
//! itself; no buffer is held while one is parked. Any other request, and whatever is not plain HTTP/1.1 without
//! a body, is handed to hyper with the bytes already read, and stays there until its connection ends. What an
//! answer says is decided by the same functions on both ways.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};

use super::call::Request;
use super::pieces::Pieces;
use super::problem::Refusal;
use super::reply::{self, Reply};
use super::{App, events, long_poll, sse, state, websocket};
use crate::listen::{HEAD_BYTES_MAX, House, Serve, Socket, http};

/// Headers of one request, as many as hyper takes.
const HEADERS_MAX: usize = 100;

/// Serves the API.
pub(super) struct Front {
    pub(super) app: Arc<App>,
    /// For what does not wait.
    pub(super) router: Router,
}

/// A request head, as far as this path goes.
enum Head {
    /// The rest has not come.
    Partial,
    /// For hyper.
    Other,
    Call(Call),
}

/// A call that waits.
struct Call {
    what: Result<What, Refusal>,
    /// The client wants no further answer on this connection.
    close: bool,
}

enum What {
    Events(events::Call),
    State(state::Question),
    Socket(websocket::Call),
}

/// What becomes of a connection.
enum Next {
    /// Its next request.
    Request,
    /// Nothing.
    End,
}

impl Serve for Front {
    async fn serve(self: Arc<Self>, mut socket: Socket, house: Arc<House>) {
        loop {
            let call = match next_call(&self.app, &mut socket, &house).await {
                Some(Head::Call(call)) => call,
                Some(_) => {
                    // Boxed: hyper's needs are many times those of a parked waiter.
                    return Box::pin(http::serve(socket, self.router.clone(), house)).await;
                }
                None => return,
            };
            let close = call.close;
            let next = match call.what {
                Ok(What::Events(events::Call::Poll(ask))) => {
                    whole(&self.app, &mut socket, long_poll::answer(&self.app, ask), close).await
                }
                Ok(What::Events(events::Call::Stream(ask))) => {
                    match sse::open(Arc::clone(&self.app), ask) {
                        Ok(events) => return stream(&mut socket, events).await,
                        Err(refusal) => say(&self.app, &mut socket, refusal.into_reply(), close).await,
                    }
                }
                Ok(What::State(question)) => {
                    let answer = Box::pin(state::answer(&self.app, question));
                    whole(&self.app, &mut socket, answer, close).await
                }
                Ok(What::Socket(call)) => {
                    let opened = open(&mut socket, &call).await;
                    if opened {
                        let app = Arc::clone(&self.app);
                        websocket::run(app, socket, call.ask).await;
                    }
                    return;
                }
                Err(refusal) => say(&self.app, &mut socket, refusal.into_reply(), close).await,
            };
            match next {
                Next::Request => {}
                Next::End => return,
            }
        }
    }
}

/// Waits for a request. `None`: the peer is gone, or too slow, or the house drains.
async fn next_call(app: &App, socket: &mut Socket, house: &House) -> Option<Head> {
    let mut looked = 0;
    let mut late = pin!(tokio::time::sleep(house.limits.head_timeout));
    let mut drained = pin!(house.drain.cancelled());
    poll_fn(|cx| {
        loop {
            if socket.ahead().len() > looked {
                looked = socket.ahead().len();
                let (head, used) = read(app, socket.ahead());
                if !matches!(head, Head::Partial) {
                    socket.used(used);
                    return Poll::Ready(Some(head));
                }
            }
            if let Poll::Ready(more) = socket.poll_fill(cx) {
                if more {
                    continue;
                }
                return Poll::Ready(None);
            }
            // A request that has begun to come is still read.
            if late.as_mut().poll(cx).is_ready() || looked == 0 && drained.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            return Poll::Pending;
        }
    })
    .await
}

/// Reads a head off `bytes`, and how many of them it takes.
fn read(app: &App, bytes: &[u8]) -> (Head, usize) {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_BYTES_MAX => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return (Head::Partial, 0),
        // Too large or malformed: hyper says so.
        _ => return (Head::Other, 0),
    };
    let (Some("GET"), Some(1), Some(target)) = (request.method, request.version, request.path) else {
        return (Head::Other, 0);
    };
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let headers: &[httparse::Header<'_>] = request.headers;
    let request = Request { path, query, headers: &headers };
    let body = request.header("content-length").is_some_and(|length| length != b"0")
        || request.header("transfer-encoding").is_some();
    // A fragment has no place in a target; hyper knows what to make of one.
    if body || request.header("expect").is_some() || target.contains('#') {
        return (Head::Other, 0);
    }
    let config = &app.config;
    let what = match path {
        "/v1/events" => events::read(&request, config).map(What::Events),
        "/v1/ws" => websocket::read(&request, config).map(What::Socket),
        _ if path.strip_prefix(state::PREFIX).is_some_and(|topic| !topic.is_empty()) => {
            state::read(&request, config).map(What::State)
        }
        _ => return (Head::Other, 0),
    };
    (Head::Call(Call { what, close: request.says("connection", "close") }), length)
}

/// Waits for an answer and writes it, unless the peer goes away first.
async fn whole(
    app: &App,
    socket: &mut Socket,
    answer: impl Future<Output = Result<Reply, Refusal>>,
    close: bool,
) -> Next {
    let mut answer = pin!(answer);
    let reply = poll_fn(|cx| match answer.as_mut().poll(cx) {
        Poll::Ready(reply) => Poll::Ready(Some(reply)),
        Poll::Pending => socket.poll_gone(cx).map(|()| None),
    });
    match reply.await {
        Some(reply) => say(app, socket, reply.unwrap_or_else(Refusal::into_reply), close).await,
        None => Next::End,
    }
}

async fn say(app: &App, socket: &mut Socket, reply: Reply, close: bool) -> Next {
    let close = close || app.drain.is_cancelled();
    let wire = reply.into_wire(close);
    match socket.send(&wire).await {
        Ok(()) if !close => Next::Request,
        // A peer that hung up loses only its answer.
        Ok(()) | Err(_) => Next::End,
    }
}

/// Writes a stream, in chunks, until one side ends it.
async fn stream(socket: &mut Socket, mut events: sse::Events) {
    let mut first = Some(stream_head());
    loop {
        let next = poll_fn(|cx| match events.poll_next(cx) {
            Poll::Ready(pieces) => Poll::Ready(Some(pieces)),
            Poll::Pending => socket.poll_gone(cx).map(|()| None),
        });
        let Some(next) = next.await else { return };
        let ends = next.is_none();
        let mut wire = first.take().unwrap_or_default();
        match next {
            Some(pieces) => {
                wire.copy(format!("{:x}\r\n", pieces.len()).as_bytes());
                wire.append(pieces);
                wire.copy(b"\r\n");
            }
            None => wire.copy(b"0\r\n\r\n"),
        }
        let wire: Vec<_> = wire.into_chunks().collect();
        if socket.send(&wire).await.is_err() || ends {
            return;
        }
    }
}

fn stream_head() -> Pieces {
    let mut head = Pieces::default();
    let mut headers: Vec<_> = sse::headers().collect();
    headers.push((header::TRANSFER_ENCODING, HeaderValue::from_static("chunked")));
    reply::head(&mut head, StatusCode::OK, &headers, true);
    head.copy(b"\r\n");
    head
}

/// Answers that the connection is a WebSocket from here on.
async fn open(socket: &mut Socket, call: &websocket::Call) -> bool {
    let mut head = Pieces::default();
    reply::head(&mut head, StatusCode::SWITCHING_PROTOCOLS, &call.switching(), false);
    head.copy(b"\r\n");
    let wire: Vec<_> = head.into_chunks().collect();
    socket.send(&wire).await.is_ok()
}
