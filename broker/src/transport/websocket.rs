//! WebSocket: the same loop, with topics that come and go on one connection.
//!
//! No compression, no buffers while parked, and text frames that share the hub's bytes. An added topic catches
//! up as a subscription of its own and then joins the main one, so what was subscribed before is never held up.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Extension;
use axum::extract::{Request as HttpRequest, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame as RawFrame};
use walcast_wire::{ClientFrame, CloseCode, Cursor, ProblemCode, Reset, TopicPattern};

use super::beat::Beat;
use super::call::Request;
use super::frame::{Broken, Message};
use super::link::{End, Frame, Link};
use super::openapi::ProblemDoc;
use super::problem::Refusal;
use super::query::{After, Ask};
use super::session::{Page, Session};
use super::{App, door, waiters};
use crate::auth::{Action, Key};
use crate::hub::roll::Name;
use crate::hub::{CurrentValues, SubscribeError};
use crate::listen::{House, Socket};

/// Events sent at a time.
const PIECE: usize = 64;

/// Opens a WebSocket.
///
/// JSON text frames. From the client `subscribe` and `unsubscribe`, from the broker `subscribed`, `event`,
/// `events`, `bookmark`, `reset` and `error`. Topics may be named here or subscribed to later.
#[utoipa::path(
    get,
    path = "/v1/ws",
    tag = "waiting",
    params(
        ("topic" = Option<Vec<String>>, Query, explode = true, description = "Up to 100 topics or patterns"),
        ("after" = Option<String>, Query, description = "As in `/v1/events`"),
        ("client" = Option<String>, Query, max_length = 128, description = "How the client calls itself"),
    ),
    responses(
        (status = 101, description = "The WebSocket is open"),
        (status = 400, description = "`bad_topic`, `bad_cursor`, `bad_parameter`", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 401, description = "`unauthorized`: no token, or none that is known", body = ProblemDoc, content_type = "application/problem+json"),
        (status = 403, description = "`forbidden`: the token does not grant it", body = ProblemDoc, content_type = "application/problem+json"),
    )
)]
pub(super) async fn ws(
    State(app): State<Arc<App>>,
    Extension(house): Extension<Arc<House>>,
    mut request: HttpRequest,
) -> Result<Response, Refusal> {
    let (uri, headers) = (request.uri(), request.headers());
    let call = read(&Request { path: uri.path(), query: uri.query(), headers }, &app)?;
    let headers = axum::http::HeaderMap::from_iter(call.switching());
    let hold = house.hold();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _hold = hold;
        let taken = async {
            let parts = upgrade.await.ok()?.downcast::<TokioIo<Socket>>().ok()?;
            let mut socket = parts.io.into_inner();
            socket.put_back(&parts.read_buf);
            Some(socket)
        };
        tokio::select! {
            () = house.kill().cancelled() => {}
            // A peer that went away before its upgrade needs nothing.
            () = async { if let Some(mut socket) = taken.await { run(app, &mut socket, Vec::new(), call.key, call.ask).await } } => {}
        }
    });
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// A request for a WebSocket.
#[derive(Debug)]
pub(super) struct Call {
    /// Who opens it.
    pub(super) key: Arc<Key>,
    pub(super) ask: Ask,
    /// The answer to the client's key.
    accept: HeaderValue,
}

impl Call {
    /// The headers of the answer that opens it.
    pub(super) fn switching(&self) -> [(HeaderName, HeaderValue); 3] {
        [
            (header::CONNECTION, HeaderValue::from_static("upgrade")),
            (header::UPGRADE, HeaderValue::from_static("websocket")),
            (header::SEC_WEBSOCKET_ACCEPT, self.accept.clone()),
        ]
    }
}

pub(super) fn read(request: &Request<'_>, app: &App) -> Result<Call, Refusal> {
    let guest = app.admit(request)?;
    let ask = Ask::parse(request.query, &["topic", "after", "client"], &app.config)?;
    door::check(&guest, Action::Subscribe, &ask.topics)?;
    let refused = |what: &str| Refusal::parameter(format!("this call is a WebSocket: {what}"));
    if !request.says("connection", "upgrade") || !request.says("upgrade", "websocket") {
        return Err(refused("send `Connection: Upgrade` and `Upgrade: websocket`"));
    }
    if request.header("sec-websocket-version") != Some(b"13") {
        return Err(refused("send `Sec-WebSocket-Version: 13`"));
    }
    let key = request.header("sec-websocket-key").ok_or_else(|| refused("`Sec-WebSocket-Key` is missing"))?;
    let accept = HeaderValue::try_from(derive_accept_key(key)).map_err(|_| refused("the key is unusable"))?;
    tracing::debug!(client = ask.client.as_deref(), topics = ask.topics.len(), "opens a WebSocket");
    Ok(Call { key: guest, ask, accept })
}

