//! What the leader does: claims the log, appends pages, replaces the values.

use std::sync::Arc;
use std::time::Duration;

use walcast_wire::{Epoch, Position};

use super::keys::{Keys, id, wide};
use super::link::Link;
use super::{Config, Place, RedisError, VERSION, entry, scripts};
use crate::event::Fence;
use crate::hub::Encoded;
use crate::hub::page::{AllValues, Outgoing};

/// Values that are sent at once when all are replaced.
const PART_VALUES_MAX: usize = 1_000;
/// Their size, in bytes; the last of them may reach beyond.
const PART_BYTES_MAX: usize = 1 << 20;

/// The leader's side. One for each source; a call at a time, in order.
///
/// A call that is dropped may have been carried out or not. The same append may be tried again: what was done already
/// is found done.
#[derive(Debug)]
pub struct Writer {
    link: Link,
    keys: Keys,
    fence: Option<Fence>,
    /// Signs of life given.
    beat: u64,
    pubsub: bool,
    replicas: u32,
    replicas_timeout: Duration,
}

impl Writer {
    /// Connects, and looks whether this Redis can be trusted with the log.
    ///
    /// # Errors
    /// [`RedisError::Away`] or [`RedisError::Unsuitable`].
    pub async fn connect(config: &Config, source: &str) -> Result<Self, RedisError> {
        let link = Link::new(config, source, true)?;
        link.connection().await?;
        Ok(Self {
            link,
            keys: Keys::new(source),
            fence: None,
            beat: 0,
            pubsub: config.pubsub,
            replicas: config.replicas,
            replicas_timeout: config.replicas_timeout,
        })
    }

    /// From here on leaders with a lower fence append nothing. Says how far the log goes; `None`: Redis holds none,
    /// and the first page has to begin one. Readers are told of no value that it is exact until an append or
    /// a replacement says so.
    ///
    /// # Errors
    /// [`RedisError::Fenced`] if a later leader was here; [`RedisError::Away`], [`RedisError::Unsuitable`].
    pub async fn claim(&mut self, fence: Fence) -> Result<Option<Place>, RedisError> {
        let text = fence.to_string();
        let arguments = [VERSION.as_bytes(), text.as_bytes()];
        let said = self.link.run(&scripts::CLAIM, &[self.keys.meta()], &arguments).await?;
        let place = scripts::done(&said, fence)?;
        self.fence = Some(fence);
        Ok(place)
    }

    /// Appends a page with what it does to the values, all or nothing.
    ///
    /// A page that says something has to move on: with events or remarks, `upto` lies beyond `after`.
    ///
    /// # Errors
    /// [`RedisError::Away`]: it may be done or not, append the same again. [`RedisError::Fenced`],
    /// [`RedisError::Moved`], [`RedisError::Unsuitable`]: nothing was changed.
    pub async fn append(&mut self, outgoing: &Outgoing) -> Result<(), RedisError> {
        let fence = self.claimed()?;
        let page = &outgoing.page;
        let says = !(page.events.is_empty() && page.remarks.is_empty());
        if page.upto < page.after || says && page.upto == page.after {
            return Err(RedisError::fault(&format!("a page that does not move on from {}", page.after)));
        }
        let flag = if outgoing.begins { "1" } else { "0" };
        let entry_id = if page.upto > page.after { id(page.upto) } else { String::new() };
        let events = entry::events(&page.events);
        let channels = if self.pubsub { self.keys.channels() } else { "" };
        let topics = if self.pubsub { page.events.len() } else { 0 };
        let removed = outgoing.values.iter().filter(|(_, value)| value.is_none()).count();
        let texts = [
            VERSION.to_owned(),
            fence.to_string(),
            page.epoch.to_string(),
            wide(page.after),
            wide(page.upto),
            flag.to_owned(),
            entry_id,
        ];
        let (remarks, inexact) = (entry::remarks(&page.remarks), entry::patterns(&outgoing.inexact));
        let kept = id(successor(outgoing.floor));
        let counts = [topics, outgoing.values.len() - removed, removed].map(|count| count.to_string());

        let mut arguments: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).collect();
        arguments.extend([&events[..], remarks.as_bytes(), inexact.as_bytes()]);
        arguments.extend([kept.as_bytes(), channels.as_bytes()]);
        arguments.extend(counts.iter().map(|count| count.as_bytes()));
        arguments.extend(page.events.iter().take(topics).map(|event| event.topic().as_str().as_bytes()));
        for (topic, value) in &outgoing.values {
            if let Some(value) = value {
                arguments.extend([topic.as_str().as_bytes(), &value[..]]);
            }
        }
        let gone = outgoing.values.iter().filter(|(_, value)| value.is_none());
        arguments.extend(gone.map(|(topic, _)| topic.as_str().as_bytes()));

