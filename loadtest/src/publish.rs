//! What wakes clients: each way of publishing, with the same payload for all.
//!
//! Messages are numbered; when each was due is noted in [`Sent`] before it is sent, so that nothing that a
//! server does to the publisher shortens a latency.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_postgres::Statement;
use walcast::postgres::Session;

use crate::Error;
use crate::latency::Sent;

/// How long a server may take to accept what is published.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where numbered messages go.
#[derive(Clone, Copy, Debug)]
pub enum Topics<'a> {
    /// All to one topic.
    One(&'a str),
    /// Each to a topic of its own: this prefix, and the message's number less this.
    Each(&'a str, u32),
}

impl Topics<'_> {
    /// The message's topic.
    #[must_use]
    pub fn of(&self, seq: u32) -> String {
        match self {
            Self::One(topic) => (*topic).to_owned(),
            Self::Each(prefix, first) => format!("{prefix}{}", seq - first),
        }
    }
}

/// How SQL publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `walcast.publish`.
    Walcast,
    /// `pg_notify`.
    Notify,
}

/// A message's payload, as all systems carry it.
#[must_use]
pub fn payload(seq: u32) -> String {
    format!(
        r#"{{"seq": {seq}, "email": "student-4711@example.org", "crdcommand": "start-session --pin 004711"}}"#
    )
}

/// The same in SQL, from a number `i`.
const PAYLOAD: &str = r#"'{"seq": ' || i || ', "email": "student-4711@example.org", "crdcommand": "start-session --pin 004711"}'"#;

/// A publisher: one connection.
#[derive(Debug)]
pub enum Publisher {
    /// To Postgres.
    Sql(Sql),
    /// To Redis.
    Redis(Raw),
    /// To nginx.
    Nchan(Raw),
}

impl Publisher {
    /// Publishes through Postgres.
    ///
    /// # Errors
    /// The function is not there.
    pub async fn sql(session: Session, method: Method) -> Result<Self, Error> {
        let call = match method {
            Method::Walcast => format!("walcast.publish(topic, ({PAYLOAD})::jsonb)"),
            Method::Notify => format!("pg_notify(topic, {PAYLOAD})"),
        };
        let statement = |from: &str| format!("select count({call}) from {from} as messages (i, topic)");
        let failed = || Error::sql("prepare publishing");
        let one = "select 1 from (values ($1::int8, $2::text)) as messages (i, topic), lateral";
        let one = format!("{one} (select {call}) as published");
        let range = "generate_series($1::int8, $2::int8)";
        let same = statement(&format!("(select i, $3::text from {range} i)"));
        let each = statement(&format!("(select i, $3::text || (i - $4::int8) from {range} i)"));
        Ok(Self::Sql(Sql {
            one: session.prepare(&one).await.map_err(failed())?,
            same: session.prepare(&same).await.map_err(failed())?,
            each: session.prepare(&each).await.map_err(failed())?,
            session,
        }))
    }

    /// Publishes through Redis.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn redis(address: SocketAddr) -> Result<Self, Error> {
        Raw::connect(address).await.map(Self::Redis)
    }

    /// Publishes through nginx.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn nchan(address: SocketAddr) -> Result<Self, Error> {
        Raw::connect(address).await.map(Self::Nchan)
    }

    /// Publishes one message, in a transaction of its own, and returns when the server has it. When it was due
    /// is for the caller to note.
    ///
    /// # Errors
    /// The server refused, went away, or took too long.
    pub async fn one(&mut self, topic: &str, seq: u32) -> Result<(), Error> {
        in_time(self.send(topic, seq)).await
    }

    async fn send(&mut self, topic: &str, seq: u32) -> Result<(), Error> {
        match self {
            Self::Sql(sql) => sql.one(topic, seq).await,
            Self::Redis(raw) => {
                let bytes = redis_command(topic, &payload(seq));
                raw.ask(bytes.as_bytes(), 1, redis_answers).await
            }
            Self::Nchan(raw) => {
                let bytes = nchan_request(raw.address, topic, &payload(seq));
                raw.ask(bytes.as_bytes(), 1, nchan_answers).await
            }
        }
    }

    /// Publishes messages at once: in one transaction, or in one go without waiting for answers between them.
    /// Notes all as due when the server was asked to publish them, for a transaction by its commit, and answers
    /// that instant once the server has them all.
    ///
    /// # Errors
    /// The server refused, went away, or took too long.
    pub async fn burst(
        &mut self,
        topics: Topics<'_>,
        seqs: Range<u32>,
        sent: &Sent,
    ) -> Result<Instant, Error> {
        in_time(self.send_all(topics, seqs, sent)).await
    }

    async fn send_all(
        &mut self,
        topics: Topics<'_>,
        seqs: Range<u32>,
        sent: &Sent,
    ) -> Result<Instant, Error> {
        let due = |at: Instant| {
            seqs.clone().for_each(|seq| sent.at(seq, at));
            at
        };
        let (raw, encode, answers): (_, Encode, Answers) = match self {
            Self::Sql(sql) => return sql.burst(topics, seqs.clone(), due).await,
            Self::Redis(raw) => (raw, |_, topic, payload| redis_command(topic, payload), redis_answers),
            Self::Nchan(raw) => (raw, nchan_request, nchan_answers),
        };
        let mut bytes = String::new();
        for seq in seqs.clone() {
            bytes += &encode(raw.address, &topics.of(seq), &payload(seq));
        }
        let asked = due(Instant::now());
        raw.ask(bytes.as_bytes(), seqs.len(), answers).await?;
        Ok(asked)
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = || Error::failed(format!("publish: the server has not accepted it after {PATIENCE:?}"));
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(late()))
}

