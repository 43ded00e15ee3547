//! Bundles: an incident in one file, from which a store is made that answers every question about it the same.
//!
//! What `why` says of a run follows from its stream, from the policies of its lane, from when nobody listened or nothing
//! was reaped, and for an open gap from the beacons. So that is what a bundle holds, up to one instant of the log, and
//! nothing else: no token, and no run beside those that were asked for.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use lastbeat_domain::event::{Line, beacon_line};
use lastbeat_domain::listening::Beacon;
use lastbeat_domain::{Name, RunId, ServiceEvent, Timestamp};

use crate::error::StoreError;
use crate::record::{Stored, line};
use crate::{Filter, Store};

/// How many facts are read of a stream at a time.
const PAGE_FACTS: usize = 2_000;
/// How many runs are looked at a time.
const PAGE_RUNS: usize = 500;

/// What a bundle holds beside the streams of its runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct With {
    /// The policies of their lanes.
    pub policy: bool,
    /// When nobody listened and nothing was reaped: deaf spans, steps of the clock, holds of their lanes, beacons.
    pub deaf: bool,
}

/// A line of a bundle.
#[derive(Clone, Debug, PartialEq)]
pub enum BundleLine {
    /// Something of the service.
    Service(String),
    /// A fact of a run.
    Run(Stored),
}

impl BundleLine {
    /// Writes it as a line of an import file.
    pub fn text(&self) -> String {
        match self {
            BundleLine::Service(line) => line.clone(),
            BundleLine::Run(fact) => line(fact),
        }
    }
}

/// Returns the runs of a goal, or all, that have a fact recorded at log time `since` or later, oldest first.
///
/// # Errors
/// If the store fails.
pub async fn runs_since(
    store: &dyn Store,
    goal: Option<&Name>,
    since: Option<Timestamp>,
) -> Result<Vec<RunId>, StoreError> {
    let filter = Filter { goal: goal.cloned(), ..Filter::default() };
    let (mut runs, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(&filter, after, PAGE_RUNS).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        runs.extend(page.iter().filter(|run| since.is_none_or(|since| run.updated_at >= since)).map(|run| run.id));
    }
    runs.reverse();
    Ok(runs)
}

/// A bundle that is being written, a page at a time, so that a run of any length takes no more memory than a short one.
pub struct Bundle {
    store: Arc<dyn Store>,
    /// The instant up to which it tells everything.
    until: Timestamp,
    /// What is told first.
    service: Option<Vec<BundleLine>>,
    /// The runs whose streams are still to be told; of the first one those facts that come after the version.
    runs: VecDeque<RunId>,
    after: u64,
}

impl Bundle {
    /// Begins a bundle of runs, which must be there, as of now.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn begin(store: Arc<dyn Store>, runs: Vec<RunId>, with: With) -> Result<Bundle, StoreError> {
        let mut lanes = BTreeSet::new();
        for run in &runs {
            lanes.extend(store.run(*run).await?.map(|run| run.lane));
        }
        // The beacons first: what is told of them is then no later than the instant.
        let beacons = store.service_log().await?.beacons.clone();
        let until = store.now().await?;
        let mut service = Vec::new();
        for line in store.service_lines().await? {
            // What this program does not know means nothing to it, so no answer rests on it.
            let Ok(Line::Service(recorded)) = Line::parse(&line) else { continue };
            let wanted = match &recorded.event {
                ServiceEvent::PolicySet { lane, .. } => with.policy && lanes.contains(lane),
                ServiceEvent::Deaf { .. } | ServiceEvent::ClockBack { .. } => with.deaf,
                ServiceEvent::ReapingHeld { lane, .. } | ServiceEvent::ReapingReleased { lane, .. } => {
                    with.deaf && lanes.contains(lane)
                }
                _ => false,
            };
            if wanted && recorded.recorded_at <= until {
                service.push(BundleLine::Service(line));
            }
        }
        if with.deaf {
            service.extend(beacon_lines(&beacons).into_iter().map(BundleLine::Service));
        }
        let runs = runs.into();
        Ok(Bundle { store, until, service: Some(service), runs, after: 0 })
    }

    /// Returns the instant of log time up to which it tells everything.
    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// Returns the next lines; `None` at the end.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn next(&mut self) -> Result<Option<Vec<BundleLine>>, StoreError> {
        if let Some(service) = self.service.take() {
            return Ok(Some(service));
        }
        let Some(run) = self.runs.front().copied() else { return Ok(None) };
        let page = self.store.stream(run, self.after, PAGE_FACTS).await?;
        let (until, read) = (self.until, page.facts.len());
        let facts: Vec<BundleLine> =
            page.facts.into_iter().take_while(|fact| fact.recorded_at() <= until).map(BundleLine::Run).collect();
        match page.next.filter(|_| facts.len() == read) {
            Some(next) => self.after = next,
            None => {
                self.runs.pop_front();
                self.after = 0;
            }
        }
        Ok(Some(facts))
    }
}

/// Returns the beacons as lines of an import file. They are no facts, but an open gap follows from nothing else. What the
/// processes are called plays no part, and is nobody's business elsewhere.
pub fn beacon_lines(beacons: &[Beacon]) -> Vec<String> {
    let nameless = |(beacon, number): (&Beacon, usize)| {
        let process = Name::new(format!("bundled-{number}")).unwrap_or_else(|_| beacon.process.clone());
        beacon_line(&Beacon { process, ..beacon.clone() })
    };
    beacons.iter().zip(1..).map(nameless).collect()
}
