//! Tokens: what a client shows, and what a broker knows of it.

use std::fmt::{self, Write as _};

use sha2::{Digest as _, Sha256};

/// What every token begins with, so that people and scanners for leaked secrets know one.
const PREFIX: &str = "walcast_";

/// A secret. Whoever makes it shows it once.
pub struct Token(String);

impl Token {
    /// 256 random bits.
    #[must_use]
    pub fn new() -> Self {
        Self(format!("{PREFIX}{}", hex(&rand::random())))
    }

    /// The secret itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What a broker is told of it: SHA-256, in hexadecimal digits.
    #[must_use]
    pub fn sha256(&self) -> String {
        Self::sha256_of(self.0.as_bytes())
    }

    /// The same of any token.
    #[must_use]
    pub fn sha256_of(token: &[u8]) -> String {
        hex(&Sha256::digest(token).into())
    }
}

impl Default for Token {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads 64 hexadecimal digits.
pub(super) fn read_digest(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(digest)
}
