//! What to listen to in Redis for which topics.
//!
//! Globs are wider than patterns: a star of Redis goes over slashes, too. So a glob only chooses what comes; what is
//! handed out is decided by the pattern itself.

use walcast_wire::{Topic, TopicPattern};

/// The channels and globs that tell of some topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    topics: Vec<TopicPattern>,
    /// For SUBSCRIBE, as they are.
    pub(crate) channels: Vec<String>,
    /// For PSUBSCRIBE.
    pub(crate) globs: Vec<String>,
    /// The key that says how far the log goes.
    pub(crate) meta: String,
}

impl Names {
    pub(crate) fn new(source: &str, topics: Vec<TopicPattern>) -> Self {
        let base = format!("walcast:{{{source}}}:");
        let (mut channels, mut globs) = (Vec::new(), Vec::new());
        for (number, pattern) in topics.iter().enumerate() {
            // What two of them ask for, Redis would tell twice.
            let covered = |(other, by): (usize, &TopicPattern)| {
                other != number && by.covers(pattern) && (other < number || !pattern.covers(by))
            };
            if topics.iter().enumerate().any(covered) {
                continue;
            }
            match pattern.as_topic() {
                Some(topic) => channels.push(format!("{base}{topic}")),
                None => globs.push(format!("{}{}", escaped(&base), glob(pattern.as_str()))),
            }
        }
        let meta = format!("{base}meta");
        Self { topics, channels, globs, meta }
    }

    /// Whether this topic was asked for.
    pub(crate) fn want(&self, topic: &Topic) -> bool {
        self.topics.iter().any(|pattern| pattern.matches(topic))
    }

    pub(crate) fn topics(&self) -> &[TopicPattern] {
        &self.topics
    }
}

/// A glob for all that a pattern matches, and more. It has one star: with many of them a server may take long over one
/// name, and it does so for each message.
fn glob(pattern: &str) -> String {
    let Some((start, rest)) = pattern.split_once('*') else { return escaped(pattern) };
    let end = rest.rsplit_once('*').map_or(rest, |(_, end)| end);
    format!("{}*{}", escaped(start), escaped(end))
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(topics: &[&str]) -> Names {
        Names::new("orders", topics.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn topics_are_channels_and_patterns_are_globs() {
        let check = |topic: &str, channels: &[&str], globs: &[&str]| {
            let names = names(&[topic]);
            assert_eq!(
                (names.channels, names.globs),
                (
                    channels.iter().map(|text| (*text).to_owned()).collect(),
                    globs.iter().map(|text| (*text).to_owned()).collect(),
                )
            );
        };
        check("vm/host-[1]", &["walcast:{orders}:vm/host-[1]"], &[]);
        check("vm/*", &[], &["walcast:{orders}:vm/*"]);
        check("**", &[], &["walcast:{orders}:*"]);
        check("vm/**", &[], &["walcast:{orders}:vm/*"]);
        check("vm/*/cpu/*/load", &[], &["walcast:{orders}:vm/*/load"]);
        check(r"a[b]\c^-/*", &[], &[r"walcast:{orders}:a\[b\]\\c\^\-/*"]);
        assert_eq!(Names::new("a*", vec!["*".parse().unwrap()]).globs, [r"walcast:{a\*}:*"]);
        assert_eq!(names(&["a"]).meta, "walcast:{orders}:meta");
    }

    #[test]
    fn what_others_ask_for_is_not_asked_for_again() {
        let names = names(&["vm/a", "vm/*", "vm/*", "jobs", "jobs"]);
        assert_eq!(names.globs, ["walcast:{orders}:vm/*"]);
        assert_eq!(names.channels, ["walcast:{orders}:jobs"]);
    }

    #[test]
    fn a_pattern_decides_and_not_its_glob() {
        let names = names(&["vm/*", "a/*/z"]);
        for (topic, expected) in [("vm/a", true), ("vm/a/b", false), ("a/b/z", true), ("a/b/c/z", false)] {
            assert_eq!(names.want(&Topic::new(topic).unwrap()), expected, "{topic}");
        }
    }
}
