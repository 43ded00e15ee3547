//! A recorded situation and the verdict that it must get: a regression test as data.

use lastbeat_domain::{Liveness, Rule, RunId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A recorded situation: what `export --as-case` writes a list of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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

/// The verdict that a recorded situation must get. What has no meaning is left out, the rule aside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExpectDocument {
    /// The verdict.
    pub verdict: Liveness,
    /// The rule that governs, if one does.
    pub rule: Option<Rule>,
    /// How much is charged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charged_seconds: Option<f64>,
    /// How much is not, because nobody listened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deaf_seconds: Option<f64>,
    /// When the run lapses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lapses_at: Option<Timestamp>,
}
