//! A run replayed: what the rule said at each instant.

use lastbeat_domain::{Liveness, Rule, RunId, Status, Timestamp};
use serde::{Deserialize, Serialize};

use crate::run::RunDocument;

/// A run replayed from its log alone: what `replay` prints. All instants are those of the log clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReplayDocument {
    /// The run.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::RunId))]
    pub run: RunId,
    /// The instant up to which it was replayed.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub at: Timestamp,
    /// The verdicts, from the creation on.
    pub stretches: Vec<StretchDocument>,
    /// The run at that instant.
    pub state: RunDocument,
}

/// A stretch of time in which the verdict was the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StretchDocument {
    /// When it began.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub from: Timestamp,
    /// When it ended, or up to which instant the run was replayed.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Timestamp))]
    pub to: Timestamp,
    /// The status that the facts say.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Status))]
    pub status: Status,
    /// The attempt.
    pub attempt: u32,
    /// The verdict.
    #[cfg_attr(feature = "openapi", schema(value_type = crate::schema::Liveness))]
    pub verdict: Liveness,
    /// The rule that governed.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<crate::schema::Rule>))]
    pub rule: Option<Rule>,
    /// The type of the fact with which it began; null if time alone began it.
    pub because: Option<String>,
}
