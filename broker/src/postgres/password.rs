//! Passwords: kept out of sight, and found where libpq would look for them.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;

/// Text that may hold a password. Neither `Debug` nor an error message shows it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hidden]")
    }
}

/// The password in a file that holds nothing else. The line break at its end does not count.
///
/// # Errors
/// The file cannot be read, or is empty.
pub fn read_password_file(path: &Path) -> Result<Secret, String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("password_file {} cannot be read: {error}", path.display()))?;
    let password = text.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(format!("password_file {} is empty", path.display()));
    }
    Ok(password.into())
}

/// What a passfile is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Lookup<'a> {
    /// As in the connection string; a socket in the default directory is asked for as `localhost`.
    pub host: &'a str,
    /// The port.
    pub port: u16,
    /// The database.
    pub database: &'a str,
    /// The role.
    pub user: &'a str,
}

/// Looks into a passfile. A missing file is no error: `Ok(None)`.
///
/// # Errors
/// Why the file is not used, as a note for the user; libpq ignores such a file, too.
pub fn read_passfile(path: &Path, lookup: Lookup<'_>) -> Result<Option<Secret>, String> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("passfile {} is ignored: {error}", path.display())),
    };
    if !metadata.is_file() {
        return Err(format!("passfile {} is ignored: not a plain file", path.display()));
    }
    #[cfg(unix)]
    if std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o077 != 0 {
        return Err(format!(
            "passfile {} is ignored: others may read it, run chmod 0600 on it",
            path.display()
        ));
    }
    let text = fs::read_to_string(path)
        .map_err(|error| format!("passfile {} is ignored: {error}", path.display()))?;
    Ok(find(&text, lookup))
}

/// The first line that fits wins.
fn find(text: &str, lookup: Lookup<'_>) -> Option<Secret> {
    let port = lookup.port.to_string();
    let wanted = [lookup.host, &port, lookup.database, lookup.user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for value in wanted {
            let (field, behind) = field(rest)?;
            if field != "*" && unescape(field) != value {
                return None;
            }
            rest = behind;
        }
        let password = field(rest).map_or(rest, |(field, _)| field);
        (!password.is_empty()).then(|| unescape(password).into())
    })
}

/// Splits at the first colon that no backslash precedes.
fn field(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b':' => return Some((&text[..index], &text[index + 1..])),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        plain.push(if character == '\\' { characters.next().unwrap_or('\\') } else { character });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_match_as_in_libpq() {
        let lookup = Lookup { host: "db", port: 5432, database: "app", user: "me" };
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(find(text, lookup).as_ref().map(Secret::expose), expected, "{text}");
        };
        check("db:5432:app:me:one", Some("one"));
        check("*:*:*:*:any", Some("any"));
        check("# db:5432:app:me:one\nother:5432:app:me:no\ndb:*:app:me:two\n*:*:*:*:three", Some("two"));
        check("db:5433:app:me:one", None);
        check("db:5432:app:you:one", None);
        check(r"db:5432:app:me:a\:b\\c", Some(r"a:b\c"));
        check("db:5432:app:me:a b#c", Some("a b#c"));
        check("db:5432:app:me:", None);
        check("db:5432:app", None);
        check("", None);
    }

    #[test]
    fn escaped_hosts_match() {
        let lookup = Lookup { host: "::1", port: 1, database: "d", user: "u" };
        assert_eq!(find(r"\:\:1:1:d:u:p", lookup).as_ref().map(Secret::expose), Some("p"));
    }

    #[test]
    fn a_secret_stays_hidden() {
        assert_eq!(format!("{:?}", Some(Secret::from("swordfish"))), "Some([hidden])");
    }
}
