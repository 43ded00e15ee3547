//! The loop: pass after pass, asleep until the next run is due.

use std::time::Duration;

use lastbeat_domain::Span;
use lastbeat_store::{Store, StoreError};

use crate::pass::Sweeper;
use crate::report::SweepReport;

/// Sweeps until `stop` completes. Between passes it sleeps until the next run is due, at most `interval`. Each report
/// of a pass goes to `tell`. While the store is away it waits and tries again.
///
/// # Errors
/// If the store fails for good.
pub async fn sweep_until(
    store: &dyn Store,
    sweeper: &mut Sweeper,
    interval: Span,
    stop: impl Future<Output = ()>,
    mut tell: impl FnMut(&SweepReport),
) -> Result<(), StoreError> {
    tokio::pin!(stop);
    loop {
        // A pass is never cancelled half-way; only the sleep is.
        match sweeper.pass(store).await {
            Ok(report) => tell(&report),
            Err(error) if error.is_transient() => tracing::warn!(%error, "the sweep is put off"),
            Err(error) => return Err(error),
        }
        tokio::select! {
            () = &mut stop => return sweeper.stop(store).await,
            () = tokio::time::sleep(pause(store, interval.min(sweeper.patience())).await) => {}
        }
    }
}

/// How long to sleep: until the next run is due, but not longer than the interval, nor shorter than a moment.
async fn pause(store: &dyn Store, interval: Span) -> Duration {
    let moment = Span::from_millis(5);
    let until_due = match (store.now().await, store.next_due().await) {
        (Ok(now), Ok(Some(due))) => due.since(now).plus(Span::from_millis(1)),
        _ => interval,
    };
    until_due.clamp(moment.min(interval), interval).to_std()
}
