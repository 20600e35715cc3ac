//! What a broker that follows does: reads the log from where it stands.
//!
//! A stream says nothing of what it lost: entries that were trimmed are skipped without a word, and a place beyond its
//! end waits for ever. So whenever nothing comes the head is looked at, and a page is made of what is missing.

use std::collections::VecDeque;
use std::time::Duration;

use redis::streams::{StreamReadOptions, StreamReadReply};
use tokio::time::{Instant, sleep};
use walcast_wire::{Cursor, Epoch, Position};

use super::keys::{Keys, id};
use super::link::{LOOK_AGAIN, Link};
use super::{Config, Place, RedisError, VERSION, entry, scripts};
use crate::hub::page::Page;

/// How long to wait for an entry before the head is looked at.
const BLOCK: Duration = Duration::from_secs(1);
/// Between two looks for a log that is not there.
const LOOK: Duration = Duration::from_millis(100);
/// Entries that are read at once.
const ENTRIES_MAX: usize = 64;

/// The side of a broker that follows, on a connection of its own.
#[derive(Debug)]
pub struct Reader {
    link: Link,
    keys: Keys,
    /// Where the caller stands once it has taken what was handed out.
    stands: Option<Cursor>,
    /// What follows there.
    ready: VecDeque<Page>,
    /// The leader's last sign of life, and when it or a page was seen.
    beat: Option<String>,
    heard: Instant,
}

impl Reader {
    /// Connects when it is first asked.
    ///
    /// # Errors
    /// [`RedisError::Unsuitable`]: the URL is none.
    pub fn new(config: &Config, source: &str) -> Result<Self, RedisError> {
        let link = Link::new(config, source, false)?;
        Ok(Self {
            link,
            keys: Keys::new(source),
            stands: None,
            ready: VecDeque::new(),
            beat: None,
            heard: Instant::now(),
        })
    }

    /// The page that follows `after`, if one comes within a second. With another epoch than that of `after`, or without
    /// one, it is the first one that there is. Where its start lies beyond `after`, what lies between is gone. Cancel
    /// safe.
    ///
    /// # Errors
    /// [`RedisError::Moved`]`(None)` each second in which Redis holds no log; ask again.
    /// [`RedisError::Away`]: ask again after a pause. [`RedisError::Unsuitable`].
    pub async fn next(&mut self, after: Option<Cursor>) -> Result<Option<Page>, RedisError> {
        if after != self.stands {
            self.ready.clear();
            self.stands = after;
        }
        if self.ready.is_empty() {
            let read = match self.stands {
                Some(stands) => self.follow(stands).await?,
                None => self.begin(None).await?,
            };
            self.ready.extend(read);
        }
        let page = self.ready.pop_front();
        if let Some(page) = &page {
            self.heard = Instant::now();
            self.stands = Some(Cursor::new(page.epoch, page.upto));
        }
        Ok(page)
    }

    /// What follows `stands`; nothing, if nothing came for a while.
    async fn follow(&mut self, stands: Cursor) -> Result<Vec<Page>, RedisError> {
        let pages = self.read(stands.epoch, stands.position, BLOCK).await?;
        if !pages.is_empty() {
            return Ok(pages);
        }
        let Some(place) = self.place().await? else { return self.begin(Some(stands)).await };
        if place.epoch != stands.epoch {
            return self.begin(Some(stands)).await;
        }
        if place.head <= stands.position {
            return Ok(Vec::new());
        }
        self.read_or_skip(place, stands.position).await
    }

    /// What follows `position`, of which there must be something; what cannot be found is gone.
    async fn read_or_skip(&self, place: Place, position: Position) -> Result<Vec<Page>, RedisError> {
        let pages = self.read(place.epoch, position, Duration::ZERO).await?;
        if !pages.is_empty() {
            return Ok(pages);
        }
        let Place { epoch, head } = place;
        Ok(vec![Page { epoch, after: head, upto: head, remarks: Vec::new(), events: Vec::new() }])
    }

    /// The beginning of the log, once there is one. A log that appears where the caller stood goes on from there.
    async fn begin(&mut self, stands: Option<Cursor>) -> Result<Vec<Page>, RedisError> {
        let until = Instant::now() + BLOCK;
        loop {
            if let Some(place) = self.place().await? {
                return match stands.filter(|stands| stands.epoch == place.epoch) {
                    Some(_) => Ok(Vec::new()),
                    None => self.read_or_skip(place, Position::ZERO).await,
                };
            }
            if Instant::now() >= until {
                return Err(RedisError::Moved(None));
            }
            sleep(LOOK).await;
        }
    }

    /// How long no leader was heard of.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.heard.elapsed()
    }

    async fn place(&mut self) -> Result<Option<Place>, RedisError> {
        if self.silence() > LOOK_AGAIN {
            self.link.look_again().await;
        }
        let mut ask = redis::cmd("HMGET");
        ask.arg(self.keys.meta()).arg("version").arg("epoch").arg("head").arg("beat");
        let held: Vec<Option<String>> = self.link.call(&ask, Duration::ZERO).await?;
        let word = |at: usize| held.get(at).and_then(Option::as_deref);
        if word(3).is_some() && word(3) != self.beat.as_deref() {
            self.beat = word(3).map(str::to_owned);
            self.heard = Instant::now();
        }
        match word(0) {
            Some(VERSION) => scripts::place(word(1), word(2)),
            Some(other) => Err(scripts::version(other)),
            None => Ok(None),
        }
    }

    /// Entries beyond `position`, of which some are waited for.
    async fn read(&self, epoch: Epoch, position: Position, block: Duration) -> Result<Vec<Page>, RedisError> {
        let mut options = StreamReadOptions::default().count(ENTRIES_MAX);
        if !block.is_zero() {
            options = options.block(usize::try_from(block.as_millis()).unwrap_or(usize::MAX));
        }
        let log = self.keys.log(epoch);
        let mut ask = redis::cmd("XREAD");
        ask.arg(options).arg("STREAMS").arg(&log).arg(id(position));
        let reply: Option<StreamReadReply> = self.link.call(&ask, block).await?;
        let mut pages = Vec::new();
        for found in reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids) {
            match entry::read(epoch, &found) {
                Ok(page) => pages.push(page),
                // What lies before it is handed out first.
                Err(_) if !pages.is_empty() => break,
                Err(why) => {
                    let what = format!("the entry {} of {log} cannot be read: {why}", found.id);
                    return Err(RedisError::foreign(&what));
                }
            }
        }
        Ok(pages)
    }
}
