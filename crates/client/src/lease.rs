//! The attempt that is worked on: what every report quotes.

use std::time::Duration;

use lastbeat_domain::{ClaimId, RunId, Span};
use lastbeat_wire::AnswerDocument;

/// A claim of a run. Run, attempt and claim id are the fencing token: a report that quotes another is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: u32,
    /// The random half of the fencing token.
    pub claim: Option<ClaimId>,
    /// Within which time the first heartbeat is expected.
    pub next_beat_within: Duration,
    /// How long contact may be lost before the service may have given the run to somebody else. It is that of an attempt
    /// that beats even before the first heartbeat was answered, since the service may have heard it.
    pub believed_for: Option<Duration>,
}

/// How often to beat if the server did not say.
const NEXT_BEAT_WITHIN: Duration = Duration::from_secs(30);

impl Lease {
    /// Returns the lease that an answer tells of: that of a claim, or of a creation with a claim. `None` if nobody holds
    /// the run.
    pub fn of(answer: &AnswerDocument) -> Option<Lease> {
        let run = &answer.run;
        let left = run.lapses_at.map(|lapses_at| lapses_at.since(run.at));
        let told = [left, answer.heartbeat_window_seconds];
        run.status.is_in_flight().then(|| Lease {
            run: run.run,
            attempt: run.attempt,
            claim: run.claim.clone(),
            next_beat_within: answer.next_beat_within_seconds.map_or(NEXT_BEAT_WITHIN, Span::to_std),
            believed_for: told.into_iter().flatten().min().map(Span::to_std),
        })
    }
}
