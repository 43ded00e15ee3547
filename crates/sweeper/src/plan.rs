//! What a pass is going to do, as data.

use std::collections::BTreeSet;

use lastbeat_domain::{Name, Rule, RunId};
use lastbeat_store::Judged;

/// What is to be done about the runs that are due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepPlan {
    /// The lanes in which somebody lapsed by silence: how much of them is silent is to be counted first.
    pub review: BTreeSet<Name>,
    /// The runs to reap: they have lapsed.
    pub reap: Vec<RunId>,
    /// The runs to look at again later: they were heard of since they were armed.
    pub rearm: Vec<RunId>,
}

impl SweepPlan {
    /// Plans from verdicts; it is not asked whether a lapsed run may be reaped, since the store decides that under lock.
    pub fn new<'a>(due: impl IntoIterator<Item = &'a Judged>) -> SweepPlan {
        let mut plan = SweepPlan::default();
        for judged in due {
            if !judged.verdict.is_lapsed() {
                plan.rearm.push(judged.run.id);
                continue;
            }
            plan.reap.push(judged.run.id);
            if judged.verdict.rule() == Some(Rule::HeartbeatSilence) {
                plan.review.insert(judged.run.lane.clone());
            }
        }
        plan
    }
}
