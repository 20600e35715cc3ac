//! WebSocket: the same loop, with topics that come and go on one connection.
//!
//! No compression, small buffers, and text frames that share the hub's bytes. An added topic catches up as a
//! subscription of its own and then joins the main one, so what was subscribed before is never held up.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Extension;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite;
use walcast_wire::{ClientFrame, CloseCode, Cursor, ProblemCode, Reset, ServerFrame, TopicPattern};

use super::App;
use super::openapi::ProblemDoc;
use super::problem::Refusal;
use super::query::{After, Ask};
use super::session::{Page, Session, units};
use super::sse::beat;
use crate::hub::{CurrentValues, Encoded};
use crate::listen::Connection;

/// The largest message from a client.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// What a parked connection keeps for reading.
const READ_BUFFER_BYTES: usize = 512;
/// Events sent at a time.
const PIECE: usize = 64;
/// For the closing handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Frames without an event are of any data type.
type Frame = ServerFrame<()>;

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
    )
)]
pub(super) async fn ws(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
    connection: Option<Extension<Connection>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let ask = Ask::parse(query.as_deref(), &["topic", "after", "client"], &app.config)?;
    let upgrade = upgrade
        .map_err(|error| Refusal::parameter(format!("this call is a WebSocket: {}", error.body_text())))?;
    let Some(Extension(connection)) = connection else {
        return Err(Refusal::new(ProblemCode::Internal, "the connection cannot be upgraded"));
    };
    tracing::debug!(client = ask.client.as_deref(), topics = ask.topics.len(), "opens a WebSocket");
    // From here on refusals that time can mend are said in the stream: browsers do not show the answer.
    let hold = connection.hold();
    let upgraded = move |socket| async move {
        let _hold = hold;
        let kill = connection.kill().clone();
        let link = Link { socket, connection, write_timeout: app.config.write_timeout };
        // Boxed: it outlives the request, and its size would be paid for by every connection task.
        let run = Box::pin(Socket::new(app, link).run(ask.topics, ask.after));
        tokio::select! {
            () = kill.cancelled() => {}
            () = run => {}
        }
    };
    Ok(upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .on_upgrade(upgraded)
        .into_response())
}

/// Why the connection ends.
enum End {
    /// The peer is gone; there is nobody to tell.
    Gone,
    /// With this code and reason.
    Close(CloseCode, String),
}

/// Sending, under the write deadline.
struct Link {
    socket: WebSocket,
    connection: Connection,
    write_timeout: Duration,
}

impl Link {
    async fn send(&mut self, message: Message) -> Result<(), End> {
        let mut sent = pin!(self.socket.send(message));
        loop {
            let before = self.connection.written();
            match timeout(self.write_timeout, sent.as_mut()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(_)) => return Err(End::Gone),
                // Slow, but it takes something.
                Err(_) if self.connection.written() > before => {}
                Err(_) => {
                    return Err(End::Close(
                        CloseCode::SlowConsumer,
                        "read faster or ask for less".to_owned(),
                    ));
                }
            }
        }
    }

    async fn text(&mut self, text: bytes::Bytes) -> Result<(), End> {
        match Utf8Bytes::try_from(text) {
            Ok(text) => self.send(Message::Text(text)).await,
            Err(_) => Err(End::Close(CloseCode::Internal, "an event is not UTF-8".to_owned())),
        }
    }

    async fn frame(&mut self, frame: &Frame) -> Result<(), End> {
        // Plain data with string keys: serialising it cannot fail.
        self.text(serde_json::to_vec(frame).unwrap_or_default().into()).await
    }

    async fn error(&mut self, refusal: Refusal) -> Result<(), End> {
        self.frame(&Frame::Error { code: refusal.code, detail: refusal.detail }).await
    }

    /// Sends events; those that share a cursor in one message, so that a cut cannot part them.
    async fn events(&mut self, events: &[Arc<Encoded>]) -> Result<(), End> {
        for unit in units(events) {
            match unit {
                [single] => self.text(single.text_frame()).await?,
                several => {
                    let mut message = b"{\"events\":[".to_vec();
                    for (i, event) in several.iter().enumerate() {
                        if i > 0 {
                            message.push(b',');
                        }
                        message.extend_from_slice(&event.json());
                    }
                    message.extend_from_slice(b"]}");
                    self.text(message.into()).await?;
                }
            }
        }
        Ok(())
    }

    async fn values(&mut self, values: CurrentValues) -> Result<(), End> {
        for value in values {
            self.text(value.text_frame()).await?;
        }
        Ok(())
    }

    /// The closing handshake, as far as the peer takes part in it.
    async fn close(mut self, code: CloseCode, reason: String) {
        let frame = CloseFrame { code: code.code(), reason: reason.into() };
        let handshake = async {
            if self.socket.send(Message::Close(Some(frame))).await.is_ok() {
                while let Some(Ok(_)) = self.socket.recv().await {}
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, handshake).await;
    }
}

/// What one round of the loop is about.
enum Turn {
    Drain,
    Page(Page),
    /// The added subscription of this index knows its current values.
    Settled(usize),
    Beat,
    Received(Option<Result<Message, axum::Error>>),
}

/// One connection.
struct Socket {
    app: Arc<App>,
    link: Link,
    /// The first is the main one; the others catch up and join it.
    sessions: Vec<Session>,
    /// How many at the end of `sessions` have not been confirmed to the client.
    unconfirmed: usize,
    /// The client has a bookmark from which nothing is missing.
    caught_up: bool,
    bookmarked: Option<Cursor>,
    /// When the next ping is due, or the answer to the last one.
    beat_at: Instant,
    /// While a pong is due: what had been written with the ping.
    pinged_at: Option<u64>,
    /// Which session is looked at first, so that a busy one does not keep another from catching up.
    first: usize,
}

