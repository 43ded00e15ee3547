//! A recorded situation and the verdict that it must get: a regression test as data.

use lastbeat_domain::{Liveness, Rule, RunId, Timestamp};
use serde::Serialize;
use serde_json::Value;

/// A recorded situation: what `export --as-case` writes a list of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CaseDocument {
    /// What it is called.
    pub name: String,
    /// What makes it worth keeping.
    pub why: String,
    /// The instant of log time at which the run is judged.
    pub at: Timestamp,
    /// The lines of an import file.
    pub history: Vec<Value>,
    /// The run that is judged.
    pub run: RunId,
    /// What it must get.
    pub expect: ExpectDocument,
}

/// The verdict that a recorded situation must get. What has no meaning is left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpectDocument {
    /// The verdict.
    pub verdict: Liveness,
    /// The rule that governs, null if none does. Left out of a run that is settled: `why` names the rule by which it was
    /// reaped, and the verdict none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Option<Rule>>,
    /// How much is charged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub charged_seconds: Option<f64>,
    /// How much is not, because nobody listened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deaf_seconds: Option<f64>,
    /// When the run lapses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lapses_at: Option<Timestamp>,
}
