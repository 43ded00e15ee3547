//! Streams for the tests that stand beside the code, told as (instant, fact).

use std::collections::BTreeMap;

use crate::event::{Recorded, RunEvent};
use crate::ids::{Name, RunId};
use crate::time::Timestamp;

/// The stream of the run with that number, in lane `watcher`; that it was created goes without saying.
pub(crate) fn stream(
    run: u128,
    created_at: Timestamp,
    facts: impl IntoIterator<Item = (Timestamp, RunEvent)>,
) -> Vec<Recorded> {
    let (lane, labels) = (Name::new("watcher").unwrap(), BTreeMap::new());
    let (goal, device, not_before, unique_key, input) = (None, None, None, None, None);
    let created = RunEvent::Created { lane, goal, device, not_before, unique_key, labels, input };
    let run = RunId::from_uuid(uuid::Uuid::from_u128(run));
    let recorded = |(version, (recorded_at, event))| Recorded { run, version, recorded_at, event };
    (1..).zip([(created_at, created)].into_iter().chain(facts)).map(recorded).collect()
}

pub(crate) fn claimed(attempt: u32) -> RunEvent {
    RunEvent::Claimed { attempt, claim: None, executor: Name::new("mac-7").unwrap(), device: None }
}

pub(crate) fn beat(attempt: u32) -> RunEvent {
    RunEvent::Heartbeat { attempt, progress: None }
}

pub(crate) fn completed(attempt: u32, late: bool) -> RunEvent {
    RunEvent::Completed { attempt, output: None, late }
}
