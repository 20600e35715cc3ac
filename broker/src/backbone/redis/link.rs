//! A connection that is made when it is needed, and made anew after it failed.
//!
//! It tries nothing twice: whether a call that was lost did its work is for the caller to find out.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, Script};
use tokio::time::Instant;

use super::dial::Connection;
use super::find::find;
use super::keys::Keys;
use super::target::{Target, Way};
use super::{Config, RedisError, suit};

/// How long an answer may take.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Between two looks at whether another server has taken the place of ours.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long that may hold up whoever asks.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// The way to the Redis that has the keys of one source.
#[derive(Debug)]
pub(super) struct Link {
    target: Target,
    /// A key of that source; all others are where it is.
    key: String,
    /// Whether Redis is looked at before it is used: whoever writes needs more of it.
    writes: bool,
    warned: AtomicBool,
    connection: Mutex<Option<Connection>>,
    /// When the server was last looked for.
    looked: Mutex<Instant>,
}

impl Link {
    pub(super) fn new(config: &Config, source: &str, writes: bool) -> Result<Self, RedisError> {
        let (target, key) = (config.target()?, Keys::new(source).meta());
        let (connection, looked) = (Mutex::new(None), Mutex::new(Instant::now()));
        Ok(Self { target, key, writes, warned: AtomicBool::new(false), connection, looked })
    }

    /// Connects, if that has not been done.
    pub(super) async fn connection(&self) -> Result<Connection, RedisError> {
        let known = self.connection.lock().clone();
        if let Some(connection) = known {
            return Ok(connection);
        }
        *self.looked.lock() = Instant::now();
        let connection = find(&self.target, &self.key).await?;
        if self.writes {
            suit::examine(&connection, &self.warned).await?;
        }
        *self.connection.lock() = Some(connection.clone());
        Ok(connection)
    }

    /// Asks the sentinels, from time to time, whether the server is still theirs: a master that was cut off from them
    /// answers as before, and says nothing of the one that took its place. For those who do not lead; who does is
    /// refused there. Where nobody knows better all stays as it is.
    pub(super) async fn look_again(&self) {
        let known = self.connection.lock().as_ref().map(|connection| Arc::clone(&connection.server));
        let (Some(known), Way::Sentinel { .. }) = (known, &self.target.way) else { return };
        if self.looked.lock().elapsed() < LOOK_AGAIN {
            return;
        }
        // Before it is done, so that one who has no time for it is held up once.
        *self.looked.lock() = Instant::now();
        if let Ok(Ok(found)) = tokio::time::timeout(LOOK_MAX, find(&self.target, &self.key)).await
            && found.server.host != known.host
        {
            *self.connection.lock() = Some(found);
        }
    }

    /// Sends a command; it may take `longer` than an answer does.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        command: &Cmd,
        longer: Duration,
    ) -> Result<T, RedisError> {
        let mut connection = self.connection().await?;
        connection.commands.set_response_timeout(ANSWER_MAX + longer);
        let answer = command.query_async(&mut connection.commands).await;
        answer.map_err(|error| self.failed(&connection, &error))
    }

    /// Runs a script.
    pub(super) async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[&[u8]],
    ) -> Result<T, RedisError> {
        let mut connection = self.connection().await?;
        connection.commands.set_response_timeout(ANSWER_MAX);
        let mut call = script.prepare_invoke();
        for key in keys {
            call.key(key);
        }
        for argument in arguments {
            call.arg(*argument);
        }
        let answer = call.invoke_async(&mut connection.commands).await;
        answer.map_err(|error| self.failed(&connection, &error))
    }

    /// The next connection may lead to another server.
    fn failed(&self, connection: &Connection, error: &redis::RedisError) -> RedisError {
        if RedisError::elsewhere(error) {
            *self.connection.lock() = None;
        }
        RedisError::of(&connection.server, error)
    }
}
