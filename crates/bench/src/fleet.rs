//! The runs that are in flight, the same for every contestant.

use lastbeat_domain::decide::Report;
use lastbeat_domain::{ClaimId, RunId};
use uuid::Uuid;

/// A run in flight, at its first attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Member {
    pub(crate) id: Uuid,
    pub(crate) claim: Uuid,
}

impl Member {
    /// Makes a run with an id as Lastbeat makes them, and a random claim.
    pub(crate) fn new() -> Member {
        Member { id: Uuid::now_v7(), claim: Uuid::new_v4() }
    }

    /// Returns the id as the domain has it.
    pub(crate) fn run(self) -> RunId {
        RunId::from_uuid(self.id)
    }

    /// Returns what its executor says with every heartbeat.
    pub(crate) fn report(self) -> Report {
        let claim = Some(ClaimId::from_uuid(self.claim));
        Report { run: self.run(), attempt: 1, claim, executor: None }
    }
}

/// Makes runs.
pub(crate) fn members(count: usize) -> Vec<Member> {
    (0..count).map(|_| Member::new()).collect()
}
