//! Postgres text values to JSON, by type. Pure, and on the hot path: bytes go from the value straight to
//! the output, never through a tree.
//!
//! Whatever the input, the output is one valid JSON value without a raw line break, so that it can stand
//! in a line of server-sent events. What does not look like its type becomes a string, never an error: a
//! value that we cannot read is still the application's value.

mod array;

use serde::de::IgnoredAny;

/// How a column's text form becomes JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// `t` / `f` → `true` / `false`.
    Bool,
    /// A number, or a string beyond ±(2^53 − 1), which JavaScript cannot hold.
    Integer,
    /// A number; `NaN` and the infinities are strings.
    Float,
    /// `json`, `jsonb`: embedded as it is.
    Json,
    /// `timestamp` → `2026-01-31T12:00:00.123456`; infinity, BC and years above 9999 stay as they are.
    Timestamp,
    /// `timestamptz`, rendered by a session in UTC → `…Z`; else as `Timestamp`.
    TimestampTz,
    /// `bytea` in hex output form → base64.
    Bytea,
    /// An array of the element kind, whose text separates elements by this character. Lower bounds other
    /// than 1 are not kept.
    Array(Box<ValueKind>, char),
    /// Everything else, `numeric` included: a string.
    Text,
}

/// Types that come with Postgres and the arrays of them, by oid. Oids below 10,000 are fixed for ever; of
/// the less common types the catalog tells.
#[rustfmt::skip]
const BUILTIN: &[(u32, u32)] = &[
    (16, 1000), (17, 1001), (18, 1002), (19, 1003), (20, 1016), (21, 1005), (23, 1007), (25, 1009),
    (26, 1028), (114, 199), (142, 143), (600, 1017), (603, 1020), (650, 651), (700, 1021), (701, 1022),
    (790, 791), (829, 1040), (869, 1041), (1042, 1014), (1043, 1015), (1082, 1182), (1083, 1183),
    (1114, 1115), (1184, 1185), (1186, 1187), (1266, 1270), (1560, 1561), (1562, 1563), (1700, 1231),
    (2950, 2951), (3614, 3643), (3802, 3807),
];
/// The one type whose arrays do not use commas: `box`.
const BOX: u32 = 603;

impl ValueKind {
    /// The kind of a common type that comes with Postgres; `None` for an oid that the catalog has to explain.
    #[must_use]
    pub fn of_builtin(oid: u32) -> Option<Self> {
        let (scalar, array) = BUILTIN.iter().find(|(scalar, array)| oid == *scalar || oid == *array)?;
        let kind = match scalar {
            16 => Self::Bool,
            20 | 21 | 23 => Self::Integer,
            700 | 701 => Self::Float,
            114 | 3802 => Self::Json,
            1114 => Self::Timestamp,
            1184 => Self::TimestampTz,
            17 => Self::Bytea,
            _ => Self::Text,
        };
        Some(if oid == *array {
            Self::Array(Box::new(kind), if *scalar == BOX { ';' } else { ',' })
        } else {
            kind
        })
    }
}

/// Beyond this JavaScript, and every parser that reads numbers as doubles, loses digits.
const SAFE_INTEGER_MAX: u64 = (1 << 53) - 1;

/// Appends `text` as JSON, without raw line breaks. A value that does not fit its kind is a string.
pub fn write_json(kind: &ValueKind, text: &[u8], out: &mut Vec<u8>) {
    let fits = match kind {
        ValueKind::Bool => match text {
            b"t" => append(b"true", out),
            b"f" => append(b"false", out),
            _ => false,
        },
        ValueKind::Integer => is_safe_integer(text) && append(text, out),
        ValueKind::Float => is_number(text) && append(text, out),
        ValueKind::Json => write_embedded(text, out),
        ValueKind::Timestamp => write_timestamp(text, b"", out),
        ValueKind::TimestampTz => {
            text.strip_suffix(b"+00").is_some_and(|local| write_timestamp(local, b"Z", out))
        }
        ValueKind::Bytea => write_base64(text, out),
        ValueKind::Array(element, delimiter) => array::write(element, *delimiter, text, out),
        ValueKind::Text => false,
    };
    if !fits {
        write_string(text, out);
    }
}

