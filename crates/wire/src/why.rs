//! Why a run was reaped, or why not yet.

use lastbeat_domain::event::{Evidence, ReleaseCause, RunEvent, Signal};
use lastbeat_domain::hold::HeldSpan;
use lastbeat_domain::run::Outcome;
use lastbeat_domain::verdict::BasisFact;
use lastbeat_domain::{Life, Liveness, Name, Recorded, Rule, RunId, Span, Status, Timestamp, explain};
use serde::{Deserialize, Serialize};

use crate::run::Seen;

/// The verdict on a run and what it rests on: what `why` prints.
///
/// For a reaped run, `rule`, `basis`, window and charge are those of the recorded evidence. Where a field has no
/// meaning it is null. All instants are those of the log clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WhyDocument {
    /// The run.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::RunId))]
    pub run: RunId,
    /// Its kind.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub lane: Name,
    /// The goal that it serves.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub goal: Option<Name>,
    /// The instant that is spoken of.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub at: Timestamp,
    /// The status that its facts say.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Status))]
    pub status: Status,
    /// The attempt that is spoken of.
    pub attempt: u32,
    /// Who held the run in it.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub executor: Option<Name>,
    /// What the rule says.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Liveness))]
    pub verdict: Liveness,
    /// The rule that governs, or by which the run was reaped.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Rule>))]
    pub rule: Option<Rule>,
    /// The fact from which the silence is charged.
    pub basis: Option<BasisDocument>,
    /// How much may be charged.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub window_seconds: Option<Span>,
    /// How much is charged: the listening time since the basis.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub charged_seconds: Option<Span>,
    /// How much is not charged, because nobody could have heard the executor.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub deaf_seconds: Option<Span>,
    /// When the run lapses if nothing more is heard of it.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub lapses_at: Option<Timestamp>,
    /// The version of the lane's policy.
    pub policy_version: Option<u32>,
    /// Since when nobody has listened; null while somebody listens.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub deaf_since: Option<Timestamp>,
    /// The earliest instant at which the verdict can change by itself.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub changes_at: Option<Timestamp>,
    /// When the attempt was reaped.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub reaped_at: Option<Timestamp>,
    /// Who reaped it.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub sweeper: Option<Name>,
    /// Of an attempt that ended: how often its executor was heard of.
    #[serde(default)]
    pub heard: Option<HeardDocument>,
    /// Of an attempt that ended: how near it came to being reaped, or by how much it was over its limit when it was.
    #[serde(default)]
    pub nearest: Option<NearestDocument>,
    /// What the executor said of the attempt after its reap.
    #[serde(default)]
    pub afterwards: Vec<AfterwardsDocument>,
    /// Whether the executor was heard of after the reap; null of an attempt that was not reaped.
    #[serde(default)]
    pub probably_wrong: Option<bool>,
    /// The shortest window under which that reap would not have come before the executor spoke.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub window_needed_seconds: Option<Span>,
    /// When nobody could have heard the executor: since the basis, or in the whole attempt if it ended otherwise.
    #[serde(default)]
    pub deaf_spans: Vec<DeafSpanDocument>,
    /// When nothing of the lane was reaped for silence, as far as it mattered.
    #[serde(default)]
    pub holds: Vec<HeldSpanDocument>,
    /// All of it in a sentence.
    pub message: String,
    /// All of it at length, a sentence each.
    #[serde(default)]
    pub explanation: Vec<String>,
}

/// How often an executor was heard of in an attempt, in listening time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HeardDocument {
    /// How many heartbeats there were.
    pub beats: u64,
    /// How much time lay between two of them on the average; null with fewer than two.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub every_seconds: Option<Span>,
    /// The longest time in which nothing was heard.
    #[cfg_attr(feature = "openapi", schema(value_type = f64))]
    pub longest_silence_seconds: Span,
    /// The last sign of life before it.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub longest_silence_from: Timestamp,
}

/// How near an attempt came to being reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NearestDocument {
    /// When it was nearest.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub at: Timestamp,
    /// The rule that governed then.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Rule))]
    pub rule: Rule,
    /// How much listening time was left to it.
    #[cfg_attr(feature = "openapi", schema(value_type = f64))]
    pub left_seconds: Span,
    /// By how much listening time it was over its limit; 0 unless it had lapsed.
    #[cfg_attr(feature = "openapi", schema(value_type = f64))]
    pub over_seconds: Span,
}

/// Something that an executor said after a reap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AfterwardsDocument {
    /// What it said.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Signal))]
    pub signal: Signal,
    /// When it did.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub at: Timestamp,
    /// How long after the reap.
    #[cfg_attr(feature = "openapi", schema(value_type = f64))]
    pub after_seconds: Span,
    /// Whether its work was taken all the same.
    pub adopted: bool,
}

