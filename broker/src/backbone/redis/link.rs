//! A connection that is made when it is needed, and made anew after it failed.
//!
//! It tries nothing twice: whether a call that was lost did its work is for the caller to find out.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue, Script};

use super::target::{Connection, Target};
use super::{RedisError, suit};

/// How long an answer may take.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The way to one Redis.
#[derive(Debug)]
pub(super) struct Link {
    target: Target,
    /// Whether Redis is looked at before it is used: whoever writes needs more of it.
    writes: bool,
    warned: AtomicBool,
    connection: Mutex<Option<Connection>>,
}

impl Link {
    pub(super) fn new(target: Target, writes: bool) -> Self {
        Self { target, writes, warned: AtomicBool::new(false), connection: Mutex::new(None) }
    }

    /// Connects, if that has not been done.
    pub(super) async fn connection(&self) -> Result<Connection, RedisError> {
        let known = self.connection.lock().clone();
        if let Some(connection) = known {
            return Ok(connection);
        }
        let connection = self.target.connect().await?;
        if self.writes {
            suit::examine(&connection, &self.target.to_string(), &self.warned).await?;
        }
        *self.connection.lock() = Some(connection.clone());
        Ok(connection)
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
        answer.map_err(|error| self.failed(&error))
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
        answer.map_err(|error| self.failed(&error))
    }

    /// Whatever the server did not say itself came from a connection that is of no more use. Nor is one to a server
    /// that does not take writes any more: the next may lead to the one that does.
    fn failed(&self, error: &redis::RedisError) -> RedisError {
        let code = error.code().unwrap_or_default();
        if code.is_empty() || matches!(code, "READONLY" | "MASTERDOWN" | "LOADING") {
            *self.connection.lock() = None;
        }
        RedisError::of(&self.target.to_string(), error)
    }
}
