//! Sending a request until it is answered: which failures are tried again, where, and for how long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lastbeat_wire::Problem;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Method, StatusCode, Url, redirect};
use rustls::RootCertStore;
use rustls_platform_verifier::BuilderVerifierExt;

use crate::backoff::Backoff;
use crate::error::ClientError;
use crate::options::Options;
use crate::servers::Servers;

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause before the second try, and the longest pause.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The longest pause that a server may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// A request.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: Vec<String>,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// Whether it does no harm to send it again after its answer was lost.
    pub(crate) repeatable: bool,
    /// How long the server itself waits before it answers.
    pub(crate) wait: Duration,
    /// For how long it is tried again.
    pub(crate) patience: Duration,
}

/// An answer.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Vec<u8>,
    /// Who gave it.
    pub(crate) address: String,
}

/// A try that came to nothing for now.
struct Later {
    error: ClientError,
    /// The request may have been carried out.
    maybe_done: bool,
    /// How long the server asks to wait.
    after: Option<Duration>,
}

/// Sends requests.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    client: Client,
    servers: Arc<Servers>,
    token: Option<HeaderValue>,
    timeout: Duration,
}

impl Sender {
    pub(crate) fn new(options: &Options) -> Result<Sender, ClientError> {
        let servers = Arc::new(Servers::new(options.servers.clone()));
        Sender::on(options, servers, options.request_timeout)
    }

    /// Makes a sender with connections of its own to the same servers: connections belong to the runtime on which they
    /// were made, and stand still with it.
    pub(crate) fn apart(&self, options: &Options, timeout: Duration) -> Result<Sender, ClientError> {
        Sender::on(options, Arc::clone(&self.servers), timeout)
    }

    fn on(options: &Options, servers: Arc<Servers>, timeout: Duration) -> Result<Sender, ClientError> {
        let setup = |error: &dyn std::fmt::Display| ClientError::Setup(error.to_string());
        let client = Client::builder()
            .user_agent(concat!("lastbeat/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls(options.needs_tls()).map_err(|error| setup(&error))?)
            .connect_timeout(CONNECT_TIMEOUT.min(timeout))
            // A redirect would take the token to somebody else.
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .build()
            .map_err(|error| setup(&error))?;
        let token = options.token.as_ref().map(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| ClientError::Setup("the token holds characters that no token has".to_owned()))?;
            value.set_sensitive(true);
            Ok::<_, ClientError>(value)
        });
        Ok(Sender { client, servers, token: token.transpose()?, timeout })
    }

    /// Sends a request to the server that answered last, and on a failure to the others in turn, again and again with
    /// growing pauses for as long as the request is worth it. Every server is tried once in any case.
    ///
    /// # Errors
    /// If no server gave an answer that will do.
    pub(crate) async fn send(&self, request: &Request) -> Result<Reply, ClientError> {
        let started = Instant::now();
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let mut tries = 0;
        loop {
            let server = self.servers.preferred();
            let later = match self.once(server, request).await {
                Ok(reply) => return Ok(reply),
                Err(later) => later,
            };
            if later.maybe_done && !request.repeatable {
                let why = later.error.to_string();
                return Err(if later.error.problem().is_some() {
                    later.error
                } else {
                    ClientError::OutcomeUnknown { why }
                });
            }
            self.servers.move_on(server);
            tries += 1;
            tracing::debug!(error = %later.error, tries, "a request is tried again");
            if tries % self.servers.len() == 0 {
                let pause = backoff.pause().max(later.after.unwrap_or_default());
                if started.elapsed() + pause > request.patience {
                    return Err(later.error);
                }
                tokio::time::sleep(pause).await;
            }
        }
    }

    async fn once(&self, server: usize, request: &Request) -> Result<Reply, Later> {
        let address = self.servers.get(server);
        let url = url(address, request);
        let mut sent = self.client.request(request.method.clone(), url).timeout(self.timeout + request.wait);
        for (name, value) in &request.headers {
            sent = sent.header(*name, value);
        }
        if let Some(token) = &self.token {
            sent = sent.header(AUTHORIZATION, token.clone());
        }
        if let Some(body) = &request.body {
            sent = sent.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        let lost = |error: &reqwest::Error| Later {
            maybe_done: !error.is_connect() && !error.is_builder(),
            error: ClientError::Unreachable { addresses: self.servers.addresses(), why: causes(error) },
            after: None,
        };
        let mut response = sent.send().await.map_err(|error| lost(&error))?;
        let status = response.status();
        let after = response.headers().get(RETRY_AFTER).and_then(seconds);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| lost(&error))? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                let why = format!("it is longer than {ANSWER_BYTES_MAX} bytes");
                let error = ClientError::BadAnswer { address: address.to_string(), why };
                return Err(Later { error, maybe_done: true, after: None });
            }
            body.extend_from_slice(&chunk);
        }
        // Too many requests are turned away at the door; behind the others something may have happened.
        let maybe_done = match status.as_u16() {
            429 => false,
            502..=504 => true,
            _ => return Ok(Reply { status, body, address: address.to_string() }),
        };
        let error = ClientError::Refused(Box::new(problem(status, &body)));
        Err(Later { error, maybe_done, after })
    }
}

/// The configuration of TLS: with the roots of the system, or, where no address needs any, without, since a small image
/// may have none.
fn tls(needed: bool) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    if needed {
        Ok(builder.with_platform_verifier()?.with_no_client_auth())
    } else {
        Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
    }
}

fn url(server: &Url, request: &Request) -> Url {
    let mut url = server.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().push("v1").extend(&request.path);
    }
    if !request.query.is_empty() {
        url.query_pairs_mut().extend_pairs(&request.query);
    }
    url
}

fn seconds(value: &HeaderValue) -> Option<Duration> {
    let seconds = value.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// An error with its causes: the outermost says little more than that something failed.
fn causes(error: &reqwest::Error) -> String {
    if error.is_timeout() && !error.is_connect() {
        return "it did not answer in time".to_owned();
    }
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

/// Reads a problem; what is none, a proxy's page for instance, becomes one.
pub(crate) fn problem(status: StatusCode, body: &[u8]) -> Problem {
    let mut problem = serde_json::from_slice::<Problem>(body).unwrap_or_else(|_| {
        let title = status.canonical_reason().unwrap_or("the request failed");
        Problem::new(status.as_u16(), title, "", "")
    });
    problem.status = status.as_u16();
    problem
}
