//! Paths of endpoints: literal segments, and names in braces that stand for one segment each.

/// A path of a configured endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(Box<str>),
    Name(Box<str>),
}

impl Path {
    /// Parses a path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix('/').ok_or("it does not begin with `/`")?;
        if rest == "v1" || rest.starts_with("v1/") {
            return Err("what begins with `/v1` is walcast's own".into());
        }
        let segments = rest.split('/').map(segment).collect::<Result<Vec<_>, _>>()?;
        let path = Self { segments };
        let mut names: Vec<_> = path.names().collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("`{{{}}}` stands twice", pair[0])),
            None => Ok(path),
        }
    }

    /// The names in braces, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Name(name) => Some(&**name),
            Segment::Literal(_) => None,
        })
    }

    /// The segments that stand for the names, in their order and as they were sent, if `path` is one of these.
    pub(super) fn values<'p>(&self, path: &'p str) -> Option<Vec<&'p str>> {
        let mut values = Vec::new();
        let mut segments = path.strip_prefix('/')?.split('/');
        for own in &self.segments {
            let segment = segments.next()?;
            match own {
                Segment::Literal(text) if **text == *segment => {}
                Segment::Name(_) if !segment.is_empty() => values.push(segment),
                _ => return None,
            }
        }
        segments.next().is_none().then_some(values)
    }

    /// Whether some path would be one of both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let meet = |(one, other): (&Segment, &Segment)| match (one, other) {
            (Segment::Literal(one), Segment::Literal(other)) => one == other,
            (Segment::Literal(text), Segment::Name(_)) | (Segment::Name(_), Segment::Literal(text)) => {
                !text.is_empty()
            }
            (Segment::Name(_), Segment::Name(_)) => true,
        };
        self.segments.len() == other.segments.len() && self.segments.iter().zip(&other.segments).all(meet)
    }
}

fn segment(text: &str) -> Result<Segment, String> {
    if let Some(name) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
        return match !name.is_empty() && name.chars().all(fits) {
            true => Ok(Segment::Name(name.into())),
            false => Err(format!("`{{{name}}}` is no name: letters, digits and `_`")),
        };
    }
    // What a client sends is compared as it stands.
    let fits = |c: char| c.is_ascii_graphic() && !"{}?#\"<>\\^`|".contains(c);
    match text.chars().find(|c| !fits(*c)) {
        None => Ok(Segment::Literal(text.into())),
        Some('{' | '}') => Err(format!("`{text}`: braces stand for a whole segment")),
        Some(c) => Err(format!("{c:?} cannot stand in a path; percent-encode it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_parse() {
        let check = |text: &str, expected: Result<&[&str], &str>| match (Path::parse(text), expected) {
            (Ok(path), Ok(names)) => assert_eq!(path.names().collect::<Vec<_>>(), names, "{text}"),
            (Err(cause), Err(part)) => assert!(cause.contains(part), "{text}: {cause}"),
            (got, _) => panic!("{text}: {got:?}"),
        };
        check("/vm_startup", Ok(&[]));
        check("/", Ok(&[]));
        check("/vms/{hostname}/{slot}/", Ok(&["hostname", "slot"]));
        check("/v10/a", Ok(&[]));
        check("vm", Err("begin with `/`"));
        check("/v1", Err("walcast's own"));
        check("/v1/events", Err("walcast's own"));
        check("/vm/{a}/{a}", Err("`{a}` stands twice"));
        check("/vm-{a}", Err("whole segment"));
        check("/{a b}", Err("no name"));
        check("/{}", Err("no name"));
        check("/a?b", Err("'?'"));
        check("/ä", Err("percent-encode"));
    }

    #[test]
    fn paths_match() {
        let check = |path: &str, asked: &str, expected: Option<&[&str]>| {
            assert_eq!(Path::parse(path).unwrap().values(asked).as_deref(), expected, "{path} {asked}");
        };
        check("/vm_startup", "/vm_startup", Some(&[]));
        check("/vm_startup", "/vm_startup/", None);
        check("/vm_startup", "/vm_startup/a", None);
        check("/vm_startup", "/VM_startup", None);
        check("/vms/{a}/up", "/vms/h%201/up", Some(&["h%201"]));
        check("/vms/{a}/up", "/vms//up", None);
        check("/vms/{a}", "/vms", None);
        check("/", "/", Some(&[]));
    }

    #[test]
    fn paths_overlap() {
        let check = |one: &str, other: &str, expected: bool| {
            let (one, other) = (Path::parse(one).unwrap(), Path::parse(other).unwrap());
            assert_eq!(one.overlaps(&other), expected, "{one:?} {other:?}");
            assert_eq!(other.overlaps(&one), expected);
        };
        check("/a", "/a", true);
        check("/a", "/b", false);
        check("/a/{x}", "/a/b", true);
        check("/a/{x}", "/a/", false);
        check("/a/{x}", "/{y}/b", true);
        check("/a/{x}", "/a/b/c", false);
        check("/{x}/1", "/{y}/2", false);
    }
}
