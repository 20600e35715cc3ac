//! Who comes in: the token of a request, and what its holder is granted.
//!
//! Tokens come in headers alone. What stands in an address ends up in the logs of proxies.

use std::sync::Arc;

use walcast_wire::{ProblemCode, TopicPattern};

use super::call::Request;
use super::problem::Refusal;
use crate::auth::{Action, Config, Denied, Key, Keys, bearer};

/// Who sends this request.
pub(super) fn admit(request: &Request<'_>, keys: &Keys, config: &Config) -> Result<Arc<Key>, Refusal> {
    if let Some(anybody) = keys.anybody() {
        return Ok(anybody);
    }
    let unknown = |detail: &str| Err(Refusal::new(ProblemCode::Unauthorized, detail));
    let token = match request.header("authorization") {
        Some(header) => match bearer(header) {
            Some(token) => token,
            None => return unknown("`Authorization` is `Bearer` and a token"),
        },
        None => match cookie(request, &config.cookie) {
            Some(token) => {
                same_site(request, config)?;
                token.as_bytes()
            }
            None => return unknown("who are you? send `Authorization: Bearer` with your token"),
        },
    };
    keys.find(token).map_or_else(|| unknown("the token is not one that this broker knows"), Ok)
}

/// Whether somebody may do this with all of these.
pub(super) fn check(key: &Key, action: Action, topics: &[TopicPattern]) -> Result<(), Refusal> {
    key.may(action, topics).map_err(|denied: Denied| {
        tracing::debug!(sub = key.sub(), "refused: {denied}");
        Refusal::new(ProblemCode::Forbidden, denied.to_string())
    })
}

fn cookie<'a>(request: &Request<'a>, name: &str) -> Option<&'a str> {
    let all = request.all("cookie").filter_map(|value| std::str::from_utf8(value).ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find_map(|(found, value)| (found == name).then(|| value.trim_matches('"')))
}

/// A browser adds its cookies to what any page asks for, so the page has to be one of ours.
fn same_site(request: &Request<'_>, config: &Config) -> Result<(), Refusal> {
    // Of a page on the broker's own host a browser says so; no script can.
    let own = request.header("sec-fetch-site") == Some(b"same-origin");
    let origin = request.header("origin").map(std::str::from_utf8);
    let listed = matches!(origin, Some(Ok(origin)) if config.origins.iter().any(|ours| ours == origin));
    if own || listed {
        return Ok(());
    }
    let detail = "a cookie is taken from pages whose origin is one of `auth.origins` alone";
    Err(Refusal::new(ProblemCode::Forbidden, detail))
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderName, HeaderValue};

    use super::*;
    use crate::auth::{KeyConfig, RoleConfig, Token};

    #[test]
    fn tokens_come_in_headers() {
        let role = RoleConfig { name: "r".into(), ..RoleConfig::default() };
        let config =
            KeyConfig { sub: "page".into(), sha256: Token::sha256_of(b"secret"), roles: vec!["r".into()] };
        let keys = Keys::new(&[config], &[role], false).unwrap();
        let config = Config { origins: vec!["https://app.example".into()], ..Config::default() };
        let check = |headers: &[(&'static str, &'static str)], expected: Result<&str, ProblemCode>| {
            let pairs = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            let map: HeaderMap = pairs.collect();
            let request = Request { path: "/", query: None, headers: &map };
            let found = admit(&request, &keys, &config);
            let found = found.as_ref().map(|key| key.sub()).map_err(|refusal| refusal.code);
            assert_eq!(found, expected, "{headers:?}");
        };
        let (unknown, forbidden) = (Err(ProblemCode::Unauthorized), Err(ProblemCode::Forbidden));
        check(&[("authorization", "Bearer secret")], Ok("page"));
        check(&[("authorization", "Bearer Secret")], unknown);
        check(&[("authorization", "Basic secret")], unknown);
        check(&[], unknown);
        const COOKIE: (&str, &str) = ("cookie", "a=b; walcast_token=secret");
        check(&[COOKIE], forbidden);
        check(&[COOKIE, ("origin", "https://app.example")], Ok("page"));
        check(&[COOKIE, ("origin", "https://app.example.evil")], forbidden);
        check(&[COOKIE, ("origin", "null")], forbidden);
        check(&[COOKIE, ("origin", "https://own.example"), ("sec-fetch-site", "same-origin")], Ok("page"));
        check(&[COOKIE, ("sec-fetch-site", "same-origin")], Ok("page"));
        check(&[COOKIE, ("sec-fetch-site", "cross-site")], forbidden);
        check(&[("cookie", "walcast_token=other"), ("origin", "https://app.example")], unknown);
        // A header says more than a cookie.
        check(&[COOKIE, ("origin", "https://app.example"), ("authorization", "Bearer x")], unknown);
        let open = Keys::new(&[], &[], false).unwrap();
        let map = HeaderMap::new();
        let request = Request { path: "/", query: None, headers: &map };
        assert_eq!(admit(&request, &open, &config).unwrap().sub(), "anybody");
    }
}
