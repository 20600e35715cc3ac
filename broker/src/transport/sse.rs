//! Server-sent events, for `EventSource` and for `curl -N`.
//!
//! An `EventSource` gives up for ever on any answer but 200, so what time can mend is said in the stream:
//! a reset as an event of its own, and a problem too, behind which come, as at a drain, `retry:` and an end.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use walcast_wire::{Cursor, Reset};

use super::beat::Beat;
use super::pieces::Pieces;
use super::problem::Refusal;
use super::query::Ask;
use super::reply::streamed;
use super::session::{PIECE, Page, Session, units};
use super::{App, waiters};
use crate::auth::Key;
use crate::hub::{CurrentValues, Encoded};

/// Begins a stream. What time can mend is said in it.
///
/// # Errors
/// What time does not mend.
pub(super) fn open(app: Arc<App>, key: Arc<Key>, ask: Ask) -> Result<Events, Refusal> {
    let mut start = Pieces::default();
    let session = match Session::open(&app, key, ask.topics, ask.after, waiters::name(ask.client, "sse")) {
        Ok(session) => {
            retry(&mut start, 1_000..3_000);
            Some(session)
        }
        Err(refusal) if refusal.code.status() < 429 => return Err(refusal),
        Err(refusal) => {
            start.copy(b"event: problem\ndata: ");
            // JSON holds no raw line break.
            start.copy(&refusal.into_json());
            start.copy(b"\n");
            retry(&mut start, 2_000..15_000);
            None
        }
    };
    let beat = Beat::new(app.config.heartbeat);
    Ok(Events { app, session, values: None, start: Some(Box::new(start)), beat, caught_up: false })
}

/// What every stream says of itself.
pub(super) fn headers() -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    std::iter::once(kind).chain(streamed())
}

/// One stream.
pub(super) struct Events {
    app: Arc<App>,
    /// Until the end of the stream.
    session: Option<Session>,
    /// Current values that are being sent; behind the last of them one can go on.
    values: Option<CurrentValues>,
    start: Option<Box<Pieces>>,
    beat: Beat,
    /// The client knows a cursor from which nothing is missing.
    caught_up: bool,
}

impl Events {
    /// What to write next; `None` ends the stream.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Pieces>> {
        if let Some(start) = self.start.take() {
            return Poll::Ready(Some(*start));
        }
        loop {
            let Some(session) = &mut self.session else { return Poll::Ready(None) };
            let mut out = Pieces::default();
            if let Some(values) = &mut self.values {
                write_values(&mut out, values.by_ref().take(PIECE));
                if out.is_empty() {
                    self.values = None;
                    // Before events follow: from here on a cut loses nothing.
                    let place = session.bookmark();
                    self.caught_up = self.app.hub.head() == Some(place);
                    id(&mut out, place);
                    out.copy(b"\n");
                    self.beat.moved();
                    return Poll::Ready(Some(out));
                }
                if session.ends(&self.app) {
                    // It has no place to go on from: it comes back as it came.
                    self.session = None;
                }
                self.beat.moved();
                return Poll::Ready(Some(out));
            }
            if session.ends(&self.app) {
                farewell(&mut out, session);
                self.session = None;
                return Poll::Ready(Some(out));
            }
            match session.poll_page(cx, PIECE) {
                Poll::Ready(Page::Events(events)) => write_events(&mut out, &events),
                Poll::Ready(Page::Values(values)) => {
                    self.values = Some(values);
                    self.caught_up = false;
                    continue;
                }
                Poll::Ready(Page::Reset(reset)) => {
                    self.caught_up = false;
                    write_reset(&mut out, &reset);
                }
                // A client that was told no id would come back without one and miss what came between; so once
                // everything there was is sent, an id.
                Poll::Pending if !self.caught_up && !session.unsettled() => {
                    self.caught_up = true;
                    id(&mut out, session.bookmark());
                    out.copy(b"\n");
                }
                // Looked at once more behind the parking, whose wake-up may have come between.
                Poll::Pending if session.ends(&self.app) => continue,
                Poll::Pending => {
                    std::task::ready!(self.beat.poll(cx));
                    // An id without data moves the client's cursor and tells its program nothing.
                    out.copy(b":\n");
                    if !session.unsettled() {
                        id(&mut out, session.bookmark());
                    }
                    out.copy(b"\n");
                }
            }
            self.beat.moved();
            return Poll::Ready(Some(out));
        }
    }
}

impl IntoResponse for Events {
    fn into_response(mut self) -> Response {
        let mut ready = VecDeque::<Bytes>::new();
        let body = stream::poll_fn(move |cx| {
            while ready.is_empty() {
                match std::task::ready!(self.poll_next(cx)) {
                    Some(pieces) => ready.extend(pieces.into_chunks()),
                    None => return Poll::Ready(None),
                }
            }
            Poll::Ready(ready.pop_front().map(Ok::<_, Infallible>))
        });
        (HeaderMap::from_iter(headers()), Body::from_stream(body)).into_response()
    }
}

