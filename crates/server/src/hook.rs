//! Telling somebody of each reap: `timed_out` events, posted to a URL.
//!
//! A hook follows the log by a cursor that the store keeps under a name made from the URL, so it goes on where it
//! stopped, whichever replica goes on. Each event is posted until the receiver says 2xx, however long that takes, and
//! only then the cursor moves past it: so events come in order and at least once. A receiver that must not act twice
//! looks at `Lastbeat-Delivery`, which is the same each time an event is posted.
//!
//! Several replicas follow one cursor and nobody leads. Each looks where the cursor is before every post, and replicas
//! look at different moments, so that mostly one of them posts an event. Rejected: a lease, which would be a second
//! thing that decides who lives, for a receiver that must bear repetitions anyway.
//!
//! What is signed is the instant and the body: `Lastbeat-Signature: t=<unix seconds>,v1=<hex>`, where `v1` is the
//! HMAC-SHA256 of `<t>.<body>`. A receiver refuses what is too old, so that nobody can play an old post again.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use hmac::{Hmac, Mac};
use lastbeat_domain::decide::{Command, CursorMove};
use lastbeat_domain::{Name, RunEvent, Timestamp};
use lastbeat_store::{FeedEntry, FeedFact, Store, StoreError, Stored};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

/// How many facts are read at a time.
const PAGE: usize = 500;
/// How many facts that are no reaps are passed over before the cursor is moved past them.
const PASSED_MAX: u64 = 10_000;

/// What posts are signed with. It is not printed by `{:?}`.
#[derive(Clone)]
pub struct HookSecret(Vec<u8>);

impl HookSecret {
    /// Wraps the secret; the receiver has the same.
    pub fn new(secret: impl Into<Vec<u8>>) -> HookSecret {
        HookSecret(secret.into())
    }

    /// Returns the header that signs a body at an instant.
    fn sign(&self, at: Timestamp, body: &str) -> Result<String, HookError> {
        let seconds = at.as_micros().div_euclid(1_000_000);
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).map_err(|_| HookError::Secret)?;
        mac.update(format!("{seconds}.{body}").as_bytes());
        Ok(format!("t={seconds},v1={}", hex(&mac.finalize().into_bytes())))
    }
}

impl fmt::Debug for HookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookSecret(…)")
    }
}

/// How a hook is to be.
#[derive(Clone, Debug)]
pub struct HookOptions {
    /// Where `timed_out` events are posted.
    pub url: String,
    /// What posts are signed with.
    pub secret: HookSecret,
    /// How long the receiver may take to answer.
    pub timeout: Duration,
    /// The pause after the first post that failed, doubled for each further one.
    pub retry_min: Duration,
    /// The longest pause between two posts of an event.
    pub retry_max: Duration,
    /// How often the log is looked at while nothing comes.
    pub poll: Duration,
}

impl HookOptions {
    /// Makes the options of a hook with nothing else said.
    pub fn new(url: impl Into<String>, secret: HookSecret) -> HookOptions {
        HookOptions {
            url: url.into(),
            secret,
            timeout: Duration::from_secs(10),
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            poll: Duration::from_millis(500),
        }
    }
}

/// Why there can be no hook.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The URL cannot be read, or is of another kind.
    #[error("on-reap: `{0}` is no URL that begins with http:// or https://")]
    Url(String),
    /// The secret is none.
    #[error("on-reap-secret: it must not be empty")]
    Secret,
    /// There can be no client.
    #[error("on-reap: {0}")]
    Client(reqwest::Error),
}

/// Posts each reap to a URL, in order, at least once.
pub struct Hook {
    store: Arc<dyn Store>,
    options: HookOptions,
    url: Url,
    client: Client,
    cursor: Name,
}

