//! What `verify` finds.

use std::fmt;

use serde::Serialize;

/// A kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DamageKind {
    /// A version is missing from a stream, or a row from the log.
    Hole,
    /// A fact follows on the end of its run.
    AfterEnd,
    /// A stream is impossible otherwise: a step that cannot follow, or a stamp that does not increase.
    Stream,
    /// A row of the log is not what was written.
    Changed,
    /// The packed heartbeats of the commits and those of the runs differ.
    Beats,
    /// The projection of a run is not the fold of its stream.
    Projection,
    /// The tail of a run is not what the commits hold beyond its segments.
    Tail,
    /// A run that may be reaped would not be looked at in time.
    Due,
    /// A trigger that keeps the log append-only is missing.
    Trigger,
    /// The end of the log is not where the log ends.
    Head,
}

impl DamageKind {
    /// Returns the word for it in JSON and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            DamageKind::Hole => "hole",
            DamageKind::AfterEnd => "after_end",
            DamageKind::Stream => "stream",
            DamageKind::Changed => "changed",
            DamageKind::Beats => "beats",
            DamageKind::Projection => "projection",
            DamageKind::Tail => "tail",
            DamageKind::Due => "due",
            DamageKind::Trigger => "trigger",
            DamageKind::Head => "head",
        }
    }

    /// Says whether making the projection anew from the log mends it.
    pub const fn is_mended_by_rebuild(self) -> bool {
        matches!(self, DamageKind::Projection | DamageKind::Tail | DamageKind::Due)
    }
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
        let kind = self.kind.as_str();
        match self.run {
            Some(run) => write!(f, "{kind}: run {run}: {}", self.message),
            None => write!(f, "{kind}: {}", self.message),
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
    /// How many runs hold a fact that this program does not know; they are well, and not judged.
    pub quarantined: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
}

/// What a rebuild did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RebuildReport {
    /// How many runs were made anew.
    pub runs: u64,
    /// From how many facts.
    pub events: u64,
    /// How many of them were not as they had been in the old projection.
    pub differed: u64,
}
