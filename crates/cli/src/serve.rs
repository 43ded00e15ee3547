//! `lastbeat serve`: the API, the sweeper and their beacons, until somebody stops it.

use std::sync::Arc;

use lastbeat_server::{Options, ServeError};
use lastbeat_store::Store;
use tokio::signal::unix::{SignalKind, signal};

use crate::args;
use crate::failure::Failure;
use crate::house::process_name;

pub(crate) async fn serve(store: Arc<dyn Store>, arguments: &args::Serve) -> Result<(), Failure> {
    let process = process_name(&format!("serve-{}", std::process::id()))?;
    let mut options = Options::new(arguments.listen, process);
    options.sweep_interval = Some(arguments.sweep_interval);
    // Caught from the start, so that a signal that comes early ends a server cleanly too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let server = lastbeat_server::serve(store, options).await?;
    eprintln!("lastbeat: listening on http://{}", server.address);
    if server.is_open {
        eprintln!(
            "lastbeat: there are no tokens, so everybody on this machine may do everything; \
             `lastbeat token create` makes the first"
        );
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    eprintln!("lastbeat: stopping; requests in flight are finished first");
    server.stop().await;
    Ok(())
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Failure {
        match error {
            ServeError::Store(error) => error.into(),
            ServeError::Listen { .. } => Failure::new("cannot_listen", error.to_string()),
            ServeError::Hook(_) => Failure::new("invalid", error.to_string()),
            ServeError::NoTokens(_) => Failure::new("no_tokens", error.to_string()),
        }
    }
}
