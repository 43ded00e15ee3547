//! Why a run was reaped, or why not yet.

use lastbeat_domain::event::{Evidence, RunEvent};
use lastbeat_domain::run::Outcome;
use lastbeat_domain::verdict::BasisFact;
use lastbeat_domain::{Liveness, Name, Recorded, Rule, RunId, Span, Status, Timestamp, explain};
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
    /// All of it in a sentence.
    pub message: String,
    /// All of it at length, a sentence each.
    #[serde(default)]
    pub explanation: Vec<String>,
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
    pub fn of(seen: Seen<'_>) -> WhyDocument {
        match last_reap(seen) {
            Some(reap) => WhyDocument::of_reap(seen, &reap),
            None => WhyDocument::of_verdict(seen),
        }
    }

    /// Says what the rule says of a run.
    fn of_verdict(seen: Seen<'_>) -> WhyDocument {
        let Seen { run, verdict, policy, listening, at } = seen;
        let charge = verdict.charge;
        WhyDocument {
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
            message: explain::sentence(run, verdict, policy, at),
            explanation: explain::lines(run, verdict, policy, listening, at),
        }
    }

    /// Says why an attempt was reaped. A fact that is no reap is answered as if none had been named.
    pub fn of_reap(seen: Seen<'_>, reap: &Recorded) -> WhyDocument {
        let RunEvent::TimedOut { attempt, rule, evidence, message } = &reap.event else {
            return WhyDocument::of_verdict(seen);
        };
        let (run, evidence): (_, Option<&Evidence>) = (seen.run, evidence.as_deref());
        let executor = evidence.and_then(|evidence| evidence.executor.as_ref());
        let executor = executor.or(run.executor().filter(|_| *attempt == run.attempt));
        WhyDocument {
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
            message: message.clone(),
            explanation: explain::reap_lines(reap),
        }
    }
}

/// The reap by which a run ended, if it did.
fn last_reap(seen: Seen<'_>) -> Option<Recorded> {
    let run = seen.run;
    let Outcome { version, at, event } = run.outcome.as_ref()?;
    let reap = || Recorded { run: run.id, version: *version, recorded_at: *at, event: event.clone() };
    (run.status == Status::TimedOut).then(reap)
}
