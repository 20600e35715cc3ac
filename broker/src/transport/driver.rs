//! The wait path: a connection that waits costs a small task and nothing else.
//!
//! Nearly every connection is a parked waiter, so the calls that wait are read and answered here, on the socket
//! itself; no buffer is held while one is parked. Any other request, and whatever is not plain HTTP/1.1 without
//! a body, is handed to hyper with the bytes already read, and stays there until its connection ends. What an
//! answer says is decided by the same functions on both ways.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use bytes::Bytes;
use futures_util::FutureExt as _;

use super::call::Request;
use super::pieces::Pieces;
use super::problem::Refusal;
use super::reply::{self, Reply};
use super::{App, events, long_poll, sse, state, websocket};
use crate::auth::Key;
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
    State(Arc<Key>, state::Question),
    Socket(websocket::Call),
}

/// What becomes of a connection.
enum Next {
    /// Its next request.
    Request,
    /// Nothing.
    End,
}

/// What a connection is at. Boxed, each as large as it has to be: a task's memory is that of its largest state, and
/// all of thousands would pay for it.
type Doing<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Serve for Front {
    #[expect(clippy::manual_async_fn, reason = "an async fn keeps room for its arguments twice")]
    fn serve(self: Arc<Self>, mut socket: Socket, house: Arc<House>) -> impl Future<Output = ()> + Send {
        async move {
            loop {
                match next_call(&self.app, &mut socket, &house).await {
                    None => return,
                    Some(Head::Call(call)) => match answer(&self.app, &mut socket, call).await {
                        Next::Request => {}
                        Next::End => return,
                    },
                    Some(_) => return hand_over(socket, &self.router, &house).await,
                }
            }
        }
    }
}

fn hand_over(socket: Socket, router: &Router, house: &Arc<House>) -> Doing<'static, ()> {
    Box::pin(http::serve(socket, router.clone(), Arc::clone(house)))
}

/// Answers a call.
fn answer<'a>(app: &'a Arc<App>, socket: &'a mut Socket, call: Call) -> Doing<'a, Next> {
    let close = call.close;
    match call.what {
        Ok(What::Events(events::Call::Poll(key, ask))) => match long_poll::Wait::begin(app, key, ask) {
            Ok(mut wait) => whole(app, socket, close, move |cx| wait.poll(app, cx)),
            Err(refusal) => say(app, socket, refusal.into_reply(), close),
        },
        Ok(What::State(key, question)) => match state::Wait::begin(app, key, question) {
            Ok(mut wait) => whole(app, socket, close, move |cx| wait.poll(app, cx)),
            Err(refusal) => say(app, socket, refusal.into_reply(), close),
        },
        Ok(What::Events(events::Call::Stream(key, ask))) => match sse::open(Arc::clone(app), key, ask) {
            Ok(events) => stream(socket, events),
            Err(refusal) => say(app, socket, refusal.into_reply(), close),
        },
        Ok(What::Socket(call)) => websocket(app, socket, call),
        Err(refusal) => say(app, socket, refusal.into_reply(), close),
    }
}

/// Waits for a request. `None`: the peer is gone, or too slow, or the house drains.
fn next_call<'a>(app: &'a App, socket: &'a mut Socket, house: &'a House) -> Doing<'a, Option<Head>> {
    Box::pin(async move {
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
                match socket.poll_fill(cx) {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) => return Poll::Ready(None),
                    // A request that has begun to come is still read.
                    Poll::Pending if looked == 0 && drained.as_mut().poll(cx).is_ready() => {
                        return Poll::Ready(None);
                    }
                    Poll::Pending => return late.as_mut().poll(cx).map(|()| None),
                }
            }
        })
        .await
    })
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
    // All of them: which of two that differ counts is for hyper to refuse, and for a proxy in front to disagree on.
    let body = request.all("content-length").any(|length| length != b"0")
        || request.header("transfer-encoding").is_some();
    // A fragment has no place in a target; hyper knows what to make of one.
    if body || request.header("expect").is_some() || target.contains('#') {
        return (Head::Other, 0);
    }
    let what = match path {
        "/v1/events" => events::read(&request, app).map(What::Events),
        "/v1/ws" => websocket::read(&request, app).map(What::Socket),
        _ if path.strip_prefix(state::PREFIX).is_some_and(|topic| !topic.is_empty()) => {
            state::read(&request, app).map(|(key, question)| What::State(key, question))
        }
        _ => return (Head::Other, 0),
    };
    (Head::Call(Call { what, close: request.says("connection", "close") }), length)
}

/// Waits for an answer and writes it, unless the peer goes away first.
fn whole<'a>(
    app: &'a App,
    socket: &'a mut Socket,
    close: bool,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<Result<Reply, Refusal>> + Send + 'a,
) -> Doing<'a, Next> {
    Box::pin(async move {
        let reply = poll_fn(|cx| match poll(cx) {
            Poll::Ready(reply) => Poll::Ready(Some(reply)),
            Poll::Pending => socket.poll_gone(cx).map(|()| None),
        });
        match reply.await {
            Some(reply) => say(app, socket, reply.unwrap_or_else(Refusal::into_reply), close).await,
            None => Next::End,
        }
    })
}

fn say<'a>(app: &App, socket: &'a mut Socket, reply: Reply, close: bool) -> Doing<'a, Next> {
    let close = close || app.drain.is_cancelled();
    let wire = reply.into_wire(close);
    Box::pin(async move {
        match socket.send(&wire).await {
            Ok(()) if !close => Next::Request,
            // A peer that hung up loses only its answer.
            Ok(()) | Err(_) => Next::End,
        }
    })
}

/// Writes a stream, in chunks, until one side ends it.
fn stream<'a>(socket: &'a mut Socket, mut events: sse::Events) -> Doing<'a, Next> {
    Box::pin(async move {
        let mut begun = false;
        loop {
            let next = poll_fn(|cx| match events.poll_next(cx) {
                Poll::Ready(pieces) => Poll::Ready(Some(pieces)),
                Poll::Pending => socket.poll_gone(cx).map(|()| None),
            });
            let Some(next) = next.await else { return Next::End };
            let ends = next.is_none();
            let wire = chunk(next, begun);
            if socket.send(&wire).await.is_err() || ends {
                return Next::End;
            }
            begun = true;
        }
    })
}

/// A piece of a stream as a chunk, behind the head of the answer if that is not sent yet. `None` ends the stream.
fn chunk(pieces: Option<Pieces>, begun: bool) -> Vec<Bytes> {
    let mut wire = Pieces::default();
    if !begun {
        let headers: Vec<_> = sse::headers()
            .chain([(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))])
            .collect();
        reply::head(&mut wire, StatusCode::OK, &headers, true);
        wire.copy(b"\r\n");
    }
    match pieces {
        Some(pieces) => {
            wire.copy(format!("{:x}\r\n", pieces.len()).as_bytes());
            wire.append(pieces);
            wire.copy(b"\r\n");
        }
        None => wire.copy(b"0\r\n\r\n"),
    }
    wire.into_chunks().collect()
}

/// Answers that the connection is a WebSocket from here on, and serves it.
fn websocket<'a>(app: &Arc<App>, socket: &'a mut Socket, call: websocket::Call) -> Doing<'a, Next> {
    let mut head = Pieces::default();
    reply::head(&mut head, StatusCode::SWITCHING_PROTOCOLS, &call.switching(), false);
    head.copy(b"\r\n");
    let serving = websocket::run(Arc::clone(app), socket, head.into_chunks().collect(), call.key, call.ask);
    Box::pin(serving.map(|()| Next::End))
}
