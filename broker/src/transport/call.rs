//! A request that may wait, as far as it has been read: by hyper or by the wait path, which know headers in
//! different forms.

use axum::http::HeaderMap;

/// What waiting calls look at.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    pub(super) headers: &'a dyn Headers,
}

/// Headers by name.
pub(super) trait Headers: Sync {
    /// The value of the `n`th header of this name, in lower case.
    fn nth(&self, name: &str, n: usize) -> Option<&[u8]>;
}

impl Headers for HeaderMap {
    fn nth(&self, name: &str, n: usize) -> Option<&[u8]> {
        self.get_all(name).iter().nth(n).map(|value| value.as_bytes())
    }
}

impl Headers for &[httparse::Header<'_>] {
    fn nth(&self, name: &str, n: usize) -> Option<&[u8]> {
        let mut named = self.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.nth(n).map(|header| header.value)
    }
}

impl<'a> Request<'a> {
    /// The first header of this name.
    pub(super) fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers.nth(name, 0)
    }

    /// All headers of this name.
    pub(super) fn all(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        let headers = self.headers;
        (0..).map_while(move |n| headers.nth(name, n))
    }

    /// The items of all headers of this name, split at commas. What is not UTF-8 is left out.
    pub(super) fn words(&self, name: &'static str) -> impl Iterator<Item = &'a str> {
        self.all(name)
            .filter_map(|value| std::str::from_utf8(value).ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
    }

    /// Whether one of the items of this header is `word`, whatever the case.
    pub(super) fn says(&self, name: &'static str, word: &str) -> bool {
        self.words(name).any(|it| it.eq_ignore_ascii_case(word))
    }
}
