//! A run as it is shown, and lists of runs.

use std::collections::BTreeMap;

use lastbeat_domain::run::CancelRequest;
use lastbeat_domain::{
    ClaimId, LanePolicy, Listening, Liveness, Name, Rule, Run, RunId, Span, Status, Timestamp, Verdict,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A run that was judged, with what it was judged by: what documents about it are made of.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The run.
    pub run: &'a Run,
    /// The verdict.
    pub verdict: &'a Verdict,
    /// The policy that was in force.
    pub policy: &'a LanePolicy,
    /// The listening record.
    pub listening: &'a Listening,
    /// The log time of the verdict.
    pub at: Timestamp,
}

/// A run, judged at an instant: what `run show` prints.
///
/// All instants are those of the log clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunDocument {
    /// The run.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::RunId))]
    pub run: RunId,
    /// Its kind.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub lane: Name,
    /// The goal that it serves.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub goal: Option<Name>,
    /// The only device that may claim it.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub device: Option<Name>,
    /// At most one run with this key is open at a time.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub unique_key: Option<Name>,
    /// Free labels.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub labels: BTreeMap<Name, String>,
    /// The status that its facts say. Whether its executor still lives is what `verdict` says.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Status))]
    pub status: Status,
    /// The latest attempt; 0 until the first claim.
    pub attempt: u32,
    /// The random half of the fencing token of the latest claim.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub claim: Option<ClaimId>,
    /// Who holds the run, or held it last.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub executor: Option<Name>,
    /// When it was created.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub created_at: Timestamp,
    /// The instant before which it may not be claimed.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub not_before: Option<Timestamp>,
    /// For a run that waits: the instant from which it may be claimed.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub due_at: Option<Timestamp>,
    /// When it was last claimed.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub claimed_at: Option<Timestamp>,
    /// When the latest attempt started.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub started_at: Option<Timestamp>,
    /// When the latest attempt was last heard of; the instant of its claim until its first heartbeat.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub last_heartbeat_at: Option<Timestamp>,
    /// How many heartbeats the latest attempt has sent.
    pub beats: u64,
    /// How far the latest attempt is, as it said last.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Value>))]
    pub progress: Option<Value>,
    /// When a heartbeat of the latest attempt last changed it.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub progress_changed_at: Option<Timestamp>,
    /// The request to stop that the executor has not answered yet.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::CancelRequest>))]
    pub cancel_requested: Option<CancelRequest>,
    /// The version of its latest fact.
    pub version: u64,
    /// The fact by which it ended, without its envelope.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub outcome: Option<Value>,
    /// What the rule says of it.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Liveness))]
    pub verdict: Liveness,
    /// The rule that governs.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Rule>))]
    pub rule: Option<Rule>,
    /// When it lapses if nothing more is heard of it.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub lapses_at: Option<Timestamp>,
    /// Since when nobody has listened, so that nothing is charged; null while somebody listens.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub deaf_since: Option<Timestamp>,
    /// The instant of the verdict.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub at: Timestamp,
}

impl RunDocument {
    /// Shows a run.
    pub fn of(seen: Seen<'_>) -> RunDocument {
        let Seen { run, verdict, policy: _, listening, at } = seen;
        let outcome = run.outcome.as_ref().filter(|_| run.status.is_terminal());
        RunDocument {
            run: run.id,
            lane: run.lane.clone(),
            goal: run.goal.clone(),
            device: run.device.clone(),
            unique_key: run.unique_key.clone(),
            labels: run.labels.clone(),
            status: run.status,
            attempt: run.attempt,
            claim: run.claim.as_ref().and_then(|claim| claim.id.clone()),
            executor: run.executor().cloned(),
            created_at: run.created_at,
            not_before: run.not_before,
            due_at: (run.status == Status::Pending).then_some(run.waiting.due_at),
            claimed_at: run.claimed_at(),
            started_at: run.started_at,
            last_heartbeat_at: run.last_heartbeat_at(),
            beats: run.beats,
            progress: run.progress.clone(),
            progress_changed_at: run.progress_changed.map(|changed| changed.at),
            cancel_requested: run.cancel_requested.clone(),
            version: run.version,
            // A fact holds nothing that JSON cannot.
            outcome: outcome.and_then(|outcome| serde_json::to_value(&outcome.event).ok()),
            verdict: verdict.liveness,
            rule: verdict.rule(),
            lapses_at: verdict.lapses_at(),
            deaf_since: listening.deaf_since(),
            at,
        }
    }
}

/// A page of runs, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunsPage {
    /// The runs.
    pub runs: Vec<RunDocument>,
    /// Where the next page begins; null at the end.
    pub next: Option<String>,
}

/// The answer to a step of a run: the run after it, judged at the instant of the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AnswerDocument {
    /// The run.
    #[serde(flatten)]
    pub run: RunDocument,
    /// True when `create` found an open run with the unique key: that run is the answer, and nothing was made.
    #[serde(default)]
    pub existing: bool,
    /// For a claim: what the executor is to work on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Value>))]
    pub input: Option<Value>,
    /// While an executor holds the run: within which time its next heartbeat is expected.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub next_beat_within_seconds: Option<Span>,
    /// While an executor holds the run: how long it may be silent once it has sent a heartbeat.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub heartbeat_window_seconds: Option<Span>,
}

impl AnswerDocument {
    /// Shows a run after a step.
    pub fn of(seen: Seen<'_>, existing: bool, input: Option<Value>) -> AnswerDocument {
        let terms = Some(&seen.policy.terms).filter(|_| seen.run.status.is_in_flight());
        AnswerDocument {
            run: RunDocument::of(seen),
            existing,
            input,
            next_beat_within_seconds: terms.map(|terms| terms.heartbeat_interval),
            heartbeat_window_seconds: terms.map(|terms| terms.heartbeat_window),
        }
    }
}