/// Serves an open WebSocket until it ends. From here on refusals that time can mend are said in the stream:
/// browsers do not show the answer.
///
/// `opening` is written first.
pub(super) fn run(
    app: Arc<App>,
    socket: &mut Socket,
    opening: Vec<Bytes>,
    key: Arc<Key>,
    ask: Ask,
) -> impl Future<Output = ()> + Send + '_ {
    let mut connection = Connection::new(app, socket, key);
    let opening = Box::new((opening, ask));
    // What a connection may do next is boxed when it does it, so that a parked one has no room for it.
    async move {
        let mut done = Box::pin(connection.begin(opening)).await;
        while done.is_ok() {
            let turn = poll_fn(|cx| connection.poll_turn(cx)).await;
            done = Box::pin(connection.play(turn)).await;
        }
        if let Err(End::Close(code, reason)) = done {
            Box::pin(connection.link.close(code, reason)).await;
        }
    }
}

/// What is to be done next.
enum Turn {
    Drain,
    Page(Page),
    /// The added subscription of this index knows its current values.
    Settled(usize),
    /// Everything there was is sent, and the client does not know yet.
    CaughtUp,
    Beat,
    Received(Message),
    Broken(Broken),
    Gone,
}

/// One WebSocket.
struct Connection<'a> {
    app: Arc<App>,
    key: Arc<Key>,
    link: Link<'a>,
    /// The first is the main one; the others catch up and join it.
    sessions: Vec<Session>,
    /// How many at the end of `sessions` have not been confirmed to the client.
    unconfirmed: usize,
    /// The client has a bookmark from which nothing is missing.
    caught_up: bool,
    bookmarked: Option<Cursor>,
    /// When the next ping is due, or the answer to the last one.
    beat: Beat,
    /// While a pong is due: what had been written with the ping.
    pinged_at: Option<u64>,
    /// Fires when clients are to leave, while there is no session whose subscription would wake the task.
    leave: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Which session is looked at first, so that a busy one does not keep another from catching up.
    first: usize,
    /// What all its sessions are called; boxed, for most have no name.
    name: Option<Box<Name>>,
}

impl<'a> Connection<'a> {
    fn new(app: Arc<App>, socket: &'a mut Socket, key: Arc<Key>) -> Self {
        let beat = Beat::new(app.config.heartbeat);
        let leave: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(Arc::clone(&app).until_leaving());
        Self {
            leave: Some(leave),
            app,
            key,
            link: Link::new(socket),
            sessions: Vec::new(),
            unconfirmed: 0,
            caught_up: true,
            bookmarked: None,
            beat,
            pinged_at: None,
            first: 0,
            name: None,
        }
    }

