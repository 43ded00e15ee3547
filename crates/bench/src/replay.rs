//! How fast a whole store is derived again from its log.

use std::time::Instant;

use anyhow::{Result, ensure};
use lastbeat_store::Store;

use crate::row::{Bound, Row};

/// Makes every run anew from the truth and compares it with the projection. What the benchmark did must be without damage.
pub(crate) async fn measure(store: &dyn Store) -> Result<Row> {
    let started = Instant::now();
    let report = store.replay_all(&|_, _| {}).await?;
    let took = started.elapsed().as_secs_f64();
    ensure!(report.damage.is_empty(), "the store is damaged: {}", report.damage[0]);
    let note = format!("`replay --all` of {} runs and {} facts in {took:.1} s", report.runs, report.events);
    Ok(Row::new("replay of the whole store", "events/s", &[report.events as f64 / took])
        .goal(Bound::AtLeast(300_000.0))
        .note(note))
}
