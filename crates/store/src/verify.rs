//! What `verify` finds.

use std::fmt;

use serde::Serialize;

/// A kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DamageKind {
    /// A stream is impossible: it has a hole, a step that cannot follow, or a stamp that does not increase.
    Stream,
    /// The projection of a run is not the fold of its stream.
    Projection,
    /// The packed heartbeats of the commits and those of the runs differ.
    Beats,
    /// A run that may be reaped would not be looked at in time.
    Due,
    /// A trigger that keeps the log append-only is missing.
    Trigger,
    /// The end of the log is before what the log holds.
    Head,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Its kind.
    pub kind: DamageKind,
    /// The run, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<lastbeat_domain::RunId>,
    /// What is wrong, for people.
    pub message: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.run {
            Some(run) => write!(f, "run {run}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

/// What was looked at and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// How many runs were folded.
    pub runs: u64,
    /// How many facts they have.
    pub events: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
}
