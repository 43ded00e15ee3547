//! Beats in the background, on a thread of its own.
//!
//! # Intuition
//!
//! Whoever forgets to beat is reaped, and the commonest way to forget is to be busy: a task that computes for a minute
//! stands in the way of every other task of its runtime, the one that beats among them. So a [`Heart`] has an operating
//! system thread, a runtime and connections of its own, and shares with its host nothing but the process. As long as
//! that is scheduled, it beats; when it is stopped or killed, so is the heart, which is what silence is to mean.
//!
//! # What it can tell
//!
//! The heart learns that the run is lost (*fenced*), that somebody wants it stopped (*cancelled*), or that it has not
//! been heard of for so long that the service may have given the run to somebody else (*lost contact*). The last is
//! reckoned on this host's monotonic clock from when the last answered heartbeat was **sent**, and against how long the
//! service said that it would believe in it: so it is noticed here no later than there, whatever the clocks say. Before
//! the first answer it is reckoned from when the heart was started: so start it as soon as the run is claimed.
//! Contact may come back, and then it turns out which of the others it is, or none: the signal is taken back.
//!
//! # Rejected
//!
//! Beating from the host's runtime, with a task: it is what fails. A second process: it would beat for a host that is
//! dead.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lastbeat_wire::{Directive, HeartbeatDocument, HeartbeatRequest};
use serde_json::Value;
use tokio::sync::{Notify, watch};

use crate::api::Api;
use crate::backoff::{Backoff, shortened};
use crate::error::ClientError;
use crate::lease::Lease;

/// By how much of the interval a heartbeat may be early, so that a fleet does not beat in step.
const EARLY_SHARE: f64 = 0.2;
/// One heartbeat may take half an interval, within these bounds.
const BEAT_TIMEOUT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// The pause before a heartbeat that was not answered is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Why the work has to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The run is no longer ours: it was reaped, or ended in another way. What is done from here on is lost.
    Fenced(String),
    /// Somebody asked for the run to be cancelled: stop, and report it with [`Api::cancelled`].
    Cancelled,
    /// No heartbeat has been answered for longer than the service believes in the attempt: it may have been reaped, and
    /// somebody else may be at work. The heart goes on beating.
    LostContact,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Fenced(why) => write!(f, "fenced: {why}"),
            Stop::Cancelled => f.write_str("somebody asked for the run to be cancelled"),
            Stop::LostContact => f.write_str("contact was lost for longer than the window"),
        }
    }
}

/// Beats for a lease until it is dropped, or fenced.
#[derive(Debug)]
pub struct Heart {
    signal: watch::Receiver<Option<Stop>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What the next heartbeat is to tell.
    progress: Mutex<Option<Value>>,
    /// Wakes the thread to end.
    end: Notify,
}

impl Heart {
    /// Begins to beat, at once.
    ///
    /// # Errors
    /// If the client, the runtime or the thread cannot be made.
    pub fn start(api: &Api, lease: Lease) -> Result<Heart, ClientError> {
        let setup = |error: std::io::Error| ClientError::Setup(format!("no thread for the heartbeats: {error}"));
        let timeout = (lease.next_beat_within / 2).clamp(BEAT_TIMEOUT.0, BEAT_TIMEOUT.1);
        let api = api.apart(timeout)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(setup)?;
        let (sender, signal) = watch::channel(None);
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let beat = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = theirs.end.notified() => {}
                    () = keep_beating(&api, &lease, &theirs, &sender) => {}
                }
            });
            // A name that is being looked up would keep the thread.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("lastbeat-heart".to_owned()).spawn(beat).map_err(setup)?;
        Ok(Heart { signal, shared, thread: Some(thread) })
    }

    /// Returns why the work has to stop, as of now; `None` while all is well.
    pub fn stop(&self) -> Option<Stop> {
        self.signal.borrow().clone()
    }

    /// Waits until the work has to stop, and says why.
    pub async fn stopped(&self) -> Stop {
        let mut signal = self.signal.clone();
        // The thread keeps the sender until the heart ends, unless it was fenced, and then that stands there.
        let stop = signal.wait_for(Option::is_some).await.ok().and_then(|stop| stop.clone());
        match stop {
            Some(stop) => stop,
            None => std::future::pending().await,
        }
    }

    /// Waits until the work has to stop for good: lost contact is passed over, since it may come back.
    pub async fn ended(&self) -> Stop {
        let mut signal = self.signal.clone();
        let for_good = |stop: &Option<Stop>| matches!(stop, Some(Stop::Fenced(_) | Stop::Cancelled));
        let stop = signal.wait_for(for_good).await.ok().and_then(|stop| stop.clone());
        match stop {
            Some(stop) => stop,
            None => std::future::pending().await,
        }
    }

    /// Tells, with the next heartbeat, how far the work is.
    pub fn progress(&self, progress: Value) {
        *self.shared.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(progress);
    }
}

