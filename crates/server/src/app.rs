//! What the handlers share.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use lastbeat_store::{ServiceLog, Store, StoreError};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::dashboard::Kept;
use crate::health::Readiness;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::openapi::openapi_json;
use crate::owners::Owners;
use crate::rate::Rates;
use crate::shutdown::Shutdown;
use crate::work::Work;

/// How often the service log is read: what one replica records, a revoked token above all, holds on every other one
/// within twice this time.
const REFRESH_INTERVAL: Duration = Duration::from_millis(400);
/// How fresh the service log is after [`App::fresh_service`].
const FRESH_FOR: Duration = Duration::from_millis(20);

/// How often the end of the log is looked at for those who follow it.
const WATCH_INTERVAL: Duration = Duration::from_millis(150);

/// What the handlers share; cheap to clone.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

/// The parts of an [`App`].
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) limits: Limits,
    /// Once it begins, streams end, and nobody waits for work any longer.
    pub(crate) shutdown: Shutdown,
    /// Who waits for work.
    pub(crate) work: Work,
    /// How much each token has asked for lately.
    pub(crate) rates: Rates,
    /// A permit for each request that is answered, heartbeats aside.
    pub(crate) requests: Semaphore,
    /// A permit for each question that may read much. There are fewer of them than the store has connections to read
    /// with.
    pub(crate) searches: Semaphore,
    /// A permit for each backtest.
    pub(crate) backtests: Semaphore,
    /// A permit for each stream.
    pub(crate) streams: Arc<Semaphore>,
    /// A permit for each claim that may wait for work.
    pub(crate) claims: Semaphore,
    /// The position of the last event of the log, while somebody follows it.
    pub(crate) log_end: watch::Sender<u64>,
    /// Whose claim is whose.
    pub(crate) owners: Owners,
    /// What is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// The description of the API.
    pub(crate) openapi: Arc<str>,
    /// A permit for each heartbeat request.
    pub(crate) beats: Semaphore,
    /// Whether the store could carry anything out when it was last asked, and when that was.
    pub(crate) readiness: Arc<tokio::sync::Mutex<Option<(Instant, Readiness)>>>,
    /// What the dashboard shows first, as it was last gathered.
    pub(crate) gathered: Kept,
    /// Heartbeats that were turned away since the last beacon.
    shed: AtomicU64,
    /// The service log as it was last read.
    service: RwLock<Arc<ServiceLog>>,
    /// When that was.
    refreshed: tokio::sync::Mutex<Instant>,
}

/// How many questions that may read much are answered at once.
const SEARCHES_MAX: usize = 2;
/// How many backtests are answered at once, beside them.
const BACKTESTS_MAX: usize = 1;

impl App {
    /// Makes what the handlers of a store share, once it has said what its service log holds.
    pub(crate) async fn new(store: Arc<dyn Store>, limits: Limits, shutdown: Shutdown) -> Result<App, StoreError> {
        let service = RwLock::new(store.service_log().await?);
        Ok(App(Arc::new(Shared {
            work: Work::default(),
            rates: Rates::new(limits.rate, limits.burst),
            requests: Semaphore::new(limits.requests),
            searches: Semaphore::new(SEARCHES_MAX),
            backtests: Semaphore::new(BACKTESTS_MAX),
            streams: Arc::new(Semaphore::new(limits.streams)),
            beats: Semaphore::new(limits.beats),
            claims: Semaphore::new(limits.waiting_claims),
            log_end: watch::Sender::new(0),
            owners: Owners::new(),
            metrics: Metrics::new(),
            openapi: openapi_json().into(),
            readiness: Arc::default(),
            gathered: Kept::default(),
            shed: AtomicU64::new(0),
            refreshed: tokio::sync::Mutex::new(Instant::now()),
            service,
            store,
            limits,
            shutdown,
        })))
    }

    /// Returns the store.
    pub(crate) fn store(&self) -> &dyn Store {
        self.0.store.as_ref()
    }

    /// Returns the service log as it was last read, at most a moment ago while the database is there.
    pub(crate) fn service(&self) -> Arc<ServiceLog> {
        Arc::clone(&self.service.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the service log now, unless somebody just did.
    pub(crate) async fn fresh_service(&self) -> Result<Arc<ServiceLog>, StoreError> {
        let mut refreshed = self.refreshed.lock().await;
        if refreshed.elapsed() > FRESH_FOR {
            let log = self.store().service_log().await?;
            *self.service.write().unwrap_or_else(PoisonError::into_inner) = log;
            *refreshed = Instant::now();
        }
        Ok(self.service())
    }

    /// Reads the service log now, because this process added to it.
    pub(crate) async fn reread_service(&self) -> Result<Arc<ServiceLog>, StoreError> {
        let mut refreshed = self.refreshed.lock().await;
        let log = self.store().service_log().await?;
        *self.service.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&log);
        *refreshed = Instant::now();
        Ok(log)
    }

    /// Says whether everybody may do everything, since no token was ever made.
    pub(crate) fn is_open(&self) -> bool {
        self.service().tokens.is_empty()
    }

    /// Notes that heartbeats were turned away.
    pub(crate) fn note_shed(&self, beats: u64) {
        self.shed.fetch_add(beats, Ordering::Relaxed);
    }

    /// Returns how many heartbeats were turned away since the last time.
    pub(crate) fn take_shed(&self) -> u64 {
        self.shed.swap(0, Ordering::Relaxed)
    }
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Reads the service log again and again until the shutdown begins.
pub(crate) async fn refresh(app: App) {
    loop {
        tokio::select! {
            () = app.shutdown.begins() => return,
            () = tokio::time::sleep(REFRESH_INTERVAL) => {}
        }
        if let Err(error) = app.fresh_service().await {
            tracing::debug!(%error, "the service log could not be read");
        }
    }
}

/// Looks at the end of the log again and again, while anybody follows it, until the shutdown begins.
pub(crate) async fn watch_log(app: App) {
    loop {
        tokio::select! {
            () = app.shutdown.begins() => return,
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
        if app.log_end.receiver_count() == 0 {
            continue;
        }
        match app.store().log_end().await {
            Ok(end) => {
                app.log_end.send_if_modified(|known| std::mem::replace(known, end) != end);
            }
            Err(error) => tracing::debug!(%error, "the end of the log cannot be read"),
        }
    }
}
