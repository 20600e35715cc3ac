//! The format of server-sent events, piece by piece as it arrives.

/// What one block of the stream said.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use walcast_client::sse::parser::Parser;
///
/// let mut parser = Parser::new(1024);
/// parser.push(b"id: 7\ndata: {\"pin\":1}\n\n");
/// let block = parser.next_block()?.unwrap();
/// assert_eq!((block.id.as_deref(), block.data.as_deref()), (Some("7"), Some(r#"{"pin":1}"#)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// The kind of event; empty for the default kind.
    pub event: String,
    /// Its data lines, joined by line breaks; `None` if there were none.
    pub data: Option<String>,
    /// The id, if this block named one.
    pub id: Option<String>,
    /// The delay before reconnecting, in milliseconds, if this block named one.
    pub retry: Option<u64>,
}

impl Block {
    /// Whether it is more than comments, or the name of an event that has no data.
    fn says_something(&self) -> bool {
        self.data.is_some() || self.id.is_some() || self.retry.is_some()
    }
}

/// Why a stream cannot be read on.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use walcast_client::sse::parser::{ParseError, Parser};
///
/// let mut parser = Parser::new(4);
/// parser.push(b"data: more than that\n\n");
/// assert_eq!(parser.next_block(), Err(ParseError::TooLarge(4)));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A block exceeds the limit.
    #[error("an event of more than {0} bytes")]
    TooLarge(usize),
    /// Not UTF-8.
    #[error("an event that is not UTF-8")]
    NotUtf8,
}

/// Cuts a byte stream into blocks. Lines may end in LF, CR or both; comments are skipped; a block that
/// the stream's end cuts off is never yielded.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use walcast_client::sse::parser::Parser;
///
/// let mut parser = Parser::new(1024);
/// for piece in ["data: in ", "pieces\n", "\n"] {
///     parser.push(piece.as_bytes());
/// }
/// assert_eq!(parser.next_block()?.unwrap().data.as_deref(), Some("in pieces"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Parser {
    buffer: Vec<u8>,
    /// Start of the line that is being read, in `buffer`.
    line: usize,
    /// Up to here there is no line end behind `line`.
    scanned: usize,
    /// The last line ended in CR, so that a LF that follows belongs to it.
    after_cr: bool,
    at_start: bool,
    block: Block,
    block_bytes: usize,
    bytes_max: usize,
}

