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
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use futures_util::FutureExt as _;

use super::call::Request;
use super::endpoint::Step;
use super::pieces::Pieces;
use super::problem::Refusal;
use super::reply::{self, Reply};
use super::{App, body, endpoint, events, long_poll, sse, state, websocket};
use crate::auth::Key;
use crate::endpoint::Found;
use crate::listen::{HEAD_BYTES_MAX, House, Serve, Socket, http};

/// Headers of one request, as many as hyper takes.
const HEADERS_MAX: usize = 100;
/// Ends an answer in chunks.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

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
    /// With the length of its body.
    Endpoint(endpoint::Ask, usize),
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
        Ok(What::Endpoint(ask, length)) => held(app, socket, ask, length, close),
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
    let (Some(method), Some(1), Some(target)) = (request.method, request.version, request.path) else {
        return (Head::Other, 0);
    };
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let headers: &[httparse::Header<'_>] = request.headers;
    let request = Request { path, query, headers: &headers };
    // A fragment has no place in a target; hyper knows what to make of one.
    if request.header("transfer-encoding").is_some()
        || request.header("expect").is_some()
        || target.contains('#')
    {
        return (Head::Other, 0);
    }
    let Some(body_bytes) = body_bytes(&request) else { return (Head::Other, 0) };
    let mut close = request.says("connection", "close");
    let what = match (method, path) {
        ("GET", "/v1/events") if body_bytes == 0 => events::read(&request, app).map(What::Events),
        ("GET", "/v1/ws") if body_bytes == 0 => websocket::read(&request, app).map(What::Socket),
        ("GET", _)
            if body_bytes == 0 && path.strip_prefix(state::PREFIX).is_some_and(|it| !it.is_empty()) =>
        {
            state::read(&request, app).map(|(key, question)| What::State(key, question))
        }
        _ => match app.endpoints.find(method, path) {
            Found::Endpoint(endpoint, segments) if body_bytes <= app.config.body_bytes_max => {
                let ask = endpoint::Ask::read(app, endpoint, &segments, &request);
                // Who is refused is not read any further.
                close |= ask.is_err() && body_bytes > 0;
                ask.map(|ask| What::Endpoint(ask, body_bytes))
            }
            _ => return (Head::Other, 0),
        },
    };
    (Head::Call(Call { what, close }), length)
}

/// How long a body is. `None`: that is for hyper to refuse; of two lengths, a proxy in front may take the other.
fn body_bytes(request: &Request<'_>) -> Option<usize> {
    let mut lengths = request.all("content-length");
    let Some(length) = lengths.next() else { return Some(0) };
    let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    let length = std::str::from_utf8(length).ok().filter(|_| digits)?.parse().ok()?;
    lengths.next().is_none().then_some(length)
}

/// What is waited for; `None` if the peer goes away first.
fn unless_gone<T>(
    socket: &mut Socket,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> impl Future<Output = Option<T>> {
    poll_fn(move |cx| match poll(cx) {
        Poll::Ready(it) => Poll::Ready(Some(it)),
        Poll::Pending => socket.poll_gone(cx).map(|()| None),
    })
}

/// Waits for an answer and writes it, unless the peer goes away first.
fn whole<'a>(
    app: &'a App,
    socket: &'a mut Socket,
    close: bool,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<Result<Reply, Refusal>> + Send + 'a,
) -> Doing<'a, Next> {
    Box::pin(async move {
        match unless_gone(socket, &mut poll).await {
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

/// Holds a request until it is answered, or cut.
fn held<'a>(
    app: &'a App,
    socket: &'a mut Socket,
    ask: endpoint::Ask,
    body_bytes: usize,
    close: bool,
) -> Doing<'a, Next> {
    Box::pin(async move {
        let begun = {
            let whole = async { while socket.ahead().len() < body_bytes && socket.fill().await {} };
            let limited = tokio::time::timeout(body::TIMEOUT, whole);
            // Who has not asked yet asks somebody else.
            let came = app.drain.run_until_cancelled(limited).await;
            if let Some(Err(_)) = came {
                return say(app, socket, body::late().into_reply(), true).await;
            }
            let Some(body) = socket.ahead().get(..body_bytes) else { return Next::End };
            endpoint::Wait::begin(app, ask, body, true)
        };
        socket.used(body_bytes);
        let mut wait = match begun {
            Ok(wait) => wait,
            Err(reply) => return say(app, socket, reply, close).await,
        };
        let mut begun = false;
        loop {
            let (piece, last) = match unless_gone(socket, |cx| wait.poll(app, cx)).await {
                // Whoever is cut off in the middle knows that this is not the answer.
                None | Some(Step::Abort) => return Next::End,
                Some(Step::Whole(reply)) => return say(app, socket, reply, close).await,
                Some(Step::Blank) => (endpoint::BLANK, false),
                Some(Step::Rest(rest)) => (rest, true),
            };
            let mut wire = Pieces::default();
            if !begun {
                chunked_head(&mut wire, endpoint::headers(), close);
            }
            begun = true;
            let mut pieces = Pieces::default();
            pieces.share(piece);
            chunk(&mut wire, pieces);
            if last {
                wire.copy(LAST_CHUNK);
            }
            let wire: Vec<_> = wire.into_chunks().collect();
            if socket.send(&wire).await.is_err() || last && close {
                return Next::End;
            }
            if last {
                return Next::Request;
            }
        }
    })
}

/// Writes a stream, in chunks, until one side ends it.
fn stream<'a>(socket: &'a mut Socket, mut events: sse::Events) -> Doing<'a, Next> {
    Box::pin(async move {
        let mut begun = false;
        loop {
            let Some(next) = unless_gone(socket, |cx| events.poll_next(cx)).await else { return Next::End };
            let mut wire = Pieces::default();
            if !begun {
                chunked_head(&mut wire, sse::headers(), true);
            }
            begun = true;
            let ends = next.is_none();
            match next {
                Some(pieces) => chunk(&mut wire, pieces),
                None => wire.copy(LAST_CHUNK),
            }
            let wire: Vec<_> = wire.into_chunks().collect();
            if socket.send(&wire).await.is_err() || ends {
                return Next::End;
            }
        }
    })
}

/// The head of an answer whose length nobody knows yet.
fn chunked_head(wire: &mut Pieces, headers: impl Iterator<Item = (HeaderName, HeaderValue)>, close: bool) {
    let chunked = (header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    let headers: Vec<_> = headers.chain([chunked]).collect();
    reply::head(wire, StatusCode::OK, &headers, close);
    wire.copy(b"\r\n");
}

/// A piece of such an answer.
fn chunk(wire: &mut Pieces, pieces: Pieces) {
    wire.copy(format!("{:x}\r\n", pieces.len()).as_bytes());
    wire.append(pieces);
    wire.copy(b"\r\n");
}

/// Answers that the connection is a WebSocket from here on, and serves it.
fn websocket<'a>(app: &Arc<App>, socket: &'a mut Socket, call: websocket::Call) -> Doing<'a, Next> {
    let mut head = Pieces::default();
    reply::head(&mut head, StatusCode::SWITCHING_PROTOCOLS, &call.switching(), false);
    head.copy(b"\r\n");
    let serving = websocket::run(Arc::clone(app), socket, head.into_chunks().collect(), call.key, call.ask);
    Box::pin(serving.map(|()| Next::End))
}
