//! The scripts that Redis runs, and what they answer.

use std::sync::LazyLock;

use redis::Script;

use super::keys::{read_epoch, read_fence, read_wide};
use super::{Fence, Place, RedisError};

/// Appends a page.
pub(super) static APPEND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/append.lua")));
/// Raises the fence.
pub(super) static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/claim.lua")));

/// What a script answers: a word, and what belongs to it.
pub(super) type Said = Vec<Option<String>>;

/// What an answer means to the leader whose fence is `ours`: done, with the place where it says one.
pub(super) fn done(said: &Said, ours: Fence) -> Result<Option<Place>, RedisError> {
    let word = |at: usize| said.get(at).and_then(Option::as_deref);
    match word(0) {
        Some("ok") => place(word(1), word(2)),
        Some("nothing") => Ok(None),
        Some("moved") => Err(RedisError::Moved(place(word(1), word(2))?)),
        Some("fenced") => {
            let text = word(1).unwrap_or_default();
            let theirs = read_fence(text)
                .ok_or_else(|| RedisError::foreign(&format!("the fence in Redis is {text:?}")))?;
            Err(RedisError::Fenced { ours, theirs })
        }
        Some("version") => Err(version(word(1).unwrap_or_default())),
        Some("again") => {
            Err(RedisError::Away("values were lost on their way to Redis; they are sent again".into()))
        }
        Some("torn") => Err(RedisError::foreign(&format!(
            "the log in Redis has an entry {} beyond its head",
            word(1).unwrap_or_default()
        ))),
        _ => Err(RedisError::fault(&format!("a script answered {said:?}"))),
    }
}

/// The place that two fields of the meta key say; none if they are not there.
pub(super) fn place(epoch: Option<&str>, head: Option<&str>) -> Result<Option<Place>, RedisError> {
    let (Some(epoch), Some(head)) = (epoch, head) else { return Ok(None) };
    match (read_epoch(epoch), read_wide(head)) {
        (Some(epoch), Some(head)) => Ok(Some(Place { epoch, head })),
        _ => Err(RedisError::foreign(&format!("the place in Redis is epoch {epoch:?}, head {head:?}"))),
    }
}

/// The stream is of a version that we do not know.
pub(super) fn version(found: &str) -> RedisError {
    RedisError::foreign(&format!(
        "the stream in Redis is of version {found:?}, and this broker knows {}",
        super::VERSION
    ))
}
