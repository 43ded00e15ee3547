//! Replaying a run: what was known of it at each instant, from the log alone, and what the rule said.

use std::collections::BTreeSet;
use std::sync::Arc;

use lastbeat_domain::{Liveness, Rule, RunId, Span, Status, Timestamp, Verdict};
use serde::Serialize;

use crate::ask::whole_stream;
use crate::error::StoreError;
use crate::record::take_in;
use crate::{Judged, Store};

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
        let policy = service.policy(&known.lane, now);
        let judged = Judged::new(known.clone(), policy, Arc::new(service.listening(now)), now);
        note(&mut stretches, &judged, because);
        let fact_or_turn = turns.range(now.next()..).next().copied();
        let next = [fact_or_turn, judged.verdict.changes_at.filter(|at| *at > now)].into_iter().flatten().min();
        match next.filter(|next| *next <= until) {
            Some(next) => now = next,
            None => {
                if let Some(last) = stretches.last_mut() {
                    last.to = until;
                }
                let policy = service.policy(&known.lane, until);
                let judged = Judged::new(known.clone(), policy, Arc::new(service.listening(until)), until);
                return Ok(Some(Replay { stretches, judged }));
            }
        }
    }
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