impl Parser {
    /// A parser that refuses blocks of more than `bytes_max` bytes.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::sse::parser::Parser;
    ///
    /// let parser = Parser::new(1024);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            buffer: Vec::new(),
            line: 0,
            scanned: 0,
            after_cr: false,
            at_start: true,
            block: Block::default(),
            block_bytes: 0,
            bytes_max,
        }
    }

    /// Takes bytes in.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::sse::parser::Parser;
    ///
    /// let mut parser = Parser::new(1024);
    /// parser.push(b"id: 7\ndata: {\"pin\":1}\n\n");
    /// assert!(parser.next_block()?.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.line);
        self.scanned = self.scanned.saturating_sub(self.line);
        self.line = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole block of what was taken in.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::sse::parser::Parser;
    ///
    /// let mut parser = Parser::new(1024);
    /// parser.push(b": only a comment\n\n");
    /// assert_eq!(parser.next_block()?, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The stream is not one of server-sent events, or exceeds the limit.
    pub fn next_block(&mut self) -> Result<Option<Block>, ParseError> {
        while let Some(end) = self.line_end() {
            if self.end_line(end)? {
                let block = std::mem::take(&mut self.block);
                self.block_bytes = 0;
                if block.says_something() {
                    return Ok(Some(block));
                }
            }
        }
        self.check_size(self.buffer.len() - self.line)?;
        Ok(None)
    }

    /// Where the current line ends; skips the LF of a CR LF that was cut in two.
    fn line_end(&mut self) -> Option<usize> {
        if self.after_cr && self.line < self.buffer.len() {
            self.after_cr = false;
            if self.buffer[self.line] == b'\n' {
                self.line += 1;
            }
        }
        self.scanned = self.scanned.max(self.line);
        let found = self.buffer[self.scanned..].iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        match found {
            Some(offset) => Some(self.scanned + offset),
            None => {
                self.scanned = self.buffer.len();
                None
            }
        }
    }

    /// Reads the line that ends at `end`; true if it was empty, which ends a block.
    fn end_line(&mut self, end: usize) -> Result<bool, ParseError> {
        let mut line = &self.buffer[self.line..end];
        self.after_cr = self.buffer[end] == b'\r';
        self.line = end + 1;
        if std::mem::take(&mut self.at_start) {
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        let bytes = line.len();
        match line.first() {
            None => return Ok(true),
            Some(b':') => return Ok(false),
            Some(_) => {}
        }
        let text = std::str::from_utf8(line).map_err(|_| ParseError::NotUtf8)?;
        let (field, value) = text.split_once(':').unwrap_or((text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut self.block.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.block.data = Some(value.to_owned()),
            },
            "event" => value.clone_into(&mut self.block.event),
            "id" if !value.contains('\0') => self.block.id = Some(value.to_owned()),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.block.retry = value.parse().ok();
            }
            _ => {}
        }
        self.block_bytes += bytes;
        self.check_size(0).map(|()| false)
    }

    fn check_size(&self, more: usize) -> Result<(), ParseError> {
        if self.block_bytes + more > self.bytes_max {
            return Err(ParseError::TooLarge(self.bytes_max));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(chunks: &[&[u8]]) -> Vec<Block> {
        let mut parser = Parser::new(1 << 20);
        let mut blocks = Vec::new();
        for chunk in chunks {
            parser.push(chunk);
            while let Some(block) = parser.next_block().unwrap() {
                blocks.push(block);
            }
        }
        blocks
    }

    /// The whole text at once, line by line.
    fn naive(text: &str) -> Vec<Block> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let whole = text.rfind("\n\n").map_or("", |end| &text[..end]);
        let whole = if text.starts_with('\n') && whole.is_empty() { "" } else { whole };
        let mut blocks = Vec::new();
        for chunk in whole.split("\n\n") {
            let mut block = Block::default();
            let mut lines = Vec::new();
            for line in chunk.split('\n') {
                let (field, value) = line.split_once(':').unwrap_or((line, ""));
                let value = value.strip_prefix(' ').unwrap_or(value);
                match field {
                    "data" => lines.push(value),
                    "event" => block.event = value.to_owned(),
                    "id" if !value.contains('\0') => block.id = Some(value.to_owned()),
                    "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                        block.retry = value.parse().ok();
                    }
                    _ => {}
                }
            }
            block.data = (!lines.is_empty()).then(|| lines.join("\n"));
            if block.data.is_some() || block.id.is_some() || block.retry.is_some() {
                blocks.push(block);
            }
        }
        blocks
    }

    fn event(data: &str) -> Block {
        Block { data: Some(data.to_owned()), ..Block::default() }
    }

    #[test]
    fn blocks() {
        let check = |text: &str, expected: &[Block]| {
            let each: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(parse(&[text.as_bytes()]), expected, "{text:?}");
            assert_eq!(parse(&each), expected, "{text:?}, byte by byte");
        };
        check("data: a\n\n", &[event("a")]);
        check("data:a\r\n\r\ndata:  b\r\r", &[event("a"), event(" b")]);
        check("data: a\ndata\ndata: b\n\n", &[event("a\n\nb")]);
        check("\u{feff}data: a\n\n", &[event("a")]);
        check(":keep-alive\n\n: another\r\n\r\n", &[]);
        check("data: cut off\n", &[]);
        check("id: 7\n\n", &[Block { id: Some("7".into()), ..Block::default() }]);
        check("retry: 250\n\nretry: 1s\n\n", &[Block { retry: Some(250), ..Block::default() }]);
        check("event: empty\n\n", &[]);
        check(
            "event: reset\nid: 9\ndata: {}\nunknown: x\n\n",
            &[Block { event: "reset".into(), id: Some("9".into()), ..event("{}") }],
        );
    }

    #[test]
    fn a_block_is_bounded() {
        let check = |text: &[u8]| {
            let mut parser = Parser::new(16);
            parser.push(b"data: 0123456789\n\n");
            assert_eq!(parser.next_block().unwrap(), Some(event("0123456789")));
            parser.push(text);
            assert_eq!(parser.next_block(), Err(ParseError::TooLarge(16)));
        };
        check(b"data: 0123456789x");
        check(b"data: 01\ndata: 01\ndata: 01\n");
        let mut parser = Parser::new(16);
        parser.push(b"data: \xff\n\n");
        assert_eq!(parser.next_block(), Err(ParseError::NotUtf8));
    }

    proptest! {
        #[test]
        fn pieces_make_the_whole(
            lines in prop::collection::vec(
                prop_oneof![
                    Just(String::new()), Just(String::new()), "(data|id|event|retry|:)(: ?[a-z0-9é:]{0,4})?", "[a-z: ]{0,6}",
                ], 0..24),
            ends in prop::collection::vec(prop_oneof![Just("\n"), Just("\r"), Just("\r\n")], 24),
            cuts in prop::collection::vec(1..6_usize, 1..200),
        ) {
            let text: String = lines.iter().zip(ends).flat_map(|(line, end)| [line.as_str(), end]).collect();
            let mut rest = text.as_bytes();
            let mut chunks = Vec::new();
            for cut in cuts {
                let (chunk, tail) = rest.split_at(cut.min(rest.len()));
                chunks.push(chunk);
                rest = tail;
            }
            chunks.push(rest);
            prop_assert_eq!(parse(&chunks), naive(&text));
        }
    }
}