/// A command, from the server's address, the topic and the payload.
type Encode = fn(SocketAddr, &str, &str) -> String;
/// Takes whole answers off the front and says how many there were.
type Answers = fn(&mut Vec<u8>) -> Result<usize, Error>;

/// A session of Postgres that publishes.
#[derive(Debug)]
pub struct Sql {
    session: Session,
    one: Statement,
    same: Statement,
    each: Statement,
}

impl Sql {
    async fn one(&self, topic: &str, seq: u32) -> Result<(), Error> {
        let done = self.session.query(&self.one, &[&i64::from(seq), &topic]).await;
        done.map(|_| ()).map_err(Error::sql("publish"))
    }

    async fn burst(
        &mut self,
        topics: Topics<'_>,
        seqs: Range<u32>,
        due: impl Fn(Instant) -> Instant,
    ) -> Result<Instant, Error> {
        let (from, to) = (i64::from(seqs.start), i64::from(seqs.end) - 1);
        let work = async {
            let transaction = self.session.transaction().await?;
            match topics {
                Topics::One(topic) => transaction.query(&self.same, &[&from, &to, &topic]).await?,
                Topics::Each(prefix, first) => {
                    transaction.query(&self.each, &[&from, &to, &prefix, &i64::from(first)]).await?
                }
            };
            let asked = due(Instant::now());
            transaction.commit().await.map(|()| asked)
        };
        work.await.map_err(Error::sql("publish"))
    }
}

/// A connection on which commands are written together, and their answers counted.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    address: SocketAddr,
    /// What was answered and not yet counted.
    heard: Vec<u8>,
}

impl Raw {
    async fn connect(address: SocketAddr) -> Result<Self, Error> {
        let stream =
            TcpStream::connect(address).await.map_err(Error::of(&format!("connect to {address}")))?;
        stream.set_nodelay(true).map_err(Error::of("set an option of a socket"))?;
        Ok(Self { stream, address, heard: Vec::new() })
    }

    /// Writes, and reads until `count` answers came.
    async fn ask(&mut self, bytes: &[u8], count: usize, answers: Answers) -> Result<(), Error> {
        let what = format!("publish to {}", self.address);
        let (mut read, mut write) = self.stream.split();
        let heard = &mut self.heard;
        // Both at once: a server whose answers nobody takes would stop reading.
        let writing = async { write.write_all(bytes).await.map_err(Error::of(&what)) };
        let reading = async {
            let mut left = count;
            loop {
                left = left.saturating_sub(answers(heard)?);
                if left == 0 {
                    return Ok(());
                }
                if read.read_buf(heard).await.map_err(Error::of(&what))? == 0 {
                    return Err(Error::failed(format!("{what}: the server closed the connection")));
                }
            }
        };
        tokio::try_join!(writing, reading).map(|_| ())
    }
}

fn redis_command(topic: &str, payload: &str) -> String {
    let (topic_bytes, payload_bytes) = (topic.len(), payload.len());
    format!("*3\r\n$7\r\nPUBLISH\r\n${topic_bytes}\r\n{topic}\r\n${payload_bytes}\r\n{payload}\r\n")
}

/// Each answer is a line with a number.
fn redis_answers(heard: &mut Vec<u8>) -> Result<usize, Error> {
    let Some(end) = memchr::memrchr(b'\n', heard) else { return Ok(0) };
    let lines = heard[..=end].split_inclusive(|byte| *byte == b'\n');
    let mut count = 0;
    for line in lines {
        if !line.starts_with(b":") {
            return Err(Error::failed(format!("Redis: {}", String::from_utf8_lossy(line).trim())));
        }
        count += 1;
    }
    heard.drain(..=end);
    Ok(count)
}

fn nchan_request(address: SocketAddr, topic: &str, payload: &str) -> String {
    let mut text = String::with_capacity(256);
    // Writing to a String does not fail.
    let _ = write!(
        text,
        "POST /pub?id={topic} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{payload}",
        payload.len()
    );
    text
}

/// Each answer is a head and a body of its length.
fn nchan_answers(heard: &mut Vec<u8>) -> Result<usize, Error> {
    let (mut at, mut count) = (0, 0);
    while let Some((status, length)) = crate::client::answer(&heard[at..])? {
        if !(200..300).contains(&status) {
            let text = String::from_utf8_lossy(&heard[at..]).into_owned();
            return Err(Error::failed(format!("nchan: {}", text.lines().next().unwrap_or_default())));
        }
        (at, count) = (at + length, count + 1);
    }
    heard.drain(..at);
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_as_they_get_whole() {
        let check = |answers: Answers, text: &str, count: usize| {
            for cut in 0..text.len() {
                let mut heard = text.as_bytes()[..cut].to_vec();
                let first = answers(&mut heard).unwrap();
                heard.extend_from_slice(&text.as_bytes()[cut..]);
                assert_eq!(first + answers(&mut heard).unwrap(), count, "{text} at {cut}");
                assert!(heard.is_empty());
            }
        };
        check(redis_answers, ":1\r\n:20\r\n", 2);
        let one = "HTTP/1.1 202 Accepted\r\nContent-Length: 3\r\n\r\nabc";
        check(nchan_answers, &format!("{one}{one}"), 2);
        assert!(redis_answers(&mut b"-ERR no\r\n".to_vec()).is_err());
        assert!(nchan_answers(&mut b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n".to_vec()).is_err());
    }

    #[test]
    fn topics() {
        assert_eq!(Topics::One("a").of(7), "a");
        assert_eq!(Topics::Each("lt/", 5).of(7), "lt/2");
    }
}
