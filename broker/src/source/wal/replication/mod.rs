//! Our own thin client for the walsender. `tokio_postgres` cannot speak the replication protocol, in which both
//! sides send at any time.
//!
//! A [`Connection`] runs commands one at a time; [`Connection::start`] turns it into a [`Stream`], which is fed by
//! a task that alone owns the socket. That task keeps the server content whether or not anybody reads the
//! stream. It never acknowledges what [`Stream::ack`] was not told.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::postgres::{ConnectError, ServerError, Socket, Target, is_shutdown};

mod frame;
mod handshake;
mod stream;
mod task;

pub use frame::Frame;
pub use stream::Stream;

/// The longest answer to a command, a single row of catalog values.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why the replication connection cannot be used any more, or a command failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The server refused; branch on the code.
    #[error("the replication connection: {0}")]
    Server(ServerError),
    /// The server stops or an administrator ended the session: wait before connecting again, for a server that
    /// is being stopped waits for us, too.
    #[error("the server ended the replication connection: {0}")]
    Shutdown(String),
    /// Nothing arrived for this long, though an answer was asked for.
    #[error("the server has been silent for {0:?} on the replication connection; it is connected again")]
    Silent(Duration),
    /// The connection broke.
    #[error("the replication connection is lost: {0}")]
    Lost(String),
    /// What arrived is not what a walsender sends.
    #[error("the replication connection: {0}; is this a Postgres server, reached without a pooler?")]
    Protocol(String),
}

impl From<std::io::Error> for ReplicationError {
    fn from(error: std::io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<ServerError> for ReplicationError {
    fn from(error: ServerError) -> Self {
        if is_shutdown(&error.code) { Self::Shutdown(error.to_string()) } else { Self::Server(error) }
    }
}

/// What a stream is asked for.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// The slot.
    pub slot: String,
    /// Everything after this will be sent, and this much is acknowledged from the start.
    pub start_lsn: u64,
    /// For the plugin, in order.
    pub plugin: Vec<(String, String)>,
    /// A status that asks for an answer is sent this often: a third of the lease.
    pub status_every: Duration,
    /// Give up when nothing has arrived for this long after such a status.
    pub silence_max: Duration,
}

/// A connection in replication mode that runs commands.
pub struct Connection {
    socket: Socket,
    buffer: BytesMut,
    /// Where we are, for messages.
    at: String,
    /// The server's process, which `pg_replication_slots.active_pid` names.
    pid: i32,
    /// A command is under way; if its future was dropped, answers would be read for the wrong one.
    busy: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("at", &self.at).field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects with `replication=database`. The server drops the connection after `lease` without a sign of
    /// life from us.
    ///
    /// # Errors
    /// See [`ConnectError::kind`].
    pub async fn connect(
        target: &Target,
        application_name: &str,
        lease: Duration,
    ) -> Result<Self, ConnectError> {
        handshake::connect(target, application_name, lease).await
    }

    /// The server's process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Runs one command, SQL or of the replication protocol. Not cancel safe: once the future was dropped, the
    /// connection answers nothing but errors.
    ///
    /// # Errors
    /// After [`ReplicationError::Server`] the connection can go on; after the others it cannot.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, ReplicationError> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut failed: Option<ServerError> = None;
        loop {
            let message = match self.message().await {
                Ok(message) => message,
                // A fatal error is followed by the end of the connection, not by "ready".
                Err(lost) => return Err(failed.map_or(lost, Into::into)),
            };
            match message {
                Message::DataRow(body) => {
                    let buffer = body.buffer();
                    let row = body.ranges().map(|range| {
                        let text = |range| String::from_utf8_lossy(&buffer[range]).into_owned();
                        Ok(range.map(text))
                    });
                    rows.push(row.collect().map_err(|_| frame::broken("a row cannot be read"))?);
                }
                Message::ErrorResponse(body) => failed = Some(ServerError::read(body.fields())),
                Message::ReadyForQuery(_) => break,
                Message::CopyData(_) | Message::CopyOutResponse(_) | Message::CopyInResponse(_) => {
                    return Err(frame::broken("a command answers by copying"));
                }
                _ => {}
            }
        }
        self.busy = false;
        failed.map_or(Ok(rows), |error| Err(error.into()))
    }

