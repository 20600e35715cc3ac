//! `walcast token`: makes a token, and what a broker is to know of it.

use std::io::{Read, Write};

use serde_json::json;

use super::exit::{self, Failure};
use crate::auth::Token;

/// Make a token for somebody, and the lines that let a broker know it.
///
/// The token itself is shown once and kept nowhere; brokers keep its SHA-256.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  walcast token host-17 --role vm >> walcast.toml    its [[key]]; the token on standard error
  walcast token host-17 --role vm --json             both for programs, on standard output
  walcast token host-17 --role vm --line             a line for auth.keys_file instead
  walcast token host-17 --role vm --from -           the [[key]] of a token that exists, read from standard input

What roles may do: docs/security.md

Exit codes: 0 made, 64 wrong usage, 65 wrong data.")]
pub struct Args {
    /// Who it is for: what {sub} stands for in the patterns of roles.
    #[arg(value_name = "SUB", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    sub: String,
    /// A role that it has; may stand several times.
    #[arg(long = "role", value_name = "ROLE", required = true)]
    roles: Vec<String>,
    /// As JSON.
    #[arg(long, conflicts_with = "line")]
    json: bool,
    /// As a line of a file of keys.
    #[arg(long)]
    line: bool,
    /// Use this token; `-` reads it from standard input, so that no list of processes shows it.
    #[arg(long, value_name = "-", value_parser = ["-"])]
    from: Option<String>,
}

/// Prints key and token.
///
/// # Errors
/// The token that was given cannot be used, or standard output cannot be written to.
pub fn run(args: &Args, stdin: impl Read, out: &mut impl Write, err: &mut impl Write) -> Result<(), Failure> {
    let given = args.from.as_ref().map(|_| given(stdin)).transpose()?;
    let (token, sha256) = match given {
        Some(token) => (None, Token::sha256_of(token.as_bytes())),
        None => {
            let token = Token::new();
            (Some(token.reveal().to_owned()), token.sha256())
        }
    };
    let Args { sub, roles, .. } = args;
    let failed = |error: std::io::Error| Failure::new(exit::OTHER, format!("cannot write: {error}"));
    if args.json {
        let text = json!({"sub": sub, "sha256": sha256, "roles": roles, "token": token});
        return writeln!(out, "{text}").map_err(failed);
    }
    if args.line {
        if sub.contains(char::is_whitespace) || sub.starts_with('#') {
            let cause = "a line cannot hold white space or a leading # in who it is: use a [[key]]";
            return Err(Failure::new(exit::USAGE, cause));
        }
        writeln!(out, "{sub} {sha256} {}", roles.join(",")).map_err(failed)?;
        return token.map_or(Ok(()), |token| writeln!(err, "{token}").map_err(failed));
    }
    // TOML writes a string as JSON does.
    writeln!(out, "[[key]]\nsub = {}\nsha256 = \"{sha256}\"\nroles = {}", json!(sub), json!(roles))
        .map_err(failed)?;
    // Not where the key goes: that is often appended to a file.
    token.map_or(Ok(()), |token| writeln!(err, "{token}").map_err(failed))
}

/// The longest token that is read.
const TOKEN_BYTES_MAX: u64 = 4096;

fn given(stdin: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    let wrong = |why: String| Failure::new(exit::DATA, format!("the token on standard input {why}"));
    let read = stdin.take(TOKEN_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let token = text.trim();
    if !(16..=4096).contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(wrong("is not 16 to 4096 visible ASCII characters".into()));
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{KeyConfig, Keys, RoleConfig, read_lines};

    fn args(sub: &str) -> Args {
        Args { sub: sub.into(), roles: vec!["vm".into(), "b".into()], json: false, line: false, from: None }
    }

    fn made(args: &Args, stdin: &str) -> Result<(String, String), Failure> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        run(args, stdin.as_bytes(), &mut out, &mut err)?;
        Ok((String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap()))
    }

    #[track_caller]
    fn lets_in(keys: &[KeyConfig], token: &str, sub: &str) {
        let roles = ["vm", "b"].map(|name| RoleConfig { name: name.into(), ..RoleConfig::default() });
        let key = Keys::new(keys, &roles, false).unwrap().find(token.as_bytes()).unwrap();
        assert_eq!(key.sub(), sub);
    }

    #[test]
    fn what_it_prints_lets_in_who_has_the_token() {
        #[derive(serde::Deserialize)]
        struct File {
            key: Vec<KeyConfig>,
        }
        let (out, err) = made(&args("a \"b\""), "").unwrap();
        lets_in(&toml::from_str::<File>(&out).unwrap().key, err.trim(), "a \"b\"");

        let (out, err) = made(&Args { line: true, ..args("host-1") }, "").unwrap();
        lets_in(&read_lines(&out).unwrap(), err.trim(), "host-1");

        let (out, _) = made(&Args { json: true, ..args("host-1") }, "").unwrap();
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        let sha256 = json["sha256"].as_str().unwrap().to_owned();
        let key = KeyConfig { sub: "host-1".into(), sha256, roles: vec!["vm".into()] };
        lets_in(&[key], json["token"].as_str().unwrap(), "host-1");

        let from = Some("-".to_owned());
        let (out, _) = made(&Args { from, ..args("host-1") }, "a-token-of-before\n").unwrap();
        assert!(!out.contains("a-token-of-before"), "{out}");
        lets_in(&toml::from_str::<File>(&out).unwrap().key, "a-token-of-before", "host-1");
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let from = || Some("-".to_owned());
        assert_eq!(made(&Args { from: from(), ..args("a") }, "short").unwrap_err().code, exit::DATA);
        let spaced = made(&Args { from: from(), ..args("a") }, "two words that are long").unwrap_err();
        assert!(spaced.code == exit::DATA && !spaced.message.contains("words that"), "{spaced}");
        assert_eq!(made(&Args { line: true, ..args("a b") }, "").unwrap_err().code, exit::USAGE);
    }
}
