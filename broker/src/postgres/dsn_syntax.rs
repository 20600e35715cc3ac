//! The two notations of a connection string, taken apart into keys and values. What they mean is not known here.

use super::dsn::DsnError;

/// The keys and values, in order; a later one replaces an earlier one.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, DsnError> {
    let uri = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.trim().strip_prefix(scheme));
    match uri {
        Some(rest) => from_uri(rest),
        None => from_words(text),
    }
}

fn from_uri(rest: &str) -> Result<Vec<(String, String)>, DsnError> {
    let mut pairs = Vec::new();
    let (before, query) = rest.split_once('?').map_or((rest, None), |(a, b)| (a, Some(b)));
    let (authority, path) = before.split_once('/').map_or((before, ""), |(a, b)| (a, b));
    let (user, hosts) = authority.split_once('@').map_or((None, authority), |(a, b)| (Some(a), b));
    if let Some(user) = user {
        let (user, password) = user.split_once(':').map_or((user, None), |(a, b)| (a, Some(b)));
        pairs.push(("user".to_owned(), decode(user)?));
        if let Some(password) = password {
            pairs.push(("password".to_owned(), decode(password)?));
        }
    }
    if !hosts.is_empty() {
        let mut names = Vec::new();
        let mut ports = Vec::new();
        for entry in hosts.split(',') {
            let (name, port) = split_port(entry)?;
            names.push(decode(name)?);
            ports.push(decode(port)?);
        }
        pairs.push(("host".to_owned(), names.join(",")));
        if ports.iter().any(|port| !port.is_empty()) {
            pairs.push(("port".to_owned(), ports.join(",")));
        }
    }
    if !path.is_empty() {
        pairs.push(("dbname".to_owned(), decode(path)?));
    }
    for entry in query.unwrap_or_default().split('&').filter(|entry| !entry.is_empty()) {
        let (key, value) =
            entry.split_once('=').ok_or_else(|| DsnError("a parameter behind the ? lacks its =".into()))?;
        pairs.push((decode(key)?, decode(value)?));
    }
    Ok(pairs)
}

fn split_port(entry: &str) -> Result<(&str, &str), DsnError> {
    if let Some(rest) = entry.strip_prefix('[') {
        let (name, behind) =
            rest.split_once(']').ok_or_else(|| DsnError("host starts with [ and lacks its ]".into()))?;
        return match behind.strip_prefix(':') {
            Some(port) => Ok((name, port)),
            None if behind.is_empty() => Ok((name, "")),
            None => Err(DsnError("host has text between ] and its port".into())),
        };
    }
    Ok(entry.split_once(':').unwrap_or((entry, "")))
}

fn decode(text: &str) -> Result<String, DsnError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        let byte = digit().zip(digit()).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        match byte {
            Some(byte) if byte != 0 => bytes.push(byte),
            _ => return Err(DsnError("a % must be followed by two hexadecimal digits, not 00".into())),
        }
    }
    String::from_utf8(bytes).map_err(|_| DsnError("a percent-encoded part is not UTF-8".into()))
}

fn from_words(text: &str) -> Result<Vec<(String, String)>, DsnError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (key, behind) = rest.split_at(end);
        let Some(behind) = behind.trim_start().strip_prefix('=') else {
            return Err(DsnError("a key lacks its =; values with blanks stand in single quotes".into()));
        };
        let (value, behind) = word(behind.trim_start())?;
        pairs.push((key.to_owned(), value));
        rest = behind.trim_start();
    }
    Ok(pairs)
}

/// One value, quoted or not, and what follows it.
fn word(text: &str) -> Result<(String, &str), DsnError> {
    let (quoted, body) = text.strip_prefix('\'').map_or((false, text), |body| (true, body));
    let mut value = String::new();
    let mut characters = body.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, next)| next)),
            '\'' if quoted => return Ok((value, &body[index + 1..])),
            blank if !quoted && blank.is_whitespace() => return Ok((value, &body[index..])),
            other => value.push(other),
        }
    }
    if quoted {
        return Err(DsnError("a value lacks its closing single quote".into()));
    }
    Ok((value, ""))
}
