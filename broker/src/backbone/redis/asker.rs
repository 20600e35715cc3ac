//! What a broker that follows asks for: current values, and at which place they hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use walcast_wire::{Topic, TopicPattern};

use super::glob::{glob, meant};
use super::keys::Keys;
use super::link::Link;
use super::{Config, Place, RedisError, scripts};
use crate::hub::Encoded;
use crate::hub::page::Answer;

/// Where a scan goes on, and the fields that it has found.
type Step = (String, Vec<(Vec<u8>, Vec<u8>)>);

/// About how many fields a step of a scan looks at.
const STEP_FIELDS: usize = 1_000;

/// The side of a broker that follows, on a connection that all its questions share.
#[derive(Debug)]
pub struct Asker {
    link: Link,
    keys: Keys,
}

impl Asker {
    /// Connects when it is first asked.
    ///
    /// # Errors
    /// [`RedisError::Unsuitable`]: the URL is none.
    pub fn new(config: &Config, source: &str) -> Result<Self, RedisError> {
        Ok(Self { link: Link::new(config, source, false)?, keys: Keys::new(source) })
    }

    /// The current values of what is `asked`, in that order.
    ///
    /// Topics are read at one moment, and hold at the answer's place. A scan for wildcards takes a while: a topic that
    /// changed meanwhile may be shown as before or as after; the event that says so
    /// lies behind `since`, and at or before the answer's place. Cancel safe.
    ///
    /// # Errors
    /// [`RedisError::Moved`]`(None)`: Redis holds no log. [`RedisError::Away`]: ask again after a pause.
    /// [`RedisError::Unsuitable`].
    pub async fn values(&self, asked: &[TopicPattern]) -> Result<Answer, RedisError> {
        self.link.look_again().await;
        let wild = asked.iter().any(|pattern| pattern.as_topic().is_none());
        let before = if wild { Some(self.holds(&[]).await?) } else { None };
        let mut scanned = Vec::new();
        for pattern in asked.iter().filter(|pattern| pattern.as_topic().is_none()) {
            if let Some(before) = &before {
                scanned.push(self.scan(pattern, &self.keys.state(before.place.epoch)).await?);
            }
        }
        // Last, so that the place is the latest.
        let topics: Vec<Topic> = asked.iter().filter_map(TopicPattern::as_topic).collect();
        let mut holds = self.holds(&topics).await?;
        let mut since = holds.place.head;
        if let Some(before) = before {
            since = before.place.head;
            if before.place.epoch != holds.place.epoch {
                return Err(RedisError::Away(
                    "a new log began while values were read from Redis; ask again".into(),
                ));
            }
            let more = before.inexact.into_iter().filter(|pattern| !holds.inexact.contains(pattern));
            let more: Vec<_> = more.collect();
            holds.inexact.extend(more);
        }
        let (mut scanned, mut found) = (scanned.into_iter(), holds.values.into_iter());
        let mut values = Vec::with_capacity(asked.len());
        for pattern in asked {
            let of_it = match pattern.as_topic() {
                Some(topic) => match found.next().flatten() {
                    Some(json) => vec![Self::read(&topic, &json)?],
                    None => Vec::new(),
                },
                None => scanned.next().unwrap_or_default(),
            };
            values.push((pattern.clone(), of_it));
        }
        let Place { epoch, head: at } = holds.place;
        Ok(Answer { epoch, since, at, inexact: holds.inexact, values })
    }

    async fn holds(&self, topics: &[Topic]) -> Result<scripts::Holds, RedisError> {
        let topics: Vec<&[u8]> = topics.iter().map(|topic| topic.as_str().as_bytes()).collect();
        let found = self.link.run(&scripts::VALUES, &[self.keys.meta()], &topics).await?;
        scripts::holds(found)?.ok_or(RedisError::Moved(None))
    }

    /// All values of a pattern, by topic. A scan may show one twice: the later one is taken.
    async fn scan(&self, pattern: &TopicPattern, state: &str) -> Result<Vec<Arc<Encoded>>, RedisError> {
        let mut all: BTreeMap<Topic, Arc<Encoded>> = BTreeMap::new();
        let (glob, mut step) = (glob(pattern), "0".to_owned());
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(state).arg(&step).arg("MATCH").arg(&glob).arg("COUNT").arg(STEP_FIELDS);
            let (next, fields): Step = self.link.call(&scan, Duration::ZERO).await?;
            for (field, json) in &fields {
                let Some(topic) = meant(pattern, field) else { continue };
                let value = Self::read(&topic, json)?;
                if all.get(&topic).is_none_or(|known| known.position() <= value.position()) {
                    all.insert(topic, value);
                }
            }
            if next == "0" {
                return Ok(all.into_values().collect());
            }
            step = next;
        }
    }

    fn read(topic: &Topic, json: &[u8]) -> Result<Arc<Encoded>, RedisError> {
        let named = |why: String| {
            RedisError::foreign(&format!("the value of {topic} in Redis cannot be read: {why}"))
        };
        let value = Encoded::read(json).map_err(|error| named(error.to_string()))?;
        if value.topic() != topic {
            return Err(named(format!("it is that of {}", value.topic())));
        }
        Ok(Arc::new(value))
    }
}