impl Hook {
    /// Makes a hook; it does nothing before [`Hook::run`].
    ///
    /// # Errors
    /// If the URL or the secret is none.
    pub fn new(store: Arc<dyn Store>, options: HookOptions) -> Result<Hook, HookError> {
        let bad_url = || HookError::Url(options.url.clone());
        let url = Url::parse(&options.url).map_err(|_| bad_url())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad_url());
        }
        if options.secret.0.is_empty() {
            return Err(HookError::Secret);
        }
        // It is the process's; whoever came first has set the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let agent = concat!("lastbeat/", env!("CARGO_PKG_VERSION"));
        // A post is not repeated elsewhere: who gets the events is for the operator to say.
        let builder = Client::builder().user_agent(agent).redirect(Policy::none()).timeout(options.timeout);
        let client = builder.build().map_err(HookError::Client)?;
        let cursor = format!("hook:{}", &hex(&Sha256::digest(options.url.as_bytes()))[..16]);
        let cursor = Name::new(cursor).map_err(|_| bad_url())?;
        Ok(Hook { store, options, url, client, cursor })
    }

    /// Returns the name of its cursor.
    pub fn cursor(&self) -> &Name {
        &self.cursor
    }

    /// Posts reaps until `stop` completes. Nothing else waits for it, and it never gives up: while the store or the
    /// receiver is away it tries again. A post that is under way then is broken off, and made again by whoever goes on.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let (begin, stopped) = watch::channel(false);
        let stop = async {
            stop.await;
            let _ = begin.send(true);
        };
        let stopped = Stopped(stopped);
        tokio::join!(self.follow(&stopped), stop);
    }

    async fn follow(&self, stopped: &Stopped) {
        let mut delays = self.delays();
        let mut seen = 0;
        while !stopped.is_true() {
            match self.advance(&mut seen, stopped).await {
                Ok(true) => delays = self.delays(),
                Ok(false) => {
                    delays = self.delays();
                    stopped.sleep(self.pause()).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "reaps cannot be read from the store; they will be posted later");
                    stopped.sleep(delays.next().unwrap_or(self.options.retry_max)).await;
                }
            }
        }
    }

    /// Goes through the next page of the log. Returns whether there was one. `seen` is how far this replica has looked,
    /// which is further than the cursor where no reaps are.
    async fn advance(&self, seen: &mut u64, stopped: &Stopped) -> Result<bool, StoreError> {
        let Some(cursor) = self.store.cursor(&self.cursor).await? else {
            self.move_cursor(CursorMove::Begin).await?;
            return Ok(true);
        };
        *seen = cursor.max(*seen);
        let page = self.store.feed(*seen, PAGE).await?;
        for entry in &page {
            if let Some(reap) = Reap::of(entry) {
                if !self.deliver(&reap, stopped).await {
                    return Ok(true);
                }
                self.move_cursor(CursorMove::To(entry.position)).await?;
            }
            *seen = entry.position;
        }
        // Whoever begins again need not pass over all of it again.
        if *seen - cursor > PASSED_MAX {
            self.move_cursor(CursorMove::To(*seen)).await?;
        }
        Ok(!page.is_empty())
    }

    /// Posts a reap until it is taken, by this replica or another one. Returns whether it was: not, if it is to stop.
    async fn deliver(&self, reap: &Reap, stopped: &Stopped) -> bool {
        let mut delays = self.delays();
        while !stopped.is_true() {
            match self.store.cursor(&self.cursor).await {
                Ok(Some(cursor)) if cursor >= reap.position => return true,
                Ok(_) => match stopped.or(self.post(reap)).await {
                    None => return false,
                    Some(Ok(())) => return true,
                    Some(Err(why)) => tracing::warn!(delivery = reap.delivery, why, "a reap could not be posted"),
                },
                Err(error) => tracing::warn!(%error, delivery = reap.delivery, "a reap is posted later"),
            }
            stopped.sleep(delays.next().unwrap_or(self.options.retry_max)).await;
        }
        false
    }

    async fn post(&self, reap: &Reap) -> Result<(), String> {
        let signature =
            self.options.secret.sign(self.store.clock().now(), &reap.body).map_err(|error| error.to_string())?;
        let request = self
            .client
            .post(self.url.clone())
            .header("Content-Type", "application/json")
            .header("Lastbeat-Delivery", &reap.delivery)
            .header("Lastbeat-Signature", signature)
            .body(reap.body.clone());
        // The URL may hold a password, and says nothing new.
        let response = request.send().await.map_err(|error| because(&error.without_url()))?;
        if response.status().is_success() {
            Ok(())
        } else {
            Err(format!("the receiver answered {}", response.status()))
        }
    }

    async fn move_cursor(&self, to: CursorMove) -> Result<(), StoreError> {
        let command = Command::MoveCursor { name: self.cursor.clone(), to };
        match self.store.execute(vec![command]).await.pop() {
            Some(Err(lastbeat_store::CommandError::Failed(error))) => Err(error),
            // It is refused only ahead of the log, where no fact was read.
            _ => Ok(()),
        }
    }

    fn delays(&self) -> impl Iterator<Item = Duration> + use<> {
        ExponentialBuilder::default()
            .with_min_delay(self.options.retry_min)
            .with_max_delay(self.options.retry_max)
            .with_jitter()
            .without_max_times()
            .build()
    }

    /// How long to wait for news: between half and one and a half times as long as was asked for, so that replicas
    /// look at different moments.
    fn pause(&self) -> Duration {
        let chance = RandomState::new().hash_one(()) % 1_000;
        self.options.poll / 2 + self.options.poll * u32::try_from(chance).unwrap_or(0) / 1_000
    }
}

/// Says whether a hook is to stop. It breaks off waiting and posting; what is asked of the store is never broken off.
struct Stopped(watch::Receiver<bool>);

impl Stopped {
    fn is_true(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns what comes of a future, unless the hook is to stop first.
    async fn or<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut receiver = self.0.clone();
        tokio::select! {
            _ = receiver.wait_for(|stopped| *stopped) => None,
            output = future => Some(output),
        }
    }

    async fn sleep(&self, time: Duration) {
        self.or(tokio::time::sleep(time)).await;
    }
}

/// A reap, as it is posted.
struct Reap {
    position: u64,
    /// Tells this event from every other one.
    delivery: String,
    body: String,
}

impl Reap {
    fn of(entry: &FeedEntry) -> Option<Reap> {
        let FeedFact::Run(Stored::Known(recorded)) = &entry.fact else { return None };
        let RunEvent::TimedOut { .. } = &recorded.event else { return None };
        let delivery = format!("{}:{}", recorded.run, recorded.version);
        let body = serde_json::to_string(recorded).ok()?;
        Some(Reap { position: entry.position, delivery, body })
    }
}

/// Says why a request failed, down to the cause.
fn because(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_hmac_of_instant_and_body() {
        // Computed with: printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac hush
        let known = "7cfd1df542c33ab7251748ffdc6e7fed278c63b83d4ece95a4534b0ad465571b";
        let header = HookSecret::new("hush").sign(Timestamp::from_micros(1_700_000_000_999_999), r#"{"a":1}"#).unwrap();
        assert_eq!(header, format!("t=1700000000,v1={known}"));
        assert_eq!(format!("{:?}", HookSecret::new("hush")), "HookSecret(…)");
    }
}
