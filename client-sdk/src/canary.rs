//! Which part of a fleet takes part in something new.
//!
//! An answer depends on nothing but the key, the percentage and the salt: every machine and every version gives
//! the same, and nobody has to ask anybody.

/// Picks a part of all keys, such as host names, by a hash that is fixed for ever.
///
/// A key's hash is FNV-1a, 64 bits, over the salt, a zero byte and the key in UTF-8, mixed as MurmurHash3's `fmix64`
/// does. Its upper 53 bits are a number from 0 up to 1; the key is picked if that, times 100, is less than the
/// percentage. So a greater percentage picks all keys that a smaller one does, and more.
///
/// ```
/// use walcast_client::Canary;
///
/// let canary = Canary::new(10.0).salt("kernel 6.12");
/// if canary.picks("host-17") {
///     println!("first in line");
/// }
/// assert!(Canary::new(100.0).picks("any"));
/// assert!(!Canary::new(0.0).picks("any"));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Canary {
    percent: f64,
    salt: String,
}

impl Canary {
    /// Picks about so many of a hundred keys; from 100 on all of them, from 0 down (or for what is no number) none.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::Canary;
    ///
    /// let tenth = Canary::new(10.0);
    /// assert_eq!(tenth, Canary::new(10.0));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(percent: f64) -> Self {
        Self { percent, salt: String::new() }
    }

    /// Names what is tried, so that the same hosts are not always the first.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::Canary;
    ///
    /// let kernel = Canary::new(5.0).salt("kernel 6.12");
    /// let agent = Canary::new(5.0).salt("agent 3");
    /// assert_ne!(kernel, agent);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn salt(mut self, salt: impl Into<String>) -> Self {
        self.salt = salt.into();
        self
    }

    /// Whether `key` takes part.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::Canary;
    ///
    /// let picked = (0..1000).filter(|n| Canary::new(10.0).picks(&format!("host-{n}"))).count();
    /// assert!((50..150).contains(&picked));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn picks(&self, key: &str) -> bool {
        let bytes = self.salt.bytes().chain([0]).chain(key.bytes());
        // All 53 bits fit into a float as they are.
        let share = (mix(fnv1a(bytes)) >> 11) as f64 / (1_u64 << 53) as f64;
        share * 100.0 < self.percent
    }
}

fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Names that differ in their last digit differ in few bits of the hash; behind this in half of them.
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn picked(percent: f64, salt: &str) -> BTreeSet<usize> {
        let canary = Canary::new(percent).salt(salt);
        (0..10_000).filter(|i| canary.picks(&format!("host-{i}"))).collect()
    }

    #[test]
    fn the_hash_is_the_one_that_is_named() {
        // Published values of FNV-1a, and of fmix64 over small numbers.
        assert_eq!(fnv1a("".bytes()), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a("a".bytes()), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a("foobar".bytes()), 0x8594_4171_f739_67e8);
        assert_eq!(mix(0), 0);
        assert_eq!(mix(1), 0xb456_bcfc_34c2_cb2c);
    }

    #[test]
    fn a_greater_percentage_only_adds() {
        let mut before = BTreeSet::new();
        for percent in [0.0, 0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 99.0, 100.0] {
            let now = picked(percent, "");
            assert!(before.is_subset(&now), "{percent}");
            let expected = percent * 100.0;
            assert!((now.len() as f64 - expected).abs() <= 150.0, "{percent}: {}", now.len());
            before = now;
        }
        assert_eq!(before.len(), 10_000);
        assert!(picked(f64::NAN, "").is_empty() && picked(-1.0, "").is_empty());
    }

    #[test]
    fn another_salt_picks_others() {
        let (a, b) = (picked(10.0, "a"), picked(10.0, "b"));
        let both = a.intersection(&b).count();
        assert!((20..250).contains(&both), "{both} of {}", a.len());
    }
}