        let keys = [self.keys.meta(), self.keys.log(page.epoch), self.keys.state(page.epoch)];
        let said = self.link.run(&scripts::APPEND, &keys, &arguments).await?;
        scripts::done(&said, fence)?;
        self.replicated().await
    }

    /// Puts these in the place of all values, at once for whoever reads them.
    ///
    /// # Errors
    /// [`RedisError::Moved`] if the log does not end where they hold, or [`RedisError::Fenced`]: the values are what
    /// they were. [`RedisError::Away`]: they may be in place or not. [`RedisError::Unsuitable`].
    pub async fn put_all(&mut self, all: AllValues) -> Result<(), RedisError> {
        let AllValues { epoch, at, values, inexact } = all;
        let fence = self.claimed()?;
        let (mut count, mut first) = (0_u64, true);
        let mut values = values.peekable();
        while first || values.peek().is_some() {
            let mut part: Vec<Arc<Encoded>> = Vec::new();
            let mut bytes = 0;
            while part.len() < PART_VALUES_MAX && bytes < PART_BYTES_MAX {
                let Some(value) = values.next() else { break };
                bytes += value.cost_bytes();
                part.push(value);
            }
            count += part.len() as u64;
            self.put(fence, epoch, first, &part).await?;
            first = false;
        }
        let texts =
            [VERSION.into(), fence.to_string(), epoch.to_string(), wide(at), entry::patterns(&inexact)];
        let count = count.to_string();
        let mut arguments: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
        arguments.push(count.as_bytes());
        let keys = [self.keys.meta(), self.keys.state(epoch), self.keys.new_state(epoch)];
        let said = self.link.run(&scripts::REPLACE, &keys, &arguments).await?;
        scripts::done(&said, fence)?;
        self.replicated().await
    }

    async fn put(
        &self,
        fence: Fence,
        epoch: Epoch,
        first: bool,
        part: &[Arc<Encoded>],
    ) -> Result<(), RedisError> {
        let texts = [fence.to_string(), epoch.to_string()];
        let values: Vec<_> = part.iter().map(|value| (value.topic(), value.json())).collect();
        let flag: &[u8] = if first { b"1" } else { b"0" };
        let mut arguments = vec![VERSION.as_bytes(), texts[0].as_bytes(), texts[1].as_bytes(), flag];
        arguments.extend(values.iter().flat_map(|(topic, json)| [topic.as_str().as_bytes(), &json[..]]));
        let keys = [self.keys.meta(), self.keys.new_state(epoch)];
        let said = self.link.run(&scripts::PUT, &keys, &arguments).await?;
        scripts::done(&said, fence).map(|_| ())
    }

    /// Tells those who follow that a leader is there, and says how far the log goes; `None`: Redis holds none, or lost the
    /// values that belong to it, and a line has to begin.
    ///
    /// # Errors
    /// [`RedisError::Fenced`] if a later leader was here; [`RedisError::Away`], [`RedisError::Unsuitable`].
    pub async fn check(&mut self) -> Result<Option<Place>, RedisError> {
        let ours = self.claimed()?;
        let found = self.link.run(&scripts::VALUES, &[self.keys.meta()], &[]).await?;
        let Some(holds) = scripts::holds(found)? else { return Ok(None) };
        if let Some(theirs) = holds.fence.filter(|theirs| *theirs > ours) {
            return Err(RedisError::Fenced { ours, theirs });
        }
        if !holds.whole {
            return Ok(None);
        }
        // A sign of life for those who follow. It decides nothing, so it need not be part of a script.
        self.beat += 1;
        let mut beat = redis::cmd("HSET");
        beat.arg(self.keys.meta()).arg("beat").arg(format!("{ours}-{}", self.beat));
        self.link.call::<redis::Value>(&beat, Duration::ZERO).await?;
        Ok(Some(holds.place))
    }

    fn claimed(&self) -> Result<Fence, RedisError> {
        self.fence.ok_or_else(|| RedisError::fault("an append before a claim"))
    }

    /// Waits until enough replicas have what was written last on this connection.
    async fn replicated(&self) -> Result<(), RedisError> {
        if self.replicas == 0 {
            return Ok(());
        }
        let mut wait = redis::cmd("WAIT");
        wait.arg(self.replicas)
            .arg(u64::try_from(self.replicas_timeout.as_millis()).unwrap_or(u64::MAX).max(1));
        let have: u32 = self.link.call(&wait, self.replicas_timeout).await?;
        if have >= self.replicas {
            return Ok(());
        }
        Err(RedisError::Away(format!(
            "{have} replicas of Redis have what was appended, and redis.replicas asks for {}; it is tried again until \
             they are back",
            self.replicas
        )))
    }
}

/// The least position beyond this one.
fn successor(position: Position) -> Position {
    match position.ordinal.checked_add(1) {
        Some(ordinal) => Position::new(position.major, ordinal),
        None => Position::new(position.major.saturating_add(1), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successors() {
        let check = |position: (u64, u64), expected: (u64, u64)| {
            let made = successor(Position::new(position.0, position.1));
            assert_eq!(made, Position::new(expected.0, expected.1));
        };
        check((0, 0), (0, 1));
        check((7, 3), (7, 4));
        check((7, u64::MAX), (8, 0));
    }
}
