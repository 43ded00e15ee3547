//! Backtests: a lane's recorded past under other policies.

use std::collections::BTreeMap;

use lastbeat_domain::alternative::{Alternative, AlternativeError, Window};
use lastbeat_domain::backtest::{BacktestReport, Outcome, Shift, Shortest, WindowReport, WrongReap};
use lastbeat_domain::{Name, Rule, RunId, Span, Timestamp};
use serde::{Deserialize, Serialize};

/// How many wrong reaps are named for each alternative if nobody says how many.
pub const EXAMPLES: u32 = 10;
/// How many wrong reaps are named for each alternative at the most.
pub const EXAMPLES_MAX: u32 = 1_000;

/// Asks what a lane's recorded past would have been under other policies: under every combination of the windows that
/// are listed, 64 at the most. Nothing listed: heartbeat windows around the one that is in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct BacktestRequest {
    /// Heartbeat windows to try.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<f64>, example = json!([60, 90, 120, 180, 300])))]
    pub heartbeat_window_seconds: Vec<Span>,
    /// Coarse windows to try.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<f64>))]
    pub coarse_ttl_seconds: Vec<Span>,
    /// Claim windows to try; null: off.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Option<f64>>))]
    pub claim_window_seconds: Vec<Option<Span>>,
    /// Start windows to try; null: off.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Option<f64>>))]
    pub start_window_seconds: Vec<Option<Span>>,
    /// Longest runtimes to try; null: off.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Option<f64>>))]
    pub max_runtime_seconds: Vec<Option<Span>>,
    /// Only runs that were created then or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub since: Option<Timestamp>,
    /// How many of the wrong reaps are named for each alternative, 1,000 at the most; 10 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0, maximum = 1000, example = 2))]
    pub examples: Option<u32>,
}

impl BacktestRequest {
    /// Returns what is to be tried; nothing if nothing is listed.
    ///
    /// # Errors
    /// If a window cannot be so long, or there are too many combinations.
    pub fn alternatives(&self) -> Result<Vec<Alternative>, AlternativeError> {
        let lengths = |lengths: &[Span]| lengths.iter().copied().map(Some).collect::<Vec<_>>();
        Alternative::combinations(&[
            (Window::HeartbeatWindow, lengths(&self.heartbeat_window_seconds)),
            (Window::CoarseTtl, lengths(&self.coarse_ttl_seconds)),
            (Window::ClaimWindow, self.claim_window_seconds.clone()),
            (Window::StartWindow, self.start_window_seconds.clone()),
            (Window::MaxRuntime, self.max_runtime_seconds.clone()),
        ])
    }
}

/// What a lane's recorded past would have been under other policies: what `backtest` prints. All instants are those of
/// the log clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BacktestDocument {
    /// The lane.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Name))]
    pub lane: Name,
    /// Up to when the past was known.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub at: Timestamp,
    /// Only runs that were created then or later; null: all.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Timestamp>))]
    pub since: Option<Timestamp>,
    /// How many runs were judged.
    pub runs: u64,
    /// How many facts they have.
    pub events: u64,
    /// How many attempts were judged.
    pub attempts: u64,
    /// How many of them were still under way at the end of the record.
    pub open: u64,
    /// How many runs hold a fact that the program does not know; they were judged up to it.
    pub quarantined: u64,
    /// How many reaps the record has.
    pub reaps: u64,
    /// How many of them were wrong: something was heard afterwards that contradicts them.
    pub wrong: u64,
    /// What would have been: first under what was in force, then under each alternative.
    pub alternatives: Vec<AlternativeDocument>,
    /// How long each window would have had to be.
    pub recommendations: Vec<RecommendationDocument>,
}

/// What would have been under one alternative. Every attempt, and every time that a run waited, is counted in one of
/// `same`, `earlier`, `later`, `newly`, `no_longer`, `not_yet` and `untouched`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AlternativeDocument {
    /// The windows that are others, by their names in the policy; null: off. None: what was in force.
    #[cfg_attr(feature = "openapi", schema(
        value_type = BTreeMap<String, Option<f64>>, example = json!({"heartbeat_window_seconds": 60})
    ))]
    pub windows: BTreeMap<String, Option<Span>>,
    /// How many would have been reaped: `same`, `earlier`, `later` and `newly` together.
    pub reaps: u64,
    /// Reaped at the same instant as in the record, by the rule.
    pub same: u64,
    /// Reaped earlier than in the record.
    pub earlier: u64,
    /// Reaped later than in the record.
    pub later: u64,
    /// Reaped though the record has no reap.
    pub newly: u64,
    /// Reaped in the record, and not: something was heard before it would have been.
    pub no_longer: u64,
    /// Reaped in the record, and not by the end of it.
    pub not_yet: u64,
    /// Not reaped, as in the record.
    pub untouched: u64,
    /// Of `reaps`: something was heard afterwards that contradicts the rule.
    pub wrong: u64,
    /// Of `wrong`: not wrong in the record as well.
    pub newly_wrong: u64,
    /// Of `reaps`: nothing was heard afterwards.
    pub right: u64,
    /// Of `reaps`: the record ends before it is known.
    pub undecided: u64,
    /// By how much the right ones of `earlier` came sooner.
    pub sooner: ShiftDocument,
    /// By how much the right ones of `later` came later.
    pub later_by: ShiftDocument,
    /// Some of the wrong reaps, newly wrong ones before others.
    pub wrong_reaps: Vec<WrongReapDocument>,
}

