//! A server from its start to its end: listener, sweeper, beacons, and a shutdown that leaves nothing half done.

use std::net::SocketAddr;
use std::sync::Arc;

use lastbeat_store::{Store, StoreError};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::app::{App, Shared};
use crate::connections;
use crate::limits::Limits;
use crate::router::router;
use crate::shutdown::Shutdown;

/// How a server is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What it puts up with.
    pub limits: Limits,
}

impl Options {
    /// Makes the options of a server that listens on an address, with nothing else said.
    pub fn listening_on(listen: SocketAddr) -> Options {
        Options { listen, limits: Limits::default() }
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
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A server that runs.
pub struct Server {
    /// The address on which it listens.
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    listening: JoinHandle<()>,
}

impl Server {
    /// Stops: takes no more requests, finishes those in flight, ends streams.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        if let Err(error) = self.listening.await {
            tracing::error!(%error, "the listener did not end as it should");
        }
    }
}

/// Starts a server on a store. It runs until [`Server::stop`].
///
/// # Errors
/// If the address cannot be listened on, or the store fails.
pub async fn serve(store: Arc<dyn Store>, options: Options) -> Result<Server, ServeError> {
    let Options { listen, limits } = options;
    let failed = |source| ServeError::Listen { address: listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let (stop, shutdown) = Shutdown::channel();
    let app = App::new(Shared { store, limits: limits.clone(), shutdown: shutdown.clone() });
    let router = router(&app);
    let listening = tokio::spawn(async move { connections::accept(listener, router, &limits, shutdown).await });
    Ok(Server { address, stop, listening })
}
