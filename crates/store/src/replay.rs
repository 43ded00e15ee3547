//! Replaying a run: what was known of it at each instant, from the log alone, and what the rule said.

use std::collections::BTreeSet;
use std::sync::Arc;

use lastbeat_domain::{Liveness, Rule, Run, RunId, Span, Status, Timestamp, Verdict};
use serde::Serialize;

use crate::ask::whole_stream;
use crate::error::StoreError;
use crate::record::take_in;
use crate::{Judged, ServiceLog, Store};

/// A stretch of time in which the verdict was the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stretch {
    /// The log time at which it began.
    pub from: Timestamp,
    /// The log time at which it ended, or up to which the run was replayed.
    pub to: Timestamp,
    /// The status that the facts say.
    pub status: Status,
    /// The attempt.
    pub attempt: u32,
    /// The verdict.
    pub verdict: Liveness,
    /// The rule that governed.
    pub rule: Option<Rule>,
    /// The type of the fact with which it began; `None` if time alone began it.
    pub because: Option<String>,
}

/// A run replayed.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The verdicts, from the creation on.
    pub stretches: Vec<Stretch>,
    /// The run at the end of them.
    pub judged: Judged,
}

/// Replays a run from its creation to log time `until`; `None` if it was not there by then.
///
/// # Errors
/// If the store fails, or the stream is damaged.
pub async fn replay(store: &dyn Store, id: RunId, until: Timestamp) -> Result<Option<Replay>, StoreError> {
    let mut stream = whole_stream(store, id).await?;
    stream.retain(|fact| fact.recorded_at() <= until);
    let service = store.service_log().await?;
    let Some(created) = stream.first().map(crate::Stored::recorded_at) else { return Ok(None) };

    let mut run = None;
    let mut facts = stream.iter().peekable();
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut turns: BTreeSet<Timestamp> = stream.iter().map(crate::Stored::recorded_at).collect();
    let mut now = created;
    loop {
        let mut because = None;
        while let Some(fact) = facts.next_if(|fact| fact.recorded_at() <= now) {
            take_in(&mut run, fact).map_err(|source| StoreError::CorruptStream { run: id, source })?;
            because = Some(fact.type_name().to_owned());
        }
        let Some(known) = &run else { return Ok(None) };
        if now == created {
            turns.extend(service.policy_history(&known.lane).map(|(at, _, _)| at).filter(|at| *at > created));
            // A gap counts from the instant after its promise was broken, a clock step from its record.
            let spans = service.deaf_spans().iter();
            turns.extend(spans.flat_map(|span| [span.promised_until.next(), span.to, span.recorded_at]));
        }
        let judged = judged_at(known, &service, now);
        note(&mut stretches, &judged, because);
        let fact_or_turn = turns.range(now.next()..).next().copied();
        if fact_or_turn.is_none_or(|at| at > until) {
            let end = judged_at(known, &service, until);
            if stands_still(&judged, &end) {
                return Ok(Some(ended(stretches, end)));
            }
        }
        let next = [fact_or_turn, judged.verdict.changes_at.filter(|at| *at > now)].into_iter().flatten().min();
        match next.filter(|next| *next <= until) {
            Some(next) => now = next,
            None => return Ok(Some(ended(stretches, judged_at(known, &service, until)))),
        }
    }
}

fn judged_at(run: &Run, service: &ServiceLog, at: Timestamp) -> Judged {
    Judged::new(run.clone(), service.policy(&run.lane, at), Arc::new(service.listening(at)), at)
}

/// Whether the verdict is the same at two instants and at all between them, where the log has nothing in between: the
/// charge only ever grows, so where it is the same at both ends, it stood still. Without this, a replay up to long after
/// the last promise to listen would look again after each window, and find each time that nobody had listened.
fn stands_still(earlier: &Judged, later: &Judged) -> bool {
    let of = |judged: &Judged| {
        let Verdict { liveness, charge, .. } = judged.verdict;
        (liveness, charge.map(|charge| (charge.rule, charge.basis, charge.window, charge.charged)))
    };
    earlier.verdict.charge.is_some() && of(earlier) == of(later)
}

fn ended(mut stretches: Vec<Stretch>, judged: Judged) -> Replay {
    if let Some(last) = stretches.last_mut() {
        last.to = judged.at;
    }
    Replay { stretches, judged }
}

/// Adds a verdict: to the stretch before it if it is the same.
fn note(stretches: &mut Vec<Stretch>, judged: &Judged, because: Option<String>) {
    let Verdict { liveness, charge, .. } = judged.verdict;
    let (status, attempt, rule) = (judged.run.status, judged.run.attempt, charge.map(|charge| charge.rule));
    if let Some(last) = stretches.last_mut() {
        last.to = judged.at;
        if (last.status, last.attempt, last.verdict, last.rule) == (status, attempt, liveness, rule) {
            return;
        }
    }
    let (from, to) = (judged.at, judged.at);
    stretches.push(Stretch { from, to, status, attempt, verdict: liveness, rule, because });
}

impl Stretch {
    /// Returns how long it was.
    pub fn length(&self) -> Span {
        self.to.since(self.from)
    }
}
