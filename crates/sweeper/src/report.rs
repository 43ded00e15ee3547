//! What a pass did.

use lastbeat_domain::event::{DeafCause, ReleaseCause};
use lastbeat_domain::{Name, Rule, RunId, Span, Timestamp};
use serde::Serialize;

/// What a pass did, or with `dry_run` would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SweepReport {
    /// The log time of its start.
    pub at: Timestamp,
    /// Whether it wrote nothing.
    pub dry_run: bool,
    /// How many runs it judged.
    pub examined: u64,
    /// The runs that it reaped.
    pub reaped: Vec<ReapedRun>,
    /// How many runs it will look at again later.
    pub rearmed: u64,
    /// The lanes in which nothing is reaped by silence, because too much of them went silent at once.
    pub held: Vec<Held>,
    /// The lanes whose hold this pass began.
    pub newly_held: Vec<Name>,
    /// The lanes whose hold or drain this pass ended.
    pub released: Vec<Released>,
    /// The deaf spans that its beacon recorded.
    pub deaf: Vec<Deaf>,
    /// How many runs were heard of, or ended, between the plan and its execution, or were in somebody else's hands then.
    pub lost_races: u64,
    /// How long it took.
    #[serde(rename = "duration_seconds")]
    pub duration: Span,
}

impl SweepReport {
    pub(crate) fn new(at: Timestamp, dry_run: bool) -> SweepReport {
        SweepReport {
            at,
            dry_run,
            examined: 0,
            reaped: Vec::new(),
            rearmed: 0,
            held: Vec::new(),
            newly_held: Vec::new(),
            released: Vec::new(),
            deaf: Vec::new(),
            lost_races: 0,
            duration: Span::ZERO,
        }
    }

    /// Says whether something happened that somebody may want to hear of.
    pub fn is_news(&self) -> bool {
        !(self.reaped.is_empty() && self.newly_held.is_empty() && self.released.is_empty() && self.deaf.is_empty())
    }
}

/// A run that was reaped.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReapedRun {
    /// The run.
    pub run: RunId,
    /// Its lane.
    pub lane: Name,
    /// The rule under which it lapsed.
    pub rule: Rule,
    /// Why, in a sentence.
    pub message: String,
    /// The log time at which its window was over, as the plan knew it.
    pub lapses_at: Option<Timestamp>,
    /// The log time of the reap; none with `dry_run`.
    pub reaped_at: Option<Timestamp>,
}

impl ReapedRun {
    /// Returns how long after the end of its window it was reaped.
    pub fn lag(&self) -> Option<Span> {
        self.lapses_at.zip(self.reaped_at).map(|(lapses_at, reaped_at)| reaped_at.since(lapses_at))
    }
}

/// A lane that is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// The lane.
    pub lane: Name,
    /// How many of its beating runs have lapsed.
    pub lapsed: u64,
    /// How many of its runs are beating.
    pub beating: u64,
}

/// A lane in which reaping by silence goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Released {
    /// The lane.
    pub lane: Name,
    /// Why.
    pub cause: ReleaseCause,
}

/// A span in which nobody could have been heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Deaf {
    /// Its start.
    pub from: Timestamp,
    /// Its end.
    pub to: Timestamp,
    /// What made the service deaf.
    pub cause: DeafCause,
}
