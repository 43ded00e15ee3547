//! What a pass is going to do, as data.

use lastbeat_domain::RunId;
use lastbeat_store::Judged;

/// What is to be done about the runs that are due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepPlan {
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
            let list = if judged.verdict.is_lapsed() { &mut plan.reap } else { &mut plan.rearm };
            list.push(judged.run.id);
        }
        plan
    }
}
