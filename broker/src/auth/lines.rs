//! The file of keys: a key a line, for fleets whose keys are made by a program.

use super::KeyConfig;

/// A line that is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {cause}; a line is who it is, SHA-256 of the token, and roles separated by commas")]
pub struct BadLine {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub cause: &'static str,
}

/// Reads all keys. Empty lines and what begins with `#` is left out.
///
/// # Errors
/// The first line that is no key. It is not repeated, for it may hold a token by mistake.
pub fn read_lines(text: &str) -> Result<Vec<KeyConfig>, BadLine> {
    let lines = (1..).zip(text.lines().map(str::trim));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(line, text)| read(text).map_err(|cause| BadLine { line, cause })).collect()
}

fn read(line: &str) -> Result<KeyConfig, &'static str> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [sub, sha256, roles] = words[..] else {
        return Err(if words.len() < 3 { "something is missing" } else { "there is something more" });
    };
    if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("the second word is not 64 hexadecimal digits");
    }
    let roles: Vec<String> = roles.split(',').map(str::to_owned).collect();
    if roles.iter().any(String::is_empty) {
        return Err("a role has no name");
    }
    Ok(KeyConfig { sub: sub.to_owned(), sha256: sha256.to_owned(), roles })
}
