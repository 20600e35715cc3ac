//! The scripts that Redis runs, and what they answer.

use std::sync::LazyLock;

use redis::Script;

use super::keys::{read_epoch, read_fence, read_wide};
use super::{Place, RedisError, VERSION};
use crate::event::Fence;
use walcast_wire::TopicPattern;

/// Appends a page.
pub(super) static APPEND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/append.lua")));
/// Raises the fence.
pub(super) static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/claim.lua")));
/// Writes some of the values that are to take the place of all.
pub(super) static PUT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/put.lua")));
/// Puts them there.
pub(super) static REPLACE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/replace.lua")));
/// Reads values, and what holds of them.
pub(super) static VALUES: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/values.lua")));
/// Says who waits at a node.
pub(super) static ROLL: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/roll.lua")));
/// Reads what nodes have said of that.
pub(super) static ROLLS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/rolls.lua")));

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
        "the stream in Redis is of version {found:?}, and this broker knows {VERSION}"
    ))
}

type Word = Option<String>;
/// What [`VALUES`] answers.
pub(super) type Found = (Word, Word, Word, Word, Word, Word, Vec<Option<Vec<u8>>>);

/// How far the log goes, and what holds of its values.
#[derive(Debug)]
pub(super) struct Holds {
    pub(super) place: Place,
    pub(super) fence: Option<Fence>,
    /// The values are all there.
    pub(super) whole: bool,
    /// Those that do not hold.
    pub(super) inexact: Vec<TopicPattern>,
    /// Of the topics that were asked for, in order.
    pub(super) values: Vec<Option<Vec<u8>>>,
}

/// Reads an answer of [`VALUES`]; nothing, where there is no log.
pub(super) fn holds(found: Found) -> Result<Option<Holds>, RedisError> {
    let (known, fence, epoch, head, inexact, whole, values) = found;
    match known.as_deref() {
        None => return Ok(None),
        Some(VERSION) => {}
        Some(other) => return Err(version(other)),
    }
    let Some(place) = place(epoch.as_deref(), head.as_deref())? else { return Ok(None) };
    let whole = whole.is_some() && whole == epoch;
    // Whatever cannot be read marks nothing as exact.
    let marked = inexact.filter(|_| whole).and_then(|text| serde_json::from_str(&text).ok());
    let everything = || TopicPattern::new("**").into_iter().collect();
    let inexact = marked.unwrap_or_else(everything);
    Ok(Some(Holds { place, fence: fence.as_deref().and_then(read_fence), whole, inexact, values }))
}