/// By how much reaps were moved.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShiftDocument {
    /// How many.
    pub reaps: u64,
    /// By how much on average; null if there was none.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub mean_seconds: Option<Span>,
    /// By how much at the most; null if there was none.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub longest_seconds: Option<Span>,
}

/// A reap after which something was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WrongReapDocument {
    /// The run.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::RunId))]
    pub run: RunId,
    /// Its attempt; 0 if it waited to be claimed.
    pub attempt: u32,
    /// The rule.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Rule))]
    pub rule: Rule,
    /// When it would have been reaped.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub at: Timestamp,
    /// When something was heard.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub heard_at: Timestamp,
    /// Whether the record has no such wrong reap.
    pub newly_wrong: bool,
}

/// How long a window would have had to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RecommendationDocument {
    /// The window, by its name in the policy without `_seconds`.
    #[cfg_attr(feature = "openapi", schema(example = "heartbeat_window"))]
    pub window: String,
    /// How long it is now; null: off.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub in_force_seconds: Option<Span>,
    /// How many runs it rests on: those with a silence that would have been charged against the window and ended with a
    /// sign of life.
    pub runs: u64,
    /// The shortest window under which no reap is wrong; null if there was no such silence.
    pub no_wrong: Option<ShortestDocument>,
    /// The shortest window under which no reap is wrong that is not wrong in the record already; null likewise.
    pub no_newly_wrong: Option<ShortestDocument>,
}

/// The shortest window that would have been long enough, which is the longest silence of all that ended with a sign of
/// life.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShortestDocument {
    /// How long it is, to the microsecond.
    #[cfg_attr(feature = "openapi", schema(value_type = f64))]
    pub seconds: Span,
    /// The shortest of those tried that is long enough; null if none is.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub tried_seconds: Option<Span>,
    /// By how much that is longer.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub margin_seconds: Option<Span>,
    /// The run that was silent so long.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::RunId))]
    pub run: RunId,
    /// Its attempt; 0 if it waited to be claimed.
    pub attempt: u32,
    /// From when its silence was charged.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub from: Timestamp,
    /// When something was heard.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub to: Timestamp,
}

impl BacktestDocument {
    /// Shows what came of a backtest of a lane.
    pub fn of(lane: Name, since: Option<Timestamp>, report: &BacktestReport) -> BacktestDocument {
        BacktestDocument {
            lane,
            at: report.end,
            since,
            runs: report.runs,
            events: report.facts,
            attempts: report.attempts,
            open: report.open,
            quarantined: report.quarantined,
            reaps: report.reaps,
            wrong: report.wrong,
            alternatives: report.outcomes.iter().map(AlternativeDocument::from).collect(),
            recommendations: report.windows.iter().map(RecommendationDocument::from).collect(),
        }
    }
}

impl From<&Outcome> for AlternativeDocument {
    fn from(outcome: &Outcome) -> AlternativeDocument {
        let windows = outcome.alternative.windows().iter();
        AlternativeDocument {
            windows: windows.map(|(window, length)| (format!("{window}_seconds"), *length)).collect(),
            reaps: outcome.reaps(),
            same: outcome.same,
            earlier: outcome.earlier,
            later: outcome.later,
            newly: outcome.newly,
            no_longer: outcome.no_longer,
            not_yet: outcome.not_yet,
            untouched: outcome.untouched,
            wrong: outcome.wrong,
            newly_wrong: outcome.newly_wrong,
            right: outcome.right,
            undecided: outcome.undecided,
            sooner: outcome.sooner.into(),
            later_by: outcome.later_by.into(),
            wrong_reaps: outcome.wrong_reaps.iter().copied().map(WrongReapDocument::from).collect(),
        }
    }
}

