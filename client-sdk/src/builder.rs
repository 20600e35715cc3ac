//! What a client is made of: where the brokers are, who we are, whom we trust, how long we wait.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;

use crate::connection::{Endpoint, Settings};
use crate::hosts::Hosts;
use crate::{Client, Error};

/// How long a call is tried on brokers that fail.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes a [`Client`]; from [`Client::builder`].
///
/// ```
/// use std::time::Duration;
/// use walcast_client::Client;
///
/// # fn main() -> Result<(), walcast_client::Error> {
/// let client = Client::builder()
///     .hosts(["http://broker-1:8480", "http://broker-2:8480"])
///     .token("from the environment or a file")
///     .connect_timeout(Duration::from_secs(5))
///     .build()?;
/// assert!(!format!("{client:?}").contains("environment"), "a token is never shown");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct ClientBuilder {
    hosts: Vec<String>,
    token: Option<String>,
    root_certificates: Option<Vec<u8>>,
    patience: Option<Duration>,
    settings: Settings,
}

impl std::fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientBuilder").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

impl ClientBuilder {
    /// The base URLs of brokers that serve the same source, such as `https://a:8480`; adds to those named before.
    /// Any of them does: one is kept until it fails, then the next is asked.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::Client;
    ///
    /// let hosts = ["https://broker-1:8480", "https://broker-2:8480"];
    /// let client = Client::builder().hosts(hosts).build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn hosts<U: Into<String>>(mut self, urls: impl IntoIterator<Item = U>) -> Self {
        self.hosts.extend(urls.into_iter().map(Into::into));
        self
    }

    /// Is sent to each broker as `Authorization: Bearer`, and nowhere else.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::Client;
    ///
    /// let token = std::env::var("WALCAST_TOKEN")?;
    /// let client = Client::builder().hosts(["https://broker-1:8480"]).token(token).build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Trusts these certificates, in PEM, instead of those that the operating system trusts.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::Client;
    ///
    /// let authority = std::fs::read("/etc/agent/ca.pem")?;
    /// let client = Client::builder().hosts(["https://broker-1:8480"]).root_certificates(authority).build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn root_certificates(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.root_certificates = Some(pem.into());
        self
    }

    /// How long it may take until an answer begins that must come at once: name, TCP, TLS, and the broker's first
    /// byte. A wait that is held may take so much longer than it is held. Default: 10 s.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::Client;
    ///
    /// let limit = std::time::Duration::from_secs(3);
    /// let client = Client::builder().hosts(["http://broker-1:8480"]).connect_timeout(limit).build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.settings.connect_timeout = limit;
        self
    }

    /// After so much silence a stream is cut and taken up elsewhere. A broker says something at least every 25 s: less
    /// than that is for tests. Default: 60 s.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::Client;
    ///
    /// // Of brokers with `http.heartbeat = "5s"`.
    /// let limit = std::time::Duration::from_secs(15);
    /// let client = Client::builder().hosts(["http://broker-1:8480"]).silence_timeout(limit).build()?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn silence_timeout(mut self, limit: Duration) -> Self {
        self.settings.silence_max = limit;
        self
    }

    /// How long [`Client::state`] and [`Client::publish`] go on while all brokers fail: later than that no new
    /// attempt is made, and the last error is handed out. Zero asks each broker once. Waits and subscriptions go on
    /// for ever. Default: 60 s.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::Client;
    ///
    /// // Asks each broker once, as at the start of a program that is to fail early.
    /// let none = std::time::Duration::ZERO;
    /// let client = Client::builder().hosts(["http://broker-1:8480"]).patience(none).build()?;
    /// client.state("vm/host-17").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn patience(mut self, limit: Duration) -> Self {
        self.patience = Some(limit);
        self
    }

    /// Makes the client. It connects when it is first used. Reads the system's certificates if a URL is `https`
    /// and none were given, which blocks for some milliseconds.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use walcast_client::Client;
    ///
    /// let client = Client::builder().hosts(["http://broker-1:8480"]).build()?;
    /// assert!(Client::builder().hosts(["broker-1:8480"]).build().is_err());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Url`], or [`Error::Setup`]: no broker, or a token or certificate that cannot be used.
    pub fn build(self) -> Result<Client, Error> {
        let mut settings = self.settings;
        if let Some(token) = self.token {
            // The token itself must not be told.
            let unusable = |_| Error::Setup("the token has characters that no header may have".to_owned());
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(unusable)?;
            value.set_sensitive(true);
            settings.authorization = Some(value);
        }
        let https = |url: &String| url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        let encrypted = self.hosts.iter().any(https);
        #[cfg(feature = "tls")]
        if encrypted {
            settings.tls = Some(crate::tls::Tls::new(self.root_certificates.as_deref())?);
        }
        #[cfg(not(feature = "tls"))]
        let _ = (encrypted, self.root_certificates);
        let endpoints: Result<_, _> = self.hosts.iter().map(|url| Endpoint::parse(url, &settings)).collect();
        Ok(Client { hosts: Arc::new(Hosts::new(endpoints?)?), patience: self.patience.unwrap_or(PATIENCE) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_named() {
        let check = |builder: ClientBuilder, part: &str| {
            let error = builder.build().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        let hosts = |url: &str| Client::builder().hosts([url]);
        check(Client::builder(), "no broker");
        check(hosts("ftp://a"), "ftp://a");
        check(hosts("http://a").token("se\ncret"), "token");
        #[cfg(feature = "tls")]
        check(hosts("https://a").root_certificates("nothing"), "root_certificates");
        #[cfg(feature = "tls")]
        check(hosts("HTTPS://a").root_certificates("nothing"), "root_certificates");
    }

    #[test]
    fn a_token_is_never_shown() {
        let builder = Client::builder().hosts(["http://a"]).token("se-cret");
        assert!(!format!("{builder:?}").contains("se-cret"));
        let client = builder.build().unwrap();
        assert!(!format!("{client:?}").contains("se-cret"));
        let error = Client::builder().hosts(["http://a"]).token("se\ncret").build().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("cret"), "{error}");
    }
}
