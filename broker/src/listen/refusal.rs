//! Answers given without a handler: hyper refuses a malformed or too large head by itself, with an empty
//! body. Every other error is a problem document, so these become one too.

use walcast_wire::{Problem, ProblemCode};

use super::HEAD_BYTES_MAX;

/// The problem document to send instead, if `head` starts an answer that hyper made by itself. Handlers
/// never answer 4xx with an empty body, and no payload holds a raw line break, so nothing else looks so.
pub(super) fn replace(head: &[u8]) -> Option<Vec<u8>> {
    const EMPTY: &[u8] = b"\r\ncontent-length: 0\r\n";
    let status = head.strip_prefix(b"HTTP/1.1 ").or_else(|| head.strip_prefix(b"HTTP/1.0 "))?.get(..3)?;
    if status[0] != b'4' || !head.windows(EMPTY.len()).any(|window| window == EMPTY) {
        return None;
    }
    Some(match status {
        b"431" | b"414" => answer(
            ProblemCode::HeadTooLarge,
            &format!("a request head has at most {HEAD_BYTES_MAX} bytes and 100 headers"),
        ),
        _ => answer(ProblemCode::BadParameter, "the request head is not HTTP/1.1"),
    })
}

/// A whole answer that closes the connection.
pub(super) fn answer(code: ProblemCode, detail: &str) -> Vec<u8> {
    let problem = Problem::new(code, detail);
    // Plain data with string keys: serialising it cannot fail.
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let retry = match code {
        ProblemCode::Overloaded => format!("retry-after: {}\r\n", rand::random_range(1..=5)),
        _ => String::new(),
    };
    format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n{retry}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        problem.status, problem.title, body.len(),
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hypers_own_answers_are_replaced() {
        let check = |head: &str, expected: Option<&str>| {
            let answer = replace(head.as_bytes()).map(|bytes| String::from_utf8(bytes).unwrap());
            match (answer, expected) {
                (None, None) => {}
                (Some(answer), Some(code)) => {
                    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                    let problem: Problem = serde_json::from_str(body).unwrap();
                    assert_eq!(problem.code.as_str(), code);
                    assert!(head.contains(&format!("content-length: {}", body.len())));
                }
                other => panic!("{head:?}: {other:?}"),
            }
        };
        check("HTTP/1.1 431 Too Large\r\ncontent-length: 0\r\n\r\n", Some("head_too_large"));
        check("HTTP/1.1 414 Long\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", Some("head_too_large"));
        check("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", Some("bad_parameter"));
        check("HTTP/1.1 400 Bad Request\r\ncontent-length: 20\r\n\r\n", None);
        check("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", None);
        check("HTTP/1.1 4", None);
        check("\"HTTP/1.1 431 \\r\\ncontent-length: 0\\r\\n\"", None);
    }
}
