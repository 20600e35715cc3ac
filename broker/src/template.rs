//! Topic templates: `vm/{hostname}` and a value for each name make `vm/host-17`.
//!
//! Every value becomes one piece of a segment, percent-encoded where topics forbid a character, so that a
//! value can never add a level to a topic or take one away.

use std::borrow::Cow;
use std::sync::Arc;

use walcast_wire::{Topic, TopicPattern};

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
    names: Vec<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(Box<str>),
    /// Index into [`Template::names`].
    Value(usize),
}

impl Template {
    /// Parses a template; `remedy` says what to write in braces.
    ///
    /// # Errors
    /// Cause and remedy.
    pub fn parse(text: &str, remedy: &str) -> Result<Self, (String, String)> {
        let syntax = |cause: &str| (cause.to_owned(), remedy.to_owned());
        let (mut pieces, mut names) = (Vec::new(), Vec::<Arc<str>>::new());
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
                    let known = names.iter().position(|known| &**known == name);
                    pieces.push(Piece::Value(known.unwrap_or(names.len())));
                    if known.is_none() {
                        names.push(name.into());
                    }
                    after
                }
                None if tail.is_empty() => tail,
                None => return Err(syntax("a `}` has no `{`")),
            };
        }
        let template = Self { pieces, names };
        // One harmless character per value: what is wrong with this is wrong with every topic.
        match Topic::new(&template.fill(|_| Ok::<_, ()>("x".into())).unwrap_or_default()) {
            Ok(_) => Ok(template),
            Err(cause) => Err((
                format!("`{text}` never makes a topic: {cause}"),
                "correct the text outside the braces".into(),
            )),
        }
    }

    /// What it names, each once.
    #[must_use]
    pub fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// Names every topic that values can make, and perhaps others: where a segment holds a value, any will do.
    #[must_use]
    pub fn pattern(&self) -> Option<TopicPattern> {
        // No topic holds a control character.
        const VALUE: &str = "\0";
        let text = self.fill(|_| Ok::<_, ()>(VALUE.into())).ok()?;
        let segment = |text| if str::contains(text, VALUE) { "*" } else { text };
        TopicPattern::new(&text.split('/').map(segment).collect::<Vec<_>>().join("/")).ok()
    }

    /// The topic, if it is the same for all values.
    #[must_use]
    pub fn fixed(&self) -> Option<Topic> {
        Topic::new(&self.fill(|_| Err(())).ok()?).ok()
    }

    /// Two placeholders with no `/` between them: then different values can make the same topic, as
    /// `{a}-{b}` does of `x-y`, `z` and `x`, `y-z`.
    #[must_use]
    pub fn ambiguous(&self) -> bool {
        let mut open = false;
        self.pieces.iter().any(|piece| match piece {
            Piece::Literal(text) => {
                open &= !text.contains('/');
                false
            }
            Piece::Value(_) => std::mem::replace(&mut open, true),
        })
    }

    /// The text of a topic: `value` is asked for what stands for each of [`Self::names`], in the form of (a part of)
    /// a segment.
    ///
    /// # Errors
    /// The first of `value`.
    pub fn fill<'a, E>(&self, mut value: impl FnMut(usize) -> Result<Cow<'a, str>, E>) -> Result<String, E> {
        let mut text = String::with_capacity(64);
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Value(name) => text.push_str(&value(*name)?),
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMEDY: &str = "write vm/{hostname}";

    #[test]
    fn templates_parse() {
        let check =
            |text: &str, expected: Result<&[&str], &str>| match (Template::parse(text, REMEDY), expected) {
                (Ok(template), Ok(names)) => {
                    assert_eq!(
                        template.names.iter().map(|name| &**name).collect::<Vec<_>>(),
                        names,
                        "{text}"
                    );
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
            assert_eq!(Template::parse(text, REMEDY).unwrap().pattern().unwrap().as_str(), expected);
        };
        check("vms", "vms");
        check("vm/{a}", "vm/*");
        check("{a}/x-{b}/y", "*/*/y");
    }

    #[test]
    fn ambiguity() {
        let check = |text: &str, expected: bool| {
            assert_eq!(Template::parse(text, REMEDY).unwrap().ambiguous(), expected, "{text}");
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