/// A time in which nobody could have heard an executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeafSpanDocument {
    /// Its start.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub from: Timestamp,
    /// Its end.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub to: Timestamp,
}

/// A time in which nothing of a lane was reaped for silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HeldSpanDocument {
    /// When the lane was held.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub from: Timestamp,
    /// When that ended; null while it lasts.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub to: Option<Timestamp>,
    /// Why it ended.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::ReleaseCause>))]
    pub cause: Option<ReleaseCause>,
}

/// What is told of the past of a run, beside the verdict.
#[derive(Clone, Copy, Debug, Default)]
pub struct Past<'a> {
    /// The attempt looked back on; `None` of one that did not end.
    pub life: Option<&'a Life>,
    /// When the lane was held while the silence lasted.
    pub held: &'a [HeldSpan],
}

/// The fact from which a silence is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BasisDocument {
    /// Its type.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::BasisFact))]
    pub fact: BasisFact,
    /// Its version in the run's stream.
    pub version: u64,
    /// The log time from which charging starts: that of the fact, or its `not_before`.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub at: Timestamp,
}

impl WhyDocument {
    /// Says why a run is as it is: how it ended, if it was reaped, and else what the rule says.
    pub fn of(seen: Seen<'_>, past: Past<'_>) -> WhyDocument {
        match last_reap(seen) {
            Some(reap) => WhyDocument::of_reap(seen, past, &reap),
            None => WhyDocument::of_verdict(seen, past),
        }
    }

    /// Says what the rule says of a run.
    fn of_verdict(seen: Seen<'_>, past: Past<'_>) -> WhyDocument {
        let Seen { run, verdict, policy, listening, at } = seen;
        let charge = verdict.charge;
        let (mut message, mut explanation) =
            (explain::sentence(run, verdict, policy, at), explain::lines(run, verdict, policy, listening, at));
        if let Some(told) = past.life.and_then(|life| explain::looked_back(life, listening)) {
            message = format!("{message}; {told}");
            explanation[0] = format!("{}; {told}.", explanation[0].trim_end_matches('.'));
        }
        explanation.extend(past.life.iter().flat_map(|life| explain::life_lines(life, listening)));
        let document = WhyDocument {
            run: run.id,
            lane: run.lane.clone(),
            goal: run.goal.clone(),
            at,
            status: run.status,
            attempt: run.attempt,
            executor: run.executor().cloned(),
            verdict: verdict.liveness,
            rule: verdict.rule(),
            basis: charge.map(|charge| {
                let basis = charge.basis;
                BasisDocument { fact: basis.fact, version: basis.version, at: basis.at }
            }),
            window_seconds: charge.map(|charge| charge.window),
            charged_seconds: charge.map(|charge| charge.charged),
            deaf_seconds: charge.map(|charge| charge.deaf),
            lapses_at: verdict.lapses_at(),
            policy_version: (verdict.liveness != Liveness::Settled).then_some(policy.version),
            deaf_since: listening.deaf_since(),
            changes_at: verdict.changes_at,
            reaped_at: None,
            sweeper: None,
            heard: None,
            nearest: None,
            afterwards: Vec::new(),
            probably_wrong: None,
            window_needed_seconds: None,
            deaf_spans: charge.map(|charge| deaf_spans(seen, charge.basis.at, at)).unwrap_or_default(),
            holds: Vec::new(),
            message,
            explanation,
        };
        document.with_past(seen, past)
    }

    /// Says why an attempt was reaped. A fact that is no reap is answered as if none had been named.
    pub fn of_reap(seen: Seen<'_>, past: Past<'_>, reap: &Recorded) -> WhyDocument {
        let RunEvent::TimedOut { attempt, rule, evidence, message } = &reap.event else {
            return WhyDocument::of_verdict(seen, past);
        };
        let (run, evidence): (_, Option<&Evidence>) = (seen.run, evidence.as_deref());
        let executor = evidence.and_then(|evidence| evidence.executor.as_ref());
        let executor = executor.or(run.executor().filter(|_| *attempt == run.attempt));
        let document = WhyDocument {
            run: run.id,
            lane: run.lane.clone(),
            goal: run.goal.clone(),
            at: seen.at,
            status: run.status,
            attempt: *attempt,
            executor: executor.cloned(),
            verdict: Liveness::Settled,
            rule: Some(*rule),
            basis: evidence.map(|evidence| {
                let basis = evidence.basis;
                BasisDocument { fact: basis.fact, version: basis.version, at: basis.at }
            }),
            window_seconds: evidence.map(|evidence| evidence.window),
            charged_seconds: evidence.map(|evidence| evidence.charged),
            deaf_seconds: evidence.map(|evidence| evidence.deaf),
            lapses_at: None,
            policy_version: evidence.map(|evidence| evidence.policy_version),
            deaf_since: seen.listening.deaf_since(),
            changes_at: None,
            reaped_at: Some(reap.recorded_at),
            sweeper: evidence.map(|evidence| evidence.sweeper.clone()),
            heard: None,
            nearest: None,
            afterwards: Vec::new(),
            probably_wrong: None,
            window_needed_seconds: None,
            deaf_spans: evidence
                .map(|evidence| deaf_spans(seen, evidence.basis.at, evidence.judged_at))
                .unwrap_or_default(),
            holds: Vec::new(),
            message: message.clone(),
            explanation: explain::reap_lines(reap),
        };
        document.with_past(seen, past)
    }