    /// Starts to stream. The connection is spent, also on an error.
    ///
    /// # Errors
    /// The server refuses, or the connection broke.
    pub async fn start(mut self, options: &StreamOptions) -> Result<Stream, ReplicationError> {
        self.send_query(&start_command(options)).await?;
        loop {
            // Everything behind this one message belongs to the stream.
            if let Some(length) = self.whole_message(ANSWER_BYTES_MAX)? {
                const COPY_BOTH_TAG: u8 = b'W';
                if self.buffer.first() == Some(&COPY_BOTH_TAG) {
                    drop(self.buffer.split_to(length));
                    return Ok(Stream::spawn(self.socket, self.buffer, options));
                }
                match parse(&mut self.buffer)? {
                    Message::ErrorResponse(body) => return Err(ServerError::read(body.fields()).into()),
                    Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                    _ => return Err(frame::broken("the command to stream has an unexpected answer")),
                }
            } else {
                self.read().await?;
            }
        }
    }

    /// Ends the connection; the server drops its temporary slots at once.
    pub async fn close(mut self) {
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        let goodbye = async {
            let _ = self.socket.write_all(&out).await;
            let _ = self.socket.shutdown().await;
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
    }

    async fn send_query(&mut self, sql: &str) -> Result<(), ReplicationError> {
        if std::mem::replace(&mut self.busy, true) {
            return Err(ReplicationError::Lost("an earlier command was given up half-way".into()));
        }
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        let Err(lost) = self.send(&out).await else { return Ok(()) };
        // A server that hung up meanwhile has said why.
        match self.message().await {
            Ok(Message::ErrorResponse(body)) => Err(ServerError::read(body.fields()).into()),
            _ => Err(lost),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), ReplicationError> {
        self.socket.write_all(bytes).await?;
        self.socket.flush().await?;
        Ok(())
    }

    /// The next message, but for notices and parameters.
    async fn message(&mut self) -> Result<Message, ReplicationError> {
        loop {
            if self.whole_message(ANSWER_BYTES_MAX)?.is_none() {
                self.read().await?;
                continue;
            }
            match parse(&mut self.buffer)? {
                Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
                message => return Ok(message),
            }
        }
    }

    fn whole_message(&self, bytes_max: usize) -> Result<Option<usize>, ReplicationError> {
        let length = frame::message_len(&self.buffer)?;
        if length.is_some_and(|length| length > bytes_max) {
            return Err(frame::broken("an answer is far too long"));
        }
        Ok(length.filter(|length| self.buffer.len() >= *length))
    }

    async fn read(&mut self) -> Result<(), ReplicationError> {
        match self.socket.read_buf(&mut self.buffer).await? {
            0 => Err(ReplicationError::Lost("the server hung up".into())),
            _ => Ok(()),
        }
    }
}

fn parse(buffer: &mut BytesMut) -> Result<Message, ReplicationError> {
    match Message::parse(buffer) {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(frame::broken("a message is incomplete")),
        Err(error) => Err(frame::broken(&format!("a message cannot be read: {error}"))),
    }
}

fn start_command(options: &StreamOptions) -> String {
    let (high, low) = (options.start_lsn >> 32, options.start_lsn & 0xffff_ffff);
    let plugin: Vec<String> = options
        .plugin
        .iter()
        .map(|(name, value)| format!("\"{}\" '{}'", name.replace('"', "\"\""), value.replace('\'', "''")))
        .collect();
    let slot = options.slot.replace('"', "\"\"");
    let mut command = format!("START_REPLICATION SLOT \"{slot}\" LOGICAL {high:X}/{low:X}");
    if !plugin.is_empty() {
        command.push_str(&format!(" ({})", plugin.join(", ")));
    }
    command
}

/// A run of frames from one read, and how many bytes they hold.
#[derive(Debug)]
struct Chunk {
    frames: std::vec::IntoIter<Frame>,
    bytes: usize,
}

impl Chunk {
    fn new(frames: Vec<Frame>) -> Self {
        const OVERHEAD: usize = 64;
        let bytes = |frame: &Frame| {
            OVERHEAD + if let Frame::Data { body, .. } = frame { Bytes::len(body) } else { 0 }
        };
        Self { bytes: frames.iter().map(bytes).sum(), frames: frames.into_iter() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_quotes() {
        let options = StreamOptions {
            slot: "walcast_live".into(),
            start_lsn: 0x1_0000_00AB,
            plugin: vec![
                ("proto_version".into(), "1".into()),
                ("publication_names".into(), "\"it's\"".into()),
            ],
            status_every: Duration::from_secs(1),
            silence_max: Duration::from_secs(1),
        };
        assert_eq!(
            start_command(&options),
            "START_REPLICATION SLOT \"walcast_live\" LOGICAL 1/AB \
             (\"proto_version\" '1', \"publication_names\" '\"it''s\"')"
        );
    }
}