fn append(json: &[u8], out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(json);
    true
}

/// Bytes that a JSON string cannot hold as they are.
const ESCAPED: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = true;
        byte += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table
};

/// Appends a JSON string; what is not UTF-8 is replaced by U+FFFD.
fn write_string(text: &[u8], out: &mut Vec<u8>) {
    if std::str::from_utf8(text).is_err() {
        return write_string(String::from_utf8_lossy(text).as_bytes(), out);
    }
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| ESCAPED[usize::from(*byte)]) {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain);
        match special[0] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
        }
        rest = &special[1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Whether this is an integer as Postgres writes it, and one that a double holds exactly.
fn is_safe_integer(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = matches!(digits, [b'0'] | [b'1'..=b'9', ..]) && digits.len() <= 16;
    canonical
        && digits
            .iter()
            .try_fold(0_u64, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0')))
            .is_some_and(|value| value <= SAFE_INTEGER_MAX)
}

/// Whether this is a number by JSON's grammar.
fn is_number(text: &[u8]) -> bool {
    fn skip_digits(text: &[u8]) -> Option<&[u8]> {
        let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count > 0).then(|| &text[count..])
    }
    fn rest_of_number(text: &[u8]) -> Option<&[u8]> {
        let unsigned = text.strip_prefix(b"-").unwrap_or(text);
        let mut rest = match unsigned {
            [b'0', rest @ ..] => rest,
            other => skip_digits(other)?,
        };
        if let [b'.', fraction @ ..] = rest {
            rest = skip_digits(fraction)?;
        }
        if let [b'e' | b'E', exponent @ ..] = rest {
            let unsigned = match exponent {
                [b'+' | b'-', unsigned @ ..] => unsigned,
                unsigned => unsigned,
            };
            rest = skip_digits(unsigned)?;
        }
        Some(rest)
    }
    rest_of_number(text).is_some_and(<[u8]>::is_empty)
}

/// Embeds JSON. Raw line breaks can only be white space between its tokens, so spaces replace them.
fn write_embedded(text: &[u8], out: &mut Vec<u8>) -> bool {
    let valid = std::str::from_utf8(text).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    if valid {
        let start = out.len();
        out.extend_from_slice(text);
        for byte in &mut out[start..] {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
    }
    valid
}

fn write_timestamp(text: &[u8], zone: &[u8], out: &mut Vec<u8>) -> bool {
    const SHAPE: &[u8; 19] = b"0000-00-00 00:00:00";
    const SPACE: usize = 10;
    let Some((head, fraction)) = text.split_at_checked(SHAPE.len()) else {
        return false;
    };
    let fits = |(byte, shape): (&u8, &u8)| match shape {
        b'0' => byte.is_ascii_digit(),
        other => byte == other,
    };
    let fraction_fits = match fraction {
        [] => true,
        [b'.', digits @ ..] => (1..=6).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !fraction_fits || !head.iter().zip(SHAPE).all(fits) {
        return false;
    }
    out.push(b'"');
    out.extend_from_slice(&head[..SPACE]);
    out.push(b'T');
    out.extend_from_slice(&head[SPACE + 1..]);
    out.extend_from_slice(fraction);
    out.extend_from_slice(zone);
    out.push(b'"');
    true
}

/// Appends `\x…` as base64 with padding. Takes nothing back: it only starts to write what it has checked.
fn write_base64(text: &[u8], out: &mut Vec<u8>) -> bool {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let hex = match text.strip_prefix(b"\\x") {
        Some(hex) if hex.len() % 2 == 0 && hex.iter().all(u8::is_ascii_hexdigit) => hex,
        _ => return false,
    };
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => byte - b'0',
        _ => (byte | 0x20) - b'a' + 10,
    };
    out.reserve(hex.len() / 6 * 4 + 6);
    out.push(b'"');
    for three in hex.chunks(6) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 4 | u32::from(digit(*byte)));
        let count = three.len() / 2;
        let bits = bits << (24 - 8 * count);
        for i in 0..4 {
            let sextet = (bits >> (18 - 6 * i)) & 63;
            out.push(if i <= count { ALPHABET[sextet as usize] } else { b'=' });
        }
    }
    out.push(b'"');
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;
    use tokio_postgres::types::{Kind, Type};

    use super::*;

    fn json(kind: &ValueKind, text: &[u8]) -> String {
        let mut out = Vec::new();
        write_json(kind, text, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn check(kind: &ValueKind, text: &str, expected: &str) {
        assert_eq!(json(kind, text.as_bytes()), expected, "{kind:?} {text:?}");
    }

    #[test]
    fn scalars() {
        check(&ValueKind::Bool, "t", "true");
        check(&ValueKind::Bool, "f", "false");
        check(&ValueKind::Bool, "true", r#""true""#);
        check(&ValueKind::Integer, "0", "0");
        check(&ValueKind::Integer, "-7", "-7");
        check(&ValueKind::Integer, "9007199254740991", "9007199254740991");
        check(&ValueKind::Integer, "-9007199254740991", "-9007199254740991");
        check(&ValueKind::Integer, "9007199254740992", r#""9007199254740992""#);
        check(&ValueKind::Integer, "-9223372036854775808", r#""-9223372036854775808""#);
        check(&ValueKind::Integer, "007", r#""007""#);
        check(&ValueKind::Integer, "", r#""""#);
        check(&ValueKind::Integer, "-", r#""-""#);
        check(&ValueKind::Float, "1.5", "1.5");
        check(&ValueKind::Float, "-0", "-0");
        check(&ValueKind::Float, "1e+20", "1e+20");
        check(&ValueKind::Float, "1e-05", "1e-05");
        check(&ValueKind::Float, "1.7976931348623157e+308", "1.7976931348623157e+308");
        check(&ValueKind::Float, "NaN", r#""NaN""#);
        check(&ValueKind::Float, "-Infinity", r#""-Infinity""#);
        check(&ValueKind::Float, ".5", r#"".5""#);
        check(&ValueKind::Float, "1.", r#""1.""#);
        check(&ValueKind::Float, "01", r#""01""#);
    }

    #[test]
    fn text() {
        check(&ValueKind::Text, "", r#""""#);
        check(&ValueKind::Text, "größe \u{2028}", "\"größe \u{2028}\"");
        check(
            &ValueKind::Text,
            "a\"b\\c\n\r\t\u{1}\u{1f}\u{7f}",
            "\"a\\\"b\\\\c\\n\\r\\t\\u0001\\u001f\u{7f}\"",
        );
        assert_eq!(json(&ValueKind::Text, b"a\xffb"), "\"a\u{fffd}b\"");
    }

    #[test]
    fn embedded_json() {
        check(&ValueKind::Json, "{\"a\":\r\n [1, 2.50]}", "{\"a\":   [1, 2.50]}");
        check(&ValueKind::Json, r#""a\nb""#, r#""a\nb""#);
        check(&ValueKind::Json, r#"{"a": 1e999, "a": 2}"#, r#"{"a": 1e999, "a": 2}"#);
        check(&ValueKind::Json, "null", "null");
        check(&ValueKind::Json, "{", r#""{""#);
        check(&ValueKind::Json, "1 2", r#""1 2""#);
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        check(&ValueKind::Json, &deep, &deep);
    }

    #[test]
    fn timestamps() {
        use ValueKind::{Timestamp, TimestampTz};
        check(&Timestamp, "2026-01-31 12:00:00.123456", r#""2026-01-31T12:00:00.123456""#);
        check(&Timestamp, "2026-01-31 12:00:00", r#""2026-01-31T12:00:00""#);
        check(&TimestampTz, "2026-01-31 12:00:00.5+00", r#""2026-01-31T12:00:00.5Z""#);
        check(&TimestampTz, "2026-01-31 12:00:00+02", r#""2026-01-31 12:00:00+02""#);
        check(&Timestamp, "infinity", r#""infinity""#);
        check(&TimestampTz, "-infinity", r#""-infinity""#);
        check(&TimestampTz, "0044-03-15 12:00:00+00 BC", r#""0044-03-15 12:00:00+00 BC""#);
        check(&Timestamp, "12026-01-31 12:00:00", r#""12026-01-31 12:00:00""#);
        check(&Timestamp, "2026-01-31 12:00:00.", r#""2026-01-31 12:00:00.""#);
    }

    #[test]
    fn bytea() {
        check(&ValueKind::Bytea, "\\x", r#""""#);
        check(&ValueKind::Bytea, "\\x66", r#""Zg==""#);
        check(&ValueKind::Bytea, "\\x666f", r#""Zm8=""#);
        check(&ValueKind::Bytea, "\\x666F6f", r#""Zm9v""#);
        check(&ValueKind::Bytea, "\\x666f6f62", r#""Zm9vYg==""#);
        check(&ValueKind::Bytea, "\\xfbff", r#""+/8=""#);
        check(&ValueKind::Bytea, "\\x6", r#""\\x6""#);
        check(&ValueKind::Bytea, "\\000a", r#""\\000a""#);
    }

    #[test]
    fn kinds_of_builtin_types() {
        let check = |of: Type, expected: ValueKind| {
            assert_eq!(ValueKind::of_builtin(of.oid()), Some(expected), "{of}");
        };
        let array = |of: ValueKind, delimiter| ValueKind::Array(Box::new(of), delimiter);
        check(Type::INT8, ValueKind::Integer);
        check(Type::NUMERIC, ValueKind::Text);
        check(Type::UUID, ValueKind::Text);
        check(Type::INT4_ARRAY, array(ValueKind::Integer, ','));
        check(Type::JSONB_ARRAY, array(ValueKind::Json, ','));
        check(Type::BOX_ARRAY, array(ValueKind::Text, ';'));
        assert_eq!(ValueKind::of_builtin(Type::INT2_VECTOR.oid()), None);
        assert_eq!(ValueKind::of_builtin(16_384), None);
        for (scalar, array) in BUILTIN {
            let array = Type::from_oid(*array).unwrap();
            assert_eq!(*array.kind(), Kind::Array(Type::from_oid(*scalar).unwrap()));
        }
    }

    fn kind() -> impl Strategy<Value = ValueKind> {
        use ValueKind::{Bool, Bytea, Float, Integer, Json, Text, Timestamp, TimestampTz};
        let scalars = [Bool, Integer, Float, Json, Timestamp, TimestampTz, Bytea, Text];
        prop::sample::select(scalars.to_vec()).prop_recursive(2, 4, 1, |inner| {
            (inner, prop::sample::select(vec![',', ';', '{', '"', 'é']))
                .prop_map(|(element, delimiter)| ValueKind::Array(Box::new(element), delimiter))
        })
    }

    fn is_one_line_of_json(out: &[u8]) -> bool {
        serde_json::from_slice::<&RawValue>(out).is_ok() && !out.iter().any(|b| matches!(b, b'\n' | b'\r'))
    }

    proptest! {
        #[test]
        fn any_bytes_become_one_line_of_json(kind in kind(), text: Vec<u8>) {
            prop_assert!(is_one_line_of_json(json(&kind, &text).as_bytes()));
        }

        #[test]
        fn near_misses_become_one_line_of_json(
            kind in kind(), text in "(\\\\x)?[-+.:0-9eEtfNUL\\[\\]{}=,;\"\\\\ \n\r]{0,24}( BC|\\+00)?"
        ) {
            prop_assert!(is_one_line_of_json(json(&kind, text.as_bytes()).as_bytes()));
        }

        #[test]
        fn numbers_keep_their_value(integer: i64, float: f64) {
            let text = json(&ValueKind::Integer, integer.to_string().as_bytes());
            let safe = integer.unsigned_abs() <= SAFE_INTEGER_MAX;
            prop_assert_eq!(text, if safe { integer.to_string() } else { format!("\"{integer}\"") });
            if float.is_finite() {
                let text = json(&ValueKind::Float, format!("{float:e}").as_bytes());
                prop_assert_eq!(text.parse::<f64>().unwrap(), float);
            }
        }

        #[test]
        fn text_survives(text: String) {
            let out = json(&ValueKind::Text, text.as_bytes());
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
        }
    }
}
