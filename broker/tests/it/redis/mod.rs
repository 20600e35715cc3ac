//! What goes through Redis between brokers, tried on a real one. Each test has its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::redis::aio::MultiplexedConnection;
use ::redis::{Cmd, FromRedisValue};
use bytes::Bytes;
use walcast::backbone::redis::{Config, Reader, RedisError, Writer};
use walcast::event::Fence;
use walcast::hub::Encoded;
use walcast::hub::page::{Outgoing, Page};
use walcast::throwaway::redis::Server;
use walcast_wire::{Cursor, Epoch, Position};

use crate::wait::{LIMIT, until_limit, within};

mod append;
mod cluster;
mod follow;
mod form;
mod loss;
mod roll;
mod sentinel;
mod suit;
mod tls;
mod values;

const SOURCE: &str = "orders";
const EPOCH: Epoch = Epoch(0xAB);
const FENCE: Fence = Fence::new(1, 100);

/// A reader that waits for as long as it takes.
struct Patient(Reader);

impl Patient {
    async fn next(&mut self, after: Option<Cursor>) -> Result<Page, RedisError> {
        loop {
            if let Some(page) = self.0.next(after).await? {
                return Ok(page);
            }
        }
    }
}

/// Appends as the broker does, until a server takes it: what was lost on the way it claims, and tells again from there.
async fn carry(writer: &mut Writer, pages: &[&Outgoing]) {
    until_limit(2 * LIMIT, "a server takes it", async || {
        let place = match writer.claim(FENCE).await {
            Ok(place) => place,
            Err(RedisError::Away(_)) => return false,
            Err(error) => panic!("{error}"),
        };
        let missing = pages.iter().filter(|sent| place.is_none_or(|place| sent.page.upto > place.head));
        for sent in missing {
            match writer.append(sent).await {
                Ok(()) => {}
                Err(RedisError::Away(_)) => return false,
                Err(error) => panic!("{error}"),
            }
        }
        true
    })
    .await;
}

/// Reads as the broker does, until there is a page.
async fn read_on(reader: &mut Reader, after: Cursor) -> Page {
    let mut found = None;
    until_limit(2 * LIMIT, "a page", async || match reader.next(Some(after)).await {
        Ok(page) => {
            found = page;
            found.is_some()
        }
        Err(RedisError::Away(_) | RedisError::Moved(None)) => false,
        Err(error) => panic!("{error}"),
    })
    .await;
    found.unwrap()
}

/// A Redis of the test's own, and a look into it beside the broker's.
struct Lab {
    server: Arc<Server>,
    raw: MultiplexedConnection,
}

impl Lab {
    async fn start() -> Self {
        Self::tuned(&[]).await
    }

    async fn tuned(settings: &'static [(&'static str, &'static str)]) -> Self {
        let server = tokio::task::spawn_blocking(|| Server::tuned(settings).unwrap()).await.unwrap();
        let raw = raw(&server.url()).await;
        Self { server: Arc::new(server), raw }
    }

    /// A look at a server that is there.
    async fn of(server: &Arc<Server>) -> Self {
        Self { server: Arc::clone(server), raw: raw(&server.url()).await }
    }

    fn config(&self) -> Config {
        config(self.server.url())
    }

    /// Without a claim.
    async fn writer(&self) -> Writer {
        within("a writer", Writer::connect(&self.config(), SOURCE)).await.unwrap()
    }

    /// The leader, of an empty Redis.
    async fn leader(&self) -> Writer {
        let mut writer = self.writer().await;
        assert_eq!(writer.claim(FENCE).await, Ok(None));
        writer
    }

    fn reader(&self) -> Patient {
        Patient(Reader::new(&self.config(), SOURCE).unwrap())
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> T {
        command.query_async(&mut self.raw.clone()).await.unwrap()
    }

    /// A command of words.
    async fn say<T: FromRedisValue>(&self, words: &str) -> T {
        let mut words = words.split(' ');
        let mut command = ::redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            command.arg(word);
        });
        self.ask(&command).await
    }

    async fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.say("KEYS *").await;
        keys.sort_unstable();
        keys
    }

    /// Every key with its bytes.
    async fn dump(&self) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        for key in self.keys().await {
            let bytes = self.ask(::redis::cmd("DUMP").arg(&key)).await;
            all.insert(key, bytes);
        }
        all
    }

    /// Puts back what [`dump`](Self::dump) said, and nothing else.
    async fn restore(&self, all: &BTreeMap<String, Vec<u8>>) {
        let _: () = self.say("FLUSHALL").await;
        for (key, bytes) in all {
            let _: () = self.ask(::redis::cmd("RESTORE").arg(key).arg(0).arg(bytes)).await;
        }
    }
}

fn config(url: String) -> Config {
    Config { url: Some(url), ..Config::default() }
}

async fn raw(url: &str) -> MultiplexedConnection {
    ::redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap()
}

fn at(major: u64, ordinal: u64) -> Position {
    Position::new(major, ordinal)
}

fn cursor(major: u64, ordinal: u64) -> Cursor {
    Cursor::new(EPOCH, at(major, ordinal))
}

/// An event as a hub encodes it.
fn event_of(epoch: Epoch, position: Position, topic: &str, op: &str) -> Arc<Encoded> {
    let cursor = Cursor::new(epoch, position);
    let n = position.major;
    let json = format!(r#"{{"cursor":"{cursor}","topic":"{topic}","op":"{op}","data":{{"n":{n}}}}}"#);
    Arc::new(Encoded::read(json.as_bytes()).unwrap())
}

fn event(position: Position, topic: &str) -> Arc<Encoded> {
    event_of(EPOCH, position, topic, "update")
}

/// A current value.
fn value(position: Position, topic: &str) -> Bytes {
    event_of(EPOCH, position, topic, "snapshot").json()
}

/// One event of `vm/a` at the page's end, in a line that is kept from the beginning.
fn page(after: Position, upto: Position) -> Outgoing {
    let events = if upto > after { vec![event(upto, "vm/a")] } else { vec![] };
    Outgoing {
        page: Page { epoch: EPOCH, after, upto, remarks: vec![], events },
        begins: false,
        floor: Position::ZERO,
        values: vec![],
        inexact: vec![],
    }
}

fn begins(after: Position, upto: Position) -> Outgoing {
    Outgoing { begins: true, ..page(after, upto) }
}

/// What a page says, in a form that can be compared.
fn told(page: &Page) -> (Epoch, Position, Position, Vec<(Position, Bytes)>) {
    let events = page.events.iter().map(|event| (event.position(), event.json())).collect();
    (page.epoch, page.after, page.upto, events)
}

#[track_caller]
fn same(found: &Page, sent: &Outgoing) {
    assert_eq!(told(found), told(&sent.page));
    assert_eq!(found.remarks, sent.page.remarks);
}