impl Drop for Heart {
    /// Stops beating: after this nothing is sent any more.
    fn drop(&mut self) {
        self.shared.end.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is known of the contact with the service, by this host's monotonic clock.
struct Contact {
    /// When the last heartbeat that was answered was sent.
    heard: Instant,
    /// How long the service believes in the attempt from then on; `None`: for ever.
    believed_for: Option<Duration>,
}

impl Contact {
    /// Returns when contact counts as lost.
    fn ends(&self) -> Option<Instant> {
        self.believed_for.and_then(|time| self.heard.checked_add(time))
    }
}

async fn keep_beating(api: &Api, lease: &Lease, shared: &Shared, signal: &watch::Sender<Option<Stop>>) {
    let mut contact = Contact { heard: Instant::now(), believed_for: lease.believed_for };
    let mut within = lease.next_beat_within;
    let mut backoff = Backoff::new(RETRY_PAUSE, within / 4);
    let mut unanswered = 0_u64;
    loop {
        let sent = Instant::now();
        let beat = beat(api, lease, shared);
        let answer = tokio::select! {
            answer = beat => answer,
            // Lost contact is told when it is due, not when the request that is under way fails.
            () = lost(&contact, signal) => continue,
        };
        let pause = match answer {
            Ok(heard) => {
                contact = Contact { heard: sent, believed_for: believed_for(&heard) };
                within = heard.next_beat_within_seconds.to_std();
                backoff = Backoff::new(RETRY_PAUSE, within / 4);
                unanswered = 0;
                let stop = (heard.directive == Directive::Cancel).then_some(Stop::Cancelled);
                tell(signal, stop);
                shortened(within, EARLY_SHARE).saturating_sub(sent.elapsed())
            }
            Err(error) if error.is_fenced() => {
                tell(signal, Some(Stop::Fenced(error.to_string())));
                return;
            }
            Err(error) => {
                unanswered += 1;
                // An outage is worth one line, not one for each try.
                if unanswered == 1 {
                    tracing::warn!(%error, run = %lease.run, "a heartbeat was not answered; it is sent again");
                } else {
                    tracing::debug!(%error, run = %lease.run, unanswered, "a heartbeat was not answered");
                }
                backoff.pause()
            }
        };
        let next = tokio::time::Instant::now() + pause;
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = lost(&contact, signal) => tokio::time::sleep_until(next).await,
        }
    }
}

async fn beat(api: &Api, lease: &Lease, shared: &Shared) -> Result<HeartbeatDocument, ClientError> {
    let waiting = || shared.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let progress = waiting().clone();
    let request = HeartbeatRequest { attempt: lease.attempt, claim: lease.claim.clone(), progress };
    let heard = api.heartbeat(lease.run, &request).await?;
    // What was told need not be told again, unless the work has got further meanwhile.
    let mut left = waiting();
    if *left == request.progress {
        *left = None;
    }
    Ok(heard)
}

fn believed_for(heard: &HeartbeatDocument) -> Option<Duration> {
    heard.lapses_at.map(|lapses_at| lapses_at.since(heard.at).to_std())
}

/// Waits until contact counts as lost and tells it, once.
async fn lost(contact: &Contact, signal: &watch::Sender<Option<Stop>>) {
    match contact.ends() {
        Some(ends) if signal.borrow().is_none() => {
            tokio::time::sleep_until(ends.into()).await;
            tell(signal, Some(Stop::LostContact));
        }
        // It is told already, or cancelled, which is no less a reason.
        _ => std::future::pending().await,
    }
}

fn tell(signal: &watch::Sender<Option<Stop>>, stop: Option<Stop>) {
    signal.send_if_modified(|told| {
        let news = *told != stop;
        *told = stop;
        news
    });
}
