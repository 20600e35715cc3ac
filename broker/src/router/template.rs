//! Topic templates: `vm/{hostname}` and a row make `vm/host-17`.
//!
//! Every value becomes one piece of a segment, percent-encoded where topics forbid a character, so that a
//! value can never add a level to a topic or take one away.

use std::sync::Arc;

use walcast_wire::topic::TOPIC_BYTES_MAX;
use walcast_wire::{Topic, TopicPattern, encode_segment};

use super::notice::Reason;
use super::row::{RowView, Seen};

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    pieces: Vec<Piece>,
    columns: Vec<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(Box<str>),
    /// Index into [`Template::columns`].
    Column(usize),
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// Cause and remedy.
    pub(super) fn parse(text: &str) -> Result<Self, (String, String)> {
        let syntax =
            |cause: &str| (cause.to_owned(), "write a column's name in braces: vm/{hostname}".into());
        let (mut pieces, mut columns) = (Vec::new(), Vec::<Arc<str>>::new());
        let mut rest = text;
        while !rest.is_empty() {
            let (literal, tail) = rest.split_at(rest.find(['{', '}']).unwrap_or(rest.len()));
            if !literal.is_empty() {
                pieces.push(Piece::Literal(literal.into()));
            }
            rest = match tail.strip_prefix('{') {
                Some(open) => {
                    let (name, after) = open.split_once('}').ok_or_else(|| syntax("a `{` has no `}`"))?;
                    if name.is_empty() || name.contains('{') || name.trim() != name {
                        return Err(syntax(&format!("`{{{name}}}` is no placeholder")));
                    }
                    let known = columns.iter().position(|column| &**column == name);
                    pieces.push(Piece::Column(known.unwrap_or(columns.len())));
                    if known.is_none() {
                        columns.push(name.into());
                    }
                    after
                }
                None if tail.is_empty() => tail,
                None => return Err(syntax("a `}` has no `{`")),
            };
        }
        let template = Self { pieces, columns };
        // One harmless character per value: what is wrong with this is wrong with every topic.
        match Topic::new(&template.fill(|_| Ok("x".into())).unwrap_or_default()) {
            Ok(_) => Ok(template),
            Err(cause) => Err((
                format!("`{text}` never makes a topic: {cause}"),
                "correct the text outside the braces".into(),
            )),
        }
    }

    /// The columns it names, each once.
    pub(super) fn columns(&self) -> &[Arc<str>] {
        &self.columns
    }

    /// Names every topic that a row can have, and perhaps others: where a segment holds a value, any will do.
    pub(super) fn pattern(&self) -> Option<TopicPattern> {
        // No topic holds a control character.
        const VALUE: &str = "\0";
        let text = self.fill(|_| Ok(VALUE.into())).ok()?;
        let segment = |text| if str::contains(text, VALUE) { "*" } else { text };
        TopicPattern::new(&text.split('/').map(segment).collect::<Vec<_>>().join("/")).ok()
    }

    /// The topic, if it is the same for every row.
    pub(super) fn fixed(&self) -> Option<Topic> {
        if !self.columns.is_empty() {
            return None;
        }
        Topic::new(&self.fill(|_| Err(Reason::Absent)).ok()?).ok()
    }

    /// Two placeholders with no `/` between them: then different values can make the same topic, as
    /// `{a}-{b}` does of `x-y`, `z` and `x`, `y-z`.
    pub(super) fn ambiguous(&self) -> bool {
        let mut open = false;
        self.pieces.iter().any(|piece| match piece {
            Piece::Literal(text) => {
                open &= !text.contains('/');
                false
            }
            Piece::Column(_) => std::mem::replace(&mut open, true),
        })
    }

    /// The topic of a row. `indexes` says where each of [`Template::columns`] is in it.
    ///
    /// # Errors
    /// Why the row has none.
    pub(super) fn topic(&self, indexes: &[Option<usize>], row: &RowView<'_>) -> Result<Topic, Reason> {
        let text = self.fill(|column| {
            let index = indexes.get(column).copied().flatten().ok_or(Reason::Absent)?;
            match row.cell(index) {
                Seen::Text([]) => Err(Reason::Empty),
                // The encoding never shortens, so nothing longer can fit, and is not worth encoding.
                Seen::Text(text) if text.len() > TOPIC_BYTES_MAX => Err(Reason::TooLong),
                Seen::Text(text) => {
                    Ok(encode_segment(std::str::from_utf8(text).map_err(|_| Reason::Invalid)?))
                }
                Seen::Null => Err(Reason::Null),
                Seen::Unchanged => Err(Reason::Unchanged),
                Seen::Omitted => Err(Reason::Omitted),
                Seen::NotSent => Err(Reason::NotSent),
                Seen::Absent => Err(Reason::Absent),
            }
        })?;
        if text.len() > TOPIC_BYTES_MAX {
            return Err(Reason::TooLong);
        }
        Topic::new(&text).map_err(|_| Reason::Invalid)
    }

    fn fill<'a>(
        &self,
        mut value: impl FnMut(usize) -> Result<std::borrow::Cow<'a, str>, Reason>,
    ) -> Result<String, Reason> {
        let mut text = String::with_capacity(64);
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Column(column) => text.push_str(&value(*column)?),
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_parse() {
        let check = |text: &str, expected: Result<&[&str], &str>| match (Template::parse(text), expected) {
            (Ok(template), Ok(columns)) => {
                assert_eq!(template.columns.iter().map(|c| &**c).collect::<Vec<_>>(), columns, "{text}");
            }
            (Err((cause, _)), Err(part)) => assert!(cause.contains(part), "{text}: {cause}"),
            (got, _) => panic!("{text}: {got:?}"),
        };
        check("vm/{hostname}", Ok(&["hostname"]));
        check("{a}", Ok(&["a"]));
        check("{region}/{id}-{region}", Ok(&["region", "id"]));
        check("vms", Ok(&[]));
        check("größe/{Größe}", Ok(&["Größe"]));
        check("vm/{", Err("no `}`"));
        check("vm/{}", Err("`{}`"));
        check("vm/{ a }", Err("`{ a }`"));
        check("vm/{{a}}", Err("`{{a}`"));
        check("vm/a}", Err("no `{`"));
        check("", Err("at least one"));
        check("vm//{a}", Err("empty segment"));
        check("/{a}", Err("empty segment"));
        check("vm /{a}", Err("percent-encode"));
        check("vm/*", Err("percent-encode"));
        check("../{a}", Err("`..`"));
        check("vm%2{a}", Err("hexadecimal"));
        check(&"x/".repeat(128), Err("255"));
    }

    #[test]
    fn patterns_name_all_topics() {
        let check = |text: &str, expected: &str| {
            assert_eq!(Template::parse(text).unwrap().pattern().unwrap().as_str(), expected);
        };
        check("vms", "vms");
        check("vm/{a}", "vm/*");
        check("{a}/x-{b}/y", "*/*/y");
    }

    #[test]
    fn ambiguity() {
        let check = |text: &str, expected: bool| {
            assert_eq!(Template::parse(text).unwrap().ambiguous(), expected, "{text}");
        };
        check("{a}", false);
        check("{a}/{b}", false);
        check("{a}/x-{b}", false);
        check("{a}{b}", true);
        check("{a}-{b}", true);
        check("{a}/{b}-{c}", true);
        check("vms", false);
    }
}
