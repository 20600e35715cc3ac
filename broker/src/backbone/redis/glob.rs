//! A pattern of topics as a glob of Redis, for a scan that leaves out most of what is not meant.

use walcast_wire::{Topic, TopicPattern};

/// A glob that matches every topic of `pattern`, and more.
///
/// It has one star at most: with many of them, Redis may take minutes over a single name, and clients choose the
/// patterns.
pub(super) fn glob(pattern: &TopicPattern) -> String {
    let text = pattern.as_str();
    let (Some(first), Some(last)) = (text.find('*'), text.rfind('*')) else { return escaped(text) };
    let (start, end) = (text.get(..first).unwrap_or_default(), text.get(last + 1..).unwrap_or_default());
    format!("{}*{}", escaped(start), escaped(end))
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '[' | ']' | '\\' | '^' | '-') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The topic that a field of the values names, if it is one that was asked for.
pub(super) fn meant(pattern: &TopicPattern, field: &[u8]) -> Option<Topic> {
    let topic = Topic::new(std::str::from_utf8(field).ok()?).ok()?;
    pattern.matches(&topic).then_some(topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        let check = |pattern: &str, expected: &str| {
            assert_eq!(glob(&TopicPattern::new(pattern).unwrap()), expected);
        };
        check("vm/*", "vm/*");
        check("vm/**", "vm/*");
        check("**", "*");
        check("*/größe/**", "*");
        check("vm/*/cpu/*/load", "vm/*/load");
        check(r"a[b]\c^-/*", r"a\[b\]\\c\^\-/*");
    }

    #[test]
    fn a_field_is_taken_by_its_pattern_alone() {
        let pattern = TopicPattern::new("vm/*").unwrap();
        assert_eq!(meant(&pattern, b"vm/a"), Some(Topic::new("vm/a").unwrap()));
        assert_eq!(meant(&pattern, b"vm/a/b"), None);
        assert_eq!(meant(&pattern, b""), None);
        assert_eq!(meant(&pattern, b"\xff"), None);
    }
}
