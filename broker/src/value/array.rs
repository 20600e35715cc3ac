//! The text form of Postgres arrays to nested JSON arrays.
//!
//! `{1,NULL,"a \"b\""}`, `{{1,2},{3,4}}`, `[0:1]={1,2}`: elements are written by their own kind, quoted
//! ones after their escapes are undone. Reads forward only, without recursion over the text.

use super::{ValueKind, write_json};

/// Postgres has no deeper arrays (MAXDIM); deeper text is not an array's.
const DEPTH_MAX: usize = 6;

/// Appends the array as JSON; `false`, and nothing appended, if `text` is not an array's text form.
pub(super) fn write(element: &ValueKind, delimiter: char, text: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let delimiter = u8::try_from(delimiter).unwrap_or(b'{');
    let written = !matches!(delimiter, b'{' | b'}' | b'"' | b'\\')
        && skip_bounds(text).is_some_and(|body| write_body(element, delimiter, body, out).is_some());
    if !written {
        out.truncate(start);
    }
    written
}

/// Drops `[l:u][l:u]…=`, which stands before an array whose lower bounds are not all 1.
fn skip_bounds(text: &[u8]) -> Option<&[u8]> {
    if text.first() != Some(&b'[') {
        return Some(text);
    }
    let at = text.iter().position(|byte| *byte == b'=')?;
    let (bounds, body) = text.split_at(at);
    bounds.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'-' | b':' | b'[' | b']')).then(|| &body[1..])
}

fn write_body(element: &ValueKind, delimiter: u8, mut rest: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut depth = 0;
    let mut unescaped = Vec::new();
    loop {
        let (first, behind) = rest.split_first()?;
        match first {
            b'{' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return None;
                }
                out.push(b'[');
                rest = behind;
                if rest.first() != Some(&b'}') {
                    continue;
                }
            }
            _ if depth == 0 => return None,
            b'"' => rest = write_quoted(element, behind, &mut unescaped, out)?,
            _ => rest = write_bare(element, delimiter, rest, out)?,
        }
        // Behind an element or a list: the lists that end here, then the next element or the end.
        loop {
            let (first, behind) = rest.split_first()?;
            rest = behind;
            if *first == b'}' {
                out.push(b']');
                depth -= 1;
                if depth == 0 {
                    return rest.is_empty().then_some(());
                }
            } else if *first == delimiter {
                out.push(b',');
                break;
            } else {
                return None;
            }
        }
    }
}

/// Writes the element whose opening quote was read; returns what is behind its closing one.
fn write_quoted<'a>(
    element: &ValueKind,
    text: &'a [u8],
    unescaped: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Option<&'a [u8]> {
    let special = |byte: &u8| matches!(byte, b'"' | b'\\');
    let mut at = text.iter().position(special)?;
    if text[at] == b'"' {
        write_json(element, &text[..at], out);
        return Some(&text[at + 1..]);
    }
    unescaped.clear();
    let mut rest = text;
    loop {
        unescaped.extend_from_slice(&rest[..at]);
        let (first, behind) = rest[at..].split_first()?;
        if *first == b'"' {
            write_json(element, unescaped, out);
            return Some(behind);
        }
        let (escaped, behind) = behind.split_first()?;
        unescaped.push(*escaped);
        rest = behind;
        at = rest.iter().position(special)?;
    }
}

/// Writes an element without quotes, which cannot be empty; returns what is behind it.
fn write_bare<'a>(element: &ValueKind, delimiter: u8, text: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let end =
        text.iter().position(|byte| *byte == delimiter || matches!(byte, b'{' | b'}' | b'"' | b'\\'))?;
    let (bare, rest) = text.split_at(end);
    match bare {
        [] => return None,
        b"NULL" => out.extend_from_slice(b"null"),
        _ => write_json(element, bare, out),
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays() {
        let check = |element: ValueKind, text: &str, expected: &str| {
            let mut out = Vec::new();
            write_json(&ValueKind::Array(Box::new(element), ','), text.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{text}");
        };
        use ValueKind::{Integer, Json, Text, TimestampTz};
        check(Integer, "{}", "[]");
        check(Integer, "{1,NULL,3}", "[1,null,3]");
        check(Integer, "{{1,2},{3,4}}", "[[1,2],[3,4]]");
        check(Integer, "[0:2]={1,2,3}", "[1,2,3]");
        check(Integer, "[-1:0][2:3]={{1,2},{3,4}}", "[[1,2],[3,4]]");
        check(Text, r#"{a,"NULL","","b c","q\"\\"}"#, r#"["a","NULL","","b c","q\"\\"]"#);
        check(Text, r#"{"\"\""}"#, r#"["\"\""]"#);
        check(Json, r#"{"{\"a\": [1, 2]}",NULL,1}"#, r#"[{"a": [1, 2]},null,1]"#);
        check(TimestampTz, r#"{"2026-01-31 12:00:00+00"}"#, r#"["2026-01-31T12:00:00Z"]"#);
        let nested = ValueKind::Array(Box::new(Integer), ',');
        check(nested, r#"{"{1,2}","{}"}"#, "[[1,2],[]]");
        // Not arrays: the text itself.
        check(Integer, "", r#""""#);
        check(Integer, "1,2", r#""1,2""#);
        check(Integer, "{1,2", r#""{1,2""#);
        check(Integer, "{1,2}}", r#""{1,2}}""#);
        check(Integer, "{1,,2}", r#""{1,,2}""#);
        check(Integer, "{1,}", r#""{1,}""#);
        check(Text, "{\"a\"b}", r#""{\"a\"b}""#);
        check(Text, "{\"a\\", r#""{\"a\\""#);
        check(Integer, "[0:1]", r#""[0:1]""#);
        check(Integer, "{{{{{{{1}}}}}}}", r#""{{{{{{{1}}}}}}}""#);
    }

    #[test]
    fn boxes_stand_between_semicolons() {
        let mut out = Vec::new();
        let boxes = ValueKind::of_builtin(1020).unwrap();
        write_json(&boxes, b"{(1,1),(0,0);(2,2),(1,1)}", &mut out);
        assert_eq!(out, br#"["(1,1),(0,0)","(2,2),(1,1)"]"#);
    }
}