impl Socket {
    fn new(app: Arc<App>, link: Link) -> Self {
        let beat_at = Instant::now() + beat(app.config.heartbeat);
        Self {
            app,
            link,
            sessions: Vec::new(),
            unconfirmed: 0,
            caught_up: true,
            bookmarked: None,
            beat_at,
            pinged_at: None,
            first: 0,
        }
    }

    async fn run(mut self, topics: Vec<TopicPattern>, after: Option<After>) {
        let ended = async {
            if !topics.is_empty() {
                self.subscribe(topics, after).await?;
            }
            loop {
                self.turn().await?;
            }
        };
        let ended: Result<std::convert::Infallible, End> = ended.await;
        if let Err(End::Close(code, reason)) = ended {
            self.link.close(code, reason).await;
        }
    }

    async fn turn(&mut self) -> Result<(), End> {
        self.join();
        match self.wait().await {
            None => {
                self.caught_up = true;
                self.bookmark().await
            }
            Some(Turn::Drain) => {
                self.bookmark().await?;
                Err(going_away())
            }
            Some(Turn::Page(Page::Events(events))) => self.link.events(&events).await,
            Some(Turn::Page(Page::Values(values))) => {
                // The client goes on from its last bookmark until the next.
                self.caught_up = false;
                self.link.values(values).await
            }
            Some(Turn::Page(Page::Reset(reset))) => self.reset(reset).await,
            Some(Turn::Settled(index)) => self.confirm(index).await,
            Some(Turn::Beat) => self.beat().await,
            Some(Turn::Received(message)) => self.receive(message).await,
        }
    }

    /// The next thing to do; `None` if everything there was is sent and the client does not know yet.
    async fn wait(&mut self) -> Option<Turn> {
        let Self { app, link, sessions, unconfirmed, caught_up, beat_at, first, .. } = self;
        *first += 1;
        let confirmed = sessions.len() - *unconfirmed;
        let announce = !*caught_up && sessions.len() <= 1 && *unconfirmed == 0;
        let mut reads: Vec<_> = sessions
            .iter_mut()
            .enumerate()
            .map(|(index, session)| {
                Box::pin(async move {
                    if index < confirmed {
                        Turn::Page(session.page(PIECE).await)
                    } else {
                        session.settled().await;
                        Turn::Settled(index)
                    }
                })
            })
            .collect();
        let pages = std::future::poll_fn(|cx| {
            for i in 0..reads.len() {
                let at = (*first + i) % reads.len();
                if let Poll::Ready(turn) = reads[at].as_mut().poll(cx) {
                    return Poll::Ready(turn);
                }
            }
            Poll::Pending
        });
        let turn = async {
            tokio::select! {
                biased; // A client's words before events, so that a busy topic can be left; drain before both.
                () = app.leave() => Turn::Drain,
                message = link.socket.recv() => Turn::Received(message),
                () = tokio::time::sleep_until(*beat_at) => Turn::Beat,
                turn = pages => turn,
            }
        };
        if announce { turn.now_or_never() } else { Some(turn.await) }
    }

    async fn beat(&mut self) -> Result<(), End> {
        self.beat_at = Instant::now() + self.app.config.pong_timeout;
        let written = self.link.connection.written();
        match self.pinged_at.replace(written) {
            None => {
                self.bookmark().await?;
                self.link.send(Message::Ping(bytes::Bytes::new())).await?;
                self.pinged_at = Some(self.link.connection.written());
                Ok(())
            }
            // The ping may still be behind what the peer is taking.
            Some(before) if written > before => Ok(()),
            Some(_) => Err(End::Close(CloseCode::SlowConsumer, "no pong in time".to_owned())),
        }
    }

    async fn receive(&mut self, message: Option<Result<Message, axum::Error>>) -> Result<(), End> {
        match message {
            None => Err(End::Gone),
            Some(Err(error)) => Err(broken(error)),
            Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                Ok(ClientFrame::Subscribe { topics, after }) => match self.checked(topics, after) {
                    Ok((topics, after)) => self.subscribe(topics, after).await,
                    Err(refusal) => self.link.error(refusal).await,
                },
                Ok(ClientFrame::Unsubscribe { topics }) => self.unsubscribe(&topics).await,
                Err(error) => self.link.error(bad_frame(error.to_string())).await,
            },
            Some(Ok(Message::Binary(_))) => {
                self.link.error(bad_frame("frames are JSON text, not binary".to_owned())).await
            }
            Some(Ok(Message::Pong(_))) => {
                self.pinged_at = None;
                self.beat_at = Instant::now() + beat(self.app.config.heartbeat);
                Ok(())
            }
            // The answer is sent by itself.
            Some(Ok(Message::Ping(_) | Message::Close(_))) => Ok(()),
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
        match Session::open(&self.app, topics, after) {
            Ok(session) => {
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
            return self.link.error(Refusal::unavailable("the broker has not reached Postgres yet")).await;
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

/// What a failed read says to the peer, if it can still hear.
fn broken(error: axum::Error) -> End {
    match error.into_inner().downcast_ref::<tungstenite::Error>() {
        Some(tungstenite::Error::Capacity(_)) => {
            End::Close(CloseCode::TooBig, format!("a message has at most {MESSAGE_BYTES_MAX} bytes"))
        }
        Some(tungstenite::Error::Protocol(
            tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        )) => End::Gone,
        Some(tungstenite::Error::Protocol(_) | tungstenite::Error::Utf8(_)) => {
            End::Close(CloseCode::Protocol, "the frame breaks the WebSocket protocol".to_owned())
        }
        _ => End::Gone,
    }
}
