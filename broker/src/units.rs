//! Sizes in the configuration: whole bytes, or text such as `"256MiB"`. Durations are humantime's.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserializer;
use serde::de::{Error, Unexpected, Visitor};

/// One kibibyte, in bytes.
pub const KIB: u64 = 1 << 10;
/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;

const SUFFIXES: &[(&str, u64)] = &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];
const EXPECTED: &str = "a size in bytes, such as 65536, \"64KiB\", \"256MiB\" or \"1GiB\"";

/// Reads a size, for `#[serde(deserialize_with = "crate::units::bytes")]`.
///
/// # Errors
/// It is neither a whole number of bytes nor text with a binary unit, or it does not fit `T`.
pub fn bytes<'de, D: Deserializer<'de>, T: TryFrom<u64>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_any(Size(PhantomData))
}

struct Size<T>(PhantomData<T>);

impl<T: TryFrom<u64>> Visitor<'_> for Size<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_u64<E: Error>(self, size: u64) -> Result<T, E> {
        T::try_from(size).map_err(|_| E::invalid_value(Unexpected::Unsigned(size), &EXPECTED))
    }

    fn visit_i64<E: Error>(self, size: i64) -> Result<T, E> {
        let unsigned = u64::try_from(size).ok().and_then(|size| T::try_from(size).ok());
        unsigned.ok_or_else(|| E::invalid_value(Unexpected::Signed(size), &EXPECTED))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        let size = parse(text).and_then(|size| T::try_from(size).ok());
        size.ok_or_else(|| E::invalid_value(Unexpected::Str(text), &EXPECTED))
    }
}

fn parse(text: &str) -> Option<u64> {
    let (number, unit) = SUFFIXES
        .iter()
        .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|number| (number.trim_end(), *unit)))
        .unwrap_or((text, 1));
    // `parse` alone would take a sign.
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_text() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(parse(text), expected, "{text}");
        check("0", Some(0));
        check("512", Some(512));
        check("512B", Some(512));
        check("64KiB", Some(65_536));
        check("256 MiB", Some(268_435_456));
        check("1GiB", Some(1_073_741_824));
        check("1GB", None);
        check("1.5MiB", None);
        check("-1", None);
        check("+1", None);
        check("MiB", None);
        check("", None);
        check("99999999999GiB", None);
    }
}