    async fn begin(&mut self, opening: Box<(Vec<Bytes>, Ask)>) -> Result<(), End> {
        let (opening, ask) = *opening;
        self.link.socket.send(&opening).await.map_err(|_| End::Gone)?;
        self.name = waiters::name(ask.client, "ws").map(Box::new);
        if ask.topics.is_empty() { Ok(()) } else { self.subscribe(ask.topics, ask.after).await }
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        self.join();
        if self.app.ends(&self.key) {
            return Poll::Ready(Turn::Drain);
        }
        // A client's words before events, so that a busy topic can be left.
        match self.link.poll_message(cx) {
            Poll::Ready(Ok(Some(message))) => return Poll::Ready(Turn::Received(message)),
            Poll::Ready(Ok(None)) => return Poll::Ready(Turn::Gone),
            Poll::Ready(Err(broken)) => return Poll::Ready(Turn::Broken(broken)),
            Poll::Pending => {}
        }
        if self.beat.poll(cx).is_ready() {
            return Poll::Ready(Turn::Beat);
        }
        match &mut self.leave {
            Some(leave) if self.sessions.is_empty() => {
                if leave.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Turn::Drain);
                }
            }
            leave => *leave = None,
        }
        self.first = self.first.wrapping_add(1);
        let confirmed = self.sessions.len() - self.unconfirmed;
        for i in 0..self.sessions.len() {
            let index = self.first.wrapping_add(i) % self.sessions.len();
            let session = &mut self.sessions[index];
            let turn = if index < confirmed {
                session.poll_page(cx, PIECE).map(Turn::Page)
            } else {
                session.poll_settled(cx).map(|()| Turn::Settled(index))
            };
            if turn.is_ready() {
                return turn;
            }
        }
        if !self.caught_up && self.sessions.len() <= 1 && self.unconfirmed == 0 {
            return Poll::Ready(Turn::CaughtUp);
        }
        // Looked at once more behind the parking, whose wake-up may have come between.
        if self.app.ends(&self.key) { Poll::Ready(Turn::Drain) } else { Poll::Pending }
    }

    async fn play(&mut self, turn: Turn) -> Result<(), End> {
        match turn {
            Turn::Drain => {
                self.bookmark().await?;
                Err(going_away())
            }
            Turn::Page(Page::Events(events)) => self.link.events(events).await,
            Turn::Page(Page::Values(values)) => {
                // The client goes on from its last bookmark until the next.
                self.caught_up = false;
                self.values(values).await?;
                // Before events follow: from here on a cut loses nothing.
                match &mut self.sessions[..] {
                    [session] if self.unconfirmed == 0 => {
                        let cursor = session.bookmark();
                        self.bookmarked = Some(cursor);
                        self.link.frame(&Frame::Bookmark { cursor }).await
                    }
                    _ => Ok(()),
                }
            }
            Turn::Page(Page::Reset(reset)) => self.reset(reset).await,
            Turn::Settled(index) => self.confirm(index).await,
            Turn::CaughtUp => {
                self.caught_up = true;
                self.bookmark().await
            }
            Turn::Beat => self.beat().await,
            Turn::Received(message) => self.receive(message).await,
            Turn::Broken(broken) => Err(broken.into()),
            Turn::Gone => Err(End::Gone),
        }
    }

    /// Current values, unless the client is to leave meanwhile: it has no place yet, and comes back as it came.
    async fn values(&mut self, mut values: CurrentValues) -> Result<(), End> {
        while self.link.values(&mut values, PIECE).await? {
            if self.app.ends(&self.key) {
                return Err(going_away());
            }
        }
        Ok(())
    }

    async fn beat(&mut self) -> Result<(), End> {
        self.beat.due_in(self.app.config.pong_timeout);
        let written = self.link.socket.written();
        match self.pinged_at.replace(written) {
            None => {
                self.bookmark().await?;
                self.link.own(RawFrame::ping(Bytes::new())).await?;
                self.pinged_at = Some(self.link.socket.written());
                Ok(())
            }
            // The ping may still be behind what the peer is taking.
            Some(before) if written > before => Ok(()),
            Some(_) => Err(End::Close(CloseCode::SlowConsumer, "no pong in time".to_owned())),
        }
    }

    async fn receive(&mut self, message: Message) -> Result<(), End> {
        match message {
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ClientFrame::Subscribe { topics, after }) => match self.checked(topics, after) {
                    Ok((topics, after)) => self.subscribe(topics, after).await,
                    Err(refusal) => self.link.error(refusal).await,
                },
                Ok(ClientFrame::Unsubscribe { topics }) => self.unsubscribe(&topics).await,
                Err(error) => self.link.error(bad_frame(error.to_string())).await,
            },
            Message::Binary => {
                self.link.error(bad_frame("frames are JSON text, not binary".to_owned())).await
            }
            Message::Pong => {
                // One that nobody asked for is no reason to be silent.
                if self.pinged_at.take().is_some() {
                    self.beat.moved();
                }
                Ok(())
            }
            Message::Ping(payload) => self.link.own(RawFrame::pong(payload)).await,
            Message::Close(code) => {
                let echo = code.map(|code| CloseFrame { code, reason: "".into() });
                let _ = self.link.own(RawFrame::close(echo)).await;
                Err(End::Gone)
            }
        }
    }

    fn checked(
        &self,
        mut topics: Vec<TopicPattern>,
        after: Option<String>,
    ) -> Result<(Vec<TopicPattern>, Option<After>), Refusal> {
        let after = after.as_deref().map(After::parse).transpose()?;
        let mut seen = self.topics();
        topics.retain(|topic| {
            let new = !seen.contains(topic);
            seen.extend(new.then(|| topic.clone()));
            new
        });
        door::check(&self.key, Action::Subscribe, &topics)?;
        let max = self.app.config.topics_max;
        if seen.len() > max {
            return Err(bad_frame(format!("more than {max} topics; use a pattern")));
        }
        Ok((topics, after))
    }

    fn topics(&self) -> Vec<TopicPattern> {
        self.sessions.iter().flat_map(|session| session.topics().iter().cloned()).collect()
    }

    /// Adds topics; `subscribed` follows once their current values are known.
    async fn subscribe(&mut self, topics: Vec<TopicPattern>, after: Option<After>) -> Result<(), End> {
        if topics.is_empty() {
            return self.subscribed().await;
        }
        match Session::open(&self.app, Arc::clone(&self.key), topics, after, self.name.as_deref().cloned()) {
            Ok(session) => {
                // Nearly always the only one: a list makes room for four.
                self.sessions.reserve_exact(1);
                self.sessions.push(session);
                self.unconfirmed += 1;
                self.caught_up = false;
                Ok(())
            }
            Err(refusal) if self.sessions.is_empty() => {
                let mends = refusal.code.status() >= 429;
                self.link.error(refusal).await?;
                Err(match mends {
                    true => going_away(),
                    false => End::Close(CloseCode::Protocol, "see the error frame".to_owned()),
                })
            }
            Err(refusal) => self.link.error(refusal).await,
        }
    }

    async fn unsubscribe(&mut self, topics: &[TopicPattern]) -> Result<(), End> {
        for session in &mut self.sessions {
            session.remove(topics);
        }
        let (mut index, confirmed) = (0, self.sessions.len() - self.unconfirmed);
        let mut unconfirmed = self.unconfirmed;
        // What follows nothing any more has no place; the first holds the connection's.
        self.sessions.retain(|session| {
            let keep = index == 0 || !session.topics().is_empty();
            if !keep && index >= confirmed {
                unconfirmed -= 1;
            }
            index += 1;
            keep
        });
        self.unconfirmed = unconfirmed;
        self.subscribed().await
    }

    /// Confirms the session at `index`, and with it all before it.
    async fn confirm(&mut self, index: usize) -> Result<(), End> {
        let session = self.sessions.remove(index);
        let confirmed = self.sessions.len() + 1 - self.unconfirmed;
        self.sessions.insert(confirmed, session);
        self.unconfirmed -= 1;
        self.subscribed().await
    }

    async fn subscribed(&mut self) -> Result<(), End> {
        let confirmed = self.sessions.len() - self.unconfirmed;
        let mut sessions: Vec<_> = self.sessions.iter_mut().take(confirmed).collect();
        // The furthest back: from there nothing of any of them is missing.
        let head = self.app.hub.head();
        let cursors = sessions.iter_mut().map(|session| session.bookmark());
        // A cursor of another number line counts as furthest: it makes the client hear of its reset.
        let cursor = cursors.min_by_key(|c| (head.is_none_or(|head| head.epoch == c.epoch), c.position));
        let Some(cursor) = cursor.or(head) else {
            return self.link.error(SubscribeError::NotStarted.into()).await;
        };
        let topics = sessions.iter().flat_map(|session| session.topics().iter().cloned()).collect();
        // Until a bookmark follows, the client keeps this cursor.
        self.caught_up = false;
        self.bookmarked = None;
        self.link.frame(&Frame::Subscribed { topics, cursor }).await
    }

    async fn reset(&mut self, reset: Reset) -> Result<(), End> {
        self.caught_up = false;
        self.link.frame(&Frame::Reset(reset)).await
    }

    /// Tells the client how far it is, where that is one place and news.
    async fn bookmark(&mut self) -> Result<(), End> {
        let [session] = &mut self.sessions[..] else { return Ok(()) };
        if self.unconfirmed > 0 || !self.caught_up {
            return Ok(());
        }
        let cursor = session.bookmark();
        if self.bookmarked == Some(cursor) {
            return Ok(());
        }
        self.bookmarked = Some(cursor);
        self.link.frame(&Frame::Bookmark { cursor }).await
    }

    /// Lets confirmed sessions that have caught up join the main one.
    fn join(&mut self) {
        while self.sessions.len() - self.unconfirmed > 1 {
            let joining = self.sessions.remove(1);
            if let Some(joining) = self.sessions[0].join(joining) {
                self.sessions.insert(1, joining);
                return;
            }
        }
    }
}

/// Come back, but not all at once.
fn going_away() -> End {
    End::Close(CloseCode::GoingAway, format!("retry={}", rand::random_range(500..10_000)))
}

fn bad_frame(detail: String) -> Refusal {
    Refusal::new(ProblemCode::BadFrame, format!("not a frame that clients send: {detail}"))
}
