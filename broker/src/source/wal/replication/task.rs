//! The task that alone owns the socket of a stream.
//!
//! It reads while there is room for what it read, and sends status messages by a clock of its own whether or not it
//! reads, since the server drops whom it does not hear from. It sends nothing but the acknowledged LSN, and never
//! waits for the reader of the stream without listening to that clock.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep, sleep_until};

use super::frame::{self, Incoming};
use super::stream::{Acknowledged, Item, WAITING_BYTES_MAX};
use super::{Chunk, Frame, ReplicationError, StreamOptions};
use crate::postgres::Socket;

/// Read at a time. Frames are slices of what one read brought, so this is also what a small one can keep alive.
const READ_BYTES: usize = 64 << 10;

/// With less room than this, the next read gets a new buffer.
const READ_BYTES_MIN: usize = 4 << 10;

/// Between two status messages, where the server asks. One that stops answers each with a request for another, as
/// fast as we do.
const ANSWER_PAUSE: Duration = Duration::from_millis(10);

/// The same where we only have something new to acknowledge: each wakes the server's process, which costs both sides
/// more than the event that it is about. The first after a pause goes out at once.
const ACKNOWLEDGE_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Task {
    reader: ReadHalf<Socket>,
    writer: WriteHalf<Socket>,
    incoming: BytesMut,
    outgoing: BytesMut,
    acknowledged: Arc<Acknowledged>,
    room: Arc<Semaphore>,
    status_every: Duration,
    silence_max: Duration,
    /// One for all that is due: to set a timer anew for each frame costs more than the frame.
    clock: Pin<Box<Sleep>>,
    /// When the clock asks for the next status.
    next_status: Instant,
    /// When the last status was made, and what it said.
    last_status: Instant,
    last_lsn: u64,
    /// The server wants a status.
    wanted: bool,
    /// Since when an answer has been outstanding.
    asked: Option<Instant>,
    /// Bytes are on their way out.
    sending: bool,
    /// The server takes nothing any more. What it sent before, its reason perhaps, is still read.
    deaf: bool,
    /// The buffer was grown for one large frame.
    large: bool,
}

/// What happened next.
enum Event {
    Read(usize),
    Sent,
    Deaf,
    /// There is room for the chunk that waits.
    Room(OwnedSemaphorePermit),
    /// A clock, or an acknowledgement: the loop looks what is due.
    Due,
    Silent,
    /// Nobody reads any more.
    Stop,
}

impl Task {
    pub(super) fn new(
        socket: Socket,
        buffer: BytesMut,
        options: &StreamOptions,
        acknowledged: Arc<Acknowledged>,
        room: Arc<Semaphore>,
    ) -> Self {
        let (reader, writer) = tokio::io::split(socket);
        let now = Instant::now();
        Self {
            reader,
            writer,
            incoming: buffer,
            outgoing: BytesMut::new(),
            acknowledged,
            room,
            status_every: options.status_every,
            silence_max: options.silence_max,
            clock: Box::pin(sleep_until(now)),
            next_status: now,
            last_status: now,
            last_lsn: options.start_lsn,
            wanted: false,
            asked: None,
            sending: false,
            deaf: false,
            large: false,
        }
    }

    /// Runs until the stream ends; whoever does not want it any more aborts it.
    pub(super) async fn run(mut self, items: mpsc::Sender<Item>) {
        let Err(error) = self.stream(&items).await else { return };
        // The socket goes first: the server shall not wait for a reader that is behind.
        drop(self);
        let _ = items.send(Item::End(error)).await;
    }

    /// Returns `Ok` once nobody reads any more.
    async fn stream(&mut self, items: &mpsc::Sender<Item>) -> Result<(), ReplicationError> {
        let (mut waiting, mut ending) = self.parse();
        loop {
            self.make_status();
            if waiting.is_none()
                && let Some(error) = ending.take()
            {
                return Err(error);
            }
            match self.event(waiting.as_ref(), items).await? {
                Event::Read(0) => return Err(ReplicationError::Lost("the server hung up".into())),
                Event::Read(_) => {
                    self.asked = None;
                    (waiting, ending) = self.parse();
                }
                Event::Room(permit) => {
                    if let Some(chunk) = waiting.take()
                        && items.send(Item::Chunk(chunk, permit)).await.is_err()
                    {
                        return Ok(());
                    }
                    // Nothing was read meanwhile, so nothing is known of the server either.
                    self.asked = None;
                }
                Event::Sent => self.sending = false,
                Event::Deaf => (self.sending, self.deaf) = (false, true),
                Event::Due => {}
                Event::Silent => return Err(ReplicationError::Silent(self.silence_max)),
                Event::Stop => return Ok(()),
            }
        }
    }

