//! A server from its start to its end: listener, sweeper, beacons, and a shutdown that leaves nothing half done.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lastbeat_domain::{Name, Span};
use lastbeat_store::{Store, StoreError};
use lastbeat_sweeper::{SweepReport, Sweeper, sweep_until};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::app::{App, refresh, watch_log};
use crate::beacons;
use crate::compaction::{self, Compaction};
use crate::connections;
use crate::hook::{Hook, HookError, HookOptions};
use crate::limits::Limits;
use crate::metrics::{COUNT_INTERVAL, count_runs};
use crate::router::router;
use crate::shutdown::Shutdown;

/// How long to wait before sweeping again after the store failed in a way that may not pass.
const SWEEP_PAUSE: Duration = Duration::from_secs(5);

/// How a server is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What evidence and beacons call this process.
    pub process: Name,
    /// The longest that the sweeper sleeps; `None`: this server does not sweep, others do.
    pub sweep_interval: Option<Span>,
    /// When heartbeats are compacted; `None`: this server does not do it.
    pub compaction: Option<Compaction>,
    /// Whether it says that executors can be heard through it. Not so beside a store to which they write themselves: then
    /// it is for looking alone, and it is others who listen.
    pub beacons: bool,
    /// Who is told of each reap.
    pub on_reap: Option<HookOptions>,
    /// What it puts up with.
    pub limits: Limits,
}

impl Options {
    /// Makes the options of a server that listens on an address and sweeps, with nothing else said.
    pub fn new(listen: SocketAddr, process: Name) -> Options {
        let (sweep_interval, limits) = (Some(Span::from_seconds(1)), Limits::default());
        let compaction = Some(Compaction::default());
        Options { listen, process, sweep_interval, compaction, beacons: true, on_reap: None, limits }
    }
}

/// Why a server does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// Others could reach it, and nobody would be asked who they are.
    #[error(
        "{0} can be reached from elsewhere, and there are no tokens, so anybody could do anything; make the first one \
         with `lastbeat token create --role admin --name NAME`, or listen on 127.0.0.1"
    )]
    NoTokens(SocketAddr),
    /// Nobody can be told of reaps like that.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A server that runs.
pub struct Server {
    /// The address on which it listens.
    pub address: SocketAddr,
    /// Whether everybody who reaches it may do everything, since no token was ever made.
    pub is_open: bool,
    app: App,
    /// As what it beacons, if it does.
    process: Option<Name>,
    stop: watch::Sender<bool>,
    listening: JoinHandle<()>,
    beside: Vec<JoinHandle<()>>,
}

impl Server {
    /// Returns how many claims wait for work.
    pub fn waiting_claims(&self) -> usize {
        self.app.work.len()
    }

    /// Stops: takes no more requests, finishes those in flight, ends streams, and says that it is not to be counted on
    /// any longer.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        for task in std::iter::once(self.listening).chain(self.beside) {
            if let Err(error) = task.await {
                tracing::error!(%error, "a part of the server did not end as it should");
            }
        }
        if let Some(process) = &self.process {
            beacons::last(&self.app, process).await;
        }
    }
}

/// Starts a server on a store. It runs until [`Server::stop`].
///
/// # Errors
/// If the address cannot be listened on or is not for a server without tokens, or the store fails.
pub async fn serve(store: Arc<dyn Store>, options: Options) -> Result<Server, ServeError> {
    let Options { listen, process, sweep_interval, compaction, beacons, on_reap, limits } = options;
    let (stop, shutdown) = Shutdown::channel();
    let app = App::new(Arc::clone(&store), limits, shutdown.clone()).await?;
    let is_open = app.is_open();
    if is_open && !listen.ip().is_loopback() {
        return Err(ServeError::NoTokens(listen));
    }
    let hook = on_reap.map(|on_reap| Hook::new(Arc::clone(&store), on_reap)).transpose()?;
    let failed = |source| ServeError::Listen { address: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    store.observe(app.metrics.clone());
    let router = router(&app);
    let listening = tokio::spawn(connections::accept(listener, router, app.clone()));
    let mut beside = vec![
        tokio::spawn(count(app.clone())),
        tokio::spawn(refresh(app.clone())),
        tokio::spawn(watch_log(app.clone())),
    ];
    if beacons {
        beside.push(tokio::spawn(beacons::beacon(app.clone(), process.clone(), address)));
    }
    if let Some(hook) = hook {
        beside.push(tokio::spawn(async move { hook.run(shutdown.begins()).await }));
    }
    if let Some(interval) = sweep_interval {
        beside.push(tokio::spawn(sweep(app.clone(), process.clone(), interval)));
    }
    if let Some(compaction) = compaction {
        beside.push(tokio::spawn(compaction::compact(app.clone(), compaction)));
    }
    let process = beacons.then_some(process);
    Ok(Server { address, is_open, app, process, stop, listening, beside })
}

async fn count(app: App) {
    count_runs(&app.metrics, app.store(), COUNT_INTERVAL, app.shutdown.begins()).await;
}

async fn sweep(app: App, process: Name, interval: Span) {
    let mut sweeper = Sweeper::silent(process, app.store().clock());
    let told = |report: &SweepReport| {
        app.metrics.swept(report);
        for reaped in &report.reaped {
            tracing::info!(run = %reaped.run, lane = %reaped.lane, rule = %reaped.rule, "reaped: {}", reaped.message);
        }
        for lane in &report.newly_held {
            tracing::warn!(%lane, "held: too many of its runs went silent at once");
        }
    };
    while !app.shutdown.has_begun() {
        if let Err(error) = sweep_until(app.store(), &mut sweeper, interval, app.shutdown.begins(), told).await {
            tracing::error!(%error, "the sweep failed; it is tried again");
            tokio::select! { () = app.shutdown.begins() => {}, () = tokio::time::sleep(SWEEP_PAUSE) => {} }
        }
    }
}