fn id(out: &mut Pieces, cursor: Cursor) {
    out.copy(b"id: ");
    out.copy(&cursor.encode());
    out.copy(b"\n");
}

/// Ends a block: how many milliseconds the client waits before it comes back.
fn retry(out: &mut Pieces, range_ms: std::ops::Range<u32>) {
    out.copy(format!("retry: {}\n\n", rand::random_range(range_ms)).as_bytes());
}

/// Each event is a block. Only the last of a unit has an `id:`, so that a cut inside brings all of it again.
fn write_events(out: &mut Pieces, events: &[Arc<Encoded>]) {
    for unit in units(events) {
        for (i, event) in unit.iter().enumerate() {
            if i + 1 == unit.len() {
                id(out, event.cursor());
            }
            // JSON from the router holds no raw line break, so it is one line.
            out.copy(b"data: ");
            out.share(event.json());
            out.copy(b"\n\n");
        }
    }
}

/// Current values, none of which is a place to go on from.
fn write_values(out: &mut Pieces, values: impl Iterator<Item = Arc<Encoded>>) {
    for value in values {
        out.copy(b"data: ");
        out.share(value.json());
        out.copy(b"\n\n");
    }
}

/// The broker goes away: where to go on, and when.
fn farewell(out: &mut Pieces, session: &mut Session) {
    if !session.unsettled() {
        id(out, session.bookmark());
    }
    retry(out, 1_000..10_000);
}

fn write_reset(out: &mut Pieces, reset: &Reset) {
    out.copy(b"event: reset\n");
    id(out, reset.resume);
    out.copy(b"data: ");
    // Plain data: serialising it cannot fail, and JSON holds no raw line break.
    out.copy(&serde_json::to_vec(reset).unwrap_or_default());
    out.copy(b"\n\n");
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use futures_util::FutureExt;
    use proptest::prelude::*;
    use walcast_wire::{Epoch, Event as WireEvent, Op, Position, Topic};

    use super::*;
    use crate::event::{Batch, Entry, Event};
    use crate::hub::{Config, Delivery, From as Start, Hub};

    /// What a stream writes for events with these positions (ordinals), topics and data.
    fn written(events: &[(u64, Topic, String)]) -> String {
        let hub = Hub::new(Config::default());
        let at = |ordinal| Position::new(2, ordinal);
        let batch = |entries: Vec<Entry>, after, upto| Batch {
            epoch: Epoch(1),
            after,
            upto,
            entries: entries.into(),
            note: None,
        };
        hub.ingest(&batch(Vec::new(), at(0), at(0)), Instant::now()).unwrap();
        let mut subscription = hub.subscribe(vec!["**".parse().unwrap()], Start::Now).unwrap();
        let entries = events.iter().map(|(ordinal, topic, data)| {
            Entry::Event(Event {
                position: at(*ordinal),
                topic: topic.clone(),
                op: Op::Message,
                data: serde_json::to_vec(data).unwrap().into(),
                commit: None,
                unchanged: Box::default(),
                omitted: Box::default(),
                partial: false,
                state: None,
            })
        });
        hub.ingest(&batch(entries.collect(), at(0), at(99)), Instant::now()).unwrap();
        let Some(Delivery::Events(events)) = subscription.next(100).now_or_never() else {
            panic!("nothing delivered")
        };
        let mut out = Pieces::default();
        write_events(&mut out, &events);
        String::from_utf8(out.into_chunks().collect::<Vec<_>>().concat()).unwrap()
    }

    #[test]
    fn the_id_stands_on_the_last_of_a_unit() {
        let topic = |name| Topic::new(name).unwrap();
        let text =
            written(&[(1, topic("a"), "x".into()), (1, topic("b"), "x".into()), (2, topic("a"), "x".into())]);
        let ids: Vec<_> = text.split_terminator("\n\n").map(|block| block.starts_with("id: ")).collect();
        assert_eq!(ids, [false, true, true]);
    }

    proptest! {
        #[test]
        fn no_topic_and_no_data_can_inject_a_line(topic in "\\PC{1,60}", data in "(\\PC|[\r\n\0\u{85}\u{2028}]){0,40}") {
            // Most strings hold a character that topics refuse: leaving it out leaves enough to try.
            let topic: String = topic.chars().filter(|c| Topic::new(&c.to_string()).is_ok()).collect();
            let Ok(topic) = Topic::new(&topic) else { return Ok(()) };
            let text = written(&[(1, topic.clone(), data.clone())]);
            let lines: Vec<_> = text.split(['\r', '\n']).collect();
            let [id, event, "", ""] = lines[..] else { panic!("{text:?}") };
            let event: WireEvent<String> = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
            prop_assert_eq!(id, format!("id: {}", event.cursor));
            prop_assert_eq!((event.topic, event.data), (topic, data));
        }
    }
}
