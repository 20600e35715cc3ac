//! Who waits at which node, as nodes tell each other.
//!
//! It is for people to look at. Nothing is delivered or kept back by it, so a node's word is not fenced: it stands for a
//! while and goes by itself, also where the node is killed.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::keys::Keys;
use super::link::Link;
use super::{Config, RedisError, scripts};
use crate::hub::roll::{Elsewhere, Roll, Told};

/// How long a node's word stands. The node says it again much sooner.
pub const STANDS: Duration = Duration::from_secs(10);

/// What one node says, for others to read.
#[derive(Debug, Serialize, Deserialize)]
struct Word<R> {
    node: String,
    #[serde(flatten)]
    roll: R,
}

/// The side of one node, under an id that no other process has.
#[derive(Debug)]
pub struct Book {
    link: Link,
    keys: Keys,
    id: String,
}

impl Book {
    /// Connects when it is first used.
    ///
    /// # Errors
    /// [`RedisError::Unsuitable`]: the URL is none.
    pub fn new(config: &Config, source: &str) -> Result<Self, RedisError> {
        let link = Link::new(config, source, false)?;
        Ok(Self { link, keys: Keys::new(source), id: Uuid::new_v4().simple().to_string() })
    }

    /// Says who waits at this node, which calls itself `node`; that stands for [`STANDS`]. Cancel safe.
    ///
    /// # Errors
    /// [`RedisError::Away`]: say it again after a pause. [`RedisError::Unsuitable`].
    pub async fn write(&self, node: &str, roll: &Roll) -> Result<(), RedisError> {
        self.link.look_again().await;
        // Plain data with string keys: serialising it cannot fail.
        let word = serde_json::to_vec(&Word { node: node.to_owned(), roll }).unwrap_or_default();
        let stands = STANDS.as_millis().to_string();
        let arguments =
            [self.keys.node("").into_bytes(), self.id.clone().into_bytes(), word, stands.into_bytes()];
        let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
        self.link.run(&scripts::ROLL, &[self.keys.nodes()], &arguments).await
    }

    /// What other nodes have said. Cancel safe.
    ///
    /// # Errors
    /// [`RedisError::Away`]: ask again after a pause. [`RedisError::Unsuitable`].
    pub async fn read(&self) -> Result<Elsewhere, RedisError> {
        let base = self.keys.node("");
        let arguments = [base.as_bytes(), self.id.as_bytes()];
        let found: Vec<(Vec<u8>, i64)> =
            self.link.run(&scripts::ROLLS, &[self.keys.nodes()], &arguments).await?;
        let mut elsewhere = Elsewhere::default();
        for (word, left_ms) in found {
            // A node of another version may say it otherwise.
            let Ok(Word { node, roll }) = serde_json::from_slice::<Word<Roll>>(&word) else {
                elsewhere.partial = true;
                continue;
            };
            let age = STANDS.saturating_sub(Duration::from_millis(left_ms.try_into().unwrap_or(0)));
            elsewhere.rolls.push(Told { node, age, roll });
        }
        elsewhere.rolls.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(elsewhere)
    }

    /// Nobody waits here any more. Cancel safe.
    ///
    /// # Errors
    /// [`RedisError::Away`], [`RedisError::Unsuitable`]: it goes by itself then, later.
    pub async fn leave(&self) -> Result<(), RedisError> {
        let (key, nodes) = (self.keys.node(&self.id), self.keys.nodes());
        let (): () = self.link.call(redis::cmd("UNLINK").arg(key), Duration::ZERO).await?;
        self.link.call(redis::cmd("SREM").arg(nodes).arg(&self.id), Duration::ZERO).await
    }
}
