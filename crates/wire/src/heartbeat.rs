//! Heartbeats: one, or those of many runs at once.

use std::fmt;

use lastbeat_domain::decide::Report;
use lastbeat_domain::{ClaimId, Name, RunId, Span, Status, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The attempt is still worked on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct HeartbeatRequest {
    /// The attempt.
    #[serde(deserialize_with = "crate::whole::attempt")]
    pub attempt: u32,
    /// Its claim id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub claim: Option<ClaimId>,
    /// How far it is, 64 KiB at the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Value>))]
    pub progress: Option<Value>,
}

impl HeartbeatRequest {
    /// Says it as the domain does, with the progress. `executor` is who speaks, if known.
    pub fn about(self, run: RunId, executor: Option<Name>) -> (Report, Option<Value>) {
        (Report { run, attempt: self.attempt, claim: self.claim, executor }, self.progress)
    }
}

/// What an executor is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Directive {
    /// Go on.
    Continue,
    /// Stop, and report the run as cancelled: somebody asked for it.
    Cancel,
    /// Stop at once: the run is no longer this executor's.
    Stop,
}

impl Directive {
    /// Returns what an executor whose heartbeat was taken is to do.
    pub const fn after_heartbeat(cancel_requested: bool) -> Directive {
        if cancel_requested { Directive::Cancel } else { Directive::Continue }
    }

    /// Returns the word for it in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Directive::Continue => "continue",
            Directive::Cancel => "cancel",
            Directive::Stop => "stop",
        }
    }
}

impl fmt::Display for Directive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The answer to a heartbeat that was taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HeartbeatDocument {
    /// The run.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::RunId))]
    pub run: RunId,
    /// Its status: `running`.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Status))]
    pub status: Status,
    /// The attempt.
    pub attempt: u32,
    /// The version of the heartbeat.
    pub version: u64,
    /// The log time of the heartbeat.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub at: Timestamp,
    /// What to do next.
    pub directive: Directive,
    /// Within which time the next heartbeat is expected.
    #[cfg_attr(feature = "openapi", schema(value_type = f64))]
    pub next_beat_within_seconds: Span,
    /// The log time at which the run lapses if nothing more is heard of it.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub lapses_at: Option<Timestamp>,
}

/// Plain heartbeats of many runs, 1,000 at the most, for a host that works on many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BeatsRequest {
    /// The heartbeats.
    #[serde(deserialize_with = "crate::object::each")]
    #[cfg_attr(feature = "openapi", schema(max_items = 1000))]
    pub beats: Vec<Beat>,
}

/// One heartbeat of many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Beat {
    /// The run.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::RunId))]
    pub run: RunId,
    /// The attempt.
    #[serde(deserialize_with = "crate::whole::attempt")]
    pub attempt: u32,
    /// Its claim id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Name>))]
    pub claim: Option<ClaimId>,
}

impl Beat {
    /// Says it as the domain does. `executor` is who speaks, if known.
    pub fn report(self, executor: Option<Name>) -> Report {
        Report { run: self.run, attempt: self.attempt, claim: self.claim, executor }
    }
}

/// The answers to many heartbeats, in the order of the request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BeatsDocument {
    /// The answers.
    pub results: Vec<BeatResult>,
}

/// The answer to one heartbeat of many: what to do next, or what was wrong with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BeatResult {
    /// The run.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::RunId))]
    pub run: RunId,
    /// What to do next; `stop` where the heartbeat was refused because the run is no longer this executor's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub directive: Option<Directive>,
    /// Within which time the next heartbeat is expected, where this one was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>, nullable = false))]
    pub next_beat_within_seconds: Option<Span>,
    /// The log time at which the run lapses if nothing more is heard of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>, nullable = false))]
    pub lapses_at: Option<Timestamp>,
    /// Why there is no directive: no such run, or the heartbeat could not be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub error: Option<BeatError>,
}

/// What was wrong with one heartbeat of many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BeatError {
    /// Why, for programs: the `code` of problems.
    pub code: String,
    /// Why, for people.
    pub message: String,
}

impl BeatResult {
    /// The answer to a heartbeat that was taken.
    pub fn taken(heard: &HeartbeatDocument) -> BeatResult {
        BeatResult {
            run: heard.run,
            directive: Some(heard.directive),
            next_beat_within_seconds: Some(heard.next_beat_within_seconds),
            lapses_at: heard.lapses_at,
            error: None,
        }
    }

    /// The answer to a heartbeat of an attempt that is not the executor's any more.
    pub const fn fenced(run: RunId) -> BeatResult {
        let directive = Some(Directive::Stop);
        BeatResult { run, directive, next_beat_within_seconds: None, lapses_at: None, error: None }
    }

    /// The answer to a heartbeat that came to nothing.
    pub fn failed(run: RunId, code: impl Into<String>, message: impl Into<String>) -> BeatResult {
        let error = Some(BeatError { code: code.into(), message: message.into() });
        BeatResult { run, directive: None, next_beat_within_seconds: None, lapses_at: None, error }
    }
}
