//! As much of HTTP/1.1 answers as the clients need.

use memchr::memmem;

use super::Fault;

/// An answer's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Where the body begins.
    pub(crate) length: usize,
    pub(crate) status: u16,
    pub(crate) body: Body,
}

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// By its length.
    Length(usize),
    /// It comes in chunks.
    Chunked,
    /// By the end of the connection.
    Rest,
}

/// The head, once it is whole.
pub(crate) fn head(bytes: &[u8]) -> Result<Option<Head>, Fault> {
    let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let bad = || Fault::unexpected("not an answer of HTTP/1.1", bytes);
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| bad())?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).ok_or_else(bad)?;
    let status = status.get(..3).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    let mut body = Body::Rest;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(bad)?;
        if name.eq_ignore_ascii_case("content-length") {
            body = Body::Length(value.trim().parse().map_err(|_| bad())?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            body = Body::Chunked;
        }
    }
    Ok(Some(Head { length: end + 4, status, body }))
}

/// Status and length of the whole HTTP answer at the beginning of `bytes`, once it is there.
///
/// # Errors
/// It is no answer, or its length is not told.
pub fn answer(bytes: &[u8]) -> Result<Option<(u16, usize)>, Fault> {
    let Some(head) = head(bytes)? else { return Ok(None) };
    let Body::Length(length) = head.body else {
        return Err(Fault::unexpected("an answer without a length", bytes));
    };
    let whole = head.length + length;
    Ok((bytes.len() >= whole).then_some((head.status, whole)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let check = |text: &str, expected: Option<(u16, Body)>| {
            let found = head(text.as_bytes()).unwrap();
            assert_eq!(found.map(|head| (head.status, head.body)), expected, "{text}");
        };
        check("HTTP/1.1 200 OK\r\ncontent-le", None);
        check("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nx", Some((200, Body::Length(12))));
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Some((200, Body::Chunked)));
        check("HTTP/1.1 101 Switching Protocols\r\n\r\n", Some((101, Body::Rest)));
        assert!(head(b"SSH-2.0\r\n\r\n").is_err());
    }
}
