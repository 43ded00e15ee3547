//! Where the servers are, and how patient to be.

use std::fmt;
use std::time::Duration;

use reqwest::Url;

use crate::error::ClientError;

/// How a client finds its servers and how it deals with them.
#[derive(Clone)]
pub struct Options {
    pub(crate) servers: Vec<Url>,
    pub(crate) token: Option<String>,
    pub(crate) request_timeout: Duration,
    pub(crate) patience: Duration,
    pub(crate) report_patience: Duration,
}

impl Options {
    /// How long one request may take.
    pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
    /// For how long a call is tried again while no server answers.
    pub const PATIENCE: Duration = Duration::from_secs(10);
    /// For how long the end of a run is reported again until the answer is known: a day.
    pub const REPORT_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

    /// Names the servers, separated by commas. Any of them may be asked: they are replicas of one service.
    ///
    /// # Errors
    /// If an address is no `http://` or `https://` URL, or none is given.
    pub fn new(servers: &str) -> Result<Options, ClientError> {
        let addresses = servers.split(',').map(str::trim).filter(|address| !address.is_empty());
        let servers = addresses.map(parse).collect::<Result<Vec<Url>, ClientError>>()?;
        if servers.is_empty() {
            return Err(ClientError::BadAddress { address: String::new(), why: "it is empty".to_owned() });
        }
        Ok(Options {
            servers,
            token: None,
            request_timeout: Options::REQUEST_TIMEOUT,
            patience: Options::PATIENCE,
            report_patience: Options::REPORT_PATIENCE,
        })
    }

    /// Presents a token.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Options {
        self.token = Some(token.into());
        self
    }

    /// Sets how long one request may take before it counts as lost.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Options {
        self.request_timeout = timeout;
        self
    }

    /// Sets for how long a call is tried again while no server answers. Each server is tried once in any case.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Options {
        self.patience = patience;
        self
    }

    /// Sets for how long the end of a run (completed, failed, cancelled) is reported again until the answer is known.
    #[must_use]
    pub fn report_patience(mut self, patience: Duration) -> Options {
        self.report_patience = patience;
        self
    }

    pub(crate) fn needs_tls(&self) -> bool {
        self.servers.iter().any(|server| server.scheme() == "https")
    }
}

impl fmt::Debug for Options {
    /// Leaves the token out, so that it gets into no log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<&str> = self.servers.iter().map(Url::as_str).collect();
        f.debug_struct("Options")
            .field("servers", &servers)
            .field("token", &self.token.is_some())
            .finish_non_exhaustive()
    }
}

fn parse(address: &str) -> Result<Url, ClientError> {
    let bad = |why: String| ClientError::BadAddress { address: without_password(address), why };
    let mut url = Url::parse(address).map_err(|error| bad(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("it does not begin with http:// or https://".to_owned()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("it holds a user or a password; a token is given on its own".to_owned()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it has a query".to_owned()));
    }
    // Routes are appended to the path, which may be that of a proxy.
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// An address as it may be shown.
fn without_password(address: &str) -> String {
    match (address.find("://"), address.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &address[..scheme], &address[at..]),
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_urls_and_may_be_several() {
        let options = Options::new("http://a:7171, https://b/lastbeat/ ,").unwrap();
        let servers: Vec<&str> = options.servers.iter().map(Url::as_str).collect();
        assert_eq!(servers, ["http://a:7171/", "https://b/lastbeat"]);
        for bad in ["", ",", "a:7171", "ftp://a", "http://a?x=1", "/tmp"] {
            assert!(Options::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let error = Options::new("http://ann:secret@a:7171").unwrap_err().to_string();
        assert!(!error.contains("secret") && error.contains("a:7171"), "{error}");
        let options = Options::new("http://a").unwrap().token("lb_secret");
        assert!(!format!("{options:?}").contains("secret"));
    }
}