    async fn event(
        &mut self,
        waiting: Option<&Chunk>,
        items: &mpsc::Sender<Item>,
    ) -> Result<Event, ReplicationError> {
        let reading = waiting.is_none();
        let soon = self.acknowledged.watch(|| self.soon());
        let silent = self.asked.filter(|_| reading).map(|asked| asked + self.silence_max);
        let due = [soon, silent].into_iter().flatten().fold(self.next_status, Instant::min);
        if self.clock.deadline() != due {
            self.clock.as_mut().reset(due);
        }
        let read_max = self.prepare_read()?;
        tokio::select! {
            biased;
            // Before reading, or a server that sends without pause would never hear from us.
            sent = send(&mut self.writer, &mut self.outgoing), if self.sending => {
                Ok(if sent.is_ok() { Event::Sent } else { Event::Deaf })
            }
            room = room_for(waiting, &self.room, items), if !reading => Ok(room.map_or(Event::Stop, Event::Room)),
            // Before the clocks, so that after a pause of this process what has arrived counts as heard.
            read = read_some(&mut self.reader, &mut self.incoming, read_max), if reading => Ok(Event::Read(read?)),
            () = self.clock.as_mut() => Ok(if silent == Some(due) { Event::Silent } else { Event::Due }),
            () = self.acknowledged.risen.notified(), if soon.is_none() => Ok(Event::Due),
        }
    }

    /// Makes room for the next read and says how much it may bring. A large frame gets a buffer of its own, which
    /// nothing small may share, and which grows as its bytes arrive, not by what its header claims.
    fn prepare_read(&mut self) -> Result<usize, ReplicationError> {
        let have = self.incoming.len();
        if let Some(length) = frame::message_len(&self.incoming)?.filter(|length| *length > READ_BYTES) {
            let missing = length.saturating_sub(have).max(1);
            if self.incoming.capacity() == have {
                self.incoming.reserve(missing.min(have.max(READ_BYTES)));
            }
            self.large = true;
            return Ok(missing);
        }
        if std::mem::take(&mut self.large) {
            self.incoming = BytesMut::from(&self.incoming[..]);
        }
        if self.incoming.capacity() - have < READ_BYTES_MIN {
            self.incoming.reserve(READ_BYTES);
        }
        Ok(READ_BYTES)
    }

    /// Takes what is there as a whole. An end of the stream comes after what arrived before it.
    fn parse(&mut self) -> (Option<Chunk>, Option<ReplicationError>) {
        let mut frames = Vec::new();
        let end = loop {
            match frame::take(&mut self.incoming) {
                Ok(None) => break None,
                Ok(Some(Incoming::Frame { frame, reply })) => {
                    self.wanted |= reply;
                    // Whatever comes behind a keepalive says more than it.
                    frames.pop_if(|last| matches!(last, Frame::Keepalive { .. }));
                    frames.push(frame);
                }
                Ok(Some(Incoming::Ignored)) => {}
                Ok(Some(Incoming::Ended)) => {
                    break Some(ReplicationError::Shutdown("it ended the stream".into()));
                }
                Ok(Some(Incoming::Error(error))) => break Some(error.into()),
                Err(error) => break Some(error),
            }
        };
        let chunk = (!frames.is_empty()).then(|| Chunk::new(frames));
        (chunk, end)
    }

    /// When a status is due that the clock does not ask for, if there is something to say.
    fn soon(&self) -> Option<Instant> {
        let pause = match () {
            () if self.sending || self.deaf => return None,
            () if self.wanted => ANSWER_PAUSE,
            () if self.acknowledged.get() > self.last_lsn => ACKNOWLEDGE_PAUSE,
            () => return None,
        };
        Some(self.last_status + pause)
    }

    /// Makes a status if one is due. While one is still on its way out, the next waits and says more.
    fn make_status(&mut self) {
        let now = Instant::now();
        let by_clock = now >= self.next_status;
        let soon = self.soon().is_some_and(|soon| now >= soon);
        if self.sending || self.deaf || !(by_clock || soon) {
            if by_clock {
                self.next_status = now + self.status_every;
                self.asked.get_or_insert(now);
            }
            return;
        }
        self.last_lsn = self.acknowledged.get();
        self.last_status = now;
        self.wanted = false;
        if by_clock {
            self.next_status = now + self.status_every;
            self.asked.get_or_insert(now);
        }
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_us = i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX);
        frame::put_status(&mut self.outgoing, self.last_lsn, now_us, by_clock);
        self.sending = true;
    }
}

/// Cancel safe: what has gone out is gone from the buffer, and flushing again does no harm.
async fn send(writer: &mut WriteHalf<Socket>, bytes: &mut BytesMut) -> std::io::Result<()> {
    while !bytes.is_empty() {
        if writer.write_buf(bytes).await? == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
    }
    writer.flush().await
}

async fn read_some(
    reader: &mut ReadHalf<Socket>,
    buffer: &mut BytesMut,
    bytes_max: usize,
) -> Result<usize, ReplicationError> {
    Ok(reader.read_buf(&mut buffer.limit(bytes_max)).await?)
}

/// Waits until the chunk fits; `None` if nobody listens any more.
async fn room_for(
    chunk: Option<&Chunk>,
    room: &Arc<Semaphore>,
    items: &mpsc::Sender<Item>,
) -> Option<OwnedSemaphorePermit> {
    let bytes = chunk.map_or(0, |chunk| chunk.bytes).min(WAITING_BYTES_MAX);
    let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
    let permit = Arc::clone(room).acquire_many_owned(permits).await.ok()?;
    // A place in the channel is free from here on, for this task alone sends.
    drop(items.reserve().await.ok()?);
    Some(permit)
}