impl From<Shift> for ShiftDocument {
    fn from(shift: Shift) -> ShiftDocument {
        let mean_seconds = shift.mean();
        let longest_seconds = mean_seconds.map(|_| shift.longest);
        ShiftDocument { reaps: shift.reaps, mean_seconds, longest_seconds }
    }
}

impl From<WrongReap> for WrongReapDocument {
    fn from(reap: WrongReap) -> WrongReapDocument {
        let WrongReap { run, attempt, rule, at, heard_at, is_new } = reap;
        WrongReapDocument { run, attempt, rule, at, heard_at, newly_wrong: is_new }
    }
}

impl From<&WindowReport> for RecommendationDocument {
    fn from(report: &WindowReport) -> RecommendationDocument {
        RecommendationDocument {
            window: report.window.to_string(),
            in_force_seconds: report.in_force,
            runs: report.runs,
            no_wrong: report.no_wrong.map(ShortestDocument::from),
            no_newly_wrong: report.no_newly_wrong.map(ShortestDocument::from),
        }
    }
}

impl From<Shortest> for ShortestDocument {
    fn from(shortest: Shortest) -> ShortestDocument {
        let Shortest { silence, asked, margin } = shortest;
        ShortestDocument {
            seconds: silence.charged,
            tried_seconds: asked,
            margin_seconds: margin,
            run: silence.run,
            attempt: silence.attempt,
            from: silence.from,
            to: silence.to,
        }
    }
}

/// What a backtest looks like, for the description of the API.
#[cfg(feature = "openapi")]
pub mod examples {
    use serde_json::{Value, json};

    /// Returns a request.
    pub fn request() -> Value {
        json!({"heartbeat_window_seconds": [60, 180], "examples": 1})
    }

    /// Returns what is answered to it.
    pub fn document() -> Value {
        json!({
            "lane": "watcher", "at": "2026-05-04T06:00:00.000000Z", "since": null,
            "runs": 2, "events": 14, "attempts": 2, "open": 0, "quarantined": 0, "reaps": 1, "wrong": 0,
            "alternatives": [
                {
                    "windows": {}, "reaps": 1, "same": 1, "earlier": 0, "later": 0, "newly": 0, "no_longer": 0,
                    "not_yet": 0, "untouched": 3, "wrong": 0, "newly_wrong": 0, "right": 1, "undecided": 0,
                    "sooner": {"reaps": 0, "mean_seconds": null, "longest_seconds": null},
                    "later_by": {"reaps": 0, "mean_seconds": null, "longest_seconds": null},
                    "wrong_reaps": []
                },
                {
                    "windows": {"heartbeat_window_seconds": 60}, "reaps": 2, "same": 0, "earlier": 1, "later": 0,
                    "newly": 1, "no_longer": 0, "not_yet": 0, "untouched": 2, "wrong": 1, "newly_wrong": 1, "right": 1,
                    "undecided": 0,
                    "sooner": {"reaps": 1, "mean_seconds": 120, "longest_seconds": 120},
                    "later_by": {"reaps": 0, "mean_seconds": null, "longest_seconds": null},
                    "wrong_reaps": [{
                        "run": "019df0d6-47b4-79ae-b1c9-71331f50717c", "attempt": 1, "rule": "heartbeat_silence",
                        "at": "2026-05-04T02:01:20.000001Z", "heard_at": "2026-05-04T02:01:50.000000Z",
                        "newly_wrong": true
                    }]
                }
            ],
            "recommendations": [{
                "window": "heartbeat_window", "in_force_seconds": 180, "runs": 2,
                "no_wrong": {
                    "seconds": 89.999999, "tried_seconds": 180, "margin_seconds": 90.000001,
                    "run": "019df0d6-47b4-79ae-b1c9-71331f50717c", "attempt": 1,
                    "from": "2026-05-04T02:00:20.000000Z", "to": "2026-05-04T02:01:50.000000Z"
                },
                "no_newly_wrong": {
                    "seconds": 89.999999, "tried_seconds": 180, "margin_seconds": 90.000001,
                    "run": "019df0d6-47b4-79ae-b1c9-71331f50717c", "attempt": 1,
                    "from": "2026-05-04T02:00:20.000000Z", "to": "2026-05-04T02:01:50.000000Z"
                }
            }]
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::backtest::{BacktestDocument, BacktestRequest};

        #[test]
        fn the_examples_are_what_they_are_examples_of() {
            let request: BacktestRequest = serde_json::from_value(request()).unwrap();
            assert_eq!(request.alternatives().unwrap().len(), 2);
            let read: BacktestDocument = serde_json::from_value(document()).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), document());
        }
    }
}