    /// Adds what is known of the past: of the attempt and what came after it, and of holds.
    fn with_past(mut self, seen: Seen<'_>, past: Past<'_>) -> WhyDocument {
        self.explanation.extend(explain::held_lines(past.held));
        let held = past.held.iter();
        self.holds = held.map(|held| HeldSpanDocument { from: held.from, to: held.to, cause: held.cause }).collect();
        let Some(life) = past.life else { return self };
        self.explanation.extend(explain::afterwards_lines(life, seen.listening, self.executor.as_ref()));
        self.heard = life.longest.map(|longest| HeardDocument {
            beats: life.beats,
            every_seconds: life.every(seen.listening),
            longest_silence_seconds: longest.charged,
            longest_silence_from: longest.from,
        });
        self.nearest = life.nearest.map(|nearest| NearestDocument {
            at: nearest.at,
            rule: nearest.rule,
            left_seconds: nearest.left,
            over_seconds: nearest.over,
        });
        let Some(reap) = &life.reap else {
            if let (Some(from), Some(until)) = (life.claimed_at, life.until) {
                self.deaf_spans = deaf_spans(seen, from, until);
            }
            return self;
        };
        let afterwards = life.afterwards.iter().map(|said| AfterwardsDocument {
            signal: said.signal,
            at: said.at,
            after_seconds: said.at.since(reap.recorded_at),
            adopted: said.adopted,
        });
        self.afterwards = afterwards.collect();
        if matches!(reap.event, RunEvent::TimedOut { attempt: 1.., .. }) {
            self.reaped_at = self.reaped_at.or(Some(reap.recorded_at));
        }
        self.probably_wrong = Some(life.was_probably_wrong()).filter(|_| self.attempt > 0);
        self.window_needed_seconds = life.window_needed(seen.listening);
        self
    }
}

fn deaf_spans(seen: Seen<'_>, from: Timestamp, to: Timestamp) -> Vec<DeafSpanDocument> {
    let spans = seen.listening.spans_between(from, to).into_iter();
    spans.map(|(from, to)| DeafSpanDocument { from, to }).collect()
}

/// The reap by which a run ended, if it did.
fn last_reap(seen: Seen<'_>) -> Option<Recorded> {
    let run = seen.run;
    let Outcome { version, at, event } = run.outcome.as_ref()?;
    let reap = || Recorded { run: run.id, version: *version, recorded_at: *at, event: event.clone() };
    (run.status == Status::TimedOut).then(reap)
}

#[cfg(test)]
mod tests {
    use lastbeat_domain::{LanePolicy, Listening, Run, judge};

    use super::*;

    #[test]
    fn a_late_completion_tells_when_its_attempt_was_reaped() {
        let told = r#"[
            {"type":"created","lane":"watcher"},
            {"type":"claimed","attempt":1,"executor":"mac-7"},
            {"type":"timed_out","attempt":1,"rule":"coarse_ttl","message":"silent"},
            {"type":"completed","attempt":1,"late":true}
        ]"#;
        let events: Vec<RunEvent> = serde_json::from_str(told).expect("facts");
        let at = |version: u64| Timestamp::from_micros(0).plus(Span::from_seconds(version));
        let id = "01930000-0000-7000-8000-000000000001".parse().expect("an id");
        let fact = |(version, event)| Recorded { run: id, version, recorded_at: at(version), event };
        let facts: Vec<Recorded> = (1..).zip(events).map(fact).collect();
        let run = Run::fold(&facts).expect("a stream").expect("a run");
        let (policy, listening) = (LanePolicy::default(), Listening::default());
        let verdict = judge(&run, &policy, &listening, at(9));
        let mut life = Life::of(None);
        life.reap = Some(facts[2].clone());
        let seen = Seen { run: &run, verdict: &verdict, policy: &policy, listening: &listening, at: at(9) };
        let why = WhyDocument::of(seen, Past { life: Some(&life), held: &[] });
        assert_eq!((why.status, why.reaped_at), (Status::Completed, Some(at(3))));
    }
}
