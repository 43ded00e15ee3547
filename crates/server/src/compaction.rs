//! Compaction in the background: now and then, a step at a time, and in nobody's way.
//!
//! Every replica may do it. They exclude one another, and whoever comes second finds that there is not enough left to be
//! worth an event.

use std::time::Duration;

use lastbeat_domain::Span;
use lastbeat_store::StoreError;
use lastbeat_store::compact::{Bounds, CompactionReport};

use crate::app::App;

/// With fewer rows than these that are old enough nothing is done: a step leaves an event behind.
const ROWS_MIN: u64 = 1_000;
/// How long the database has to itself between two steps.
const PAUSE: Duration = Duration::from_millis(100);

/// When heartbeats are compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// How long to wait between two compactions.
    pub interval: Span,
    /// How old a heartbeat must be, by log time. Longer than a tail takes to fill, or tails are written out half empty.
    pub older_than: Span,
}

impl Default for Compaction {
    fn default() -> Compaction {
        Compaction { interval: Span::from_seconds(600), older_than: Span::from_seconds(3_600) }
    }
}

/// Compacts again and again until the shutdown begins.
pub(crate) async fn compact(app: App, compaction: Compaction) {
    while waits(&app, compaction.interval.to_std()).await {
        let mut report = CompactionReport::default();
        let ended = steps(&app, compaction.older_than, &mut report).await;
        if !report.is_empty() {
            let CompactionReport { rows, beats, bytes_before, bytes_after, .. } = report;
            tracing::info!(rows, beats, bytes_before, bytes_after, "compacted");
        }
        match ended {
            Err(error) if error.is_transient() => tracing::debug!(%error, "the compaction is put off"),
            Err(error) => tracing::error!(%error, "the compaction failed; nothing is lost by that"),
            Ok(()) => {}
        }
    }
}

/// Makes steps while there is enough to do. What they did is in the report, whether or not one failed.
async fn steps(app: &App, older_than: Span, report: &mut CompactionReport) -> Result<(), StoreError> {
    let bounds = Bounds::older_than(app.store(), older_than, ROWS_MIN).await?;
    loop {
        let step = app.store().compact(bounds).await?;
        app.metrics.compacted(&step);
        if step.is_empty() {
            return Ok(());
        }
        report.add(&step);
        if !waits(app, PAUSE).await {
            return Ok(());
        }
    }
}

/// Waits; false when the shutdown begins.
async fn waits(app: &App, time: Duration) -> bool {
    tokio::select! {
        () = app.shutdown.begins() => false,
        () = tokio::time::sleep(time) => true,
    }
}
